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

**Waiting**: a reader first looks for a moment, if that was of use lately, and leaves the CPU to others between the
looks. Then it sleeps, by :mod:`moray.platform.futex` on the word that is to change.

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
from _thread import RLock
from collections import deque
from collections.abc import Callable
from os import sched_yield
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from moray import exceptions
from moray.platform import futex
from moray.platform.futex import ORDERED, fence
from moray.platform.machine import memory_total, memory_used
from moray.platform.memory_files import create_memory_file, open_memory_file

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

#: How long a reader looks for its message before it sleeps: longer than a chain takes whose every hop wakes a sleeper,
#: or a chain that sleeps would go on sleeping.
_MOMENT_S: Final = 200e-6
#: Looks between two times that it leaves the CPU to others: about a microsecond, for that is a change of process.
_LOOKS: Final = 20
#: After so many moments in vain it is at its laziest: one moment in 2 to the power of this many waits.
_MOST_MISSED: Final = 8

_MAGIC: Final = 0x6D6F7261792D6368
#: Words before those of the readers. What changes with each message has a cache line of its own, apart from what the
#: other side looks at each time and hardly ever changes.
_MAGIC_AT, _CLOSED, _WRITER_WAITS, _PUBLISHED = 0, 1, 2, 8
_HEAD_WORDS: Final = 16
_TAKEN, _WAITS = 0, 8
_READER_WORDS: Final = 16
#: A slot's record lies before its message, so that a very small message is in the same cache line. Its first word is
#: the size, shifted, and the kind.
_SIZE_AND_KIND, _EXTENT, _OFFSET, _CAPACITY = range(4)
_KIND_BITS: Final = 8
_KIND_MASK: Final = (1 << _KIND_BITS) - 1
_RECORD_BYTES: Final = 32
_PAGE: Final = mmap.PAGESIZE
_SLOT_STRIDE: Final = SLOT_BYTES + 64

#: One part in so many of the free memory is left to others: it is shared by all that runs here, and they grow too.
_SPARED: Final = 10


class ChannelClosed(Exception):  # noqa: N818 - not an error: how a loop learns that it should end.
    """The channel was closed, and what was published before has been taken."""


def check_supported() -> None:
    """Raise if this machine cannot have channels."""
    if not futex.supported():
        raise exceptions.MoraySystemError(
            f"channels need Linux on x86_64, aarch64 or riscv64, and this is {sys.platform} on {platform.machine()}"
        )


