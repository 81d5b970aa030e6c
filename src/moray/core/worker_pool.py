"""The workers of a machine: which exist, which are idle, how many are starting.

A worker belongs to one (job, runtime_env), its *pool*, and serves every owner and key of that job. Grants
that have resources but no worker are *claims* of the pool; workers are started for claims only, never
more than there are, and at most two per CPU at once on the machine (FLOW). Whatever worker comes free
first, a new one or a used one, serves the oldest claim.

Starts normally take milliseconds. A pool whose claims wait longer than :data:`CLAIM_S` is *slow* (its
environment is being built): its claims give their resources back, and its requests are granted when a
worker is there. A pool with :data:`START_TRIES` failed starts in a row is *broken*: nothing is claimed,
and one start is tried again after a pause that doubles.

Idle workers beyond the number of CPUs end after :data:`IDLE_S`, unless others hold objects of them
(OWNER-STAYS) or they still wait for leases of their own.
"""

from __future__ import annotations

from typing import Final

from moray.core.lease_model import Job, Lease, Pool, Worker

#: How long an idle worker is kept: long enough that pauses of interactive work cost no start.
IDLE_S: Final = 60.0

#: Failed starts in a row after which a pool is broken; one or two may be a passing lack of memory.
START_TRIES: Final = 3

#: First and longest pause before a broken pool tries again.
RETRY_FIRST_S: Final = 10.0
RETRY_LAST_S: Final = 300.0

#: How long resources are reserved for a worker that starts: 200 times the usual start.
CLAIM_S: Final = 1.0


