"""Identifiers: fixed-length byte strings with a type.

Layouts (numbers big-endian, so that ids sort by number; a *process* is 12 random bytes, which makes all that
follows from it unique without asking anybody; the first four are the *tag* of its node, the node id's first four)::

    JobID              4   number
    TaskID            24   seq (8) + process of the owner (12) + job (4)
    object id         28   seq (8) + process of the owner (12) + job (4) + index (4)
    ActorID           16   unique (12) + job (4)
    PlacementGroupID  18   unique (14) + job (4)
    NodeID, WorkerID, FunctionID, ActorClassID, UniqueID   28 random bytes

Inside its owner a task is the integer `seq` and an object the integer ``key = seq << 32 | index``.
Hot paths use the bytes and integers, by :func:`object_id` and :func:`split_object_id`; the
classes are for the public surface.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import Any, ClassVar, Final, Self

PROCESS_BYTES: Final = 12
#: A process id begins with its node's tag, so that everybody knows where a process lives.
TAG_BYTES: Final = 4
OBJECT_BYTES: Final = 28

#: Set in the `seq` of a task that creates an actor; its process part is then the actor's unique part.
_ACTOR_CREATION: Final = 1 << 63

_OBJECT: Final = Struct(">Q12sII")
_TASK: Final = Struct(">Q12sI")


def new_process(tag: bytes) -> bytes:
    """The id of a new process on the node with this tag."""
    return tag + os.urandom(PROCESS_BYTES - TAG_BYTES)


def tag_of(binary: bytes) -> bytes:
    """The tag of a node, from its id or from that of a process there."""
    return binary[:TAG_BYTES]


def object_id(seq: int, process: bytes, job: int, index: int) -> bytes:
    """The 28 bytes of an object id."""
    return _OBJECT.pack(seq, process, job, index)


def split_object_id(binary: bytes) -> tuple[int, bytes, int, int]:
    """(seq, process, job, index) of a 28-byte object id."""
    seq, process, job, index = _OBJECT.unpack(binary)
    return seq, process, job, index


class BaseID:
    """An immutable, hashable, ordered identifier of one type; ids of different types are never equal."""

    __slots__ = ("_binary",)
    _binary: bytes

    #: Length in bytes.
    SIZE: ClassVar[int] = 0

    def __init__(self, binary: bytes) -> None:
        if not isinstance(binary, bytes):
            raise TypeError(f"{type(self).__name__} is made from bytes, not from {type(binary).__name__}")
        if len(binary) != self.SIZE:
            raise ValueError(f"{type(self).__name__} has {self.SIZE} bytes, not {len(binary)}: {binary[:64].hex()}")
        object.__setattr__(self, "_binary", binary)

    @classmethod
    def from_binary(cls, id_bytes: bytes) -> Self:
        return cls(id_bytes)

    @classmethod
    def from_hex(cls, hex_id: str) -> Self:
        try:
            binary = bytes.fromhex(hex_id)
        except (TypeError, ValueError):
            raise ValueError(f"{cls.__name__} has {2 * cls.SIZE} hexadecimal digits: {hex_id!r:.80}") from None
        return cls(binary)

    @classmethod
    def nil(cls) -> Self:
        """The id that stands for none: all bits set."""
        return cls(b"\xff" * cls.SIZE)

    @classmethod
    def size(cls) -> int:
        """Length in bytes."""
        return cls.SIZE

    def binary(self) -> bytes:
        return self._binary

    def hex(self) -> str:
        return self._binary.hex()

    def is_nil(self) -> bool:
        return self._binary == b"\xff" * self.SIZE

    def redis_shard_hash(self) -> int:
        """A number spread evenly over 64 bits, the same in every process."""
        from hashlib import blake2b

        return int.from_bytes(blake2b(self._binary, digest_size=8).digest(), "big")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._binary == other._binary

    def __lt__(self, other: Self) -> bool:
        return self._binary < other._binary if type(other) is type(self) else NotImplemented

    def __le__(self, other: Self) -> bool:
        return self._binary <= other._binary if type(other) is type(self) else NotImplemented

    def __gt__(self, other: Self) -> bool:
        return self._binary > other._binary if type(other) is type(self) else NotImplemented

    def __ge__(self, other: Self) -> bool:
        return self._binary >= other._binary if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._binary)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._binary,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._binary.hex()})"


class UniqueID(BaseID):
    """28 random bytes."""

    __slots__ = ()
    SIZE = 28

    @classmethod
    def from_random(cls) -> Self:
        return cls(os.urandom(cls.SIZE))


class NodeID(UniqueID):
    """A machine of the cluster, from its node process's start to its end."""

    __slots__ = ()


