"""Sleeping on a word of shared memory until another process changes it, and the fence that this needs.

A sleeper announces itself in memory, and the kernel compares the word once more before it sleeps. The other side
changes the word first and looks for sleepers second, with :func:`fence` between: otherwise each could miss the other's
store.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from _thread import allocate_lock
from collections.abc import Callable
from typing import Any, Final

_WAIT, _WAKE = 0, 1
_EVERYBODY: Final = 0x7FFFFFFF
#: The number of the system call, by machine.
_FUTEX: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(platform.machine(), 0)
#: What sleeping may answer that is no fault: woken, the word had changed, a signal, the time is over.
_QUIET: Final = (0, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT)

#: Whether loads are seen in their order, and stores in theirs, without a fence: on x86 only a load may overtake a
#: store; elsewhere everything may overtake everything.
ORDERED: Final = platform.machine() == "x86_64"


def supported() -> bool:
    """Whether this machine has futexes of the form that this module knows."""
    return bool(_FUTEX) and sys.byteorder == "little" and sys.platform.startswith("linux")


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


def sleep_while(address: int, seen: int, timeout_s: float) -> None:
    """Sleep until woken, while the low half of the word at `address` is that of `seen`; or for no reason."""
    span = _Timespec(int(timeout_s), int(timeout_s % 1 * 1e9))
    if _wait_call(_FUTEX, address, _WAIT, seen & 0xFFFFFFFF, ctypes.addressof(span), None, 0) != 0:
        error = ctypes.get_errno()
        if error not in _QUIET:
            raise OSError(error, f"futex: {os.strerror(error)}")


def wake(address: int) -> None:
    """Wake all that sleep on the word at `address`."""
    _wake_call(_FUTEX, address, _WAKE, _EVERYBODY, None, None, 0)


def _fence_by_lock() -> None:
    allocate_lock().acquire(False)  # One of its own: a finalizer may come here while this thread is here.


def _fence_by_system_call() -> None:
    _wake_call(_FUTEX, ctypes.addressof(_nobody), _WAKE, 0, None, None, 0)


def _best_fence(version: tuple[int, int]) -> Callable[[], object]:
    if not ORDERED:
        return _fence_by_system_call
    # Up to 3.13 a free lock says that it is free by taking and releasing itself: two locked instructions, in one
    # step that no other code of this process can come between.
    return allocate_lock().locked if version < (3, 14) else _fence_by_lock


#: No load or store passes this: a locked instruction on x86, elsewhere a system call that has a fence in it.
fence: Final = _best_fence(sys.version_info[:2])
