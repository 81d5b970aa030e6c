"""Channels: messages from one process to a few others through shared memory, without a system call while both run.

A channel is one anonymous memory file, made by the process that plans it. Others open it as
``/proc/<pid>/fd/<n>``: it has no name, so nothing can be left behind. It belongs to one **writer** and a fixed
number of **readers**, in any processes of this machine, and holds

========  ==============================================================================================
words     64-bit numbers, each written by one process only: what was published, what each reader has
          taken, who waits, and a record per slot of the ring
slots     the ring: messages of up to :data:`SLOT_BYTES`
extents   pieces behind the slots, added when needed, for larger messages
========  ==============================================================================================

**Publishing.** The writer fills a slot, then raises the published number: until that single store nobody looks at the
slot, and whoever is interrupted, or dies, before it has written nothing. The number is kept nowhere else, so
that an interrupted writer begins the same message again (INTERRUPT). A reader looks, keeps what it saw, and then
advances: interrupted between the two it sees the same message again.

**Waiting** is by futex on the word that is to change. A sleeper announces itself, and the kernel compares the word once
more before it sleeps; the other side changes the word first and looks for sleepers second, with a full fence between.

**Extents.** A reader gets a small message as a copy, a large one in place. The memory is its own until the last array
over it is gone (SNAPSHOT): that is noted by one append (DEL), and told to the writer, by the extent's *released* word,
the next time the reader looks. The writer takes another extent meanwhile. A reader that keeps many is given copies.
Space is backed by ``posix_fallocate`` before it is written to, and never more of it than is free: a full machine is an
error, and no SIGBUS.

**The end.** Anybody may close a channel, which wakes everybody. What was published before can still be read.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from moray import exceptions
from moray.platform.machine import memory_total, memory_used

if TYPE_CHECKING:
    from moray.serialization import Serialized

#: Messages up to this size lie in the ring itself and are copied out of it: a copy this small costs less than the
#: bookkeeping of an extent.
SLOT_BYTES: Final = 8192
#: Large messages that a reader may keep in place at a time; more are copied.
KEPT_IN_PLACE: Final = 32
#: A sleeper looks around at least this often: for the death of the process that it waits for, and for signals that
#: came just before it slept.
HEARTBEAT_S: Final = 1.0

_MAGIC: Final = 0x6D6F7261792D6368
_MAGIC_AT, _CLOSED, _PUBLISHED, _WRITER_WAITS = range(4)
#: Words before those of the readers; each process's words have a cache line of their own.
_HEAD_WORDS: Final = 8
_READER_WORDS: Final = 8
_TAKEN, _WAITS = range(2)
_SLOT_WORDS: Final = 8
_SIZE, _KIND, _EXTENT, _OFFSET, _CAPACITY = range(5)
_PAGE: Final = mmap.PAGESIZE

#: One part in so many of the free memory is left to others: it is shared by all that runs here, and they grow too.
_SPARED: Final = 10

_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_EVERYBODY: Final = 0x7FFFFFFF
#: The number of the system call, by machine.
_FUTEX: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(platform.machine(), 0)
#: On x86 only a load may overtake a store; elsewhere everything may overtake everything.
_ORDERED: Final = platform.machine() == "x86_64"


class ChannelClosed(Exception):  # noqa: N818 - not an error: how a loop learns that it should end.
    """The channel was closed, and what was published before has been taken."""


# --- the system call -----------------------------------------------------------------------------


def check_supported() -> None:
    """Raise if this machine cannot have channels."""
    if not _FUTEX or sys.byteorder != "little" or not sys.platform.startswith("linux"):
        raise exceptions.MoraySystemError(
            f"channels need Linux on x86_64, aarch64 or riscv64, and this is {sys.platform} on {platform.machine()}"
        )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _system_call(library: ctypes.CDLL) -> Any:
    function = library.syscall
    function.restype = ctypes.c_long
    pointer, number = ctypes.c_void_p, ctypes.c_uint32
    function.argtypes = (ctypes.c_long, pointer, ctypes.c_int, number, pointer, pointer, number)
    return function


#: Waiting lets other Python threads run; waking is too short for that.
_wait_call = _system_call(ctypes.CDLL(None, use_errno=True))
_wake_call = _system_call(ctypes.PyDLL(None))
_nobody = ctypes.c_uint64()
_heartbeat = _Timespec(int(HEARTBEAT_S), 0)
_QUIET: Final = (0, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT)


def _sleep_while(address: int, seen: int, timeout_s: float) -> None:
    """Sleep until woken, while the low half of the word at `address` is that of `seen`; or for no reason."""
    span = _heartbeat if timeout_s == HEARTBEAT_S else _Timespec(int(timeout_s), int(timeout_s % 1 * 1e9))
    if _wait_call(_FUTEX, address, _FUTEX_WAIT, seen & 0xFFFFFFFF, ctypes.addressof(span), None, 0) != 0:
        error = ctypes.get_errno()
        if error not in _QUIET:
            raise OSError(error, f"futex: {os.strerror(error)}")


def _wake(address: int) -> None:
    _wake_call(_FUTEX, address, _FUTEX_WAKE, _EVERYBODY, None, None, 0)


def _fence() -> None:
    """No load or store passes this: a locked instruction on x86, elsewhere a system call that has a fence in it."""
    if _ORDERED:
        allocate_lock().acquire(False)  # One of its own: a finalizer may come here while this thread is here.
    else:
        _wake_call(_FUTEX, ctypes.addressof(_nobody), _FUTEX_WAKE, 0, None, None, 0)


# --- the file --------------------------------------------------------------------------------------


class ChannelSpec(NamedTuple):
    """All that another process of this machine needs to open a channel."""

    pid: int
    fd: int
    #: Tells this channel from another that may have got the same numbers.
    token: int
    slots: int
    readers: int


class _Layout:
    """Where things lie, by the numbers of slots and readers."""

    def __init__(self, slots: int, readers: int) -> None:
        self.readers_at = _HEAD_WORDS
        self.slots_at = self.readers_at + readers * _READER_WORDS
        self.released_at = self.slots_at + slots * _SLOT_WORDS
        #: Every slot may hold one, and every reader keep some, and one that it has copied and not let go yet.
        self.extents = slots + readers * (KEPT_IN_PLACE + 1) + 1
        words = self.released_at + self.extents * readers
        self.ring_at = -(-words * 8 // _PAGE) * _PAGE
        self.size = self.ring_at + slots * SLOT_BYTES


class _File:
    """A descriptor that closes with its last user."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        _close(self.fd)


