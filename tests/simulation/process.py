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
from tests.simulation.network import End, connect
from tests.simulation.objects import Entry, Ref, Value, dump
from tests.simulation.references import ReferenceShell
from tests.simulation.submission import Submitter
from tests.simulation.user_code import Code
from tests.simulation.values import Values
from tests.simulation.world import Timer

if TYPE_CHECKING:
    from tests.simulation.universe import Universe


class Peer:
    """Another process, as far as this one talks to it."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.connection: End | None = None
        self.dead = False
        #: Functions of ours that it knows.
        self.functions: set[int] = set()
        #: Leases of ours at this worker: lease → (pool, slot).
        self.slots: dict[int, Any] = {}


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
        self.shut_down = False
        #: It runs a task.
        self.busy = False
        self.references = ReferenceShell(self)
        self.values = Values(self)
        self.submitter = Submitter(self)
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
        }

    @property
    def title(self) -> str:
        return self.name.decode().rstrip(".")

    def unsent(self) -> list[Any]:
        """Tasks and results that are here and whose references are on their way."""
        return []

    def left(self) -> list[str]:
        """What is not gone although nothing is referred to any more."""
        core = self.references.core
        tables: dict[str, Collection[Any]] = {
            "entries": self.entries, "own objects": core.owned, "borrowed": core.foreign, "tasks": core.tasks,
            "containers": core.containers, "replies": self.references.gated, "questions": core.questions,
            "pending tasks": self.submitter.pending,
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
        job = self.job.to_bytes(4, "big")
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

    def start(self, code: Code[Any], then: Callable[[], None]) -> None:
        """Run user code; `then` is called when it is through."""

        def resume(answer: Any) -> None:
            self.later(self.world.random.random() * 1e-4, lambda: go_on(answer))

        def go_on(answer: Any) -> None:
            try:
                wait = code.send(answer)
            except StopIteration:
                then()
                return
            wait(resume)

        resume(None)

    def compute(self, duration_s: float) -> Code[None]:
        """User code that takes so long."""

        def wait(resume: Callable[[Any], None]) -> None:
            self.later(duration_s * self.slowness, lambda: resume(None))

        yield wait

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

    def post_result(self, connection: End, result: m.Result, borrows: Any) -> None:
        """Send a result that had to pass the reference protocol."""
        connection.send(m.Results([result], borrows))

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
        self.references.flush()
        self.submitter.dispatch()
        self.values.flush()
        self.validate()

    def validate(self) -> None:
        """The cores' own checks."""
        self.references.validate()
        self.submitter.validate()

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
        if peer.connection is None:
            peer.connection = connection
        if peer.name in self.references.core.peers:
            self.references.core.reconnected(peer.name)

    def _on_closed(self, connection: End) -> None:
        peer: Peer | None = connection.peer
        connection.hang_up()
        if peer is None:
            return
        if peer.connection is connection:
            peer.connection = None
            peer.functions.clear()
        self.submitter.connection_closed(peer)
        self.references.disconnected(peer)
        self.wake()

    def _on_process_died(self, _connection: End, message: m.ProcessDied) -> None:
        peer = self.peer(message.process)
        if peer.dead:
            return
        if peer.connection is not None:
            peer.connection.drain()
        if peer.connection is not None:
            connection, peer.connection = peer.connection, None
            connection.close()
        peer.dead = True
        self.submitter.worker_died(peer, self.universe.marks.get(peer.name, (0, 0)))
        self.references.process_died(peer)
        self.values.owner_died(peer.name)
