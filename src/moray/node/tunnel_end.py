"""One end of a tunnel: its streams are sockets of this machine, its frames go over one connection at a time.

The same at the driver's node and at the relay; :mod:`moray.core.tunnel` keeps the books. Nothing is read from a socket
that the books and the connection do not take at once, so what waits does so in the kernel, and holds up whoever writes
there (FLOW). The connection is never given more than :data:`WIRE_BYTES`, and the kernel below it little more than the
network takes, so that a large object on one stream delays a call on another one by milliseconds.

Owned by a loop.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Final

from moray.core.tunnel import DATA, EOF, LIMITS, OPEN, RESET, Frame, Limits, Tunnel, TunnelError
from moray.protocol import messages as m
from moray.protocol.connection import encode_frame
from moray.protocol.reactor import READ, WRITE
from moray.protocol.tls import TlsConnection

if TYPE_CHECKING:
    from moray.protocol.reactor import Reactor

#: The most that is read from a socket at a time, and so the longest frame.
PIECE_BYTES: Final = 1 << 17
#: Data up to this size travel in the message itself.
INLINE_BYTES: Final = 1 << 13
#: What the connection sends is counted in portions of at least this size: no less than INLINE_BYTES, so that each frame
#: with raw bytes is one.
COUNTED_BYTES: Final = INLINE_BYTES
#: A connection on which nothing was heard for so long is taken for lost. The driver's end asks more often.
SILENCE_S: Final = 10.0
#: What the connection is given before it has sent it.
WIRE_BYTES: Final = 1 << 19
#: What the kernel takes that it cannot send yet.
UNSENT_BYTES: Final = 1 << 18
#: Of sockets of this machine.
SOCKET_BYTES: Final = 1 << 20
#: Linux: TCP_NOTSENT_LOWAT has no name in Python's socket module.
_TCP_NOTSENT_LOWAT: Final = 25


def prefer_latency(sock: socket.socket) -> None:
    """For a tunnel's connection: what waits, waits here, where others can pass it."""
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)


class TunnelConnection(TlsConnection):
    """Without long frames: what is long follows as raw bytes, of which no more is taken than a piece."""

    first_frame_limit: ClassVar[int] = 1 << 14
    frame_limit: ClassVar[int] = 1 << 15
    #: When bytes came last: where the network is slow, long before the message that they are a part of is complete.
    heard_at = 0.0

    def on_events(self, events: int) -> None:
        """The reactor's callback."""
        if events & READ:
            self.heard_at = monotonic()
        super().on_events(events)


