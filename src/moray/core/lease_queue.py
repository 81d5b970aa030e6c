"""Who waits for leases, and who is next.

Fair order: the job with the smallest load first, in it the owner with the smallest load, then the key;
ties go to whoever was passed over longest. So a party's deficit against its fair share decides, and
parties with equal deficits take turns. Every change of a load goes through :meth:`LeaseQueue.charge`,
which keeps the rankings true.

Large needs: a shape that has not fitted for :data:`RESERVE_AFTER_S` while others wait or come, or for
which several leases are being revoked, gets the machine's one *reservation*: nobody else may take what it
lacks, unless that party would still hold no more than the reserved one does. A reservation is held
:data:`HOLD_FIRST_S`, then rests as long; each further time twice as long, until something is granted. So a
large need gets its turn as soon as one hold outlasts the tasks in its way, and small ones have the machine
at least half of the time.
"""

from __future__ import annotations

from typing import Final

from moray.core.bundles import group_of
from moray.core.lease_model import NEVER, Cell, Job, Line, Owner, Pool, Request, Shape
from moray.core.resources import Amounts, Ledger
from moray.core.worker_pool import WorkerPools

#: A need that small ones overtake for so long is starving: many short tasks, few long ones.
RESERVE_AFTER_S: Final = 0.25

#: First reservation: idles resources no longer than a user notices.
HOLD_FIRST_S: Final = 0.5


