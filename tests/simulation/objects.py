"""What a process has in its hands: references, the entries behind them, values.

A :class:`Ref` is an ObjectRef. Python's reference count is the explicit `holders`, so that the moment at which a
reference dies is an event like any other. At most one Ref of an entry lives in a process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from moray.core.references import Foreign, Owned, TaskCover

if TYPE_CHECKING:
    from tests.simulation.process import Process


class Value(msgspec.Struct, array_like=True):
    """A value as it is pickled."""

    #: Tells values apart: the number of whoever made it.
    mark: int
    #: 28-byte ids of the references in it.
    contained: list[bytes] = []
    #: Why there is none; "" if there is.
    error: str = ""


def dump(value: Value) -> bytes:
    return msgspec.msgpack.encode(value)


def load(blob: bytes) -> Value:
    return msgspec.msgpack.decode(blob, type=Value)


class Entry:
    """What one process knows of one object."""

    def __init__(self, object_id: bytes) -> None:
        self.id = object_id
        self.owner = object_id[8:20]
        self.key = int.from_bytes(object_id[:8], "big") << 32 | int.from_bytes(object_id[24:28], "big")
        self.ready = False
        self.error = False
        self.blob: bytes | None = None
        #: Bytes in the store; 0 if it is inline.
        self.size = 0
        #: Of an own object: the references in its value, held from here. Of any other: their ids.
        self.contained: list[Ref] = []
        self.contained_ids: list[bytes] = []
        self.waiters: list[Callable[[], None]] = []
        #: The one living reference.
        self.alive: Ref | None = None
        self.book: OwnBook | ForeignBook | None = None
        #: Our word that the last reference went was given.
        self.released = False
        #: What makes it (a Task), or what ends with it (a Life).
        self.task: Any = None


class Ref:
    """An ObjectRef; lands in the process's events when it dies."""

    __slots__ = ("counted", "entry", "holders", "process")

    def __init__(self, process: Process, entry: Entry) -> None:
        self.process = process
        self.entry = entry
        self.holders = 0
        #: The core counts it.
        self.counted = False

    def hold(self) -> Ref:
        self.holders += 1
        return self

    def drop(self) -> None:
        self.holders -= 1
        assert self.holders >= 0
        if not self.holders:
            self.process.events.append(self)
            self.process.wake()


class OwnBook(Owned, gc=False, eq=False):
    """The core's entry of an own object."""

    entry: Any = None


class ForeignBook(Foreign, gc=False, eq=False):
    """The core's entry of a borrowed object."""

    entry: Any = None


class Token:
    """The cover of what is unpickled from a task's arguments (REF-COVER)."""

    def __init__(self, submitter: bytes, seq: int) -> None:
        self.submitter = submitter
        self.seq = seq
        self.core: TaskCover | None = None
        self.touched = False
        #: Some of what arrived belongs to a third process.
        self.foreign = False


class Life(msgspec.Struct):
    """``Entry.task`` of an actor's hidden object."""

    actor: bytes


class Arrived(msgspec.Struct, eq=False):
    """A Ref was made for an id that came in some value."""

    ref: Ref
    cover: Any


class Escaped(msgspec.Struct, eq=False):
    """The id of an own object left, or is about to."""

    entry: Entry


class Contains(msgspec.Struct, eq=False):
    """A value that was put contains references."""

    entry: Entry
    refs: list[Ref]


class Finished(msgspec.Struct, eq=False):
    """A task is done whose result or arguments had references in them. `work`: the task or call."""

    work: Any
    result: Any
    token: Token
    contained: list[Ref]


class Secured(msgspec.Struct, eq=False):
    """What came in a call's arguments shall be registered before the method starts (REF-SEND)."""

    token: Token
    done: Callable[[], None]
    passed: bool = False


class ItemMade(msgspec.Struct, eq=False):
    """An item of a stream has references in it."""

    submitter: bytes
    item: Any
    contained: list[Ref]
    done: Callable[[], None]
    passed: bool = False


class Dropped(msgspec.Struct, eq=False):
    """Nobody reads a generator's items any more."""

    task: Any
