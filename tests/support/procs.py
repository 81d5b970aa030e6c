"""Real processes for tests: driver programs as subprocesses, and what a session leaves behind.

A test that must kill, interrupt or limit a driver runs it as a program of its own. Every process of
a session carries ``MORAY_SESSION=<session name>`` in its environment; drivers started here also carry
``MORAY_TEST_DRIVER=<random>``, which everything that descends from them inherits, so that a session
can be counted even if its driver died before it could say its name.

Nothing here sleeps for luck: :func:`wait_until` polls a condition up to a deadline.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

#: The environment variable in every process of a moray session.
SESSION_VARIABLE = "MORAY_SESSION"
#: The environment variable in every driver started here, and in all that descends from it.
DRIVER_VARIABLE = "MORAY_TEST_DRIVER"
#: How long a driver program may take before the test gives up on it.
DRIVER_TIMEOUT_S = 60.0
#: How long a session may take to end after its driver.
END_GRACE_S = 2.0


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0, what: str = "the condition") -> None:
    """Polls `condition` until it holds; fails the test with `what` when `timeout_s` is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {timeout_s:g} s")
        time.sleep(0.01)


def poll_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Like :func:`wait_until`, for tests that explain the failure themselves."""
    with contextlib.suppress(AssertionError):
        wait_until(condition, timeout_s)
    return condition()


# --- driver programs ------------------------------------------------------------------------------


def driver_environment(tag: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a driver program: this process's, without a session of its own."""
    environment = {k: v for k, v in os.environ.items() if k != SESSION_VARIABLE}
    environment[DRIVER_VARIABLE] = tag
    return environment | dict(extra or {})


def run_driver(
    code: str,
    *,
    timeout_s: float = DRIVER_TIMEOUT_S,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    argv: Sequence[str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Runs `code` as a program and returns what it wrote.

    `argv` are the interpreter's arguments when the program is not to be a script file, such as
    ``["-c", code]``. With `check`, a failing program fails the test with all of its output, and so do
    processes that it left behind.
    """
    tag = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="moray-test-") as directory:
        arguments = list(argv) if argv is not None else [_write_program(code, Path(directory))]
        try:
            finished = subprocess.run(
                [sys.executable, "-u", *arguments],
                capture_output=True,
                text=True,
                timeout=timeout_s,
                env=driver_environment(tag, env),
                cwd=cwd or directory,
                check=False,
            )
        finally:
            left = end_processes(processes_with(DRIVER_VARIABLE, tag))
    if check and left:
        raise AssertionError(f"{left} processes outlived the driver program by more than {END_GRACE_S:g} s")
    if check and finished.returncode != 0:
        raise AssertionError(
            f"the driver program ended with {finished.returncode}\n"
            f"--- stdout\n{finished.stdout}\n--- stderr\n{finished.stderr}"
        )
    return finished


@dataclass
class Driver:
    """A running driver program; its stdout is read line by line in the background."""

    #: The program itself.
    process: subprocess.Popen[str]
    #: Value of :data:`DRIVER_VARIABLE` in it and its descendants.
    tag: str
    #: Its temporary directory: script, and TMPDIR of everything it starts.
    directory: Path
    #: All lines it wrote so far.
    lines: list[str] = field(default_factory=list)
    #: Lines that no :meth:`wait_line` has looked at; None is the end of the stream.
    unread: queue.Queue[str | None] = field(default_factory=queue.Queue)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_line(self, prefix: str, timeout_s: float = 20.0) -> str:
        """The rest of the first unread line that starts with `prefix`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self.unread.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line {prefix!r} within {timeout_s:g} s: {self.lines}") from None
            if line is None:
                raise AssertionError(f"the driver ended without a line {prefix!r}: {self.output()}")
            if line.startswith(prefix):
                return line.removeprefix(prefix).strip()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        return self.process.wait(timeout_s)

    def output(self) -> str:
        """All that it wrote to stdout so far, and to stderr."""
        return "\n".join([*self.lines, (self.directory / "stderr").read_text(errors="replace")])

    def descendants(self) -> list[int]:
        """Living processes that descend from it, itself excluded."""
        return [pid for pid in processes_with(DRIVER_VARIABLE, self.tag) if pid != self.pid]


@contextlib.contextmanager
def spawn_driver(code: str, *, env: Mapping[str, str] | None = None) -> Iterator[Driver]:
    """Starts `code` as a program; at the end of the block it and all its descendants are killed."""
    tag = uuid.uuid4().hex
    directory = Path(tempfile.mkdtemp(prefix="mt-", dir="/tmp"))
    temporary = directory / "t"
    temporary.mkdir()
    with (directory / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-u", _write_program(code, directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=driver_environment(tag, {"TMPDIR": str(temporary), **(env or {})}),
            cwd=directory,
        )
    assert process.stdout is not None
    driver = Driver(process, tag, directory)
    reader = threading.Thread(target=_read_lines, args=(process.stdout, driver), daemon=True)
    reader.start()
    try:
        yield driver
    finally:
        process.kill()
        process.wait()
        end_processes(driver.descendants())
        reader.join(5.0)
        process.stdout.close()
        shutil.rmtree(directory, ignore_errors=True)


def _write_program(code: str, directory: Path) -> str:
    program = directory / "program.py"
    program.write_text(textwrap.dedent(code))
    return str(program)


def _read_lines(stream: IO[str], driver: Driver) -> None:
    for line in stream:
        driver.lines.append(line.rstrip("\n"))
        driver.unread.put(line.rstrip("\n"))
    driver.unread.put(None)


# --- what a session consists of -------------------------------------------------------------------


def spill_directory(session_dir: str | Path) -> Path:
    """Where a session spills to, unless it was told otherwise."""
    return Path(session_dir) / "spill"


def stored_bytes(directory: Path) -> int:
    """Bytes of all files under `directory`, which may be changing or not be there."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def processes_with(variable: str, value: str) -> list[int]:
    """Living processes that have ``variable=value`` in the environment they were started with."""
    wanted = f"{variable}={value}".encode()
    return [pid for pid in _all_pids() if wanted in _read(f"/proc/{pid}/environ").split(b"\0")]


def session_processes(session: str) -> list[int]:
    """Every process of the session: node, template, workers, and what its tasks started."""
    return processes_with(SESSION_VARIABLE, session)


def session_leftovers(session: str, session_dir: str | Path) -> list[str]:
    """What is left of a session, one line each: processes, mappings, shared memory, directory."""
    left = [f"process {pid}: {command_line(pid)}" for pid in session_processes(session)]
    left += [f"mapping in process {pid}" for pid in _all_pids() if session.encode() in _read(f"/proc/{pid}/maps")]
    left += [f"shared memory {path}" for path in Path("/dev/shm").iterdir() if session in path.name]
    left += [f"directory {session_dir}"] if Path(session_dir).exists() else []
    return left


def command_line(pid: int) -> str:
    return _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def anonymous_bytes(pid: int) -> int:
    """Memory that belongs to this process alone; pages of shared memory do not count."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Anonymous:"):
            return int(line.split()[1]) * 1024
    return 0


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    stat = _read(f"/proc/{pid}/stat")
    return bool(stat) and stat.rpartition(b")")[2].split()[0] != b"Z"


def end_processes(pids: Sequence[int], grace_s: float = END_GRACE_S) -> int:
    """Kills those that are still there after `grace_s`, and says how many; all belong to the caller's test."""
    poll_until(lambda: not any(map(is_alive, pids)), grace_s)
    left = [pid for pid in pids if is_alive(pid)]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(path: str) -> bytes:
    """A file of /proc; empty when the process is gone, a zombie, or somebody else's."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
