"""A worker's *mark*: a small shared page that outlives it by a moment.

Before each task the worker counts it there, per lease, and after each sending of output how much has been sent.
When the worker dies, its owners read which of their tasks had begun (LEASE), and the driver what had been
printed and not sent.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final, NamedTuple

_PAIR: Final = struct.Struct("<QQ")
_WHOLE: Final = struct.Struct("<QQQQ")


class Mark(NamedTuple):
    """What a mark says."""

    lease: int = 0
    #: How many tasks of that lease have begun.
    begun: int = 0
    #: How far stdout and stderr have been sent: positions of :mod:`moray.runtime.log_files`.
    out_bytes: int = 0
    err_bytes: int = 0


class MarkWriter:
    """The worker's side."""

    def __init__(self, session_dir: str, process: bytes) -> None:
        descriptor = os.open(_path(session_dir, process), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _WHOLE.size)
            self._page = mmap.mmap(descriptor, _WHOLE.size)
        finally:
            os.close(descriptor)
        self._lease = 0
        self._begun = 0

    def begin(self, lease: int) -> None:
        """A task of this lease is about to run."""
        if lease != self._lease:
            self._lease = lease
            self._begun = 0
        self._begun += 1
        _PAIR.pack_into(self._page, 0, lease, self._begun)

    def sent(self, out_bytes: int, err_bytes: int) -> None:
        """So much of stdout and stderr has been sent."""
        _PAIR.pack_into(self._page, _PAIR.size, out_bytes, err_bytes)


def read_mark(session_dir: str, process: bytes) -> Mark:
    """The mark of a process that has died; all 0 if it never had one."""
    try:
        with open(_path(session_dir, process), "rb") as file:
            return Mark(*_WHOLE.unpack(file.read(_WHOLE.size)))
    except (OSError, struct.error):
        return Mark()


def _path(session_dir: str, process: bytes) -> str:
    return f"{session_dir}/{process.hex()}.mark"
