"""What the node knows of each object in its store, and what is done next about it.

Theory of operation. A method is one event (a client's message, a death, the end of a piece of disk
work); it returns the actions that the shell carries out in the given order. Each object is in one
:class:`State`; :data:`TRANSITIONS` is the whole diagram::

    create ─ QUEUED ─ CREATING ─ SEALED ⇄ SPILLING ─ SPILLED ─ WANTED ─ RESTORING ─ SEALED
                 └⇄ MAKING ─┘ (own file) ──────────────┘

STORE-SEAL. An object exists for others when it is sealed. A pin that comes earlier waits while the
creator lives, and fails with "lost" when it dies or gives up.

STORE-PIN. Places are only told in answer to a pin, and stay as they are until the process unpins or
dies. The spiller does not move what it writes: in the turn in which the write is reported, the
region is freed if nothing pins it, and otherwise stays. An object that is freed while pinned, or
while its creator writes it, is *doomed*: its id is free for another attempt at once, its region
goes with the last pin. When one process holds two attempts under one id, an unpin does not say which it
means, so both stay until its count is zero.

STORE-SPACE. The shell backs the arena before space is granted. What does not fit waits, first come
first served, while room is made: the arena grows, objects that are on disk already lose their
region, then the least recently used unpinned ones are spilled, many to a file. Sealed bytes never
change, so a copy on disk stays good after a restore, and such an object leaves memory for nothing
the next time. If nothing more can be moved, a new object gets a file of its own and a spilled one is
served from where it lies on disk. If the disk refuses that, too, everybody who owns or reads objects is asked once to
say what was dropped already; only after that does creation fail, saying who holds what.

Space ahead (:mod:`moray.core.object_table_ahead`). A process that makes many objects holds places for the next ones.
They are granted only from what is free and backed, while nobody waits; when somebody does, those that are unused
are asked back before anything is spilled. An object that is sealed in a place begins its life here as SEALED.

Secondary copies (:mod:`moray.core.transfers`) are made by the node itself, and sealed when they have come whole from
another node. They are never spilled: what nobody reads of them is dropped, the least recently used first, before
anything else leaves memory. One that found no room in the arena goes with its last pin.

LIVENESS. Pins, queued requests, places and unsealed regions belong to the process, and go when its death
is told (:meth:`ObjectTable.process_died`), not before.
"""

from __future__ import annotations

import enum
from typing import Final

from moray.core.arena import rounded
from moray.core.object_table_ahead import EarlyPin, owner_of
from moray.core.object_table_life import ObjectTableLife
from moray.core.object_table_types import (
    Action,
    AwaitRecalls,
    Created,
    Done,
    Entry,
    Extend,
    Failed,
    File,
    Granted,
    Recall,
    Spill,
    State,
    Warn,
)
from moray.ids import TAG_BYTES

#: At least so much of the arena is spilled at a time, so that a full store does not write a file per object.
_SPILL_SHARE: Final = 16
#: At most so many objects in one file: the loop turn that ends the spill walks over them.
_SPILL_OBJECTS: Final = 4096
#: Nothing is granted ahead unless this part of the arena would still be free.
_SPARE_SHARE: Final = 8
#: The machine refused to back more of the arena: after so many further shortages it is asked again.
_ASK_AGAIN: Final = 16


class _Room(enum.Enum):
    """Whether space can be had."""

    #: More is free than before: try again.
    MADE = 1
    #: Something is under way that may free some.
    AWAITED = 2
    #: Nothing more can be moved.
    NONE = 3


