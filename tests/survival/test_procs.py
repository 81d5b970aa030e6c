"""The helpers that the other tests of this folder count with: they must see what is there."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.procs import (
    SESSION_VARIABLE,
    anonymous_bytes,
    is_alive,
    run_driver,
    session_leftovers,
    session_processes,
    spawn_driver,
    stored_bytes,
    wait_until,
)


def test_run_driver_returns_output() -> None:
    finished = run_driver("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert (finished.stdout, finished.stderr) == ("out\n", "err\n")


def test_run_driver_reports_failure_with_output() -> None:
    with pytest.raises(AssertionError, match="said before"):
        run_driver("print('said before')\nraise SystemExit(3)")
    assert run_driver("raise SystemExit(3)", check=False).returncode == 3


def test_run_driver_reports_processes_left_behind() -> None:
    with pytest.raises(AssertionError, match="1 processes outlived"):
        run_driver(
            "import subprocess; subprocess.Popen(['sleep', '100'], start_new_session=True, stdout=-3, stderr=-3)"
        )


def test_spawned_driver_is_read_and_killed() -> None:
    program = "import subprocess, time\nprint('child', subprocess.Popen(['sleep', '100']).pid)\ntime.sleep(100)"
    with spawn_driver(program) as driver:
        child = int(driver.wait_line("child"))
        wait_until(lambda: child in driver.descendants(), what="the child among the descendants")
    assert not is_alive(driver.pid)
    wait_until(lambda: not is_alive(child))


def test_line_that_never_comes() -> None:
    with spawn_driver("print('something else')") as driver, pytest.raises(AssertionError, match="something else"):
        driver.wait_line("wanted")


def test_session_is_counted(tmp_path: Path) -> None:
    name = f"session-of-{os.getpid()}"
    memory = Path(f"/dev/shm/{name}")
    memory.touch()
    process = subprocess.Popen(["sleep", "100"], env=os.environ | {SESSION_VARIABLE: name})
    try:
        wait_until(lambda: session_processes(name) == [process.pid])
        kinds = {line.split()[0] for line in session_leftovers(name, tmp_path)}
        assert kinds == {"process", "shared", "directory"}
    finally:
        process.kill()
        process.wait()
        memory.unlink()
    assert session_leftovers(name, tmp_path / "gone") == []


def test_mapping_is_counted(tmp_path: Path) -> None:
    name = f"mapped-{os.getpid()}"
    program = f"""
import mmap, os, sys
fd = os.memfd_create({name!r})
os.ftruncate(fd, 4096)
mapped = mmap.mmap(fd, 4096)
print("mapped", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert session_leftovers(name, tmp_path / "none") == [f"mapping in process {process.pid}"]


def test_zombie_is_not_alive() -> None:
    process = subprocess.Popen(["true"])
    wait_until(lambda: not is_alive(process.pid))
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_memory_of_this_process_is_measured() -> None:
    before = anonymous_bytes(os.getpid())
    # Not from the heap, which may have room for it that was in use before.
    with mmap.mmap(-1, 20_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(os.urandom(20_000_000))
        assert anonymous_bytes(os.getpid()) - before > 15_000_000


def test_stored_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(bytes(5))
    assert stored_bytes(tmp_path) == 15
    assert stored_bytes(tmp_path / "missing") == 0
