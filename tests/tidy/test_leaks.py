"""The net under the other tests has no holes: each kind of leak is seen, and its end too."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support import leaks as support
from tests.support.leaks import RUN_VARIABLE, Snapshot, leaks_since, take_snapshot
from tests.support.procs import wait_until


@pytest.fixture(autouse=True)
def _own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the machine's, whoever starts a session removes directories of sessions that have no node, as ours here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


@contextmanager
def _process() -> Iterator[None]:
    with subprocess.Popen(SLEEPER) as process:
        yield
        process.kill()


@contextmanager
def _zombie() -> Iterator[None]:
    with subprocess.Popen(SLEEPER) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield


@contextmanager
def _orphan() -> Iterator[None]:
    """A process whose parent is gone: only the mark in its environment tells that it is ours."""
    pid = _start_orphan(None)
    yield
    os.kill(pid, signal.SIGKILL)


def _start_orphan(environment: dict[str, str] | None) -> int:
    code = f"import subprocess; print(subprocess.Popen({SLEEPER!r}, stdout=-3, stderr=-3).pid)"
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    return int(made.stdout)


@contextmanager
def _thread() -> Iterator[None]:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="left-over")
    thread.start()
    yield
    over.set()
    thread.join()


@contextmanager
def _socket() -> Iterator[None]:
    with socket.socket(socket.AF_UNIX):
        yield


@contextmanager
def _eventfd() -> Iterator[None]:
    descriptor = os.eventfd(0)
    yield
    os.close(descriptor)


@contextmanager
def _mapping() -> Iterator[None]:
    """Memory of a session whose descriptor is closed already."""
    descriptor = os.memfd_create("moray-test")
    os.ftruncate(descriptor, mmap.PAGESIZE)
    mapping = mmap.mmap(descriptor, mmap.PAGESIZE)
    os.close(descriptor)
    yield
    mapping.close()


@contextmanager
def _shared_memory() -> Iterator[None]:
    path = Path(f"/dev/shm/moray-leak-{os.getpid()}")
    path.touch()
    yield
    path.unlink()


@contextmanager
def _session_directory() -> Iterator[None]:
    path = _session_path("leak")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir()
    yield
    path.rmdir()


KINDS = [
    (_process, "process"),
    (_zombie, "process"),
    (_orphan, "process"),
    (_thread, "thread left-over"),
    (_socket, "descriptor"),
    (_eventfd, "descriptor"),
    (_mapping, "mapping"),
    (_shared_memory, "entry /dev/shm/moray"),
    (_session_directory, "entry {temporary}/moray-"),
]


@pytest.mark.parametrize(("kind", "line"), KINDS, ids=[kind.__name__.strip("_") for kind, _ in KINDS])
def test_leak_is_seen_and_so_is_its_end(kind: Callable[[], AbstractContextManager[None]], line: str) -> None:
    before = take_snapshot().all()
    with kind():
        left = leaks_since(before, grace_s=0.0)
    assert left
    assert any(text.startswith(line.format(temporary=tempfile.gettempdir())) for text in left), left
    assert leaks_since(before) == []


def test_foreign_sessions_are_not_ours() -> None:
    """A directory in use by a process without our mark belongs to somebody else's run."""
    before = take_snapshot().all()
    path = _session_path("foreign")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
    code = f"import os, time; os.fork() and os._exit(0); time.sleep(60); {str(path)!r}"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    try:
        left = leaks_since(before, grace_s=0.0)
    finally:
        path.rmdir()
        for process in Path("/proc").glob("[0-9]*"):
            if str(path).encode() in _bytes(process / "cmdline"):
                os.kill(int(process.name), signal.SIGKILL)
    assert left == []


def test_a_session_that_another_run_begins_is_not_ours() -> None:
    """Its directory is there before any process that names it, and is named after who makes it."""
    before = take_snapshot().all()
    environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
    maker = _start_orphan(environment)
    path = _session_path("begun").with_name(f"session_begun_{maker}_00ff")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir()
    try:
        assert leaks_since(before, grace_s=0.0) == []
        os.kill(maker, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{maker}").exists())
        assert leaks_since(before, grace_s=0.0) == [f"entry {path}"], "nobody's any more"
    finally:
        path.rmdir()


def test_what_comes_and_goes_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a look takes longer than all the grace."""
    looks = iter([Snapshot(threads=frozenset(names)) for names in (["a"], ["a"], ["b"], ["c"], ["c", "d"])])
    monkeypatch.setattr(support, "take_snapshot", lambda: next(looks))
    assert leaks_since(frozenset(), grace_s=0.0) == ["c"]


def _session_path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"moray-{os.getuid()}" / f"session_{name}_{os.getpid()}"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
