"""Objects between this node's store and those of others: connections and memory for :mod:`moray.core.transfers`.

What becomes of each event is decided there. Here is what it says to whom, and where the bytes are.

*Lines.* Objects travel on connections of their own, so that they hold nothing else up. A node opens one to each node
that it pulls from, when it first needs it; on it go questions and acknowledgements, and back come chunks, straight
from the one arena and straight into the other. When it is lost, it is made anew as long as something is asked there;
a node that stays away is declared dead by the head, not here (LIVENESS). All other messages go by the links of
:mod:`moray.node.links`, which deliver once and in order.

*Memory.* The node maps the arena, and reads and writes objects in the name of a process of its own,
:attr:`~ObjectTransfers.process`: it makes, seals and pins them like any other. A view of an object is here exactly as
long as the core may name the object in a chunk; the store keeps its bytes in place for so long (STORE-PIN).

Owned by the node's loop. Nothing of a user's is unpickled.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from itertools import count
from typing import Any, Final, Protocol

from moray.core import transfers_types as t
from moray.core.performing import Performer
from moray.core.transfers import Transfers
from moray.ids import PROCESS_BYTES, TAG_BYTES, tag_of
from moray.node.logs import log
from moray.protocol import messages as m
from moray.protocol.connection import encode_frame
from moray.protocol.reactor import Reactor, Timer
from moray.store.server import StoreServer

#: Objects on their way here may fill this part of the arena at a time.
_BUDGET_SHARE: Final = 4
#: A line that was lost is made anew after this time, doubled up to the last.
_RETRY_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0


class Line(Protocol):
    """A connection between nodes: :class:`~moray.protocol.tls.TlsConnection`, or one of tests."""

    on_message: Callable[[Any, Any], None]
    on_close: Callable[[Any, str], None]
    peer: Any

    def send(self, message: m.Message) -> None: ...
    def send_raw(self, frame: bytes, raw: memoryview) -> bool: ...
    def receive_raw(self, size: int, into: memoryview | None, on_done: Callable[[], None]) -> None: ...
    def close(self, reason: str = ...) -> None: ...


#: Connects to the node with this id: (its id, on_message, on_close) → the connection; OSError if that fails at once.
DialLine = Callable[[bytes, Callable[[Any, Any], None], Callable[[Any, str], None]], Any]


class Books(Protocol):
    """Whose objects the store has (:class:`~moray.node.owned.OwnedObjects`)."""

    def note_copy(self, name: bytes) -> None: ...
    def forget(self, objects: list[bytes]) -> None: ...
    def handle(self, process: bytes, message: m.Message) -> None: ...


class ObjectTransfers:
    """This node's transfers.

    Args:
        node_id: its 28 bytes.
        store: its objects.
        books: whose they are.
        arena_bytes: the size of the store's arena.
        dial: opens a line to a node.
        send: delivers a message to a node, by its tag, once and in order.
        answer: sends a message to a process of this node.
    """

    def __init__(
        self, node_id: bytes, store: StoreServer, books: Books, arena_bytes: int, reactor: Reactor, dial: DialLine,
        send: Callable[[bytes, m.Message], None], answer: Callable[[bytes, m.Message], None], budget: int = 0,
        chunk: int = t.CHUNK_BYTES,
    ) -> None:  # fmt: skip
        self.node_id = node_id
        self.tag = tag_of(node_id)
        #: The node's own process id, as the store knows it: no client's, whose other bytes are random.
        self.process = self.tag + bytes(PROCESS_BYTES - TAG_BYTES)
        self._store = store
        self._books = books
        self._arena_bytes = arena_bytes
        self._reactor = reactor
        self._dial = dial
        self._send = send
        self._answer = answer
        self.core = Transfers(self.tag, budget or arena_bytes // _BUDGET_SHARE, store.holds, store.has_whole, chunk)
        #: The arena; None until something is sent or comes.
        self._arena: memoryview | None = None
        #: Living nodes: tag → id.
        self._nodes: dict[bytes, bytes] = {}
        #: Lines on which this node pulls, by the other's tag; pauses before they are made again.
        self._out: dict[bytes, Line] = {}
        self._retries: dict[bytes, tuple[float, Timer | None]] = {}
        #: Lines on which others pull from here, by number.
        self._in: dict[int, Line] = {}
        self._numbers = count(1)
        #: Requests to the store: number → (object, whether it is for a copy to be written).
        self._requests: dict[int, tuple[bytes, bool]] = {}
        #: Objects that are fetched from nodes that leave, by the request: (object, node, who hears how it went).
        self._taking: dict[int, tuple[bytes, bytes, Callable[[str], None]]] = {}
        #: Where the bytes of objects are that are written, or pinned to be sent, and the pins of each.
        self._views: dict[bytes, memoryview] = {}
        self._pins: dict[bytes, int] = {}
        self._making: dict[bytes, int] = {}
        self._closed = False
        store.attach_node(self.process, self._on_store)
        store.on_dropped = self._on_dropped
        #: Messages of other nodes that come by links: (link, message).
        self.link_handlers: dict[type[Any], Callable[[Any, Any], None]] = {
            kind: lambda link, message: self.on_link_message(tag_of(link.node_id), message)
            for kind in (m.CopyMade, m.FreeCopies, m.FindCopies, m.CopiesFound, m.PromoteCopies)
        }
        self._perform = Performer(
            {
                t.PinHere: lambda a: store.handle(a.process, m.PinObject(a.request, a.object)),
                t.FailPin: self._fail_pin,
                t.Located: lambda a: answer(a.process, m.ObjectsFound(a.request, a.nodes)),
                t.MakeCopy: self._make_copy,
                t.SealCopy: self._seal_copy,
                t.AbortCopy: self._abort_copy,
                t.HoldObject: self._hold,
                t.LetGo: self._let_go,
                t.Promote: lambda a: store.promote(a.object),
                t.AskFor: self._ask_for,
                t.Acknowledge: self._acknowledge,
                t.Begin: lambda a: self._send_on(a.line, m.PullBegins(a.pull, a.size)),
                t.SendChunk: self._send_chunk,
                t.Refuse: lambda a: self._send_on(a.line, m.PullRefused(a.pull, a.code, a.sources)),
                t.TellCopies: lambda a: self._send(a.node, m.CopyMade(a.objects, a.gone)),
                t.FreeAt: lambda a: self._send(a.node, m.FreeCopies(a.objects)),
                t.Find: lambda a: self._send(a.node, m.FindCopies(a.request, a.objects)),
                t.Found: lambda a: self._send(a.node, m.CopiesFound(a.request, a.objects)),
                t.PromoteAt: lambda a: self._send(a.node, m.PromoteCopies(a.request, a.objects, a.copies)),
            }
        )

    # --- this node's clients --------------------------------------------------------------------------

    def pin(self, process: bytes, message: m.PinObject) -> None:
        """A process wants to read an object whose primary copy is at another node."""
        if message.node == self.tag:
            self._store.handle(process, message)
            return
        priority = min(max(message.priority, 0), t.PRIORITIES - 1)
        self._perform(
            self.core.pin(process, message.request, message.object, message.node, message.size, priority)
        )  # fmt: skip

    def freed(self, objects: list[bytes], node: bytes = b"", by_primary: bool = False) -> None:
        """No reference is left to these, and the store has been told."""
        self._perform(self.core.freed(objects, node, by_primary))

    def is_primary(self, name: bytes) -> bool:
        """Whether the primary copy of an object is here."""
        return self._store.holds(name) and not self.core.is_copy(name)

    def free_strays(self, objects: list[bytes], node: bytes) -> None:
        """A node has what attempts left there of objects whose primary copies are here."""
        self._perform(self.core.free_strays(objects, node))

    def locate(self, process: bytes, message: m.FindObjects) -> None:
        """An owner asks where its objects are, after the death of the node that had them."""
        self._perform(self.core.locate(process, message.request, message.objects))

    def process_died(self, process: bytes) -> None:
        """A process of this node is dead."""
        self._perform(self.core.process_died(process))

    # --- nodes that leave ---------------------------------------------------------------------------------

    def take_over(self, name: bytes, size: int, node: bytes, on_done: Callable[[str], None]) -> None:
        """Fetch an object from a node that leaves, and have its primary copy from then on; `on_done` hears "", or why
        that is not possible."""
        number = next(self._numbers)
        self._taking[number] = name, node, on_done
        self._perform(self.core.pin(self.process, number, name, node, size, t.PRIORITIES - 1))

    def given(self, name: bytes, node: bytes) -> None:
        """A node has taken an object over from this one, which leaves."""
        self._perform(self.core.given(name, node))

    def _fail_pin(self, action: t.FailPin) -> None:
        if action.process == self.process:
            self._taking.pop(action.request)[2](action.detail)
        else:
            self._answer(action.process, m.StoreError(action.request, action.code, action.detail))

    def _on_taken(self, number: int, answer: m.Message) -> None:
        """The store has pinned an object that is taken over, or cannot."""
        name, node, on_done = self._taking.pop(number)
        problem = ""
        if isinstance(answer, m.StoreError):
            problem = answer.detail
        elif not self.core.is_copy(name):
            problem = f"object {name.hex()}: another attempt at it is here"
        else:
            self._store.promote(name)  # At once: without the pin, a copy may be dropped.
            self._perform(self.core.take_over(name, node))
        if not isinstance(answer, m.StoreError):
            self._store.handle(self.process, m.UnpinObjects([name]))
        on_done(problem)

    # --- nodes ------------------------------------------------------------------------------------------

    def node_joined(self, node_id: bytes) -> None:
        """There is another node."""
        if node_id != self.node_id:
            self._nodes[tag_of(node_id)] = node_id
            self._perform(self.core.node_joined(tag_of(node_id)))
            self._line_again(tag_of(node_id))

    def node_died(self, node_id: bytes) -> None:
        """A node is dead, for good."""
        tag = tag_of(node_id)
        self._nodes.pop(tag, None)
        _, timer = self._retries.pop(tag, (0.0, None))
        if timer is not None:
            timer.cancel()
        line = self._out.pop(tag, None)
        if line is not None:
            self._silence(line)
            line.close("the node is dead")
        self._perform(self.core.line_down(tag))
        for number, incoming in list(self._in.items()):
            if incoming.peer == tag:
                del self._in[number]
                self._silence(incoming)
                incoming.close("the node is dead")
                self._perform(self.core.line_ended(number))
        self._perform(self.core.node_died(tag))

    def on_link_message(self, node: bytes, message: Any) -> None:
        """A message of another node came by its link."""
        if isinstance(message, m.CopyMade):
            self._perform(self.core.copies_told(node, message.objects, message.gone))
        elif isinstance(message, m.FreeCopies):
            self._store.handle(self.process, m.FreeObjects(message.objects))
            self._books.forget(message.objects)
            self.freed(message.objects, by_primary=True)
        elif isinstance(message, m.FindCopies):
            self._perform(self.core.find_asked(node, message.request, message.objects))
        elif isinstance(message, m.CopiesFound):
            self._perform(self.core.found(node, message.request, message.objects))
        elif isinstance(message, m.PromoteCopies):
            self._perform(self.core.promote_asked(node, message.request, message.objects, message.copies))

    # --- lines on which this node pulls -------------------------------------------------------------------

    def _ask_for(self, action: t.AskFor) -> None:
        line = self._out.get(action.node)
        if line is not None:
            line.send(m.PullObject(action.pull, action.object, action.offset, action.credit, action.avoid))
        elif action.node not in self._retries:
            self._line_again(action.node)
        # All questions are asked when there is a line.

    def _open(self, node: bytes) -> Line | None:
        """A line to a node; None: later."""
        node_id = self._nodes.get(node)
        if node_id is None:
            return None  # Its joining, or its death, is about to be told.
        try:
            line: Line = self._dial(node_id, self._on_message, self._on_close)
        except OSError as error:
            self._retry_later(node, str(error))
            return None
        line.peer = node
        self._out[node] = line
        line.send(m.LinkHello(m.PROTOCOL_VERSION, self.node_id, wanted=node_id, bulk=True))
        return line

    def _retry_later(self, node: bytes, reason: str) -> None:
        pause, timer = self._retries.get(node, (_RETRY_S, None))
        if timer is None:
            log(f"no line to node {node.hex()} ({reason}): next attempt in {pause:g} s if it is needed")
            timer = self._reactor.call_later(pause, lambda: self._line_again(node))
        self._retries[node] = (min(2 * pause, _RETRY_MAX_S), timer)

    def _line_again(self, node: bytes) -> None:
        pause, timer = self._retries.get(node, (_RETRY_S, None))
        if timer is not None:
            timer.cancel()
        if not self.core.asks(node):
            self._retries.pop(node, None)
        elif node not in self._out and node in self._nodes:
            self._retries[node] = (pause, None)
            if self._open(node) is not None:
                self._perform(self.core.line_up(node))

    def _on_close(self, line: Line, reason: str) -> None:
        node = line.peer
        if self._out.get(node) is line:
            del self._out[node]
            self._perform(self.core.line_down(node))
            if not self._closed:
                self._retry_later(node, reason)

    def _on_message(self, line: Line, message: Any) -> None:
        if isinstance(message, m.PullChunk):
            self._on_chunk(line, message)
        elif isinstance(message, m.PullBegins):
            self._retries[line.peer] = (_RETRY_S, None)
            self._perform(self.core.begins(message.pull, message.size))
        elif isinstance(message, m.PullRefused):
            self._perform(self.core.refused(message.pull, message.code, message.sources))
        else:
            line.close(f"a node that sends objects has no business sending {type(message).__name__}")

    def _on_chunk(self, line: Line, chunk: m.PullChunk) -> None:
        """Raw bytes follow: into their place, or nowhere."""
        node, number, size = line.peer, chunk.pull, chunk.size
        try:
            name = self.core.chunk_begins(number, chunk.offset, size)
        except ValueError as error:
            line.close(f"malformed data from the peer: {error}")
            return
        into = self._views[name][chunk.offset : chunk.offset + size] if name else None
        line.receive_raw(size, into, lambda: self._perform(self.core.chunk_ends(node, number, size)))

    def _acknowledge(self, action: t.Acknowledge) -> None:
        line = self._out.get(action.node)
        if line is not None:
            line.send(m.PullCredit(action.pull, action.size, action.stop))

    # --- lines on which others pull from here ----------------------------------------------------------------

    def accept(self, line: Line, hello: m.LinkHello) -> None:
        """Another node has opened a line; this was its first message."""
        if hello.wanted not in (b"", self.node_id):
            line.send(m.Refused(f"node {hello.wanted.hex()[:8]} is not here any more"))
            line.close("another node is wanted")
            return
        number = next(self._numbers)
        line.peer = tag_of(hello.node_id)
        line.on_message = lambda line, message: self._on_question(line, number, message)
        line.on_close = lambda _line, _reason: self._on_line_ended(number)
        self._in[number] = line

    def _on_question(self, line: Line, number: int, message: Any) -> None:
        if isinstance(message, m.PullObject):
            actions = self.core.asked(
                number, line.peer, message.pull, message.object, message.offset, message.credit, message.avoid
            )
            self._perform(actions)
        elif isinstance(message, m.PullCredit):
            self._perform(self.core.acknowledged(number, message.pull, message.bytes_, message.stop))
        else:
            line.close(f"a node that pulls objects has no business sending {type(message).__name__}")

    def _on_line_ended(self, number: int) -> None:
        if self._in.pop(number, None) is not None:
            self._perform(self.core.line_ended(number))

    def _send_on(self, number: int, message: m.Message) -> None:
        line = self._in.get(number)
        if line is not None:
            line.send(message)

    def _send_chunk(self, action: t.SendChunk) -> None:
        line = self._in.get(action.line)
        if line is not None:
            frame = encode_frame(m.PullChunk(action.pull, action.offset, action.size))
            line.send_raw(frame, self._views[action.object][action.offset : action.offset + action.size])

    # --- the store --------------------------------------------------------------------------------------------

    def _request(self, name: bytes, is_copy: bool) -> int:
        number = next(self._numbers)
        self._requests[number] = (name, is_copy)
        return number

    def _make_copy(self, action: t.MakeCopy) -> None:
        number = self._making[action.object] = self._request(action.object, is_copy=True)
        self._store.create_copy(self.process, number, action.object, action.size)

    def _hold(self, action: t.HoldObject) -> None:
        number = self._request(action.object, is_copy=False)
        self._store.handle(self.process, m.PinObject(number, action.object))

    def _on_store(self, message: m.Message) -> None:
        """The store answers the node."""
        if isinstance(message, (m.ObjectCreated, m.ObjectPinned, m.StoreError)):
            if message.request in self._taking:
                self._on_taken(message.request, message)
                return
            name, is_copy = self._requests.pop(message.request)
            if not is_copy:
                self._on_pinned(name, message)
            elif self._making.get(name) == message.request:
                self._on_made(name, message)
            # Otherwise it was given up meanwhile.

    def _on_made(self, name: bytes, answer: m.ObjectCreated | m.ObjectPinned | m.StoreError) -> None:
        if isinstance(answer, m.StoreError):
            del self._making[name]
            self._perform(self.core.copy_refused(name, answer.code, answer.detail))
        else:
            self._books.note_copy(name)
            self._views[name] = self._view(answer.offset, self.core.size_of(name), answer.path)
            self._perform(self.core.copy_placed(name))

    def _on_pinned(self, name: bytes, answer: m.ObjectCreated | m.ObjectPinned | m.StoreError) -> None:
        if isinstance(answer, m.ObjectPinned):
            self._pins[name] = self._pins.get(name, 0) + 1
            self._views[name] = self._view(answer.offset, answer.size, answer.path)
            self._perform(self.core.held(name, answer.size))
        else:
            self._perform(self.core.not_held(name))

    def _let_go(self, action: t.LetGo) -> None:
        self._pins[action.object] -= 1
        if not self._pins[action.object]:
            del self._pins[action.object]
            if action.object not in self._making:
                del self._views[action.object]
        self._store.handle(self.process, m.UnpinObjects([action.object]))

    def _seal_copy(self, action: t.SealCopy) -> None:
        del self._making[action.object]
        self._views.pop(action.object)
        # A copy for an owner that died meanwhile is freed by this.
        self._books.handle(self.process, m.SealObject(0, action.object))

    def _abort_copy(self, action: t.AbortCopy) -> None:
        self._making.pop(action.object, None)
        self._views.pop(action.object, None)
        self._books.handle(self.process, m.AbortObject(action.object))

    def _on_dropped(self, name: bytes) -> None:
        self._books.forget([name])
        self._perform(self.core.dropped(name))

    def _view(self, offset: int, size: int, path: str) -> memoryview:
        if path:
            return _map_file(path, offset, size)
        if self._arena is None:
            self._arena = memoryview(mmap.mmap(self._store.fd, self._arena_bytes))
        return self._arena[offset : offset + size]

    # --- the rest ----------------------------------------------------------------------------------------------

    def _silence(self, line: Line) -> None:
        line.on_message = _ignore
        line.on_close = _ignore

    def close(self) -> None:
        """Close all lines, and let the memory go."""
        self._closed = True
        for _, timer in self._retries.values():
            if timer is not None:
                timer.cancel()
        for line in [*self._out.values(), *self._in.values()]:
            self._silence(line)
            line.close("this node ends")
        self._out.clear()
        self._in.clear()
        self._views.clear()
        self._arena = None


def _ignore(_line: Any, _what: Any) -> None:
    """Nobody listens to it any more."""


def _map_file(path: str, offset: int, size: int) -> memoryview:
    """The bytes of a file that is an object, or has some."""
    begin = offset & -mmap.ALLOCATIONGRANULARITY
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        mapping = mmap.mmap(fd, max(offset - begin + size, 1), offset=begin)
    finally:
        os.close(fd)
    return memoryview(mapping)[offset - begin : offset - begin + size]
