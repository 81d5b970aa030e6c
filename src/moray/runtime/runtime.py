"""The assembly of a process's runtime: identity, reactor, connections, dispatch.

A driver and a worker are both *owners*: they submit tasks and put objects, lend references and fetch
values. :class:`Runtime` is that common part; :mod:`moray.runtime.driver` and
:mod:`moray.runtime.worker` add who turns the reactor and what ends the process.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
from _thread import RLock, allocate_lock
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

# What `remote_function` imports when it is first needed is here before: a signal handler that comes in the middle of an
# import would find half a module (INTERRUPT).
import moray.runtime.groups
import moray.runtime.packages  # noqa: F401 - see above.
from moray import exceptions, object_ref
from moray.ids import tag_of
from moray.object_ref import Alive, Entry, ObjectRef, Origin, new_ref
from moray.protocol import messages as m
from moray.protocol.connection import Connection
from moray.protocol.handshake import connect, listen, peer_pid
from moray.protocol.reactor import HEARTBEAT_S, READ, Reactor
from moray.runtime import handlers, state
from moray.runtime.actors import ActorClient
from moray.runtime.cancels import Cancels
from moray.runtime.explain import Explainer
from moray.runtime.marks import read_mark
from moray.runtime.output import Output
from moray.runtime.recovery import Recovery
from moray.runtime.references import ReferenceShell
from moray.runtime.submission import Submitter
from moray.runtime.unfetched import Unfetched
from moray.runtime.unusable import Forked, Unusable
from moray.runtime.values import Values

if TYPE_CHECKING:
    from types import ModuleType

    from moray.runtime.remote import Remote


def _leave(_answer: Any) -> None:
    """There is nothing to undo."""


class Peer:
    """Another process of the session, as far as this one talks to it. Owned by the loop."""

    __slots__ = (
        "address", "callee", "caller", "connection", "connections", "dead", "functions", "origin", "pid", "slots",
    )  # fmt: skip

    def __init__(self, origin: Origin, address: str, pid: int = 0) -> None:
        self.origin = origin
        self.address = address
        self.pid = pid
        #: The connection to send on; None: not connected at the moment.
        self.connection: Connection | None = None
        #: All that are open: both sides may have connected at once, and an old one may not have ended here yet.
        self.connections: dict[Connection, None] = {}
        #: Why the process is gone; None while it lives.
        self.dead: m.ProcessDied | None = None
        #: Functions of ours that it knows.
        self.functions: set[int] = set()
        #: Leases of ours at this worker: lease → (pool, slot).
        self.slots: dict[int, Any] = {}
        #: The actor that it is, if we call it (:class:`~moray.runtime.callee.Callee`).
        self.callee: Any = None
        #: Its side of the conversation with the actor that we are (:class:`~moray.runtime.work.Caller`).
        self.caller: Any = None


class Waiter:
    """A thread's wish to be woken; spurious wake-ups are allowed, so conditions are checked again."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def notify(self) -> None:
        """Wake the thread. Any thread, any number of times."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # It was notified already and has not looked yet.

    def wait(self, timeout_s: float = -1) -> bool:
        """Sleep until notified; False if `timeout_s` passed first (-1: no limit)."""
        return self._lock.acquire(True, timeout_s)


class Runtime:
    """One process's part in a session."""

    #: "driver" or "worker".
    kind = "driver"
    #: What becomes of what no node can run, as init() says: "wait" or "error"; "": what the environment says.
    infeasible = ""
    #: Its job's namespace is one of its own, which nobody else knows, and its user has not heard what that means yet.
    nameless = False
    #: See :class:`Forked`.
    forked = False
    #: Placement groups (:func:`moray.runtime.groups.groups_of`), and the one that what is submitted now inherits.
    groups: Any = None
    captured: m.Placement | None = None
    #: Several tasks run here at once: which one a thread belongs to must be looked up.
    concurrent = False
    #: What runs here, if it is one at a time: set by a worker for each task.
    work: Any = None

    def __init__(
        self,
        process: bytes,
        welcome: m.Welcome,
        node_socket: socket.socket,
        leftover: bytes,
        arena: int,
        listener: socket.socket | None = None,
        inbox: socket.socket | None = None,
    ) -> None:
        self.process = process
        self.welcome = welcome
        self.session_dir = welcome.session_dir
        self.job = welcome.job_id.to_bytes(4, "big")
        self.origin = Origin(process, self.job, self)
        #: This machine's part of all its processes' ids.
        self.tag = tag_of(process)
        self.reactor = Reactor()
        #: Guards the table of escaped and foreign entries: Origin.entries, Entry.alive of those.
        self.import_lock = RLock()
        #: Guards Entry.waiters.
        self.waiter_lock = RLock()
        #: What happened to references (see :mod:`moray.runtime.references`); dead ones come in by C code.
        self.events: deque[Any] = deque()
        #: C code that adds to it.
        self.note_event = self.events.append
        #: Calls that other threads ask the loop to make.
        self.calls: deque[Callable[[], None]] = deque()
        #: Task and object numbers. `next` is one C step.
        self.sequence = itertools.count(1)
        self._requests = itertools.count(1)
        #: Request number → what to do with the node's answer. Threads add, the loop removes.
        self.pending: dict[int, Callable[[Any], None]] = {}
        #: Known processes by id.
        self.peers: dict[bytes, Peer] = {}
        self.origins: dict[bytes, Origin] = {process: self.origin}
        #: Why the session is over; None while it runs.
        self.ended: str | None = None
        self.closing = False
        self.pid = os.getpid()
        #: Where workers of the job find modules.
        self.sys_path = list(sys.path)
        self.handlers: dict[type, Callable[[Connection, Any], None]] = {
            m.Hello: self._on_hello,
            m.ProcessDied: self._on_process_died,
            m.NodeDied: self._on_node_died,
            m.Located: self.on_answer,
            m.ObjectCreated: self.on_answer,
            m.ObjectPinned: self.on_answer,
            m.StoreDone: self.on_answer,
            m.StoreError: self.on_answer,
            m.ClusterState: self.on_answer,
            m.KvAnswer: self.on_answer,
            m.ShutdownDone: self._on_shutdown_done,
        }
        self.shutdown_done = Waiter()
        self.output = Output(self)
        self.values = Values(self, arena)
        self.references = ReferenceShell(self)
        self.recovery = Recovery(self)
        self.submitter = Submitter(self)
        self.actors = ActorClient(self)
        self.cancels = Cancels(self)
        self.explainer = Explainer(self)
        self.unfetched = Unfetched(self)
        self._connect_all(node_socket, leftover, listener, inbox)

    def _connect_all(
        self,
        node_socket: socket.socket,
        leftover: bytes,
        listener: socket.socket | None,
        inbox: socket.socket | None,
    ) -> None:
        """Be reachable, and have the loop serve everything."""
        self.address = socket_path(self.session_dir, self.process)
        self._listener = listener if listener is not None else listen(self.address)
        self.reactor.register(self._listener.fileno(), READ, self._accept)
        self.node = Connection(node_socket, self.reactor, self.on_message, self._on_node_closed, leftover)
        self.reactor.hooks += [self._run_calls, self.references.flush, self.values.space.tell, self.cancels.run]
        self.reactor.hooks += [self.submitter.dispatch, self.actors.dispatch, self.values.flush]
        #: Peers at other machines; None: there are none.
        self.remote: Remote | None = None
        if self.welcome.credentials:
            from moray.runtime.remote import Remote

            self.remote = Remote(self, inbox)
        object_ref.importer = self.references.import_ref
        _register_fork_hook()

    # --- threads ------------------------------------------------------------------------------------

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have the loop make a call. Any thread."""
        self.calls.append(call)
        self.wake()

    def wake(self) -> None:
        """Make the loop turn if it sleeps. Any thread."""
        self.reactor.wake()

    def block(self, waiter: Waiter, deadline: float | None) -> bool:
        """Let this thread sleep until `waiter` is notified (False: the deadline passed)."""
        return handlers.block(self, waiter, deadline)

    def current_work(self) -> Any:
        """What the calling thread or coroutine runs, in a worker; None in a driver."""
        return self.work

    def post_result(self, work: Any, result: m.Result, borrows: Any) -> None:
        """Send a task's result that had to pass the reference protocol. Loop only; workers override it."""
        raise NotImplementedError

    def drop_result(self, result: m.Result) -> None:
        """A result that passed the reference protocol is nobody's any more. Loop only; workers override it."""

    def drain_connection(self, connection: Connection) -> None:
        """Handle what a peer has already sent. Loop only."""
        if not connection.readable():
            return
        # We may be in a handler, whose connection's later frames are still in the scratch buffer.
        reactor = self.reactor
        scratch, reactor.scratch = reactor.scratch, memoryview(bytearray(len(reactor.scratch)))
        try:
            while connection.readable():
                connection.on_events(READ)
        finally:
            reactor.scratch = scratch

    def task_name(self) -> str:
        """What runs here now, for the prefix of its output."""
        return ""

    def current_name(self) -> str:
        """The name of the task or call that this thread or coroutine runs."""
        return ""

    def function_name(self) -> str:
        """The function or method of the task that this thread or coroutine runs."""
        return ""

    def log_target(self) -> Connection | None:
        """Where output goes that is meant for the driver: toward whoever gets the result of the running task."""
        return None

    def output_sent(self, out_bytes: int, err_bytes: int) -> None:
        """So much of this process's output has been sent."""

    def current_task_id(self) -> bytes | None:
        """The 24-byte id of the task that runs here; None in a driver."""
        return None

    def task_resources(self) -> dict[str, float]:
        """What the running task asked for."""
        return {}

    def new_waiter(self) -> Waiter:
        """A fresh waiter for this thread."""
        return Waiter()

    def blocked(self) -> None:
        """This thread is about to wait in moray for something unfinished (LEASE). Workers tell the node."""

    def unblocked(self) -> None:
        """The wait announced by `blocked` is over."""

    def sending_locks(self) -> list[Any]:
        """What the loop needs to send what tasks made, and a thread that runs one may hold."""
        return []

    def check_usable(self) -> None:
        """Raise if nothing can be waited for: the session is over, or this is a fork of the runtime's process."""
        if self.ended is not None:
            raise exceptions.LocalNodeDiedError(self.ended)

    def _run_calls(self) -> None:
        calls = self.calls
        while calls:
            calls.popleft()()

    # --- requests to the node --------------------------------------------------------------------------

    def request(self, make: Callable[[int], m.Message], on_answer: Callable[[Any], None]) -> None:
        """Send the node a message with a request number and have the loop call back with its answer. Any thread."""
        number = next(self._requests)
        self.pending[number] = on_answer
        self.node.send(make(number))
        if self.ended is not None:
            self._fail_requests()

    def ask(
        self,
        make: Callable[[int], m.Message],
        undo: Callable[[Any], None] = _leave,
        before: Callable[[], None] | None = None,
    ) -> Any:
        """The node's answer; blocks this thread, which is not the loop's. If the thread is interrupted meanwhile,
        `undo` gets the answer, there or in the loop (INTERRUPT). The loop makes the call `before` first."""
        answers: list[Any] = []
        given_up: list[None] = []
        waiter = Waiter()
        sending = allocate_lock()

        def send() -> None:
            # What the caller sends when it has been interrupted must not be overtaken by the request itself.
            with sending:
                if not given_up:
                    self.request(make, answered)

        def take_back() -> None:
            try:
                answer = answers.pop()  # Here or there: whoever gets it.
            except IndexError:
                return
            undo(answer)

        def answered(answer: Any) -> None:
            answers.append(answer)
            if given_up:
                take_back()
            waiter.notify()

        try:
            if before is None:
                self.request(make, answered)
            else:
                self.calls.append(before)
                self.call_soon(send)
            while not answers:
                if not self.block(waiter, monotonic() + HEARTBEAT_S) and self.ended is not None:
                    raise exceptions.LocalNodeDiedError(self.ended)  # The loop turns no more.
            if isinstance(answers[0], BaseException):
                raise answers[0]
            return answers[0]
        except BaseException:
            with sending:
                given_up.append(None)
            take_back()
            raise

    def on_answer(self, _connection: Connection, message: Any) -> None:
        on_answer = self.pending.pop(message.request, None)
        if on_answer is not None:
            on_answer(message)

    def _fail_requests(self) -> None:
        while self.pending:
            try:
                _number, on_answer = self.pending.popitem()
            except KeyError:
                return
            on_answer(exceptions.LocalNodeDiedError(self.ended or "the session has ended"))

    # --- dispatch ------------------------------------------------------------------------------------------

    def on_message(self, connection: Connection, message: m.AnyMessage) -> None:
        """Every message of every connection passes here. Loop only."""
        handler = self.handlers.get(type(message))
        if handler is not None:
            handler(connection, message)

    def _accept(self, _events: int) -> None:
        while True:
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            try:
                peer_pid(sock)
            except PermissionError:
                sock.close()
                continue
            Connection(sock, self.reactor, self.on_first, self.on_peer_closed)

    def on_first(self, connection: Connection, message: m.AnyMessage) -> None:
        """Nothing but Hello is heard from a connection that has not said who it is."""
        if not isinstance(message, m.Hello):
            connection.close("the first message was not Hello")
            return
        connection.on_message = self.on_message
        self._on_hello(connection, message)

    def _on_hello(self, connection: Connection, hello: m.Hello) -> None:
        job = hello.job_id.to_bytes(4, "big") if hello.job_id else None
        peer = self.peer(hello.process, hello.address, hello.pid, job)
        # The newest: the one before may be dead unseen, and answers to what is repeated here would be lost on it.
        self.adopt(peer, connection)
        self.references.reconnected(peer)

    def adopt(self, peer: Peer, connection: Any) -> None:
        """Send to `peer` on this connection from now on. Loop only."""
        connection.peer = peer
        peer.connection = connection
        peer.connections[connection] = None

    def peer(self, process: bytes, address: str = "", pid: int = 0, job: bytes | None = None) -> Peer:
        """The peer with this id, known from now on. Loop only."""
        peer = self.peers.get(process)
        if peer is None:
            origin = self.origin_of(process, job or self.job)
            if address.startswith("tcp://") and tag_of(process) == self.tag:
                address = ""  # The head tells all callers of an actor how they reach it from elsewhere.
            peer = self.peers[process] = Peer(origin, address or socket_path(self.session_dir, process), pid)
        return peer

    def origin_of(self, process: bytes, job: bytes) -> Origin:
        """The origin with this id. Any thread: one dict step decides."""
        origin = self.origins.get(process)
        if origin is None:
            origin = self.origins.setdefault(process, Origin(process, job, self))
        return origin

    def connect(self, peer: Peer) -> Any:
        """The connection to a peer, made now if needed; None if it cannot be reached. Loop only."""
        if peer.connection is not None:
            return peer.connection
        if peer.dead is not None:
            return None
        if self.remote is not None and tag_of(peer.origin.process) != self.tag:
            return self.remote.connect(peer)
        try:
            sock = connect(peer.address)
        except OSError:
            return None
        connection = Connection(sock, self.reactor, self.on_message, self.on_peer_closed)
        self.adopt(peer, connection)
        job = self.welcome.job_id
        connection.send(m.Hello(m.PROTOCOL_VERSION, "peer", self.process, self.pid, self.address, None, job))
        return connection

    def send(self, peer: Peer, message: m.Message) -> bool:
        """Send to a peer, connecting if needed; False if it is unreachable (its death will be told). Loop only."""
        connection = self.connect(peer)
        if connection is None:
            return False
        connection.send(message)
        return True

    def on_peer_closed(self, connection: Connection, _reason: str) -> None:
        peer = connection.peer
        if peer is None:
            return
        peer.connections.pop(connection, None)
        if peer.connection is connection:
            peer.connection = None
            peer.functions.clear()
        self.submitter.connection_closed(connection, peer)
        self.actors.connection_closed(connection, peer)
        self.references.disconnected(peer)

    def _on_process_died(self, _connection: Connection, message: m.ProcessDied) -> None:
        self.process_died(message)

    def process_died(self, message: m.ProcessDied) -> None:
        """A process is dead: its node says so, or that of another machine. Loop only."""
        peer = self.peer(message.process)
        if peer.dead is not None:
            return
        self._drain(peer)
        peer.dead = message
        if message.mark is None:
            self.output.worker_died(message.process, message.pid, read_mark(self.session_dir, message.process))
        self.submitter.worker_died(peer, message)
        self.references.process_died(peer)
        self.values.owner_died(peer.origin, message)
        self.forget_peer(message.process)

    def _on_node_died(self, _connection: Connection, message: m.NodeDied) -> None:
        """A machine is gone: every process there is dead, and nobody knows what had begun (FENCE)."""
        for process in [process for process in self.origins if tag_of(process) == message.tag_]:
            peer = self.peer(process)
            reason = f"was lost with its node {message.node_id.hex()}: {message.reason}"
            self.process_died(m.ProcessDied(process, peer.pid, -9, reason, mark=(0, -1)))
        if self.remote is not None:
            self.remote.node_died(message.tag_)
        self.recovery.node_died(message.tag_)

    def forget_peer(self, process: bytes) -> None:
        """A process is dead. If nothing of its is left here it goes from the tables, which would only grow with many
        short-lived workers."""
        with self.import_lock:
            peer = self.peers.get(process)
            if peer is not None and not peer.origin.entries:
                del self.peers[process]
                self.origins.pop(process, None)

    def _drain(self, peer: Peer) -> None:
        """Read what a dead process still had sent, so that nothing that arrived is lost."""
        for connection in list(peer.connections):
            self.drain_connection(connection)
            connection.close("the process ended")

    # --- the node's end ---------------------------------------------------------------------------------------

    def _on_node_closed(self, _connection: Connection, reason: str) -> None:
        if not self.closing:
            self.session_ended(f"the node of session {self.welcome.session} ended: {reason}")

    def _on_shutdown_done(self, _connection: Connection, _message: m.ShutdownDone) -> None:
        self.shutdown_done.notify()

    def session_ended(self, reason: str) -> None:
        """The session is over: everything that waits fails with `reason`. Loop only."""
        if self.ended is None:
            self.ended = reason
            self._fail_requests()
            self.submitter.session_ended(reason)
            self.actors.session_ended()
            self.values.session_ended(reason)
        self.shutdown_done.notify()

    # --- references ---------------------------------------------------------------------------------------------

    def make_ref(self, entry: Entry) -> ObjectRef[Any]:
        """The ObjectRef of an entry that has none. The creating thread, or under `import_lock`."""
        ref = new_ref(ObjectRef)
        ref._entry = entry
        alive = Alive(ref, self.note_event)
        alive.entry = entry
        alive.counted = False
        entry.alive = alive
        return ref

    def escape(self, entry: Entry, ref: ObjectRef[Any]) -> None:
        """`ref` is being pickled. Any thread."""
        self.references.escape(entry, ref)

    def future(self, ref: ObjectRef[Any]) -> Any:
        """See :meth:`ObjectRef.future`."""
        return self.values.future(ref)

    def await_ref(self, ref: ObjectRef[Any]) -> Any:
        """See ``ObjectRef.__await__``."""
        return self.values.await_ref(ref)

    def task_id_of(self, entry: Entry) -> bytes:
        """The 24 bytes of the task that makes an object."""
        return entry.id[:24]

    def can_import(self, module: ModuleType) -> bool:
        """Whether workers find `module` by its name: it lies on their path (or is built in)."""
        file = getattr(module, "__file__", None)
        if file is None:
            return module.__name__ in sys.builtin_module_names or hasattr(module, "__path__")
        root = os.path.abspath(file)
        for _ in range(module.__name__.count(".") + 1 + (os.path.basename(file) == "__init__.py")):
            root = os.path.dirname(root)
        return root in self.sys_path

    # --- fork (FORK) -------------------------------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """In a child made by the user's code: give up what belongs to the parent, without a word to anybody."""
        forked = Forked(self.pid)
        state.runtime = forked  # type: ignore[assignment]
        for origin in self.origins.values():
            origin.runtime = forked
        object_ref.importer = None
        self.events.clear()
        descriptors = [self._listener.fileno(), self.node.fd, *self.reactor.descriptors()]
        descriptors += self.remote.descriptors() if self.remote is not None else []
        descriptors += [connection.fd for peer in self.peers.values() for connection in peer.connections]
        for fd in descriptors:
            try:
                os.close(fd)
            except OSError:
                pass  # Closed by the parent before the fork.
        self.values.store.abandon()

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every descriptor. The caller turns the loop no more."""
        self.closing = True
        if object_ref.importer == self.references.import_ref:
            object_ref.importer = None
        for peer in list(self.peers.values()):
            for connection in list(peer.connections):
                connection.close()
        if self.remote is not None:
            self.remote.close()
        self.node.close()
        self.reactor.unregister(self._listener.fileno())
        self._listener.close()
        try:
            os.unlink(self.address)
        except OSError:
            pass  # The node has removed the whole directory.
        self.values.close()
        self.output.close()
        self.reactor.close()
        # A reference that outlives the session must not keep all this.
        ended = Unusable(f"session {self.welcome.session} has ended, and its references with it")
        for origin in self.origins.values():
            origin.runtime = ended


def socket_path(session_dir: str, process: bytes) -> str:
    """Where a process of the session accepts peers."""
    return f"{session_dir}/{process.hex()}.sock"


_fork_hook_registered = False


def _register_fork_hook() -> None:
    global _fork_hook_registered
    if not _fork_hook_registered:
        _fork_hook_registered = True
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    if state.runtime is not None and not state.runtime.forked:
        state.runtime.after_fork_in_child()
