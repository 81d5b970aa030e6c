"""A framed, non-blocking socket that many threads may send on and the loop alone reads.

**Sending** (FLOW, INTERRUPT). A user's thread can be interrupted by a signal after any call, so no
step of ours may leave a frame half accounted for. Each frame is an entry ``(frame, sent, record)`` in
:attr:`Connection.out`; appending it is the commit. Whoever flushes holds the lock (``with``, so that
it is always released) and each ``send`` is made *by C code* which stores the count in ``sent`` in the
same step: ``sent.extend(map(sock.send, (chunk,)))``. An interrupted flusher therefore never sends a
byte twice, and whoever comes next goes on exactly where it stopped. When the socket is full the loop
continues on EPOLLOUT; nobody ever blocks on a write.

**Records.** An entry may carry the task that the frame starts. Finished entries that do are moved to
:attr:`Connection.settled`, again in one C step, where the loop picks them up before it looks at any
answer; so a user's thread can send a task and the loop still is the only one that keeps books.

**Receiving.** The loop reads up to 256 KiB at a time into the reactor's one buffer, cuts frames, decodes each
with the one typed decoder and passes it on. Frames above :data:`MAX_FRAME` end the connection before anything is
allocated for them.
"""

from __future__ import annotations

import socket
import struct
from _thread import RLock
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

import msgspec

from moray.protocol.messages import PROTOCOL_VERSION, AnyMessage, Message
from moray.protocol.reactor import READ, WRITE, Reactor

HEADER: Final = struct.Struct("<II")
#: Larger bodies are refused: bulk data does not travel in frames' bodies.
MAX_FRAME: Final = 1 << 30
SOCKET_BUFFER_BYTES: Final = 1 << 20

#: All that msgspec raises for bytes that are no message: invalid UTF-8 and deep nesting have errors of their own.
UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encode = msgspec.msgpack.Encoder().encode


def _decode_first(body: Any) -> Any:
    """In the decoder's place until the first message comes: to make it takes as long as a tenth of `import moray`."""
    prepare()
    return _decode(body)


_decode: Callable[[Any], Any] = _decode_first


def prepare() -> None:
    """Make the decoder now. Templates do, so that not each worker must."""
    global _decode
    _decode = msgspec.msgpack.Decoder(AnyMessage).decode


Entry = tuple[bytes, "deque[int]", Any]


def encode_frame(message: Message) -> bytes:
    """The whole frame of `message`, header included."""
    body = _encode(message)
    return HEADER.pack(len(body), PROTOCOL_VERSION) + body


def body_of(message: Message) -> bytes:
    """A message as something to relay."""
    return _encode(message)


def decode_body(body: bytes | memoryview) -> AnyMessage:
    """The message of a frame's body; ProtocolError if it is none."""
    try:
        message: AnyMessage = _decode(body)
    except UNDECODABLE as error:
        raise ProtocolError(f"{type(error).__name__}: {error}") from None
    return message


class ProtocolError(Exception):
    """The peer does not speak our protocol; `str` says what it sent."""


