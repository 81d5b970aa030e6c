"""Plain sockets with raw bytes between frames: what TLS connections do, without TLS; and nodes in one loop."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from moray.ids import new_process, object_id, tag_of
from moray.node.owned import OwnedObjects
from moray.node.transfers import ObjectTransfers
from moray.protocol import messages as m
from moray.protocol.connection import HEADER, Connection, decode_body
from moray.protocol.reactor import Reactor
from moray.store.client import StoreClient
from moray.store.server import StoreServer

DEADLINE_S = 30.0


class RawLine(Connection):
    """A connection whose messages may be followed by raw bytes."""

    __slots__ = ("_done", "_into", "_left", "raw_bytes")

    def __init__(self, *args: Any) -> None:
        self._left = 0
        self._into: memoryview | None = None
        self._done: Callable[[], None] | None = None
        #: Raw bytes that have come.
        self.raw_bytes = 0
        super().__init__(*args)

    def send_raw(self, frame: bytes, raw: memoryview) -> bool:
        self.out.append((frame, deque(), None))
        self.out.append((raw, deque(), None))  # type: ignore[arg-type]
        self.flush()
        return not self.closed

    def receive_raw(self, size: int, into: memoryview | None, on_done: Callable[[], None]) -> None:
        self._left, self._into, self._done = size, into, on_done

    def close(self, reason: str = "closed here") -> None:
        super().close(reason)
        self._into = self._done = None

    def _receive(self) -> None:
        if not self._left:
            super()._receive()
            return
        into = self._into if self._into is not None else memoryview(bytearray(self._left))
        try:
            size = self._receive_into(into)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(str(error))
            return
        if not size:
            self.close("connection closed by the peer")
            return
        self._arrived(into, size)

    def _arrived(self, into: memoryview, size: int) -> None:
        self.raw_bytes += size
        self._left -= size
        self._into = into[size:]
        if not self._left:
            done, self._done, self._into = self._done, None, None
            assert done is not None
            done()

    def _cut(self, data: memoryview | bytearray) -> None:
        view, position, total = memoryview(data), 0, len(data)
        while not self.closed:
            if self._left:
                size = min(self._left, total - position)
                if not size:
                    break
                into = self._into if self._into is not None else memoryview(bytearray(self._left))
                into[:size] = view[position : position + size]
                position += size
                self._arrived(into, size)
                continue
            if total - position < 8:
                break
            size, _version = HEADER.unpack_from(data, position)
            if total - position - 8 < size:
                break
            message = decode_body(view[position + 8 : position + 8 + size])
            position += 8 + size
            self.on_message(self, message)
        view.release()
        if data is self._inbox:
            del self._inbox[:position]
        else:
            self._inbox += data[position:]


def silence(line: Any) -> None:
    """Whatever it still says, nobody listens."""
    line.on_message = line.on_close = lambda *_: None


class FakeNode:
    """A node with a real store and real transfers."""

    def __init__(self, cluster: FakeCluster, number: int, arena_bytes: int, directory: Path, **options: Any) -> None:
        self.cluster = cluster
        self.node_id = number.to_bytes(4, "big") + os.urandom(24)
        self.tag = tag_of(self.node_id)
        self.answers: dict[tuple[bytes, int], Any] = {}
        self.warnings: list[str] = []
        self.store = StoreServer(
            arena_bytes, str(directory / f"node{number}"), self.answer, self.warnings.append, cluster.post
        )
        self.owned = OwnedObjects(self.store)
        self.transfers = self.owned.transfers = ObjectTransfers(
            self.node_id,
            self.store,
            self.owned,
            arena_bytes,
            cluster.reactor,
            self.dial,
            self.send,
            self.answer,
            **options,
        )
        self.client = StoreClient(os.dup(self.store.fd), arena_bytes)
        self.process = new_process(self.tag)
        self.requests = 0
        self.alive = True
        #: Lines that this node has opened, and those opened to it.
        self.dialled: list[RawLine] = []
        self.accepted: list[RawLine] = []

    def answer(self, process: bytes, message: Any) -> None:
        self.answers[process, message.request] = message

    def send(self, tag: bytes, message: m.Message) -> None:
        """A link: delivered in the next turn, in order."""
        other = self.cluster.by_tag[tag]

        def deliver() -> None:
            if other.alive and self.alive:
                other.transfers.on_link_message(self.tag, message)

        self.cluster.post(deliver)

    def dial(self, node_id: bytes, on_message: Any, on_close: Any) -> RawLine:
        other = self.cluster.by_tag[tag_of(node_id)]
        if not other.alive:
            raise ConnectionRefusedError(111, "nobody listens there")
        ours, theirs = socket.socketpair()
        reactor, accept = self.cluster.reactor, other.transfers.accept
        if self.cluster.identity is None:
            line: Any = RawLine(ours, reactor, on_message, on_close)
            accepted: Any = RawLine(theirs, reactor, accept, lambda *_: None)
        else:
            from moray.protocol.tls import TlsConnection
            from moray.security.identity import client_context, server_context

            context = client_context(self.cluster.identity)
            line = TlsConnection(ours, reactor, on_message, on_close, context=context, server_side=False)
            context = server_context(self.cluster.identity)
            first: Any = accept
            accepted = TlsConnection(theirs, reactor, first, lambda *_: None, context=context, server_side=True)
        self.dialled.append(line)
        other.accepted.append(accepted)
        made: RawLine = line
        return made

    # --- clients ---

    def ask(self, make: Callable[[int], m.Message], process: bytes = b"") -> Any:
        number = self.ask_soon(make, process)
        self.cluster.until(lambda: (process or self.process, number) in self.answers)
        return self.answers.pop((process or self.process, number))

    def ask_soon(self, make: Callable[[int], m.Message], process: bytes = b"") -> int:
        self.requests += 1
        self.owned.handle(process or self.process, make(self.requests))
        return self.requests

    def new_id(self) -> bytes:
        self.requests += 1
        return object_id(self.requests, self.process, 1, 0)

    def put(self, data: Any, name: bytes = b"") -> bytes:
        name = name or self.new_id()
        created = self.ask(lambda number: m.CreateObject(number, name, len(data)))
        assert isinstance(created, m.ObjectCreated), created
        self.client.view(created.offset, len(data), created.path)[:] = data
        assert isinstance(self.ask(lambda number: m.SealObject(number, name)), m.StoreDone)
        return name

    def pin_soon(self, name: bytes, node: FakeNode, size: int, priority: int = 0) -> int:
        tag = b"" if node is self else node.tag
        return self.ask_soon(lambda number: m.PinObject(number, name, tag, size, priority))

    def read(self, name: bytes, node: FakeNode, size: int) -> bytes:
        """Pin, copy, unpin."""
        return self.take(self.pin_soon(name, node, size), name)

    def take(self, request: int, name: bytes) -> bytes:
        self.cluster.until(lambda: (self.process, request) in self.answers)
        pinned = self.answers.pop((self.process, request))
        assert isinstance(pinned, m.ObjectPinned), pinned
        data = bytes(self.client.view(pinned.offset, pinned.size, pinned.path))
        self.owned.handle(self.process, m.UnpinObjects([name]))
        return data

    def die(self) -> None:
        """As a killed process does: its sockets close, and then the others hear of it."""
        self.alive = False
        for line in [*self.dialled, *self.accepted]:
            silence(line)
            line.close()
        for other in self.cluster.nodes:
            if other.alive:
                other.transfers.node_died(self.node_id)
                other.owned.node_died(self.tag)

    def close(self) -> None:
        self.transfers.close()
        for line in [*self.dialled, *self.accepted]:
            silence(line)
            line.close()
        self.client.close()
        self.store.close()


class FakeCluster:
    """Nodes in one loop, which this thread turns."""

    def __init__(
        self, count: int, directory: Path, arena_bytes: int = 64 << 20, identity: Any = None, **options: Any
    ) -> None:
        self.reactor = Reactor()
        #: A certificate for all; None: plain sockets.
        self.identity = identity
        self._posted: deque[Callable[[], None]] = deque()
        self.reactor.hooks.append(self._run_posted)
        self.nodes = [FakeNode(self, number, arena_bytes, directory, **options) for number in range(1, count + 1)]
        self.by_tag = {node.tag: node for node in self.nodes}
        for node in self.nodes:
            for other in self.nodes:
                node.transfers.node_joined(other.node_id)

    def post(self, call: Callable[[], None]) -> None:
        self._posted.append(call)
        self.reactor.wake()

    def _run_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    def until(self, condition: Callable[[], Any]) -> None:
        end = monotonic() + DEADLINE_S
        with self.reactor.lead:
            while not condition():
                assert monotonic() < end, "it did not come to that"
                self.reactor.turn(0.05)

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        self.reactor.close()
