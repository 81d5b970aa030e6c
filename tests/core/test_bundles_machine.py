"""A hypothesis machine of reservations in the local scheduler (BUNDLES), beside ordinary leases.

The model believes only the actions. Acknowledgements, starts and deaths come at any later step.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moray.core.bundles import bundle_need, group_of, split_name
from moray.core.local_scheduler import LocalScheduler
from moray.core.scheduler_actions import (
    Action,
    BundlesReady,
    Grant,
    Refuse,
    Revoke,
    StartWorker,
    StopWorker,
    Warn,
)
from tests.support.machines import searched, walk_fixed

UNIT = 10_000
TOTAL = {"CPU": 3 * UNIT, "GPU": 2 * UNIT}
CPU = {"CPU": UNIT}
BUNDLES: list[tuple[dict[str, int], ...]] = [
    (CPU,),
    (CPU, CPU),
    ({"GPU": UNIT // 2}, {"GPU": UNIT // 2, "CPU": UNIT}),
    ({"CPU": 2 * UNIT, "GPU": UNIT},),
    ({"CPU": 4 * UNIT},),
]
TOO_LARGE = len(BUNDLES) - 1


class BundleMachine(RuleBasedStateMachine):
    """Random life of a node with groups."""

    def __init__(self) -> None:
        super().__init__()
        self.core = LocalScheduler(dict(TOTAL), {"GPU": 2})
        self.now = 1000.0
        self.names = 0
        #: group → bundles; and how far it is: "waiting", "prepared", "committed", "removed".
        self.shape_of: dict[str, tuple[dict[str, int], ...]] = {}
        self.state: dict[str, str] = {}
        #: owner's key → need; what it wants, and has been granted.
        self.wishes: dict[tuple[bytes, int], list[Any]] = {}
        #: lease → (owner, key, worker, devices); worker → lease.
        self.leases: dict[int, tuple[bytes, int, bytes, dict[str, list[int]]]] = {}
        self.workers: set[bytes] = set()
        self.stopping: set[bytes] = set()
        self.blocked: set[int] = set()
        self.starting = 0
        self.revoking: list[tuple[bytes, int]] = []
        self.core.job_started(1)

    def _call(self, method: str, *args: Any, **options: Any) -> None:
        actions: list[Action] = getattr(self.core, method)(*args, **options)
        for action in actions:
            self._on(action)
        self.core.validate()

    def _on(self, action: Action) -> None:
        match action:
            case Grant():
                need, count, granted = self.wishes[action.owner, action.key]
                group = group_of(need)
                assert not group or self.state[group] == "committed", "granted in a group that is not created"
                assert granted < count, "more than was wished for"
                assert action.worker in self.workers - self.stopping
                self.wishes[action.owner, action.key][2] += 1
                self.leases[action.lease] = action.owner, action.key, action.worker, action.devices
            case BundlesReady():
                if not action.committed and not action.reason:
                    assert self.state[action.group] in ("waiting", "prepared")
                    self.state[action.group] = "prepared"
                if action.reason:
                    assert len(BUNDLES[TOO_LARGE]) == len(self.shape_of[action.group])
            case Revoke():
                self.revoking.append((action.worker, action.lease))
            case StartWorker():
                self.starting += 1
            case StopWorker():
                assert action.worker not in self.stopping, "stopped twice"
                self.stopping.add(action.worker)
            case Refuse():
                need = self.wishes[action.owner, action.key][0]
                assert self.state[group_of(need)] == "removed"
            case Warn():
                pass

    # --- groups -----------------------------------------------------------------------------------

    @precondition(lambda self: len([s for s in self.state.values() if s != "removed"]) < 4)
    @rule(shape=st.integers(0, len(BUNDLES) - 1))
    def reserve(self, shape: int) -> None:
        self.names += 1
        group = f"{self.names:036x}"
        self.shape_of[group], self.state[group] = BUNDLES[shape], "waiting"
        self._call("prepare_bundles", group, 1, dict(enumerate(BUNDLES[shape])), 1, "group", self.now)

    def _some(self, data: st.DataObject, *states: str) -> str | None:
        groups = sorted(group for group, state in self.state.items() if state in states)
        return data.draw(st.sampled_from(groups)) if groups else None

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        group = self._some(data, "prepared")
        if group is not None:
            self.state[group] = "committed"
            self._call("commit_bundles", group, 1, self.now)

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        group = self._some(data, "waiting", "prepared")
        if group is not None:
            del self.state[group], self.shape_of[group]
            self._call("return_bundles", group, 1, self.now)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        group = self._some(data, "waiting", "prepared", "committed", "removed")
        if group is not None:
            self._remove(group)

    def _remove(self, group: str) -> None:
        self.state[group] = "removed"
        self._call("remove_group", group, "it was removed", self.now)

    # --- wishes -------------------------------------------------------------------------------------

    @rule(data=st.data(), owner=st.sampled_from([b"a", b"b"]), count=st.integers(0, 3), index=st.integers(-1, 1))
    def wish(self, data: st.DataObject, owner: bytes, count: int, index: int) -> None:
        group = self._some(data, "waiting", "prepared", "committed", "removed") if index < 1 else None
        need = CPU
        key = 0
        if group is not None:
            bundle = self.shape_of[group][max(index, 0)]
            need, key = bundle_need(bundle, group, index), int(group, 16) * 2 + (index >= 0)
        wish = self.wishes.setdefault((owner, key), [need, 0, 0])
        wish[1] = wish[2] + count
        self._call("request", owner, 1, key, count, wish[2], need, "", "f", self.now)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def lease_returned(self, data: st.DataObject) -> None:
        self._return(data.draw(st.sampled_from(sorted(self.leases))))

    def _return(self, lease: int) -> None:
        owner, _key, worker, _devices = self.leases[lease]
        if worker not in self.stopping:
            del self.leases[lease]
            self.blocked.discard(lease)
        self._call("return_lease", owner, lease, False, self.now)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def blocks_or_wakes(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(sorted(self.leases)))
        worker = self.leases[lease][2]
        if lease in self.blocked:
            self.blocked.discard(lease)
            self._call("unblocked", worker, self.now)
        elif worker not in self.stopping:
            self.blocked.add(lease)
            self._call("blocked", worker, self.now)

    # --- workers and time -----------------------------------------------------------------------------

    @precondition(lambda self: self.starting)
    @rule()
    def worker_starts(self) -> None:
        self.starting -= 1
        self.names += 1
        worker = b"w%d" % self.names
        self.workers.add(worker)
        self._call("worker_started", worker, 1, "", self.now)

    @precondition(lambda self: self.revoking)
    @rule(data=st.data())
    def acknowledges(self, data: st.DataObject) -> None:
        self._acknowledge(data.draw(st.integers(0, len(self.revoking) - 1)))

    def _acknowledge(self, index: int) -> None:
        worker, lease = self.revoking.pop(index)
        if lease in self.leases and worker not in self.stopping and worker in self.workers:
            del self.leases[lease]
            self.blocked.discard(lease)
        self._call("revoked", worker, lease, self.now)

    @precondition(lambda self: self.stopping)
    @rule(data=st.data())
    def stopped_worker_dies(self, data: st.DataObject) -> None:
        self._die(data.draw(st.sampled_from(sorted(self.stopping))))

    def _die(self, worker: bytes) -> None:
        self.stopping.discard(worker)
        self.workers.discard(worker)
        for lease in [lease for lease, held in self.leases.items() if held[2] == worker]:
            del self.leases[lease]
            self.blocked.discard(lease)
        self._call("worker_died", worker, self.now)

    @rule(seconds=st.sampled_from([0.0, 0.06, 0.3, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._call("tick", self.now)

    # --- what must hold -----------------------------------------------------------------------------------

    @invariant()
    def bundles_keep_to_themselves(self) -> None:
        """What runs in a group holds no more than the group has, unless somebody woke up."""
        for group, state in self.state.items():
            if state != "committed":
                continue
            inside = [
                self.wishes[held[:2]][0] for held in self.leases.values() if group_of(self.wishes[held[:2]][0]) == group
            ]
            gpus = sum(need.get(f"GPU_group_{group}", 0) for need in inside)
            assert gpus <= sum(bundle.get("GPU", 0) for bundle in self.shape_of[group])

    @invariant()
    def only_plain_names_are_shown(self) -> None:
        assert set(self.core.available) == set(self.core.total) == set(TOTAL)

    def teardown(self) -> None:
        """Everything ends: all groups that fit come to be, and everything comes back."""
        for (owner, key), wish in sorted(self.wishes.items()):
            wish[1] = wish[2]
            self._call("request", owner, 1, key, 0, wish[2], wish[0], "", "f", self.now)
        self._settle()
        for group in sorted(self.state):
            waits = self.state[group] == "waiting" and self.shape_of[group] != BUNDLES[TOO_LARGE]
            others = any(state in ("prepared", "committed") for state in self.state.values())
            assert not waits or others, f"{group} waits for nothing: {self.core.explain(self.now)}"
            self._remove(group)
            self._settle()
        assert self.core.available == TOTAL
        assert not any(split_name(name)[1] for name in self.core._ledger.total)
        assert not self.core._bundles._groups

    def _settle(self) -> None:
        for _ in range(60):
            while self.revoking:
                self._acknowledge(0)
            for lease in sorted(self.leases):
                if lease in self.leases:
                    self._return(lease)
            for worker in sorted(self.stopping):
                self._die(worker)
            while self.starting:
                self.worker_starts()
            self.now += 0.3
            self._call("tick", self.now)


TestBundleMachine = searched(BundleMachine)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(BundleMachine, 60)
