"""Anonymous shared memory: a file that has no name, so nothing can be left behind."""

from __future__ import annotations

import os


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


def read_all(fd: int) -> bytes:
    """Everything from the descriptor's position to its end."""
    chunks = []
    while chunk := os.read(fd, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)