class WorkerPools:
    """All workers of the machine, by pool."""

    __slots__ = ("_hungry", "_idle", "_keep", "_limit", "broken", "starting", "workers")

    def __init__(self, cpus: int) -> None:
        #: Idle workers that are always kept, and starts allowed at once.
        self._keep = cpus
        self._limit = 2 * cpus
        #: Every live worker.
        self.workers: dict[bytes, Worker] = {}
        #: Unanswered starts on the machine.
        self.starting = 0
        #: Idle workers by how long they are: ordinary ones, then those of favoured environments.
        self._idle: tuple[dict[bytes, Worker], dict[bytes, Worker]] = ({}, {})
        #: Pools with more claims than starts.
        self._hungry: dict[Pool, None] = {}
        #: Broken pools that pause.
        self.broken: dict[Pool, None] = {}

    def can_serve(self, pool: Pool, now: float) -> bool:
        """Whether a grant in `pool` would get a worker now or from a start."""
        if pool.idle or pool.workerless:
            return True
        if pool.broken:
            return now >= pool.retry_at and not pool.starting and not pool.claims
        if pool.slow and pool.starting:
            return False
        return pool.starting > len(pool.claims) or self.starting < self._limit

    def acquire(self, pool: Pool, avoid: bytes) -> Worker | None:
        """Take the most recently used idle worker, but not the asking process itself."""
        process = next((p for p in reversed(pool.idle) if p != avoid), None)
        if process is None:
            return None
        self._leave_idle(pool.idle[process])
        return self.workers[process]

    def claim(self, lease: Lease, pool: Pool) -> None:
        """`lease` waits for a worker."""
        pool.claims[lease] = None
        self._mark(pool)

    def unclaim(self, lease: Lease, pool: Pool) -> None:
        """It does not any more."""
        del pool.claims[lease]
        self._mark(pool)

    def starts_due(self) -> list[Pool]:
        """The pools for which one worker each is to be started, counted as starting."""
        due = []
        while self._hungry and self.starting < self._limit:
            pool = next(iter(self._hungry))
            pool.starting += 1
            self.starting += 1
            self._mark(pool)
            due.append(pool)
        return due

    def add(self, process: bytes, pool: Pool) -> Worker:
        """A started worker is here."""
        self._start_ended(pool)
        pool.failures, pool.broken, pool.slow, pool.retry_after = 0, "", False, 0.0
        self.broken.pop(pool, None)
        worker = self.workers[process] = Worker(process, pool)
        return worker

    def start_failed(self, pool: Pool, reason: str, now: float) -> bool:
        """A start came to nothing; whether that breaks the pool (again)."""
        self._start_ended(pool)
        pool.failures += 1
        if pool.failures < START_TRIES:
            return False
        pool.broken = reason or "its workers do not start"
        if pool in self.broken and now < pool.retry_at:
            return True  # Ordered before the pause: one cause fails all that are on their way.
        pool.retry_after = min(max(RETRY_FIRST_S, 2 * pool.retry_after), RETRY_LAST_S)
        pool.retry_at = now + pool.retry_after
        self.broken[pool] = None
        return True

    def end_pauses(self, now: float) -> None:
        """Broken pools whose pause is over may try one start (see :meth:`can_serve`)."""
        for pool in [pool for pool in self.broken if pool.retry_at <= now]:
            del self.broken[pool]

    def rest(self, worker: Worker, now: float) -> None:
        """The worker is idle."""
        worker.idle_since = now
        worker.pool.idle[worker.process] = worker
        self._idle[worker.pool.favoured][worker.process] = worker

    def remove(self, process: bytes) -> Worker | None:
        """The process is gone."""
        worker = self.workers.pop(process, None)
        if worker is not None:
            self._leave_idle(worker)
        return worker

    def retire(self, worker: Worker) -> None:
        """Never idle again."""
        self._leave_idle(worker)

    def drop(self, pool: Pool) -> None:
        """The job is over; its unanswered starts count no longer."""
        self.starting -= pool.starting
        pool.starting = 0
        self._hungry.pop(pool, None)
        self.broken.pop(pool, None)

    def expired(self, now: float, needed: set[bytes]) -> list[Worker]:
        """Workers that have been idle for too long; `needed` processes wait for leases themselves."""
        gone: list[Worker] = []
        surplus = self._surplus()
        for idle in self._idle:
            for worker in self._idle_too_long(idle, now):
                if len(gone) == surplus:
                    return gone
                if worker.owns_objects or worker.process in needed:
                    # Asked again after another period, so that it costs nothing meanwhile.
                    del idle[worker.process]
                    worker.idle_since = now
                    idle[worker.process] = worker
                else:
                    self._leave_idle(worker)
                    gone.append(worker)
        return gone

    def idle_too_long(self, now: float) -> list[Worker]:
        """The candidates of :meth:`expired`."""
        return [w for idle in self._idle for w in self._idle_too_long(idle, now)] if self._surplus() else []

    def next_tick(self) -> float | None:
        """When :meth:`expired` or a broken pool may have something to do."""
        times = [pool.retry_at for pool in self.broken]
        if self._surplus():
            times += [next(iter(idle.values())).idle_since + IDLE_S for idle in self._idle if idle]
        return min(times, default=None)

    def validate(self) -> None:
        """Raise AssertionError if the books do not agree."""
        idle = {w.process for w in self.workers.values() if w.process in w.pool.idle}
        assert idle == set(self._idle[0]) | set(self._idle[1])
        assert all(self.workers[p].lease is None and not self.workers[p].stopping for p in idle)

    def _surplus(self) -> int:
        return max(0, len(self._idle[0]) + len(self._idle[1]) - self._keep)

    @staticmethod
    def _idle_too_long(idle: dict[bytes, Worker], now: float) -> list[Worker]:
        found = []
        for worker in idle.values():
            if worker.idle_since + IDLE_S > now:
                break
            found.append(worker)
        return found

    def _start_ended(self, pool: Pool) -> None:
        if pool.starting:
            pool.starting -= 1
            self.starting -= 1
        self._mark(pool)

    def _mark(self, pool: Pool) -> None:
        if len(pool.claims) > pool.starting:
            self._hungry[pool] = None
        else:
            self._hungry.pop(pool, None)

    def _leave_idle(self, worker: Worker) -> None:
        worker.pool.idle.pop(worker.process, None)
        self._idle[worker.pool.favoured].pop(worker.process, None)


def pool_of(job: Job, runtime_env: str) -> Pool:
    """The job's pool for an environment, made when it is first asked for."""
    pool = job.pools.get(runtime_env)
    if pool is None:
        pool = job.pools[runtime_env] = Pool(job.number, runtime_env, favoured=runtime_env == job.favoured_env)
    return pool