class WorkerID(UniqueID):
    """A driver or worker process."""

    __slots__ = ()


class FunctionID(UniqueID):
    """A remote function."""

    __slots__ = ()


class ActorClassID(UniqueID):
    """An actor class."""

    __slots__ = ()


class JobID(BaseID):
    """A driver and all that it started: a number."""

    __slots__ = ()
    SIZE = 4

    @classmethod
    def from_int(cls, value: int) -> Self:
        return cls(value.to_bytes(cls.SIZE, "big"))

    def int(self) -> int:
        return int.from_bytes(self._binary, "big")


class TaskID(BaseID):
    """One task of one owner, whatever the attempt."""

    __slots__ = ()
    SIZE = 24

    @classmethod
    def of(cls, seq: int, process: bytes, job_id: JobID) -> Self:
        """The task `seq` of the owner `process`."""
        return cls(_TASK.pack(seq, process, job_id.int()))

    @classmethod
    def for_driver_task(cls, job_id: JobID) -> Self:
        """Stands for the driver's own program."""
        return cls.of(0, bytes(PROCESS_BYTES), job_id)

    @classmethod
    def for_fake_task(cls, job_id: JobID) -> Self:
        """The id of no task, for tests."""
        return cls.of(0, os.urandom(PROCESS_BYTES), job_id)

    @classmethod
    def for_normal_task(cls, job_id: JobID, parent_task_id: TaskID, parent_task_counter: int) -> Self:
        """The `parent_task_counter`-th task that the parent submits."""
        return cls.of(parent_task_counter, _derived(parent_task_id.binary(), b"task"), job_id)

    @classmethod
    def for_actor_task(cls, job_id: JobID, parent_task_id: TaskID, parent_task_counter: int, actor_id: ActorID) -> Self:
        """The `parent_task_counter`-th call that the parent makes, to this actor."""
        return cls.of(parent_task_counter, _derived(parent_task_id.binary(), actor_id.binary()), job_id)

    @classmethod
    def for_actor_creation_task(cls, actor_id: ActorID) -> Self:
        """The task that makes the actor."""
        return cls(_ACTOR_CREATION.to_bytes(8, "big") + actor_id.binary())

    def seq(self) -> int:
        """The task's number inside its owner."""
        return int.from_bytes(self._binary[:8], "big")

    def process(self) -> bytes:
        """The owner."""
        return self._binary[8:20]

    def job_id(self) -> JobID:
        return JobID(self._binary[20:])

    def actor_id(self) -> ActorID:
        """The actor that this task creates; otherwise the nil actor of its job."""
        if self.seq() == _ACTOR_CREATION:
            return ActorID(self._binary[8:])
        return ActorID(b"\xff" * 12 + self._binary[20:])


class ActorID(BaseID):
    """An actor, through all its restarts."""

    __slots__ = ()
    SIZE = 16

    @classmethod
    def of(cls, job_id: JobID, parent_task_id: TaskID, parent_task_counter: int) -> Self:
        """The `parent_task_counter`-th actor that the parent creates."""
        counter = parent_task_counter.to_bytes(8, "big")
        return cls(_derived(parent_task_id.binary(), b"actor" + counter) + job_id.binary())

    @classmethod
    def from_random(cls) -> Self:
        return cls(os.urandom(cls.SIZE))

    @property
    def job_id(self) -> JobID:
        return JobID(self._binary[12:])


class PlacementGroupID(BaseID):
    """A placement group."""

    __slots__ = ()
    SIZE = 18

    @classmethod
    def of(cls, job_id: JobID) -> Self:
        """A new one of this job."""
        return cls(os.urandom(14) + job_id.binary())

    @classmethod
    def from_random(cls) -> Self:
        return cls(os.urandom(cls.SIZE))

    def job_id(self) -> JobID:
        return JobID(self._binary[14:])


def _derived(parent: bytes, purpose: bytes) -> bytes:
    """Twelve bytes that follow from the parent's id and no other's."""
    from hashlib import blake2b

    return blake2b(parent + purpose, digest_size=PROCESS_BYTES).digest()
