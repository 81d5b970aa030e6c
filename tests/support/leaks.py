"""What a test left behind: processes, threads, sockets, shared memory, session directories.

A :class:`Snapshot` lists everything of that kind which this process holds, or which this run of pytest
started anywhere on the machine. The fixtures of ``tests/conftest.py`` take one before each test and one
after it; what is new is a leak, once :func:`leaks_since` has given it time to go (ends are asynchronous)
and has collected garbage (a failed test's traceback may hold references, which hold memory).

Processes are found in two ways, because either alone misses some: direct children (zombies too), and all
that carry :data:`RUN_VARIABLE` in their environment, however often they were reparented. Entries of
``/dev/shm`` and of the temporary directory may belong to another run on the same machine; they do not
count while a process that is not ours names them, or while the one lives that is named in theirs: who makes a session's
directory does so before anybody is started who would name it.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: In the environment of everything that this run of pytest starts.
RUN_VARIABLE: Final = "MORAY_TEST_RUN"
#: How long an end may take before what is left counts as a leak.
GRACE_S: Final = 5.0

#: Kinds of file descriptors that a session opens; pipes and plain files are Python's ResourceWarning's.
_DESCRIPTORS: Final = ("socket:", "anon_inode:[event", "anon_inode:[pidfd", "/memfd:moray", "/dev/shm/moray")
#: Mappings that a session makes.
_MAPPINGS: Final = (b"/memfd:moray", b"/dev/shm/moray")
#: Helpers of the standard library that live until the interpreter ends.
_LASTING_PROCESSES: Final = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
#: What names of entries end in: the process that made it, and for sessions something random.
_MAKER: Final = re.compile(r"[_-](\d+)(?:_[0-9a-f]{4})?$")
#: Threads of the test tools.
_TOOL_THREADS: Final = ("pytest_timeout",)


@dataclass(frozen=True)
class Snapshot:
    """All that is held, each thing by a line that names it; the lines are unique."""

    #: Processes that descend from this run.
    processes: frozenset[str] = frozenset()
    #: Python threads of this process.
    threads: frozenset[str] = frozenset()
    #: Sockets, event and process descriptors of this process.
    descriptors: frozenset[str] = frozenset()
    #: Shared memory mapped here.
    mappings: frozenset[str] = frozenset()
    #: Names in /dev/shm, and session directories.
    entries: frozenset[str] = frozenset()

    def all(self) -> frozenset[str]:
        return self.processes | self.threads | self.descriptors | self.mappings | self.entries


def mark_run() -> None:
    """Marks what this run starts; once, before anything is started.

    The mark lies in the environment, which children inherit. One of several processes that share the tests has a
    mark and a temporary folder of its own, so that it does not take what another one starts for its own leaks.
    """
    mark = os.environ.setdefault(RUN_VARIABLE, uuid.uuid4().hex)
    share = os.environ.get("PYTEST_XDIST_WORKER")
    # A pytest that a test starts inherits both, and goes on with what is there.
    if share is not None and not mark.endswith(f"-{share}"):
        os.environ[RUN_VARIABLE] = f"{mark}-{share}"
        _own_temporary_folder()


def _own_temporary_folder() -> None:
    """Gives this process a temporary folder that goes with it."""
    # The name is short: sockets lie below it, and their paths have at most 107 bytes.
    folder = tempfile.mkdtemp(prefix="mt-")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    atexit.register(_remove_of, os.getpid(), folder)


def _remove_of(owner: int, folder: str) -> None:
    """Not in a process that was forked from the one which made it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def take_snapshot() -> Snapshot:
    return Snapshot(
        processes=frozenset(_processes()),
        threads=frozenset(_threads()),
        descriptors=frozenset(_descriptors()),
        mappings=frozenset(_mappings()),
        entries=frozenset(_entries()),
    )


def leaks_since(before: frozenset[str], grace_s: float = GRACE_S) -> list[str]:
    """Lines for what is here now, was not in `before`, and does not go away within `grace_s`. What was seen in one look
    only counts for nothing: on a busy machine a look takes long, and others come and go."""
    if not take_snapshot().all() - before:
        return []
    deadline = time.monotonic() + grace_s
    seen: set[str] = set()
    while True:
        gc.collect()
        left = {line for line in take_snapshot().all() - before if not _is_foreign(line)}
        if not left or (left & seen and time.monotonic() > deadline):
            return sorted(left & seen)
        seen = left
        time.sleep(0.02)


# --- what there is ------------------------------------------------------------------------------


def _processes() -> Iterator[str]:
    for pid in _children() | set(_marked()):
        command = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").strip()
        if not any(name in command for name in _LASTING_PROCESSES):
            yield f"process {pid} {command.decode(errors='replace')[:160] or '(zombie)'}"


def _children() -> set[int]:
    """Direct children of every thread of this process, zombies included."""
    pids: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        pids.update(map(int, _read(f"/proc/self/task/{thread}/children").split()))
    return pids


def _marked() -> Iterator[int]:
    mark = f"{RUN_VARIABLE}={os.environ.get(RUN_VARIABLE)}".encode()
    for pid in _pids():
        if mark in _read(f"/proc/{pid}/environ") and pid != os.getpid():
            yield pid


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.name.startswith(_TOOL_THREADS):
            yield f"thread {thread.name} ({thread.ident})"


def _descriptors() -> Iterator[str]:
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith(_DESCRIPTORS):
            yield f"descriptor {number} of {target}"


def _mappings() -> Iterator[str]:
    maps = _read("/proc/self/maps")
    if not any(name in maps for name in _MAPPINGS):
        return  # It is long, and this is done before and after each test.
    for line in maps.splitlines():
        if any(name in line for name in _MAPPINGS):
            yield f"mapping {line.decode(errors='replace')}"


def _entries() -> Iterator[str]:
    """Shared memory, and what lies in this user's folder of sessions; the folder itself stays."""
    for name in os.listdir("/dev/shm"):
        if name.startswith("moray"):
            yield f"entry /dev/shm/{name}"
    sessions = Path(tempfile.gettempdir()) / f"moray-{os.getuid()}"
    if sessions.is_dir():
        for name in os.listdir(sessions):
            yield f"entry {sessions / name}"


# --- whose it is ----------------------------------------------------------------------------------


def _is_foreign(line: str) -> bool:
    """Whether an entry of a shared folder was made by, or is in use by, a process that this run did not start."""
    kind, _, path = line.partition(" ")
    if kind != "entry":
        return False
    name = Path(path).name
    ours = {os.getpid(), *_children(), *_marked()}
    others = [pid for pid in _pids() if pid not in ours]
    made_by = _MAKER.search(name)
    if made_by is not None and int(made_by[1]) in others:
        return True
    return any(name.encode() in text for pid in others for text in _texts(pid))


def _texts(pid: int) -> Iterable[bytes]:
    return (_read(f"/proc/{pid}/{name}") for name in ("environ", "cmdline", "maps"))


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(path: str) -> bytes:
    """A file of /proc; empty when the process is gone or somebody else's."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
