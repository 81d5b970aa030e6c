"""What the object table keeps and says: states, actions, records.

The diagram of the states is in :mod:`moray.core.object_table`; :data:`TRANSITIONS` is the same, for the machine.
An action names files on disk by number; the shell alone knows their paths.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

import msgspec


class State(enum.IntEnum):
    """Where one attempt at an object stands. (IntEnum, because an Enum's hash is a Python function.)"""

    #: Its creation waits for room.
    QUEUED = 0
    #: The shell makes a file of its own for it.
    MAKING = 1
    #: The creator writes it.
    CREATING = 2
    #: In the arena (perhaps with a copy on disk, from an earlier spill).
    SEALED = 3
    #: In the arena, and being written to disk.
    SPILLING = 4
    #: On disk only; perhaps pinned there.
    SPILLED = 5
    #: On disk, and somebody waits until there is room for it in the arena.
    WANTED = 6
    #: It has a region again, and is being read into it.
    RESTORING = 7
    #: Nothing of it is left.
    GONE = 8


_S = State
TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    _S.QUEUED: frozenset({_S.CREATING, _S.MAKING, _S.GONE}),
    _S.MAKING: frozenset({_S.CREATING, _S.QUEUED, _S.GONE}),
    _S.CREATING: frozenset({_S.SEALED, _S.SPILLED, _S.GONE}),
    _S.SEALED: frozenset({_S.SPILLING, _S.SPILLED, _S.GONE}),
    _S.SPILLING: frozenset({_S.SEALED, _S.SPILLED}),
    _S.SPILLED: frozenset({_S.WANTED, _S.GONE}),
    _S.WANTED: frozenset({_S.RESTORING, _S.SPILLED}),
    _S.RESTORING: frozenset({_S.SEALED, _S.SPILLED}),
    _S.GONE: frozenset(),
}
#: Somebody other than a reader uses the bytes: they must not go, even if the object is freed.
BUSY: Final = frozenset({_S.MAKING, _S.CREATING, _S.SPILLING, _S.RESTORING})
#: An entry with a file has its bytes there and nowhere else.
ON_DISK: Final = frozenset({_S.CREATING, _S.SPILLED, _S.WANTED, _S.RESTORING})


# --- actions: what the shell does, in the order given ----------------------------------------------


class Created(msgspec.Struct, gc=False, frozen=True):
    """Answer a creation: write at `offset` of the arena, or of disk file `file` if that is not 0."""

    process: bytes
    request: int
    offset: int
    file: int


class Pinned(msgspec.Struct, gc=False, frozen=True):
    """Answer a pin: read `size` bytes at `offset` of the arena, or of disk file `file` if that is not 0."""

    process: bytes
    request: int
    offset: int
    size: int
    file: int
    #: With a file.
    object: bytes = b""


class Done(msgspec.Struct, gc=False, frozen=True):
    """Acknowledge a seal."""

    process: bytes
    request: int


class Failed(msgspec.Struct, gc=False, frozen=True):
    """Answer a request with an error: "full", "disk", "lost" or "exists", and a text for the user."""

    process: bytes
    request: int
    code: str
    detail: str


class Dropped(msgspec.Struct, gc=False, frozen=True):
    """A secondary copy had to make room."""

    object: bytes


class Extend(msgspec.Struct, gc=False, frozen=True):
    """Back `size` bytes of the arena from `offset` on; then :meth:`ObjectTable.extended`."""

    offset: int
    size: int


class Spill(msgspec.Struct, frozen=True):
    """Write each (position in the file, offset in the arena, size) to a new file; then :meth:`ObjectTable.spilled`.

    `file_size` is its size in the end. On failure no file is left.
    """

    file: int
    file_size: int
    parts: list[tuple[int, int, int]]


class Restore(msgspec.Struct, gc=False, frozen=True):
    """Read `size` bytes at `position` of `file` into the arena; then :meth:`ObjectTable.restored`."""

    ticket: int
    file: int
    position: int
    offset: int
    size: int


class MakeFile(msgspec.Struct, gc=False, frozen=True):
    """Make disk file `file` of `size` bytes, backed; then :meth:`ObjectTable.file_made`."""

    file: int
    size: int


class DeleteFile(msgspec.Struct, gc=False, frozen=True):
    """Nothing in this file is needed any more."""

    file: int


class Warn(msgspec.Struct, gc=False, frozen=True):
    """Tell the user, once."""

    text: str


class Granted(msgspec.Struct, frozen=True):
    """Tell a process the places of up to `size` bytes that it may write to ahead: (number, offset)."""

    process: bytes
    size: int
    places: list[tuple[int, int]]


class Recall(msgspec.Struct, gc=False, frozen=True):
    """Ask a process what it has sealed and (unless `keep`) for its unused places; its answer is a ``give_back``."""

    process: bytes
    number: int
    keep: bool


class AwaitRecalls(msgspec.Struct, gc=False, frozen=True):
    """Give processes a little time to answer, while the table ``awaits_recalls``; then ``recalls_overdue(last)``.

    `refusing`: more time, as a creation is refused if nobody gives anything up."""

    last: int
    refusing: bool = False


Action: TypeAlias = (
    Created | Pinned | Done | Failed | Dropped | Extend | Spill | Restore | MakeFile | DeleteFile | Warn
    | Granted | Recall | AwaitRecalls
)  # fmt: skip


# --- records ----------------------------------------------------------------------------------------


class File:
    """A file on disk with the bytes of one or more objects."""

    __slots__ = ("live", "number", "own")

    def __init__(self, number: int, own: bool) -> None:
        #: Never 0, never used again.
        self.number = number
        #: Made for one new object that found no room; it is read there and never moved to the arena.
        self.own = own
        #: Objects that are in it and not gone.
        self.live = 0


class Entry:
    """One attempt at an object."""

    __slots__ = ("asked", "creator", "file", "freed", "object", "offset", "pins", "position", "request", "secondary",
                 "size", "state", "waiters")  # fmt: skip

    def __init__(self, object: bytes, size: int, creator: bytes, request: int) -> None:
        self.object = object
        self.size = size
        #: Process that creates it, and its request.
        self.creator = creator
        self.request = request
        self.state = State.QUEUED
        #: Place in the arena; -1 if it has none.
        self.offset = -1
        #: Its file on disk, if it has one, and the place in it.
        self.file: File | None = None
        self.position = 0
        #: Number of processes that hold it in place.
        self.pins = 0
        #: It goes when nothing uses it any more.
        self.freed = False
        #: A copy of what another node has: dropped, not spilled, when room is needed.
        self.secondary = False
        #: Everybody was asked what they have dropped, for the sake of this.
        self.asked = False
        #: (process, request) of pins that wait for it to be sealed or restored.
        self.waiters: list[tuple[bytes, int]] = []

    def readable(self) -> bool:
        """Whether its bytes are complete and in the place where they are read."""
        if self.offset >= 0:
            return self.state is State.SEALED or self.state is State.SPILLING
        return self.state is State.SPILLED and self.file is not None and self.file.own


class Hold:
    """The pins of one process on one object id."""

    __slots__ = ("count", "entries")

    def __init__(self, entry: Entry) -> None:
        #: Pins not yet undone.
        self.count = 1
        #: More than one only if the object was freed and made again in between.
        self.entries = [entry]
