"""What can be read about processes: children, sessions, threads, tags in the environment, memory.

Every function takes a process that may end at any moment: what cannot be read is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple


class ProcessStat(NamedTuple):
    """A few fields of ``/proc/PID/stat``."""

    pid: int
    #: One letter; "Z" is a zombie.
    state: str
    parent: int
    group: int
    session: int


def read_stat(pid: int) -> ProcessStat | None:
    """State, parent, group and session of a process; None if it is gone."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    # The name, in parentheses, may contain anything.
    fields = text[text.rindex(b")") + 2 :].split()
    return ProcessStat(pid, fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]))


def children(pid: int | None = None) -> list[int]:
    """Direct children of a process (default: this one), those of all its threads, zombies included."""
    of = "self" if pid is None else str(pid)
    try:
        threads = os.listdir(f"/proc/{of}/task")
    except OSError:
        return []
    found: list[int] = []
    for thread in threads:
        found += map(int, _read(f"/proc/{of}/task/{thread}/children").split())
    return found


def command_line(pid: int) -> list[str]:
    """What a process was started with; empty if it is gone, and for a zombie."""
    return _read(f"/proc/{pid}/cmdline").decode(errors="replace").split("\0")[:-1]


def thread_count() -> int:
    """Threads of this process, those of C libraries included."""
    return len(os.listdir("/proc/self/task"))


def tagged(name: str, value: str) -> list[int]:
    """Processes of this user that were started with `name`=`value` in their environment; not this one."""
    tag = f"{name}={value}".encode()
    return [pid for pid in _own_pids() if tag in _read(f"/proc/{pid}/environ").split(b"\0")]


def has_tag(pid: int, name: str, value: str) -> bool:
    """Whether a process was started with `name`=`value` in its environment."""
    return f"{name}={value}".encode() in environment(pid)


def environment(pid: int) -> frozenset[bytes]:
    """The environment that a process was started with, "name=value" each; empty for a zombie, and in an exec."""
    return frozenset(_read(f"/proc/{pid}/environ").split(b"\0")) - {b""}


def _own_pids() -> Iterator[int]:
    uid, me = os.getuid(), os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != me:
            try:
                if os.stat(f"/proc/{name}").st_uid == uid:
                    yield int(name)
            except OSError:
                continue


def proportional_memory(pid: int) -> int:
    """Bytes of memory of a process, shared pages divided among their users (PSS); 0 if it is gone."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def oom_kills() -> int:
    """How many processes the kernel's OOM killer has ended on this machine since it started."""
    for line in _read("/proc/vmstat").splitlines():
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return 0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""
