"""TLS 1.3 between machines: the same connection as :mod:`moray.protocol.connection`, encrypted.

**Sending**: :mod:`moray.protocol.tls_sending`. Any thread may; one lock per connection guards the encrypted stream,
for writing and for reading, because OpenSSL's state is one. It is held for single calls of OpenSSL and of the socket.

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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from moray.protocol.connection import HEADER, MAX_FRAME, ProtocolError, decode_body
from moray.protocol.messages import PROTOCOL_VERSION, AnyMessage
from moray.protocol.reactor import READ, WRITE, Reactor, Timer
from moray.protocol.tcp import MAGIC
from moray.protocol.tls_sending import SEALED, TlsSender

if TYPE_CHECKING:
    from moray.protocol.tcp import Admission, HalfOpen

#: A peer has this long to show its certificate.
HANDSHAKE_TIMEOUT_S: Final = 10.0
#: A first frame says who somebody is.
FIRST_FRAME_LIMIT: Final = 1 << 22


class TlsConnection(TlsSender):
    """One authenticated peer on another machine, in a process's reactor."""

    first_frame_limit: ClassVar[int] = FIRST_FRAME_LIMIT
    frame_limit: ClassVar[int] = MAX_FRAME

    #: Whatever the owner of the connection wants to know of the other side.
    peer: Any = None
    #: OpenSSL's `read`, made with its state.
    _read_into: Callable[[int, memoryview], int]
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
        self.on_message = on_message
        self.on_close = on_close
        self.on_ready = on_ready
        self.peer_address = peer_address
        self._context = context
        self._server_side = server_side
        super().__init__(reactor)
        self._incoming = ssl.MemoryBIO()
        self._inbox = bytearray()
        self._limit = self.first_frame_limit
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
        self._sealed.append(preface + self._outgoing.read())
        self._leave_to_loop()

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
        self._leave_to_loop()
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
        if self._ssl is None or not self.ready:
            return b""
        with self._io:  # Somebody may be sending.
            return self._ssl.getpeercert(binary_form=True) or b""

    # --- receiving: the loop ------------------------------------------------------------------

    def on_events(self, events: int) -> None:
        """The reactor's callback."""
        if events & WRITE:
            with self._io:
                self._wants_write = True  # Or EPOLLOUT is on because somebody was interrupted.
            self.write()
            self._flusher.tell()
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
            if not self.ready:
                with self._io:
                    self._incoming.write(scratch[:size])
                self._refusal(scratch[:size])
                self._advance_handshake()
                size = 0
            if self.ready:
                self._decrypt(scratch, size)
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

    def _decrypt(self, scratch: memoryview, size: int) -> None:
        """Handle all complete records of what waits, and of `size` bytes more that are in the scratch buffer. One at a
        time, so that raw bytes are decrypted where they belong."""
        tls, read, incoming, lock = self._ssl, self._read_into, self._incoming, self._io
        assert tls is not None  # It is made by the handshake.
        while not self.closed:
            raw = self._raw
            try:
                with lock:
                    if size:
                        incoming.write(scratch[:size])
                    elif not incoming.pending and not tls.pending():
                        return
                    if self._begun is not None:
                        # Reading may fill the buffer by which it is known what was encrypted.
                        self._finish_begun(self._begun)
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
            size = 0

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
        with self._io:
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
        if self.out and self.out[0] is SEALED:
            self.out.popleft()
        unsent = [entry[3] for entry in self.out if entry[3] is not None]
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
