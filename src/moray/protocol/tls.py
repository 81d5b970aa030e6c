"""TLS 1.3 between machines: the same connection as :mod:`moray.protocol.connection`, encrypted.

**Who touches the socket** (TLS-IO). An encrypted stream has state that an interrupted thread would leave half
changed, so the loop alone reads and writes it. Any thread appends a frame to :attr:`TlsConnection.out`, names the
connection in the reactor's :class:`_Flusher`, and wakes the loop if it sleeps. A thread that is interrupted between the
two (INTERRUPT) delays its frame by a heartbeat and loses nothing.

**Sending.** All that waits is joined into one piece of up to :data:`SEAL_BYTES`, encrypted, and given to the
socket by one call; large buffers are encrypted straight from where they lie. No more is encrypted while the socket has
not taken the last piece, so that what waits costs no second copy (FLOW). While such a piece waits, ``out`` begins with
an entry of ours: ``not out`` means that the kernel has all. An entry with a record goes to ``settled`` *before* its
last byte is encrypted: whatever is found in ``out`` after the end was never seen by the other side.

**Receiving.** Up to 256 KiB of ciphertext are read at a time and decrypted record by record, and each frame is handed
on as it is complete. After the frame of a message that announces raw bytes, its handler says where they belong
(:meth:`TlsConnection.receive_raw`), and they are decrypted into that place.

**Before the handshake is over** no frame is sent and none is decoded: the other side has not shown a certificate of
our authority yet. It has a few seconds for that. The first frame may be :data:`FIRST_FRAME_LIMIT` long, later
ones as long as those of any connection.
"""

from __future__ import annotations

import socket
import ssl
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from moray.protocol.connection import HEADER, MAX_FRAME, ProtocolError, decode_body, encode_frame
from moray.protocol.messages import PROTOCOL_VERSION, AnyMessage, Message
from moray.protocol.reactor import HEARTBEAT_S, READ, WRITE, Reactor, Timer
from moray.protocol.tcp import MAGIC

if TYPE_CHECKING:
    from moray.protocol.tcp import Admission, HalfOpen

#: Plaintext that is encrypted for one call of `send`: enough to make that cheap, little enough to stay in the cache.
SEAL_BYTES: Final = 1 << 18
#: Bytes that one connection sends before others have their turn.
MOST_AT_ONCE: Final = 4 * SEAL_BYTES
#: Frames up to this size are copied into one piece; larger ones are encrypted where they are.
JOIN_LIMIT: Final = 1 << 14
#: A peer has this long to show its certificate.
HANDSHAKE_TIMEOUT_S: Final = 10.0
#: A first frame says who somebody is.
FIRST_FRAME_LIMIT: Final = 1 << 22


class Entry(NamedTuple):
    """What waits to be sent; as in :mod:`moray.protocol.connection` the third item is the record."""

    frame: bytes
    #: Follows the frame.
    raw: memoryview | None
    record: Any
    #: Called by the loop when `raw` is not needed any more: sent, or never to be sent.
    on_sent: Callable[[], None] | None = None


#: Stands first in `out` while encrypted bytes wait.
_SEALED: Final = Entry(b"", None, None)


class _Flusher:
    """A reactor's hook: sends what was appended to its encrypted connections."""

    __slots__ = ("_looked_at", "calls", "connections", "dirty", "thread")

    def __init__(self) -> None:
        #: Connections to which something was appended; any thread adds to it.
        self.dirty: deque[TlsConnection] = deque()
        #: What `on_sent` of connections asked for, for the loop.
        self.calls: deque[Callable[[], None]] = deque()
        self.connections: set[TlsConnection] = set()
        #: Who turned the loop last.
        self.thread = 0
        self._looked_at = 0.0

    def __call__(self) -> None:
        self.thread = get_ident()
        dirty = self.dirty
        count = len(dirty)
        for _ in range(count):  # What is added meanwhile waits for the next turn, so that others have theirs.
            dirty.popleft().write()
        while self.calls:
            self.calls.popleft()()
        now = monotonic()
        if now - self._looked_at >= HEARTBEAT_S:
            # Somebody may have been interrupted between its append and naming the connection here.
            self._looked_at = now
            for connection in list(self.connections):
                if connection.out:
                    connection.write()

    @staticmethod
    def of(reactor: Reactor) -> _Flusher:
        """The reactor's own."""
        for hook in reactor.hooks:
            if isinstance(hook, _Flusher):
                return hook
        flusher = _Flusher()
        reactor.hooks.append(flusher)
        return flusher


