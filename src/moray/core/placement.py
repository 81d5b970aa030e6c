"""All placement groups, at the head: where their bundles go, and when.

A group's life, as others see it (PLACEMENT)::

    pending ──every bundle is committed──▶ created ──a node dies──▶ rescheduling ──▶ created
       │  ▲                                   │                          │
       ▼  │ nodes come                        └──────── removed ◀────────┘
    infeasible (no set of nodes could ever hold it)

**All or nothing.** An *attempt* puts the bundles that have no node on nodes in two steps: each node is told to
*prepare* its part; when all have, each is told to *commit* it. If one refuses, or dies, before that, all give back what
they prepared. The group is created when every node has committed. On one node alone there is nobody to agree with: both
steps are one. Bundles of a dead node are placed anew; the others stay where they are.

**Waiting.** The table counts what groups have been given of each node (*booked*), so that two groups never wait for the
same room. What tasks and actors use beside that, the node collects while it prepares. An attempt over several nodes
that gets nowhere for :data:`PATIENCE_S` is given back, so that groups hold nothing while they wait for long, and tried
again after a pause that doubles; on one node it holds nothing and waits in the node's own line.

**Order.** Jobs take turns; within a job the oldest group goes first. Smaller groups may overtake one that does not fit
now; one that was overtaken after :data:`OVERTAKEN_S` *holds* what comes free, for a while that doubles, with pauses as
long in between.

Words cross: a group may be watched, or removed, before its creation arrives here. Time is an argument.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

from moray.core.bundles import total_of
from moray.core.placement_choice import Place, Room, choose
from moray.core.placement_records import NEVER, Attempt, Group, Names, Tombs, why_not
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
from moray.core.resources import Amounts, show_amounts

#: An attempt over several nodes is given back after so long.
PATIENCE_S: Final = 1.0
#: First and longest pause before the next attempt.
PAUSE_FIRST_S: Final = 0.1
PAUSE_LAST_S: Final = 10.0
#: A group that does not fit is overtaken for so long, and then holds what comes free for so long at first.
OVERTAKEN_S: Final = 1.0
HOLD_FIRST_S: Final = 1.0


class GroupTable:
    """The state machine; every event returns the actions to carry out, in order."""

    def __init__(self, warn_after_s: float = 10.0) -> None:
        self._warn_after_s = warn_after_s
        self._nodes: dict[bytes, PlacementNode] = {}
        #: What groups have been given of each node, attempts included.
        self._booked: dict[bytes, Counter[str]] = {}
        #: All that are not removed.
        self._groups: dict[bytes, Group] = {}
        #: Those with bundles that have no node and no attempt.
        self._waiting: dict[bytes, Group] = {}
        self._names = Names()
        self._tombs = Tombs()
        #: Watchers that were quicker than the creation.
        self._early: dict[bytes, dict[bytes, None]] = {}
        #: Process → groups that it watches, known or not.
        self._watched: dict[bytes, dict[bytes, None]] = {}
        #: Node that leaves → groups that had bundles there, in which something may run on.
        self._left: dict[bytes, set[bytes]] = {}
        #: Number of the last attempt; of the last turn; job → its last turn.
        self._number = 0
        self._turn = 0
        self._turns: dict[int, int] = {}
        #: Who holds what comes free, and until when.
        self._holder: Group | None = None
        self._held_until = 0.0
        #: There may be room for those who wait.
        self._dirty = False
        self._now = 0.0
        self._actions: list[PlacementAction] = []

    # --- what clients say -----------------------------------------------------------------------

    def create(self, spec: GroupSpec, request: int, now: float) -> list[PlacementAction]:
        """A new group; a repeat hears how it stands. `request` is answered unless it is 0."""
        self._advance(now)
        if spec.group in self._groups or self._tombs.reason(spec.group) is not None:
            self._watch(spec.group, spec.creator)
            self._answer(spec.group, spec.creator, request)
            return self._done()
        taken = self._names.holder(spec)
        if taken:
            self._tombs.add(spec.group, taken)
            self._tell_others(spec.group, "removed", taken)
            self._actions.append(TellGroup((spec.creator,), request, spec.group, "refused", taken))
            return self._done()
        self._turn += 1
        group = self._groups[spec.group] = Group(spec, self._turn, self._now)
        group.reason = "its bundles are being reserved"  # If they are not, its watchers are told why (`_tell`).
        group.hold = HOLD_FIRST_S
        self._waiting[spec.group] = group
        self._names.add(spec)
        group.watchers.update(self._early.pop(spec.group, {}))
        self._watch(spec.group, spec.creator)
        if request:
            self._answer(spec.group, spec.creator, request)
        if self._holder is not None or any(_ripe_at(other) <= self._now for other in self._waiting.values()):
            self._dirty = True
        if self._dirty:
            self._schedule()
        elif self._try(group, {}):
            # The others were looked at when there was as much room.
            self._turn += 1
            self._turns[spec.job] = self._turn
        return self._done()

    def remove(self, process: bytes, request: int, group: bytes, now: float) -> list[PlacementAction]:
        """Somebody removes a group; it may be on its way here."""
        self._advance(now)
        found = self._groups.get(group)
        if found is not None and not request:  # It asks nothing: it takes the group for removed.
            found.watchers.pop(process, None)
            self._forget_watch(process, group)
        reason = f"placement group {group.hex()[:8]} was removed"
        if found is not None:
            self._remove(found, f"{found.spec.label} was removed")
        elif self._tombs.reason(group) is None:
            self._tombs.add(group, reason)
            self._tell_others(group, "removed", reason)
        if request:
            why = self._tombs.reason(group) or reason
            self._actions.append(TellGroup((process,), request, group, "removed", why))
        self._schedule()
        return self._done()

    def watch(
        self, process: bytes, request: int, group: bytes, may_come: bool, name: str = "", namespace: str = ""
    ) -> list[PlacementAction]:
        """Tell `process` the state now and at each change. `may_come`: the group's job lives, if the id is unknown."""
        if not group:
            found = self._names.find(name, namespace)
            if found is None:
                reason = self._names.not_found(name, namespace)
                self._actions.append(TellGroup((process,), request, b"", "unknown", reason))
                return self._done()
            group = found
        if group in self._groups or (may_come and self._tombs.reason(group) is None):
            self._watch(group, process)
        self._answer(group, process, request, may_come)
        return self._done()

    def job_ended(self, job: int, now: float) -> list[PlacementAction]:
        """Its groups go, but for detached ones."""
        self._advance(now)
        for group in [g for g in self._groups.values() if g.spec.job == job and not g.spec.detached]:
            self._remove(group, f"{group.spec.label} was removed: its job {job} has ended")
        if not any(group.spec.job == job for group in self._groups.values()):
            self._turns.pop(job, None)
        for early in [g for g in self._early if int.from_bytes(g[-4:], "big") == job]:
            self._tell_others(early, "removed", f"placement group {early.hex()[:8]}: its job {job} has ended")
        self._schedule()
        return self._done()

    def process_died(self, process: bytes) -> list[PlacementAction]:
        """A client is gone: it watches nothing any more."""
        for name in self._watched.pop(process, ()):
            group = self._groups.get(name)
            if group is not None:
                group.watchers.pop(process, None)
                self._touch(name)
            early = self._early.get(name)
            if early is not None:
                early.pop(process, None)
                if not early:
                    del self._early[name]
        return self._done()

    # --- what nodes say ---------------------------------------------------------------------------

    def node_changed(self, node: PlacementNode, now: float) -> list[PlacementAction]:
        """A node is here, or has other resources or labels, or reports what is free."""
        self._advance(now)
        before = self._nodes.get(node.node)
        self._nodes[node.node] = node
        self._booked.setdefault(node.node, Counter())
        if before is not None and node.draining and not before.draining:
            self._leave(node.node)
        if before is None or (before.total, before.labels, before.draining) != (node.total, node.labels, node.draining):
            self._dirty = True
            self._schedule()
        return self._done()

    def node_died(self, node: bytes, now: float) -> list[PlacementAction]:
        """What was there is gone; its bundles are placed anew."""
        self._advance(now)
        if self._nodes.pop(node, None) is None:
            return self._done()
        del self._booked[node]
        self._left.pop(node, None)
        self._dirty = True
        for group in self._groups.values():
            self._lose(group, node, "is dead")
        self._schedule()
        return self._done()

    def _leave(self, node: bytes) -> None:
        """A node is to leave: the bundles that are there are placed anew. What runs in them there may finish."""
        for name, group in self._groups.items():
            if any(where == node for where, _amounts, _number in group.booked):
                self._left.setdefault(node, set()).add(name)
                self._lose(group, node, "leaves the cluster")
        self._booked[node] = Counter()

    def prepared(self, node: bytes, group: bytes, number: int, reason: str, now: float) -> list[PlacementAction]:
        """A node has reserved its part of an attempt, or (with a reason) cannot."""
        self._advance(now)
        found = self._groups.get(group)
        attempt = found.attempt if found is not None else None
        if found is None or attempt is None or attempt.number != number or node not in attempt.parts:
            return self._done()  # It crossed the attempt's end.
        if attempt.committing and (not reason or node in attempt.prepared):
            return self._done()
        if reason:
            found.reason = f"a node refused: {reason}"
            attempt.prepared.discard(node)
            self._abandon(found, pause=True)
            self._schedule()
            return self._done()
        attempt.prepared.add(node)
        if attempt.prepared == set(attempt.parts):
            attempt.committing = True
            self._touch(group)
            for where in attempt.parts:
                self._actions.append(Commit(where, group, number))
        return self._done()

    def committed(self, node: bytes, group: bytes, number: int, now: float) -> list[PlacementAction]:
        """A node's part is in use."""
        self._advance(now)
        found = self._groups.get(group)
        attempt = found.attempt if found is not None else None
        if found is None or attempt is None or attempt.number != number or not attempt.committing:
            return self._done()
        if node in attempt.parts:
            attempt.committed.add(node)
            self._touch(group)
            self._look_whether_committed(found)
            self._schedule()
        return self._done()

    # --- time -----------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[PlacementAction]:
        """Time has passed; to be called at :meth:`next_tick`, harmless at any time."""
        self._advance(now)
        self._dirty = True
        for group in list(self._groups.values()):
            attempt = group.attempt
            if attempt is not None and attempt.impatient_at <= self._now and not attempt.committing:
                group.reason = f"{len(attempt.prepared)} of {len(attempt.parts)} nodes had room in {PATIENCE_S:g} s"
                self._abandon(group, pause=True)
        for group in self._waiting.values():
            if not group.warned and group.since + self._warn_after_s <= self._now:
                group.warned = True
                text = f"{group.spec.label} has been waiting {self._now - group.since:.0f} s: {group.reason}"
                self._actions.append(WarnOwner(group.spec.job, text))
        self._schedule()
        return self._done()

    def next_tick(self) -> float | None:
        """When :meth:`tick` has something to do next, if nothing else happens."""
        times = [g.attempt.impatient_at for g in self._groups.values() if g.attempt and not g.attempt.committing]
        if self._holder is not None:
            times.append(self._held_until)
        for group in self._waiting.values():
            if not group.warned:
                times.append(group.since + self._warn_after_s)
            if group.again_at > self._now:
                times.append(group.again_at)
        return min((time for time in times if time != NEVER), default=None)

    # --- views ----------------------------------------------------------------------------------------

    def state(self, group: bytes) -> str:
        """As others see it; "unknown"."""
        found = self._groups.get(group)
        if found is not None:
            return found.state
        return "removed" if self._tombs.reason(group) is not None else "unknown"

    def nodes(self, group: bytes) -> tuple[bytes, ...]:
        """Where its bundles are, by index; b"": nowhere yet."""
        found = self._groups.get(group)
        return tuple(found.nodes) if found is not None else ()

    def describe(self) -> list[dict[str, Any]]:
        """All groups, and the last that were removed; JSON-like."""
        living = [group.describe() for group in self._groups.values()]
        return living + self._tombs.describe()

    def validate(self) -> None:
        """Raise AssertionError if the books do not agree with each other."""
        booked: dict[bytes, Counter[str]] = {node: Counter() for node in self._nodes}
        for name, group in self._groups.items():
            assert name == group.spec.group
            assert self._tombs.reason(name) is None, "both living and removed"
            for node, amounts, _number in group.booked:
                if node in booked:
                    booked[node].update(amounts)
            missing = {index for index, node in enumerate(group.nodes) if not node}
            if group.attempt is not None:
                in_attempt = {index for part in group.attempt.parts.values() for index in part}
                assert in_attempt <= missing
                assert group.attempt.parts, "an attempt at nothing"
            assert (name in self._waiting) == (bool(missing) and group.attempt is None)
            assert (group.state == "created") == (not missing)
            assert all(name in self._watched[process] for process in group.watchers)
        assert {n: +c for n, c in booked.items()} == {n: +c for n, c in self._booked.items()}, "PLACEMENT: booked"
        assert self._holder is None or self._holder.spec.group in self._waiting

    # --- placing ----------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Place what fits: jobs in turn, the oldest group of each first."""
        if self._holder is not None and self._now >= self._held_until:
            self._holder.rest_until = self._now + self._holder.hold
            self._holder.hold *= 2
            self._holder.overtaken = False
            self._holder, self._dirty = None, True
        while self._dirty:
            self._dirty = False
            self._place_in_turn()

    def _place_in_turn(self) -> None:
        """One pass; it ends early, to be begun anew, when somebody ceases to hold what the first ones may have."""
        queues: dict[int, deque[Group]] = {}
        for group in sorted(self._waiting.values(), key=lambda group: group.turn):
            queues.setdefault(group.spec.job, deque()).append(group)
        #: What did not fit in this pass: equals need not be looked at.
        failed: dict[Any, Group] = {}
        while queues and not self._dirty:
            job = min(queues, key=lambda job: (self._turns.get(job, 0), job))
            group = queues[job].popleft()
            if not queues[job]:
                del queues[job]
            if self._try(group, failed):
                self._turn += 1
                self._turns[job] = self._turn

    def _try(self, group: Group, failed: dict[Any, Group]) -> bool:
        """Begin an attempt, if there is room and the group's time has come."""
        if group.again_at > self._now:
            return False
        self._touch(group.spec.group)
        missing = group.missing()
        spec = group.spec
        key = repr((spec.bundles, spec.strategy, spec.selectors, spec.target_node, group.nodes))
        equal = failed.get(key)
        if equal is None and not self._held_back(group):
            place = self._find_place(group, missing)
            if place is not None:
                self._begin(group, place)
                return True
            failed[key] = group
            self._explain(group, missing)
        elif equal is not None:
            group.infeasible, group.reason = equal.infeasible, equal.reason
        self._note_unfit(group)
        self._tell(group)
        return False

    def _find_place(self, group: Group, missing: list[int]) -> Place | None:
        """Nodes with room now, or else nodes whose other work makes room in time."""
        placed = group.placed()
        capacity = {name: self._capacity(node) for name, node in self._nodes.items()}
        free = {
            name: {each: min(amount, node.available.get(each, 0)) for each, amount in capacity[name].items()}
            for name, node in self._nodes.items()
        }
        place = choose(Room(self._nodes, free, group.spec), missing, placed)
        return place if place is not None else choose(Room(self._nodes, capacity, group.spec), missing, placed)

    def _capacity(self, node: PlacementNode) -> Amounts:
        """What groups have not been given of it."""
        booked = self._booked[node.node]
        return {name: amount - booked[name] for name, amount in node.total.items()}

    def _explain(self, group: Group, missing: list[int]) -> None:
        """Whether it could ever fit, and why it does not now."""
        room = Room(self._nodes, {name: node.total for name, node in self._nodes.items()}, group.spec)
        was = group.infeasible
        group.infeasible = choose(room, missing, group.placed()) is None
        if group.infeasible:
            group.reason = why_not(room, missing)
            if not was:
                group.warned = True
                text = f"{group.spec.label} cannot be created: {group.reason}. It waits for nodes that can hold it."
                self._actions.append(WarnOwner(group.spec.job, text))
            return
        need = total_of([group.spec.bundles[index] for index in missing], frozenset())
        others: Counter[str] = Counter()
        for booked in self._booked.values():
            others.update({name: booked[name] for name in need})
        reason = f"it needs {show_amounts(need)}"
        group.reason = f"{reason}; other placement groups have {show_amounts(+others)}" if +others else reason

    def _note_unfit(self, group: Group) -> None:
        """Its time to hold what comes free may have come."""
        if group.infeasible:
            group.unfit_since = NEVER
            if self._holder is group:
                # The node that could hold it has gone: what comes free is of no use to it.
                self._holder, self._dirty = None, True
            return
        group.unfit_since = min(group.unfit_since, self._now)
        if self._holder is None and _ripe_at(group) <= self._now:
            self._holder, self._held_until = group, self._now + group.hold

    def _held_back(self, group: Group) -> bool:
        """Whether it would take what the holder waits for."""
        holder = self._holder
        if holder is None or holder is group:
            return False
        if not _rivals(group, holder):
            return False
        group.reason = f"{holder.spec.label}, which is larger and has waited longer, comes first"
        return True

    def _begin(self, group: Group, place: Place) -> None:
        parts: dict[bytes, list[int]] = {}
        for index, node in sorted(place.items()):
            parts.setdefault(node, []).append(index)
        self._number += 1
        # On one node nothing is held while it waits: it may take its time there, and uses what it gets at once.
        alone = len(parts) == 1
        group.attempt = Attempt(self._number, parts, NEVER if alone else self._now + PATIENCE_S)
        group.attempt.committing = alone
        group.infeasible, group.unfit_since, group.hold, group.rest_until = False, NEVER, HOLD_FIRST_S, 0.0
        group.reason = f"its bundles are being reserved on {len(parts)} node{'s' if len(parts) > 1 else ''}"
        group.overtaken = False
        del self._waiting[group.spec.group]
        for other in self._waiting.values():
            other.overtaken = other.overtaken or (other.unfit_since != NEVER and _rivals(group, other))
        if self._holder is group:
            self._holder, self._dirty = None, True
        for node, indices in parts.items():
            bundles = {index: group.spec.bundles[index] for index in indices}
            amounts = total_of(bundles.values(), self._nodes[node].devices)
            group.booked.append((node, amounts, self._number))
            self._booked[node].update(amounts)
            label, job = group.spec.label, group.spec.job
            self._actions.append(Prepare(node, group.spec.group, self._number, bundles, job, label, alone))
        self._tell(group)

    def _look_whether_committed(self, group: Group) -> None:
        attempt = group.attempt
        if attempt is None or attempt.committed != set(attempt.parts):
            return
        for node, indices in attempt.parts.items():
            for index in indices:
                group.nodes[index] = node
        group.attempt = None
        group.pause = 0.0
        if group.missing():
            self._await(group)
        else:
            group.created_once, group.reason = True, ""
        self._tell(group)

    def _lose(self, group: Group, node: bytes, why: str) -> None:
        """A node is dead, or leaves: what the group had there has no place."""
        self._touch(group.spec.group)
        attempt = group.attempt
        if attempt is not None and node in attempt.parts and not attempt.committing:
            self._abandon(group, pause=False, dead=b"" if node in self._booked else node)
        lost = [index for index, where in enumerate(group.nodes) if where == node]
        for index in lost:
            group.nodes[index] = b""
        if lost:
            group.since, group.warned, group.pause, group.again_at = self._now, False, 0.0, 0.0
            group.reason = f"node {node.hex()[:8]}, where bundles {lost} were, {why}"
        group.booked = [entry for entry in group.booked if entry[0] != node]
        if attempt is not None and attempt.committing and attempt.parts.pop(node, []):
            attempt.committed.discard(node)
            self._look_whether_committed(group)
        elif lost and group.attempt is None:
            self._await(group)
        self._tell(group)

    # --- giving back --------------------------------------------------------------------------------------

    def _await(self, group: Group) -> None:
        """It has bundles to be placed."""
        self._touch(group.spec.group)
        self._waiting[group.spec.group] = group
        self._dirty = True

    def _abandon(self, group: Group, *, pause: bool, dead: bytes = b"") -> None:
        """Nobody commits this attempt: all give back what they prepared."""
        attempt = group.attempt
        assert attempt is not None, "there is an attempt"
        group.attempt = None
        for node in attempt.parts:
            if node != dead:
                self._actions.append(Return(node, group.spec.group, attempt.number))
        self._unbook(group, attempt.number)
        if pause:
            group.pause = min(max(PAUSE_FIRST_S, 2 * group.pause), PAUSE_LAST_S)
            group.again_at = self._now + group.pause
        self._await(group)

    def _unbook(self, group: Group, number: int | None = None) -> None:
        """What it was given (by one attempt) is others'."""
        self._touch(group.spec.group)
        for node, amounts, given_by in group.booked:
            if number in (None, given_by) and node in self._booked:
                self._booked[node].subtract(amounts)
        group.booked = [] if number is None else [entry for entry in group.booked if entry[2] != number]
        self._dirty = True

    def _remove(self, group: Group, reason: str) -> None:
        """It is gone; who uses it hears so before anything ends."""
        self._touch(group.spec.group)
        spec, attempt = group.spec, group.attempt
        places = {node: None for node in group.nodes if node}
        if attempt is not None:
            places |= dict.fromkeys(attempt.parts)
        places |= {node: None for node, groups in self._left.items() if spec.group in groups}
        del self._groups[spec.group]
        self._waiting.pop(spec.group, None)
        if self._holder is group:
            self._holder = None
        self._names.discard(spec)
        self._tombs.add(spec.group, reason, spec)
        self._unbook(group)
        watchers = tuple(group.watchers)
        for process in watchers:
            self._forget_watch(process, spec.group)
        if watchers:
            self._actions.append(
                TellGroup(watchers, 0, spec.group, "removed", reason, spec.bundles, (), spec.name, spec.strategy)
            )
        self._actions.append(Gone(spec.group, reason))
        self._actions += [RemoveFrom(node, spec.group, reason) for node in places]

    # --- words ----------------------------------------------------------------------------------------------

    def _tell(self, group: Group) -> None:
        """Tell the watchers, if there is news."""
        news = group.state, tuple(group.nodes)
        if not group.told[0] and group.attempt is not None and group.watchers.keys() == {group.spec.creator}:
            return  # It was just created, and is being reserved: its creator takes that for granted.
        if news != group.told:
            group.told = news
            self._touch(group.spec.group)
            if group.watchers:
                self._actions.append(group.news(tuple(group.watchers)))

    def _answer(self, group: bytes, process: bytes, request: int, may_come: bool = False) -> None:
        found, why = self._groups.get(group), self._tombs.reason(group)
        if found is not None:
            self._actions.append(found.news((process,), request))
        elif why is not None:
            self._actions.append(TellGroup((process,), request, group, "removed", why))
        else:
            state = "pending" if may_come else "unknown"
            reason = "its creation has not arrived yet" if may_come else f"there is no placement group {group.hex()}"
            self._actions.append(TellGroup((process,), request, group, state, reason))

    def _watch(self, group: bytes, process: bytes) -> None:
        self._watched.setdefault(process, {})[group] = None
        found = self._groups.get(group)
        if found is not None:
            found.watchers[process] = None
            self._touch(group)
        elif self._tombs.reason(group) is None:
            self._early.setdefault(group, {})[process] = None
        else:
            self._forget_watch(process, group)

    def _forget_watch(self, process: bytes, group: bytes) -> None:
        watched = self._watched.get(process)
        if watched is not None:
            watched.pop(group, None)
            if not watched:
                del self._watched[process]

    def _tell_others(self, group: bytes, state: str, reason: str) -> None:
        """Those who asked for a group that will never come."""
        early = self._early.pop(group, {})
        for process in early:
            self._forget_watch(process, group)
        if early:
            self._actions.append(TellGroup(tuple(early), 0, group, state, reason))

    # --- small helpers ----------------------------------------------------------------------------------------

    def _touch(self, group: bytes) -> None:
        """Something of a group has changed that is stored, where groups are stored."""

    def _advance(self, now: float) -> None:
        self._now = max(self._now, now)

    def _done(self) -> list[PlacementAction]:
        actions, self._actions = self._actions, []
        return actions


def _ripe_at(group: Group) -> float:
    """When it may hold what comes free."""
    if not group.overtaken or group.unfit_since == NEVER:
        return NEVER
    return max(group.unfit_since + OVERTAKEN_S, group.rest_until)


def _rivals(one: Group, other: Group) -> bool:
    """Whether they want the same kinds of resources."""
    mine = {name for bundle in one.spec.bundles for name in bundle}
    return not mine.isdisjoint(name for bundle in other.spec.bundles for name in bundle)
