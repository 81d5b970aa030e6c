"""A hypothesis machine of the table of placement groups against nodes that only believe its words (PLACEMENT).

Nodes answer late, refuse and die at any step; each keeps its own account of what it was told to reserve, and nothing
may ever be reserved there twice.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.msgpack import encode

from moray.core.bundles import total_of
from moray.core.group_records import RecordedGroupTable
from moray.core.placement_types import (
    Commit,
    Gone,
    GroupSpec,
    PlacementAction,
    PlacementNode,
    Prepare,
    RemoveFrom,
    Return,
    TellGroup,
    WarnOwner,
)
from tests.support.machines import searched, walk_fixed

UNIT = 10_000
BUNDLES: list[tuple[dict[str, int], ...]] = [
    ({"CPU": UNIT},),
    ({"CPU": UNIT}, {"CPU": UNIT}),
    ({"CPU": 2 * UNIT}, {"CPU": UNIT}, {"CPU": UNIT}),
    ({"GPU": UNIT // 2}, {"GPU": UNIT // 2}, {"CPU": UNIT}),
    ({"CPU": 3 * UNIT},),
    ({"CPU": 9 * UNIT},),
]
INFEASIBLE = len(BUNDLES) - 1
STRATEGIES = ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
WATCHERS = [b"w1", b"w2"]


@dataclass
class Site:
    """One node, as it was told."""

    total: dict[str, int]
    #: (group, attempt) → (bundles, prepared, committed).
    held: dict[tuple[bytes, int], tuple[dict[int, dict[str, int]], list[str]]] = field(default_factory=dict)
    #: It is to leave: bundles that it still has were placed anew elsewhere.
    leaving: bool = False


@dataclass
class Known:
    spec: GroupSpec
    removed: bool = False


class PlacementMachine(RuleBasedStateMachine):
    """Random life of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.core = RecordedGroupTable()
        #: What the storage has, by what the table says that has changed.
        self.stored: dict[bytes, bytes] = {}
        self.now = 1000.0
        self.sites: dict[bytes, Site] = {}
        self.groups: dict[bytes, Known] = {}
        #: Said to nodes and not carried out yet, in order per node.
        self.mail: dict[bytes, list[PlacementAction]] = {}
        #: watcher → group → state.
        self.told: dict[bytes, dict[bytes, str]] = {}
        self.dead: set[bytes] = set()
        self.names = 0
        self.warned: Counter[str] = Counter()
        for cpus in (2, 3):
            self._new_node(cpus)

    def _do(self, actions: list[PlacementAction]) -> None:
        gone: set[bytes] = set()
        for action in actions:
            match action:
                case Prepare() | Commit() | Return() | RemoveFrom():
                    assert action.node in self.sites, "a dead node was told something"
                    if isinstance(action, RemoveFrom):
                        assert action.group in gone, "Gone comes before RemoveFrom"
                    self.mail[action.node].append(action)
                case Gone():
                    gone.add(action.group)
                case TellGroup():
                    for process in action.processes:
                        assert process not in self.dead or action.request
                        self.told.setdefault(process, {})[action.group] = action.state
                case WarnOwner():
                    self.warned[action.text.split(" has been")[0].split(" cannot")[0]] += 1

    def _call(self, method: str, *args: Any) -> None:
        self._do(getattr(self.core, method)(*args))
        self.core.validate()
        for name, record in self.core.changes().items():
            if record is None:
                self.stored.pop(name, None)
            else:
                self.stored[name] = encode(record)
        assert self.stored == {name: encode(record) for name, record in self.core.records().items()}

    # --- nodes ----------------------------------------------------------------------------------

    def _new_node(self, cpus: int) -> None:
        self.names += 1
        name = self.names.to_bytes(28, "big")
        total = {"CPU": cpus * UNIT, "GPU": UNIT}
        self.sites[name], self.mail[name] = Site(total), []
        self._call("node_changed", PlacementNode(name, total, total, {}, frozenset({"GPU"})), self.now)

    @precondition(lambda self: len(self.sites) < 4)
    @rule(cpus=st.integers(1, 3))
    def node_comes(self, cpus: int) -> None:
        self._new_node(cpus)

    @precondition(lambda self: len(self.sites) > 1)
    @rule(data=st.data(), sure=st.integers(0, 2))
    def node_dies(self, data: st.DataObject, sure: int) -> None:
        if sure:
            return
        name = data.draw(st.sampled_from(sorted(self.sites)))
        del self.sites[name], self.mail[name]
        self._call("node_died", name, self.now)

    @rule(data=st.data(), draining=st.booleans(), share=st.integers(0, 2))
    def node_reports(self, data: st.DataObject, draining: bool, share: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.sites)))
        total = self.sites[name].total
        available = {key: amount * share // 2 for key, amount in total.items()}
        site = self.sites[name]
        # A node that is to leave does not stay after all.
        site.leaving = site.leaving or (draining and len(self.sites) > 2)
        node = PlacementNode(name, total, available, {}, frozenset({"GPU"}), site.leaving)
        self._call("node_changed", node, self.now)

    @precondition(lambda self: any(self.mail.values()))
    @rule(data=st.data(), refuse=st.integers(0, 4))
    def node_works(self, data: st.DataObject, refuse: int) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, mail in self.mail.items() if mail)))
        self._work(name, refuse == 0)

    def _work(self, name: bytes, refuse: bool = False) -> None:
        site, action = self.sites[name], self.mail[name].pop(0)
        match action:
            case Prepare():
                assert not self.groups[action.group].removed or any(
                    isinstance(later, RemoveFrom | Return) and later.group == action.group for later in self.mail[name]
                )
                if refuse:
                    self._call("prepared", name, action.group, action.number, "no", self.now)
                    return
                steps = ["prepared", "committed"] if action.alone else ["prepared"]
                site.held[action.group, action.number] = action.bundles, steps
                self._fits(site)
                if action.alone:
                    self._call("committed", name, action.group, action.number, self.now)
                    return
                self._call("prepared", name, action.group, action.number, "", self.now)
            case Commit():
                held = site.held[action.group, action.number]
                assert held[1] == ["prepared"], "committed what was not prepared, or twice"
                held[1].append("committed")
                self._call("committed", name, action.group, action.number, self.now)
            case Return():
                held_or_none = site.held.pop((action.group, action.number), None)
                assert held_or_none is None or held_or_none[1] == ["prepared"], "committed bundles were returned"
            case RemoveFrom():
                for key in [key for key in site.held if key[0] == action.group]:
                    del site.held[key]

    def _fits(self, site: Site) -> None:
        taken: Counter[str] = Counter()
        for bundles, _ in site.held.values():
            taken.update(total_of(bundles.values(), {"GPU"}))
        over = {name for name, amount in taken.items() if amount > site.total[name]}
        assert not over, f"{over} given away twice: {taken}"

    # --- clients ----------------------------------------------------------------------------------

    @precondition(lambda self: len([g for g in self.groups.values() if not g.removed]) < 6)
    @rule(
        shape=st.integers(0, len(BUNDLES) - 1),
        kind=st.sampled_from(STRATEGIES),
        job=st.integers(1, 2),
        kept=st.booleans(),
    )
    def create(self, shape: int, kind: str, job: int, kept: bool) -> None:
        self.names += 1
        group = self.names.to_bytes(14, "big") + job.to_bytes(4, "big")
        spec = GroupSpec(group, b"d%d" % job, job, BUNDLES[shape], kind, detached=kept)
        self.groups[group] = Known(spec)
        self._call("create", spec, 0, self.now)

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self._remove(data.draw(st.sampled_from(sorted(self.groups))))

    def _remove(self, group: bytes) -> None:
        self.groups[group].removed = True
        self._call("remove", b"d1", 1, group, self.now)

    @rule(job=st.integers(1, 2), sure=st.integers(0, 3))
    def job_ends(self, job: int, sure: int) -> None:
        if sure:
            return
        for known in self.groups.values():
            if known.spec.job == job and not known.spec.detached:
                known.removed = True
        self._call("job_ended", job, self.now)

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), who=st.sampled_from(WATCHERS))
    def watch(self, data: st.DataObject, who: bytes) -> None:
        self.dead.discard(who)
        group = data.draw(st.sampled_from(sorted(self.groups)))
        self._call("watch", who, 1, group, True)
        assert self.told[who][group] == self.core.state(group)

    @rule(who=st.sampled_from(WATCHERS))
    def watcher_dies(self, who: bytes) -> None:
        self.dead.add(who)
        self.told.pop(who, None)
        self._call("process_died", who)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._call("tick", self.now)
        due = self.core.next_tick()
        assert due is None or due > self.now, "a tick that does not advance"

    # --- what must hold -----------------------------------------------------------------------------

    @invariant()
    def created_groups_are_whole(self) -> None:
        """PLACEMENT: no group is half placed when it is created, and none is on a node twice."""
        for group, known in self.groups.items():
            if known.removed:
                assert self.core.state(group) == "removed"
                continue
            if self.core.state(group) != "created":
                continue
            committed: Counter[int] = Counter()
            nodes: list[bytes] = []
            for name, site in self.sites.items():
                for (of, _), (bundles, steps) in site.held.items():
                    if of == group and "committed" in steps and not site.leaving:
                        committed.update(list(bundles))
                        nodes += [name] * len(bundles)
            assert committed == Counter(range(len(known.spec.bundles))), f"{committed} of {known.spec}"
            if known.spec.strategy == "STRICT_PACK":
                assert len(set(nodes)) == 1
            if known.spec.strategy == "STRICT_SPREAD":
                assert len(set(nodes)) == len(nodes)

    @invariant()
    def watchers_know(self) -> None:
        for process, groups in self.told.items():
            for group, state in groups.items():
                if process not in self.dead and group in self.groups:
                    assert state == self.core.state(group), f"{process!r} believes {state}"

    @invariant()
    def nobody_is_warned_twice_without_cause(self) -> None:
        assert all(count <= 100 for count in self.warned.values())

    def teardown(self) -> None:
        """Let all words arrive: what can be created is, and what was removed is nowhere."""
        while len([site for site in self.sites.values() if not site.leaving]) < 3:
            self._new_node(3)
        for name, site in self.sites.items():
            node = PlacementNode(name, site.total, site.total, {}, frozenset({"GPU"}), site.leaving)
            self._call("node_changed", node, self.now)
        self._settle()
        for group in sorted(self.groups):
            if self.groups[group].removed:
                continue
            state = self.core.state(group)
            if not any(s.state in ("pending", "rescheduling") for s in self._living()):
                break
            if state == "created":
                self._remove(group)
                self._settle()
        for group in sorted(self.groups):
            if not self.groups[group].removed:
                self._remove(group)
                self._settle()
        assert not any(site.held for site in self.sites.values()), "something was left on a node"

    def _living(self) -> list[Any]:
        return list(self.core._groups.values())

    def _settle(self) -> None:
        for _ in range(100):
            for name in sorted(self.sites):
                while self.mail[name]:
                    self._work(name)
            if not any(group.attempt or group.again_at > self.now for group in self._living()):
                break
            self.now += 0.5
            self._call("tick", self.now)
        if any(group.state == "created" for group in self._living()):
            return
        for group in self._living():
            assert not self._fits_beside(group), f"there is room, and still {group.describe()} waits"

    def _fits_beside(self, group: Any) -> bool:
        """Whether the nodes that stay have room for the bundles without a node: all ways to place them are tried."""
        taken = {name: Counter[str]() for name, site in self.sites.items() if not site.leaving}
        for name, taken_there in taken.items():
            for bundles, _ in self.sites[name].held.values():
                taken_there.update(total_of(bundles.values(), {"GPU"}))
        spec, missing = group.spec, group.missing()
        for choice in product(taken, repeat=len(missing)):
            place = dict(zip(missing, choice, strict=True))
            nodes = set(choice) | set(group.placed().values())
            if len(nodes) > 1 and spec.strategy == "STRICT_PACK":
                continue
            if len(nodes) < len(spec.bundles) and spec.strategy == "STRICT_SPREAD":
                continue
            needs = {
                name: total_of([spec.bundles[index] for index in missing if place[index] == name], {"GPU"})
                for name in nodes & set(choice)
            }
            if all(
                taken[name][each] + amount <= self.sites[name].total[each]
                for name, need in needs.items()
                for each, amount in need.items()
            ):
                return True
        return False


TestPlacementMachine = searched(PlacementMachine)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(PlacementMachine, 60)