class Channel:
    """One process's view of a channel."""

    def __init__(self, spec: ChannelSpec, file: _File) -> None:
        self.spec = spec
        self._file = file
        self._layout = layout = _Layout(spec.slots, spec.readers)
        mapping = mmap.mmap(file.fd, layout.size)
        self._memory = memoryview(mapping)
        self._words = self._memory[: layout.ring_at].cast("Q")
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self._pid = os.getpid()

    @classmethod
    def create(cls, slots: int, readers: int) -> Channel:
        """A new channel; the processes that open it must do so while this object lives."""
        check_supported()
        size = _Layout(slots, readers).size
        file = _File(os.memfd_create("moray-channel", os.MFD_CLOEXEC))
        _reserve(file.fd, 0, size)
        token = int.from_bytes(os.urandom(7), "little")
        channel = cls(ChannelSpec(os.getpid(), file.fd, token, slots, readers), file)
        channel._words[_MAGIC_AT] = _MAGIC ^ token
        return channel

    @classmethod
    def open(cls, spec: ChannelSpec) -> Channel:
        """The channel that another process has created. Raises ChannelError if that is gone."""
        try:
            file = _File(os.open(f"/proc/{spec.pid}/fd/{spec.fd}", os.O_RDWR | os.O_CLOEXEC))
            if os.fstat(file.fd).st_size < _Layout(spec.slots, spec.readers).size:
                raise ProcessLookupError(errno.ESRCH, "the descriptor is another file")
            channel = cls(spec, file)
            if channel._words[_MAGIC_AT] != _MAGIC ^ spec.token:
                raise ProcessLookupError(errno.ESRCH, "the descriptor is another channel's")
        except (OSError, ValueError) as error:
            raise exceptions.ChannelError(
                f"the channel of process {spec.pid} cannot be opened ({error}): it has ended, or it is on another "
                "machine or in another container; channels join processes of one machine"
            ) from error
        return channel

    @property
    def closed(self) -> bool:
        """Whether somebody has closed it."""
        return bool(self._words[_CLOSED])

    @property
    def published(self) -> int:
        """How many messages there have been."""
        return self._words[_PUBLISHED]

    def close(self) -> None:
        """Close it for everybody. Any thread, finalizers included; in a forked child it does nothing (FORK)."""
        if os.getpid() != self._pid:
            return
        self._words[_CLOSED] = 1
        _fence()
        _wake(self._address + _PUBLISHED * 8)
        for reader in range(self.spec.readers):
            _wake(self._address + (self._layout.readers_at + reader * _READER_WORDS + _TAKEN) * 8)

    def _map(self, offset: int, capacity: int) -> mmap.mmap:
        # All pages at once: a fault for each would cost as much as the copy.
        return mmap.mmap(self._file.fd, capacity, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=offset)


