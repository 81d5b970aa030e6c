"""The head's service for actors: carries out what the table of actors decides.

The table (:class:`~moray.core.actors.ActorTable`, ACTORS-1 to 6) hears what creators, workers, callers and the
scheduler say, and of every death. What it decides is carried out here, in order, even when one step makes the scheduler
answer at once.

A worker for an actor is asked of the scheduler by a permanent request, whose owner is the actor's id and whose key is
the incarnation: so the lease does not depend on any process's life, and is over when the worker is dead. A *detached*
actor gets a job of its own, without a driver, when it is registered, and keeps its creation here, opaque, because the
node starts it.

The same class serves a local session's node and the head of a cluster (:mod:`moray.head.actors`). What differs is who
reaches clients, finds workers and ends them: :class:`ActorClients`, :class:`ActorPlaces`, :class:`ActorWorkers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import msgspec

from moray.core.actor_actions import (
    ActorAction,
    Move,
    Names,
    Over,
    Place,
    Placed,
    Registered,
    Registration,
    Site,
    Start,
    Stop,
    Tell,
    WarnJob,
    Withdraw,
)
from moray.core.actors import ActorTable
from moray.core.performing import Performer
from moray.core.scheduler_actions import Grant, Refuse
from moray.node.clients import Client
from moray.node.leases import Leases
from moray.node.workers import Workers
from moray.protocol import messages as m
from moray.protocol.connection import UNDECODABLE
from moray.protocol.reactor import Reactor

#: Bytes of an actor's id.
_ACTOR_ID: Final = 16

_decode_creation: Final = msgspec.msgpack.Decoder(m.Creation).decode


class ActorEvents(Protocol):
    """What concerns the node's other parts."""

    def job_lives(self, job: int) -> bool: ...
    def begin_detached_job(self, origin: int, name: str) -> int: ...
    def end_detached_job(self, job: int) -> None: ...
    def warn_job(self, job: int, text: str) -> None: ...


class ActorClient(Protocol):
    """Who says something about actors."""

    @property
    def process(self) -> bytes: ...
    @property
    def pid(self) -> int: ...
    @property
    def job(self) -> int: ...
    def send(self, message: m.Message) -> None: ...


class ActorClients(Protocol):
    """How clients are reached."""

    def get(self, process: bytes) -> object | None:
        """None: it is dead."""

    def send(self, process: bytes, message: m.Message) -> None: ...
    def send_all(self, processes: Iterable[bytes], message: m.Message) -> None: ...


class ActorPlaces(Protocol):
    """Who finds a worker for an incarnation; answered by :meth:`Actors.placed_at` or :meth:`Actors.not_placed`."""

    def ask(self, made: Registration, job: int, incarnation: int) -> None: ...
    def withdraw(self, made: Registration, job: int, incarnation: int) -> None: ...


class ActorWorkers(Protocol):
    """Who ends a worker; answered by :meth:`Actors.worker_died`."""

    def stop(self, process: bytes, reason: str, graceful: bool) -> None: ...


