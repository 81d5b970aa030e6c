"""`moray doctor` finds what crashed sessions left, sweeps that and nothing else, and says what the machine lacks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import command
from tests.support.procs import Driver, session_processes, spawn_driver, wait_until

#: A session that lives until its driver is killed.
PROGRAM = """
    import moray, time
    context = moray.init(num_cpus=1)
    moray.get(moray.remote(abs).remote(1))
    print("session", context["session_dir"], flush=True)
    time.sleep(100)
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for sessions with a short name: sockets have short paths."""
    path = Path(tempfile.mkdtemp(prefix="md-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def living_session(temporary: Path) -> Iterator[tuple[Driver, Path]]:
    with spawn_driver(PROGRAM, env={"TMPDIR": str(temporary)}) as driver:
        yield driver, Path(driver.wait_line("session "))
    name = driver.lines[0].rpartition("/")[2]
    wait_until(lambda: not session_processes(name), what="the end of the session")


def crash(temporary: Path) -> Path:
    """A session whose driver and node are killed at once; its directory."""
    with living_session(temporary) as (driver, directory):
        driver.send(signal.SIGSTOP)  # It must not clean up after its node.
        for pid in session_processes(directory.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert directory.exists()
    return directory


def findings(*arguments: str, temporary: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(command("doctor", "--json", *arguments, env=env(temporary)).stdout)
    return found


def env(temporary: Path) -> dict[str, str]:
    return {"TMPDIR": str(temporary)}


def about(found: list[dict[str, str]], name: str) -> list[str]:
    return [f"{finding['state']}: {finding['what']}" for finding in found if name in finding["found"]]


@pytest.mark.slow
def test_crashed_session_is_found_and_swept_and_a_living_one_stays(temporary: Path) -> None:
    with living_session(temporary) as (driver, living):
        dead = crash(temporary)
        found = findings(temporary=temporary)
        assert about(found, dead.name) == ["warning: leftover of a crashed session"]
        assert about(found, living.name) == ["note: living session"]
        assert dead.exists()

        swept = findings("--sweep", temporary=temporary)
        assert about(swept, dead.name) == ["ok: leftover of a crashed session"]
        assert about(swept, living.name) == ["note: living session"]
        assert not dead.exists()
        assert living.exists()
        assert session_processes(living.name)
        assert driver.process.poll() is None

        again = findings("--sweep", temporary=temporary)
        assert about(again, "none") == ["ok: leftovers of crashed sessions"]


def test_temp_dir(temporary: Path) -> None:
    dead = crash(temporary)
    found = json.loads(command("doctor", "--json", "--temp-dir", str(temporary)).stdout)
    assert about(found, dead.name) == ["warning: leftover of a crashed session"]


def test_machine(temporary: Path) -> None:
    found = {finding["what"]: finding for finding in findings(temporary=temporary)}
    names = [
        "moray", "Python", "kernel", "CPUs", "memory", "open files (ulimit -n)", "/dev/shm",
        "pidfd_open", "memfd_create and fallocate", "eventfd", "directory of sessions", "leftovers of crashed sessions",
    ]  # fmt: skip
    assert not set(names) - set(found)
    assert all(finding["state"] != "missing" for finding in found.values())
    assert str(temporary) in found["directory of sessions"]["found"]


def test_low_limit_of_files_is_a_warning(temporary: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
    code += "import sys; sys.argv[:] = ['moray', 'doctor', '--json']; from moray.cli import main; main()"
    found = json.loads(command("run", "-c", code, env=env(temporary)).stdout)
    (limit,) = [finding for finding in found if finding["what"].startswith("open files")]
    assert limit["state"] == "warning"
    assert "256" in limit["found"]


def test_directory_that_is_not_there(temporary: Path) -> None:
    finished = command("doctor", "--json", "--temp-dir", str(temporary / "no"), check=False)
    assert finished.returncode == 1
    (missing,) = [finding for finding in json.loads(finished.stdout) if finding["state"] == "missing"]
    assert missing["what"] == "directory of sessions"


def test_for_people(temporary: Path) -> None:
    text = command("doctor", env=env(temporary)).stdout
    assert text.splitlines()[0] == "state\twhat\tfound"
    assert "\x1b" not in text


def test_directory_that_others_may_write(temporary: Path) -> None:
    root = temporary / f"moray-{os.getuid()}"
    root.mkdir(mode=0o700)
    root.chmod(0o755)
    finished = command("doctor", "--json", env=env(temporary), check=False)
    (missing,) = [finding for finding in json.loads(finished.stdout) if finding["state"] == "missing"]
    assert (finished.returncode, "drwxr-xr-x" in missing["found"]) == (1, True)
