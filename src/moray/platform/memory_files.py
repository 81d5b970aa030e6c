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


def read_all(fd: int) -> bytes:
    """Everything from the descriptor's position to its end."""
    chunks = []
    while chunk := os.read(fd, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)
