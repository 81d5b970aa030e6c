"""Carries out what the local scheduler decides, and keeps its clock.

The scheduler (:class:`~moray.core.local_scheduler.LocalScheduler`, rules LEASE and OWNER-STAYS) is told each event
together with the time, and returns actions, which are carried out here in their order. It says when it wants to be
called again; that is looked at once a turn of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final, Protocol

from moray import config
from moray.core.local_scheduler import LocalScheduler
from moray.core.scheduler_actions import (
    Action,
    BundlesReady,
    Grant,
    Refuse,
    Revoke,
    Revoked,
    StartWorker,
    StopWorker,
    Warn,
)
from moray.core.strategies import Strategy, refusal
from moray.node.clients import Client, Clients
from moray.node.impatient import Impatient
from moray.protocol import messages as m
from moray.protocol.reactor import Alarm, Reactor

#: Owners with ids of this length are actors (see :mod:`moray.node.actors`); others are processes.
_ACTOR_ID: Final = 16

#: The scheduler is not called by its own wish more often than this, whatever it says.
_TICK_S: Final = 0.001


class LeaseEvents(Protocol):
    """What the scheduler wants done to processes and users."""

    def start_worker(self, job: int, runtime_env: str) -> None: ...
    def stop_worker(self, process: bytes, reason: str, *, now: bool = False) -> None: ...
    def warn_job(self, job: int, text: str) -> None: ...
    def actor_granted(self, grant: Grant, worker: Client) -> None: ...
    def actor_refused(self, refusal: Refuse) -> None: ...
    def bundles_ready(self, ready: BundlesReady) -> None: ...
    def worker_address(self, owner: bytes, key: int, worker: Client) -> str: ...


class Leases:
    """The scheduler's hands."""

    def __init__(
        self,
        total: dict[str, int],
        devices: dict[str, int],
        reactor: Reactor,
        clients: Clients,
        events: LeaseEvents,
        node_id: bytes = b"",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        warn_after_s = config.env_float("WARN_AFTER_S", config.WARN_AFTER_S)
        self.scheduler = LocalScheduler(total, devices, warn_after_s or float("inf"))
        self._reactor = reactor
        self._events = events
        self._clients = clients
        self._node_id = node_id
        self._labels = labels or {}
        self._impatient = Impatient(reactor, self.scheduler.explain)
        self._alarm = Alarm(reactor, self.scheduler.next_tick, self._tick, _TICK_S)
        self._performers: dict[type[Any], Callable[[Any], None]] = {
            Grant: self._grant,
            Revoke: lambda action: clients.send(action.worker, m.RevokeLease(action.lease)),
            Revoked: lambda action: clients.send(action.owner, m.LeaseRevoked(action.lease)),
            Refuse: self._refuse,
            StartWorker: lambda action: events.start_worker(action.job, action.runtime_env),
            StopWorker: lambda action: events.stop_worker(action.worker, action.reason),
            Warn: lambda action: events.warn_job(action.job, action.text),
            BundlesReady: events.bundles_ready,
        }
        #: Messages of owners and workers → what becomes of them.
        self.handlers: dict[type[m.Message], Callable[[Client, Any], None]] = {
            m.RequestLeases: self.on_request,
            m.ReturnLease: self.on_return,
            m.RevokedLease: self._on_revoked,
            m.Blocked: self._on_blocked,
            m.Unblocked: self._on_unblocked,
            m.WorkerBusy: self._on_busy,
        }
        reactor.hooks.append(self._alarm.arm)

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
        strategy: Strategy | None,
        *,
        permanent: bool = False,
        placement: dict[str, int] | None = None,
    ) -> None:
        """Tell the scheduler of an owner's wish, which its strategy may bar from this node (see `LocalScheduler`)."""

        def state(barred: str) -> None:
            self.perform(
                self.scheduler.request(
                    owner,
                    job,
                    key,
                    count,
                    seen,
                    resources,
                    runtime_env,
                    label,
                    monotonic(),
                    permanent=permanent,
                    placement=placement,
                    barred=barred,
                )
            )

        barred = refusal(strategy, self._node_id, self._labels) if count else ""
        if strategy is not None and strategy.fail:
            self._impatient.update((owner, key), state if count and not barred else None)
        state(barred)

    def perform(self, actions: list[Action]) -> None:
        """Carry out what the scheduler said."""
        for action in actions:
            self._performers[type(action)](action)

    def _grant(self, action: Grant) -> None:
        worker = self._clients.get(action.worker)
        if worker is None:
            return  # Its death is about to be told to the scheduler.
        if len(action.owner) == _ACTOR_ID:
            self._events.actor_granted(action, worker)
        else:
            address = self._events.worker_address(action.owner, action.key, worker)
            granted = m.LeaseGranted(action.key, action.lease, action.worker, worker.pid, address, action.devices)
            self._clients.send(action.owner, granted)

    def _refuse(self, action: Refuse) -> None:
        if len(action.owner) == _ACTOR_ID:
            self._events.actor_refused(action)
        elif not action.group:  # Of a group's end its owners hear from the head.
            self._clients.send(action.owner, m.LeaseRefused(action.key, action.reason, action.infeasible))

    # --- messages ---------------------------------------------------------------------------------

    def on_request(self, client: Client, wish: m.RequestLeases) -> None:
        self.request(
            client.process,
            client.job,
            wish.key,
            wish.count,
            wish.seen,
            wish.resources,
            wish.runtime_env,
            wish.label,
            wish.strategy,
        )

    def on_return(self, client: Client, message: m.ReturnLease) -> None:
        # Not `message.broken` itself: if this crossed a revocation, that may be somebody else's worker by now.
        broken = self.scheduler.worker_of(client.process, message.lease) if message.broken else b""
        self.perform(self.scheduler.return_lease(client.process, message.lease, message.discard, monotonic()))
        if broken:
            # It may be in C code that never ends, and what it would still say is lost: there is nothing to wait for.
            self._events.stop_worker(broken, "its owner lost the connection to it, or gave it up", now=True)

    def _on_revoked(self, client: Client, message: m.RevokedLease) -> None:
        self.perform(self.scheduler.revoked(client.process, message.lease, monotonic()))

    def _on_blocked(self, client: Client, _message: m.Blocked) -> None:
        self.perform(self.scheduler.blocked(client.process, monotonic()))

    def _on_unblocked(self, client: Client, _message: m.Unblocked) -> None:
        self.perform(self.scheduler.unblocked(client.process, monotonic()))

    def _on_busy(self, client: Client, message: m.WorkerBusy) -> None:
        self.perform(self.scheduler.owns_objects(client.process, message.owns_objects))
        if message.request:
            client.send(m.StoreDone(message.request))

    # --- time ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.perform(self.scheduler.tick(monotonic()))
