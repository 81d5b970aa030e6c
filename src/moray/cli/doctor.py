"""``moray doctor``: is this machine fit for moray, and did crashed sessions leave something?

Each finding is "ok", a "note" (nothing to do), a "warning" (works, with a limit that may be met), or "missing" (moray
cannot work; the exit code is 1). System calls are tried, not looked up: a container may forbid what its kernel has.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import platform
import resource
import select
import stat
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Final, NamedTuple

import click

from moray import __version__
from moray.cli.output import print_table, size
from moray.launch import session_directory
from moray.launch.config import SESSION_VARIABLE
from moray.platform import machine, process_table

#: The oldest kernel that moray is tested with.
_KERNEL: Final = (5, 10)
#: Descriptors that a session of a hundred workers needs, with some for the program.
_FILES: Final = 1024
#: Processes and threads of the same session.
_PROCESSES: Final = 512
#: Room for logs and a little spilling.
_DISK_BYTES: Final = 1 << 30
#: Looked at, because its size is what limits other libraries in containers.
_SHM: Final = "/dev/shm"  # noqa: S108 - nothing is written there
_PACKAGES: Final = ("cloudpickle", "msgspec", "numpy", "pyarrow", "ray")


class Finding(NamedTuple):
    """One line: how it is, what was looked at, what was found."""

    state: str
    what: str
    found: str


def examine_and_print(sweep: bool, temp_dir: str, as_json: bool) -> int:
    """The command; its exit code."""
    try:
        root = session_directory.root_directory(temp_dir)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--temp-dir") from None
    findings = [*_software(), *_limits(), *_system_calls(), *_storage(root), *_sessions(root, temp_dir, sweep)]
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        print_table("moray doctor", ("state", "what", "found"), findings)
    return int(any(finding.state == "missing" for finding in findings))


# --- software -------------------------------------------------------------------------------------


def _software() -> Iterator[Finding]:
    yield Finding("ok", "moray", f"{__version__} in {os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}")
    python = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    yield Finding("ok" if platform.python_implementation() == "CPython" else "warning", "Python", python)
    release = platform.release()
    if sys.platform != "linux":
        yield Finding("missing", "kernel", f"{platform.system()} {release}: moray needs Linux")
    elif _version(release) < _KERNEL:
        yield Finding("warning", "kernel", f"{release}: moray is tested with {'.'.join(map(str, _KERNEL))} and newer")
    else:
        yield Finding("ok", "kernel", release)
    for name in _PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        yield Finding("note" if name == "ray" else "ok", f"package {name}", version)


def _version(release: str) -> tuple[int, ...]:
    numbers = []
    for part in release.split(".")[:2]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits or 0))
    return tuple(numbers)


# --- limits ---------------------------------------------------------------------------------------


def _limits() -> Iterator[Finding]:
    groups = machine.ControlGroups()
    quota = groups.cpu_quota()
    by_group = "no limit by a control group" if quota is None else f"limited to {quota:g} by a control group"
    allowed = len(os.sched_getaffinity(0))
    yield Finding("ok", "CPUs", f"{machine.cpu_count()} of {os.cpu_count()} ({allowed} by affinity, {by_group})")
    limit = groups.memory_limit()
    total, used = machine.memory_total(), machine.memory_used()
    where = "this machine's" if limit is None or limit > total else "by a control group"
    state = "warning" if used > 0.9 * total else "ok"
    yield Finding(state, "memory", f"{size(total)} {where}, {size(used)} in use")
    yield _limit("open files (ulimit -n)", resource.RLIMIT_NOFILE, _FILES)
    yield _limit("processes and threads (ulimit -u)", resource.RLIMIT_NPROC, _PROCESSES)
    tasks = _least_pids()
    if tasks is not None:
        yield Finding("ok" if tasks >= _PROCESSES else "warning", "processes of the control group", str(tasks))
    if gpus := machine.gpu_count():
        yield Finding("ok", "GPUs", str(gpus))


def _limit(what: str, which: int, wanted: int) -> Finding:
    soft, hard = resource.getrlimit(which)
    shown = " of at most ".join(
        "unlimited" if value == resource.RLIM_INFINITY else str(value) for value in (soft, hard)
    )
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return Finding("ok", what, shown)
    return Finding("warning", what, f"{shown}: a session of a hundred workers may need {wanted}")


def _least_pids() -> int | None:
    """How many processes this process's control group may have (cgroup v2); None: no limit is known."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            path = next((line.rstrip("\n")[3:] for line in file if line.startswith("0::")), "")
        with open(f"/sys/fs/cgroup{path.rstrip('/')}/pids.max", encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


# --- system calls -----------------------------------------------------------------------------------


def _system_calls() -> Iterator[Finding]:
    for what, check, use in (
        ("pidfd_open", _try_pidfd, "by which processes see each other's end"),
        ("memfd_create and fallocate", _try_memfd, "in which objects are stored"),
        ("eventfd", _try_eventfd, "by which threads are woken"),
        ("/proc", _try_proc, "where processes of a session are found"),
    ):
        try:
            check()
        except (OSError, AttributeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            forbidden = " (a container's seccomp profile forbids it)" if _is_forbidden(error) else ""
            yield Finding("missing", what, f"does not work: {reason}{forbidden}; it is that {use}")
        else:
            yield Finding("ok", what, "works")


def _is_forbidden(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.EPERM, errno.ENOSYS)


def _try_pidfd() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if poller.poll(0):
            raise OSError(errno.EINVAL, "it says that this living process is dead")
    finally:
        os.close(pidfd)


def _try_memfd() -> None:
    fd = os.memfd_create("moray-doctor", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, mmap.PAGESIZE)
        with mmap.mmap(fd, mmap.PAGESIZE) as area:
            area[0] = 1
    finally:
        os.close(fd)


def _try_eventfd() -> None:
    fd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        os.eventfd_read(fd)
    finally:
        os.close(fd)


def _try_proc() -> None:
    if process_table.read_stat(os.getpid()) is None or not process_table.environment(os.getpid()):
        raise OSError(errno.ENOENT, "/proc does not show this process")


# --- storage ----------------------------------------------------------------------------------------


def _storage(root: str) -> Iterator[Finding]:
    try:
        shared = os.statvfs(_SHM)
        found = f"{size(shared.f_frsize * shared.f_bavail)} free of {size(shared.f_frsize * shared.f_blocks)}"
    except OSError:
        found = "not there"
    yield Finding("note", _SHM, f"{found}; moray does not use it, so it may be small")
    parent = os.path.dirname(root)
    try:
        disk = os.statvfs(parent)
    except OSError as error:
        yield Finding(
            "missing", "directory of sessions", f"{parent}: {error.strerror}; set TMPDIR to one that is there"
        )
        return
    free = disk.f_frsize * disk.f_bavail
    if foreign := _foreign(root):
        yield Finding("missing", "directory of sessions", foreign)
    elif not os.access(root if os.path.isdir(root) else parent, os.W_OK | os.X_OK):
        yield Finding("missing", "directory of sessions", f"{root}: cannot be written; set TMPDIR to one that can")
    elif free < _DISK_BYTES:
        yield Finding("warning", "directory of sessions", f"{root}: {size(free)} free, for logs and spilled objects")
    else:
        yield Finding("ok", "directory of sessions", f"{root}: {size(free)} free")


def _foreign(root: str) -> str:
    """Why sessions cannot be made in a directory that is there: others could swap what is in it."""
    try:
        found = os.lstat(root)
    except OSError:
        return ""
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return ""
    shown = f"{stat.filemode(found.st_mode)} of user {found.st_uid}"
    return f"{root} is {shown}, and should be drwx------ of user {os.getuid()}: remove it, or set TMPDIR"


# --- sessions ---------------------------------------------------------------------------------------


def _sessions(root: str, temp_dir: str, sweep: bool) -> Iterator[Finding]:
    living, dead = _look(root)
    for name in living:
        yield Finding("note", "living session", f"{name}: {_processes(name)} processes")
    if not dead:
        yield Finding("ok", "leftovers of crashed sessions", "none")
    elif sweep:
        yield from _sweep(temp_dir, root)
    else:
        for name in dead:
            found = f"{root}/{name}: {size(_tree_bytes(f'{root}/{name}'))}, {_processes(name)} processes"
            yield Finding("warning", "leftover of a crashed session", f"{found}; --sweep removes it")


def _look(root: str) -> tuple[list[str], list[str]]:
    """Names of the living and of the dead sessions: the lock says which (moray.launch.session_directory)."""
    try:
        names = sorted(name for name in os.listdir(root) if name.startswith("session_"))
    except OSError:
        return [], []
    alive = [name for name in names if session_directory.is_alive(f"{root}/{name}")]
    return alive, [name for name in names if name not in alive]


def _sweep(temp_dir: str, root: str) -> Iterator[Finding]:
    swept = session_directory.sweep_stale(temp_dir)
    for name in swept:
        if os.path.exists(f"{root}/{name}"):
            yield Finding("warning", "leftover of a crashed session", f"{root}/{name} cannot be removed completely")
        else:
            yield Finding("ok", "leftover of a crashed session", f"{root}/{name} removed")
    if not swept:
        yield Finding("ok", "leftovers of crashed sessions", "none any more")


def _processes(session: str) -> int:
    return len(process_table.tagged(SESSION_VARIABLE, session))


def _tree_bytes(path: str) -> int:
    total = 0
    for folder, _folders, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(f"{folder}/{name}").st_size
            except OSError:
                continue  # It went meanwhile.
    return total
