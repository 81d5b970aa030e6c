"""One generator's items between the worker that makes them and their owner (STREAM, FLOW).

Items are numbered from 0; what identifies one is its index, whichever attempt of the task has made it. A task that
is run again makes all its items anew, but sends only those that the owner did not have when the attempt began
(``skip``).

- :class:`Arriving`, at the owner: which items it has, and whether an attempt's end agrees with them.
- :class:`Making`, at the worker: which items are to be sent, and when the generator must pause.
- :class:`Kept`, at an actor: what was sent and may be lost with its connection, until the owner says that it has it.
- :class:`Together`, at an actor: how far all its generators are ahead, in sum.

Backpressure: with a limit of `ahead` the generator is not resumed while that many items are made and not
consumed. The worker reckons with what the owner has *told* it, beginning with 0 in each attempt; when it pauses it
says how far it is, in an empty message if need be, and the owner answers as soon as more was consumed than told.

Invariants:

- STREAM-1: the consumer sees each index once, in ascending order, whatever is repeated or lost.
- STREAM-2: at most `ahead` items are with the owner and not consumed, or as many as there were when an attempt began.
- STREAM-3: the end is believed only if it comes after exactly the items that the owner has; it is final.
- STREAM-4: a generator that pauses is resumed once the consumer has taken enough.
- STREAM-5: what an actor sent is kept until the owner has it; on another connection it is sent again, in order.
- STREAM-6: all generators that an actor runs have at most `most` items together that were made, or are being made, and
  are not consumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from itertools import count
from typing import Any, Final

#: An owner tells an actor after so many items, or bytes, that it has them: enough that it costs nothing.
ACKNOWLEDGED_ITEMS: Final = 256
ACKNOWLEDGED_BYTES: Final = 1 << 20
#: Below that it is not worth a message at the end: the actor drops what it kept when it is told that the reply came.
LAST_WORD_BYTES: Final = 1 << 16
#: A generator pauses while so much is kept: all of it is sent again on a new connection, which should not take long.
KEPT_ITEMS: Final = 8192
KEPT_BYTES: Final = 4 << 20


class End(Enum):
    """What an attempt's end means for the owner."""

    #: After all its items: the stream is over.
    COMPLETE = "complete"
    #: This attempt made fewer items than an earlier one, or ended elsewhere than the end that was believed.
    INCONSISTENT = "inconsistent"
    #: Items before it never arrived.
    LOST = "lost"
    #: Of an attempt that does not count any more, or known already: nothing changes.
    STALE = "stale"


class Arriving:
    """The owner's side of one stream. Owned by its loop."""

    __slots__ = ("_unsaid_bytes", "acknowledged", "ahead", "attempt", "length", "received", "told")

    def __init__(self, ahead: int = -1) -> None:
        #: The attempt whose messages count.
        self.attempt = 0
        #: Items below this index are here, or were.
        self.received = 0
        #: Items in all, once the end is believed; -1: open.
        self.length = -1
        #: How many items may be unread; -1: any number.
        self.ahead = ahead
        #: How many consumed items the worker of this attempt knows of.
        self.told = 0
        #: What the worker of this attempt knows of `received`; bytes that came since.
        self.acknowledged = 0
        self._unsaid_bytes = 0

    def accept(self, attempt: int, first: int, count: int) -> range:
        """Items `first` … `first + count - 1` arrived: the indices of those that are new here."""
        end = first + count
        if attempt != self.attempt or self.length >= 0 or first > self.received or end <= self.received:
            return range(0)
        begin, self.received = self.received, end
        return range(begin, end)

    def credit(self, taken: int) -> bool:
        """`taken` items were consumed, or something arrived: whether the worker is to be told `taken` now."""
        if self.ahead < 0 or self.length >= 0 or taken <= self.told:
            return False
        # As far as it knows it must pause; otherwise half the limit is worth a message.
        if self.received - self.told < self.ahead and taken - self.told < self.ahead // 2:
            return False
        self.told = taken
        return True

    def acknowledge(self, size_bytes: int) -> bool:
        """Items of so many bytes came from an actor, which keeps them: whether it is to be told `received` now. Then
        :meth:`said` follows."""
        self._unsaid_bytes += size_bytes
        few = self.received - self.acknowledged < ACKNOWLEDGED_ITEMS and self._unsaid_bytes < ACKNOWLEDGED_BYTES
        return not few and self.length < 0

    def owes_last_word(self) -> bool:
        """The stream has ended: whether the actor keeps much that it does not know to be here."""
        return self._unsaid_bytes >= LAST_WORD_BYTES

    def said(self) -> None:
        """The worker is being told `received`."""
        self.acknowledged = self.received
        self._unsaid_bytes = 0

    def resume(self, taken: int) -> None:
        """The actor gets a new connection, on which it is told first what came and what was consumed."""
        self.told = max(self.told, taken)

    def replay(self, attempt: int) -> int:
        """The task is run again: how many items the new attempt need not send."""
        assert attempt > self.attempt
        self.attempt = attempt
        self.told = 0
        self.said()
        return self.received

    def finish(self, attempt: int, items: int) -> End:
        """An attempt has ended after this many items (those of earlier attempts included). INCONSISTENT and LOST are
        errors of the task: :meth:`fail` follows."""
        if self.length >= 0:
            return End.STALE if items == self.length else End.INCONSISTENT
        if attempt != self.attempt:
            return End.STALE
        if items == self.received:
            self.length = items
            return End.COMPLETE
        return End.INCONSISTENT if items < self.received else End.LOST

    def fail(self) -> bool:
        """The task failed: the error comes after what is here. False: the stream was over already."""
        if self.length >= 0:
            return False
        self.length = self.received
        return True


