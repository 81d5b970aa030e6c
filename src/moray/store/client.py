"""A process's view of the arena: memory to write new objects into, and to read sealed ones from.

The arena is mapped once, whole, when it is first needed; its pages appear as they are used. An object
that found no room there lies in a file of its own, or in a file of spilled objects, which is mapped
for this one object.

A reader gets a read-only memoryview. What is made from slices of it (arrays of numpy and arrow,
out-of-band buffers of pickle, further views) keeps one hidden exporter alive, a ctypes array over the
mapping; when the last of them is gone, a weak reference to the exporter says that the object can be
unpinned (STORE-PIN). That callback may run in any thread, between any two bytecodes, so it does one
append to a deque and nothing else (DEL). Blobs whose form is OWN_PAGES are mapped anew for each reader,
privately: it may write, and nobody else sees it (SNAPSHOT).

The mapping goes with the last view of it: after :meth:`StoreClient.close`, memory under views that
the user still holds stays valid (LIVENESS), and their end is not reported to anybody.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

from moray.platform.memory_files import map_private
from moray.protocol.blobs import OWN_PAGES
from moray.store.bulk import PIECE, BulkCopy

#: Below this, `view[:] = source` beats asking how the pages are best written.
_BULK: Final = PIECE

#: Up to this, bytes are copied under the GIL where all is mapped: they take less time than a switch of threads would,
#: and the calls of C functions that do without it cost as much as copying 100 KB.
_PLAIN: Final = 2 << 20

#: ctypes array types by size; only powers of two, as making a type costs ten times as much as using it.
_types: dict[int, type[ctypes.Array[ctypes.c_char]]] = {}


class Blob(Protocol):
    """A value to be written (:class:`~moray.serialization.Serialized`, which daemons do not import)."""

    @property
    def size(self) -> int: ...
    @property
    def head(self) -> bytes: ...
    @property
    def buffers(self) -> list[memoryview]: ...
    @property
    def starts(self) -> list[int]: ...

    def write_into(self, target: memoryview, copy: Callable[[memoryview, memoryview], None] | None = None) -> None: ...


class _Pin(weakref.ref[Any]):
    """Calls `on_unpin(object_id)` once, when the exporter is gone."""

    __slots__ = ("object_id", "on_unpin")

    object_id: bytes
    on_unpin: Callable[[bytes], None]


class StoreClient:
    """Memory of one node's store, for one process.

    Args:
        fd: the arena's file, which this client owns from now on.
        arena_bytes: its size.
    """

    def __init__(self, fd: int, arena_bytes: int) -> None:
        self._fd = fd
        self._arena_bytes = arena_bytes
        #: Taken to map the arena, and to close. A signal's handler may map it in the middle of that.
        self._lock = threading.RLock()
        #: The mapping and what copies into it; None before the first use and after close().
        self._arena: tuple[mmap.mmap, memoryview, BulkCopy] | None = None
        self._closed = False
        #: Readers whose end is to be reported: id → weak reference to the exporter.
        self._pins: dict[int, _Pin] = {}

    def view(self, offset: int, size: int, path: str = "") -> memoryview:
        """Writable memory of a new object."""
        if path:
            mapping, start = _map_file(path, offset, size, private=False)
            return memoryview(mapping)[start : start + size]
        return self._mapped()[1][offset : offset + size]

    def write(self, offset: int, serialized: Blob, path: str = "") -> None:
        """Write a new object's blob to where the node gave it room."""
        buffers = serialized.buffers
        if path or not buffers:
            view = self.view(offset, serialized.size, path)
            serialized.write_into(view, self.copy_into)
            view.release()
            return
        _mapping, memory, bulk = self._mapped()
        memory[offset : offset + len(serialized.head)] = serialized.head
        for start, buffer in zip(serialized.starts, buffers, strict=True):
            begin = offset + start
            size = buffer.nbytes
            if size < _BULK or (size <= _PLAIN and bulk.is_mapped(begin, size)):
                memory[begin : begin + size] = buffer
            else:
                bulk.copy(begin, buffer)

    def reader(
        self, object_id: bytes, offset: int, size: int, path: str, on_unpin: Callable[[bytes], None]
    ) -> memoryview:
        """Memory of a sealed object that this process has pinned: read-only, or this reader's alone (OWN_PAGES).

        This takes the pin over: `on_unpin(object_id)` is called once when the last view is gone, from
        any thread, and also when this call fails or is interrupted.
        """
        pin: _Pin | None = None
        try:
            if path:
                # A private mapping is writable, as ctypes wants it, and the file is safe from it.
                mapping, start = _map_file(path, offset, size, private=True)
            else:
                mapping, start = self._mapped()[0], offset
            own = size > 0 and mapping[start] == OWN_PAGES
            if own and not path:
                mapping, start = self._map_own(offset, size)
            exporter, skip = _export(mapping, start, size)
            pin = _Pin(exporter, self._ended)
            pin.object_id, pin.on_unpin = object_id, on_unpin
            self._pins[id(pin)] = pin
            view = memoryview(exporter).cast("B")[skip : skip + size]
            return view if own else view.toreadonly()
        except BaseException:
            # The exporter lives until this frame ends, and then finds nothing to report.
            if pin is not None:
                self._pins.pop(id(pin), None)
            on_unpin(object_id)
            raise

    def copy_into(self, view: memoryview, source: Any) -> None:
        """Write the bytes of a contiguous `source` to the start of a view made by :meth:`view`."""
        data = memoryview(source)
        if data.ndim != 1 or data.format != "B":
            data = data.cast("B")
        arena = self._arena
        if data.nbytes >= _BULK and arena is not None:
            if data.nbytes > view.nbytes:
                raise ValueError(f"{data.nbytes} bytes do not fit into a view of {view.nbytes}")
            offset = arena[2].offset_of(view)
            if offset is not None:
                arena[2].copy(offset, data)
                return
        view[: data.nbytes] = data

    def close(self) -> None:
        """Let the memory go, except under views that are still held; their end is not reported."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._pins.clear()
                self._arena = None
                os.close(self._fd)

    def abandon(self) -> None:
        """In a forked child: views stay readable, and their end means nothing (FORK)."""
        self._pins.clear()

    def _mapped(self) -> tuple[mmap.mmap, memoryview, BulkCopy]:
        arena = self._arena
        return arena if arena is not None else self._map()

    def _map(self) -> tuple[mmap.mmap, memoryview, BulkCopy]:
        with self._lock:
            if self._closed:
                raise ValueError("the object store is closed in this process")
            if self._arena is None:
                mapping = mmap.mmap(self._fd, self._arena_bytes)
                address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
                bulk = BulkCopy(self._fd, address, self._arena_bytes)
                self._arena = (mapping, memoryview(mapping), bulk)
            return self._arena

    def _map_own(self, offset: int, size: int) -> tuple[mmap.mmap, int]:
        # Under the lock, or the number of a file that was just closed could be another one's.
        with self._lock:
            if self._closed:
                raise ValueError("the object store is closed in this process")
            return _map_pages(self._fd, offset, size, private=True)

    def _ended(self, pin: _Pin) -> None:
        # One dict operation decides between this and close(), which may run at the same time.
        if self._pins.pop(id(pin), None) is not None:
            pin.on_unpin(pin.object_id)


def _export(mapping: mmap.mmap, start: int, size: int) -> tuple[ctypes.Array[ctypes.c_char], int]:
    """A ctypes array that covers the bytes, and where in it they begin."""
    whole = len(mapping)
    span = 1 << (size - 1).bit_length() if size > 1 else 1
    kind = _types.get(span)
    if kind is None:
        kind = _types[span] = ctypes.c_char * span
    if span > whole:
        kind, span = ctypes.c_char * whole, whole
    begin = min(start, whole - span)
    return kind.from_buffer(mapping, begin), start - begin


def _map_file(path: str, offset: int, size: int, private: bool) -> tuple[mmap.mmap, int]:
    """Map the pages of a file around some bytes; also says where in the mapping the bytes begin."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _map_pages(fd, offset, size, private)
    finally:
        os.close(fd)


def _map_pages(fd: int, offset: int, size: int, private: bool) -> tuple[mmap.mmap, int]:
    begin = offset & -mmap.ALLOCATIONGRANULARITY
    length = max(offset - begin + size, 1)
    mapping = map_private(fd, begin, length) if private else mmap.mmap(fd, length, offset=begin)
    return mapping, offset - begin