def refuse_inside(lock: Any) -> None:
    """Raise in a signal handler that came while its thread was in the middle of what the RLock guards (INTERRUPT)."""
    if lock._is_owned():
        raise exceptions.MoraySystemError(
            "a signal handler that interrupted this thread in the middle of execute() or get() of a compiled graph "
            "called that graph, which cannot go on before the handler returns: set a flag in the handler, and call the "
            "graph outside of it"
        )


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
        self.released_at = self.readers_at + readers * _READER_WORDS
        #: Every slot may hold one, and every reader keep some, and one that it has copied and not let go yet.
        self.extents = slots + readers * (KEPT_IN_PLACE + 1) + 1
        words = self.released_at + self.extents * readers
        ring_at = -(-words * 8 // _PAGE) * _PAGE
        #: The word with which the ring begins, and how many words there are from one slot to the next.
        self.ring_word = ring_at // 8
        self.slot_words = _SLOT_STRIDE // 8
        self.size = -(-(ring_at + slots * _SLOT_STRIDE) // _PAGE) * _PAGE


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
        self._mapping = mapping = mmap.mmap(file.fd, layout.size)
        self._memory = memoryview(mapping)
        self._words = self._memory.cast("Q")
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self._pid = os.getpid()

    @classmethod
    def create(cls, slots: int, readers: int) -> Channel:
        """A new channel; the processes that open it must do so while this object lives."""
        check_supported()
        size = _Layout(slots, readers).size
        file = _File(create_memory_file("moray-channel"))
        _reserve(file.fd, 0, size)
        token = int.from_bytes(os.urandom(7), "little")
        channel = cls(ChannelSpec(os.getpid(), file.fd, token, slots, readers), file)
        channel._words[_MAGIC_AT] = _MAGIC ^ token
        return channel

    @classmethod
    def open(cls, spec: ChannelSpec) -> Channel:
        """The channel that another process has created. Raises ChannelError if that is gone."""
        try:
            file = _File(open_memory_file(spec.pid, spec.fd))
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
        fence()
        futex.wake(self._address + _PUBLISHED * 8)
        for reader in range(self.spec.readers):
            futex.wake(self._address + (self._layout.readers_at + reader * _READER_WORDS + _TAKEN) * 8)

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
        self._mapping = channel._mapping
        self._ring_word, self._slot_words = layout.ring_word, layout.slot_words
        self._wake_address = channel._address + _PUBLISHED * 8
        #: There is room for messages up to this number, at least.
        self._room = 0
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
        if serialized.blob is not None and serialized.size <= SLOT_BYTES:
            return self.write_small(serialized.blob, kind, deadline)
        number = self._next(deadline)
        words = self._words
        record = self._ring_word + number % self._slots * self._slot_words
        size = serialized.size
        if size <= SLOT_BYTES:
            start = record * 8 + _RECORD_BYTES
            serialized.write_into(self.channel._memory[start : start + size])
        else:
            index, extent = self._take_extent(number, size)
            serialized.write_into(extent.view)
            words[record + _EXTENT] = index + 1
            words[record + _OFFSET] = extent.offset
            words[record + _CAPACITY] = len(extent.view)
        words[record] = size << _KIND_BITS | kind
        self._publish(number)
        return number

    def write_small(self, blob: bytes, kind: int = 0, deadline: float | None = None) -> int:
        """:meth:`write` for a blob of at most SLOT_BYTES."""
        number = self._next(deadline)
        record = self._ring_word + number % self._slots * self._slot_words
        start = record * 8 + _RECORD_BYTES
        self._mapping[start : start + len(blob)] = blob
        self._words[record] = len(blob) << _KIND_BITS | kind
        self._publish(number)
        return number

    def _next(self, deadline: float | None) -> int:
        """The number of the message to be written, once there is room for it."""
        words = self._words
        number = words[_PUBLISHED] + 1
        if self._newest is not None and self._newest.last == number:
            self._newest.last = 0  # The writing of this number was interrupted.
        if number > self._room:
            for taken in self._taken:
                if words[taken] + self._slots < number:
                    self._wait_for_room(taken, number, deadline)
            self._room = min([words[taken] for taken in self._taken]) + self._slots
        if words[_CLOSED]:
            raise ChannelClosed
        return number

    def _publish(self, number: int) -> None:
        words = self._words
        if not ORDERED:
            fence()
        words[_PUBLISHED] = number
        fence()
        for waits in self._waits:
            if words[waits]:
                futex.wake(self._wake_address)
                break

    def _wait_for_room(self, taken: int, number: int, deadline: float | None) -> None:
        words = self._words
        try:
            while (seen := words[taken]) + self._slots < number:
                words[_WRITER_WAITS] = 1
                fence()
                if words[_CLOSED]:
                    raise ChannelClosed
                timeout_s = _slice_s(deadline)
                if timeout_s <= 0:
                    raise exceptions.ChannelTimeoutError(
                        f"a channel of {self._slots} slots stayed full: its slowest reader has taken message {seen} of "
                        f"{number - 1}"
                    )
                futex.sleep_while(self.channel._address + taken * 8, seen, timeout_s)
                self._check()
        finally:
            words[_WRITER_WAITS] = 0
        if not ORDERED:
            fence()

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
        to_the_end: whether `take` gives what was published before the end, after it.
    """

    def __init__(
        self, channel: Channel, index: int, check: Callable[[], None] = _no_check, to_the_end: bool = True
    ) -> None:
        self.channel = channel
        self._to_the_end = to_the_end
        self._check = check
        self._index = index
        self._words = channel._words
        layout = channel._layout
        self._taken = layout.readers_at + index * _READER_WORDS + _TAKEN
        self._waits = layout.readers_at + index * _READER_WORDS + _WAITS
        self._mapping = channel._mapping
        self._slots = channel.spec.slots
        self._ring_word, self._slot_words = layout.ring_word, layout.slot_words
        #: The last message that was taken: the word lags behind it if an interrupt came between the two.
        self.taken = self._words[self._taken]
        self._waiting = 0
        #: How often in a row a moment's look found nothing; how many of the next waits sleep at once.
        self._missed = self._sleeps = 0
        #: Of the two below; a signal's handler that waits inside of it leaves them as they were.
        self._lock = RLock()
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
        if words[_PUBLISHED] >= number or self._comes_soon(number, deadline):
            return True
        address = self.channel._address + _PUBLISHED * 8
        # An interrupt may leave the count too high, which means wake-ups that nobody needs; never too low.
        with self._lock:
            self._waiting += 1
            words[self._waits] = self._waiting
        try:
            fence()
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
                futex.sleep_while(address, seen, timeout_s)
                slept = True
        finally:
            with self._lock:
                self._waiting -= 1
                words[self._waits] = self._waiting
        return True

    def _comes_soon(self, number: int, deadline: float | None) -> bool:
        """Look for message `number` for a moment, and leave the CPU to others between the looks.

        To sleep, and to be woken on a CPU that has gone to sleep too, costs several times as much as a message. Where
        the moment passes, for the message takes longer, or because others kept the CPU, the next waits sleep at once:
        who sleeps gets the CPU back sooner than who leaves it.
        """
        if self._sleeps:
            self._sleeps -= 1
            return False
        words = self._words
        until = monotonic() + _MOMENT_S
        if deadline is not None and deadline < until:
            return False  # Who waits for so short is not to wait for longer.
        while monotonic() < until:
            for _ in range(_LOOKS):
                if words[_PUBLISHED] >= number:
                    self._missed = 0
                    return True
            if words[_CLOSED]:
                return False
            sched_yield()
        self._missed = min(self._missed + 1, _MOST_MISSED)
        self._sleeps = 1 << self._missed
        return words[_PUBLISHED] >= number

    def peek(self) -> tuple[int, bytes | memoryview] | None:
        """The next message: its kind and its blob, which stays as it is for as long as it is held; None: none yet."""
        words = self._words
        number = self.taken + 1
        if self._gone:
            self._release()
        if words[_PUBLISHED] < number:
            return None
        if not ORDERED:
            fence()
        record = self._ring_word + number % self._slots * self._slot_words
        head = words[record]
        size = head >> _KIND_BITS
        if size <= SLOT_BYTES:
            start = record * 8 + _RECORD_BYTES
            return head & _KIND_MASK, self._mapping[start : start + size]
        return head & _KIND_MASK, self._large(number, record, size)

    def advance(self) -> None:
        """The message that was last peeked at is dealt with: its slot may be used again."""
        words = self._words
        self.taken = number = self.taken + 1
        if not ORDERED:
            fence()
        words[self._taken] = number
        fence()
        if words[_WRITER_WAITS]:
            futex.wake(self.channel._address + self._taken * 8)

    def take(self, deadline: float | None = None) -> tuple[int, bytes | memoryview]:
        """Wait for the next message and take it, where nothing interrupts. Raises as `wait`; ChannelTimeoutError."""
        number = self.taken + 1
        words = self._words
        if words[_PUBLISHED] >= number:
            if words[_CLOSED] and not self._to_the_end:
                raise ChannelClosed
        elif not self.wait(number, deadline):
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
                if not ORDERED:
                    fence()
                self._words[layout.released_at + kept.extent * readers + self._index] = kept.number
                del self._kept[kept.extent]
            self._gone.popleft()