class Making:
    """The worker's side of one attempt. Owned by the thread that runs the generator; `consumed` is the loop's."""

    __slots__ = ("ahead", "consumed", "made", "skip")

    def __init__(self, skip: int = 0, ahead: int = -1) -> None:
        #: Items below this are not sent.
        self.skip = skip
        #: How many items may be made and not consumed; -1: any number.
        self.ahead = ahead
        #: Items made so far.
        self.made = 0
        #: Items that the owner's consumer has taken, as it told.
        self.consumed = 0

    def wanted(self) -> bool:
        """Whether the next item is to be sent."""
        return self.made >= self.skip

    def credit(self, consumed: int) -> None:
        """The owner tells how many items were consumed; messages of a replaced connection may come late."""
        self.consumed = max(self.consumed, consumed)

    def must_pause(self) -> bool:
        """Whether the generator may not be resumed now. What it makes only to be skipped costs nobody anything."""
        return 0 <= self.ahead <= self.made - self.consumed and self.made >= self.skip


class Kept:
    """An actor's items that the owner may not have. Whoever sends adds, before; the loop drops."""

    __slots__ = ("_added", "_dropped", "_items")

    def __init__(self) -> None:
        #: (index, item). Added by one C step; an interrupted sender adds the same ones again.
        self._items: deque[tuple[int, Any]] = deque()
        #: Bytes that were added, by whoever sends, and dropped, by the loop.
        self._added = 0
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, first: int, items: Sequence[Any]) -> None:
        """These are being sent, numbered from `first`."""
        self._added += sum([len(item.blob) for item in items])
        self._items.extend(zip(count(first), items))

    def is_full(self) -> bool:
        """Whether the generator must wait until the owner has more."""
        return self._added - self._dropped >= KEPT_BYTES or len(self._items) >= KEPT_ITEMS

    def acknowledge(self, received: int) -> None:
        """The owner has all below `received`."""
        items = self._items
        while items and items[0][0] < received:
            self._dropped += len(items.popleft()[1].blob)

    def again(self) -> tuple[int, list[Any]]:
        """What is to be sent on a new connection: the index of the first, and the items in order."""
        items = dict(self._items)
        indices = sorted(items)
        assert not indices or indices[-1] - indices[0] + 1 == len(indices), "items are kept without gaps"
        return indices[0] if indices else 0, [items[index] for index in indices]


class Together:
    """How far the generators of one actor may be ahead, in sum. They may run in several threads: one at a time asks."""

    __slots__ = ("_begun", "_waiting", "most")

    def __init__(self, most: int) -> None:
        #: So many items may be made, or be in the making, and not consumed.
        self.most = most
        #: Generator → how many items it has begun.
        self._begun: dict[Making, int] = {}
        #: Those that may not make their next item, in the order in which they asked.
        self._waiting: dict[Making, None] = {}

    def admit(self, making: Making) -> bool:
        """Whether this generator may make its next item, which counts from now on. It may ask again."""
        begun = making.made + 1
        if not making.wanted() or self._begun.get(making) == begun:
            return True
        unread = sum([count - other.consumed for other, count in self._begun.items() if other is not making])
        if unread + making.made - making.consumed >= self.most:
            self._waiting[making] = None
            return False
        self._begun[making] = begun
        self._waiting.pop(making, None)
        return True

    def admit_waiting(self) -> list[Making]:
        """Something was consumed, or one has ended: those that waited for it, and may make their next items now."""
        admitted: list[Making] = []
        while self._waiting and self.admit(first := next(iter(self._waiting))):
            admitted.append(first)
        return admitted

    def leave(self, making: Making) -> None:
        """It has ended: what is left of its items holds up nobody."""
        self._begun.pop(making, None)
        self._waiting.pop(making, None)
