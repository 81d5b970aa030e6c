"""Processes of a session and the memory that they hold, read from /proc.

Memory of a set of processes is the sum of their PSS (a page shared by n processes counts 1/n in each) plus
the pages of shared-memory files (/dev/shm, memfd, unlinked or not) that PSS does not show: pages that were
allocated and that nobody has mapped, and the share that falls on processes outside the set, such
as the driver. A shared file is therefore counted once and in full, whoever touched it.

A session's processes are the descendants of its driver, and every process whose start environment carries the
session tag of one of those (a daemon may have left the tree).
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path

#: Set by moray in the environment of every process that it starts.
SESSION_TAG = "MORAY_SESSION"

#: Set by the harness in each measurement, so that everything that it started can be found.
RUN_TAG = "MORAY_BENCH_RUN"

_PROC = Path("/proc")
#: First line of a mapping in smaps: addresses, permissions, offset, device, inode, path.
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ (\S+) (\d+)\s*(.*)$")
_SHARED_PATHS = ("/dev/shm/", "/memfd:")


@dataclass
class Usage:
    """Memory of a set of processes, in bytes."""

    #: Sum of PSS.
    pss: int = 0
    #: Pages of shared-memory files beyond what PSS counts.
    unmapped_shared: int = 0
    processes: int = 0
    #: PSS by process name, for the reader who wonders where it goes.
    by_name: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.pss + self.unmapped_shared


def parents() -> dict[int, int]:
    """Parent of every process."""
    found = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            stat = _read(entry / "stat")
            if stat:
                found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def descendants(root: int) -> set[int]:
    """Every living process below `root`, without it."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def session_processes(driver: int, hint: str = "") -> set[int]:
    """The processes of `driver`'s session, without it. `hint`: text that holds the session's tag, if known."""
    below = descendants(driver)
    tags = {tag for pid in below if (tag := _variable(pid, SESSION_TAG))}
    for pid in parents():
        tag = _variable(pid, SESSION_TAG)
        if tag and pid != driver and (tag in tags or (hint and tag in hint)):
            below.add(pid)
    return below


def run_processes(run: str) -> set[int]:
    """Every living process of one measurement, wherever in the tree it went."""
    return {pid for pid in parents() if _variable(pid, RUN_TAG) == run}


def kill(pids: set[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def memory(pids: set[int]) -> Usage:
    usage = Usage()
    #: By (device, inode): what PSS of these processes shows of a shared file, and what the file really has.
    shown: dict[tuple[str, int], int] = {}
    allocated: dict[tuple[str, int], int] = {}
    for pid in pids:
        pss = _mappings(pid, shown)
        if pss is None:
            continue
        usage.processes += 1
        usage.pss += pss
        name = _read(_PROC / str(pid) / "comm").strip()
        usage.by_name[name] = usage.by_name.get(name, 0) + pss
        _open_shared_files(pid, allocated)
    usage.unmapped_shared = sum(max(0, size - shown.get(file, 0)) for file, size in allocated.items())
    return usage


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(_read(_PROC / "self" / "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _mappings(pid: int, shown: dict[tuple[str, int], int]) -> int | None:
    """PSS of `pid` in bytes; adds its part in each shared file to `shown`. None if the process is gone."""
    text = _read(_PROC / str(pid) / "smaps")
    if not text:
        return None
    total = 0
    file: tuple[str, int] | None = None
    for line in text.splitlines():
        if line.startswith("Pss:"):
            size = int(line.split()[1]) * 1024
            total += size
            if file is not None:
                shown[file] = shown.get(file, 0) + size
        elif match := _MAPPING.match(line):
            device, inode, path = match.groups()
            file = (_device(device), int(inode)) if path.startswith(_SHARED_PATHS) else None
    return total


def _device(smaps_device: str) -> str:
    major, minor = smaps_device.split(":")
    return f"{int(major, 16)}:{int(minor, 16)}"


def _open_shared_files(pid: int, allocated: dict[tuple[str, int], int]) -> None:
    try:
        entries = list((_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return
    for entry in entries:
        try:
            if os.readlink(entry).startswith(_SHARED_PATHS):
                stat = os.stat(entry)
                device = f"{os.major(stat.st_dev)}:{os.minor(stat.st_dev)}"
                allocated[device, stat.st_ino] = stat.st_blocks * 512
        except OSError:
            continue


def _variable(pid: int, wanted: str) -> str:
    """Value of a variable in the environment that `pid` started with; empty if it had none."""
    for entry in _read(_PROC / str(pid) / "environ").split("\0"):
        name, _, value = entry.partition("=")
        if name == wanted:
            return value
    return ""


def _read(path: Path) -> str:
    """Text of a file in /proc; empty when its process is gone or not ours to read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
