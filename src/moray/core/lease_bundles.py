"""What placement groups have reserved on this machine, and how it comes and goes.

A *reservation* is the bundles of one group that the head has put here in one go. It asks for their resources as a
permanent request does, in a line of its own that needs no worker: it waits its turn, collects, and has leases revoked
like any need (:mod:`moray.core.lease_queue`, :mod:`moray.core.lease_balance`). It adds nothing to any party's load:
what is reserved is taken from all alike, and its use is nobody's share of the rest::

    WAITING ──fits──▶ PREPARED ──commit──▶ COMMITTED ──group removed──▶ RETURNING ──last lease over──▶ gone
       └──────────────────┴── return ──▶ gone

BUNDLES: nothing runs in a group before its bundles are committed, and its resources are free only when every lease in
it is over. A removed group is remembered, so that requests that crossed its removal are refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from moray.core.bundles import total_of
from moray.core.lease_model import NEVER, Job, Lease, LeaseState, Owner, Pool, Request
from moray.core.lease_queue import LeaseQueue
from moray.core.resources import Amounts, Ledger
from moray.core.scheduler_actions import Action, BundlesReady

#: Tasks in a removed group have so long to end by themselves; an idle worker, whose objects may be needed, survives.
EVICT_AFTER_S: Final = 0.25

#: Removed groups that are remembered.
_REMEMBERED: Final = 10_000


class BundleState(Enum):
    """How far a reservation has come."""

    WAITING = "waiting"
    PREPARED = "prepared"
    COMMITTED = "committed"
    RETURNING = "returning"


@dataclass(slots=True, eq=False)
class Reservation:
    """Some bundles of a group."""

    group: str
    #: The head's number for it.
    number: int
    #: Index → amounts.
    bundles: dict[int, Amounts]
    #: Who is told if it waits for long.
    job: int
    request: Request
    #: It is committed as soon as it is prepared.
    alone: bool = False
    state: BundleState = BundleState.WAITING
    #: What it holds.
    lease: Lease | None = None


@dataclass(slots=True)
class _Group:
    """A group with reservations here."""

    reservations: dict[int, Reservation] = field(default_factory=dict)
    #: It was removed.
    leaving: bool = False


class Reservations:
    """Of one machine."""

    __slots__ = ("_groups", "_job", "_ledger", "_pool", "_queue", "_removed", "absentees", "evictions", "users")

    def __init__(self, ledger: Ledger, queue: LeaseQueue) -> None:
        self._ledger = ledger
        self._queue = queue
        #: In whose name they wait: no job's, and no worker's.
        self._job = Job(0)
        self._pool = Pool(0, "", workerless=True)
        self._groups: dict[str, _Group] = {}
        #: Removed groups, and why, oldest first.
        self._removed: dict[str, str] = {}
        #: Requests for groups that have nothing here yet.
        self.absentees: dict[str, dict[Request, None]] = {}
        #: Leases in each group.
        self.users: Counter[str] = Counter()
        #: Removed group → when what still runs in it is ended.
        self.evictions: dict[str, float] = {}

    # --- the two steps ----------------------------------------------------------------------------

    def prepare(
        self,
        group: str,
        number: int,
        bundles: dict[int, Amounts],
        job: int,
        label: str,
        now: float,
        *,
        alone: bool = False,
    ) -> list[Action]:
        """Wait for the resources of these bundles; BundlesReady says when they are here, or that they never will be."""
        known = self._groups.get(group)
        if known is not None and number in known.reservations:
            state = known.reservations[number].state
            ready = BundlesReady(group, number, "", committed=state is BundleState.COMMITTED)
            return [] if state is BundleState.WAITING else [ready]
        need = total_of(bundles.values(), self._ledger.devices)
        problem = self._removed.get(group) or self._ledger.impossible(need)
        if problem:
            return [BundlesReady(group, number, problem)]
        turn = self._queue.next_turn()
        owner = Owner(bytes.fromhex(group), self._job, turn=turn)
        line = self._queue.line(self._job, self._pool, need)
        request = Request(owner, number, label, line, now, count=1, turn=turn, permanent=True)
        reservation = Reservation(group, number, bundles, job, request, alone)
        request.reservation = reservation
        self._groups.setdefault(group, _Group()).reservations[number] = reservation
        self._queue.update(request, now)
        return []

    def granted(self, lease: Lease, now: float) -> Reservation:
        """The resources are here."""
        request = lease.request
        reservation: Reservation = request.reservation
        reservation.state, reservation.lease = BundleState.PREPARED, lease
        lease.state = LeaseState.LIVE
        request.claims -= 1
        request.count = 0
        self._queue.update(request, now)
        return reservation

    def commit(self, group: str, number: int) -> tuple[list[Action], list[Request]]:
        """The bundles may be used: by whom it waits for them, among others."""
        known = self._groups.get(group)
        reservation = known.reservations.get(number) if known is not None else None
        if reservation is None or reservation.state is BundleState.WAITING:
            return [], []
        done: list[Action] = [BundlesReady(group, number, "", committed=True)]
        if reservation.state is not BundleState.PREPARED or reservation.lease is None:
            return done, []
        reservation.state = BundleState.COMMITTED
        self._ledger.add_bundles(group, reservation.bundles, reservation.lease.devices)
        waiting = self.absentees.pop(group, {})
        return done, [r for r in waiting if r.absent and r.owner.requests.get(r.key) is r]

    def take_back(self, group: str, number: int) -> Request | None:
        """A reservation that is not committed is not wanted; its request, if that still waits."""
        known = self._groups.get(group)
        reservation = known.reservations.get(number) if known is not None else None
        if known is None or reservation is None:
            return None
        if reservation.state not in (BundleState.WAITING, BundleState.PREPARED):
            return None
        del known.reservations[number]
        if not known.reservations:
            del self._groups[group]
        if reservation.lease is None:
            return reservation.request
        self._free(reservation)
        return None

    def remove(self, group: str, reason: str, now: float) -> list[Request]:
        """The group is gone. Requests of its that still wait, which are to be withdrawn."""
        self._removed[group] = reason
        if len(self._removed) > _REMEMBERED:
            del self._removed[next(iter(self._removed))]
        known = self._groups.get(group)
        if known is None:
            return []
        waiting = [self.take_back(group, number) for number in list(known.reservations)]
        for reservation in known.reservations.values():
            reservation.state = BundleState.RETURNING
        known.leaving = True
        self.evictions[group] = now + EVICT_AFTER_S
        self.settle(group)
        return [request for request in waiting if request is not None]

    def settle(self, group: str) -> None:
        """Give a removed group's resources back if nobody has anything of them."""
        known = self._groups.get(group)
        if known is None or not known.leaving or self.users[group]:
            return
        for reservation in known.reservations.values():
            self._ledger.remove_bundles(group, reservation.bundles)
            self._free(reservation)
        del self._groups[group]
        del self.users[group]
        self.evictions.pop(group, None)

    def _free(self, reservation: Reservation) -> None:
        lease = reservation.lease
        assert lease is not None, "it was granted"
        reservation.lease = None
        lease.request.held -= 1
        self._ledger.keep(lease.need, -1)
        self._ledger.give(lease.need, lease.devices)

    # --- who asks for something in a group ----------------------------------------------------------

    def absent(self, request: Request) -> tuple[str, bool]:
        """Why nothing of the group that it names can be had here ("": it can), and whether that is for good."""
        group = request.line.shape.group
        if not group:
            return "", False
        if group in self._removed:
            return self._removed[group], True
        known = self._groups.get(group)
        if known is not None and any(r.state is BundleState.COMMITTED for r in known.reservations.values()):
            return "", False
        self.absentees.setdefault(group, {})[request] = None
        return f"placement group {group[:8]} has no bundles here yet", False

    # --- views -----------------------------------------------------------------------------------------

    def requests(self) -> list[Request]:
        """Those that wait for their resources."""
        return [r.request for r in self._all() if r.state is BundleState.WAITING]

    def leases(self) -> list[Lease]:
        """What they hold."""
        return [r.lease for r in self._all() if r.lease is not None]

    def next_tick(self) -> float | None:
        """When a removed group's workers are ended."""
        return min((due for due in self.evictions.values() if due != NEVER), default=None)

    def why_removed(self, group: str) -> str:
        """As the head said."""
        return self._removed.get(group, "its placement group was removed")

    def validate(self, leases: list[Lease]) -> None:
        """Raise AssertionError if the books do not agree with `leases`, all that have not come back."""
        users = Counter(lease.group for lease in leases if lease.group)
        assert +self.users == users, f"{self.users} users, {users} leases"
        for reservation in self._all():
            assert (reservation.lease is None) == (reservation.state is BundleState.WAITING)
            assert reservation.request.queued == (reservation.state is BundleState.WAITING)
        for group, known in self._groups.items():
            assert known.reservations, "a group with nothing here"
            assert known.leaving == (group in self.evictions) or known.leaving
            assert not known.leaving or self.users[group], "it could be gone"

    def _all(self) -> list[Reservation]:
        return [r for known in self._groups.values() for r in known.reservations.values()]
