"""The simulated node: clients, the local scheduler's hands, how processes start and end (moray.node).

The head's service for actors is the real one.

LIVENESS: a process is dead when the kernel says so, some time after the fact. What it had still sent is handled
before anybody is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moray.core.local_scheduler import LocalScheduler
from moray.core.scheduler_actions import Action, Grant, Refuse, Revoke, Revoked, StartWorker, StopWorker
from moray.node.actors import Actors, LocalPlaces, LocalWorkers
from moray.node.owned import OwnedObjects
from moray.protocol import messages as m
from tests.simulation.lease_book import LeaseBook
from tests.simulation.network import End, connect
from tests.simulation.node_actors import STOP_GRACE_S, ClientView, LeaseView, ReactorView, WorkerView
from tests.simulation.process import Process
from tests.simulation.store import Store
from tests.simulation.worker import Worker
from tests.simulation.world import Timer

if TYPE_CHECKING:
    from tests.simulation.universe import Universe

#: A worker that was asked to end is killed after so long.
_GRACE_S: Final = 5.0
#: How long a fork takes: most often, and when an environment is being built.
_FORK_S: Final = 0.02
_SLOW_FORK_S: Final = 2.5
#: Owners with ids of this length are actors.
ACTOR_ID: Final = 16
#: The scheduler is not called by its own wish more often than this.
_TICK_S: Final = 0.001


class Client:
    """One driver or worker."""

    pid = 0
    address = ""

    def __init__(self, body: Process, end: End) -> None:
        self.body = body
        self.process = body.name
        self.job = body.job
        self.end = end

    def send(self, message: m.Message) -> None:
        self.end.send(message)


@dataclass
class Job:
    """One job."""

    #: b"": a detached actor's.
    driver: bytes
    ended: bool = False
    #: Its driver wants to hear when it is gone.
    wants_done: bool = False


class Node:
    """The machine's daemon."""

    dead = False
    stalled_until = 0.0

    def __init__(self, universe: Universe, capacity: int) -> None:
        self.universe = universe
        self.world = universe.world
        devices = {"GPU": universe.total["GPU"] // m.RESOURCE_UNIT} if "GPU" in universe.total else {}
        self.scheduler = LocalScheduler(universe.total, devices)
        self.book = LeaseBook(self.scheduler)
        self.store = Store(self.world, universe.memory, capacity, universe.failing_disk, self.send)
        self._objects = OwnedObjects(self.store)  # type: ignore[arg-type]
        self.clients: dict[bytes, Client] = {}
        #: Workers ordered and not here yet.
        self._starting: dict[bytes, Worker] = {}
        self._jobs: dict[int, Job] = {}
        #: Jobs of detached actors have the numbers after that.
        self._last_job = 100
        self._born = 0
        self._due: float | None = None
        self._timer: Timer | None = None
        clients: Any = ClientView(self)
        leases: Any = LeaseView(self)
        workers: Any = WorkerView(self)
        reactor: Any = ReactorView(self)
        events: Any = self
        stopper = LocalWorkers(workers, clients, STOP_GRACE_S)
        self.actors = Actors(clients, LocalPlaces(leases), stopper, reactor, events)
        store_messages = (
            m.CreateObject, m.SealObject, m.PinObject, m.UnpinObjects, m.FreeObjects, m.AbortObject,
        )  # fmt: skip
        self._handlers: dict[type, Callable[[Client, Any], None]] = {
            m.RequestLeases: self._on_request,
            m.ReturnLease: self._on_return,
            m.RevokedLease: lambda client, message: self.tell("revoked", client.process, message.lease, self.world.now),
            m.Blocked: lambda client, _: self.tell("blocked", client.process, self.world.now),
            m.Unblocked: lambda client, _: self.tell("unblocked", client.process, self.world.now),
            m.WorkerBusy: lambda client, message: self.tell("owns_objects", client.process, message.owns_objects),
            m.Shutdown: self._on_shutdown,
            **self.actors.handlers,
            **dict.fromkeys(store_messages, lambda client, message: self._objects.handle(client.process, message)),
        }
        self._performers: dict[type, Callable[[Any], None]] = {
            Grant: self._grant,
            Revoke: lambda action: self.send(action.worker, m.RevokeLease(action.lease)),
            Revoked: lambda action: self.send(action.owner, m.LeaseRevoked(action.lease)),
            Refuse: self._refuse,
            StartWorker: lambda action: self._start_worker(action.job, action.runtime_env),
            StopWorker: self._stop_worker,
        }

    # --- the scheduler ----------------------------------------------------------------------------

    def tell(self, event: str, *arguments: Any) -> None:
        """Tell the scheduler of an event and do what it says."""
        self.observe(event, arguments, getattr(self.scheduler, event)(*arguments))

    def observe(self, event: str, arguments: tuple[Any, ...], actions: list[Action]) -> None:
        """Do what the scheduler said of an event."""
        self.book.observe(event, arguments, actions)
        for action in actions:
            if performer := self._performers.get(type(action)):
                performer(action)
        self.scheduler.validate()
        self._arm()

    def _arm(self) -> None:
        due = self.scheduler.next_tick()
        if due == self._due:
            return
        self._due = due
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self.world.at(max(_TICK_S, due - self.world.now), "", self._tick, self)

    def _tick(self) -> None:
        self._timer = self._due = None
        self.tell("tick", self.world.now)

    def _grant(self, action: Grant) -> None:
        worker: Any = self.clients.get(action.worker)
        if worker is None:
            return
        if len(action.owner) == ACTOR_ID:
            self.actors.granted(action, worker)
        else:
            self.send(action.owner, m.LeaseGranted(action.key, action.lease, action.worker, 0, "", action.devices))

    def _refuse(self, action: Refuse) -> None:
        if len(action.owner) == ACTOR_ID:
            self.actors.refused(action)
        else:
            self.send(action.owner, m.LeaseRefused(action.key, action.reason, action.infeasible))

    def _on_return(self, client: Client, message: m.ReturnLease) -> None:
        broken = self.scheduler.worker_of(client.process, message.lease) if message.broken else b""
        self.tell("return_lease", client.process, message.lease, message.discard, self.world.now)
        if broken in self.clients:
            self.universe.die(self.clients[broken].body, -9)

    def send(self, process: bytes, message: m.Message) -> None:
        client = self.clients.get(process)
        if client is not None:
            client.end.send(message)

    # --- who is here --------------------------------------------------------------------------------

    def attach(self, process: Process) -> None:
        """A process connects and says Hello."""
        here = End(self.world, self, f"{process.title}>node", self._on_message, lambda _end: None)
        there = End(self.world, process, f"node>{process.title}", process.on_message, lambda _end: None)
        connect(here, there)
        here.peer = Client(process, here)
        process.node = there
        process.ends.append(there)
        there.send(m.Hello(m.PROTOCOL_VERSION, process.kind, process.name, 0, job_id=process.job))

    def _on_message(self, end: End, message: Any) -> None:
        client: Client = end.peer
        if isinstance(message, m.Hello):
            self._on_hello(client)
        elif self.clients.get(client.process) is client:
            self._handlers[type(message)](client, message)
            self.actors.table.validate()

    def _on_hello(self, client: Client) -> None:
        process = client.body
        if process.kind == "driver":
            self.clients[process.name] = client
            self._begin_job(process.job, process.name)
            return
        worker = self._starting.get(process.name)
        if worker is None or self._jobs[process.job].ended:
            self.universe.die(process, -9)
            return
        del self._starting[process.name]
        self.clients[process.name] = client
        self.tell("worker_started", process.name, process.job, worker.runtime_env, self.world.now)

    def _on_request(self, client: Client, wish: m.RequestLeases) -> None:
        self.tell(
            "request", client.process, client.job, wish.key, wish.count, wish.seen, wish.resources,
            wish.runtime_env, wish.label, self.world.now,
        )  # fmt: skip

    # --- workers -----------------------------------------------------------------------------------

    def _start_worker(self, job: int, runtime_env: str) -> None:
        slow = self.universe.faulty and self.world.chance(0.02)
        duration = self.world.random.random() * (_SLOW_FORK_S if slow else _FORK_S)
        if self.universe.faulty and self.world.chance(0.05):
            self.world.at(duration, "a fork fails", lambda: self._start_failed(job, runtime_env), self)
            return
        self._born += 1
        name = f"j{job}w{self._born}".ljust(12, ".").encode()
        worker = Worker(self.universe, name, job, runtime_env)
        self._starting[name] = worker
        self.universe.processes[name] = worker
        self.world.at(duration, f"{worker.title} is forked", lambda: self.attach(worker), worker)

    def _start_failed(self, job: int, runtime_env: str) -> None:
        if self.job_lives(job):
            self.tell("worker_start_failed", job, runtime_env, "no memory", self.world.now)

    def _stop_worker(self, action: StopWorker) -> None:
        client = self.clients.get(action.worker)
        if client is None:
            return
        process = client.body
        if not self.job_lives(process.job):
            self.universe.die(process, -9)
            return
        client.end.send(m.Shutdown(action.reason))
        self.world.at(_GRACE_S, "", lambda: self.universe.die(process, -9), self)

    def gone(self, process: Process, status: int) -> None:
        """The kernel says that a process has ended."""
        if process.kind == "driver":
            self._driver_gone(process)
            return
        client = self.clients.get(process.name)
        if (starting := self._starting.pop(process.name, None)) is not None:
            self._start_failed(process.job, starting.runtime_env)
        elif client is not None:
            client.end.drain()
            del self.clients[process.name]
            self._tell_death(process.name, status)
            self._release(process.name)
            self.tell("worker_died", process.name, self.world.now)
            self.actors.worker_died(process.name, "it ended", "")
            self.actors.table.validate()
        self._look_whether_gone(process.job)

    def _tell_death(self, process: bytes, status: int) -> None:
        """Tell everybody whose job goes on: actors may be called across jobs."""
        death = m.ProcessDied(process, 0, status, "it ended")
        for other in list(self.clients.values()):
            if self.job_lives(other.job):
                other.end.send(death)

    def _release(self, name: bytes) -> None:
        self.store.process_died(name)
        self._objects.owner_died(name)

    # --- jobs ------------------------------------------------------------------------------------------

    def _begin_job(self, job: int, driver: bytes) -> None:
        self._jobs[job] = Job(driver)
        self.tell("job_started", job)

    def job_lives(self, job: int) -> bool:
        """Whether a job goes on (ActorEvents)."""
        return job in self._jobs and not self._jobs[job].ended

    def begin_detached_job(self, _origin: int, _name: str) -> int:
        """A job for a detached actor (ActorEvents)."""
        self._last_job += 1
        self._begin_job(self._last_job, b"")
        return self._last_job

    def end_detached_job(self, job: int) -> None:
        """The actor is dead (ActorEvents)."""
        self._end_job(job, False)

    def warn_job(self, _job: int, _text: str) -> None:
        """See ActorEvents."""

    def _driver_gone(self, process: Process) -> None:
        client = self.clients.get(process.name)
        if client is not None:
            client.end.drain()
        if process.job in self._jobs:
            self._jobs[process.job].wants_done = False
            self._end_job(process.job, False)
        self.clients.pop(process.name, None)

    def _on_shutdown(self, client: Client, _message: m.Shutdown) -> None:
        self._end_job(client.job, True)

    def _end_job(self, number: int, wants_done: bool) -> None:
        job = self._jobs[number]
        if not job.ended:
            job.ended, job.wants_done = True, wants_done
            self.tell("job_ended", number)
            if job.driver:
                self._tell_death(job.driver, 0)
                self.actors.driver_left(job.driver, number)
            for process in [*self._starting.values(), *(client.body for client in self.clients.values())]:
                if process.job == number and process.kind == "worker":
                    self.universe.die(process, -9)
        self._look_whether_gone(number)

    def _look_whether_gone(self, number: int) -> None:
        job = self._jobs.get(number)
        if job is None or not job.ended:
            return
        workers = [*self._starting.values(), *(client.body for client in self.clients.values())]
        if any(process.job == number and process.kind == "worker" for process in workers):
            return
        del self._jobs[number]
        if job.driver:
            self._release(job.driver)
            self.tell("owner_left", job.driver)
            if job.wants_done:
                self.send(job.driver, m.ShutdownDone())
            self.clients.pop(job.driver, None)

    def at_rest(self) -> bool:
        """Whether no job is left."""
        return not (self._jobs or self.clients or self._starting)

    def actors_left(self) -> list[str]:
        """Actors, names and jobs of detached actors that are not gone."""
        table = self.actors.table
        left = [f"{actor['class_name']} {actor['state']}" for actor in table.describe() if actor["state"] != "dead"]
        left += [str(name) for name in table._names]
        return left + [f"job {number}" for number in self.actors.detached.values()]
