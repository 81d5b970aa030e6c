"""The simulated node: clients, the local scheduler's hands, how processes start and end (moray.node).

LIVENESS: a process is dead when the kernel says so, some time after the fact. What it had still sent is handled
before anybody is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from moray.core.local_scheduler import LocalScheduler
from moray.core.scheduler_actions import Action, Grant, Refuse, Revoke, Revoked, StartWorker, StopWorker
from moray.node.owned import OwnedObjects
from moray.protocol import messages as m
from tests.simulation.lease_book import LeaseBook
from tests.simulation.network import End, connect
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
#: The scheduler is not called by its own wish more often than this.
_TICK_S: Final = 0.001


class Client:
    """One driver or worker."""

    def __init__(self, process: Process, end: End) -> None:
        self.process = process
        self.end = end


class Node:
    """The machine's daemon."""

    dead = False
    stalled_until = 0.0

    def __init__(self, universe: Universe, capacity: int) -> None:
        self._universe = universe
        self.world = universe.world
        devices = {"GPU": universe.total["GPU"] // m.RESOURCE_UNIT} if "GPU" in universe.total else {}
        self.scheduler = LocalScheduler(universe.total, devices)
        self.book = LeaseBook(self.scheduler)
        self.store = Store(self.world, universe.memory, capacity, universe.failing_disk, self._send)
        self._objects = OwnedObjects(self.store)  # type: ignore[arg-type]
        self.clients: dict[bytes, Client] = {}
        #: Workers ordered and not here yet.
        self._starting: dict[bytes, Worker] = {}
        #: Jobs that have begun, and their drivers; those that are ending.
        self._drivers: dict[int, bytes] = {}
        self._ended: set[int] = set()
        self._wants_done: set[int] = set()
        self._born = 0
        self._due: float | None = None
        self._timer: Timer | None = None
        store_messages = (
            m.CreateObject, m.SealObject, m.PinObject, m.UnpinObjects, m.FreeObjects, m.AbortObject,
        )  # fmt: skip
        self._handlers: dict[type, Callable[[Client, Any], None]] = {
            m.RequestLeases: self._on_request,
            m.ReturnLease: lambda client, message: self.tell(
                "return_lease", client.process.name, message.lease, message.discard, self.world.now
            ),
            m.RevokedLease: lambda client, message: self.tell(
                "revoked", client.process.name, message.lease, self.world.now
            ),
            m.Blocked: lambda client, _: self.tell("blocked", client.process.name, self.world.now),
            m.Unblocked: lambda client, _: self.tell("unblocked", client.process.name, self.world.now),
            m.WorkerBusy: lambda client, message: self.tell("owns_objects", client.process.name, message.owns_objects),
            m.Shutdown: self._on_shutdown,
            **dict.fromkeys(store_messages, lambda client, message: self._objects.handle(client.process.name, message)),
        }
        self._performers: dict[type, Callable[[Any], None]] = {
            Grant: self._grant,
            Revoke: lambda action: self._send(action.worker, m.RevokeLease(action.lease)),
            Revoked: lambda action: self._send(action.owner, m.LeaseRevoked(action.lease)),
            Refuse: lambda action: self._send(
                action.owner, m.LeaseRefused(action.key, action.reason, action.infeasible)
            ),
            StartWorker: lambda action: self._start_worker(action.job, action.runtime_env),
            StopWorker: self._stop_worker,
        }

    # --- the scheduler ----------------------------------------------------------------------------

    def tell(self, event: str, *arguments: Any) -> None:
        """Tell the scheduler of an event and do what it says."""
        actions: list[Action] = getattr(self.scheduler, event)(*arguments)
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
        if action.worker in self.clients:
            self._send(action.owner, m.LeaseGranted(action.key, action.lease, action.worker, 0, "", action.devices))

    def _send(self, process: bytes, message: m.Message) -> None:
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
        elif self.clients.get(client.process.name) is client:
            self._handlers[type(message)](client, message)

    def _on_hello(self, client: Client) -> None:
        process = client.process
        if process.kind == "driver":
            self.clients[process.name] = client
            self._drivers[process.job] = process.name
            self.tell("job_started", process.job)
            return
        worker = self._starting.get(process.name)
        if worker is None or process.job in self._ended:
            self._universe.die(process, -9)
            return
        del self._starting[process.name]
        self.clients[process.name] = client
        self.tell("worker_started", process.name, process.job, worker.runtime_env, self.world.now)

    def _on_request(self, client: Client, wish: m.RequestLeases) -> None:
        self.tell(
            "request", client.process.name, client.process.job, wish.key, wish.count, wish.seen, wish.resources,
            wish.runtime_env, wish.label, self.world.now,
        )  # fmt: skip

    # --- workers -----------------------------------------------------------------------------------

    def _start_worker(self, job: int, runtime_env: str) -> None:
        slow = self._universe.faulty and self.world.chance(0.02)
        duration = self.world.random.random() * (_SLOW_FORK_S if slow else _FORK_S)
        if self._universe.faulty and self.world.chance(0.05):
            self.world.at(duration, "a fork fails", lambda: self._start_failed(job, runtime_env), self)
            return
        self._born += 1
        name = f"j{job}w{self._born}".ljust(12, ".").encode()
        worker = Worker(self._universe, name, job, runtime_env)
        self._starting[name] = worker
        self._universe.processes[name] = worker
        self.world.at(duration, f"{worker.title} is forked", lambda: self.attach(worker), worker)

    def _start_failed(self, job: int, runtime_env: str) -> None:
        if job not in self._ended:
            self.tell("worker_start_failed", job, runtime_env, "no memory", self.world.now)

    def _stop_worker(self, action: StopWorker) -> None:
        client = self.clients.get(action.worker)
        if client is None:
            return
        process = client.process
        if process.job in self._ended:
            self._universe.die(process, -9)
            return
        client.end.send(m.Shutdown(action.reason))
        self.world.at(_GRACE_S, "", lambda: self._universe.die(process, -9), self)

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
            if process.job not in self._ended:
                death = m.ProcessDied(process.name, 0, status, "it ended")
                for other in list(self.clients.values()):
                    if other.process.job == process.job:
                        other.end.send(death)
            self._release(process.name)
            self.tell("worker_died", process.name, self.world.now)
        self._look_whether_gone(process.job)

    def _release(self, name: bytes) -> None:
        self.store.process_died(name)
        self._objects.owner_died(name)

    # --- jobs ------------------------------------------------------------------------------------------

    def _driver_gone(self, process: Process) -> None:
        client = self.clients.get(process.name)
        if client is not None:
            client.end.drain()
        self._wants_done.discard(process.job)
        self._end_job(process.job)

    def _on_shutdown(self, client: Client, _message: m.Shutdown) -> None:
        self._wants_done.add(client.process.job)
        self._end_job(client.process.job)

    def _end_job(self, job: int) -> None:
        if job not in self._drivers:
            return
        if job not in self._ended:
            self._ended.add(job)
            self.tell("job_ended", job)
            for process in [*self._starting.values(), *(client.process for client in self.clients.values())]:
                if process.job == job and process.kind == "worker":
                    self._universe.die(process, -9)
        self._look_whether_gone(job)

    def _look_whether_gone(self, job: int) -> None:
        if job not in self._ended or job not in self._drivers:
            return
        workers = [*self._starting.values(), *(client.process for client in self.clients.values())]
        if any(process.job == job and process.kind == "worker" for process in workers):
            return
        driver = self._drivers.pop(job)
        self._release(driver)
        self.tell("owner_left", driver)
        if job in self._wants_done:
            self._send(driver, m.ShutdownDone())
        self.clients.pop(driver, None)

    def at_rest(self) -> bool:
        """Whether no job is left."""
        return not (self._drivers or self.clients or self._starting)
