"""The end of a machine's lease, where all of its processes can read it without asking (FENCE).

One page of a file in the session's directory: the time, in nanoseconds of CLOCK_BOOTTIME (which goes on while the
machine sleeps), until which the head counts this machine among the living. The node writes it; workers look before an
actor's method starts and before its result is sent. Zero says that there is no head, so that nothing ends.

The number is one aligned word, written and read by single stores and loads.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Final, Self

LEASE_FILE: Final = "lease"
_PAGE: Final = mmap.PAGESIZE


def boottime_ns() -> int:
    """Now, on the clock of the page."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class LeasePage:
    """A mapping of the page."""

    def __init__(self, fd: int, *, writable: bool) -> None:
        self._map = mmap.mmap(fd, _PAGE, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
        self._view = memoryview(self._map)
        self._words = self._view.cast("q")

    @classmethod
    def create(cls, session_dir: str) -> Self:
        """The node's, with no lease yet."""
        fd = os.open(f"{session_dir}/{LEASE_FILE}", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _PAGE)
            return cls(fd, writable=True)
        finally:
            os.close(fd)

    @classmethod
    def open(cls, session_dir: str) -> Self:
        """A worker's. FileNotFoundError if the session has no head to be fenced by."""
        fd = os.open(f"{session_dir}/{LEASE_FILE}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cls(fd, writable=False)
        finally:
            os.close(fd)

    @property
    def end_ns(self) -> int:
        """0: there is no lease that could end."""
        return self._words[0]

    @end_ns.setter
    def end_ns(self, value: int) -> None:
        self._words[0] = value

    def expired(self) -> bool:
        """Whether others may take this machine for dead by now."""
        end = self._words[0]
        return end != 0 and boottime_ns() >= end

    def close(self) -> None:
        self._words.release()
        self._view.release()
        self._map.close()
