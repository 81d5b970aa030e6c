"""The local scheduler's operations on placement groups: what :class:`~moray.core.local_scheduler.LocalScheduler` does
beside its leases for the bundles that are reserved here (:mod:`moray.core.lease_bundles`, BUNDLES)."""

from __future__ import annotations

from moray.core.lease_model import NEVER, Lease, LeaseState, Request, Worker
from moray.core.resources import Amounts
from moray.core.scheduler_actions import Action, BundlesReady
from moray.core.scheduler_state import SchedulerState


class GroupScheduling(SchedulerState):
    """A part of the scheduler; what it uses of the rest is declared at its end."""

    def prepare_bundles(
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
        """Reserve these bundles of a group (hexadecimal), all or none; answered by BundlesReady, now or later.
        `alone`: no other node has to agree, so they are committed as soon as they are reserved."""
        self._advance(now)
        self._actions += self._bundles.prepare(group, number, bundles, job, label, self._now, alone=alone)
        for request in self._bundles.requests():
            self._alarms.set(request, self._now)
        return self._decide()

    def commit_bundles(self, group: str, number: int, now: float) -> list[Action]:
        """They may be used."""
        self._advance(now)
        self._commit(group, number)
        return self._decide()

    def _reserved(self, lease: Lease) -> None:
        """The resources of a reservation are here."""
        reservation = self._bundles.granted(lease, self._now)
        if reservation.alone:
            self._commit(reservation.group, reservation.number)
        else:
            self._actions.append(BundlesReady(reservation.group, reservation.number, ""))

    def _commit(self, group: str, number: int) -> None:
        done, waiting = self._bundles.commit(group, number)
        self._actions += done
        for request in waiting:
            request.infeasible, request.absent = "", False
            self._refuse_if_hopeless(request)
            self._queue.update(request, self._now)
            self._alarms.set(request, self._now)

    def return_bundles(self, group: str, number: int, now: float) -> list[Action]:
        """A reservation that is not committed is not wanted any more."""
        self._advance(now)
        request = self._bundles.take_back(group, number)
        if request is not None:
            self._withdraw(request)
        return self._decide()

    def remove_group(self, group: str, reason: str, now: float) -> list[Action]:
        """The group is gone: what runs in it ends (tasks after a moment), and then its resources are free."""
        self._advance(now)
        in_group = [lease for lease in self._all_leases() if lease.group == group]
        for request in self._bundles.remove(group, reason, self._now):
            self._withdraw(request)
        inside = [r for o in self._owners.values() for r in o.requests.values() if r.line.shape.group == group]
        for request in inside:
            wanted = request.owed > 0 or request.claims > 0
            self._withdraw(request)
            request.infeasible, request.absent = reason, False
            if wanted:
                self._refuse(request, reason, infeasible=True, group=group)
            self._forget_if_idle(request)
        self._bundles.absentees.pop(group, None)
        for lease in in_group:
            if lease.state is LeaseState.LIVE and lease.request.permanent:
                self._stop(lease.serving(), reason)
            elif lease.state is LeaseState.LIVE:
                self._revoke(lease)
        return self._decide()

    def _evict(self) -> None:
        """End what still runs in groups that were removed a while ago."""
        for group in [group for group, due in self._bundles.evictions.items() if due <= self._now]:
            self._bundles.evictions[group] = NEVER
            for lease in self._leases.values():
                if lease.group == group:
                    self._stop(lease.serving(), self._bundles.why_removed(group))

    def _decide(self) -> list[Action]:
        raise NotImplementedError

    def _withdraw(self, request: Request) -> None:
        raise NotImplementedError

    def _refuse(self, request: Request, reason: str, *, infeasible: bool, group: str = "") -> None:
        raise NotImplementedError

    def _refuse_if_hopeless(self, request: Request) -> None:
        raise NotImplementedError

    def _forget_if_idle(self, request: Request) -> None:
        raise NotImplementedError

    def _stop(self, worker: Worker, reason: str) -> None:
        raise NotImplementedError
