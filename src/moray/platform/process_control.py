"""What a process may do to itself and to others: daemons, death signals, subreaping, names, pidfds, groups.

LIVENESS: on one machine, death is what a pidfd says. A pidfd is opened either by the parent before it
reaps the process, or by anyone who has another proof that the number still means the same process.

``prctl`` is reached through ctypes, which is loaded at the first call: it costs 2 ms, and most processes
that import moray never need it.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
#: `comm` of a process, without its final zero.
_NAME_BYTES: Final = 15

#: Descriptors from here on do not collide with those that a daemon gets.
_SAFE_FD: Final = 10

#: A daemon runs the very package that its parent runs, whatever else is installed. It gets that package without its
#: facade (`moray/__init__.py`), which imports what only users' processes need and costs half the start. The standard
#: library comes first on its path, so that nothing beside the user's script can take a module's place.
_BOOT: Final = (
    "import sys; package = sys.modules['moray'] = type(sys)('moray'); package.__path__ = {package!r}; "
    "sys.path[:] = dict.fromkeys([*filter(None, sys.path), *{paths!r}]); from {main} import main; main()"
)

#: ``prctl`` of the C library, once it was needed.
_prctl_function: Any = None
#: The same of ``getenv``.
_getenv_function: Any = None


def _prctl(option: int, argument: Any) -> None:
    global _prctl_function
    if _prctl_function is None:
        import ctypes

        _prctl_function = ctypes.CDLL(None, use_errno=True).prctl
        _prctl_function.restype = ctypes.c_int
    if _prctl_function(option, argument, 0, 0, 0) != 0:
        import ctypes

        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def preload() -> None:
    """Load what the other functions need, so that forked children find it loaded."""
    set_name(None)
    _getenv()


def _getenv() -> Any:
    """The C library's, which tells where a variable lies."""
    global _getenv_function
    if _getenv_function is None:
        import ctypes

        _getenv_function = ctypes.CDLL(None).getenv
        _getenv_function.restype = ctypes.c_void_p
    return _getenv_function


def daemon_code(main: str, package: list[str], paths: list[str]) -> str:
    """What a daemon's interpreter is to run (``-c``).

    Args:
        main: the module whose function ``main`` it is.
        package: the directories of the package moray.
        paths: where it finds modules, after what the interpreter itself begins with.
    """
    return _BOOT.format(main=main, package=package, paths=paths)


def spawn_daemon(command: list[str], environ: Mapping[str, str], descriptors: Sequence[int]) -> int:
    """Start `command` in a session of its own; its descriptors from 0 on are `descriptors`. The pid; raises OSError."""
    import fcntl

    copies: list[int] = []
    try:
        # Above all targets, so that none is overwritten before it is copied itself.
        copies.extend(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SAFE_FD) for fd in descriptors)
        return os.posix_spawn(
            command[0],
            command,
            environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(copies)],
            setsid=True,
            # What its parent ignores or blocks must not be ignored or blocked there: SIGCHLD above all.
            setsigmask=[],
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )
    finally:
        for fd in copies:
            os.close(fd)


def set_name(name: str | None) -> None:
    """The name of this thread as `ps` and `top` show it (cut to 15 bytes); None: leave it."""
    if name is None:
        with open("/proc/self/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().rstrip("\n")
    _prctl(_PR_SET_NAME, name.encode()[:_NAME_BYTES])


def become_subreaper() -> None:
    """Orphaned descendants of this process become its children rather than init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when the *thread* that forked it ends; exit now if `parent` is gone already.

    Follows the parent's thread, not its process, so the parent must fork from its main thread.
    """
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(0)


def open_pidfd(pid: int) -> int | None:
    """A pidfd of `pid`, or None if there is no such process."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def has_ended(pidfd: int) -> bool:
    """Whether the process of `pidfd` is dead (a zombie is)."""
    return wait_pidfd(pidfd, 0.0)


def wait_pidfd(pidfd: int, timeout_s: float | None) -> bool:
    """Wait until the process of `pidfd` is dead; False if `timeout_s` (None: for ever) passed first."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))


def kill_pidfd(pidfd: int, number: int = signal.SIGKILL) -> bool:
    """Signal exactly this process, however old its number is; False if it is gone."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Signal a process; False if there is none, or it is not ours."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_group(group: int, number: int = signal.SIGKILL) -> bool:
    """Signal a process group; False if it has no member left. Never our own group."""
    if group <= 1 or group == os.getpgrp():
        return False
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def reap(pid: int = -1) -> tuple[int, int] | None:
    """Collect a dead child, without waiting: (pid, exit code or minus the signal).

    None if none is dead. Raises ChildProcessError if there is no child at all.
    """
    found, status = os.waitpid(pid, os.WNOHANG)
    return (found, os.waitstatus_to_exitcode(status)) if found else None


def close_from(lowest: int, keep: tuple[int, ...] = ()) -> None:
    """Close every descriptor from `lowest` on, except `keep`."""
    for fd in sorted(keep):
        if fd >= lowest:
            os.closerange(lowest, fd)
            lowest = fd + 1
    os.closerange(lowest, _descriptor_limit())


def _descriptor_limit() -> int:
    limit = os.sysconf("SC_OPEN_MAX")
    return limit if limit > 0 else 1 << 20


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as the hard limit does."""
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def retag(name: str, value: str) -> None:
    """Change a variable of the environment that this process was started with, for all that descends from it.

    `os.environ` reaches only what is started by exec. Here the bytes that exec put into this process's memory are
    overwritten in place, so that ``/proc/PID/environ`` of its forks says `value` too. The new value must be as long
    as the old one; the variable must never have been set in this process.
    """
    import ctypes

    place, text = _getenv()(name.encode()), value.encode()
    if place is not None and len(ctypes.string_at(place)) == len(text):
        ctypes.memmove(place, text, len(text))
    os.environ[name] = value


def prefer_as_oom_victim(score: int) -> None:
    """Make the kernel's OOM killer take this process before those with a lower score."""
    try:
        # Not by `open`: in a fresh fork, a text file costs more than all else here.
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d" % score)
        finally:
            os.close(fd)
    except OSError as error:
        # A process that was given an even higher score may not lower it, and some containers mount /proc read-only.
        if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}:
            raise


def set_switch_interval(interval_s: float) -> float:
    """Set how long a thread may hold the GIL while others wait for it; the previous value."""
    previous = sys.getswitchinterval()
    sys.setswitchinterval(interval_s)
    return previous


def wait_for_child(timeout_s: float) -> None:
    """Sleep until some child has died, `timeout_s` at most. Without the cost of a handler: SIGCHLD is blocked here."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        # A child that died before the signal was blocked is not told by it.
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            signal.sigtimedwait({signal.SIGCHLD}, timeout_s)
    except ChildProcessError:
        pass
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
