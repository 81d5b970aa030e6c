"""Copying large values into the arena as fast as the machine allows.

A page that this process has not mapped yet costs a fault on its first byte, which is several times
the time of copying the page (64 MiB here: mapped 4-6 ms; in the page cache but not mapped 20-26 ms;
never written by anybody 25-37 ms, and 176 ms when the host has to find the memory, too). So a stretch of
the arena is written in one of three ways:

1. the first time by ``pwrite``: the kernel fills the pages without mapping or clearing them (10-13 ms);
2. the second time it is mapped in one call (MADV_POPULATE_WRITE) and copied to (18 ms), because
3. from then on a plain copy does (4-6 ms); freed regions are granted again first, so this is the usual way.

A process that writes a stretch only once never maps it. All three run without the GIL, so a copy
of a gigabyte stalls neither the I/O thread nor other puts.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

#: The arena is remembered in pieces of this size: small enough that a region of a megabyte has its
#: own, large enough that a terabyte has only four million (a byte each, and only those touched).
PIECE: Final = 256 << 10

_NEW: Final = 0
_WRITTEN: Final = 1
_MAPPED: Final = 2

#: Linux 5.14; older kernels say EINVAL, and the copy takes the faults itself.
_MADV_POPULATE_WRITE: Final = 23

_libc = ctypes.CDLL(None)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_memcpy = _libc.memcpy
_memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcpy.restype = None


class _Buffer(ctypes.Structure):
    """CPython's Py_buffer: the only way to the address of a read-only buffer."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
        ("size", ctypes.c_ssize_t),
        ("item_size", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("dimensions", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.c_void_p,)
_release_buffer.restype = None


class BulkCopy:
    """Copies into one mapping of the arena; any thread may."""

    def __init__(self, fd: int, address: int, size: int) -> None:
        self._fd = fd
        #: Where the arena is mapped, and how much of it.
        self._address = address
        self._size = size
        #: Per piece: what this process has done with it.
        self._pieces = bytearray((size + PIECE - 1) // PIECE)

    def offset_of(self, view: memoryview) -> int | None:
        """Where in the arena a writable view begins; None if it is not a view of the arena."""
        offset = ctypes.addressof(ctypes.c_char.from_buffer(view)) - self._address
        return offset if 0 <= offset <= self._size - view.nbytes else None

    def copy(self, offset: int, source: memoryview) -> None:
        """Write the bytes of `source` (one-dimensional) at `offset`."""
        buffer = _Buffer()
        _get_buffer(source, ctypes.byref(buffer), 0)
        try:
            start, end = offset, offset + source.nbytes
            while start < end:
                stretch = self._stretch(start, end)
                self._copy_stretch(start, stretch, source, start - offset, buffer.address + start - offset)
                start = stretch
        finally:
            _release_buffer(ctypes.byref(buffer))

    def is_mapped(self, offset: int, size: int) -> bool:
        """Whether a plain copy to there takes no faults."""
        first, end = offset // PIECE, (offset + size - 1) // PIECE + 1
        return self._pieces.count(_MAPPED, first, end) == end - first

    def _stretch(self, start: int, end: int) -> int:
        """How far the pieces from `start` on are all alike."""
        pieces = self._pieces
        first, last = start // PIECE, (end - 1) // PIECE
        piece = first + 1
        while piece <= last and pieces[piece] == pieces[first]:
            piece += 1
        return min(piece * PIECE, end)

    def _copy_stretch(self, start: int, end: int, source: memoryview, position: int, address: int) -> None:
        first, last = start // PIECE, (end - 1) // PIECE
        way = self._pieces[first]
        if way == _NEW:
            _write(self._fd, source[position : position + end - start], start)
        else:
            if way == _WRITTEN:
                begin = first * PIECE
                _madvise(self._address + begin, min((last + 1) * PIECE, self._size) - begin, _MADV_POPULATE_WRITE)
            _memcpy(self._address + start, address, end - start)
        if way != _MAPPED:
            self._pieces[first : last + 1] = bytes((way + 1,)) * (last + 1 - first)


def _write(fd: int, source: memoryview, offset: int) -> None:
    while source.nbytes:
        written = os.pwrite(fd, source, offset)
        source = source[written:]
        offset += written
