"""However a node ends, its driver learns why; and nobody ends one by mistake (LIVENESS)."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moray.launch import session_directory
from moray.launch.config import SESSION_VARIABLE
from tests.support.procs import spawn_driver

PROGRAM = """
import os, signal, time
import moray
from moray.runtime import state
moray.init(num_cpus=1)
waiting = moray.remote(lambda: time.sleep(1000)).remote()
os.kill(state.runtime.handle.pid, signal.{signal})
try:
    moray.get(waiting, timeout=20)
except Exception as error:
    print("outcome", type(error).__name__, str(error).replace(chr(10), " | "))
begin = time.monotonic()
moray.shutdown()
print("shutdown", time.monotonic() - begin)
"""


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("SIGTERM", ["the node was told to end (SIGTERM)"]),
        ("SIGKILL", ["killed by SIGKILL", "job 1: driver"]),
        ("SIGSEGV", ["killed by SIGSEGV", "Fatal Python error", "in turn"]),
    ],
)
def test_the_error_says_how_the_node_ended(number: str, said: list[str]) -> None:
    with spawn_driver(PROGRAM.format(signal=number)) as driver:
        outcome = driver.wait_line("outcome", timeout_s=30)
        assert outcome.startswith("LocalNodeDiedError")
        for words in said:
            assert words in outcome
        assert float(driver.wait_line("shutdown", timeout_s=30)) < 5
        assert driver.wait() == 0


@pytest.fixture
def session(tmp_path: Path) -> Iterator[str]:
    """A session's directory, whose lock this process has."""
    root = session_directory.root_directory(str(tmp_path))
    path = session_directory.new_path(root, os.getpid())
    lock = session_directory.create(path)
    yield path
    os.close(lock)


def test_who_has_no_descriptor_left_takes_no_session_for_dead(session: str, tmp_path: Path) -> None:
    """What is dead is swept, its processes too."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/", os.O_RDONLY)
        alive = session_directory.is_alive(session)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert alive
    assert session_directory.sweep_stale(str(tmp_path)) == []


def test_a_node_that_removes_its_session_is_not_swept(
    session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock goes with the directory, some time before the node itself."""
    name = os.path.basename(session)
    node = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(100)"], env={**os.environ, SESSION_VARIABLE: name}
    )
    swept: list[str] = []
    remove = os.unlink

    def unlink(path: str) -> None:
        """Others start sessions at each moment of the removal."""
        swept.extend(session_directory.sweep_stale(str(tmp_path)))
        remove(path)
        swept.extend(session_directory.sweep_stale(str(tmp_path)))

    try:
        monkeypatch.setattr(os, "unlink", unlink)
        session_directory.remove_session(session)
        monkeypatch.undo()
        assert swept == []
        assert node.poll() is None
        assert not os.path.exists(os.path.dirname(session))
    finally:
        node.send_signal(signal.SIGKILL)
        node.wait()
