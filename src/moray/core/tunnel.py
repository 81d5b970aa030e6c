"""Streams of bytes between two sides over one connection at a time, which may be lost: one side's books.

Both sides keep the same books. Whoever opens a *stream* says what it is for; then both may send on it, and each ends
its own direction: in peace (EOF), or with a RESET, which the other side answers by ending its direction too.

**Numbers.** Whatever concerns a stream is a :class:`Frame` with the next number of its direction. A frame is kept until
the other side has said that it arrived. A new connection (an *attempt*, numbered by whoever dials) begins with both
saying how many have arrived, and the rest is sent again (TUNNEL-1: each frame has its effect once, in order, on
whatever connection). What still comes on an older attempt is not heard, and an older attempt that arrives late is
refused (TUNNEL-2).

**Credits.** A side sends no more on a stream than the other has granted (TUNNEL-3): :attr:`Limits.window` from the
beginning, and again what was *consumed*, that is, taken by whom the stream is for. So a stream that nobody reads holds
its own window and nothing else: frames of others pass it (TUNNEL-4). A stream that is read quickly gets a larger
window, as long as a common pool has room. What is kept for sending again is limited in all, and made free by arrival,
not by consumption.

A side that breaks these rules is a fault of its own: :class:`TunnelError`, and the shell ends the session. Owned by
the shell's loop.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

OPEN: Final = 0
DATA: Final = 1
EOF: Final = 2
RESET: Final = 3
CREDIT: Final = 4

#: What a frame that is kept costs beside its bytes: many tiny ones must not be free.
FRAME_COST: Final = 256
#: An acknowledgement is due after so many bytes or frames at the latest.
ACK_BYTES: Final = 1 << 18
ACK_FRAMES: Final = 32


class Limits(NamedTuple):
    """Both sides have the same."""

    #: That one side has opened and that have not ended.
    streams: int = 4096
    #: Bytes that a stream may have under way, or waiting for their reader, at first and at most.
    window: int = 1 << 17
    most_window: int = 1 << 22
    #: What the windows of all streams are larger than at first, together.
    pool: int = 1 << 26
    #: What may be kept for sending again.
    kept_bytes: int = 1 << 23
    #: Frames without data that may be kept: those of all streams, many times.
    kept_frames: int = 1 << 16


LIMITS: Final = Limits()


class TunnelError(Exception):
    """The other side broke the rules; `str` says how."""


class TooManyStreamsError(Exception):
    """This side has opened as many streams as it may."""


class Frame(NamedTuple):
    """One thing that is said, in its place in the order."""

    number: int
    kind: int
    stream: int
    #: OPEN: what the stream is for. DATA: its bytes. RESET: why.
    data: bytes | bytearray = b""
    #: CREDIT: how many bytes more may be sent.
    amount: int = 0


class _Stream:
    """What one side knows of one stream."""

    __slots__ = ("consumed", "credit", "got_end", "granted", "grown_at", "received", "sent_end", "sent_reset", "window")

    def __init__(self, window: int) -> None:
        #: Bytes that may still be sent.
        self.credit = window
        #: This side sends nothing more.
        self.sent_end = False
        #: It takes nothing more, either.
        self.sent_reset = False
        #: The other side sends nothing more.
        self.got_end = False
        #: Bytes since the beginning: that the other side may send, that it has sent, that were taken.
        self.granted = window
        self.received = 0
        self.consumed = 0
        #: What may be under way or wait, and what had been consumed when that became so.
        self.window = window
        self.grown_at = 0


class Tunnel:
    """One side. `side`: 0 for whoever dials, 1 for the other; it tells whose numbers of streams are even."""

    def __init__(self, side: int, limits: Limits = LIMITS) -> None:
        self._side = side
        self.limits = limits
        #: The present attempt (0: there was none), and whether frames pass on it.
        self.attempt = 0
        self.attached = False
        #: Number of the last frame that arrived.
        self.received = 0
        self._number = 0
        #: Of the frames of this side: the last one that was ever sent.
        self._sent = 0
        #: What the other side may not have, oldest first, and what that costs; what was not sent on this attempt.
        self._kept: deque[Frame] = deque()
        self._kept_bytes = 0
        self._queue: deque[Frame] = deque()
        #: Arrived since the last acknowledgement.
        self._new_bytes = 0
        self._new_frames = 0
        self._streams: dict[int, _Stream] = {}
        #: Those that have ended, of which not all that arrived was taken.
        self._draining: dict[int, _Stream] = {}
        #: The next stream of this side, and the lowest that the other side may open.
        self._next = side
        self._next_of_peer = 1 - side
        self._own = 0
        self._of_peer = 0
        #: Of the pool: in use.
        self._pool = 0

    # --- connections ------------------------------------------------------------------------------------

    def attach(self, attempt: int, received: int) -> bool:
        """A new connection on which the other side has said how many frames it has. False: it is older than the
        present one, and must be closed (TUNNEL-2)."""
        if attempt <= self.attempt:
            return False
        if not self._number - len(self._kept) <= received <= self._number:
            raise TunnelError(
                f"the other side says that {received} frames arrived, of {self._number} that were sent, of which "
                f"{self._number - len(self._kept)} had arrived before"
            )
        self.attempt = attempt
        self.attached = True
        self._forget(received)
        self._queue = deque(self._kept)
        return True

    def detach(self) -> None:
        """The connection is lost, or another one is tried: nothing that still comes on it counts."""
        self.attached = False
        self._queue.clear()

    # --- this side ----------------------------------------------------------------------------------------

    def open(self, target: bytes) -> int:
        """Begin a stream: its number. TooManyStreamsError if there are too many."""
        if self._own >= self.limits.streams:
            raise TooManyStreamsError(f"{self._own} streams are open through one tunnel, and no more may be")
        stream, self._next = self._next, self._next + 2
        self._own += 1
        self._streams[stream] = _Stream(self.limits.window)
        self._say(OPEN, stream, target)
        return stream

    def sendable(self, stream: int) -> int:
        """How many bytes may be sent on a stream now."""
        books = self._streams.get(stream)
        if books is None or books.sent_end:
            return 0
        return max(0, min(books.credit, self.limits.kept_bytes - self._kept_bytes - FRAME_COST))

    def send(self, stream: int, data: bytes | bytearray) -> None:
        """Send bytes on a stream, at most as many as are `sendable`; they stay as they are from now on."""
        books = self._streams[stream]
        assert not books.sent_end
        assert 0 < len(data) <= books.credit
        books.credit -= len(data)
        self._say(DATA, stream, data)

    def end(self, stream: int) -> None:
        """Nothing more is sent on a stream."""
        books = self._streams.get(stream)
        if books is not None and not books.sent_end:
            books.sent_end = True
            self._say(EOF, stream)
            self._look_whether_done(stream, books)

    def reset(self, stream: int, reason: bytes = b"") -> None:
        """Nothing more is sent on a stream, nor taken from it."""
        books = self._streams.get(stream)
        if books is not None and not books.sent_reset:
            books.sent_end = books.sent_reset = True
            self._say(RESET, stream, reason)
            self._look_whether_done(stream, books)

    def consumed(self, stream: int, count: int) -> None:
        """So many bytes that had arrived were taken by whom the stream is for."""
        books = self._streams.get(stream) or self._draining.get(stream)
        if books is None:
            return
        books.consumed += count
        if stream in self._draining:
            self._look_whether_drained(stream, books)
            return
        if books.got_end or books.sent_reset:
            return
        if books.consumed - books.grown_at >= books.window:
            self._grow(books)
        more = books.consumed + books.window - books.granted
        if 2 * more >= books.window:
            books.granted += more
            self._say(CREDIT, stream, amount=more)

    # --- what is to be sent -------------------------------------------------------------------------------

    def take(self) -> Frame | None:
        """The next frame for the present connection. It stays kept."""
        if not self._queue:
            return None
        frame = self._queue.popleft()
        self._sent = max(self._sent, frame.number)
        return frame

    def waits(self) -> bool:
        """Whether a frame waits for the present connection."""
        return bool(self._queue)

    def ack_due(self) -> bool:
        """Whether an acknowledgement is to be sent, even if nothing else is."""
        return self._new_bytes >= ACK_BYTES or self._new_frames >= ACK_FRAMES

    def acknowledgement(self) -> int:
        """What is to be said of what has arrived, with each thing that is sent."""
        self._new_bytes = self._new_frames = 0
        return self.received

    # --- what the other side says ---------------------------------------------------------------------------

    def acknowledged(self, attempt: int, received: int) -> None:
        """The other side has all frames up to this one."""
        if attempt != self.attempt or not self.attached:
            return
        if received > self._sent:
            # Else who takes nothing could have any number of frames wait for it.
            raise TunnelError(f"the other side acknowledges frame {received}, of {self._sent} that were sent")
        self._forget(received)

    def receive(self, attempt: int, frame: Frame) -> bool:
        """A frame has come on this attempt; whether the shell is to act on it. What that is for CREDIT: more may be
        `sendable`."""
        if attempt != self.attempt or not self.attached or frame.number <= self.received:
            return False
        if frame.number != self.received + 1:
            raise TunnelError(f"frame {frame.number} came after frame {self.received}")
        if len(self._kept) > self.limits.kept_frames:
            raise TunnelError(f"the other side has not acknowledged {len(self._kept)} frames")
        self.received += 1
        self._new_frames += 1
        self._new_bytes += len(frame.data)
        if frame.kind == OPEN:
            return self._opened(frame.stream)
        books = self._streams.get(frame.stream)
        if books is None:
            self._check_past(frame)
            return False
        if frame.kind == DATA:
            return self._arrived(frame, books)
        if frame.kind == CREDIT:
            if frame.amount <= 0:
                raise TunnelError(f"a credit of {frame.amount} bytes")
            books.credit += frame.amount
            return not books.sent_end
        if frame.kind == EOF:
            return self._ended(frame, books)
        if frame.kind == RESET:
            return self._was_reset(frame, books)
        raise TunnelError(f"a frame of kind {frame.kind}")

    # --- inside ---------------------------------------------------------------------------------------------

    def _say(self, kind: int, stream: int, data: bytes | bytearray = b"", amount: int = 0) -> None:
        self._number += 1
        frame = Frame(self._number, kind, stream, data, amount)
        self._kept.append(frame)
        self._kept_bytes += len(data) + FRAME_COST
        if self.attached:
            self._queue.append(frame)

    def _forget(self, received: int) -> None:
        """They have arrived there."""
        kept = self._kept
        while kept and kept[0].number <= received:
            self._kept_bytes -= len(kept.popleft().data) + FRAME_COST

    def _opened(self, stream: int) -> bool:
        if stream & 1 == self._side or stream < self._next_of_peer:
            raise TunnelError(f"stream {stream} was opened, but {self._next_of_peer} is the next")
        if self._of_peer >= self.limits.streams:
            raise TunnelError(f"more than {self.limits.streams} streams were opened")
        self._next_of_peer = stream + 2
        self._of_peer += 1
        self._streams[stream] = _Stream(self.limits.window)
        return True

    def _check_past(self, frame: Frame) -> None:
        """Of a stream that has ended, only this may still come: the other side did not know yet."""
        known = self._next if frame.stream & 1 == self._side else self._next_of_peer
        if frame.stream >= known:
            raise TunnelError(f"something came for stream {frame.stream}, which was not opened")
        if frame.kind not in (CREDIT, RESET):
            raise TunnelError(f"a frame of kind {frame.kind} came for stream {frame.stream} after its end")

    def _arrived(self, frame: Frame, books: _Stream) -> bool:
        if books.got_end:
            raise TunnelError(f"data came on stream {frame.stream} after its end")
        if not frame.data:
            # It would need no credit, so any number of them could wait for their reader.
            raise TunnelError(f"a frame with no bytes of data came on stream {frame.stream}")
        books.received += len(frame.data)
        if books.received > books.granted:
            raise TunnelError(f"{books.received} bytes came on stream {frame.stream}, and {books.granted} were granted")
        return not books.sent_reset

    def _ended(self, frame: Frame, books: _Stream) -> bool:
        if books.got_end:
            raise TunnelError(f"stream {frame.stream} was ended twice")
        books.got_end = True
        self._look_whether_done(frame.stream, books)
        return not books.sent_reset

    def _was_reset(self, frame: Frame, books: _Stream) -> bool:
        heard = not books.sent_reset
        books.got_end = True
        if not books.sent_end:
            books.sent_end = books.sent_reset = True
            self._say(RESET, frame.stream)
        self._look_whether_done(frame.stream, books)
        return heard

    def _look_whether_done(self, stream: int, books: _Stream) -> None:
        """Both directions have ended: there may be another stream. What waits for its reader still takes its room."""
        if not (books.sent_end and books.got_end):
            return
        self._draining[stream] = self._streams.pop(stream)
        if stream & 1 == self._side:
            self._own -= 1
        else:
            self._of_peer -= 1
        self._look_whether_drained(stream, books)

    def _look_whether_drained(self, stream: int, books: _Stream) -> None:
        if books.sent_reset or books.consumed >= books.received:
            del self._draining[stream]
            self._pool -= books.window - self.limits.window

    def _grow(self, books: _Stream) -> None:
        """It is read quickly: more may be under way, if the pool has room."""
        books.grown_at = books.consumed
        more = min(books.window, self.limits.most_window - books.window, self.limits.pool - self._pool)
        books.window += more
        self._pool += more

    def validate(self) -> None:
        """Raise AssertionError if the books do not agree with each other."""
        assert self._kept_bytes == sum(len(frame.data) + FRAME_COST for frame in self._kept)
        data_bytes = sum(len(frame.data) + FRAME_COST for frame in self._kept if frame.kind == DATA)
        assert data_bytes <= self.limits.kept_bytes, "what is kept is limited"
        numbers = [frame.number for frame in self._kept]
        assert numbers == list(range(self._number - len(numbers) + 1, self._number + 1)), "TUNNEL-1"
        assert self.attached or not self._queue
        waiting = [frame.number for frame in self._queue]
        assert waiting == list(range(self._number - len(waiting) + 1, self._number + 1)), "TUNNEL-1"
        streams = [*self._streams.values(), *self._draining.values()]
        assert self._pool == sum(books.window - self.limits.window for books in streams)
        assert 0 <= self._pool <= self.limits.pool
        assert all(books.consumed < books.received for books in self._draining.values())
        own = [stream for stream in self._streams if stream & 1 == self._side]
        assert (self._own, self._of_peer) == (len(own), len(self._streams) - len(own))
        assert max(self._own, self._of_peer) <= self.limits.streams
        for books in self._streams.values():
            assert books.credit >= 0
            assert not (books.sent_end and books.got_end)
            assert books.consumed <= books.received <= books.granted, "TUNNEL-3"
            assert books.granted <= books.consumed + books.window, "TUNNEL-3"
