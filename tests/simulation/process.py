"""One simulated process: connections, dispatch, the loop's turn, the user's thread.

User code is a generator (:mod:`tests.simulation.user_code`). The loop handles one message per event; its turn, in which
references, tasks and values are flushed, is an event of its own shortly afterwards, so that user code and messages
come in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from moray.protocol import messages as m
from tests.simulation.actors import ActorClient
from tests.simulation.cancels import Cancels
from tests.simulation.network import End, connect
from tests.simulation.objects import Entry, Ref, Value, dump
from tests.simulation.references import ReferenceShell
from tests.simulation.streams import Streams
from tests.simulation.submission import Submitter
from tests.simulation.user_code import Code, Open, Thread
from tests.simulation.values import Values
from tests.simulation.world import Timer

if TYPE_CHECKING:
    from tests.simulation.universe import Universe


class Peer:
    """Another process, as far as this one talks to it."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.connection: End | None = None
        #: All that are open.
        self.connections: dict[End, None] = {}
        self.dead = False
        #: Functions of ours that it knows.
        self.functions: set[int] = set()
        #: Leases of ours at this worker: lease → (pool, slot).
        self.slots: dict[int, Any] = {}
        #: The actor of ours that it is, and what it is for the actor that we are.
        self.callee: Any = None
        self.caller: Any = None


