"""The node: its parts, and what each event means for which of them.

A single thread turns one loop. Events come from connections (:meth:`Node._on_message`), from templates and pidfds
(through :class:`~moray.node.workers.Workers`), from the scheduler (through :class:`~moray.node.leases.Leases`) and from
signals. The parts do not know each other; what concerns several of them is here. LIVENESS: a process is dead when its
pidfd or its parent says so; the end of a connection means only that it must be made anew.

**A worker's end**, in this order: what it had still sent is handled; owners of its job are told; the store and the
scheduler take back what it held. **A driver's end** ends its job (:mod:`~moray.node.jobs`); the end of the driver that
started the node ends the session (:mod:`~moray.node.session`), and so does SIGTERM.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from itertools import count
from socket import socket
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from moray.core.placement_types import PlacementNode
from moray.core.scheduler_actions import BundlesReady, Grant, Refuse
from moray.core.strategies import NODE_ID_LABEL
from moray.ids import tag_of
from moray.launch import session_directory
from moray.launch.config import NodeConfig
from moray.launch.resources import (
    LOCAL_NAMES,
    complete_devices,
    complete_resources,
    named_resources,
    store_bytes,
)
from moray.launch.session_directory import NODE_SOCKET
from moray.launch.spilling import spill_places
from moray.node import session
from moray.node.actors import Actors, LocalPlaces, LocalWorkers
from moray.node.clients import Client, Clients, PidWatch, peer_pidfd
from moray.node.cluster_state import cluster_state, job_state
from moray.node.deaths import DeathReasons
from moray.node.groups import Groups, LocalBundles, OneNode
from moray.node.jobs import Job, TemplateConfigs
from moray.node.leases import Leases
from moray.node.logs import log, tail
from moray.node.orphans import Orphans
from moray.node.owned import OwnedObjects
from moray.node.packages import Packages
from moray.node.rejoin import begin_anew
from moray.node.server import Newcomer, Server
from moray.node.settings import Settings
from moray.node.signals import Signals
from moray.node.template_messages import TemplateConfig
from moray.node.templates import Templates
from moray.node.values import LocalValues
from moray.node.workers import Worker, Workers
from moray.platform.machine import gpu_names
from moray.protocol import messages as m
from moray.protocol.connection import Connection
from moray.protocol.reactor import Reactor
from moray.store.server import StoreServer

if TYPE_CHECKING:
    from moray.launch.config import ClusterConfig
    from moray.node.cluster import Cluster
    from moray.node.cluster_actors import ClusterActors

#: How long owners may take to read what a dead worker's mark says.
_FILES_KEPT_S: Final = 60.0
#: Jobs that ended and are still told of.
_PAST_JOBS: Final = 100


class Node:
    """All of the node. `root`, `root_pid`: the root template's socket and process."""

    def __init__(
        self,
        config: NodeConfig,
        settings: Settings,
        root: socket,
        root_pid: int,
        owner_pidfd: int,
        on_joined: Callable[[str, str], None],
    ) -> None:
        """`on_joined`: see :class:`~moray.node.cluster.Cluster`."""
        self.config = config
        self.node_id = (config.cluster.node_id if config.cluster else b"") or os.urandom(28)
        self.address = f"{config.session_dir}/{NODE_SOCKET}"
        self.reactor = Reactor()
        self._settings = settings
        #: Calls that the store's disk thread asks the loop to make.
        self._posted: deque[Callable[[], None]] = deque()
        self.reactor.hooks.append(self._run_posted)
        self.jobs: dict[int, Job] = {}
        #: The last that ended, as `cluster_state` tells of them.
        self.past_jobs: deque[dict[str, Any]] = deque(maxlen=_PAST_JOBS)
        self._job_numbers = count(1)
        self.clients = Clients()
        self._orphans = Orphans(root_pid, self.reactor)
        self._reasons = DeathReasons()
        self._templates = Templates(root, self.reactor, self, dict(os.environ))
        self.workers = Workers(
            config.session_dir, tag_of(self.node_id), self.reactor, self._templates, self._orphans, self, settings
        )
        self.packages = Packages(config.session_dir, tag_of(self.node_id), self._post, self.job_lives)
        self._template_configs = TemplateConfigs(
            config.session, config.session_dir, self.address, config.worker_entry, self.packages
        )
        self.arena_bytes = store_bytes(config.object_store_memory)
        spill, targets = spill_places(config)
        self.store = StoreServer(self.arena_bytes, spill, self.clients.send, self.warn_all, self._post, targets=targets)
        self.objects = OwnedObjects(self.store)
        named = named_resources(config.cluster.node_ip, config.cluster.start_head) if config.cluster else LOCAL_NAMES
        total = complete_resources(config.resources, self.arena_bytes, named)
        #: Device resources and how many indices each has.
        self.devices = devices = complete_devices(config.devices, total)
        #: Its part in a cluster; None: a local session.
        self.cluster: Cluster | None = None
        labels = {NODE_ID_LABEL: self.node_id.hex(), **config.labels}
        self.leases = Leases(total, devices, self.reactor, self.clients, self, self.node_id, labels)
        stopper = LocalWorkers(self.workers, self.clients, settings.actor_stop_grace_s)
        self.actors = Actors(self.clients, LocalPlaces(self.leases), stopper, self.reactor, self)
        self.bundles = LocalBundles(self.leases, self._bundles_reserved)
        self.groups = Groups(self.clients, OneNode(self.bundles.reserve), self.reactor, self)
        self.groups.node_changed(PlacementNode(self.node_id, total, total, labels, frozenset(devices)))
        #: What becomes of a client's message.
        self._handlers = self._make_handlers()
        Signals(
            self.reactor,
            {
                signal.SIGCHLD: self._reap,
                signal.SIGTERM: lambda: self.end_session("the node was told to end (SIGTERM)"),
            },
        )
        self._owner_watch: PidWatch | None = None
        if owner_pidfd >= 0:
            self._owner_watch = PidWatch(owner_pidfd, self.reactor, lambda: self.end_session("its driver has ended"))
        #: Who has to do with actors here: the head's service itself, or this node's part of it.
        self.hosting: Actors | ClusterActors = self.actors
        if config.cluster is not None:
            self._join(config.cluster, stopper, on_joined)
        session_directory.write_node_id(config.session_dir, self.node_id)
        self._server = Server(self.address, self.reactor, settings, self._on_hello)

    def _make_handlers(self) -> dict[type[m.Message], Callable[[Client, Any], None]]:
        return {
            **self.leases.handlers,
            **self.actors.handlers,
            **self.groups.handlers,
            **dict.fromkeys(
                (m.CreateObject, m.SealObject, m.PinObject, m.UnpinObjects, m.FreeObjects, m.AbortObject),
                lambda client, message: self.objects.handle(client.process, message),
            ),
            m.ClusterInfo: lambda client, message: client.send(m.ClusterState(message.request, cluster_state(self))),
            m.KvRequest: LocalValues().on_request,
            m.Shutdown: self._on_shutdown,
            m.MadePackages: lambda client, message: self.packages.adopt(client.job, message.made),
        }

    def _join(self, config: ClusterConfig, workers: LocalWorkers, on_joined: Callable[[str, str], None]) -> None:
        """Become one node of several."""
        # Not needed by a local session, and half as large as all the rest.
        from moray.node.cluster import Cluster, first_lease
        from moray.node.cluster_actors import ClusterActors

        self.cluster = cluster = Cluster(self, config, on_joined)
        self.hosting = cluster.actors = ClusterActors(self, cluster, workers)
        self._handlers |= cluster.handlers | cluster.actors.handlers
        self.leases.scheduler.number_leases_from(first_lease(self.node_id))

    def run(self) -> NoReturn:
        """Turn the loop until the session ends."""
        if self.cluster is not None:
            self.cluster.start()
        with self.reactor.lead:
            while True:
                self.reactor.turn()

    # --- other threads ------------------------------------------------------------------------------

    def _post(self, call: Callable[[], None]) -> None:
        self._posted.append(call)
        self.reactor.wake()

    def _run_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    # --- who connects ---------------------------------------------------------------------------------

    def _on_hello(self, newcomer: Newcomer, hello: m.Hello) -> None:
        if hello.version != m.PROTOCOL_VERSION:
            newcomer.refuse(f"it speaks protocol {hello.version}, this node {m.PROTOCOL_VERSION}")
        elif hello.pid != newcomer.pid or len(hello.process) != 12:
            newcomer.refuse(f"it says that it is process {hello.pid}, but the kernel says {newcomer.pid}")
        elif (client := self.clients.get(hello.process)) is not None:
            self._on_return(newcomer, hello, client)
        elif hello.kind == "driver" and hello.job is not None:
            self._on_driver(newcomer, hello, hello.job)
        elif hello.kind == "worker":
            self._on_worker(newcomer, hello)
        else:
            newcomer.refuse(f"a node accepts drivers and workers, not {hello.kind!r}")

    def _on_return(self, newcomer: Newcomer, hello: m.Hello, client: Client) -> None:
        """A client that lost its connection resumes (LIVENESS)."""
        if client.pid != hello.pid or client.kind != hello.kind:
            newcomer.refuse("its process id is another process's")
        elif not client.may_resume():
            newcomer.refuse("it was away for too long: messages for it had to be dropped")
        elif self._welcome(newcomer, client.kind, self.jobs[client.job]):
            self._connect(newcomer, client)

    def _on_driver(self, newcomer: Newcomer, hello: m.Hello, config: m.JobConfig) -> None:
        pidfd = peer_pidfd(newcomer.sock, hello.pid)
        if pidfd is None:
            newcomer.close()
            return
        if self.cluster is None:
            self._admit_driver(newcomer, hello, config, pidfd, next(self._job_numbers))
            return
        newcomer.hold()
        self.cluster.begin_job(hello, config, lambda number: self._admit_driver(newcomer, hello, config, pidfd, number))

    def _admit_driver(self, newcomer: Newcomer, hello: m.Hello, config: m.JobConfig, pidfd: int, number: int) -> None:
        address = hello.address or f"{self.config.session_dir}/{hello.process.hex()}.sock"
        client = Client("driver", hello.process, hello.pid, address, number, self._settings.backlog_messages)
        owner_is_here = any(job.owns_session for job in self.jobs.values())
        # A cluster's node that was started to take work outlives its drivers, also one that started it.
        private = self.config.cluster is None or self.config.cluster.driver_only
        owns = private and hello.pid == self.config.driver_pid and not owner_is_here
        job = Job(number, config, client, owns, number)
        if not self._welcome(newcomer, "driver", job):
            os.close(pidfd)
            if self.cluster is not None:
                # It went while its number was fetched, and nobody else will tell the head.
                self.hosting.driver_left(hello.process, number)
            return
        self.clients.add(client)
        job.watch = PidWatch(pidfd, self.reactor, lambda: self._driver_died(job, client))
        log(f"job {number}: driver {hello.pid}, {config.entrypoint}")
        self.begin_job(job)
        self._connect(newcomer, client)

    def _on_worker(self, newcomer: Newcomer, hello: m.Hello) -> None:
        worker = self.workers.get(hello.process)
        if worker is None or self.jobs[worker.job].ended or not self.workers.connected(worker, hello.pid):
            newcomer.refuse("it is no worker of this session, or its job has ended")
            return
        if not self._welcome(newcomer, "worker", self.jobs[worker.job], worker.runtime_env):
            return  # Its death is about to be told.
        client = Client("worker", hello.process, hello.pid, hello.address, worker.job, self._settings.backlog_messages)
        self.clients.add(client)
        self._connect(newcomer, client)
        scheduler = self.leases.scheduler
        self.leases.perform(scheduler.worker_started(worker.process, worker.job, worker.runtime_env, monotonic()))

    def _welcome(self, newcomer: Newcomer, kind: str, job: Job, runtime_env: str = "") -> bool:
        driver = self._driver_of(job)
        shown = job.remote_driver if driver is None else (driver.process, driver.pid, driver.address)
        message = m.Welcome(
            version=m.PROTOCOL_VERSION,
            runtime_env=runtime_env or job.config.runtime_env,
            session=self.config.session,
            session_dir=self.config.session_dir,
            node_id=self.node_id,
            node_pid=os.getpid(),
            job_id=job.number,
            arena_bytes=self.arena_bytes,
            resources=self.leases.scheduler.total,
            namespace=job.config.namespace or self.config.namespace,
            # Workers send their output there.
            driver=shown if kind == "driver" or self.config.log_to_driver else (b"", 0, ""),
            credentials=self.cluster.credentials if self.cluster is not None else "",
            task_env=runtime_env,
            shipped=self.packages.told(job.number, runtime_env),
            gpus=gpu_names(self.devices.get("GPU", 0)),
        )
        if newcomer.welcome(message, self.store.fd):
            return True
        newcomer.close()
        return False

    def _connect(self, newcomer: Newcomer, client: Client) -> None:
        newcomer.release()
        connection = Connection(newcomer.sock, self.reactor, self._on_message, self._on_close, newcomer.leftover)
        client.attach(connection)
        connection.process_leftover()

    # --- what clients say ---------------------------------------------------------------------------------

    def _on_message(self, connection: Connection, message: m.AnyMessage) -> None:
        handler = self._handlers.get(type(message))
        client = connection.peer
        if client is None or client.gone:
            return
        if handler is None:
            connection.close(f"a {client.kind} has no business sending {type(message).__name__}")
            return
        handler(client, message)

    def _on_close(self, connection: Connection, reason: str) -> None:
        client: Client | None = connection.peer
        if client is None or not client.detach(connection):
            return
        worker = self.workers.get(client.process)
        if worker is not None:
            delay = self._settings.worker_reconnect_s
            client.timer = self.reactor.call_later(
                delay, lambda: self.workers.kill(worker, f"its connection was lost ({reason}) and not renewed")
            )

    def _on_shutdown(self, client: Client, message: m.Shutdown) -> None:
        job = self.jobs[client.job]
        if client is not job.driver:
            return
        if job.owns_session:
            self.end_session(message.reason or "its driver ended it")
        else:
            self.end_job(job, lambda: self._dismiss(client))

    # --- workers: what the scheduler wants (LeaseEvents) -----------------------------------------------------------

    def start_worker(self, job: int, runtime_env: str) -> None:
        """Order a worker; a failure is told to the scheduler in the next turn, not from within its own call."""

        def start(config: TemplateConfig | None, problem: str) -> None:
            if config is None:
                self._post(lambda: self._tell_start_failed(job, runtime_env, problem))
            elif self.job_lives(job):
                self.workers.start(job, runtime_env, self._templates.prepare((job, runtime_env), config))

        self._template_configs.make(self.jobs[job], runtime_env, self._templates, start)

    def stop_worker(self, process: bytes, reason: str, *, now: bool = False) -> None:
        """Ask it to end, and see that it does; a job that has ended gives no grace."""
        worker = self.workers.get(process)
        if worker is None:
            return
        if now or self.jobs[worker.job].ended:
            self.workers.kill(worker, reason)
        else:
            self.clients.send(process, m.Shutdown(reason))
            self.workers.grant_grace(worker, reason, self._settings.worker_stop_grace_s)

    def warn_job(self, job: int, text: str) -> None:
        """Show a line to a job's user."""
        log(f"job {job}: {text}")
        if job not in self.jobs:
            return
        driver, lines = self._driver_of(self.jobs[job]), m.LogLines("moray", os.getpid(), "err", text.splitlines())
        if driver is not None:
            driver.send(lines)
        elif self.cluster is not None and self.jobs[job].remote_driver[0]:
            self.cluster.send_to(self.jobs[job].remote_driver[0], lines)

    def actor_granted(self, grant: Grant, worker: Client) -> None:
        """See Leases: an actor's request."""
        self.hosting.granted(grant, worker)

    def actor_refused(self, refusal: Refuse) -> None:
        """See Leases: an actor's request."""
        self.hosting.refused(refusal)

    def bundles_ready(self, ready: BundlesReady) -> None:
        """See Leases: a placement group's reservation."""
        self.bundles.ready(ready)

    def _bundles_reserved(self, answer: m.BundlesReserved) -> None:
        if self.cluster is None:
            self.groups.reserved(self.node_id, answer)
        else:
            self.cluster.head.report(answer)

    def group_removed(self, group: str, reason: str) -> None:
        """A placement group is gone (GroupEvents): its actors end, and requests that cross its removal are refused."""
        self.actors.group_removed(group, reason)
        self.leases.perform(self.leases.scheduler.remove_group(group, reason, monotonic()))

    def worker_address(self, owner: bytes, key: int, worker: Client) -> str:
        """Where an owner that is granted a worker reaches it (LeaseEvents)."""
        return worker.address if self.cluster is None else self.cluster.worker_address(owner, key, worker)

    def warn_all(self, text: str) -> None:
        """Show a line to every driver here."""
        for job in self.jobs.values():
            if job.driver is not None:
                self.warn_job(job.number, text)

    # --- workers: how they end (WorkerEvents, TemplateEvents) --------------------------------------------------------

    def worker_lost(self, worker: Worker, status: int) -> None:
        """A running worker is dead."""
        client, job = self.clients.get(worker.process), self.jobs[worker.job]
        if client is not None:
            client.drain()
            self.clients.remove(client)
        reason = self._reasons.describe(status, worker.cause)
        words = tail(self.workers.log_paths(worker)[1])
        if not job.ended:
            log(f"worker {worker.pid} of job {worker.job} {reason}")
        death = m.ProcessDied(worker.process, worker.pid, status, reason, words)
        self._tell_death(death)
        self._release_process(worker.process)
        self.reactor.call_later(_FILES_KEPT_S, lambda: self._remove_files(worker.process))
        self.leases.perform(self.leases.scheduler.worker_died(worker.process, monotonic()))
        self.hosting.died(death)
        self._look_whether_gone(job)

    def start_failed(self, worker: Worker, reason: str) -> None:
        """A worker died, or was given up, before it connected."""
        job = self.jobs[worker.job]
        if not job.ended:
            log(f"a worker of job {worker.job} did not start: {reason}")
            self._tell_start_failed(worker.job, worker.runtime_env, reason)
        self._look_whether_gone(job)

    def forked(self, process: bytes, pid: int, pidfd: int) -> None:
        """A template has forked a worker."""
        self.workers.forked(process, pid, pidfd)

    def fork_failed(self, process: bytes, reason: str) -> None:
        """A template could not."""
        self.workers.fork_failed(process, reason)

    def worker_ended(self, process: bytes, status: int) -> None:
        """A template has reaped a worker."""
        self.workers.worker_ended(process, status)

    def template_gone(self, number: int) -> None:
        """A template has ended, and its workers with it."""
        self.workers.template_gone(number)
        for job in list(self.jobs.values()):
            if number in job.templates:
                job.templates.discard(number)
                self._look_whether_gone(job)

    def _tell_start_failed(self, job: int, runtime_env: str, reason: str) -> None:
        self.leases.perform(self.leases.scheduler.worker_start_failed(job, runtime_env, reason, monotonic()))

    def _tell_death(self, death: m.ProcessDied) -> None:
        """Tell everybody whose job goes on: actors may be called across jobs."""
        living = [
            client.process for client in self.clients if client.kind != "remote" and not self.jobs[client.job].ended
        ]
        self.clients.send_all(living, death)
        if self.cluster is not None:
            self.cluster.process_died(death)

    def _reap(self) -> None:
        for pid, status in self._orphans.reap():
            self.workers.reaped(pid, status)

    def _remove_files(self, process: bytes) -> None:
        """What a dead worker leaves in the session's directory beside its logs: its socket and its mark."""
        for kind in ("sock", "mark"):
            try:
                os.unlink(f"{self.config.session_dir}/{process.hex()}.{kind}")
            except OSError:
                pass  # It never made one, or the directory has gone.

    def _release_process(self, process: bytes) -> None:
        """Take back what a dead process had of the store."""
        self.store.process_died(process)
        self.objects.owner_died(process)
        self.groups.process_died(process)

    # --- jobs and the session ---------------------------------------------------------------------

    def begin_job(self, job: Job) -> None:
        """Its template is made now: it will be ready when the first worker is wanted."""
        self.jobs[job.number] = job
        if job.driver is not None:
            self.packages.adopt(job.number, job.config.made)

        def prepare(config: TemplateConfig | None, _problem: str) -> None:
            if config is not None and self.job_lives(job.number):
                self._templates.prepare((job.number, ""), config)
            # Otherwise the first worker that is wanted is told why there is none.

        self._template_configs.make(job, "", self._templates, prepare)
        self.leases.perform(self.leases.scheduler.job_started(job.number))

    def _driver_of(self, job: Job) -> Client | None:
        """Who shows a job's output and warnings: its driver, or the one that it comes from, or the session's."""
        if job.driver is not None:
            return job.driver
        origin = self.jobs.get(job.origin)
        if origin is not None and not origin.ended:
            return origin.driver
        return next((job.driver for job in self.jobs.values() if job.owns_session), None)

    def job_lives(self, job: int) -> bool:
        """Whether a job goes on (ActorEvents)."""
        return job in self.jobs and not self.jobs[job].ended

    def begin_detached_job(self, origin: int, name: str) -> int:
        """A job for a detached actor that somebody in the job `origin` has made (ActorEvents)."""
        creators = self.jobs[origin]
        namespace = creators.config.namespace or self.config.namespace
        config = msgspec.structs.replace(creators.config, namespace=namespace, entrypoint=f"detached actor {name}")
        job = Job(next(self._job_numbers), config, None, owns_session=False, origin=creators.origin)
        log(f"job {job.number}: {config.entrypoint}, made in job {origin}")
        self.begin_job(job)
        return job.number

    def end_detached_job(self, job: int) -> None:
        """The actor is dead (ActorEvents)."""
        self.end_job(self.jobs[job], None)

    def _driver_died(self, job: Job, client: Client) -> None:
        if job.owns_session:
            self.end_session("its driver has ended")
        client.drain()
        log(f"job {job.number}: its driver {client.pid} has ended")
        if job.ended:
            # It died while it waited for the end.
            job.on_gone = None
            self.clients.remove(client)
        else:
            self.end_job(job, None)
            self.clients.remove(client)

    def end_job(self, job: Job, on_gone: Callable[[], None] | None = None) -> None:
        """Begin a job's end; `on_gone` is called when nothing of it is left."""
        if job.ended:
            return
        job.ended = True
        job.on_gone = on_gone
        if job.watch is not None and on_gone is None:
            job.watch.close()
        self.leases.perform(self.leases.scheduler.job_ended(job.number))
        if job.driver is not None:
            driver, reason = job.driver, "ended" if on_gone is None else "ended its job"
            self._tell_death(m.ProcessDied(driver.process, driver.pid, 0, reason))
            self.hosting.driver_left(driver.process, job.number)
        self.groups.job_ended(job.number)
        for worker in self.workers.of_job(job.number):
            self.workers.kill(worker, "its job has ended")
        job.templates.update(self._templates.end_job(job.number))
        self._look_whether_gone(job)

    def _look_whether_gone(self, job: Job) -> None:
        if not job.ended or job.templates or self.workers.of_job(job.number) or job.number not in self.jobs:
            return
        del self.jobs[job.number]
        self.past_jobs.append(job_state(job))
        self.packages.job_gone(job.number)
        if job.watch is not None:
            job.watch.close()
        if job.driver is not None:
            self._release_process(job.driver.process)
            self.leases.perform(self.leases.scheduler.owner_left(job.driver.process))
        log(f"job {job.number} has ended")
        if job.on_gone is not None:
            job.on_gone()
        elif job.driver is not None:
            self.clients.remove(job.driver)

    def _dismiss(self, client: Client) -> None:
        """Tell a further driver that its job is gone; it hangs up."""
        client.send(m.ShutdownDone())
        connection = client.connection
        client.connection = None
        if connection is not None:
            # Whatever it still says is nobody's; the connection ends when the driver closes it.
            connection.peer = None
        self.clients.remove(client)

    def end_session(self, reason: str) -> NoReturn:
        """End everything, and this process."""
        owner = next((job.driver for job in self.jobs.values() if job.owns_session), None)
        self._end_all(reason)
        session.remove_files(self.config.session_dir)
        session.say_goodbye(self.clients, owner, reason)
        os._exit(0)

    def begin_anew(self, reason: str) -> NoReturn:
        """End everything, and be another node of the cluster."""
        self._end_all(reason)
        begin_anew(self.config, self.clients, reason)

    def _end_all(self, reason: str) -> None:
        log(f"the session ends: {reason}")
        self._server.close()
        session.end_processes(self._settings.end_timeout_s)
        for client in self.clients:
            if client.kind == "worker":
                self.clients.remove(client)
        self.packages.close()
        self.store.close()
        if self.cluster is not None:
            self.cluster.close(reason)
