"""The records of the local scheduler: parties, what they wait for, what they hold.

A *party* is a job, an owner in it, or a request (key) of an owner. Each has a *load*, the weights of the
leases that it holds, and is *due* that plus what revocations in progress promise it. Fairness
compares these. The records hold no decision; the modules beside this one do.

Waiting requests are grouped so that a decision looks at few things: by *shape* (equal resources: fits or
does not fit as one), in it by *line* (one worker pool: has a worker or has not), in it by owner
(a *cell*, ranked by the owner's load).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from moray.core.ranking import Ranking
from moray.core.resources import Amounts, Devices

#: A time that does not come.
NEVER: Final = float("inf")


@dataclass(slots=True, eq=False)
class Pool:
    """The workers of one (job, runtime_env)."""

    job: int
    runtime_env: str
    #: Last to be stopped for idleness (the job's favoured environment).
    favoured: bool = False
    #: Workers without a lease; the most recently used last, and used first.
    idle: dict[bytes, Worker] = field(default_factory=dict)
    #: StartWorker actions not answered yet.
    starting: int = 0
    #: Grants that have their resources and lack a worker, oldest first.
    claims: dict[Lease, None] = field(default_factory=dict)
    #: Failed starts in a row.
    failures: int = 0
    #: Why starts fail, once they failed too often; "" is healthy.
    broken: str = ""
    #: When a broken pool may try one start again, and how long it waits after the next failure.
    retry_at: float = 0.0
    retry_after: float = 0.0
    #: Starts take so long that nothing is reserved for them any more.
    slow: bool = False
    #: What is granted in it needs no worker: bundles of placement groups.
    workerless: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process."""

    process: bytes
    pool: Pool
    #: What it is leased under; kept while a stopped worker is not dead yet.
    lease: Lease | None = None
    #: Others hold objects of it (OWNER-STAYS).
    owns_objects: bool = False
    #: Not to be leased again, but still needed for its objects.
    retired: bool = False
    #: StopWorker was said.
    stopping: bool = False
    #: Since when it is idle.
    idle_since: float = 0.0


class LeaseState(Enum):
    """How far a lease has come; it only moves down this list."""

    #: It has resources and waits for a worker.
    CLAIMED = "claimed"
    #: The owner has been told.
    LIVE = "live"
    #: The worker has been told to stop; over when it acknowledges (LEASE).
    REVOKING = "revoking"
    #: Over for its owner; the resources come back with the worker's death.
    ENDING = "ending"


@dataclass(slots=True, eq=False)
class Lease:
    """A grant: (owner, key, worker, resources)."""

    request: Request
    need: Amounts
    devices: Devices
    weight: int
    #: When it was claimed, then when it was granted.
    since: float
    state: LeaseState = LeaseState.CLAIMED
    #: 0 until granted.
    number: int = 0
    worker: Worker | None = None
    #: How much of `weight` its holder's load contains now: less while blocked, nothing once revoked.
    charged: int = 0
    #: The worker waits in moray, and what it lends meanwhile.
    blocked: bool = False
    lent: Amounts = field(default_factory=dict)
    #: A revocation's result that is still counted on, and the plan that asked for it.
    incoming: bool = False
    plan: Plan | None = None
    #: The placement group in which it is.
    group: str = ""

    def serving(self) -> Worker:
        """Its worker, once it is granted."""
        assert self.worker is not None, "a granted lease has a worker"
        return self.worker


