"""Anonymous shared memory: a file that has no name, so nothing can be left behind. And files as private memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final

#: The same on Linux and on macOS; Python's module lacks it.
_MAP_FIXED: Final = 0x10

_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_mmap.restype = ctypes.c_void_p
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


def create_memory_file(name: str, content: bytes = b"") -> int:
    """A descriptor of an anonymous memory file that holds `content`, at its start; `name` is for /proc only."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def open_memory_file(pid: int, fd: int) -> int:
    """A descriptor of the memory file that is open as `fd` in process `pid`, for reading and writing.

    Raises OSError if there is no such process or descriptor. The number may have passed to another file: the caller
    must be able to tell.
    """
    return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


def map_private(fd: int, offset: int, size_bytes: int) -> mmap.mmap:
    """Memory that begins as a part of a file, and may be written without the file's changing.

    Python's own mappings keep a descriptor each. This one keeps none, so there may be as many as the kernel allows: it
    replaces the memory of a mapping without a file.
    """
    if os.fstat(fd).st_size < offset + size_bytes:
        raise ValueError(f"a file of {os.fstat(fd).st_size} bytes does not have {size_bytes} at {offset}")
    mapping = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    flags = mmap.MAP_PRIVATE | _MAP_FIXED
    if _mmap(address, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset) == _MAP_FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return mapping


def read_all(fd: int) -> bytes:
    """Everything from the descriptor's position to its end."""
    chunks = []
    while chunk := os.read(fd, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)