def _reserve(fd: int, offset: int, size: int) -> None:
    """Back a part of the file by memory, or raise ChannelError.

    A memory file has no size limit of its own: asked for more than there is, the kernel ends processes, of anybody, to
    find it. So what is not there is not asked for.
    """
    free = memory_total() - memory_used()
    if size > free - free // _SPARED:
        raise _no_memory(size, f"{free / 1e6:.0f} MB of this machine's memory are free")
    try:
        os.posix_fallocate(fd, offset, size)
    except OSError as error:
        raise _no_memory(size, os.strerror(error.errno or 0)) from error


def _no_memory(size: int, why: str) -> exceptions.ChannelError:
    return exceptions.ChannelError(
        f"no memory for {size / 1e6:.1f} MB of a channel: {why}; make messages smaller, let go of arrays that came "
        "from channels, or have fewer executions in flight"
    )


def _slice_s(deadline: float | None) -> float:
    """How long to sleep at once; not above zero: the deadline has passed."""
    return HEARTBEAT_S if deadline is None else min(HEARTBEAT_S, deadline - monotonic())


def _no_check() -> None:
    """Nobody's death matters."""


# --- writing ------------------------------------------------------------------------------------------


class _Extent:
    """Of the writer: memory for large messages."""

    __slots__ = ("last", "mapping", "offset", "view")

    def __init__(self) -> None:
        self.offset = 0
        self.mapping: mmap.mmap | None = None
        self.view = memoryview(b"")
        #: The message that lies in it, or did.
        self.last = 0


