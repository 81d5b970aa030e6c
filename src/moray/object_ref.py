"""ObjectRef, and the entry behind it.

An :class:`Entry` is what one process knows of one object. A process has at most one living
:class:`ObjectRef` per entry, so references compare and hash by identity, at C speed, and still two
copies of a reference are equal.

**How the end of a reference is noticed** (DEL). ``Entry.alive`` is a weak reference whose callback is
a C function, ``deque.append``: when the last Python reference goes, the weak reference lands in a
deque that the loop drains. No Python code of ours runs in a finalizer, so it cannot be interrupted,
cannot take a lock, and cannot resurrect the reference for a thread that looks it up just then.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from moray.ids import JobID, TaskID

T_co = TypeVar("T_co", covariant=True)


class Origin:
    """A process that owns objects: this one or another (a peer)."""

    __slots__ = ("entries", "job", "process", "runtime", "tail")

    def __init__(self, process: bytes, job: bytes, runtime: RuntimeHooks) -> None:
        #: 12 random bytes.
        self.process = process
        #: 4 bytes.
        self.job = job
        #: What all ids of this owner have in the middle.
        self.tail = process + job
        #: key → entry. Of our own objects only those whose reference left the process.
        self.entries: dict[int, Entry] = {}
        self.runtime = runtime


class RuntimeHooks(Protocol):
    """What a reference asks of the runtime that it belongs to."""

    def escape(self, entry: Entry, ref: ObjectRef[Any]) -> None:
        """`ref` is being pickled."""

    def future(self, ref: ObjectRef[Any]) -> Future[Any]: ...

    def await_ref(self, ref: ObjectRef[Any]) -> Generator[Any, None, Any]: ...

    def task_id_of(self, entry: Entry) -> bytes: ...


class Alive(weakref.ref["ObjectRef[Any]"]):
    """The weak reference to an entry's ObjectRef."""

    __slots__ = ("counted", "entry")
    entry: Entry
    #: The reference bookkeeping counts it. Loop only.
    counted: bool


class Entry(msgspec.Struct, gc=False, weakref=False, eq=False):
    """One object as this process sees it.

    The loop owns all fields, with two exceptions: the thread that creates the entry fills it before it
    is shared, and `waiters` changes under the runtime's waiter lock. `ready` is set last: whoever
    reads it as True may read the value's fields without a lock.
    """

    origin: Origin
    key: int
    #: The value can be read (or is an error).
    ready: bool = False
    #: The value, when it is inline.
    blob: bytes | None = None
    #: The blob is a pickled error.
    error: bool = False
    #: Somebody was given the error, or will be: it need not be shown when the last reference goes.
    seen: bool = False
    #: Bytes in the node's store; 0 when inline.
    size: int = 0
    #: Called in the loop, once, when the entry gets ready.
    waiters: list[Callable[[], None]] | None = None
    #: The one ObjectRef of this process, if it lives.
    alive: Alive | None = None
    #: Reference bookkeeping; None as long as nothing but one ObjectRef knows the object.
    book: Any = None
    #: The task that makes it, while it is pending or while lineage needs it.
    task: Any = None
    #: Ids of references inside the value (or those references), if there are any.
    contained: Any = None

    @property
    def id(self) -> bytes:
        """The 28-byte object id."""
        key = self.key
        return (key >> 32).to_bytes(8, "big") + self.origin.tail + (key & 0xFFFFFFFF).to_bytes(4, "big")


class ObjectRef(Generic[T_co]):
    """A reference to a value that is, or will be, somewhere in the cluster.

    Pass it to tasks (they get the value), put it into other values (they get the reference), give it to
    :func:`moray.get` or :func:`moray.wait`, or ``await`` it. The object lives as long as some reference.

    Example:
        >>> import moray
        >>> ref = moray.put([1, 2, 3])
        >>> moray.get(ref)
        [1, 2, 3]
    """

    __slots__ = ("__weakref__", "_entry")
    _entry: Entry

    def __new__(cls, binary: object = None, *_args: object, **_kwargs: object) -> ObjectRef[Any]:
        """`binary`: see :meth:`from_binary`. Those of new objects are made without this: by :data:`new_ref`."""
        if isinstance(binary, bytes):
            return rebuild(binary)
        raise TypeError("an ObjectRef comes from moray.put() or .remote(), it is not made by hand")

    def binary(self) -> bytes:
        """The 28-byte id."""
        return self._entry.id

    def hex(self) -> str:
        """The id as 56 hexadecimal digits."""
        return self._entry.id.hex()

    def size(self) -> int:
        """Length of the id in bytes."""
        return 28

    def is_nil(self) -> bool:
        """False: a reference always refers to an object."""
        return False

    def task_id(self) -> TaskID:
        """The id of the task that makes the object."""
        from moray.ids import TaskID

        return TaskID(self._entry.origin.runtime.task_id_of(self._entry))

    def job_id(self) -> JobID:
        """The id of the job that the object belongs to."""
        from moray.ids import JobID

        return JobID(self._entry.origin.job)

    def owner_address(self) -> bytes:
        """The owning process, as 12 bytes."""
        return self._entry.origin.process

    def call_site(self) -> str:
        """Where the object was made; empty unless recorded."""
        return ""

    def tensor_transport(self) -> str | None:
        """The transport of a device tensor; None for ordinary objects."""
        return None

    def future(self) -> Future[T_co]:
        """A :class:`concurrent.futures.Future` that gets the value, or the task's error."""
        return self._entry.origin.runtime.future(self)

    def as_future(self, _internal: bool = False) -> asyncio.Future[T_co]:
        """An :class:`asyncio.Future` of the running loop that gets the value, or the task's error."""
        import asyncio

        return asyncio.wrap_future(self.future())

    def _on_completed(self, py_callback: Callable[[Any], None]) -> None:
        """Have the thread of callbacks call `py_callback` with the value, or with the error as an object."""

        def completed(future: Future[Any]) -> None:
            error = future.exception()
            py_callback(future.result() if error is None else error)

        self.future().add_done_callback(completed)

    def __await__(self) -> Generator[Any, None, T_co]:
        return self._entry.origin.runtime.await_ref(self)

    def __iter__(self) -> NoReturn:
        raise TypeError("an ObjectRef is not iterable: moray.get(ref) fetches the value, then iterate over that")

    def __copy__(self) -> ObjectRef[T_co]:
        return self

    def __deepcopy__(self, _memo: object) -> ObjectRef[T_co]:
        return self

    def __reduce__(self) -> tuple[Callable[[bytes], ObjectRef[Any]], tuple[bytes]]:
        entry = self._entry
        entry.origin.runtime.escape(entry, self)
        return rebuild, (entry.id,)

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    @staticmethod
    def from_binary(id_bytes: bytes) -> ObjectRef[Any]:
        """The reference with these 28 bytes; its object must be known to this process's session."""
        return rebuild(id_bytes)

    @staticmethod
    def from_hex(hex_id: str) -> ObjectRef[Any]:
        """The reference with this hexadecimal id."""
        return rebuild(bytes.fromhex(hex_id))


#: Set by the runtime when it starts: makes the reference of an id that arrived in a pickle.
importer: Callable[[bytes], ObjectRef[Any]] | None = None


def rebuild(binary: bytes) -> ObjectRef[Any]:
    """The reference with this id: what pickled references name."""
    if importer is None:
        raise RuntimeError("an ObjectRef was unpickled in a process that is not connected: call moray.init() first")
    return importer(binary)


new_ref: Callable[[type[ObjectRef[Any]]], ObjectRef[Any]] = object.__new__
