"""Taking leases back from those who hold many for those who wait (LEASE).

A request that waits although its pool has a worker or could start one makes a *plan*: leases whose
resources, with what is free and not planned for yet, are enough for one grant. They are revoked at their
workers and leave the loads of their holders, and the requester is promised the plan's weight, so that the
next decision sees the world as it will be. A plan ends with a grant to its request.

The victim is the richest party that holds something of what is missing: the richest other job, else the
richest other owner of the job, else the richest other key of the owner. It gives when it is left with at
least what the requester would then be due (*levelling*), at once; or, when there are more parties than
leases, with at least what the requester is due now, if the requester has waited and the lease has lasted
:data:`QUANTUM_S` (*taking turns*).

A worker acknowledges after its running task. If a shape got nothing for :data:`QUANTUM_S`, its oldest
plan *lapses*: what it waits for is counted on no longer, so one more lease may be revoked. A small
request thus waits for a short task even if the first victim runs a long one, and no more than one lease
per quantum is revoked beyond what is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from moray.core.bundles import split_name
from moray.core.lease_model import NEVER, Job, Lease, Owner, Plan, Request, Shape
from moray.core.lease_queue import LeaseQueue
from moray.core.ranking import Ranking
from moray.core.resources import Ledger

#: How long a lease lasts before it must go round: a revocation costs about 1 ms, so 2 % of it, and a
#: person does not notice it.
QUANTUM_S: Final = 0.05


class LeaseBalance:
    """Which leases are revoked for whom."""

    __slots__ = ("_incoming", "_jobs", "_ledger", "_orphans", "_planned", "_queue", "_revoke")

    def __init__(
        self, jobs: dict[int, Job], ledger: Ledger, queue: LeaseQueue, revoke: Callable[[Lease], None]
    ) -> None:
        #: The scheduler's table of jobs.
        self._jobs = jobs
        self._ledger = ledger
        self._queue = queue
        #: Starts the revocation of a live lease at its worker.
        self._revoke = revoke
        #: Needs of all plans, and what revocations that are counted on will bring.
        self._planned: dict[str, int] = {}
        self._incoming: dict[str, int] = {}
        #: Incoming leases whose plan is over, or which end for another reason.
        self._orphans: dict[Lease, None] = {}

    # --- the accounts of a lease ----------------------------------------------------------

    def hold(self, lease: Lease, weight: int) -> None:
        """Let the lease count `weight` in its holder's load."""
        delta = weight - lease.charged
        if delta:
            lease.charged = weight
            self._queue.charge(lease.request, delta)

    def expose(self, lease: Lease) -> None:
        """The lease may be revoked."""
        request, owner = lease.request, lease.request.owner
        request.revocable[lease] = None
        owner.holding[request] = None
        for name, amount in lease.need.items():
            if amount:
                owner.revocable[name] = owner.revocable.get(name, 0) + 1
                owner.job.richest.setdefault(name, Ranking()).set(owner, (-owner.load, owner.turn))

    def conceal(self, lease: Lease) -> None:
        """The lease may not be revoked: it is being revoked, blocked, or over."""
        request, owner = lease.request, lease.request.owner
        if lease not in request.revocable:
            return
        del request.revocable[lease]
        if not request.revocable:
            del owner.holding[request]
        for name, amount in lease.need.items():
            if amount:
                self._count_down(owner, name)

    def expect(self, lease: Lease, plan: Plan | None = None) -> None:
        """Count on the lease's resources to come back soon."""
        lease.incoming, lease.plan = True, plan
        (self._orphans if plan is None else plan.leases)[lease] = None
        _add(self._incoming, lease.need, 1)

    def settle(self, lease: Lease) -> None:
        """They are back, or cannot be counted on any more."""
        if not lease.incoming:
            return
        lease.incoming = False
        (self._orphans if lease.plan is None else lease.plan.leases).pop(lease)
        lease.plan = None
        _add(self._incoming, lease.need, -1)

    # --- plans --------------------------------------------------------------------------------

    def granted(self, request: Request, now: float) -> None:
        """The request got something: its oldest plan is fulfilled."""
        request.line.shape.lapse_at = now + QUANTUM_S
        if request.plans:
            self._end_plan(request.plans[0])

    def trim(self, request: Request) -> None:
        """Drop plans for more than the request waits for."""
        while len(request.plans) > max(0, request.owed):
            self._end_plan(request.plans[-1])

    def lapse(self, now: float) -> None:
        """Give up the oldest plan of each shape that got nothing for a quantum."""
        for shape in self._queue.shapes.values():
            if not shape.plans or now < shape.lapse_at:
                continue
            plan = next(iter(shape.plans))
            # A plan without leases of its own counted on the orphans.
            for lease in list(plan.leases or self._orphans):
                self.settle(lease)
            self._end_plan(plan)
            shape.lapse_at = now + QUANTUM_S

    def rebalance(self, now: float) -> None:
        """Make plans until nobody who waits has a right to more."""
        for shape in self._queue.shapes.values():
            if shape.gated and now < shape.retry_at:
                continue
            shape.gated, shape.retry_at = False, NEVER
            if self._ledger.fits(shape.need):
                continue
            while (request := self._queue.neediest(shape, now)) is not None and self._plan(request, now):
                pass

    def next_tick(self) -> float | None:
        """When :meth:`lapse` or :meth:`rebalance` may have something to do."""
        times = [s.lapse_at for s in self._queue.shapes.values() if s.plans]
        times += [s.retry_at for s in self._queue.shapes.values() if s.retry_at != NEVER]
        return min(times, default=None)

    def validate(self, leases: list[Lease]) -> None:
        """Raise AssertionError if sums disagree with `leases`, all that are not over."""
        incoming: dict[str, int] = {}
        planned: dict[str, int] = {}
        for lease in leases:
            if lease.incoming:
                _add(incoming, lease.need, 1)
        for shape in self._queue.shapes.values():
            for _ in shape.plans:
                _add(planned, shape.need, 1)
        assert {k: v for k, v in self._incoming.items() if v} == {k: v for k, v in incoming.items() if v}
        assert {k: v for k, v in self._planned.items() if v} == {k: v for k, v in planned.items() if v}

    def _plan(self, request: Request, now: float) -> bool:
        """Plan one grant for the request, if leases that it has a right to are enough."""
        shape = request.line.shape
        victims = self._victims(request, self._missing(shape), now)
        if victims is None:
            return False
        plan = Plan(request, shape.weight)
        if not shape.plans:
            shape.lapse_at = now + QUANTUM_S
        shape.plans[plan] = None
        request.plans.append(plan)
        _add(self._planned, shape.need, 1)
        self._queue.promise(request, plan.weight)
        if len(victims) > 1:
            self._queue.collect(shape, now)
        for lease in victims:
            self.expect(lease, plan)
            self._revoke(lease)
        self._queue.update(request, now)
        return True

    def _end_plan(self, plan: Plan) -> None:
        request = plan.request
        request.plans.remove(plan)
        del request.line.shape.plans[plan]
        _add(self._planned, request.line.shape.need, -1)
        for lease in plan.leases:
            lease.plan = None
            self._orphans[lease] = None
        self._queue.promise(request, -plan.weight)

    def _missing(self, shape: Shape) -> dict[str, int]:
        """What must still be revoked for one more grant of the shape; at most zero is enough."""
        return {
            name: self._ledger.shortage(name, amount) + self._planned.get(name, 0) - self._incoming.get(name, 0)
            for name, amount in shape.need.items()
            if amount
        }

    def _victims(self, request: Request, missing: dict[str, int], now: float) -> list[Lease] | None:
        """Leases that together bring what is missing, taken from their holders' loads; None: no right to enough."""
        shape = request.line.shape
        taken: list[Lease] = []
        for name in shape.need:
            while missing.get(name, 0) > 0:
                lease = self._victim(request, name, now)
                if lease is None:
                    self._put_back(taken)
                    if taken:
                        shape.gated, shape.retry_at = True, min(shape.retry_at, now + QUANTUM_S)
                    return None
                taken.append(lease)
                self.conceal(lease)
                self.hold(lease, 0)
                for brought, amount in lease.need.items():
                    if brought in missing:
                        missing[brought] -= amount
        return taken

    def _put_back(self, taken: list[Lease]) -> None:
        for lease in taken:
            self.hold(lease, lease.weight)
            self.expose(lease)

    def _victim(self, request: Request, name: str, now: float) -> Lease | None:
        """The lease with some of `name` that the request has the best right to."""
        owner, job = request.owner, request.owner.job
        other = max(
            (j for j in self._jobs.values() if j is not job and name in j.richest and len(j.richest[name])),
            key=lambda j: j.load,
            default=None,
        )
        if other is not None:
            richest = other.richest[name].first()
            lease = richest and self._from(richest, name, request, other.load, job.load + job.promised, now)
            if lease:
                return lease
        richest = job.richest[name].first() if name in job.richest else None
        if richest is None:
            return None
        if richest is not owner:
            return self._from(richest, name, request, richest.load, owner.load + owner.promised, now)
        for held in _richest_first(owner, name):
            if held is not request:
                lease = self._of(held, request, held.load, request.load + request.promised, now)
                if lease:
                    return lease
        return None

    def _from(self, owner: Owner, name: str, request: Request, has: int, mine: int, now: float) -> Lease | None:
        """A lease of `owner` that may be taken when its party has load `has`, and the requester's `mine`."""
        for held in _richest_first(owner, name):
            lease = self._of(held, request, has, mine, now)
            if lease is not None:
                return lease
        return None

    @staticmethod
    def _of(held: Request, request: Request, has: int, mine: int, now: float) -> Lease | None:
        """The oldest lease of a key, if it may be taken."""
        lease = next(iter(held.revocable))
        shape = request.line.shape
        left = has - lease.charged
        if left >= mine + shape.weight:
            return lease
        if left < mine:
            return None
        ripe = max(request.since, lease.since) + QUANTUM_S
        if now >= ripe:
            return lease
        shape.retry_at = min(shape.retry_at, ripe)
        return None

    @staticmethod
    def _count_down(owner: Owner, name: str) -> None:
        owner.revocable[name] -= 1
        if not owner.revocable[name]:
            del owner.revocable[name]
            owner.job.richest[name].discard(owner)
            if split_name(name)[1] and not len(owner.job.richest[name]):
                # Groups come and go: their names must not stay.
                del owner.job.richest[name]


def _richest_first(owner: Owner, name: str) -> list[Request]:
    """The owner's keys with revocable leases that hold some of `name`."""
    held = [r for r in owner.holding if next(iter(r.revocable)).need.get(name)]
    return sorted(held, key=lambda r: -r.load)


def _add(amounts: dict[str, int], need: dict[str, int], sign: int) -> None:
    for name, amount in need.items():
        amounts[name] = amounts.get(name, 0) + sign * amount