class ObjectTable(ObjectTableLife):
    """Decides what the store does about each event; see above."""

    # --- events: clients ------------------------------------------------------------------------

    def create(self, process: bytes, request: int, object: bytes, size: int, secondary: bool = False) -> list[Action]:
        """A process wants to write a new object; `secondary`: the node itself, a copy of another node's."""
        mine = self._unsealed.setdefault(process, {})
        if size < 0:
            self._do(Failed(process, request, "full", f"an object of {size} bytes cannot be made"))
            return self._take()
        if object in self._objects or object in mine:
            self._do(Failed(process, request, "exists", f"object {object.hex()} is in the store already"))
            return self._take()
        entry = Entry(object, size, process, request)
        entry.secondary = secondary
        self._objects[object] = mine[object] = entry
        offset = None if self._queue else self._arena.allocate(size)
        if offset is not None:
            self._granted(entry, offset)
        else:
            self._queue.append(entry)
            self._pump()
        return self._take()

    def seal(self, process: bytes, request: int, object: bytes) -> list[Action]:
        """The creator has written everything."""
        mine = self._unsealed.get(process, {})
        entry = mine.get(object)
        if entry is None or entry.state is not State.CREATING:
            self._refuse(process, request, "lost", f"object {object.hex()} is not being written by this process")
            return self._take()
        del mine[object]
        if request:
            self._do(Done(process, request))
        self._move(entry, State.SEALED if entry.offset >= 0 else State.SPILLED)
        self._settle(entry)
        self._pump()
        return self._take()

    def seal_place(self, process: bytes, request: int, object: bytes, number: int, size: int) -> list[Action]:
        """A process has written an object, of which the node hears only now, into a place that it holds."""
        place = self._ahead.held(process, number)
        if place is None or not 0 <= size <= place.size:
            self._refuse(process, request, "lost", f"place {number} for object {object.hex()} is not this process's")
        elif object in self._objects:
            self._refuse(process, request, "exists", f"object {object.hex()} is in the store already")
        else:
            self._ahead.take(process, number)
            self._arena.shrink(place.offset, size)
            entry = self._objects[object] = Entry(object, size, process, request)
            entry.offset = place.offset
            if request:
                self._do(Done(process, request))
            self._move(entry, State.CREATING)
            self._move(entry, State.SEALED)
            self._settle(entry)
            self._pin_again(self._ahead.sealed(object))
            self._pump()
        return self._take()

    def grant_ahead(self, process: bytes, count: int, size: int) -> list[Action]:
        """A process asks for places for its next `count` objects. It gets as many as can be had at once."""
        places: list[tuple[int, int]] = []
        while len(places) < count and self._can_spare(process, rounded(size)):
            offset = self._arena.allocate(size)
            if offset is None:
                # More for the next time. Only if the machine has been generous: a refusal here must harm nobody.
                if self._growing_eagerly and not self._growing:
                    self._grow((count - len(places)) * rounded(size))
                break
            places.append((self._ahead.grant(process, offset, rounded(size)), offset))
        self._do(Granted(process, size, places))
        return self._take()

    def give_back(self, process: bytes, numbers: list[int], recall: int = 0) -> list[Action]:
        """A process does not need these places; it may answer a recall by that. Unknown ones are ignored."""
        for number in numbers:
            if (place := self._ahead.take(process, number)) is not None:
                self._arena.free(place.offset)
        if recall:
            self._pin_again(self._ahead.answered(process, recall))
        self._pump()
        return self._take()

    def abort(self, process: bytes, object: bytes) -> list[Action]:
        """The creator gives an unsealed object up."""
        entry = self._unsealed.get(process, {}).pop(object, None)
        if entry is not None:
            if entry.state is State.QUEUED:
                self._do(Failed(process, entry.request, "lost", "it was given up before there was room for it"))
            self._discard(entry, "its creator gave it up before it was complete")
            self._pump()
        return self._take()

    def pin(self, process: bytes, request: int, object: bytes) -> list[Action]:
        """A process wants to read an object: it is told the place, which stays until it unpins."""
        owner = owner_of(object)
        # An owner's own messages come in order: what it pins it has told of before, or it is gone.
        if object not in self._objects and owner != process and self._ahead.holds_any(owner):
            self._do(Recall(owner, self._ahead.pin_early(process, request, object), keep=True))
        else:
            self._pin(process, request, object)
        return self._take()

    def unpin(self, process: bytes, objects: list[bytes]) -> list[Action]:
        """Undo one pin of each; unknown ones are ignored (the process may have been declared dead)."""
        holds = self._holds.get(process)
        if holds:
            for name in objects:
                hold = holds.get(name)
                if hold is None:
                    continue
                hold.count -= 1
                if not hold.count:
                    del holds[name]
                    self._let_go(hold)
            self._pump()
        return self._take()

    def promote(self, object: bytes) -> list[Action]:
        """A secondary copy is the primary one from now on."""
        entry = self._objects.get(object)
        if entry is not None and entry.secondary:
            entry.secondary = False
            if self._idle_copies.pop(entry, entry) is None:
                self._idle[entry] = None
        return self._take()

    def free(self, objects: list[bytes]) -> list[Action]:
        """No reference is left (REF-FREE)."""
        for name in objects:
            entry = self._objects.pop(name, None)
            if entry is None:
                continue
            entry.freed = True
            self._fail_waiters(entry, "lost", "it was freed")
            if entry.state is State.QUEUED:
                self._fail_creation(entry, "lost", "it was freed before there was room for it")
            elif entry.state is State.WANTED:
                self._move(entry, State.SPILLED)
            self._release_if_unused(entry)
        self._pump()
        return self._take()

    def process_died(self, process: bytes) -> list[Action]:
        """A process is gone, and all that was its own goes with it (LIVENESS)."""
        for entry in self._unsealed.pop(process, {}).values():
            self._discard(entry, "its creator died before it was complete")
        for hold in self._holds.pop(process, {}).values():
            self._let_go(hold)
        places, early = self._ahead.died(process)
        for place in places:
            self._arena.free(place.offset)
        for entry in [entry for entry in self._awaited if any(who == process for who, _ in entry.waiters)]:
            entry.waiters = [waiter for waiter in entry.waiters if waiter[0] != process]
            if not entry.waiters:
                self._awaited.discard(entry)
        self._pin_again(early)
        self._pump()
        return self._take()

    def awaits_recalls(self) -> bool:
        """Whether somebody waits for answers to recalls."""
        return self._ahead.awaited and bool(self._queue)

    # --- events: the shell's work is done --------------------------------------------------------

    def recalls_overdue(self, last: int) -> list[Action]:
        """The recalls up to `last` were given time to be answered: nobody waits for them any longer."""
        self._ahead.overdue(last)
        self._pump()
        return self._take()

    def extended(self, size: int) -> list[Action]:
        """The Extend is done: `size` bytes were backed, or none if the machine refused."""
        if size:
            self._arena.extend(size)
        elif not self._growing_eagerly:
            self._growth_refused = _ASK_AGAIN
        self._growing_eagerly = bool(size)
        self._growing = 0
        self._pump()
        return self._take()

    def spilled(self, failure: str = "") -> list[Action]:
        """The Spill is done; `failure` says why it was not."""
        assert self._batch is not None
        file, entries = self._batch
        self._batch = None
        self._spill_failure = failure
        if failure:
            # Last first, so that they are again the least recently used, in their order.
            for entry in reversed(entries):
                self._move(entry, State.SEALED)
                self._settle(entry, oldest=True)
        else:
            file.live = len(entries)
            for entry in entries:
                self._spilled_one(entry, file)
        self._pump()
        return self._take()

    def restored(self, ticket: int, failure: str = "") -> list[Action]:
        """A Restore is done; `failure` says why it was not."""
        entry = self._restores.pop(ticket)
        if failure:
            self._drop_region(entry)
            self._move(entry, State.SPILLED)
            self._fail_waiters(entry, "disk", f"it is on disk, which cannot be read: {failure}")
            self._release_if_unused(entry)
        else:
            self._move(entry, State.SEALED)
            self._settle(entry)
        self._pump()
        return self._take()

    def file_made(self, file: int, failure: str = "") -> list[Action]:
        """A MakeFile is done; `failure` says why it was not."""
        entry = self._makes.pop(file)
        if failure:
            entry.file = None
            if not entry.freed and not entry.asked and self._ask_for_drops():
                entry.asked = True
                self._move(entry, State.QUEUED)
                self._queue.appendleft(entry)
            else:
                self._fail_creation(entry, "full", self._full(entry.size, failure))
        elif entry.freed:
            self._fail_creation(entry, "lost", "it was given up before there was room for it")
        else:
            if not self._warned:
                self._warned = True
                self._do(Warn(self._warning(entry.size)))
            self._move(entry, State.CREATING)
            self._do(Created(entry.creator, entry.request, 0, file))
        return self._take()

    # --- requests ----------------------------------------------------------------------------------------

    def _refuse(self, process: bytes, request: int, code: str, why: str) -> None:
        """A seal that makes no sense."""
        if request:
            self._do(Failed(process, request, code, why))

    def _pin(self, process: bytes, request: int, object: bytes) -> None:
        entry = self._objects.get(object)
        if entry is None:
            detail = f"object {object.hex()} is not in this node's store: it was freed, or its creator died"
            self._do(Failed(process, request, "lost", detail))
        elif entry.readable():
            self._pinned_at(entry, process, request)
        else:
            entry.waiters.append((process, request))
            self._awaited.add(entry)
            if entry.state is State.SPILLED:
                self._move(entry, State.WANTED)
                self._queue.append(entry)
                self._pump()

    def _pin_again(self, pins: list[EarlyPin]) -> None:
        """Pins that came too early: now it is known whether their objects are here."""
        for pin in pins:
            self._pin(pin.process, pin.request, pin.object)

    # --- room ---------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Grant room to those who wait, in their order, as far as there is any or some can be made."""
        queue = self._queue
        while queue:
            entry = queue[0]
            if self._still_waits(entry):
                offset = self._arena.allocate(entry.size)
                room = self._make_room(entry.size) if offset is None else _Room.MADE
                if room is _Room.AWAITED:
                    return
                if offset is not None:
                    self._granted(entry, offset)
                elif room is _Room.NONE:
                    self._without_room(entry)
                else:
                    continue
            queue.popleft()
            # The next in the queue may find the disk in a better state.
            self._spill_failure = ""
        self._spill_failure = ""

    def _still_waits(self, entry: Entry) -> bool:
        if entry.state is State.WANTED and not entry.waiters:
            self._move(entry, State.SPILLED)
        return entry.state in (State.QUEUED, State.WANTED)

    def _make_room(self, size: int) -> _Room:
        if self._growing:
            return _Room.AWAITED
        if size > self._arena.capacity:
            return _Room.NONE
        if self._grow(size) or self._recall():
            return _Room.AWAITED
        if self._batch is not None:
            return _Room.AWAITED
        limit = self._arena.backed if self._growth_refused else self._arena.capacity
        if limit - self._arena.used_bytes + self._idle_bytes < size:
            # All that could be moved is not enough: moving it would only slow others down.
            return _Room.NONE
        return self._evict(size)

    def _grow(self, size: int) -> bool:
        if self._growth_refused:
            self._growth_refused -= 1
            return False
        self._growing = self._arena.growth(size, self._growing_eagerly)
        if self._growing:
            self._do(Extend(self._arena.backed, self._growing))
        return self._growing > 0

    def _can_spare(self, process: bytes, size: int) -> bool:
        """Whether nobody misses `size` bytes that a process would hold ahead."""
        arena = self._arena
        pressed = self._queue or self._batch is not None or self._growth_refused
        left = arena.capacity - arena.used_bytes - size
        return not pressed and left >= arena.capacity // _SPARE_SHARE and self._ahead.allows(process, size)

    def _recall(self) -> bool:
        """Ask for the places that nobody writes to; whether answers are awaited."""
        questions = self._ahead.ask_all()
        for process, number in questions:
            self._do(Recall(process, number, keep=False))
        if questions:
            self._do(AwaitRecalls(questions[-1][1]))
        return self._ahead.awaited

    def _ask_for_drops(self) -> bool:
        """Ask everybody for what they have dropped and not told yet; False: there is nobody to ask."""
        entries = self._all_entries()
        creators = {entry.creator for entry in entries if not entry.secondary}
        # Of the owners only those of this node (whose ids begin alike): others have connections of their own.
        tags = {creator[:TAG_BYTES] for creator in creators}
        owners = {owner_of(entry.object) for entry in entries if owner_of(entry.object)[:TAG_BYTES] in tags}
        questions = self._ahead.ask_each(sorted((owners | creators | self._holds.keys()) - {self.node}))
        for process, number in questions:
            self._do(Recall(process, number, keep=True))
        if questions:
            self._do(AwaitRecalls(questions[-1][1], refusing=True))
        return bool(questions)

    def _evict(self, size: int) -> _Room:
        """Take the least recently used out of memory, copies first."""
        if self._idle_copies:
            self._drop(next(iter(self._idle_copies)))
            return _Room.MADE
        oldest = iter(self._idle)
        entry = next(oldest, None)
        if self._spill_failure:
            # Only what is on disk already can go.
            while entry is not None and entry.file is None:
                entry = next(oldest, None)
        if entry is None:
            return _Room.NONE
        if entry.file is not None:
            self._busy_again(entry)
            self._leave_memory(entry)
            return _Room.MADE
        self._start_spill(max(size, self._arena.capacity // _SPILL_SHARE))
        return _Room.AWAITED

    def _start_spill(self, wanted: int) -> None:
        """One file with the least recently used objects, until they make `wanted` bytes or fill it."""
        entries: list[Entry] = []
        parts: list[tuple[int, int, int]] = []
        position = 0
        for entry in self._idle:
            if entry.file is not None:
                continue
            full = position + entry.size > self._spill_file_bytes
            if entries and (full or position >= wanted or len(entries) == _SPILL_OBJECTS):
                break
            entry.position = position
            entries.append(entry)
            parts.append((position, entry.offset, entry.size))
            position += rounded(entry.size)
        for entry in entries:
            self._busy_again(entry)
            self._move(entry, State.SPILLING)
        self._last_file += 1
        self._batch = (File(self._last_file, own=False), entries)
        self._do(Spill(self._last_file, position, parts))
