"""The head: its parts, and what each message means for which of them.

A single thread turns one loop; another one writes (:mod:`~moray.head.commits`). Nodes connect
(:mod:`~moray.head.members`) and say on two numbered streams (:mod:`~moray.head.peers`) what they and their clients
want; what is said is handed to the *service* that has registered for its type. A service changes its memory and says
what to store; answers go out when that is stored. So the head can be killed at any moment: the next one, with a higher
epoch, starts from the storage as if nothing had been (HEAD-EPOCH, DURABLE).

The head never unpickles: what users send are opaque bytes to it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, TypeAlias

from moray.head.actors import Caller, HeadActors
from moray.head.certificates import Certificates
from moray.head.checks import problem_of, refusal_of
from moray.head.commits import Commits
from moray.head.config import HeadConfig
from moray.head.groups import HeadGroups
from moray.head.jobs import Jobs
from moray.head.leaving import Leaving, leaves, why
from moray.head.listener import Endpoint
from moray.head.members import Members
from moray.head.peers import Peer, Peers
from moray.head.storage import StaleEpochError, Storage, StorageError
from moray.head.values import Events, Values
from moray.ids import tag_of
from moray.node.logs import log
from moray.protocol import messages as m
from moray.protocol.connection import ProtocolError, body_of, decode_body
from moray.protocol.reactor import Reactor

#: What a service does with a message: (process, pid, job, message). process b"": the node itself said it.
Handler: TypeAlias = Callable[[bytes, int, int, Any], None]

#: Node id + number of a ToHead → the exception by which it ended a head.
_FAULTS: Final = "faults"
_FAULT_TEXT: Final = 1000

#: How often the head asks its storage whether it is still the head.
_CHECK_S: Final = 1.0


class Head:
    """All of the head."""

    def __init__(self, config: HeadConfig, storage: Storage, on_end: Callable[[str], None] | None = None) -> None:
        self.config = config
        self.storage = storage
        self.reactor = Reactor()
        self._on_end = on_end or _end_process
        #: Another head has taken over the storage.
        self.replaced = False
        self.commits = Commits(storage, self.reactor, self._storage_failed)
        self.peers = Peers(self.commits, self.reactor)
        self.members = Members(storage, self.commits, self.peers, self.reactor, self, config.lease_s, config.node_pid)
        self.jobs = Jobs(self.commits)
        self.values = Values(self.commits)
        self.events = Events(self.commits)
        #: Messages of clients and nodes → what becomes of them.
        self.services: dict[type[Any], Handler] = {
            m.JobStarted: self._on_job_started,
            m.JobEnded: lambda _process, _pid, _job, message: self.end_job(message.job, message.reason),
            m.GetJob: self._on_get_job,
            m.KvRequest: lambda process, _pid, _job, message: self.send(process, self.values.answer(message)),
            m.DrainNode: self._on_drain,
        }
        #: Called with the tag of a node that is dead, and of one of which nothing can start any more.
        self.on_node_died: list[Callable[[bytes, str], None]] = []
        self.on_node_released: list[Callable[[bytes, str], None]] = []
        #: Called with the number of a job that has ended.
        self.on_job_ended: list[Callable[[int], None]] = []
        #: Called when nodes have joined, left, or told how they stand.
        self.on_view_changed: list[Callable[[], None]] = []
        self._connection_handlers: dict[type[Any], Callable[[Peer, Any], None]] = {
            m.RenewLease: self.members.on_renew,
            m.ToHead: self._on_to_head,
            m.NodeLeaves: self.members.on_leaves,
            m.RenewCertificate: self._on_renew_certificate,
        }
        self._certificates = Certificates(config.security_dir)
        #: Why a dead node died, until it is released.
        self._deaths: dict[bytes, str] = {}
        #: Messages that ended the heads before (see _FAULTS) and that did not come again.
        self._faults: dict[bytes, bytes] = {}
        #: From which node the message comes that is being handled.
        self._speaker: Peer | None = None
        self.actors = HeadActors(self)
        self.groups = HeadGroups(self)
        self.leaving = Leaving(self)

    def start(self) -> None:
        """Go on where the last head was. To be called once, before any node connects; services are registered."""
        dead = self.members.load(self.storage)
        self._faults = dict(self.storage.scan(_FAULTS))
        for key in [key for key in self._faults if self.peers.get(key[:-8]) is None]:
            self.commits.write(_FAULTS, key, None)  # Its node is dead, and repeats nothing.
        for part in (self.jobs, self.values, self.events, self.actors, self.groups):
            part.load(self.storage)
        self.members.resume(dead)
        self.groups.resume()
        self.actors.resume()
        self.leaving.look()
        self.events.add("head", f"the head has started with epoch {self.storage.epoch}", epoch=self.storage.epoch)
        self.reactor.call_later(_CHECK_S, self._check)

    def turn(self, timeout_s: float = 1.0) -> None:
        """Turn the loop once."""
        with self.reactor.lead:
            self.reactor.turn(timeout_s)
            self.commits.turn()

    def _storage_failed(self, error: StorageError) -> None:
        self.replaced = isinstance(error, StaleEpochError)
        self.step_down(str(error))

    def step_down(self, reason: str) -> None:
        """This is no longer the head, or cannot be: end, and write nothing more (MemberEvents)."""
        log(f"the head (epoch {self.storage.epoch}) ends: {reason}")
        self._on_end(reason)

    # --- for services -----------------------------------------------------------------------------------

    def add_handlers(self, handlers: dict[type[m.Message], Callable[[Any, Any], None]]) -> None:
        """Register a service whose handlers take a client (with process, pid, job and `send`) and a message."""
        for kind, handler in handlers.items():
            self.services[kind] = self._with_caller(handler)

    def _with_caller(self, handler: Callable[[Any, Any], None]) -> Handler:
        return lambda process, pid, job, message: handler(Caller(self, process, pid, job), message)

    def send(self, process: bytes, message: m.Message) -> None:
        """To a client, by way of its node; nothing if that is dead. b"": to the node that has just spoken."""
        peer = self.peers.of_tag(tag_of(process)) if process else self._speaker
        if peer is not None:
            self.peers.tell(peer, body_of(message), [process] if process else [])

    def send_all(self, processes: Iterable[bytes], message: m.Message) -> None:
        """The same to several: once to each of their nodes."""
        by_tag: dict[bytes, list[bytes]] = defaultdict(list)
        for process in processes:
            by_tag[tag_of(process)].append(process)
        body = body_of(message)
        for tag, mine in by_tag.items():
            peer = self.peers.of_tag(tag)
            if peer is not None:
                self.peers.tell(peer, body, mine)

    def tell(self, tag: bytes, message: m.Message) -> None:
        """To a node itself; nothing if it is dead."""
        peer = self.peers.of_tag(tag)
        if peer is not None:
            self.peers.tell(peer, body_of(message))

    def speaker(self) -> bytes:
        """The id of the node whose message is being handled."""
        return self._speaker.node_id if self._speaker is not None else b""

    # --- connections ----------------------------------------------------------------------------------------

    def on_message(self, connection: Endpoint, message: Any) -> None:
        """Whatever arrives."""
        peer: Peer | None = connection.peer
        if isinstance(message, m.NodeHello) and peer is None:
            if problem := problem_of(message):
                self._hang_up(connection, message, message.info.node_id, problem)
            else:
                self.members.on_hello(connection, message)
            return
        handler = self._connection_handlers.get(type(message))
        if peer is None or handler is None or self.peers.get(peer.node_id) is not peer:
            connection.close(f"a node has no business sending {type(message).__name__} now")
            return
        if problem := problem_of(message):
            self._hang_up(connection, message, peer.node_id, problem)
            return
        handler(peer, message)

    @staticmethod
    def _hang_up(connection: Endpoint, message: Any, node_id: bytes, problem: str) -> None:
        """A node says of itself what cannot be."""
        text = f"node {node_id.hex()[:12]} is hung up on: its {type(message).__name__} is wrong: {problem}"
        log(text)
        connection.close(text)

    def on_close(self, connection: Endpoint, _reason: str) -> None:
        """A connection has ended."""
        peer: Peer | None = connection.peer
        if peer is not None and self.peers.get(peer.node_id) is peer:
            self.members.on_close(peer, connection)

    def _on_renew_certificate(self, peer: Peer, _message: m.RenewCertificate) -> None:
        if peer.connection is not None:  # Otherwise it asks again.
            peer.connection.send(self._certificates.renew(peer.connection))

    def _on_to_head(self, peer: Peer, relayed: m.ToHead) -> None:
        if not self.peers.carry_out(peer, relayed.number):
            return
        try:
            message = decode_body(relayed.body)
        except ProtocolError as error:
            self._pass_over(peer, relayed, f"what cannot be read: {error}")
            return
        service = self.services.get(type(message))
        if service is None:
            self._pass_over(peer, relayed, f"{type(message).__name__}, which is no request")
            return
        self._speaker = peer
        try:
            if problem := problem_of(message) or self._fault_of_last_head(peer, relayed.number):
                self._pass_over(peer, relayed, f"{type(message).__name__}, which is wrong: {problem}")
                if (refusal := refusal_of(message, problem)) is not None and relayed.process:
                    self.send(relayed.process, refusal)
                return
            service(relayed.process, relayed.pid, relayed.job, message)
        except (OSError, MemoryError):
            raise  # The machine's matter: it may go well next time.
        except Exception as error:
            self._blame(peer, relayed.number, f"{type(message).__name__}: {error!r}")
            raise
        finally:
            self._speaker = None

    def _pass_over(self, peer: Peer, relayed: m.ToHead, what: str) -> None:
        """It is counted as carried out, or the node would repeat it for ever."""
        text = f"process {relayed.pid} on node {peer.node_id.hex()[:12]} sent {what}; it is passed over"
        log(text)
        self.events.add("error", text)

    # --- our own faults ---------------------------------------------------------------------------------------

    def _blame(self, peer: Peer, number: int, error: str) -> None:
        """This head ends by an exception, in the midst of a change; nothing of it is stored. The next one is told by
        which message, or it would end by it as well."""
        text = error[:_FAULT_TEXT].encode(errors="replace")
        self.commits.end_with(_FAULTS, peer.node_id + number.to_bytes(8, "big"), text)

    def _fault_of_last_head(self, peer: Peer, number: int) -> str:
        """Why this message ended a head; "" if it did not."""
        key = peer.node_id + number.to_bytes(8, "big")
        error = self._faults.pop(key, b"")
        if not error:
            return ""
        self.commits.write(_FAULTS, key, None)
        return f"the last head failed at it, which is a fault of moray: {error.decode()}"

    def _check(self) -> None:
        self.commits.check()
        self.reactor.call_later(_CHECK_S, self._check)

    # --- jobs -------------------------------------------------------------------------------------------------

    def _on_job_started(self, _process: bytes, _pid: int, _job: int, started: m.JobStarted) -> None:
        job = self.jobs.begin(started)
        self.events.add("job", f"job {job.number} has started", job=job.number, pid=job.pid)
        self.send(b"", m.JobNumber(started.request, job.number))

    def _on_drain(self, process: bytes, _pid: int, _job: int, message: m.DrainNode) -> None:
        problem = self.members.on_drain(message)
        answer = m.StoreError(message.request, "refused", problem) if problem else m.StoreDone(message.request)
        self.send(process, answer)

    def _on_get_job(self, _process: bytes, _pid: int, _job: int, asked: m.GetJob) -> None:
        self.send(b"", self.jobs.settings(asked.job))

    def end_job(self, number: int, reason: str) -> None:
        """A job is over: its actors end, and all nodes are told."""
        job = self.jobs.end(number)
        if job is None:
            return
        self.events.add("job", f"job {number} has ended: {reason}", job=number)
        self.peers.tell_all(m.JobEnded(number, job.process, reason))
        if job.process:
            self.actors.driver_left(job.process, number)
        self.groups.job_ended(number)
        for tell in self.on_job_ended:
            tell(number)

    # --- what actors want (ActorEvents) -----------------------------------------------------------------------

    def job_lives(self, job: int) -> bool:
        """Whether a job goes on."""
        return self.jobs.get(job) is not None

    def begin_detached_job(self, origin: int, name: str) -> int:
        """A job for a detached actor."""
        return self.jobs.begin_detached(origin, name).number

    def group_removed(self, group: str, reason: str) -> None:
        """A placement group is gone: actors in it end (GroupEvents)."""
        self.actors.group_removed(group, reason)

    def end_detached_job(self, job: int) -> None:
        """The actor is dead."""
        self.end_job(job, "its actor is dead")

    def warn_job(self, job: int, text: str) -> None:
        """Show a line to a job's user."""
        self.events.add("warning", text, job=job)
        found = self.jobs.get(job)
        driver = self.jobs.driver_of(found) if found is not None else None
        if driver is not None:
            self.send(driver.process, m.LogLines("moray", os.getpid(), "err", text.splitlines()))

    # --- what members do (MemberEvents) -------------------------------------------------------------------------

    def fenced_of(self, hello: m.NodeHello) -> list[tuple[bytes, int]]:
        """Actors of a node that it must end."""
        return self.actors.fenced_of(hello)

    def view_changed(self) -> None:
        """There is a new version of the table of nodes."""
        self.groups.view_changed()
        self.actors.view_changed()
        for tell in self.on_view_changed:
            tell()

    def node_leaves(self, info: m.NodeInfo) -> None:
        """A node was told to leave, perhaps again."""
        text = f"node {info.node_id.hex()} is to leave: {info.drain_reason or 'no reason was given'}"
        self.events.add("node", text, node=info.node_id.hex())
        self.leaving.look()

    def stuck(self, node_id: bytes) -> list[str]:
        """What cannot move from a node that leaves."""
        return self.leaving.stuck(node_id)

    def node_joined(self, info: m.NodeInfo) -> None:
        """A new node is here."""
        self.events.add("node", f"node {info.node_id.hex()} at {info.address} has joined", node=info.node_id.hex())

    def node_died(self, info: m.NodeInfo, reason: str) -> None:
        """A node is dead."""
        tag = tag_of(info.node_id)
        self.groups.node_died(info.node_id)
        self._deaths[info.node_id] = reason
        self.events.add("node", f"node {info.node_id.hex()} is dead: {reason}", node=info.node_id.hex())
        for job in self.jobs.of_node(tag):
            self.end_job(job.number, f"its driver's node is dead: {reason}")
        self.actors.node_died(tag, why(info) if leaves(info) else "")
        for tell in self.on_node_died:
            tell(tag, reason)

    def node_released(self, node_id: bytes) -> None:
        """Nothing of a dead node can start any more."""
        reason = f"its node is dead: {self._deaths.pop(node_id, 'it ended')}"
        self.actors.node_released(tag_of(node_id), reason)
        for tell in self.on_node_released:
            tell(tag_of(node_id), reason)


def _end_process(_reason: str) -> NoReturn:
    os._exit(1)