def _has_bytes(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


class Channel:
    """A stream's socket on this machine. What came before it had one waits, within the stream's credits."""

    __slots__ = ("closing", "deaf", "events", "fd", "local_end", "out", "sock", "stream")

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.sock: socket.socket | None = None
        self.fd = -1
        #: What the socket has not taken.
        self.out: deque[memoryview] = deque()
        #: How `out` ends: EOF or RESET; -1: more may come.
        self.closing = -1
        #: The socket takes nothing more: what comes is dropped.
        self.deaf = False
        #: Nothing more comes from the socket.
        self.local_end = False
        #: What the reactor looks for.
        self.events = 0


class _Wire:
    """The present connection, and how much of what it was given it has not sent."""

    def __init__(self, connection: TlsConnection, on_room: Callable[[], None]) -> None:
        self.connection = connection
        self.on_room = on_room
        self.waiting_bytes = 0
        self._sizes: deque[int] = deque()
        #: Given to it since it was last asked to say when all up to there is sent.
        self._uncounted_bytes = 0

    def send(self, message: m.TunnelFrame, raw: memoryview) -> None:
        frame = encode_frame(message)
        self._uncounted_bytes += len(frame) + raw.nbytes
        if self._uncounted_bytes < COUNTED_BYTES:
            # The connection joins such frames, as far as nobody wants to know when they are sent.
            self.connection.send_frame(frame)
            return
        size, self._uncounted_bytes = self._uncounted_bytes, 0
        self._sizes.append(size)
        self.waiting_bytes += size
        self.connection.send_raw(frame, raw, self._sent)

    def _sent(self) -> None:
        full = self.waiting_bytes >= WIRE_BYTES
        self.waiting_bytes -= self._sizes.popleft()
        if full and self.waiting_bytes < WIRE_BYTES:
            self.on_room()


class TunnelEnd:
    """See the module.

    Args:
        side: see :class:`~moray.core.tunnel.Tunnel`.
        on_open: the other end has opened a stream: (number, what it is for). It is to be given a socket
            (:meth:`begin`), or to be refused.
        on_fault: the other end breaks the rules, with what it did: the session must end.
    """

    def __init__(
        self,
        reactor: Reactor,
        side: int,
        on_open: Callable[[int, bytes], None],
        on_fault: Callable[[str], None],
        limits: Limits = LIMITS,
    ) -> None:
        self._reactor = reactor
        self._on_open = on_open
        self._on_fault = on_fault
        self.core = Tunnel(side, limits)
        self._wire: _Wire | None = None
        self._channels: dict[int, Channel] = {}
        #: Those that are not read, because the books or the connection take nothing at the moment.
        self._blocked: dict[int, Channel] = {}
        #: Ended for the books, but what has come is not taken yet; oldest first.
        self._lingering: dict[int, Channel] = {}

    def __len__(self) -> int:
        return len(self._channels)

    # --- connections --------------------------------------------------------------------------------------

    def attach(self, connection: TlsConnection, attempt: int, received: int) -> None:
        """A connection, later than all before, on which the other side has said what has arrived."""
        try:
            attached = self.core.attach(attempt, received)
        except TunnelError as error:
            self._on_fault(str(error))
            return
        assert attached
        self._wire = _Wire(connection, self._pump)
        self._pump()

    def detach(self) -> None:
        """There is no connection."""
        self._wire = None
        self.core.detach()

    def ping(self) -> None:
        """Is there anybody?"""
        if self._wire is not None:
            self._wire.connection.send(m.TunnelAck(self.core.acknowledgement(), ping=True))

    def on_message(self, connection: TlsConnection, message: object) -> None:
        """A message of the present connection."""
        if self._wire is None or connection is not self._wire.connection:
            return
        attempt = self.core.attempt
        try:
            if isinstance(message, m.TunnelFrame):
                self.core.acknowledged(attempt, message.acknowledged)
                self._on_frame(connection, attempt, message)
            elif isinstance(message, m.TunnelAck):
                self.core.acknowledged(attempt, message.acknowledged)
                if message.ping and not connection.out:
                    # Else it hears what waits already: who asks and does not listen fills no memory.
                    connection.send(m.TunnelAck(self.core.acknowledgement()))
                self._pump()
            else:
                raise TunnelError(f"it sent {type(message).__name__}, which is none of a tunnel's messages")
        except TunnelError as error:
            self._on_fault(str(error))

    def _on_frame(self, connection: TlsConnection, attempt: int, message: m.TunnelFrame) -> None:
        if not message.raw:
            self._handle(attempt, Frame(message.number, message.kind, message.stream, message.data, message.amount))
            return
        if not 0 < message.raw <= PIECE_BYTES or message.kind != DATA:
            raise TunnelError(f"{message.raw} bytes follow a frame of kind {message.kind}")
        data = bytearray(message.raw)
        frame = Frame(message.number, message.kind, message.stream, data)

        def arrived() -> None:
            try:
                self._handle(attempt, frame)
            except TunnelError as error:
                self._on_fault(str(error))

        connection.receive_raw(message.raw, memoryview(data), arrived)

    def _handle(self, attempt: int, frame: Frame) -> None:
        if self.core.receive(attempt, frame):
            channel = self._channels.get(frame.stream)
            if frame.kind == OPEN:
                self._channels[frame.stream] = Channel(frame.stream)
                self._on_open(frame.stream, bytes(frame.data))
            elif channel is None:
                pass  # A credit for what was closed meanwhile.
            elif frame.kind == DATA:
                self._deliver(channel, frame.data)
            elif frame.kind in (EOF, RESET):
                channel.closing = frame.kind
                self._write(channel)
                self._linger(channel)
        self._pump()

    # --- streams --------------------------------------------------------------------------------------------

    def open(self, target: bytes, sock: socket.socket) -> None:
        """A stream for a socket; TooManyStreamsError."""
        channel = Channel(self.core.open(target))
        self._channels[channel.stream] = channel
        self.begin(channel.stream, sock)

    def begin(self, stream: int, sock: socket.socket) -> None:
        """The socket of a stream that the other side has opened. It may still be connecting."""
        channel = self._channels.get(stream)
        if channel is None:
            sock.close()  # It was given up meanwhile.
            return
        sock.setblocking(False)
        channel.sock, channel.fd = sock, sock.fileno()
        if sock.family == socket.AF_UNIX:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
        self._watch(channel)
        self._write(channel)
        self._pump()

    def refuse(self, stream: int, reason: str) -> None:
        """There is no socket for a stream that the other side has opened."""
        channel = self._channels.get(stream)
        if channel is not None:
            self._abort(channel, reason)
            self._pump()

    def is_open(self, stream: int) -> bool:
        """Whether somebody still wants this stream."""
        return stream in self._channels

    def finish(self) -> None:
        """Say on all sockets that nothing more will come."""
        for channel in list(self._channels.values()):
            if channel.closing < 0:
                channel.closing = EOF
            self._write(channel)

    def close(self) -> None:
        """Close all sockets; the other side is not told."""
        self.detach()
        for channel in list(self._channels.values()):
            self._close(channel)

    def drain(self) -> bool:
        """For last words: read what waits in all sockets, whatever the connection has taken so far. Whether anything
        waits for the connection or for credits."""
        waits = False
        for channel in list(self._channels.values()):
            while channel.sock is not None and not channel.local_end and self._read(channel, PIECE_BYTES):
                self._pump()
            waits = waits or bool(channel.sock is not None and not channel.local_end and _has_bytes(channel.sock))
        self._pump()
        return waits or self.core.waits()

    # --- this machine's sockets -------------------------------------------------------------------------------

    def _on_events(self, channel: Channel, events: int) -> None:
        if events & WRITE and channel.out:
            self._write(channel)
            self._pump()  # The credits for what was taken.
        if events & ~WRITE and channel.sock is not None and not channel.local_end:
            most = self._room(channel)
            if most:
                self._read(channel, most)
                self._pump()
            elif channel.sock is not None:
                self._blocked[channel.stream] = channel
                self._watch(channel)

    def _room(self, channel: Channel) -> int:
        """How much may be read from a socket."""
        wire = self._wire
        if wire is None or wire.waiting_bytes >= WIRE_BYTES:
            return 0
        return min(self.core.sendable(channel.stream), PIECE_BYTES)

    def _read(self, channel: Channel, most: int) -> bool:
        """Read once; whether there was something."""
        assert channel.sock is not None
        most = min(most, self.core.sendable(channel.stream))
        if not most:
            return False
        try:
            data = channel.sock.recv(most)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._abort(channel, error.strerror or str(error))
            return False
        if data:
            self.core.send(channel.stream, data)
            return True
        channel.local_end = True
        if channel.deaf:
            self._abort(channel, "closed")
            return False
        self.core.end(channel.stream)
        self._linger(channel)
        self._settle(channel)
        return False

    def _deliver(self, channel: Channel, data: bytes | bytearray) -> None:
        if channel.deaf:
            self.core.consumed(channel.stream, len(data))
            return
        channel.out.append(memoryview(data))
        if len(channel.out) == 1:
            self._write(channel)

    def _write(self, channel: Channel) -> None:
        """Give the socket what waits for it."""
        out, sock = channel.out, channel.sock
        if sock is None:
            if channel.closing == RESET:
                self._close(channel)  # Nobody will want it.
            return
        taken = 0
        try:
            while out:
                count = sock.send(out[0])
                taken += count
                if count == len(out[0]):
                    out.popleft()
                else:
                    out[0] = out[0][count:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            # It takes nothing any more. What it still has to say is read to its end.
            channel.deaf = True
            taken += sum(map(len, out))
            out.clear()
        if taken:
            self.core.consumed(channel.stream, taken)
        if channel.deaf and channel.local_end:
            self._abort(channel, "closed")  # Nobody is there: the other side is not to send for nothing.
            return
        if not out and channel.closing == EOF and not channel.deaf:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                channel.deaf = True  # It has ended already.
        self._settle(channel)

    def _settle(self, channel: Channel) -> None:
        """Close it if both directions have ended."""
        if channel.sock is None:
            return
        if not channel.out and (channel.closing == RESET or (channel.closing == EOF and channel.local_end)):
            self._close(channel)
        else:
            self._watch(channel)

    def _watch(self, channel: Channel) -> None:
        """Have the reactor look for what matters."""
        events = WRITE if channel.out else 0
        if not channel.local_end and channel.stream not in self._blocked:
            events |= READ
        if events == channel.events:
            return
        if not events:
            # Not watched at all: the end of the other side of a socket would be told again and again.
            self._reactor.unregister(channel.fd)
        elif channel.events:
            self._reactor.modify(channel.fd, events)
        else:
            self._reactor.register(channel.fd, events, lambda ready: self._on_events(channel, ready))
        channel.events = events

    def _linger(self, channel: Channel) -> None:
        """For the books a stream may be over, and another one take its place, before its bytes are taken here: so many
        may wait for that."""
        if channel.stream not in self._channels or channel.closing < 0:
            return
        if not (channel.local_end or channel.closing == RESET):
            return
        self._lingering[channel.stream] = channel
        if len(self._lingering) > self.core.limits.streams:
            self._close(next(iter(self._lingering.values())))

    def _abort(self, channel: Channel, reason: str) -> None:
        self.core.reset(channel.stream, reason.encode())
        self._close(channel)

    def _close(self, channel: Channel) -> None:
        self._channels.pop(channel.stream, None)
        self._blocked.pop(channel.stream, None)
        self._lingering.pop(channel.stream, None)
        self.core.consumed(channel.stream, sum(map(len, channel.out)))
        channel.out.clear()
        if channel.sock is not None:
            if channel.events:
                self._reactor.unregister(channel.fd)
            channel.sock.close()
            channel.sock = None

    # --- the connection -----------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what waits, as far as the connection takes it; then look whether more may be read."""
        wire, core = self._wire, self.core
        if wire is None:
            return
        while wire.waiting_bytes < WIRE_BYTES:
            frame = core.take()
            if frame is None:
                break
            self._send(wire, frame)
        if core.ack_due():
            wire.connection.send(m.TunnelAck(core.acknowledgement()))
        if self._blocked and wire.waiting_bytes < WIRE_BYTES:
            for channel in list(self._blocked.values()):
                if core.sendable(channel.stream):
                    del self._blocked[channel.stream]
                    self._watch(channel)

    def _send(self, wire: _Wire, frame: Frame) -> None:
        number, kind, stream, data, amount = frame
        acknowledged = self.core.acknowledgement()
        if len(data) <= INLINE_BYTES:
            wire.send(m.TunnelFrame(number, kind, stream, acknowledged, bytes(data), amount), memoryview(b""))
        else:
            message = m.TunnelFrame(number, kind, stream, acknowledged, raw=len(data))
            wire.send(message, memoryview(data))