class LocalPlaces:
    """Workers of this machine."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    def ask(self, made: Registration, job: int, incarnation: int) -> None:
        """Ask the scheduler for a worker."""
        self._request(made, job, incarnation, 1)

    def withdraw(self, made: Registration, job: int, incarnation: int) -> None:
        """It is not wanted any more."""
        self._request(made, job, incarnation, 0)

    def _request(self, made: Registration, job: int, incarnation: int, count: int) -> None:
        self._leases.request(
            made.actor,
            job,
            incarnation,
            count,
            0,
            made.resources,
            made.runtime_env,
            made.label,
            made.strategy,
            permanent=True,
            placement=made.placement,
        )


class LocalWorkers:
    """Ends workers of this machine."""

    def __init__(self, workers: Workers, clients: ActorClients, grace_s: float) -> None:
        self._workers = workers
        self._clients = clients
        self._grace_s = grace_s

    def stop(self, process: bytes, reason: str, graceful: bool) -> None:
        """Ask it to end, and kill it later; or kill it."""
        worker = self._workers.get(process)
        if worker is None:
            return  # It is dead, which is about to be told or was.
        if graceful:
            self._clients.send(process, m.Shutdown(reason))
            self._workers.grant_grace(worker, reason, self._grace_s)
        else:
            self._workers.kill(worker, reason)


class Actors:
    """The table's hands."""

    def __init__(
        self,
        clients: ActorClients,
        places: ActorPlaces,
        workers: ActorWorkers,
        reactor: Reactor,
        events: ActorEvents,
        table: ActorTable | None = None,
    ) -> None:
        self.table = ActorTable() if table is None else table
        self._clients = clients
        self._places = places
        self._reactor = reactor
        self._events = events
        #: The jobs of detached actors.
        self.detached: dict[bytes, int] = {}
        self._perform = Performer(
            {
                Place: self._place,
                Withdraw: lambda action: places.withdraw(action.made, self._job_of(action.made), action.incarnation),
                Registered: self._registered,
                Names: lambda action: clients.send(action.process, m.ActorNames(action.request, action.names)),
                Placed: self._placed,
                Start: self._start,
                Tell: self._tell,
                Move: self._move,
                Stop: lambda action: workers.stop(action.process, action.reason, action.graceful),
                WarnJob: lambda action: events.warn_job(action.job, action.text),
                Over: self._over,
            }
        )
        #: Messages of clients → what becomes of them.
        self.handlers: dict[type[m.Message], Callable[[ActorClient, Any], None]] = {
            m.RegisterActor: self._on_register,
            m.FindActor: lambda client, message: self._perform(
                self.table.find(client.process, message.request, message.name, message.namespace)
            ),
            m.ListActors: self._on_list,
            m.PlaceActor: lambda client, message: self._perform(self.table.ready(client.process, message.actor)),
            m.WatchActor: self._on_watch,
            m.KillActor: lambda _client, message: self._perform(self.table.kill(message.actor, message.no_restart)),
            m.ReleaseActor: lambda client, message: self._perform(self.table.release(client.process, message.actor)),
            m.ActorStarted: lambda client, message: self._perform(
                self.table.started(client.process, message.actor, message.incarnation, message.error)
            ),
            m.ActorExiting: lambda client, message: self._perform(
                self.table.exiting(client.process, message.actor, message.incarnation, message.reason)
            ),
        }

    # --- what happens elsewhere in the node -------------------------------------------------------

    def granted(self, grant: Grant, worker: Client) -> None:
        """The scheduler has a worker."""
        site = Site(worker.process, worker.pid, worker.address, worker.job, grant.devices)
        self.placed_at(grant.owner, grant.key, site)

    def refused(self, refusal: Refuse) -> None:
        """The scheduler has none for now; or never, because the placement group is gone."""
        if refusal.group:
            self._perform(self.table.end(refusal.owner, refusal.reason))
            return
        self.not_placed(refusal.owner, refusal.key, refusal.reason, refusal.infeasible)

    def placed_at(self, actor: bytes, incarnation: int, site: Site) -> None:
        """There is a worker for an incarnation (ActorPlaces)."""
        self._perform(self.table.granted(actor, incarnation, site))

    def not_placed(self, actor: bytes, incarnation: int, reason: str, infeasible: bool) -> None:
        """There is none for now (ActorPlaces)."""
        self._perform(self.table.refused(actor, incarnation, reason, infeasible))

    def group_removed(self, group: str, reason: str) -> None:
        """A placement group (its id is hexadecimal) is gone."""
        self._perform(self.table.group_removed(group, reason))

    def worker_died(self, process: bytes, reason: str, stderr: str) -> None:
        """A worker is dead, and its owners have been told."""
        self._perform(self.table.worker_died(process, reason, stderr))
        self._perform(self.table.process_died(process))

    def process_left(self, process: bytes) -> None:
        """A process that is no actor is dead: what it created and what it watched."""
        self._perform(self.table.process_died(process))

    def died(self, death: m.ProcessDied) -> None:
        """The same, as the node tells it."""
        self.worker_died(death.process, death.reason, death.stderr)

    def driver_left(self, process: bytes, job: int) -> None:
        """A driver is dead, or has said goodbye; its job ends."""
        self._perform(self.table.process_died(process))
        self._perform(self.table.job_ended(job))

    # --- messages ---------------------------------------------------------------------------------

    def _on_register(self, client: ActorClient, message: m.RegisterActor) -> None:
        spec = message.spec
        problem = self._register_problem(client, spec)
        if problem:
            if message.request:
                client.send(m.ActorRegistered(message.request, b"", reason=problem))
            else:
                client.send(m.ActorState(spec.actor, "dead", 0, reason=problem))
            return
        made = Registration(
            actor=spec.actor,
            creator=client.process,
            creator_pid=client.pid,
            job=client.job,
            class_name=spec.class_name,
            name=spec.name,
            namespace=spec.namespace,
            detached=spec.detached,
            max_restarts=spec.max_restarts,
            get_if_exists=spec.get_if_exists,
            waiting=spec.waiting,
            resources=spec.resources,
            placement=spec.placement,
            runtime_env=spec.runtime_env,
            meta=spec.meta,
            creation=spec.creation if spec.detached else b"",
            strategy=spec.strategy,
        )
        self._perform(self.table.register(made, message.request))

    def _register_problem(self, client: ActorClient, spec: m.ActorSpec) -> str:
        """Why this cannot be registered; "" if it can."""
        if len(spec.actor) != _ACTOR_ID:
            return f"an actor's id has {_ACTOR_ID} bytes, not {len(spec.actor)}"
        if not self._events.job_lives(client.job):
            return f"its job {client.job} has ended"
        if spec.detached:
            try:
                _decode_creation(spec.creation)
            except UNDECODABLE as error:
                return f"what makes the detached actor cannot be read: {error}"
        return ""

    def _on_list(self, client: ActorClient, message: m.ListActors) -> None:
        if message.describe:
            self._clients.send(client.process, m.ActorNames(message.request, [], self.table.describe()))
        else:
            self._perform(self.table.names(client.process, message.request, message.namespace))

    def _on_watch(self, client: ActorClient, message: m.WatchActor) -> None:
        creator_lives = self._clients.get(message.creator) is not None
        self._perform(self.table.watch(client.process, message.actor, message.creator, creator_lives))

    # --- carrying out -------------------------------------------------------------------------------

    def _place(self, action: Place) -> None:
        made = action.made
        if made.detached and made.actor not in self.detached:
            if not self._events.job_lives(made.job):
                # It was ready only now, and its creator, elsewhere, did not know yet.
                self._perform(self.table.end(made.actor, f"its creator's job {made.job} has ended"))
                return
            self.detached[made.actor] = self._events.begin_detached_job(made.job, made.label)
        if action.delay_s:
            self._reactor.call_later(action.delay_s, lambda: self._place_late(action))
        else:
            self._ask(action)

    def _place_late(self, action: Place) -> None:
        if self.table.is_waiting(action.actor, action.incarnation):
            self._ask(action)

    def _ask(self, action: Place) -> None:
        self._places.ask(action.made, self._job_of(action.made), action.incarnation)

    def _job_of(self, made: Registration) -> int:
        """The job whose worker it is to be."""
        return self.detached.get(made.actor, made.job)

    def _registered(self, action: Registered) -> None:
        answer = m.ActorRegistered(action.request, action.actor, action.meta, action.creator, action.reason)
        self._clients.send(action.process, answer)

    def _placed(self, action: Placed) -> None:
        site = action.site
        self._clients.send(
            action.creator,
            m.ActorPlaced(action.actor, action.incarnation, site.process, site.pid, site.address, site.devices),
        )

    def _start(self, action: Start) -> None:
        site, creation = action.site, _decode_creation(action.creation)
        self._clients.send(
            site.process, m.StartActor(action.actor, action.incarnation, 0, creation, devices=site.devices)
        )

    def _tell(self, action: Tell) -> None:
        site = action.site
        state = m.ActorState(
            actor=action.actor,
            state=action.state,
            incarnation=action.incarnation,
            process=site.process,
            pid=site.pid,
            address=site.address,
            job_id=site.job,
            reason=action.reason,
            error=action.error,
            restarts_left=action.restarts_left,
            begun=action.begun,
        )
        self._clients.send_all(action.processes, state)

    def _move(self, action: Move) -> None:
        message = m.MoveActor(action.actor, action.incarnation, action.reason, action.deadline)
        self._clients.send(action.process, message)

    def move(self, actions: Iterable[ActorAction]) -> None:
        """Carry out what the table says of actors whose node leaves."""
        self._perform(actions)

    def _over(self, action: Over) -> None:
        job = self.detached.pop(action.actor, None)
        if job is not None:
            self._events.end_detached_job(job)
