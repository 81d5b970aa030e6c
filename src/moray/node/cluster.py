"""A node's part in a cluster: leases at other machines, jobs from elsewhere, who hears of which death.

Without a cluster there is no :class:`Cluster`, and a node asks nobody. With one, it stands between the node's clients
and the scheduler:

- **Wishes** of this node's owners are divided between the scheduler here and other nodes
  (:mod:`moray.node.cluster_leases`). Other nodes' wishes arrive in the name of their owners, who
  are :class:`~moray.node.remote_clients.RemoteClient` here. The upper half of a lease's number is its node's tag.
- **Jobs** have numbers of the head's. Their settings are fetched from it when somebody first wants a worker here.
- **Deaths** (LIVENESS) of processes are told to the nodes that have to do with them: those whose processes were granted
  them, or asked where they are. A node's death comes from the head (FENCE), and ends every process with its tag.

Owned by the node's loop.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray.head.config import HeadConfig, HeadReady
from moray.ids import tag_of
from moray.launch import session_directory
from moray.launch.cluster_file import ClusterNode, write_cluster_file
from moray.launch.config import ClusterConfig
from moray.launch.packages import host_id
from moray.node.certificate import Certificate
from moray.node.clients import Client
from moray.node.cluster_leases import ClusterLeases
from moray.node.evacuation import Evacuation
from moray.node.gate import Gate
from moray.node.head_link import HeadLink
from moray.node.head_process import HeadProcess
from moray.node.jobs import Job
from moray.node.links import Link, Links
from moray.node.logs import log
from moray.node.remote_clients import RemoteClient
from moray.node.transfers import ObjectTransfers
from moray.node.ways import Ways
from moray.platform.lease_page import LeasePage
from moray.protocol import messages as m
from moray.protocol.connection import ProtocolError, body_of, decode_body
from moray.protocol.relaying import relay_inbox
from moray.protocol.tls import TlsConnection
from moray.runtime.marks import read_mark

if TYPE_CHECKING:
    from moray.node.cluster_actors import ClusterActors
    from moray.node.node import Node

#: Lease numbers of a node with tag t are t << 32 | counter.
LEASE_BITS: Final = 32
#: Dead nodes that are shown.
_DEAD_NODES: Final = 100
#: Who has not heard of the head for so long gives up what waits for it.
HEAD_LOST_S: Final = 60.0
#: When a node leaves that takes no work and stays (seconds of the epoch).
NEVER: Final = float("inf")
_STATE_FILE: Final = "head.sqlite"

_encode_job: Final = msgspec.msgpack.Encoder().encode
_decode_job: Final = msgspec.msgpack.Decoder(m.JobConfig).decode


def first_lease(node_id: bytes) -> int:
    """Where a node of a cluster begins to number its leases."""
    return int.from_bytes(tag_of(node_id), "big") << LEASE_BITS


class Cluster:
    """This node among others."""

    def __init__(self, node: Node, config: ClusterConfig, on_joined: Callable[[str, str], None]) -> None:
        """`on_joined` is called once: with the head's address when the others know this node, or why it cannot join."""
        self._node = node
        self._config = config
        self._on_joined: Callable[[str, str], None] | None = on_joined
        self.node_id = node.node_id
        self.tag = tag_of(node.node_id)
        self.credentials = f"{node.config.session_dir}/{session_directory.TLS_FOLDER}"
        os.rename(config.credentials, self.credentials)
        reactor = node.reactor
        self.gate = Gate(
            reactor,
            node.config.session_dir,
            Path(self.credentials),
            config.node_ip,
            config.port,
            self._on_link_hello,
            lambda node_id: self.head.nodes()[tag_of(node_id)],
            self.tag,
        )
        self.links = Links(self.node_id, reactor, self.gate.dial, self._on_link_message)
        self.transfers = ObjectTransfers(
            self.node_id,
            node.store,
            node.objects,
            node.arena_bytes,
            reactor,
            self.gate.dial,
            self._send_to_node,
            node.clients.send,
        )
        node.objects.transfers = self.transfers
        self.evacuation = Evacuation(node, self)
        self.leases = ClusterLeases(node, self)
        #: Own process → tags of the nodes that hear of its death.
        self._interest: dict[bytes, set[bytes]] = {}
        #: Jobs whose settings are on their way → what waits for them.
        self._fetching: dict[int, list[Callable[[], None]]] = {}
        #: Job → owner at another node → what it has said since such settings are on their way, in order.
        self._held: dict[int, dict[bytes, list[tuple[Link, m.FromClient, Any]]]] = {}
        #: Messages of this node's clients that concern other nodes.
        self.handlers: dict[type[m.Message], Callable[[Client, Any], None]] = {
            m.RequestLeases: self._on_request,
            m.ReturnLease: self._on_return,
            m.Locate: self._on_locate,
            m.FindObjects: lambda client, message: self.transfers.locate(client.process, message),
            **self.evacuation.handlers,
        }
        self._on_link = self._link_handlers()
        #: The living nodes as of the last change, and the last dead ones with the reasons.
        self._seen: dict[bytes, m.NodeInfo] = {}
        self.dead_nodes: deque[tuple[m.NodeInfo, str]] = deque(maxlen=_DEAD_NODES)
        #: Set by the node.
        self.actors: ClusterActors
        self._told_available: dict[str, int] = {}
        #: The head has known this node, in this life or an earlier one.
        self._joined = False
        #: Users were told that the head is away.
        self._warned = False
        self._head_process: HeadProcess | None = None
        self.head_address = config.head
        self._ways = Ways(node, self, config)
        page = LeasePage.create(node.config.session_dir)
        self.head = HeadLink(reactor, self._ways.dial_head, page, self, lost_s=HEAD_LOST_S)
        self.certificate = Certificate(Path(self.credentials), reactor, self.head)
        reactor.hooks.append(self._look_at_resources)
        self._host = host_id()
        node.packages.join(self.head.nodes, self._send_to_node, self._host)

    def _link_handlers(self) -> dict[type[Any], Callable[[Link, Any], None]]:
        """What becomes of other nodes' messages."""
        packages = self._node.packages.link_handlers
        return {
            m.FromClient: self._on_from_client,
            m.ForClient: self._on_for_client,
            m.ClientLeft: self._on_client_left,
            **self.transfers.link_handlers,
            **self.evacuation.link_handlers,
            **dict.fromkeys(
                packages,
                lambda link, message: packages[type(message)](tag_of(link.node_id), message),
            ),
        }

    def start(self) -> None:
        """Start the head if it is this node's to start, and join."""
        if not self._config.start_head:
            if self._config.rejoins:
                log(self._config.rejoins)
                self._joined = True
                self._write_file()  # It may take long until the head is found: `moray stop` must find this node.
            self._ways.open(lambda: self.head.join(self._info()))
            return
        storage = self._config.storage or f"sqlite:{self._node.config.session_dir}/{_STATE_FILE}"
        host, _, port = self._config.head.rpartition(":")
        self._head_process = HeadProcess(
            HeadConfig(
                storage=storage,
                full_durability=self._config.durability == "full",
                host=host.strip("[]"),
                port=int(port),
                security_dir=self.credentials,
                relay_inbox=relay_inbox(self._node.config.session_dir),
            ),
            f"{self._node.config.session_dir}/{session_directory.LOG_FOLDER}",
            self._node.config.session,
            self._node.reactor,
            self._on_head_ready,
            self._on_head_failed,
        )

    def _on_head_failed(self, reason: str) -> None:
        if self._on_joined is not None:
            self._announce("", reason)
            self._node.end_session(f"its head does not start: {reason}")

    def _on_head_ready(self, ready: HeadReady) -> None:
        self.head_address = ready.address
        if self._on_joined is not None:
            self.head.join(self._info())

    def _info(self) -> m.NodeInfo:
        scheduler = self._node.leases.scheduler
        return m.NodeInfo(
            node_id=self.node_id,
            address=self.gate.address,
            resources=dict(scheduler.all_total),
            available=dict(scheduler.all_available),
            labels=self._node.config.labels,
            devices=self._node.devices,
            hostname=os.uname().nodename,
            name=self._config.node_name,
            pid=os.getpid(),
            object_store_bytes=self._node.store.stats()["capacity_bytes"],
            head=self._config.start_head,
            drain_deadline=NEVER if self._config.driver_only else 0.0,
            driver=self._config.driver_only,
            lease_s=self._config.relay_patience_s if self._config.relayed else 0.0,
            relayed=self._config.relayed,
            host=self._host,
        )

    def close(self, reason: str) -> None:
        """The node ends, and everything on it has ended."""
        self.head.close(reason)
        self.transfers.close()
        self.links.close()
        self.gate.close()
        self._ways.close(reason)
        if self._head_process is not None:
            self._head_process.close()

    # --- what the head says (HeadEvents) ---------------------------------------------------------------

    def available(self) -> tuple[m.Resources, list[tuple[m.Resources, int]]]:
        """What is free here, and what waits."""
        scheduler = self._node.leases.scheduler
        self._told_available = dict(scheduler.all_available)
        # What is free is never told without what it is a part of: `_look_at_resources` sees no difference any more.
        self.head.set_total(scheduler.all_total)
        return self._told_available, self.leases.demand()

    def inventory(self) -> tuple[list[int], list[tuple[bytes, int, bytes, int, str, int]], list[tuple[bytes, int]]]:
        """What is here, for a head that was started anew."""
        jobs = [number for number, job in self._node.jobs.items() if not job.ended and job.driver is not None]
        return jobs, self.actors.hosted(), []

    def deliver(self, processes: list[bytes], body: bytes) -> None:
        """Pass a message of the head on to clients."""
        self._node.clients.send_all(processes, decode_body(body))

    def end_actors(self, actors: list[tuple[bytes, int]]) -> None:
        """These incarnations have been replaced elsewhere."""
        self.actors.end(actors)

    def view_changed(self) -> None:
        """The head has told of changes."""
        self._joined = True
        if self._on_joined is not None:
            self._write_file()
            self._announce(self.head_address, "")
        seen, self._seen = self._seen, {info.node_id: info for info in self.head.nodes().values()}
        for node_id in self._seen.keys() - seen.keys():
            self.transfers.node_joined(node_id)
        self.leases.view_changed()

    def _announce(self, head: str, problem: str) -> None:
        on_joined, self._on_joined = self._on_joined, None
        if on_joined is not None:
            on_joined(head, problem)

    def _write_file(self) -> None:
        node = ClusterNode(
            cluster_id=self.head.cluster_id,
            head=self.head_address,
            address=self.gate.address,
            node_id=self.node_id.hex(),
            pid=os.getpid(),
            is_head=self._config.start_head,
            driver_only=self._config.driver_only,
        )
        write_cluster_file(self._node.config.session_dir, node)

    def fenced(self, reason: str) -> None:
        """This node is nobody to the others: what runs here must not go on."""
        reason = f"the head took this node for dead: {reason}"
        if self._head_process is not None:
            self._node.end_session(reason)
        self._begin_anew(reason)

    def mismatched(self, reason: str) -> None:
        """The head is of another version."""
        if not self._joined:
            reason = f"the head at {self.head_address} refuses this node: {reason}"
            self._announce("", reason)
            self._node.end_session(reason)

    def unreachable(self, reason: str) -> None:
        """This host's way to the cluster is gone for good, or was never there."""
        if self._on_joined is not None:
            self._announce("", reason)
            self._node.end_session(reason)
        self._begin_anew(reason)

    def head_silent(self, reason: str) -> None:
        """The lease has ended: actors' calls are held back here, and users should know why."""
        self._warned = True
        silence = f"the cluster's head at {self.head_address} has not been heard of for {self.head.lease_s:g} s"
        log(f"{silence} ({reason})")
        self._node.warn_all(
            f"{silence} ({reason}). Running tasks go on; calls of actors wait until it is back, and none is placed. "
            f"If it stays away for {HEAD_LOST_S:g} s, this session ends"
        )

    def head_back(self, after_s: float) -> None:
        """It is heard again."""
        if self._warned:
            self._warned = False
            self._node.warn_all(f"the cluster's head at {self.head_address} is back after {after_s:.1f} s")

    def head_lost(self, reason: str) -> None:
        """The head has been away for so long that nobody should wait for it any more."""
        reason = f"the cluster's head at {self.head_address} has not been heard of for {HEAD_LOST_S:g} s ({reason})"
        if self._head_process is None:
            self._begin_anew(reason)
        elif self._head_process.replaced:
            self._node.end_session(reason)
        else:
            log(f"{reason}; it is started again as often as it takes")

    def _begin_anew(self, reason: str) -> None:
        """What runs here ends. A machine's node looks for its cluster again; one that a driver has made ends."""
        if self._config.driver_only:
            # Its driver, which has asked for nothing, is to know why.
            self._node.clients.send_all([client.process for client in self._local_clients()], m.Shutdown(reason))
            self._node.end_session(reason)
        if self.evacuation.leaves:
            self._node.end_session(reason)  # It was to leave: that it has.
        self._node.begin_anew(reason)

    def _look_at_resources(self) -> None:
        """Once a turn: the others should soon know that much has changed."""
        scheduler = self._node.leases.scheduler
        if scheduler.all_available != self._told_available:
            self.head.set_total(scheduler.all_total)
            self.head.changed()

    # --- leases ------------------------------------------------------------------------------------------------

    def _on_request(self, client: Client, wish: m.RequestLeases) -> None:
        if isinstance(client, RemoteClient):
            self._node.leases.on_request(client, wish)
        elif self._node.job_lives(client.job):  # Otherwise nobody would tell others the end of what is asked now.
            self.leases.request(client, wish)

    def worker_address(self, owner: bytes, key: int, worker: Client) -> str:
        """A worker of this node is about to be told to an owner: where that reaches it."""
        if tag_of(owner) == self.tag:
            self.leases.granted_here(owner, key)
            return worker.address
        self.tell_of_death(worker.process, tag_of(owner))
        return self.address_of(worker.process)

    def _on_return(self, client: Client, message: m.ReturnLease) -> None:
        tag = (message.lease >> LEASE_BITS).to_bytes(4, "big")
        if tag == self.tag or isinstance(client, RemoteClient):
            self._node.leases.on_return(client, message)
        else:
            self.send_as(client, tag, message)

    def send_as(self, client: Client, tag: bytes, message: m.Message) -> bool:
        """Pass on what a client says to another node; False: that is not known (any more)."""
        info = self.head.nodes().get(tag)
        if info is None:
            return False
        self.tell_of_death(client.process, tag)
        self.links.get(info.node_id).send(m.FromClient(client.process, client.pid, client.job, body_of(message)))
        return True

    # --- where processes are ----------------------------------------------------------------------------

    def address_of(self, process: bytes) -> str:
        """Where processes of other machines reach one of this node."""
        return f"tcp://{self.gate.address}/{process.hex()}"

    def _on_locate(self, client: Client, message: m.Locate) -> None:
        tag = tag_of(message.process)
        if tag != self.tag:
            if not self.send_as(client, tag, message):
                # It may be so new that the head's word of it is still under way: only what the head says counts.
                self.head.when_current(lambda: self._locate_again(client, message))
            return
        found = self._node.clients.get(message.process)
        if found is None or not self._node.job_lives(found.job):
            # The end of a job has been told to all who had asked by then.
            client.send(m.Located(message.request, "", "the process has ended"))
            return
        self.tell_of_death(message.process, tag_of(client.process))
        client.send(m.Located(message.request, self.address_of(message.process)))

    def _locate_again(self, client: Client, message: m.Locate) -> None:
        """All nodes that were there when it was asked are known by now."""
        tag = tag_of(message.process)
        if not client.gone and not self.send_as(client, tag, message):
            client.send(m.Located(message.request, "", f"its node {tag.hex()} is dead, or left the cluster"))

    def tell_of_death(self, process: bytes, tag: bytes) -> None:
        """Another node has to do with a process of this one: when it dies, that is told there."""
        self._interest.setdefault(process, set()).add(tag)

    # --- deaths ---------------------------------------------------------------------------------------------

    def process_died(self, death: m.ProcessDied) -> None:
        """A process of this node is dead, or its job has ended: tell the nodes that have to do with it."""
        self.leases.owner_left(death.process)
        told = msgspec.structs.replace(death, mark=read_mark(self._node.config.session_dir, death.process)[:2])
        for tag in self._interest.pop(death.process, ()):
            info = self.head.nodes().get(tag)
            if info is not None and tag != self.tag:
                link = self.links.get(info.node_id)
                link.send(m.ClientLeft(death.process))
                link.send(m.ForClient([], body_of(told)))

    def node_died(self, node_id: bytes, reason: str) -> None:
        """The head says so: every process there is dead."""
        tag = tag_of(node_id)
        view = self._seen.pop(node_id, None)
        if view is not None:
            self.dead_nodes.append((view, reason))
        self.links.node_died(node_id)
        self.transfers.node_died(node_id)
        self.evacuation.node_died(tag)
        self._node.packages.node_died(tag)
        self._node.objects.node_died(tag)
        for owners in self._held.values():
            for process in [process for process in owners if tag_of(process) == tag]:
                del owners[process]
        for client in self._node.clients:
            if tag_of(client.process) == tag:
                self._forget_client(client)
        died = m.NodeDied(tag, node_id, reason)
        self._node.clients.send_all([client.process for client in self._local_clients()], died)
        self.leases.node_died(tag)

    def _local_clients(self) -> list[Client]:
        return [client for client in self._node.clients if not isinstance(client, RemoteClient)]

    def _forget_client(self, client: Client) -> None:
        self._node.leases.perform(self._node.leases.scheduler.owner_left(client.process))
        self._node.clients.remove(client)

    def _on_client_left(self, _link: Link, message: m.ClientLeft) -> None:
        client = self._node.clients.get(message.process)
        if isinstance(client, RemoteClient):
            self._forget_client(client)
        for owners in self._held.values():
            owners.pop(message.process, None)
        self._node.objects.owner_died(message.process)

    # --- what other nodes say -----------------------------------------------------------------------------------

    def _on_link_hello(self, connection: TlsConnection, hello: m.LinkHello) -> None:
        info = self.head.nodes().get(tag_of(hello.node_id))
        if info is None or info.node_id != hello.node_id:
            # It has joined just now, and comes again; or it is dead to the cluster.
            connection.close(f"node {hello.node_id.hex()[:8]} is not known here")
        elif hello.bulk:
            self.transfers.accept(connection, hello)
        else:
            self.links.accept(connection, hello)

    def _on_link_message(self, link: Link, message: Any) -> None:
        handler = self._on_link.get(type(message))
        if handler is None:
            log(f"node {tag_of(link.node_id).hex()} sent {type(message).__name__}, which means nothing here")
            return
        try:
            handler(link, message)
        except ProtocolError as error:
            # What it relays for its clients; the link itself is sound.
            log(f"node {tag_of(link.node_id).hex()} relayed a {type(message).__name__} that cannot be read: {error}")

    def _on_from_client(self, link: Link, message: m.FromClient) -> None:
        if tag_of(message.process) != tag_of(link.node_id):
            log(f"node {tag_of(link.node_id).hex()} spoke for a process that is not its own")
            return
        inner = decode_body(message.body)
        if type(inner) not in self.handlers:
            log(f"a client of node {tag_of(link.node_id).hex()} sent {type(inner).__name__}, which is not for others")
            return
        owners = self._held.get(message.job, {})
        if message.process in owners:
            owners[message.process].append((link, message, inner))
        elif isinstance(inner, m.RequestLeases) and inner.count and message.job not in self._node.jobs:
            # What it says next must not overtake this.
            self._held.setdefault(message.job, {})[message.process] = [(link, message, inner)]
            self.with_job(message.job, lambda: self._handle_held(message.job))
        else:
            self._handle_from(link, message, inner)

    def _handle_held(self, job: int) -> None:
        """The job is known by now."""
        for messages in self._held.pop(job, {}).values():
            for link, message, inner in messages:
                self._handle_from(link, message, inner)

    def _handle_from(self, link: Link, message: m.FromClient, inner: Any) -> None:
        client = self._node.clients.get(message.process)
        if client is None:
            client = RemoteClient(message.process, message.pid, message.job, link)
            if isinstance(inner, m.RequestLeases):
                if not inner.count or not self._node.job_lives(message.job):
                    return  # Nothing is wanted, or not any more: there is no end of it to wait for.
                self._node.clients.add(client)
        self.handlers[type(inner)](client, inner)

    def _on_for_client(self, link: Link, message: m.ForClient) -> None:
        inner = decode_body(message.body)
        if isinstance(inner, m.LeaseGranted):
            for process in message.processes:
                self.leases.granted(process, inner.key, tag_of(link.node_id))
        processes = message.processes or [client.process for client in self._local_clients()]
        self._node.clients.send_all(processes, inner)
        if isinstance(inner, m.LeaseGranted):
            for process in message.processes:
                if self._node.clients.get(process) is None:
                    # Its owner died meanwhile, and that node may not know yet.
                    link.send(m.FromClient(process, 0, 0, body_of(m.ReturnLease(inner.lease))))

    def _send_to_node(self, tag: bytes, message: m.Message) -> None:
        info = self.head.nodes().get(tag)
        if info is not None:
            self.links.get(info.node_id).send(message)

    def send_to(self, process: bytes, message: m.Message) -> None:
        """To a process of another node, by way of that."""
        self._send_to_node(tag_of(process), m.ForClient([process], body_of(message)))

    # --- jobs --------------------------------------------------------------------------------------------------

    def begin_job(self, hello: m.Hello, config: m.JobConfig, on_number: Callable[[int], None]) -> None:
        """A driver is here: what is its job's number?"""
        address = self.address_of(hello.process)
        if not config.namespace:
            config = msgspec.structs.replace(config, namespace=self._node.config.namespace)
        self.head.begin_job(hello.process, hello.pid, address, _encode_job(config), on_number)

    def with_job(self, number: int, call: Callable[[], None]) -> None:
        """Make `call` once the job is known here; never if it has ended."""
        if number in self._node.jobs:
            if not self._node.jobs[number].ended:
                call()
            return
        waiting = self._fetching.get(number)
        if waiting is not None:
            waiting.append(call)
            return
        self._fetching[number] = [call]
        self.head.get_job(number, self._on_job)

    def _on_job(self, settings: m.JobSettings) -> None:
        calls = self._fetching.pop(settings.job, [])
        if not settings.config:
            self._held.pop(settings.job, None)
            return
        if settings.job not in self._node.jobs:
            self._begin_job(settings)
        if self._node.job_lives(settings.job):
            for call in calls:
                call()

    def _begin_job(self, settings: m.JobSettings) -> None:
        config = _decode_job(settings.config)
        job = Job(settings.job, config, None, owns_session=False, origin=settings.job)
        job.remote_driver = settings.driver
        log(f"job {job.number}: {config.entrypoint}, of a driver at node {tag_of(settings.driver[0]).hex()}")
        self._node.begin_job(job)

    def job_ended(self, ended: m.JobEnded) -> None:
        """The head says so."""
        number = ended.job
        self._fetching.pop(number, None)
        self._held.pop(number, None)
        job = self._node.jobs.get(number)
        for client in self._node.clients.of_job(number):
            if isinstance(client, RemoteClient):
                self._forget_client(client)
        if job is not None and job.driver is None:
            self._node.end_job(job)