class Writer:
    """The one process that writes. One thread at a time.

    Args:
        channel: the channel.
        extent_bytes: least size of an extent.
        check: called at least each second while it waits; raises if there is nobody left to wait for.
    """

    def __init__(self, channel: Channel, extent_bytes: int = 0, check: Callable[[], None] = _no_check) -> None:
        self.channel = channel
        self._check = check
        self._words = channel._words
        self._extent_bytes = extent_bytes
        self._extents: list[_Extent] = []
        spec, layout = channel.spec, channel._layout
        self._slots = spec.slots
        self._ring = channel._memory[layout.ring_at : layout.size]
        self._taken = [layout.readers_at + reader * _READER_WORDS + _TAKEN for reader in range(spec.readers)]
        self._waits = [layout.readers_at + reader * _READER_WORDS + _WAITS for reader in range(spec.readers)]
        #: Where the file ends.
        self._end = layout.size
        #: What was last taken for a message, which may never have been published.
        self._newest: _Extent | None = None

    def write(self, serialized: Serialized, kind: int = 0, deadline: float | None = None) -> int:
        """Publish a message, when there is room, and return its number, from 1.

        Raises:
            ChannelClosed: somebody closed the channel.
            ChannelTimeoutError: the slowest reader made no room by `deadline`.
            ChannelError: there is no memory for so large a message.
        """
        words = self._words
        number = words[_PUBLISHED] + 1
        if self._newest is not None and self._newest.last == number:
            self._newest.last = 0  # The writing of this number was interrupted.
        for taken in self._taken:
            if words[taken] + self._slots < number:
                self._wait_for_room(taken, number, deadline)
        if words[_CLOSED]:
            raise ChannelClosed
        slot = number % self._slots
        record = self.channel._layout.slots_at + slot * _SLOT_WORDS
        size = serialized.size
        if size <= SLOT_BYTES:
            start = slot * SLOT_BYTES
            if serialized.blob is not None:
                self._ring[start : start + size] = serialized.blob
            else:
                serialized.write_into(self._ring[start : start + size])
            words[record + _EXTENT] = 0
        else:
            index, extent = self._take_extent(number, size)
            serialized.write_into(extent.view)
            words[record + _EXTENT] = index + 1
            words[record + _OFFSET] = extent.offset
            words[record + _CAPACITY] = len(extent.view)
        words[record + _SIZE] = size
        words[record + _KIND] = kind
        if not _ORDERED:
            _fence()
        words[_PUBLISHED] = number
        _fence()
        for waits in self._waits:
            if words[waits]:
                _wake(self.channel._address + _PUBLISHED * 8)
                break
        return number

    def _wait_for_room(self, taken: int, number: int, deadline: float | None) -> None:
        words = self._words
        try:
            while (seen := words[taken]) + self._slots < number:
                words[_WRITER_WAITS] = 1
                _fence()
                if words[_CLOSED]:
                    raise ChannelClosed
                timeout_s = _slice_s(deadline)
                if timeout_s <= 0:
                    raise exceptions.ChannelTimeoutError(
                        f"a channel of {self._slots} slots stayed full: its slowest reader has taken message {seen} of "
                        f"{number - 1}"
                    )
                _sleep_while(self.channel._address + taken * 8, seen, timeout_s)
                self._check()
        finally:
            words[_WRITER_WAITS] = 0
        if not _ORDERED:
            _fence()

    def _take_extent(self, number: int, size: int) -> tuple[int, _Extent]:
        """The smallest free extent with room; otherwise a new one, which replaces the largest free one."""
        free = [(len(extent.view), index) for index, extent in enumerate(self._extents) if self._is_free(index)]
        fitting = [each for each in free if each[0] >= size]
        if fitting:
            index = min(fitting)[1]
        else:
            index = max(free)[1] if free else len(self._extents)
            self._make_extent(index, max(size + size // 8, self._extent_bytes))
        extent = self._newest = self._extents[index]
        extent.last = number
        return index, extent

    def _is_free(self, index: int) -> bool:
        """No reader needs what lies there."""
        last = self._extents[index].last
        readers = self.channel.spec.readers
        first = self.channel._layout.released_at + index * readers
        return all(released >= last for released in self._words[first : first + readers])

    def _make_extent(self, index: int, size: int) -> None:
        if index == self.channel._layout.extents:
            raise exceptions.MoraySystemError(f"readers of a channel hold more than its {index} extents")
        capacity = -(-size // _PAGE) * _PAGE
        offset = self._end
        _reserve(self.channel._file.fd, offset, capacity)
        self._end = offset + capacity
        if index == len(self._extents):
            self._extents.append(_Extent())
        extent = self._extents[index]
        old, extent.view = extent.mapping, memoryview(b"")  # Of no use to anybody until all of it is set.
        extent.mapping = self.channel._map(offset, capacity)
        extent.offset = offset
        extent.view = memoryview(extent.mapping)
        if old is not None:
            old.madvise(mmap.MADV_REMOVE)  # Its pages go back to the machine; the hole in the file costs nothing.


# --- reading ----------------------------------------------------------------------------------------------


class _Kept(weakref.ref[Any]):
    """A large message that is read in place. An interrupt may end it before it knows where: nobody's then."""

    extent = -1
    number = 0


class Reader:
    """One of the processes that read. :meth:`peek` and :meth:`advance` by one thread at a time; any may wait.

    Args:
        channel: the channel.
        index: which reader it is.
        check: called at least each second while it waits; raises if there is nobody left to wait for.
    """

    def __init__(self, channel: Channel, index: int, check: Callable[[], None] = _no_check) -> None:
        self.channel = channel
        self._check = check
        self._index = index
        self._words = channel._words
        layout = channel._layout
        self._taken = layout.readers_at + index * _READER_WORDS + _TAKEN
        self._waits = layout.readers_at + index * _READER_WORDS + _WAITS
        self._slots_at = layout.slots_at
        self._ring_at = layout.ring_at
        #: The last message that was taken: the word lags behind it if an interrupt came between the two.
        self.taken = self._words[self._taken]
        self._waiting = 0
        self._lock = allocate_lock()
        #: Extent → (offset, capacity, its mapping).
        self._mapped: dict[int, tuple[int, int, mmap.mmap]] = {}
        #: Extent → what was last seen there, as long as it is not released.
        self._kept: dict[int, _Kept] = {}
        #: What has gone; finalizers append (DEL).
        self._gone: deque[_Kept] = deque()

    def wait(self, number: int, deadline: float | None = None) -> bool:
        """Sleep until message `number` is published; False: the deadline passed. Any thread.

        Raises:
            ChannelClosed: it never will be.
        """
        words = self._words
        if words[_PUBLISHED] >= number:
            return True
        address = self.channel._address + _PUBLISHED * 8
        # An interrupt may leave the count too high, which means wake-ups that nobody needs; never too low.
        with self._lock:
            self._waiting += 1
            words[self._waits] = self._waiting
        try:
            _fence()
            slept = False
            while (seen := words[_PUBLISHED]) < number:
                if slept:
                    self._check()
                if words[_CLOSED]:
                    if words[_PUBLISHED] >= number:
                        break  # Published between the two looks.
                    raise ChannelClosed
                timeout_s = _slice_s(deadline)
                if timeout_s <= 0:
                    return False
                _sleep_while(address, seen, timeout_s)
                slept = True
        finally:
            with self._lock:
                self._waiting -= 1
                words[self._waits] = self._waiting
        return True

    def peek(self) -> tuple[int, bytes | memoryview] | None:
        """The next message: its kind and its blob, which stays as it is for as long as it is held; None: none yet."""
        words = self._words
        number = self.taken + 1
        if self._gone:
            self._release()
        if words[_PUBLISHED] < number:
            return None
        if not _ORDERED:
            _fence()
        slot = number % self.channel.spec.slots
        record = self._slots_at + slot * _SLOT_WORDS
        size = words[record + _SIZE]
        if not words[record + _EXTENT]:
            start = self._ring_at + slot * SLOT_BYTES
            return words[record + _KIND], bytes(self.channel._memory[start : start + size])
        return words[record + _KIND], self._large(number, record, size)

    def advance(self) -> None:
        """The message that was last peeked at is dealt with: its slot may be used again."""
        words = self._words
        self.taken = number = self.taken + 1
        if not _ORDERED:
            _fence()
        words[self._taken] = number
        _fence()
        if words[_WRITER_WAITS]:
            _wake(self.channel._address + self._taken * 8)

    def take(self, deadline: float | None = None) -> tuple[int, bytes | memoryview]:
        """Wait for the next message and take it, where nothing interrupts. Raises as `wait`; ChannelTimeoutError."""
        number = self.taken + 1
        if not self.wait(number, deadline):
            raise exceptions.ChannelTimeoutError(f"message {number} of a channel did not come in time")
        message = self.peek()
        assert message is not None
        self.advance()
        return message

    def _large(self, number: int, record: int, size: int) -> bytes | memoryview:
        """A message in an extent: in place, or copied if too many are in place already."""
        words = self._words
        extent = words[record + _EXTENT] - 1
        offset, capacity = words[record + _OFFSET], words[record + _CAPACITY]
        mapped = self._mapped.get(extent)
        if mapped is None or mapped[:2] != (offset, capacity):
            mapped = self._mapped[extent] = (offset, capacity, self.channel._map(offset, capacity))
        exporter = (ctypes.c_char * capacity).from_buffer(mapped[2])
        kept = _Kept(exporter, self._gone.append)
        kept.extent, kept.number = extent, number
        # A look that was interrupted may have left another one there: only the newest counts.
        self._kept[extent] = kept
        view = memoryview(exporter).cast("B")[:size].toreadonly()
        return view if len(self._kept) <= KEPT_IN_PLACE else bytes(view)

    def _release(self) -> None:
        """Tell the writer which extents nothing here lies in any more."""
        layout, readers = self.channel._layout, self.channel.spec.readers
        while self._gone:
            kept = self._gone[0]
            if self._kept.get(kept.extent) is kept and kept.number <= self.taken:
                if not _ORDERED:
                    _fence()
                self._words[layout.released_at + kept.extent * readers + self._index] = kept.number
                del self._kept[kept.extent]
            self._gone.popleft()