class Connection:
    """One peer's socket in a process's reactor."""

    __slots__ = (
        "_inbox", "_lock", "_reactor", "_receive_into", "_sock", "_sock_send", "_wants_write", "broken", "closed", "fd",
        "inside", "on_close", "on_message", "out", "peer", "settled",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        reactor: Reactor,
        on_message: Callable[[Connection, AnyMessage], None],
        on_close: Callable[[Connection, str], None],
        leftover: bytes = b"",
    ) -> None:
        """Take over `sock` (made non-blocking). `leftover`: bytes already read. Loop only, or before it runs."""
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        self._sock = sock
        self._sock_send = sock.send
        self._receive_into = sock.recv_into
        self._reactor = reactor
        self.fd = sock.fileno()
        self.on_message = on_message
        self.on_close = on_close
        #: Frames not yet wholly sent, oldest first.
        self.out: deque[Entry] = deque()
        #: Entries wholly sent that carry a record; the loop drains it.
        self.settled: deque[Entry] = deque()
        #: Guards sending. A signal handler of the user's may come here while its thread holds it (INTERRUPT): what it
        #: queues is sent by the step that it has interrupted.
        self._lock = RLock()
        #: Whether the calling thread is in the middle of sending.
        self.inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]
        #: Whether EPOLLOUT is asked for. Guarded by the lock.
        self._wants_write = False
        self._inbox = bytearray(leftover)
        self.closed = False
        #: Nothing can be sent any more: the peer is gone.
        self.broken = False
        #: Whatever the owner of the connection wants to know of the other side.
        self.peer: Any = None
        reactor.register(self.fd, READ, self.on_events)

    # --- sending: any thread ------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue and, if the socket takes it, send `message`."""
        self.send_frame(encode_frame(message))

    def send_frame(self, frame: bytes, record: Any = None) -> bool:
        """Queue a frame; it is committed once this has appended it. False after the end of the connection, which is
        told by `on_close`."""
        if self.closed:
            return False
        out = self.out
        if record is None:
            out.append((frame, deque(), None))
        else:
            # What was committed before the end is found by `on_close`; after it nothing may be.
            with self._lock:
                if self.closed:
                    return False  # type: ignore[unreachable]  # The loop may have closed it meanwhile.
                out.append((frame, deque(), record))
        if len(out) == 1 or not self._wants_write:
            self.flush()
        return True

    def flush(self) -> None:
        """Send what the socket takes; the loop sends the rest when it can."""
        if self.inside():
            return
        out = self.out
        with self._lock:
            while not self.closed:
                if not out:
                    self._want_write(False)
                    # No call between this look and the lock's release: what a handler adds there would not be sent.
                    if not out:
                        return
                    continue  # Two threads appended meanwhile and saw that EPOLLOUT was asked for.
                frame, sent, record = out[0]
                done = sum(sent)
                if done < len(frame):
                    try:
                        sent.extend(map(self._sock_send, (memoryview(frame)[done:] if done else frame,)))
                    except BlockingIOError:
                        self._want_write(True)
                        return
                    except OSError:
                        # The peer is gone. Reading tells the loop so, which finds in `out` what was not sent.
                        self.broken = True
                        return
                elif record is None:
                    out.popleft()
                else:
                    self.settled.extend(islice(iter(out.popleft, None), 1))

    def _want_write(self, wanted: bool) -> None:
        """Ask for EPOLLOUT or not. Interrupted at any point, this leaves at worst an EPOLLOUT that the flag does not
        know of, which `on_events` takes back; never a flag without EPOLLOUT, with which nobody would go on."""
        if self._wants_write != wanted and not self.closed:
            if not wanted:
                self._wants_write = False
            self._reactor.modify(self.fd, READ | WRITE if wanted else READ)
            if wanted:
                self._wants_write = True

    # --- receiving: the loop ------------------------------------------------------------------

    def on_events(self, events: int) -> None:
        """The reactor's callback."""
        if events & WRITE:
            with self._lock:
                self._wants_write = True  # Or EPOLLOUT is on because somebody was interrupted.
                self._want_write(False)
            self.flush()
        if events & ~WRITE and not self.closed:
            self._receive()

    def _receive(self) -> None:
        scratch = self._reactor.scratch
        try:
            size = self._receive_into(scratch)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(f"connection lost: {error.strerror}")
            return
        if not size:
            self.close("connection closed by the peer")
            return
        if self._inbox:
            self._inbox += scratch[:size]
            self._take(self._inbox)
        else:
            self._take(scratch[:size])

    def _take(self, data: memoryview | bytearray) -> None:
        """Handle what has arrived; what is no message of our protocol ends the connection, and nothing else."""
        try:
            self._cut(data)
        except ProtocolError as error:
            self.close(f"malformed data from the peer: {error}")

    def _cut(self, data: memoryview | bytearray) -> None:
        """Handle each complete frame in `data`; keep the rest in the inbox."""
        view, position, total = memoryview(data), 0, len(data)  # Handlers never turn the loop: the scratch is ours.
        while total - position >= 8:
            size, version = HEADER.unpack_from(data, position)
            if version != PROTOCOL_VERSION or size > MAX_FRAME:
                raise ProtocolError(
                    f"the frame's header announces {size} bytes of protocol {version}, we speak {PROTOCOL_VERSION}"
                )
            if total - position - 8 < size:
                break
            try:
                message = _decode(view[position + 8 : position + 8 + size])
            except UNDECODABLE as error:
                raise ProtocolError(f"{type(error).__name__}: {error}") from None
            position += 8 + size
            self.on_message(self, message)
            if self.closed:
                break
        view.release()
        if data is self._inbox:
            del self._inbox[:position]
        else:
            self._inbox += data[position:]

    def process_leftover(self) -> None:
        """Handle frames that came with the handshake. Loop only."""
        if self._inbox:
            self._take(self._inbox)

    def close(self, reason: str = "closed here") -> None:
        """End the connection and tell `on_close` once. Loop only."""
        if self.closed:
            return
        with self._lock:
            self.closed = True
        self._reactor.unregister(self.fd)
        self._sock.close()
        self.on_close(self, reason)
        self.out.clear()

    def ended(self) -> bool:
        """Whether it is closed, here or there, and all that the other side had sent was read."""
        if self.closed:
            return True
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def readable(self) -> bool:
        """Whether more bytes wait to be read."""
        if self.closed:
            return False
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