class TlsConnection:
    """One authenticated peer on another machine, in a process's reactor."""

    first_frame_limit: ClassVar[int] = FIRST_FRAME_LIMIT
    frame_limit: ClassVar[int] = MAX_FRAME

    #: The other side is authenticated.
    ready = False
    closed = False
    #: Nothing can be sent any more: the peer is gone.
    broken = False
    #: What ended the connection, or will; a ConnectionRefusedError says that nobody listens there.
    error: Exception | None = None
    #: Whatever the owner of the connection wants to know of the other side.
    peer: Any = None
    #: OpenSSL's state, and its `read`. Made when the first byte is there: a silent stranger has none of its 40 KB.
    _ssl: ssl.SSLObject | None = None
    _read_into: Callable[[int, memoryview], int]
    #: Whether `out` begins with `_SEALED`.
    _marked = False
    #: How much of the first entry of `out` is encrypted.
    _offset = 0
    #: Whether EPOLLOUT is asked for.
    _wants_write = False
    #: Where raw bytes go (None: nowhere), how many are missing, and who wants to know the end.
    _raw: memoryview | None = None
    _raw_left = 0
    _on_raw: Callable[[], None] | None = None
    #: Records are being handled: what else has come must wait.
    _receiving = False
    #: Of the limits for strangers, and what it counts as if it ends while they hold.
    _admission: Admission | None = None
    _outcome = "not_authenticated"
    #: Ends a handshake that has no such limits.
    _timer: Timer | None = None

    def __init__(
        self,
        sock: socket.socket | None,
        reactor: Reactor,
        on_message: Callable[[Any, AnyMessage], None],
        on_close: Callable[[Any, str], None],
        *,
        context: ssl.SSLContext,
        server_side: bool,
        preface: bytes = b"",
        on_ready: Callable[[Any], None] | None = None,
        half_open: HalfOpen | None = None,
        peer_address: str = "",
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        """Take over `sock` (made non-blocking, it may still be connecting) and begin the handshake. Loop only.

        Args:
            sock: a TCP socket from which nothing of TLS has been read. None: :meth:`begin` brings it later, and what is
                sent waits for it.
            reactor: whose loop this is.
            on_message: called with each message, as for `Connection`.
            on_close: called once, with the reason; :attr:`error` has the exception, if it was one.
            context: of :mod:`moray.security.identity`.
            server_side: whether we accepted it.
            preface: plain bytes to be sent first (:func:`moray.protocol.tcp.preface`).
            on_ready: called when the other side is authenticated; frames may be queued before.
            half_open: the limits that hold until then; None for connections that we began ourselves.
            peer_address: for these limits and for messages.
            handshake_timeout_s: without `half_open`, which has its own.
        """
        self._sock: Any = None
        self._reactor = reactor
        self.fd = -1
        self.on_message = on_message
        self.on_close = on_close
        self.on_ready = on_ready
        self.peer_address = peer_address
        self._context = context
        self._server_side = server_side
        #: Frames not yet wholly sent, oldest first.
        self.out: deque[Entry] = deque()
        #: Entries wholly sent that carry a record; the loop drains it.
        self.settled: deque[Entry] = deque()
        #: Guards `closed` against commits of records.
        self._commit = allocate_lock()
        #: Guards the encrypted stream: the thread that led last may write while the next one takes the lead.
        self._io = allocate_lock()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        #: What the socket has not taken yet: plain bytes first, ciphertext later.
        self._sealed = memoryview(b"")
        self._inbox = bytearray()
        self._limit = self.first_frame_limit
        self._flusher = _Flusher.of(reactor)
        self._flusher.connections.add(self)
        if half_open is not None:
            self._admission = half_open.admit(peer_address, self._cut_off)
        else:
            self._timer = reactor.call_later(handshake_timeout_s, self._too_slow)
        if sock is not None:
            self.begin(sock, preface)

    def begin(self, sock: socket.socket, preface: bytes = b"") -> None:
        """Take over the socket of a connection that was made without one. Loop only; not after `close`."""
        sock.setblocking(False)
        self._sock = sock
        self.fd = sock.fileno()
        self._reactor.register(self.fd, READ, self.on_events)
        if not self._server_side:
            self._advance_handshake()
        self._sealed = memoryview(preface + self._outgoing.read())
        self._flusher.dirty.append(self)
        self._reactor.wake()

    # --- sending: any thread ------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue `message`; the loop sends it."""
        self.send_frame(encode_frame(message))

    def send_frame(self, frame: bytes, record: Any = None) -> bool:
        """Queue a frame; it is committed once this has appended it. False after the end of the connection, which is
        told by `on_close`."""
        return self._append(Entry(frame, None, record))

    def send_raw(self, frame: bytes, raw: memoryview, on_sent: Callable[[], None] | None = None) -> bool:
        """Queue a frame and the bytes that follow it. They must stay as they are until the loop calls `on_sent`: when
        they are sent, or never will be. It is not called if this returns False."""
        return self._append(Entry(frame, raw.cast("B") if raw.nbytes else None, None, on_sent))

    def _append(self, entry: Entry) -> bool:
        if self.closed:
            return False
        if entry.record is None and entry.on_sent is None:
            self.out.append(entry)
        else:
            # What was committed before the end is found by `on_close`; after it nothing may be.
            with self._commit:
                if self.closed:
                    return False  # type: ignore[unreachable]  # The loop may have closed it meanwhile.
                self.out.append(entry)
        self._flusher.dirty.append(self)
        self._reactor.wake()
        return True

    def flush(self) -> None:
        """Send what the socket takes, if this thread leads the loop; otherwise have the loop do it."""
        if self._flusher.thread == get_ident():
            sent: list[Callable[[], None]] = []
            # It led last. If another thread took the lead just now, the lock keeps the two apart.
            with self._io:
                self._write_some(sent)
            if not sent:
                return
            self._flusher.calls.extend(sent)
        else:
            self._flusher.dirty.append(self)
        self._reactor.wake()

    # --- sending: the loop ------------------------------------------------------------------

    def write(self) -> None:
        """Encrypt and send what waits, as far as the socket takes it. Loop only: others `flush`."""
        sent: list[Callable[[], None]] = []
        with self._io:
            self._write_some(sent)
        if sent:
            for call in sent:  # Outside of the lock: they may send more.
                call()

    def _write_some(self, sent: list[Callable[[], None]]) -> None:
        room = MOST_AT_ONCE
        while not (self.closed or self.broken or self._sock is None):
            if not self._sealed and self._outgoing.pending:
                self._sealed = memoryview(self._outgoing.read())
            if self._sealed:
                try:
                    count = self._sock.send(self._sealed)
                except (BlockingIOError, InterruptedError):
                    self._mark(waits=True)
                    self._want_write(True)
                    return
                except OSError as error:
                    # The peer is gone. Reading tells the loop so, which finds in `out` what was not sent.
                    self.broken, self.error = True, self.error or error
                    return
                self._sealed = self._sealed[count:]
                room -= count
                continue
            if self._marked:
                self._mark(waits=False)
            if not self.out or not self.ready:
                if self._wants_write:
                    self._want_write(False)
                return
            if room <= 0:
                self._want_write(True)
                return
            self._seal(sent)

    def _mark(self, *, waits: bool) -> None:
        """Note in `out` whether encrypted bytes wait for the socket."""
        if self._marked != waits:
            self._marked = waits
            if waits:
                self.out.appendleft(_SEALED)
            else:
                self.out.popleft()

    def _want_write(self, wanted: bool) -> None:
        if self._wants_write != wanted:
            self._reactor.modify(self.fd, READ | WRITE if wanted else READ)
            self._wants_write = wanted

    def _seal(self, sent: list[Callable[[], None]]) -> None:
        """Encrypt the next entries of `out`."""
        try:
            self._seal_entries(sent)
        except ssl.SSLError as error:
            self.broken, self.error = True, self.error or error
            try:
                self._sock.shutdown(socket.SHUT_RDWR)  # The stream is unusable; whoever reads is told so.
            except OSError:
                pass  # It has ended already.

    def _seal_entries(self, sent: list[Callable[[], None]]) -> None:
        out, small, room = self.out, list[bytes](), SEAL_BYTES
        assert self._ssl is not None  # Nothing is sent before the handshake is over.
        if len(out) == 1 and out[0].raw is None and len(out[0].frame) <= JOIN_LIMIT:
            frame = out[0].frame  # The usual case, made short.
            self._finish_entry(sent)
            self._ssl.write(frame)
            return
        while out and room > 0:
            entry = out[0]
            if entry.raw is None and len(entry.frame) <= JOIN_LIMIT:
                small.append(entry.frame)
                room -= len(entry.frame)
                self._finish_entry(sent)
                continue
            if small:
                self._ssl.write(b"".join(small))
                small.clear()
            piece = self._next_piece(entry, room, sent)
            self._ssl.write(piece)
            room -= len(piece)
        if small:
            self._ssl.write(small[0] if len(small) == 1 else b"".join(small))

    def _next_piece(self, entry: Entry, room: int, sent: list[Callable[[], None]]) -> memoryview:
        """The next piece of a large entry."""
        size, offset = len(entry.frame), self._offset
        if offset < size:
            piece = memoryview(entry.frame)[offset : offset + room]
        else:
            assert entry.raw is not None  # Otherwise it was finished with its frame.
            piece = entry.raw[offset - size : offset - size + room]
        self._offset = offset + len(piece)
        if self._offset == size + (0 if entry.raw is None else len(entry.raw)):
            self._offset = 0
            self._finish_entry(sent)
        return piece

    def _finish_entry(self, sent: list[Callable[[], None]]) -> None:
        entry = self.out.popleft()
        if entry.record is not None:
            self.settled.append(entry)
        if entry.on_sent is not None:
            sent.append(entry.on_sent)

    # --- the handshake: the loop ------------------------------------------------------------------

    def _advance_handshake(self) -> None:
        with self._io:
            if self._ssl is None:
                self._ssl = self._context.wrap_bio(self._incoming, self._outgoing, server_side=self._server_side)
                self._read_into = self._ssl.read  # type: ignore[assignment]  # That of a buffer.
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                return
            self.ready = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._authenticated()
        if self.on_ready is not None:
            self.on_ready(self)

    def _authenticated(self) -> None:
        """The limits for strangers do not hold any more."""
        if self._admission is not None:
            self._admission.release("authenticated")
            self._admission = None

    def _too_slow(self) -> None:
        if not self.ready:
            self.error = TimeoutError("TLS handshake")
            self.close("the peer did not finish the TLS handshake in time")

    def _cut_off(self, reason: str) -> None:
        """The limits for strangers have chosen this one."""
        self._admission = None
        self.error = TimeoutError(reason)
        self.close(reason)

    def peer_certificate(self) -> bytes:
        """The certificate that the other side has shown, as DER; b"" before the handshake is over, or without one."""
        return self._ssl.getpeercert(binary_form=True) or b"" if self._ssl is not None and self.ready else b""

    # --- receiving: the loop ------------------------------------------------------------------

    def on_events(self, events: int) -> None:
        """The reactor's callback."""
        if events & WRITE:
            self.write()
        if events & ~WRITE and not self.closed and not self._receiving:
            self._receive()

    def _receive(self) -> None:
        scratch = self._reactor.scratch
        try:
            size = self._sock.recv_into(scratch)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.error = self.error or error
            self.close(f"connection lost: {error.strerror}")
            return
        if not size:
            reason = f"connection lost: {self.error}" if self.error else "connection closed by the peer"
            self.close(reason if self.ready else f"{reason} before it was authenticated")
            return
        self._receiving = True
        try:
            with self._io:
                self._incoming.write(scratch[:size])
            if not self.ready:
                self._refusal(scratch[:size])
                self._advance_handshake()
            if self.ready:
                self._decrypt(scratch)
        except ssl.SSLError as error:
            self._fail(error, f"TLS: {explain(error)}")
        except ProtocolError as error:
            self._fail(error, f"malformed data from the peer: {error}")
        finally:
            self._receiving = False
        if self._outgoing.pending and not self.closed:
            self.write()

    def _fail(self, error: Exception, reason: str) -> None:
        if not self.closed:
            self.error = error
            if self._outgoing.pending:
                self.write()  # The alert, which tells the other side why.
            self.close(reason)

    def _refusal(self, data: memoryview) -> None:
        """A server of another protocol says so in plain bytes (PROTOCOL)."""
        if not self.ready and not self._server_side and bytes(data[: len(MAGIC)]) == MAGIC and len(data) > len(MAGIC):
            raise ProtocolError(f"the peer speaks protocol {data[len(MAGIC)]}, this process {PROTOCOL_VERSION}")

    def _decrypt(self, scratch: memoryview) -> None:
        """Handle all complete records. One at a time, so that raw bytes are decrypted where they belong."""
        tls, read, incoming, lock = self._ssl, self._read_into, self._incoming, self._io
        assert tls is not None  # It is made by the handshake.
        while not self.closed:
            raw = self._raw
            try:
                with lock:
                    if not incoming.pending and not tls.pending():
                        return
                    size = read(len(scratch), scratch) if raw is None else read(len(raw), raw)
            except ssl.SSLWantReadError:
                return
            except ssl.SSLZeroReturnError:
                size = 0
            if not size:
                self.close("connection closed by the peer")
            elif raw is not None:
                self._raw = raw[size:]
                self._raw_arrived(size)
            elif self._inbox:
                self._inbox += scratch[:size]
                self._cut(self._inbox)
            else:
                self._cut(scratch[:size])

    def _cut(self, data: memoryview | bytearray) -> None:
        """Handle each complete frame in `data`; keep the rest in the inbox."""
        view, position, total = memoryview(data), 0, len(data)  # Handlers never turn the loop: the scratch is ours.
        while not self.closed:
            if self._raw_left:
                position += self._copy_raw(view[position:])
            if total - position < HEADER.size:
                break
            size, version = HEADER.unpack_from(data, position)
            if version != PROTOCOL_VERSION or size > self._limit:
                raise ProtocolError(
                    f"the frame's header announces {size} bytes of protocol {version}, we speak {PROTOCOL_VERSION} "
                    f"and take up to {self._limit} bytes"
                )
            end = position + HEADER.size + size
            if total < end:
                break
            self._on_body(view[position + HEADER.size : end])
            position = end
            self._limit = self.frame_limit
        view.release()
        if data is self._inbox:
            del self._inbox[:position]
        else:
            self._inbox += data[position:]

    def _on_body(self, body: memoryview) -> None:
        """A whole frame is here."""
        self.on_message(self, decode_body(body))

    def receive_raw(self, size: int, into: memoryview | None, on_done: Callable[[], None]) -> None:
        """Called by the handler of a message: the next `size` bytes are raw, and go into the beginning of `into` (None:
        they are dropped). `on_done` is called by the loop when all are there; not if the connection ends before."""
        assert self._receiving  # Nobody else knows what follows.
        assert not self._raw_left
        if into is not None and into.nbytes < size:
            raise ValueError(f"{size} bytes do not fit into a buffer of {into.nbytes}")
        if not size:
            on_done()
            return
        self._raw = into.cast("B")[:size] if into is not None else None
        self._raw_left, self._on_raw = size, on_done

    def _copy_raw(self, data: memoryview) -> int:
        """Raw bytes that came together with a frame; how many they were."""
        count: int = min(self._raw_left, len(data))
        if self._raw is not None:
            self._raw[:count] = data[:count]
            self._raw = self._raw[count:]
        if count:
            self._raw_arrived(count)
        return count

    def _raw_arrived(self, count: int) -> None:
        self._raw_left -= count
        if not self._raw_left:
            on_done, self._on_raw, self._raw = self._on_raw, None, None
            assert on_done is not None
            on_done()

    def process_leftover(self) -> None:
        """For `Connection`: frames that came with a handshake. Here nothing is read before the loop does."""

    # --- the end ------------------------------------------------------------------------------------

    def close(self, reason: str = "closed here") -> None:
        """End the connection and tell `on_close` once. Loop only."""
        if self.closed:
            return
        with self._commit, self._io:
            self.closed = True
        self._flusher.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._admission is not None:
            self._admission.release(self._outcome)
            self._admission = None
        if self._sock is not None:
            self._reactor.unregister(self.fd)
            self._sock.close()
        if self._marked:
            self._marked = False
            self.out.popleft()
        unsent = [entry.on_sent for entry in self.out if entry.on_sent is not None]
        self._raw = self._on_raw = None
        self.on_close(self, reason)
        self.out.clear()
        for call in unsent:
            call()

    def ended(self) -> bool:
        """Whether it is closed, here or there, and all that the other side had sent was read."""
        if self.closed:
            return True
        if self._sock is None:
            return False
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def readable(self) -> bool:
        """Whether more bytes wait to be read, and may be read now."""
        if self.closed or self._receiving or self._sock is None:
            return False
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return False


#: What errors of OpenSSL mean here, by their names.
_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer has shown no certificate; it has to join with the token first",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer wants a certificate of its cluster, and this process has none",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not know the authority of our certificate; is this another cluster?",
    "TLSV1_ALERT_DECRYPT_ERROR": "the peer refused our certificate; is this another cluster?",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer says that our certificate has expired; do the clocks agree?",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer refused our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer refused our certificate",
    "WRONG_VERSION_NUMBER": "the answer was not TLS: another version of moray, or another program",
    "UNEXPECTED_EOF_WHILE_READING": "the peer hung up; its log says why",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer speaks no TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "the peer speaks no TLS 1.3",
}


def explain(error: ssl.SSLError) -> str:
    """What happened, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate was refused: {error.verify_message}"
    reason = error.reason or ""
    return _REASONS.get(reason, reason.replace("_", " ").lower() or str(error))
