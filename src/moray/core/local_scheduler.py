"""One machine's grants of leases: which owner gets which worker with which resources, and when it ends.

Owners state standing wishes (:meth:`LocalScheduler.request`); the scheduler owes each
``count - (granted - seen)`` grants. A *lease* is (owner, key, worker, resources); its number rises over
the node's life. What happens when is decided in four places:

- :mod:`moray.core.resources`: what fits;
- :mod:`moray.core.lease_queue`: who is next, and the reservation that keeps large needs from starving;
- :mod:`moray.core.lease_balance`: which leases are taken back for those who wait;
- :mod:`moray.core.worker_pool`: which worker serves, starts, ends (FLOW, OWNER-STAYS).

This module keeps the life of a lease::

    CLAIMED ──worker──▶ LIVE ──needed elsewhere, owner gone──▶ REVOKING ──acknowledged──▶ over
       │                 │ └───────────── returned ────────────────┴──────────────────────▶ over
       └─ no longer      └─ returned to be discarded, job over ─▶ ENDING ──worker died────▶ over
          wanted ─▶ over

LEASE: the resources of a revoked lease are free when its worker has acknowledged (or its owner, who knows
what it sent, has returned it, or the worker died), never before. A blocked worker lends its CPUs and
nothing else; it takes them back at once, and the account may go negative. A stopped worker's resources
are free when it is dead, because its memory on a device is.

A *permanent* request (an actor's, whose id stands in place of its owner) wants one worker for as long as that lives:
its lease is never revoked, lends nothing while it is blocked, and is over when its worker is dead.

LIVENESS: owners and workers are gone when the node says so; nothing here follows from silence.

Time never runs backwards here: calls without `now` happen at the latest time that was told. Every call
costs O(log n) in owners, workers and leases, and nothing in the counts asked for; it is linear in the
number of *different* waiting needs (shapes) and, where one fits, of jobs that wait with it.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from moray.core.lease_explain import blocked_warning
from moray.core.lease_model import Job, Lease, LeaseState, Owner, Pool, Request, Worker
from moray.core.resources import CPU, Amounts, is_cpu
from moray.core.scheduler_actions import Action, Grant, Refuse, Revoke, Revoked, StartWorker, StopWorker, Warn
from moray.core.scheduler_groups import GroupScheduling
from moray.core.worker_pool import CLAIM_S, pool_of

__all__ = [
    "Action",
    "Grant",
    "LocalScheduler",
    "Refuse",
    "Revoke",
    "Revoked",
    "StartWorker",
    "StopWorker",
    "Warn",
]

#: Blocked workers per CPU above which the user is warned: each is a process that only waits.
BLOCKED_PER_CPU: Final = 4


class LocalScheduler(GroupScheduling):
    """The state machine; every event returns the actions to carry out, in order."""

    def number_leases_from(self, first: int) -> None:
        """Of a node among others, whose leases must differ from theirs; before the first lease."""
        self._last_lease = first

    # --- jobs and owners ----------------------------------------------------------------------

    def job_started(self, job: int, priority_env: str = "") -> list[Action]:
        """A driver is here. Idle workers of `priority_env` are the last to be stopped."""
        self._jobs[job] = Job(job, priority_env, turn=self._queue.next_turn())
        return self._done()

    def job_ended(self, job: int) -> list[Action]:
        """Its requests and leases vanish, its workers are stopped; their resources return as they die."""
        ended = self._jobs.get(job)
        if ended is None:
            return self._done()
        # Workers first: a lease whose worker is stopped need not be revoked.
        for worker in self._pools.workers.values():
            if worker.pool.job == job:
                self._stop(worker, "its job has ended")
        for owner in list(ended.owners.values()):
            self._drop_owner(owner)
        for pool in ended.pools.values():
            self._pools.drop(pool)
        del self._jobs[job]
        return self._decide()

    def owner_left(self, owner: bytes) -> list[Action]:
        """The process died or said goodbye: its requests vanish, its leases are revoked at the workers.

        The node must not deliver what it said before its death afterwards.
        """
        if (left := self._owners.get(owner)) is not None:
            self._drop_owner(left)
        return self._decide()

    # --- wishes and leases ----------------------------------------------------------------------

    def request(
        self,
        owner: bytes,
        job: int,
        key: int,
        count: int,
        seen: int,
        resources: dict[str, int],
        runtime_env: str,
        label: str,
        now: float,
        *,
        permanent: bool = False,
        placement: Amounts | None = None,
        barred: str = "",
    ) -> list[Action]:
        """The owner's standing wish for a key; replaces the earlier one.

        `placement`: what the machine must have in all, beside `resources`; `barred`: why it may not run here.
        """
        self._advance(now)
        if job not in self._jobs:
            # The wish crossed the end of its job.
            return self._done()
        wish = self._request_record(owner, self._jobs[job], key, seen, resources, runtime_env)
        # An owner cannot have seen more than there was.
        wish.count, wish.seen = count, min(seen, wish.granted)
        wish.label = label or wish.label
        wish.permanent, wish.placement, wish.barred = permanent, placement or {}, barred
        self._fit_to_wish(wish)
        if not wish.infeasible and wish.owed > 0:
            self._refuse_if_hopeless(wish)
        self._queue.update(wish, self._now)
        self._alarms.set(wish, self._now)
        self._forget_if_idle(wish)
        return self._decide()

    def return_lease(self, owner: bytes, lease: int, discard: bool, now: float) -> list[Action]:
        """The owner is done with it; with `discard` the worker is not used again."""
        self._advance(now)
        over = self._leases.get(lease)
        if over is None or over.request.owner.process != owner or over.state is LeaseState.ENDING:
            # It crossed a revocation, or the worker's death.
            return self._done()
        worker = _worker_of(over)
        if discard and not worker.owns_objects:
            self._stop(worker, "its owner asked for another")
        else:
            self._end(over)
            worker.retired |= discard
            self._freed(worker)
        return self._decide()

    def worker_of(self, owner: bytes, lease: int) -> bytes:
        """The worker that `owner` has under this lease; b"" if that is over."""
        held = self._leases.get(lease)
        if held is None or held.worker is None or held.request.owner.process != owner:
            return b""
        return held.worker.process

    def revoked(self, worker: bytes, lease: int, now: float) -> list[Action]:
        """The worker acknowledges: nothing of leases up to `lease` is queued or runs there."""
        self._advance(now)
        known = self._pools.workers.get(worker)
        over = known.lease if known is not None else None
        if known is None or over is None or over.state is not LeaseState.REVOKING or over.number > lease:
            return self._done()
        # With its last lease an owner may be forgotten, which is no reason not to tell it.
        owner, told = over.request.owner, over.request.owner.present
        self._end(over)
        if told:
            self._actions.append(Revoked(owner.process, over.number))
        self._freed(known)
        return self._decide()

    # --- workers --------------------------------------------------------------------------------

    def worker_started(self, worker: bytes, job: int, runtime_env: str, now: float) -> list[Action]:
        """A started worker said Hello."""
        self._advance(now)
        if job not in self._jobs:
            self._actions.append(StopWorker(worker, "its job has ended"))
            return self._done()
        self._freed(self._pools.add(worker, pool_of(self._jobs[job], runtime_env)))
        return self._decide()

    def worker_start_failed(self, job: int, runtime_env: str, reason: str, now: float) -> list[Action]:
        """A StartWorker came to nothing. After three in a row its requests are refused and starts pause."""
        self._advance(now)
        if job in self._jobs:
            pool = pool_of(self._jobs[job], runtime_env)
            if self._pools.start_failed(pool, reason, self._now):
                self._refuse_all(pool)
        return self._decide()

    def worker_died(self, worker: bytes, now: float) -> list[Action]:
        """The process is gone, and so is what it held and wished for."""
        self._advance(now)
        dead = self._pools.remove(worker)
        if dead is not None and dead.lease is not None:
            self._end(dead.lease)
        return self.owner_left(worker)

    def blocked(self, worker: bytes, now: float) -> list[Action]:
        """Its task waits in moray: its CPUs are lent."""
        self._advance(now)
        lease = self._active_lease(worker)
        if lease is None or lease.blocked or lease.request.permanent:
            return self._done()
        lease.blocked = True
        self._blocked[lease] = None
        # It cannot finish before it wakes: nobody should count on it.
        self._balance.settle(lease)
        self._balance.conceal(lease)
        lease.lent = {name: amount for name, amount in lease.need.items() if is_cpu(name)}
        self._ledger.lend(lease.lent)
        if lease.state is LeaseState.LIVE:
            kept = {name: amount for name, amount in lease.need.items() if not is_cpu(name)}
            self._balance.hold(lease, self._ledger.weight(kept))
        self._warn_of_blocked(lease.request.owner.job)
        return self._decide()

    def unblocked(self, worker: bytes, now: float) -> list[Action]:
        """Its task runs again: its CPUs are taken back at once, whoever has them (LEASE)."""
        self._advance(now)
        lease = self._active_lease(worker)
        if lease is None or not lease.blocked:
            return self._done()
        self._reclaim(lease)
        if lease.state is LeaseState.LIVE:
            self._balance.hold(lease, lease.weight)
            self._balance.expose(lease)
        return self._decide()

    def owns_objects(self, worker: bytes, flag: bool) -> list[Action]:
        """OWNER-STAYS: while others hold its objects, the worker is not stopped."""
        known = self._pools.workers.get(worker)
        if known is not None:
            known.owns_objects = flag
            if known.retired and not flag and known.lease is None:
                self._stop(known, "its objects are no longer needed")
        return self._decide()

    def drain(self, now: float) -> list[Action]:
        """The machine is to be left: nothing more is granted, and what runs for owners ends with its present tasks."""
        self._advance(now)
        self._draining = True
        for claim in list(self._claims):
            self._unclaim(claim)
            self._queue.update(claim.request, self._now)
        for lease in list(self._leases.values()):
            if lease.state is LeaseState.LIVE and not lease.request.permanent:
                self._revoke(lease)
        return self._decide()

    # --- time ---------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Time has passed; to be called at :meth:`next_tick`, harmless at any time."""
        self._advance(now)
        self._pools.end_pauses(self._now)
        self._stop_idle()
        self._release_slow_claims()
        self._actions += self._alarms.sound(self._now)
        self._evict()
        self._balance.lapse(self._now)
        return self._decide()

    def next_tick(self) -> float | None:
        """When :meth:`tick` has something to do next, if nothing else happens."""
        parts = self._pools, self._queue, self._balance, self._alarms, self._bundles
        times = [part.next_tick() for part in parts]
        if self._claims:
            times.append(next(iter(self._claims)).since + CLAIM_S)
        return min((time for time in times if time is not None), default=None)

    # --- deciding -----------------------------------------------------------------------------------------

    def _decide(self) -> list[Action]:
        """Grant what can be granted, then take back for those who still wait."""
        if self._queue.shapes and not self._draining:
            self._queue.reserve(self._now)
            while (request := self._queue.next(self._now)) is not None:
                self._grant(request)
            # A reservation that was just used makes room for the next.
            self._queue.reserve(self._now)
            self._balance.rebalance(self._now)
        self._start_workers()
        return self._done()

    def _grant(self, request: Request) -> None:
        shape, pool = request.line.shape, request.line.pool
        lease = Lease(request, shape.need, self._ledger.take(shape.need), shape.weight, self._now, group=shape.group)
        if request.permanent:
            self._ledger.keep(lease.need, 1)
        request.held += 1
        request.claims += 1
        self._queue.served(request, self._now)
        self._balance.granted(request, self._now)
        if request.reservation is not None:
            self._reserved(lease)
            return
        if shape.group:
            self._bundles.users[shape.group] += 1
        self._balance.hold(lease, shape.weight)
        worker = self._pools.acquire(pool, request.owner.process)
        if worker is not None:
            self._assign(lease, worker)
        else:
            self._claims[lease] = None
            self._pools.claim(lease, pool)
        self._queue.update(request, self._now)
        self._alarms.set(request, self._now)

    def _assign(self, lease: Lease, worker: Worker) -> None:
        request = lease.request
        self._last_lease += 1
        lease.number, lease.worker, lease.state, lease.since = self._last_lease, worker, LeaseState.LIVE, self._now
        worker.lease = lease
        self._leases[lease.number] = lease
        request.owner.leases[lease.number] = lease
        request.claims -= 1
        request.granted += 1
        request.refused = ""
        if request.permanent:
            # It is fulfilled: nobody states it again.
            request.count, request.seen = request.count - 1, request.seen + 1
        else:
            self._balance.expose(lease)
        self._actions.append(Grant(request.owner.process, request.key, lease.number, worker.process, lease.devices))

    def _start_workers(self) -> None:
        for pool in self._pools.starts_due():
            self._actions.append(StartWorker(pool.job, pool.runtime_env))

    # --- the end of a lease -------------------------------------------------------------------------------

    def _revoke(self, lease: Lease) -> None:
        lease.state = LeaseState.REVOKING
        self._balance.conceal(lease)
        # It had its turn: what comes free is for those who waited.
        self._queue.to_the_end(lease.request)
        self._balance.hold(lease, 0)
        self._queue.update(lease.request, self._now)
        self._actions.append(Revoke(_worker_of(lease).process, lease.number, lease.request.owner.process))

    def _end(self, lease: Lease) -> None:
        """The lease is over and its resources are free."""
        self._detach(lease)
        self._balance.settle(lease)
        if lease.blocked:
            self._reclaim(lease)
        self._give(lease)
        del self._leases[lease.number]
        _worker_of(lease).lease = None

    def _give(self, lease: Lease) -> None:
        """What the lease took is free."""
        if lease.request.permanent:
            self._ledger.keep(lease.need, -1)
        self._ledger.give(lease.need, lease.devices)
        if lease.group:
            self._bundles.users[lease.group] -= 1
            self._bundles.settle(lease.group)

    def _detach(self, lease: Lease) -> None:
        """The lease is over for its owner."""
        if lease.state is LeaseState.ENDING:
            return
        request = lease.request
        self._balance.conceal(lease)
        self._balance.hold(lease, 0)
        lease.state = LeaseState.ENDING
        request.held -= 1
        del request.owner.leases[lease.number]
        self._forget_if_idle(request)

    def _reclaim(self, lease: Lease) -> None:
        self._ledger.reclaim(lease.lent)
        lease.blocked, lease.lent = False, {}
        del self._blocked[lease]

    def _unclaim(self, lease: Lease) -> None:
        """A lease without a worker is not wanted, or cannot be had."""
        request = lease.request
        del self._claims[lease]
        self._pools.unclaim(lease, request.line.pool)
        self._balance.hold(lease, 0)
        self._give(lease)
        request.claims -= 1
        request.held -= 1

    def _freed(self, worker: Worker) -> None:
        """The worker has no lease: the oldest claim gets it, or it rests, or it stays for its objects only."""
        if worker.stopping:
            return
        if worker.retired:
            self._pools.retire(worker)
            return
        claim = next((c for c in worker.pool.claims if c.request.owner.process != worker.process), None)
        if claim is None:
            self._pools.rest(worker, self._now)
            return
        del self._claims[claim]
        self._pools.unclaim(claim, worker.pool)
        self._assign(claim, worker)

    def _stop(self, worker: Worker, reason: str) -> None:
        """End the process; what it is leased under is over for its owner, and free when it is dead."""
        if worker.stopping:
            return
        worker.stopping = True
        self._pools.retire(worker)
        lease = worker.lease
        if lease is not None:
            if lease.blocked:
                self._reclaim(lease)
            self._detach(lease)
            if not lease.incoming:
                self._balance.expect(lease)
        self._actions.append(StopWorker(worker.process, reason))

    # --- requests and owners ---------------------------------------------------------------------------------

    def _request_record(
        self, process: bytes, job: Job, key: int, seen: int, resources: Amounts, runtime_env: str
    ) -> Request:
        owner = self._owners.get(process)
        if owner is None:
            owner = self._owners[process] = job.owners[process] = Owner(process, job, turn=self._queue.next_turn())
        need = {name: amount for name, amount in resources.items() if amount}
        request = owner.requests.get(key)
        line = self._queue.line(job, pool_of(job, runtime_env), need)
        if request is None:
            # A record is only forgotten when every grant was seen.
            request = Request(owner, key, "", line, self._now, granted=seen, turn=self._queue.next_turn())
            owner.requests[key] = request
        elif request.line.shape.need != need or request.line.pool is not line.pool:
            request.count = request.seen = 0
            self._withdraw(request)
            request.line, request.infeasible, request.refused, request.absent = line, "", "", False
        return request

    def _fit_to_wish(self, request: Request) -> None:
        """Give up claims and plans for more than is wanted now."""
        if request.owed < 0 and request.claims:
            for claim in reversed([c for c in request.line.pool.claims if c.request is request]):
                if request.owed >= 0:
                    break
                self._unclaim(claim)
        self._balance.trim(request)

    def _withdraw(self, request: Request) -> None:
        """The request wants nothing any more."""
        request.count, request.seen = 0, request.granted
        self._fit_to_wish(request)
        self._queue.update(request, self._now)

    def _refuse_if_hopeless(self, request: Request) -> None:
        ledger = self._ledger
        missing, for_good = self._bundles.absent(request)
        if missing:
            request.infeasible, request.absent = missing, not for_good
            if for_good:
                self._refuse(request, missing, infeasible=True, group=request.line.shape.group)
            return
        impossible = ledger.impossible(request.line.shape.need) or ledger.impossible(request.placement)
        request.infeasible = request.barred or impossible
        if request.infeasible:
            self._refuse(request, request.infeasible, infeasible=True)
        elif request.line.pool.broken and not request.refused:
            self._refuse(request, request.line.pool.broken, infeasible=False)

    def _refuse(self, request: Request, reason: str, *, infeasible: bool, group: str = "") -> None:
        request.refused = reason
        self._actions.append(Refuse(request.owner.process, request.key, reason, infeasible, group))

    def _refuse_all(self, pool: Pool) -> None:
        """The pool broke: its claims give their resources back, and everyone who waits hears why."""
        for claim in list(pool.claims):
            self._unclaim(claim)
            self._queue.update(claim.request, self._now)
        for owner in self._jobs[pool.job].owners.values():
            for request in owner.requests.values():
                if request.line.pool is pool and request.queued and not request.refused:
                    self._refuse(request, pool.broken, infeasible=False)

    def _drop_owner(self, owner: Owner) -> None:
        owner.present = False
        for request in list(owner.requests.values()):
            self._withdraw(request)
        for lease in list(owner.leases.values()):
            if lease.state is LeaseState.LIVE:
                self._revoke(lease)
                if not lease.blocked:
                    self._balance.expect(lease)
        owner.requests.clear()
        del self._owners[owner.process]
        del owner.job.owners[owner.process]

    def _forget_if_idle(self, request: Request) -> None:
        """Drop a record that says nothing: none wanted, held or on its way."""
        owner = request.owner
        if request.count or request.held or request.granted != request.seen or not owner.present:
            return
        owner.requests.pop(request.key, None)
        if not owner.requests:
            del self._owners[owner.process]
            del owner.job.owners[owner.process]
            owner.present = False

    # --- what time brings -------------------------------------------------------------------------------------

    def _stop_idle(self) -> None:
        candidates = self._pools.idle_too_long(self._now)
        needed = {w.process for w in candidates if w.process in self._owners}
        for worker in self._pools.expired(self._now, needed):
            self._stop(worker, "it was idle")

    def _release_slow_claims(self) -> None:
        for claim in list(self._claims):
            if claim.since + CLAIM_S > self._now:
                break
            pool = claim.request.line.pool
            pool.slow = True
            self._unclaim(claim)
            self._queue.update(claim.request, self._now)

    def _warn_of_blocked(self, job: Job) -> None:
        if job.warned_blocked or len(self._blocked) <= BLOCKED_PER_CPU * self._cpus:
            return
        job.warned_blocked = True
        labels = Counter(lease.request.label for lease in self._blocked)
        text = blocked_warning(len(self._blocked), self._ledger.total.get(CPU, 0), labels)
        self._actions.append(Warn(job.number, text))

    # --- small helpers --------------------------------------------------------------------------------------------

    def _active_lease(self, worker: bytes) -> Lease | None:
        """The worker's lease while its task may run."""
        known = self._pools.workers.get(worker)
        return known.lease if known is not None and not known.stopping else None


def _worker_of(lease: Lease) -> Worker:
    assert lease.worker is not None, "a granted lease has a worker"
    return lease.worker
