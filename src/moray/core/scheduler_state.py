"""The tables behind :class:`moray.core.local_scheduler.LocalScheduler`, and what can be read from them.

What happens to them is decided in the subclasses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from moray.core.bundles import split_name
from moray.core.lease_alarms import Alarms
from moray.core.lease_balance import LeaseBalance
from moray.core.lease_books import check_books
from moray.core.lease_bundles import Reservations
from moray.core.lease_explain import explain_request
from moray.core.lease_model import Job, Lease, Owner, Request
from moray.core.lease_queue import LeaseQueue
from moray.core.resources import CPU, UNIT, Amounts, Ledger
from moray.core.scheduler_actions import Action
from moray.core.worker_pool import WorkerPools

#: A request that holds nothing is explained to its user after this long.
WARN_AFTER_S: Final = 10.0


class SchedulerState:
    """What the scheduler knows."""

    def __init__(self, total: dict[str, int], devices: dict[str, int], warn_after_s: float = WARN_AFTER_S) -> None:
        """`total` in units of 1/10000; `devices` names resources with indices, e.g. {"GPU": 2}."""
        self._ledger = Ledger(total, devices)
        #: Whole CPUs, rounded up; at least one, so that something can run anywhere.
        self._cpus = max(1, -(-total.get(CPU, 0) // UNIT))
        self._pools = WorkerPools(self._cpus)
        self._queue = LeaseQueue(self._ledger, self._pools)
        self._jobs: dict[int, Job] = {}
        self._balance = LeaseBalance(self._jobs, self._ledger, self._queue, self._revoke)
        #: Owner processes that are known.
        self._owners: dict[bytes, Owner] = {}
        #: Granted leases that are not over.
        self._leases: dict[int, Lease] = {}
        #: Leases without a worker, oldest first.
        self._claims: dict[Lease, None] = {}
        #: Number of the last lease.
        self._last_lease = 0
        #: Blocked workers.
        self._blocked: dict[Lease, None] = {}
        self._alarms = Alarms(warn_after_s, self._explain)
        self._bundles = Reservations(self._ledger, self._queue)
        #: Nothing is granted any more.
        self._draining = False
        #: The latest time told.
        self._now = 0.0
        #: What the running call has decided.
        self._actions: list[Action] = []

    # --- views ----------------------------------------------------------------------------------------

    @property
    def total(self) -> Amounts:
        """What the machine has, in units; without what groups have made of it."""
        return {name: amount for name, amount in self._ledger.total.items() if not split_name(name)[1]}

    @property
    def available(self) -> Amounts:
        """What is free now, in units; CPU may be negative. What groups have reserved is not free."""
        return {name: amount for name, amount in self._ledger.available.items() if not split_name(name)[1]}

    @property
    def all_total(self) -> Amounts:
        """The same, with what groups have made of it: the account itself, not to be changed."""
        return self._ledger.total

    @property
    def all_available(self) -> Amounts:
        """What is free of that: the account itself, not to be changed."""
        return self._ledger.available

    def claims(self) -> Iterator[tuple[bytes, int, Amounts]]:
        """What is taken for leases whose workers are not there yet: (owner, its key, how much) of each."""
        return ((lease.request.owner.process, lease.request.key, lease.need) for lease in self._claims)

    def holders(self) -> list[tuple[str, bool]]:
        """Whose leases there are, by label, and whether each is an actor's."""
        return [(lease.request.label, lease.request.permanent) for lease in self._leases.values()]

    def idle_owners(self) -> int:
        """How many workers without a lease are needed for their objects (OWNER-STAYS)."""
        return sum(worker.owns_objects and worker.lease is None for worker in self._pools.workers.values())

    def explain(self, now: float) -> list[dict[str, Any]]:
        """Every waiting request: what it wants, how long it waits, why ("cause", "reason"), who has it."""
        leases = self._all_leases()
        requests = [request for owner in self._owners.values() for request in owner.requests.values()]
        return [
            explain_request(request, leases, self._ledger, self._queue, now)
            for request in (*requests, *self._bundles.requests())
            if request.owed > 0 or request.claims
        ]

    def validate(self) -> None:
        """Raise AssertionError if the books do not agree with each other."""
        leases = self._all_leases()
        self._ledger.validate()
        self._pools.validate()
        self._balance.validate(leases)
        self._bundles.validate(leases)
        check_books(self._ledger, leases, self._jobs.values(), self._owners.values())

    # --- for subclasses --------------------------------------------------------------------------------

    def _all_leases(self) -> list[Lease]:
        return [*self._leases.values(), *self._claims, *self._bundles.leases()]

    def _explain(self, request: Request) -> dict[str, Any]:
        return explain_request(request, self._all_leases(), self._ledger, self._queue, self._now)

    def _advance(self, now: float) -> None:
        self._now = max(self._now, now)

    def _done(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def _revoke(self, lease: Lease) -> None:
        raise NotImplementedError
