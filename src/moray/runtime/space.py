"""Space of the store that this process holds ahead, so that a put of a large value costs no round trip.

Theory of operation. Objects of like size are one *kind*. When several were made within a short while, the seal of the
next one says how many *places* are wished for; the node grants what it can spare. From then on a put takes a
place and writes there. Each seal that leaves few places asks for more, so that they come before the last is taken.
Unused ones go back when no more objects of the kind are made, or when the node asks.

The seal of an object of our own need not be sent by the thread that put it: until somebody else can ask for the
object, it is *untold*, and the loop tells the node of it in its next turn, before it tells anybody anything else. If it
was dropped by then, which is how programs make many large objects in a row, the next put takes its place: warm memory,
no message, and no other thread. A thread that sees its places run low wakes the loop to ask for more.

INTERRUPT. A place is one object with one owner at a time: the deque of its kind, then the frame of the thread that
took it. If that frame ends without a seal, for whatever reason, so does the place, and C code appends its weak
reference to a deque (DEL), from which the loop gives it back. Numbers of places are never used again, so that the
node ignores a place that comes back although it was sealed.

STORE-SEAL. The node asks for places, or after objects that it does not know (RecallSpace); the answer is sent at the
end of the loop's turn, after all seals, over the connection that they go over. So what was put before is known when it
arrives.

A thread that reads its own untold object seals it itself. Two may then tell of one object; the node ignores the second,
whose place is gone. What must not be is that one tells of a dropped object while another uses its place again: a
teller sets `told` first and then looks whether the record is still there; who wants the place takes the record out
first and then looks at `told`. At least one of them sees the other.
"""

from __future__ import annotations

import weakref
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from moray.protocol import messages as m
from moray.protocol.connection import encode_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from moray.object_ref import Entry
    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Runtime, Waiter

#: Places that a process holds of one kind at most. A grant comes within the time of one or two puts of a megabyte;
#: more places would only spread the writes over more memory than the caches hold.
_PLACES: Final = 8
#: Bytes that it holds of one kind at most. Larger objects take so long to copy that a round trip hardly counts.
_BYTES: Final = 32 << 20
#: So many objects of a kind in a row, each within _LATELY_S of the last, are the beginning of many.
_SEVERAL: Final = 3
_LATELY_S: Final = 0.1
#: An unused place goes back after this: long enough for a step of the user's own work between puts.
_IDLE_S: Final = 0.5
#: The node had nothing to spare: it is asked again after this, when its arena may have grown.
_REFUSED_S: Final = 0.01
#: How long a put waits for places that were asked for, rather than ask for space of its own.
_WAIT_S: Final = 0.02
#: In place of the size of a dropped object whose place is used again.
NOTHING_TO_FREE: Final = -1
#: An answer that takes longer was never asked for: the thread was interrupted before it sent its seal.
_ANSWER_S: Final = 1.0


class Place:
    """A part of the arena that the next object may be written to."""

    __slots__ = ("__weakref__", "number", "offset", "size")

    def __init__(self, number: int, offset: int, size: int) -> None:
        self.number = number
        self.offset = offset
        self.size = size


class _Watch(weakref.ref[Place]):
    """Tells the end of a place that was not sealed."""

    __slots__ = ("number",)
    number: int


class _Untold(msgspec.Struct, eq=False, gc=False):
    """An object of ours that lies in a place, and that the node has perhaps not heard of."""

    entry: Entry
    size: int
    place: Place
    #: Somebody is about to seal it, or has: the place must not be used again.
    told: bool = False


class _Kind:
    """Objects whose sizes have the same power of two above them. Its numbers are hints: threads may overwrite them."""

    __slots__ = ("ask_after", "asked", "low", "made", "places", "recent", "size", "waiters")

    def __init__(self) -> None:
        #: The loop adds, the warmest last; threads and the loop take.
        self.places: deque[Place] = deque()
        #: When the latest object was made, and how many in a row.
        self.made = 0.0
        self.recent = 0
        #: How large places should be: follows the largest of late.
        self.size = 0
        #: A thread wants the loop to find more places.
        self.low = False
        #: Places were asked for, and the node has not answered. Not before `ask_after` are more asked for.
        self.asked = False
        self.ask_after = 0.0
        #: Threads that wait for the answer; notified once. Threads add, the loop removes.
        self.waiters: deque[Waiter] = deque()