class Process:
    """A driver; the base of workers."""

    kind = "driver"

    def __init__(self, universe: Universe, name: bytes, job: int) -> None:
        self.universe = universe
        self.world = universe.world
        self.oracle = universe.oracle
        self.memory = universe.memory
        self.name = name
        self.job = job
        self.dead = False
        self.stalled_until = 0.0
        #: How much slower than others it computes.
        self.slowness = 1.0
        self.node: End
        self.peers: dict[bytes, Peer] = {}
        #: Every connection that was made or accepted.
        self.ends: list[End] = []
        #: Borrowed objects, and own ones whose id has left.
        self.entries: dict[bytes, Entry] = {}
        #: What user code did to references, oldest first.
        self.events: deque[Any] = deque()
        self._turn_due = False
        self._seq = 0
        self._requests = 0
        self._pending: dict[int, Callable[[Any], None]] = {}
        #: References that user code keeps in a global variable.
        self.stash: list[Ref] = []
        #: Its driver's program is over and has said so.
        self.leaving = False
        self.shut_down = False
        #: It runs a task.
        self.busy = False
        #: What runs in the user's thread: the parent of what it submits.
        self.current: Any = None
        self.references = ReferenceShell(self)
        self.values = Values(self)
        self.submitter = Submitter(self)
        self.actors = ActorClient(self)
        self.cancels = Cancels(self)
        self.streams = Streams(self)
        self.handlers: dict[type, Callable[[End, Any], None]] = {
            m.Hello: self._on_hello,
            m.ProcessDied: self._on_process_died,
            m.ObjectCreated: self._on_answer,
            m.ObjectPinned: self._on_answer,
            m.StoreDone: self._on_answer,
            m.StoreError: self._on_answer,
            m.ShutdownDone: self._on_shutdown_done,
            m.References: self.references.on_references,
            m.ReferencesDone: self.references.on_done,
            m.Fetch: self.references.on_fetch,
            m.ObjectValue: self.values.on_value,
            m.Results: self.submitter.on_results,
            m.Recalled: self.submitter.on_recalled,
            m.LeaseGranted: self.submitter.on_granted,
            m.LeaseRefused: self.submitter.on_refused,
            m.LeaseRevoked: self.submitter.on_revoked,
            m.ActorRegistered: self._on_answer,
            m.ActorNames: self._on_answer,
            m.ActorState: self.actors.on_state,
            m.ActorPlaced: self.actors.creations.on_placed,
            m.CallResults: self.actors.on_results,
            m.CancelAnswer: self.cancels.on_answer,
            m.CancelObject: self.cancels.on_cancel_object,
            m.StreamItems: self.streams.on_items,
        }

    @property
    def title(self) -> str:
        return self.name.decode().rstrip(".")

    def is_busy(self) -> bool:
        """Whether user code runs here that is no driver's program."""
        return self.busy

    def unsent(self) -> list[Any]:
        """Tasks and results that are here and whose references are on their way."""
        return []

    def left(self) -> list[str]:
        """What is not gone although nothing is referred to any more."""
        core = self.references.core
        tables: dict[str, Collection[Any]] = {
            "entries": self.entries, "own objects": core.owned, "borrowed": core.foreign, "tasks": core.tasks,
            "containers": core.containers, "replies": self.references.gated, "questions": core.questions,
            "pending tasks": self.submitter.pending, "actors": self.actors.creations.created,
            "calls": self.actors.open_calls(),
        }  # fmt: skip
        found = [f"{name}: {list(table)[:3]}" for name, table in tables.items() if table]
        talking = [
            peer.process
            for peer in core.peers.values()
            if peer.transit or peer.unacked or peer.provisional or peer.registered or peer.outbox
        ]
        return found + ([f"words with {talking}"] if talking else [])

    # --- names -----------------------------------------------------------------------------------

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def object_id(self, seq: int, index: int) -> bytes:
        return self.id_of(self.name, seq << 32 | index)

    def id_of(self, owner: bytes, key: int) -> bytes:
        job = self.universe.processes[owner].job.to_bytes(4, "big")
        return (key >> 32).to_bytes(8, "big") + owner + job + (key & 0xFFFFFFFF).to_bytes(4, "big")

    def make_ref(self, entry: Entry) -> Ref:
        ref = entry.alive = Ref(self, entry)
        return ref

    def pickle(self, refs: list[Ref]) -> bytes:
        """A value that contains these references."""
        for ref in refs:
            self.references.escape(ref)
        return dump(Value(self.oracle.next_mark(), [ref.entry.id for ref in refs]))

    # --- the user's thread --------------------------------------------------------------------------

    def start(self, code: Code[Any], then: Callable[[], None]) -> Thread:
        """Run user code; `then` is called when it is through."""
        return Thread(self, code, then)

    def compute(self, duration_s: float) -> Code[None]:
        """User code that takes so long."""
        yield Open(lambda resume: self._after(duration_s, resume))

    def work(self, duration_s: float) -> Code[None]:
        """Code of ours that takes so long: no interrupt ends it."""
        yield lambda resume: self._after(duration_s, resume)

    def _after(self, duration_s: float, resume: Callable[[Any], None]) -> None:
        self.later(duration_s * self.slowness, lambda: resume(None))

    def ask(self, make: Callable[[int], m.Message]) -> Code[Any]:
        """The node's answer."""
        self._requests += 1
        number = self._requests

        def wait(resume: Callable[[Any], None]) -> None:
            self._pending[number] = resume
            self.node.send(make(number))

        answer = yield wait
        return answer

    def blocked(self) -> None:
        """The user's thread is about to wait for something unfinished. Workers tell the node."""

    def unblocked(self) -> None:
        """The wait is over."""

    def post_result(self, work: Any, result: m.Result, borrows: Any) -> None:
        """Send a result that had to pass the reference protocol. Workers do."""
        raise NotImplementedError

    # --- the loop --------------------------------------------------------------------------------------

    def later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """A timer or a continuation of this process."""

        def happen() -> None:
            call()
            self.wake()

        return self.world.at(delay_s, "", happen, self)

    def wake(self) -> None:
        """Have the loop turn soon."""
        if not self._turn_due:
            self._turn_due = True
            self.world.at(self.world.random.random() * 1e-4, "", self._turn, self)

    def _turn(self) -> None:
        self._turn_due = False
        self.cancels.run()
        self.references.flush()
        self.submitter.dispatch()
        self.actors.dispatch()
        self.values.flush()
        self.validate()

    def validate(self) -> None:
        """The cores' own checks."""
        self.references.validate()
        self.submitter.validate()
        self.actors.validate()

    def on_message(self, connection: End, message: Any) -> None:
        handler = self.handlers.get(type(message))
        if handler is not None:
            handler(connection, message)
            self.wake()

    def _on_answer(self, _connection: End, message: Any) -> None:
        resume = self._pending.pop(message.request, None)
        if resume is not None:
            resume(message)

    def _on_shutdown_done(self, _connection: End, _message: m.ShutdownDone) -> None:
        self.shut_down = True

    # --- connections -------------------------------------------------------------------------------------

    def peer(self, name: bytes) -> Peer:
        peer = self.peers.get(name)
        if peer is None:
            peer = self.peers[name] = Peer(name)
        return peer

    def new_end(self, other: Process) -> End:
        end = End(self.world, self, f"{other.title}>{self.title}", self.on_message, self._on_closed)
        self.ends.append(end)
        return end

    def connect(self, peer: Peer) -> End | None:
        """The connection to a peer, made now if needed; None if it cannot be reached."""
        if peer.connection is not None:
            return peer.connection
        other = self.universe.processes.get(peer.name)
        if peer.dead or other is None or other.dead:
            return None
        here, there = self.new_end(other), other.new_end(self)
        connect(here, there)
        here.peer = peer
        peer.connection = here
        peer.connections[here] = None
        here.send(m.Hello(m.PROTOCOL_VERSION, "peer", self.name, 0))
        return here

    def send(self, peer: Peer, message: m.Message) -> bool:
        connection = self.connect(peer)
        if connection is None:
            return False
        connection.send(message)
        return True

    def _on_hello(self, connection: End, hello: m.Hello) -> None:
        peer = self.peer(hello.process)
        connection.peer = peer
        peer.connection = connection
        peer.connections[connection] = None
        if peer.name in self.references.core.peers:
            self.references.core.reconnected(peer.name)

    def _on_closed(self, connection: End) -> None:
        peer: Peer | None = connection.peer
        connection.hang_up()
        if peer is None:
            return
        peer.connections.pop(connection, None)
        if peer.connection is connection:
            peer.connection = None
            peer.functions.clear()
        self.submitter.connection_closed(peer)
        self.actors.connection_closed(connection, peer)
        self.references.disconnected(peer)
        self.wake()

    def close(self, connection: End) -> None:
        """End a connection from here."""
        if not connection.closed:
            connection.close()
            self._on_closed(connection)

    def _on_process_died(self, _connection: End, message: m.ProcessDied) -> None:
        peer = self.peer(message.process)
        if peer.dead:
            return
        for connection in list(peer.connections):
            connection.drain()
            self.close(connection)
        peer.dead = True
        self.submitter.worker_died(peer, self.universe.marks.get(peer.name, (0, 0)))
        self.references.process_died(peer)
        self.values.owner_died(peer.name)
        if not any(entry.owner == peer.name for entry in self.entries.values()):
            del self.peers[peer.name]
