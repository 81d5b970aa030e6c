"""The sending half of :class:`moray.protocol.tls.TlsConnection`: any thread may encrypt and send.

An encrypted stream has state that an interrupted thread must not leave half changed, and OpenSSL's is not safe for two
threads at once. So there is one lock per connection for all that touches it, reading included, and a user's thread,
which a signal may interrupt between any two bytecodes (INTERRUPT), takes only steps from which whoever holds the lock
next goes on:

1. *Announce*: :attr:`TlsSender._begun` says which frames of ``out`` are joined into the next piece, or which part of a
   long one that piece is. Nothing waits in OpenSSL's outgoing buffer then.
2. *Settle*: one C step takes what ends with this piece out of ``out``, those entries with a record into ``settled``. It
   was done if the first of them does not stand first in ``out`` any more. (Raw bytes whose owner wants to know when
   they are not needed any more are taken out after step 3, by the same sign.)
3. *Encrypt*: one call, which encrypts all of the piece or nothing. It was done if the outgoing buffer is not empty;
   its return cannot say so, because Python's ``SSL_write`` looks for signals after it has written.
4. *Forget* the announcement.
5. Clear the count of sent bytes; *take* the ciphertext from the buffer in one C step; *send*, and count what was sent,
   in one C step, as :mod:`moray.protocol.connection` does.

Whoever else wants the outgoing buffer (the reader, to which a key update may give something to say) first does what is
missing of 2 to 4. Whatever is found in ``out`` after the end was never seen by the other side, since an entry is
settled before its last byte is encrypted; and it is in ``settled`` before any answer to it can be here.

**Who sends.** A thread that does not turn the loop sends what it appends, and costs no change of thread. In the loop,
what a turn has to say is sent together, at the beginning of the next, by the reactor's :class:`Flusher`; so is what was
appended before the handshake was over. It looks once per heartbeat for what interrupted threads have left.

No more is encrypted while the socket has not taken the last piece, so that what waits costs no second copy (FLOW).
While such a piece waits, ``out`` begins with an entry of ours: ``not out`` means that the kernel has all.
"""

from __future__ import annotations

import socket
import ssl
from _thread import RLock, get_ident
from collections import deque
from collections.abc import Callable
from itertools import islice
from operator import itemgetter
from time import monotonic
from typing import Any, Final

from moray.protocol.connection import encode_frame
from moray.protocol.messages import Message
from moray.protocol.reactor import HEARTBEAT_S, READ, WRITE, Reactor

#: Plaintext that is encrypted for one call of `send`: enough to make that cheap, little enough to stay in the cache.
SEAL_BYTES: Final = 1 << 18
#: Bytes that one connection sends before others have their turn.
MOST_AT_ONCE: Final = 4 * SEAL_BYTES
#: Frames up to this size are copied into one piece; larger ones are encrypted where they are.
JOIN_LIMIT: Final = 1 << 14
#: Frames that are joined into one piece at most.
_MOST_JOINED: Final = 256


#: What waits to be sent: a frame; what follows it; the record, third as in :mod:`moray.protocol.connection`; what the
#: loop calls when the second is not needed any more: sent, or never to be sent.
Entry = tuple[bytes, memoryview | None, Any, Callable[[], None] | None]
#: What is being encrypted: the entry that is first in `out` until those are settled that end with this piece, and how
#: many these are; its bytes; how much of the entry that is first afterwards is encrypted then.
Piece = tuple[Entry, int, "bytes | memoryview", int]

#: Stands first in `out` while encrypted bytes wait.
SEALED: Final[Entry] = (b"", None, None, None)

_record_of, _on_sent_of = itemgetter(2), itemgetter(3)
_popleft: Final = deque[Entry].popleft
_ALL: Final = (-1,)


class Flusher:
    """A reactor's hook: sends what was appended to its encrypted connections."""

    __slots__ = ("_looked_at", "calls", "connections", "dirty", "thread")

    def __init__(self) -> None:
        #: Connections to which something was appended that the loop shall send; any thread adds to it.
        self.dirty: deque[TlsSender] = deque()
        #: What `on_sent` of connections asked for, for the loop.
        self.calls: deque[Callable[[], None]] = deque()
        self.connections: set[TlsSender] = set()
        #: Who turned the loop last.
        self.thread = 0
        self._looked_at = 0.0

    def __call__(self) -> None:
        self.thread = get_ident()
        dirty = self.dirty
        count = len(dirty)
        for _ in range(count):  # What is added meanwhile waits for the next turn, so that others have theirs.
            dirty.popleft().write()
        self.tell()
        now = monotonic()
        if now - self._looked_at >= HEARTBEAT_S:
            # Somebody may have been interrupted between its append and the end of its sending.
            self._looked_at = now
            for connection in list(self.connections):
                if connection.unfinished():
                    connection.write()

    def tell(self) -> None:
        """Make the calls that are due. Loop only."""
        while self.calls:
            self.calls.popleft()()

    @staticmethod
    def of(reactor: Reactor) -> Flusher:
        """The reactor's own."""
        for hook in reactor.hooks:
            if isinstance(hook, Flusher):
                return hook
        flusher = Flusher()
        reactor.hooks.append(flusher)
        return flusher


