"""Which process holds which space ahead of its objects, and what the node has asked back.

A *place* is a region of the arena that a process may write one object into without asking first; the node hears of
the object when it is sealed there. Until then the place is the process's, and only three things end that: the
seal, its own word that it gives the place back, its death (LIVENESS).

A *recall* is a question to a process that holds places. Messages of one process arrive in their order, so its answer
also says that every object which it had sealed by then is known. That serves three purposes:

- The queue needs room (STORE-SPACE): places that nobody writes to come back. The queue waits for the answers, but only
  for so long as the shell says: a process that computes in C code cannot answer, and others must not fail for it.
- A creation would be refused: processes that own or read objects may have dropped some, and not said so yet.
- A borrower pins an object that the node does not know (STORE-SEAL): the owner may have sealed it in a place and
  told the borrower, whose question was quicker. Such an *early* pin waits for the seal, the answer or the death.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

#: One process holds at most this part of the arena ahead, and all together at most that one.
_SHARE_OF_ONE: Final = 32
_SHARE_OF_ALL: Final = 8

#: Where the owner's process id is in an object's id: after the task's number (:mod:`moray.ids`).
_OWNER: Final = slice(8, 20)


def owner_of(object: bytes) -> bytes:
    """The process that owns an object, by its id."""
    return object[_OWNER]


class Place(NamedTuple):
    """A region that is granted and has no object yet."""

    offset: int
    #: As rounded by the arena.
    size: int


class EarlyPin(NamedTuple):
    """A pin of an object that may have been sealed in a place."""

    process: bytes
    request: int
    object: bytes
    #: The question to the owner that was asked after it.
    recall: int


class SpaceAhead:
    """The book of places, recalls and early pins."""

    def __init__(self, capacity: int) -> None:
        self._limit_of_one = capacity // _SHARE_OF_ONE
        self._limit_of_all = capacity // _SHARE_OF_ALL
        #: Process → number → its places. No process without any is in it.
        self._places: dict[bytes, dict[int, Place]] = {}
        #: Process → sum of its places, and the sum of these.
        self._held: dict[bytes, int] = {}
        self.bytes = 0
        self._last_place = 0
        #: Recalls not answered yet: number → process.
        self._asked: dict[int, bytes] = {}
        self._last_recall = 0
        #: Of these, the ones that the queue waits for.
        self._awaited: set[int] = set()
        #: Holders that were asked for their places since they were last granted any.
        self._recalled: set[bytes] = set()
        #: Owner → pins of its objects that came before their seals, in their order.
        self._early: dict[bytes, list[EarlyPin]] = {}

    # --- places -------------------------------------------------------------------------------------

    def allows(self, process: bytes, size: int) -> bool:
        """Whether `process` may hold `size` more bytes."""
        return self._held.get(process, 0) + size <= self._limit_of_one and self.bytes + size <= self._limit_of_all

    def grant(self, process: bytes, offset: int, size: int) -> int:
        """`process` holds a place from now on; returns its number."""
        self._last_place += 1
        self._places.setdefault(process, {})[self._last_place] = Place(offset, size)
        self._count(process, size)
        self._recalled.discard(process)
        return self._last_place

    def held(self, process: bytes, number: int) -> Place | None:
        """A place of the process; None if it does not hold it (any more)."""
        places = self._places.get(process)
        return places.get(number) if places else None

    def take(self, process: bytes, number: int) -> Place | None:
        """End a holding; None if there is none."""
        places = self._places.get(process)
        place = places.pop(number, None) if places else None
        if place is not None:
            self._count(process, -place.size)
            if not places:
                del self._places[process]
                self._recalled.discard(process)
        return place

    def holds_any(self, process: bytes) -> bool:
        """Whether the process may have sealed something that the node has not heard of."""
        return process in self._places

    def _count(self, process: bytes, size: int) -> None:
        self.bytes += size
        total = self._held.get(process, 0) + size
        if total:
            self._held[process] = total
        else:
            del self._held[process]

    # --- recalls ------------------------------------------------------------------------------------

    def ask(self, process: bytes) -> int:
        """A new question to a process; returns its number."""
        self._last_recall += 1
        self._asked[self._last_recall] = process
        return self._last_recall

    def ask_all(self) -> list[tuple[bytes, int]]:
        """Ask everybody who has not been asked since the last grant, for the queue: (process, number)."""
        questions = [(process, self.ask(process)) for process in self._places if process not in self._recalled]
        self._recalled.update(process for process, _ in questions)
        self._awaited.update(number for _, number in questions)
        return questions

    def ask_each(self, processes: Iterable[bytes]) -> list[tuple[bytes, int]]:
        """Ask these, for the queue: (process, number)."""
        questions = [(process, self.ask(process)) for process in processes]
        self._awaited.update(number for _, number in questions)
        return questions

    @property
    def awaited(self) -> bool:
        """Whether the queue waits for answers."""
        return bool(self._awaited)

    def overdue(self, last: int) -> None:
        """The queue has waited long enough for the recalls up to `last`."""
        self._awaited = {number for number in self._awaited if number > last}

    # --- early pins ---------------------------------------------------------------------------------

    def pin_early(self, process: bytes, request: int, object: bytes) -> int:
        """A pin waits for what the object's owner has to tell; returns the number of the question to ask."""
        owner = owner_of(object)
        recall = self.ask(owner)
        self._early.setdefault(owner, []).append(EarlyPin(process, request, object, recall))
        return recall

    def sealed(self, object: bytes) -> list[EarlyPin]:
        """The object is known now: the pins that waited for it."""
        if not self._early:
            return []
        return self._pick(owner_of(object), lambda pin: pin.object == object)

    def answered(self, process: bytes, recall: int) -> list[EarlyPin]:
        """A recall is answered: the pins that need wait no longer."""
        if self._asked.get(recall) != process:
            return []
        del self._asked[recall]
        self._awaited.discard(recall)
        return self._pick(process, lambda pin: pin.recall <= recall)

    def died(self, process: bytes) -> tuple[Iterable[Place], list[EarlyPin]]:
        """A process is gone: its places, and the pins that waited for it; its own are forgotten."""
        places = self._places.pop(process, {}).values()
        self.bytes -= self._held.pop(process, 0)
        self._recalled.discard(process)
        for number in [number for number, asked in self._asked.items() if asked == process]:
            del self._asked[number]
            self._awaited.discard(number)
        for owner in list(self._early):
            self._pick(owner, lambda pin: pin.process == process)
        return places, self._early.pop(process, [])

    def _pick(self, owner: bytes, wanted: Callable[[EarlyPin], bool]) -> list[EarlyPin]:
        """Take some pins out."""
        pins = self._early.get(owner)
        if not pins:
            return []
        picked = [pin for pin in pins if wanted(pin)]
        left = [pin for pin in pins if not wanted(pin)]
        if left:
            self._early[owner] = left
        else:
            del self._early[owner]
        return picked

    # --- checks -------------------------------------------------------------------------------------

    def places(self) -> list[Place]:
        """All of them."""
        return [place for places in self._places.values() for place in places.values()]

    def check(self) -> None:
        """Raise AssertionError unless the tables agree with each other."""
        held = {who: sum(place.size for place in places.values()) for who, places in self._places.items()}
        assert self._held == held
        assert all(held.values())
        assert self.bytes == sum(held.values())
        assert self._awaited <= self._asked.keys()
        assert self._recalled <= self._places.keys()
        for owner, pins in self._early.items():
            assert pins
            assert all(owner_of(pin.object) == owner for pin in pins)
            assert all(self._asked.get(pin.recall) == owner for pin in pins), "an early pin that nobody will answer"