class LeaseQueue:
    """Waiting requests and the loads of all parties."""

    __slots__ = ("_ledger", "_pools", "_reserved", "_reserved_until", "_turn", "shapes")

    def __init__(self, ledger: Ledger, pools: WorkerPools) -> None:
        self._ledger = ledger
        self._pools = pools
        #: The shapes with waiting requests.
        self.shapes: dict[frozenset[tuple[str, int]], Shape] = {}
        #: Number of the last turn given.
        self._turn = 0
        #: Who has the reservation, and until when.
        self._reserved: Shape | None = None
        self._reserved_until = 0.0

    def line(self, job: Job, pool: Pool, need: Amounts) -> Line:
        """Where requests for `need` in `pool` wait; only a line with waiting requests is listed."""
        key = frozenset(need.items())
        shape = self.shapes.get(key)
        if shape is None:
            shape = Shape(dict(need), self._ledger.weight(need), group_of(need), hold=HOLD_FIRST_S)
        return shape.lines.get(pool) or Line(shape, job, pool)

    def next_turn(self) -> int:
        """A number that rises."""
        self._turn += 1
        return self._turn

    def update(self, request: Request, now: float) -> None:
        """Let the request wait if it is owed anything, and only then."""
        waits = request.owed > 0 and not request.infeasible
        if waits and not request.queued:
            self._enter(request, now)
        elif request.queued and not waits:
            self._leave(request)
        elif waits:
            self._rank(request.line, request.owner.cells[request.line])

    def promise(self, request: Request, delta: int) -> None:
        """Change what the request, its owner and its job are promised."""
        owner = request.owner
        request.promised += delta
        owner.promised += delta
        owner.job.promised += delta
        for line, cell in owner.cells.items():
            self._rank(line, cell)

    def charge(self, request: Request, delta: int) -> None:
        """Change the loads of the request, its owner and its job."""
        owner = request.owner
        request.load += delta
        owner.load += delta
        owner.job.load += delta
        for line, cell in owner.cells.items():
            self._rank(line, cell)
        for name in owner.revocable:
            owner.job.richest[name].set(owner, (-owner.load, owner.turn))

    def to_the_end(self, request: Request) -> None:
        """Equals of the request, its owner and its job come before them (once they are ranked anew)."""
        request.turn = request.owner.turn = request.owner.job.turn = self.next_turn()

    def served(self, request: Request, now: float) -> None:
        """Its turn was used: it goes to the end of the line of equals."""
        self.to_the_end(request)
        request.since = now
        shape = request.line.shape
        shape.unfit_since, shape.hold, shape.rest_until = None, HOLD_FIRST_S, 0.0
        if self._reserved is shape:
            self._reserved = None

    def next(self, now: float) -> Request | None:
        """The request to grant now: the fairest among those that fit and can have a worker."""
        best: Request | None = None
        for shape in self.shapes.values():
            if not self._ledger.fits(shape.need):
                if shape.unfit_since is None:
                    shape.unfit_since = now
                continue
            request = self._poorest(shape, now)
            if request is None or self._held_back(request):
                continue
            if best is None or _order(request) < _order(best):
                best = request
        return best

    def neediest(self, shape: Shape, now: float) -> Request | None:
        """The fairest of `shape` that has been promised less than it waits for."""
        line: Line | None = None
        for other in shape.lines.values():
            if line is not None and other.job.due_rank >= line.job.due_rank:
                continue
            if len(other.needy) and self._pools.can_serve(other.pool, now):
                line = other
        cell = line.needy.first() if line is not None else None
        if cell is None:
            return None
        return min((r for r in cell.requests if r.owed > len(r.plans)), key=lambda r: r.due_rank)

    def held_back_by(self, request: Request) -> Request | None:
        """The reserved request that holds `request` back, if one does."""
        return self._reserver() if self._held_back(request) else None

    def reserve(self, now: float) -> None:
        """Give and end reservations as time passes."""
        shape = self._reserved
        if shape is not None and now >= self._reserved_until:
            shape.rest_until = now + shape.hold
            shape.hold *= 2
            self._reserved = None
        if self._reserved is None and len(self.shapes) > 1:
            self._reserve_oldest([s for s in self.shapes.values() if _ripe_at(s) <= now], now)

    def next_tick(self) -> float | None:
        """When :meth:`reserve` may have something to do."""
        if self._reserved is not None:
            return self._reserved_until
        if len(self.shapes) < 2:
            return None
        times = [_ripe_at(s) for s in self.shapes.values()]
        return min((t for t in times if t != NEVER), default=None)

    def collect(self, shape: Shape, now: float) -> None:
        """Leases are revoked one by one for a need of several: nobody should take the first of them."""
        if self._reserved is None:
            self._reserved, self._reserved_until = shape, now + shape.hold

    def _reserve_oldest(self, ripe: list[Shape], now: float) -> None:
        for shape in sorted(ripe, key=lambda s: s.unfit_since or 0.0):
            # What actors hold may never come free: collecting the rest for such a need would only idle it.
            useful = self._ledger.comes_free(shape.need)
            if useful and any(self._pools.can_serve(line.pool, now) for line in shape.lines.values()):
                self._reserved, self._reserved_until = shape, now + shape.hold
                return
            # Workers are what it lacks: collecting resources would help nobody.
            shape.unfit_since = now

    def _enter(self, request: Request, now: float) -> None:
        owner, line = request.owner, request.line
        shape = self.shapes.setdefault(frozenset(line.shape.need.items()), line.shape)
        if shape is not line.shape or shape.lines.get(line.pool, line) is not line:
            # The record that it had last time was dropped when nothing waited there.
            line = request.line = shape.lines.get(line.pool) or Line(shape, line.job, line.pool)
        shape.lines[line.pool] = line
        cell = owner.cells.setdefault(line, Cell(owner))
        cell.requests[request] = None
        request.queued, request.since = True, now
        self._rank(line, cell)

    def _leave(self, request: Request) -> None:
        line, owner = request.line, request.owner
        request.queued = False
        cell = owner.cells[line]
        del cell.requests[request]
        if cell.requests:
            self._rank(line, cell)
            return
        del owner.cells[line]
        line.cells.discard(cell)
        line.needy.discard(cell)
        if not len(line.cells):
            self._drop_line(line)

    def _drop_line(self, line: Line) -> None:
        shape = line.shape
        del shape.lines[line.pool]
        if shape.lines:
            return
        del self.shapes[frozenset(shape.need.items())]
        shape.unfit_since = None
        if self._reserved is shape:
            self._reserved = None

    @staticmethod
    def _rank(line: Line, cell: Cell) -> None:
        line.cells.set(cell, cell.owner.rank)
        if any(r.owed > len(r.plans) for r in cell.requests):
            line.needy.set(cell, cell.owner.due_rank)
        else:
            line.needy.discard(cell)

    def _poorest(self, shape: Shape, now: float) -> Request | None:
        line: Line | None = None
        for other in shape.lines.values():
            if line is not None and other.job.rank >= line.job.rank:
                continue
            if self._pools.can_serve(other.pool, now):
                line = other
        return _first_of(line) if line is not None else None

    def _reserver(self) -> Request | None:
        if self._reserved is None:
            return None
        return _first_of(min(self._reserved.lines.values(), key=lambda line: line.job.rank))

    def _held_back(self, request: Request) -> bool:
        """Whether `request` would take what the reserved shape lacks, and has no better right to it."""
        reserved, shape = self._reserved, request.line.shape
        if reserved is None or reserved is shape or not self._collides(shape, reserved):
            return False
        other = self._reserver()
        if other is None:
            return False
        mine, theirs = _rivals(request, other)
        return mine.load + shape.weight > theirs.load

    def _collides(self, shape: Shape, reserved: Shape) -> bool:
        available = self._ledger.available
        return any(
            amount and name in reserved.need and available.get(name, 0) - amount < reserved.need[name]
            for name, amount in shape.need.items()
        )


def _first_of(line: Line) -> Request | None:
    cell = line.cells.first()
    return min(cell.requests, key=lambda r: r.rank) if cell is not None else None


def _rivals(one: Request, other: Request) -> tuple[Job | Owner | Request, Job | Owner | Request]:
    """The parties that compete when two requests do: jobs first, then owners, then keys."""
    if one.owner.job is not other.owner.job:
        return one.owner.job, other.owner.job
    if one.owner is not other.owner:
        return one.owner, other.owner
    return one, other


def _ripe_at(shape: Shape) -> float:
    """When a shape may have the reservation."""
    return NEVER if shape.unfit_since is None else max(shape.unfit_since + RESERVE_AFTER_S, shape.rest_until)


def _order(request: Request) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Position among all waiting requests."""
    return request.owner.job.rank, request.owner.rank, request.rank