class TlsSender:
    """What :class:`~moray.protocol.tls.TlsConnection` sends with."""

    #: The other side is authenticated.
    ready = False
    closed = False
    #: Nothing can be sent any more: the peer is gone.
    broken = False
    #: What ended the connection, or will; a ConnectionRefusedError says that nobody listens there.
    error: Exception | None = None
    #: OpenSSL's state. Made when the first byte is there: a silent stranger has none of its 40 KB.
    _ssl: ssl.SSLObject | None = None
    _sock: Any = None
    fd = -1
    #: What was announced and is not known to be encrypted. Guarded by the lock, as all that follows.
    _begun: Piece | None = None
    #: How much of the first entry of `out` is encrypted, if that is done piece by piece.
    _offset = 0
    #: Whether EPOLLOUT is asked for.
    _wants_write = False

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        #: Frames not yet wholly sent, oldest first.
        self.out: deque[Entry] = deque()
        #: Entries wholly sent that carry a record; the loop drains it.
        self.settled: deque[Entry] = deque()
        #: Guards the encrypted stream, and `closed` against commits of records. A signal handler of the user's may come
        #: here while its thread holds it (INTERRUPT).
        self._io = RLock()
        #: Whether the calling thread is in the middle of that.
        self.inside: Callable[[], bool] = self._io._is_owned  # type: ignore[attr-defined]
        self._outgoing = ssl.MemoryBIO()
        #: The piece that the socket has not wholly taken: plain bytes first, ciphertext later.
        self._sealed: deque[bytes] = deque()
        #: How much of it each `send` has taken. Cleared before there is a new one.
        self._counts: deque[int] = deque()
        self._flusher = Flusher.of(reactor)
        self._flusher.connections.add(self)

    # --- any thread -----------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue `message`, and send it unless the loop has to."""
        self.send_frame(encode_frame(message))

    def send_frame(self, frame: bytes, record: Any = None) -> bool:
        """Queue a frame; it is committed once this has appended it. False after the end of the connection, which is
        told by `on_close`."""
        return self._append((frame, None, record, None))

    def send_raw(self, frame: bytes, raw: memoryview, on_sent: Callable[[], None] | None = None) -> bool:
        """Queue a frame and the bytes that follow it. They must stay as they are until the loop calls `on_sent`: when
        they are sent, or never will be. It is not called if this returns False."""
        return self._append((frame, raw.cast("B") if raw.nbytes else None, None, on_sent))

    def _append(self, entry: Entry) -> bool:
        interrupts = self.inside()  # In a signal handler of the user's, in the middle of any step.
        with self._io:
            # What was committed before the end is found by `on_close`; after it nothing may be.
            if self.closed:
                return False
            self.out.append(entry)
            if not self.ready or self._wants_write:
                return True  # Whoever ends the handshake, or is told that there is room, looks at `out` after that.
            # In the loop (or a moment after it, which does no harm): together with what else this turn has to say.
            if interrupts or (self._flusher.thread == get_ident() and self._reactor.lead.locked()):
                self._leave_to_loop()
            else:
                self._send_waiting()
        return True

    def flush(self) -> None:
        """Send what the socket takes; the loop sends the rest when it can."""
        if self.inside():
            self._leave_to_loop()
        elif self.ready:
            self.write()

    def unfinished(self) -> bool:
        """Whether something waits to be encrypted or sent."""
        return bool(self.out or self._sealed or self._begun is not None or self._outgoing.pending)

    def _leave_to_loop(self) -> None:
        self._flusher.dirty.append(self)
        self._reactor.wake()

    def write(self) -> None:
        """The same, and what a handshake has to say. Not in the middle of such a step."""
        with self._io:
            self._send_waiting()

    # --- whoever holds the lock -----------------------------------------------------------------------

    def _send_waiting(self) -> None:
        """Encrypt and send."""
        if not self._send_only():
            self._send_all()

    def _send_only(self) -> bool:
        """The usual case, made short: one frame, and nothing that anybody has left. False, in any state, if there is
        more to do."""
        out, sealed, outgoing, counts = self.out, self._sealed, self._outgoing, self._counts
        if self.closed or self.broken or not self.ready or sealed or self._begun is not None or outgoing.pending:
            return False
        if len(out) != 1 or self._wants_write:
            return False
        entry = out[0]
        frame, raw, record, on_sent = entry
        if raw is not None or on_sent is not None or len(frame) > SEAL_BYTES:
            return False
        self._begun = (entry, 1, frame, 0)
        if record is None:
            out.popleft()
        else:
            self.settled.extend(map(_popleft, (out,)))
        try:
            self._ssl.write(frame)  # type: ignore[union-attr]  # It is there when `ready` is.
            self._begun = None
            counts.clear()
            sealed.extend(map(outgoing.read, _ALL))
            counts.extend(map(self._sock.send, sealed))
        except ssl.SSLError as error:
            self._spoil(error)
            return False
        except OSError:  # Whatever it is, it comes again.
            return False
        if counts[0] != len(sealed[0]):
            return False
        sealed.popleft()
        return not out

    def _send_all(self) -> None:
        room, sealed, out, outgoing = MOST_AT_ONCE, self._sealed, self.out, self._outgoing
        while not (self.closed or self.broken or self._sock is None):
            if self._begun is not None:
                self._finish_begun(self._begun)
                continue  # It may have failed.
            if not sealed and outgoing.pending:
                self._counts.clear()
                # One C step: whoever is interrupted has taken it and left it here, or has not taken it.
                sealed.extend(map(outgoing.read, _ALL))
            if sealed:
                if not self._send_sealed():
                    break
                room -= len(sealed[0])
                sealed.popleft()
                continue
            if out and out[0] is SEALED:
                out.popleft()
            if not out or not self.ready:
                self._want_write(False)
                # No call between this look and the lock's release: what a handler adds there would not be sent.
                if not out or not self.ready:
                    break
                continue
            if room <= 0:
                self._want_write(True)
                break
            self._begun = self._next_piece()

    def _send_sealed(self) -> bool:
        """Whether the socket has taken all of the piece."""
        data, counts = self._sealed[0], self._counts
        while (done := sum(counts)) < len(data):
            try:
                counts.extend(map(self._sock.send, (memoryview(data)[done:] if done else data,)))
            except BlockingIOError:
                if not self.out or self.out[0] is not SEALED:
                    self.out.appendleft(SEALED)
                self._want_write(True)
                return False
            except OSError as error:
                # The peer is gone. Reading tells the loop so, which finds in `out` what was not sent.
                self.error = self.error or error
                self.broken = True
                return False
        return True

    def _want_write(self, wanted: bool) -> None:
        """Ask for EPOLLOUT or not. Interrupted at any point, this leaves at worst an EPOLLOUT that the flag does not
        know of, which `on_events` takes back; never a flag without EPOLLOUT, with which nobody would go on."""
        if self._wants_write != wanted:
            if not wanted:
                self._wants_write = False
            self._reactor.modify(self.fd, READ | WRITE if wanted else READ)
            if wanted:
                self._wants_write = True

    def _next_piece(self) -> Piece:
        """What to encrypt next: several small frames, or one, or a part of a long entry."""
        out = self.out
        first = out[0]
        frame, raw, _record, on_sent = first
        size, offset = len(frame), self._offset
        if raw is not None or size > SEAL_BYTES:
            if offset < size or raw is None:
                data = memoryview(frame)[offset : offset + SEAL_BYTES]
            else:
                data = raw[offset - size : offset - size + SEAL_BYTES]
            offset += len(data)
            ends = offset == size + (0 if raw is None else len(raw))
            return first, int(ends), data, 0 if ends else offset
        if len(out) == 1 or size > JOIN_LIMIT or on_sent is not None:
            return first, 1, frame, 0
        frames, room = list[bytes](), SEAL_BYTES
        for frame, raw, _record, on_sent in list(islice(out, _MOST_JOINED)):  # One C step: others append meanwhile.
            room -= len(frame)
            if raw is not None or on_sent is not None or len(frame) > JOIN_LIMIT or room < 0:
                break
            frames.append(frame)
        return first, len(frames), b"".join(frames), 0

    def _finish_begun(self, piece: Piece) -> None:
        """Go on with what was announced, wherever the thread that did so was interrupted."""
        first, count, data, offset = piece
        out, on_sent = self.out, first[3]
        if not self._outgoing.pending:
            self._offset = offset
            if on_sent is None and count and out and out[0] is first:
                self.settled.extend(filter(_record_of, islice(iter(out.popleft, None), count)))
            assert self._ssl is not None  # Nothing is sent before the handshake is over.
            try:
                self._ssl.write(data)
            except ssl.SSLError as error:
                self._spoil(error)
        if on_sent is not None and count and out and out[0] is first:
            self._flusher.calls.extend(map(_on_sent_of, islice(iter(out.popleft, None), 1)))
            self._reactor.wake()
        self._begun = None

    def _spoil(self, error: ssl.SSLError) -> None:
        """The stream is unusable; whoever reads is told so."""
        self.error = self.error or error
        self.broken = True
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # It has ended already.