class Space:
    """The places of this process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: Bits of the size → kind.
        self._kinds: dict[int, _Kind] = {}
        #: Place → its watch, while it is not sealed. The loop adds, threads and the loop remove.
        self._watches: dict[int, _Watch] = {}
        #: Watches whose places have ended, in any thread (DEL).
        self._ended: deque[_Watch] = deque()
        self._note_end: Callable[[_Watch], None] = self._ended.append
        #: Key → our objects that the node has perhaps not heard of. Threads add; who takes one out decides about it.
        self._untold: dict[int, _Untold] = {}
        #: Set by threads that found their places low, before they wake the loop for it.
        self._low = False
        #: The node was short of room since it last granted any: what is put is told of at once.
        self._pressed = False
        #: What the node asked and is not answered yet. Loop only.
        self._recalls: list[m.RecallSpace] = []
        #: A look for idle places is due. Loop only.
        self._looking = False
        runtime.handlers[m.SpaceGranted] = self._on_granted
        runtime.handlers[m.RecallSpace] = self._on_recall

    # --- any thread -----------------------------------------------------------------------------------

    def take(self, size: int) -> Place | None:
        """A place for an object of `size` bytes, which is the caller's now; None if there is none."""
        bits = _kind_of(size)
        kind = self._kinds.get(bits)
        if kind is None:
            return None
        place = (self._untold and self._take_dropped(size, bits)) or _pop(kind, size)
        if place is None and (kind.asked or kind.low):
            # What was asked for before comes before the answer to anything that would be asked now.
            self._await_answer(kind)
            place = _pop(kind, size)
        return place

    def _take_dropped(self, size: int, bits: int) -> Place | None:
        """The place of an untold object without references: the loop will book its end, and has nothing to free."""
        for untold in list(self._untold.values()):
            entry, place = untold.entry, untold.place
            alive = entry.alive
            # Its reference never left (then others might know it), and is gone.
            if (alive is not None and alive() is not None) or entry.book is not None or untold.told:
                continue
            if place.size < size or _kind_of(place.size) != bits or entry.key in entry.origin.entries:
                continue
            if self._untold.pop(entry.key, None) is untold and not untold.told:
                entry.size = NOTHING_TO_FREE
                return place
        return None

    def _await_answer(self, kind: _Kind) -> None:
        """Let the loop run: while this thread copies and computes, the loop hardly gets the interpreter lock."""
        waiter = self._runtime.new_waiter()
        kind.waiters.append(waiter)
        # If it has come meanwhile, nobody may notify this one any more.
        if (kind.asked or kind.low) and not self._runtime.block(waiter, monotonic() + _WAIT_S):
            kind.asked = kind.low = False  # Perhaps the loop was never woken, or asked the node (INTERRUPT).

    def sealed(self, place: Place) -> None:
        """The node was told what lies there."""
        self._watches.pop(place.number, None)

    def wish(self, size: int) -> tuple[int, int]:
        """How many places the seal of an object should ask for, and how large; (0, 0): none."""
        kind = self._made(size)
        if kind is None:
            return 0, 0
        kind.ask_after = monotonic() + _ANSWER_S
        kind.asked = True
        return _most(kind) - len(kind.places), kind.size

    def _made(self, size: int) -> _Kind | None:
        """Note an object that was made; returns its kind if more places of it should be found."""
        if size > _BYTES // 2:
            return None
        now = monotonic()
        kind = self._kinds.get(_kind_of(size))
        if kind is None:
            kind = self._kinds.setdefault(_kind_of(size), _Kind())
        kind.recent = kind.recent + 1 if now - kind.made < _LATELY_S else 1
        kind.made = now
        kind.size = max(size, kind.size - ((kind.size - size) >> 3))
        if kind.recent < _SEVERAL or len(kind.places) > _most(kind) // 2 or now < kind.ask_after:
            return None
        return kind

    def written(self, entry: Entry, size: int, place: Place) -> None:
        """A new object of ours lies in a place, which is its own now; the loop will tell the node, if it must."""
        self._untold[entry.key] = _Untold(entry, size, place)
        kind = self._made(size)
        if kind is not None and not kind.low:
            kind.low = True
            self._low = True
            self._runtime.wake()
        elif self._pressed:
            self._runtime.wake()

    def tell_of(self, entry: Entry) -> None:
        """Somebody is about to ask the node for the object, to which there is a reference while this runs."""
        untold = self._untold.get(entry.key)
        if untold is None or untold.entry is not entry:
            return  # (Keys of other processes' objects may be the same.)
        untold.told = True
        if entry.key in self._untold:
            self._runtime.node.send(_seal(untold))
            self._told(untold)

    def _told(self, untold: _Untold) -> None:
        self._watches.pop(untold.place.number, None)
        self._untold.pop(untold.entry.key, None)

    # --- the loop ---------------------------------------------------------------------------------------

    def _on_granted(self, _connection: Connection, message: m.SpaceGranted) -> None:
        kind = self._kinds.get(_kind_of(message.size))
        if kind is None:
            kind = self._kinds.setdefault(_kind_of(message.size), _Kind())
        for number, offset in reversed(message.places):
            place = Place(number, offset, message.size)
            watch = self._watches[number] = _Watch(place, self._note_end)
            watch.number = number
            kind.places.append(place)
            del place  # The deque's alone.
        kind.ask_after = 0.0 if message.places else monotonic() + _REFUSED_S
        kind.asked = False
        self._pressed = self._pressed and not message.places
        _wake_waiters(kind)
        if not self._looking:
            self._looking = True
            self._runtime.reactor.call_later(_IDLE_S, self._look)

    def _on_recall(self, _connection: Connection, message: m.RecallSpace) -> None:
        self._recalls.append(message)

    def _look(self) -> None:
        """Give back what was not used for a while."""
        late = monotonic() - _IDLE_S
        for number, kind in list(self._kinds.items()):
            if kind.made < late:
                del self._kinds[number]
                kind.places.clear()
        self._looking = bool(self._kinds)
        if self._looking:
            self._runtime.reactor.call_later(_IDLE_S, self._look)

    def reuse(self, entry: Entry) -> bool:
        """Nothing refers to an object of ours any more. Whether the node need not hear of that."""
        untold = self._untold.pop(entry.key, None)
        if untold is None or untold.told:
            return False
        kind = self._kinds.get(_kind_of(untold.place.size))
        if kind is not None and len(kind.places) < _most(kind):
            kind.places.append(untold.place)
        return True  # If it is not kept, it ends here, and goes back.

    def tell(self) -> None:
        """Once a turn, after drops were booked, and before anybody can hear of what was put: tell the node of it."""
        if self._low:
            self._low = False
            self._find_places()
        elif self._untold:
            self._seal_all(None)

    def _find_places(self) -> None:
        """The loop was woken for places. If drops have brought enough, what is there may stay untold."""
        for kind in list(self._kinds.values()):
            if not kind.low:
                continue
            if len(kind.places) <= _most(kind) // 2 and not kind.asked:
                self._seal_all(kind)
            kind.low = False
            if not kind.asked:
                _wake_waiters(kind)
        known = any(untold.entry.book is not None for untold in list(self._untold.values()))
        if self._pressed or known or self._runtime.submitter.intake:
            self._seal_all(None)

    def _seal_all(self, kind: _Kind | None) -> None:
        """Tell the node of all untold objects; ask for places of a kind with the last."""
        told, seals = [], []
        for untold in list(self._untold.values()):
            untold.told = True
            if untold.entry.key in self._untold:
                told.append(untold)
                seals.append(_seal(untold))
        if kind is not None and seals:
            seals[-1].ahead, seals[-1].ahead_size = _most(kind) - len(kind.places), kind.size
            kind.ask_after = monotonic() + _ANSWER_S
            kind.asked = True
        if seals:
            self._runtime.node.send_frame(b"".join(map(encode_frame, seals)))
        for untold in told:
            self._told(untold)

    def flush(self) -> None:
        """Once a turn, after frees were told: give back what is not needed, and answer the node."""
        if self._recalls:
            self._answer()
        if self._ended:
            self._runtime.node.send(m.AbortObject(b"", self._take_ended()))

    def _answer(self) -> None:
        recalls, self._recalls = self._recalls, []
        self._seal_all(None)
        if not all(recall.keep for recall in recalls):
            self._pressed = True
            for kind in list(self._kinds.values()):
                kind.places.clear()
        for recall in recalls:
            self._runtime.node.send(m.AbortObject(b"", self._take_ended(), recall.recall))

    def _take_ended(self) -> list[int]:
        ended = self._ended
        numbers = []
        while ended:
            number = ended.popleft().number
            if self._watches.pop(number, None) is not None:
                numbers.append(number)
        return numbers


def _pop(kind: _Kind, size: int) -> Place | None:
    while kind.places:
        try:
            place = kind.places.pop()
        except IndexError:
            return None  # Another thread was quicker.
        if place.size >= size:
            return place
        # Sizes have grown: it goes back, and larger ones are wished for.
    return None


def _most(kind: _Kind) -> int:
    """How many places of a kind are held."""
    return min(_PLACES, _BYTES // kind.size)


def _seal(untold: _Untold) -> m.SealObject:
    return m.SealObject(0, untold.entry.id, untold.place.number, untold.size)


def _wake_waiters(kind: _Kind) -> None:
    while kind.waiters:
        kind.waiters.popleft().notify()


def _kind_of(size: int) -> int:
    return (size - 1).bit_length()
