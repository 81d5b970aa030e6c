"""An independent account of leases, kept from what the scheduler is told and what it answers.

It knows the rules (LEASE, OWNER-STAYS), not the scheduler's tables: a lease begins with its grant; it ends when its
owner returns it, its worker acknowledges its revocation, or its worker dies. A worker that is being stopped has what it
holds until it is dead. A blocked worker lends its CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from moray.core.local_scheduler import LocalScheduler
from moray.core.resources import CPU, UNIT
from moray.core.scheduler_actions import Action, Grant, Revoke, StopWorker
from tests.simulation.world import ViolationError

#: Bytes of an actor's id, which stands in place of an owner.
_ACTOR_ID: Final = 16


@dataclass
class Held:
    """One lease that is not over."""

    number: int
    owner: bytes
    worker: bytes
    need: dict[str, int]
    devices: dict[str, list[int]]
    lent: bool = False
    revoking: bool = False
    #: Its worker is being stopped.
    ending: bool = False

    @property
    def permanent(self) -> bool:
        """An actor has it: it ends with its worker, and lends nothing."""
        return len(self.owner) == _ACTOR_ID

    def amount(self, name: str) -> int:
        return 0 if self.lent and name == CPU else self.need.get(name, 0)


#: Events after which the CPU account may be more negative than before: somebody woke, or will not any more.
_MAY_OVERDRAW: Final = frozenset({"unblocked", "return_lease", "job_ended", "owns_objects", "tick"})


class LeaseBook:
    """Everything that is leased."""

    def __init__(self, scheduler: LocalScheduler) -> None:
        self._scheduler = scheduler
        self._total = scheduler.total
        self._before = scheduler.available
        self.leases: dict[int, Held] = {}
        #: Worker, or owner → its job.
        self._jobs: dict[bytes, int] = {}
        self._needs: dict[tuple[bytes, int], dict[str, int]] = {}
        #: Runtime environment of an owner's key, and of a worker (with key 0).
        self._environments: dict[tuple[bytes, int], str] = {}
        #: Processes that cannot be granted anything any more, and workers that cannot be granted to anybody.
        self._gone: set[bytes] = set()
        self._workers: set[bytes] = set()
        self._owning: set[bytes] = set()

    def lease_of(self, worker: bytes) -> Held | None:
        return next((held for held in self.leases.values() if held.worker == worker), None)

    # --- what happens ----------------------------------------------------------------------------------

    def observe(self, event: str, arguments: tuple[Any, ...], actions: list[Action]) -> None:
        """An event was told to the scheduler, which answered."""
        if (note := getattr(self, "_on_" + event, None)) is not None:
            note(*arguments)
        for action in actions:
            if isinstance(action, Grant):
                self._granted(action)
            elif isinstance(action, Revoke):
                revoked = self.leases[action.lease]
                if revoked.permanent:
                    raise ViolationError(f"lease {action.lease} of an actor is revoked")
                revoked.revoking = True
            elif isinstance(action, StopWorker):
                self._workers.discard(action.worker)
                if (held := self.lease_of(action.worker)) is not None:
                    held.ending, held.lent = True, False
        self._check(event)

    def _on_request(self, owner: bytes, job: int, key: int, *rest: Any) -> None:
        self._jobs[owner] = job
        self._needs[owner, key] = rest[2]
        self._environments[owner, key] = rest[3]

    def _on_return_lease(self, owner: bytes, lease: int, discard: bool, _now: float) -> None:
        held = self.leases.get(lease)
        if held is not None and held.owner == owner and not held.ending:
            if not discard or held.worker in self._owning:
                del self.leases[lease]
            if discard:
                self._workers.discard(held.worker)

    def _on_revoked(self, worker: bytes, lease: int, _now: float) -> None:
        held = self.lease_of(worker)
        if held is not None and held.revoking and not held.ending and held.number <= lease:
            del self.leases[held.number]

    def _on_worker_started(self, worker: bytes, job: int, runtime_env: str, _now: float) -> None:
        self._jobs[worker] = job
        self._environments[worker, 0] = runtime_env
        self._workers.add(worker)

    def _on_worker_died(self, worker: bytes, _now: float) -> None:
        self._workers.discard(worker)
        self._gone.add(worker)
        held = self.lease_of(worker)
        if held is not None:
            del self.leases[held.number]

    def _on_owner_left(self, owner: bytes) -> None:
        self._gone.add(owner)

    def _on_job_ended(self, job: int) -> None:
        self._gone |= {process for process, its_job in self._jobs.items() if its_job == job}

    def _on_blocked(self, worker: bytes, _now: float) -> None:
        held = self.lease_of(worker)
        if held is not None and not (held.ending or held.permanent):
            held.lent = True

    def _on_unblocked(self, worker: bytes, _now: float) -> None:
        held = self.lease_of(worker)
        if held is not None:
            held.lent = False

    def _on_owns_objects(self, worker: bytes, flag: bool) -> None:
        (self._owning.add if flag else self._owning.discard)(worker)

    # --- what must hold ----------------------------------------------------------------------------------

    def _granted(self, grant: Grant) -> None:
        worker = grant.worker
        story = f"lease {grant.lease} of {worker!r} to {grant.owner!r}"
        if grant.owner in self._gone:
            raise ViolationError(f"{story}: a dead owner was granted a lease")
        if worker not in self._workers:
            raise ViolationError(f"{story}: the worker is dead, or being stopped")
        if self._jobs[worker] != self._jobs[grant.owner]:
            raise ViolationError(f"{story}: the worker is of another job")
        if self._environments[worker, 0] != self._environments[grant.owner, grant.key]:
            raise ViolationError(f"{story}: the worker is of another environment")
        if (other := self.lease_of(worker)) is not None:
            raise ViolationError(f"{story}: the worker is leased as {other.number} to {other.owner!r}")
        need = self._needs[grant.owner, grant.key]
        self.leases[grant.lease] = Held(grant.lease, grant.owner, worker, dict(need), grant.devices)
        self._check_devices(story)

    def _check_devices(self, story: str) -> None:
        used: dict[tuple[str, int], int] = {}
        for held in self.leases.values():
            for name, indices in held.devices.items():
                if len(indices) * UNIT < held.need[name] or (indices and max(indices) * UNIT >= self._total[name]):
                    raise ViolationError(f"{story}: {held.need} does not come with {held.devices}")
                for index in indices:
                    used[name, index] = used.get((name, index), 0) + min(held.need[name], UNIT)
        if any(amount > UNIT for amount in used.values()):
            raise ViolationError(f"{story}: a device is granted twice: {used}")

    def _check(self, event: str) -> None:
        available = self._scheduler.available
        for name, total in self._total.items():
            taken = sum(held.amount(name) for held in self.leases.values())
            if available[name] > total - taken:
                raise ViolationError(f"after {event}: {available[name]} {name} free, but {taken} of {total} are leased")
            if name != CPU and taken > total:
                raise ViolationError(f"after {event}: {taken} {name} of {total} are leased")
        overdrawn = available[CPU] < min(self._before[CPU], 0)
        if overdrawn and event not in _MAY_OVERDRAW:
            raise ViolationError(f"after {event}: CPUs were granted that nobody has: {available[CPU]}")
        self._before = available

    def check_rest(self) -> None:
        """Nothing is leased, and everything is free."""
        if self.leases:
            raise ViolationError(f"leases are left: {self.leases}")
        if self._scheduler.available != self._total:
            raise ViolationError(f"of {self._total} only {self._scheduler.available} came back")