@dataclass(slots=True, eq=False)
class Plan:
    """One grant that `request` shall get from revocations in progress."""

    request: Request
    weight: int
    #: Leases that have not come back yet.
    leases: dict[Lease, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Request:
    """The standing wish of one owner for one key."""

    owner: Owner
    key: int
    label: str
    line: Line
    #: When the last grant came, or else the wish began to wait.
    since: float
    #: The owner's latest words: how many it wants, how many grants it has seen.
    count: int = 0
    seen: int = 0
    #: Grants made so far, and grants that wait for a worker.
    granted: int = 0
    claims: int = 0
    load: int = 0
    promised: int = 0
    #: Number of its last grant: ties in load go to the longest passed over.
    turn: int = 0
    #: Leases that could be revoked (live, not blocked), oldest first.
    revocable: dict[Lease, None] = field(default_factory=dict)
    #: Leases and claims that are not over.
    held: int = 0
    #: Revocations made in its favour.
    plans: deque[Plan] = field(default_factory=deque)
    #: Its leases last as long as their workers; and what the machine must have in all for it.
    permanent: bool = False
    placement: Amounts = field(default_factory=dict)
    #: Why its strategy does not allow it here; "" if it does.
    barred: str = ""
    #: The bundles that wait for it (:class:`moray.core.lease_bundles.Reservation`); None: it wants workers.
    reservation: Any = None
    #: In the queue.
    queued: bool = False
    #: Why nothing will come ("" otherwise); said to the owner once.
    infeasible: str = ""
    refused: str = ""
    #: … because the bundles that it names are not here: they may come.
    absent: bool = False
    #: Its one warning was given; its alarm is set.
    warned: bool = False
    alarmed: bool = False

    @property
    def owed(self) -> int:
        """Grants to make."""
        return self.count - (self.granted - self.seen) - self.claims

    @property
    def rank(self) -> tuple[int, int]:
        """Lower is granted earlier."""
        return self.load, self.turn

    @property
    def due_rank(self) -> tuple[int, int]:
        """Lower is promised earlier."""
        return self.load + self.promised, self.turn


@dataclass(slots=True, eq=False)
class Owner:
    """A process that submits tasks."""

    process: bytes
    job: Job
    #: False once it died or left.
    present: bool = True
    load: int = 0
    promised: int = 0
    turn: int = 0
    requests: dict[int, Request] = field(default_factory=dict)
    #: Where it waits.
    cells: dict[Line, Cell] = field(default_factory=dict)
    #: Leases that are not over for it.
    leases: dict[int, Lease] = field(default_factory=dict)
    #: Requests with revocable leases.
    holding: dict[Request, None] = field(default_factory=dict)
    #: Number of revocable leases that hold each resource.
    revocable: dict[str, int] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, int]:
        """Lower is granted earlier."""
        return self.load, self.turn

    @property
    def due_rank(self) -> tuple[int, int]:
        """Lower is promised earlier."""
        return self.load + self.promised, self.turn


@dataclass(slots=True, eq=False)
class Job:
    """A driver and everything that works for it."""

    number: int
    favoured_env: str = ""
    load: int = 0
    promised: int = 0
    turn: int = 0
    owners: dict[bytes, Owner] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    #: Owners with revocable leases that hold a resource, the largest load first.
    richest: dict[str, Ranking[Owner]] = field(default_factory=dict)
    #: It was told that very many workers are blocked.
    warned_blocked: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        """Lower is granted earlier."""
        return self.load, self.turn

    @property
    def due_rank(self) -> tuple[int, int]:
        """Lower is promised earlier."""
        return self.load + self.promised, self.turn


@dataclass(slots=True, eq=False)
class Cell:
    """One owner's waiting requests in a line."""

    owner: Owner
    requests: dict[Request, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Line:
    """Waiting requests of one shape and one pool."""

    shape: Shape
    job: Job
    pool: Pool
    cells: Ranking[Cell] = field(default_factory=Ranking)
    #: The cells that wait for more than has been promised to them.
    needy: Ranking[Cell] = field(default_factory=Ranking)


@dataclass(slots=True, eq=False)
class Shape:
    """Waiting requests of equal resources."""

    need: Amounts
    weight: int
    #: The placement group whose resources it names.
    group: str = ""
    #: The non-empty lines.
    lines: dict[Pool, Line] = field(default_factory=dict)
    #: Since when it does not fit, unless it was granted something meanwhile.
    unfit_since: float | None = None
    #: How long its next reservation lasts, and until when it may have none.
    hold: float = 0.0
    rest_until: float = 0.0
    #: Revocations made in its favour, oldest first, and when the oldest is given up.
    plans: dict[Plan, None] = field(default_factory=dict)
    lapse_at: float = 0.0
    #: When a revocation that was refused as too early may be tried again.
    retry_at: float = NEVER
    #: It is not even tried before: the last try looked at many leases in vain.
    gated: bool = False
