"""A worker's log files: rotation loses nothing and repeats nothing, whoever writes and whenever the worker dies."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moray.runtime.log_files import LogStream, rotation_settings, unsent
from tests.support.procs import wait_until

CAP = 2_000


class Log:
    """A file that is rotated, a descriptor that is it, and what was sent of it."""

    def __init__(self, directory: Path, backups: int = 3) -> None:
        self.path = str(directory / "worker.out")
        self.target = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.stream = LogStream("out", self.target, self.path, CAP, backups)
        self.sent: list[str] = []
        self.positions: list[int] = [0]

    def send(self, lines: list[str], position: int) -> None:
        self.sent += lines
        if position:
            self.mark(position)

    def mark(self, position: int) -> None:
        self.positions.append(position)

    def pump(self, last: bool = False) -> None:
        self.stream.pump(self.send, last)
        if self.stream.is_full():
            self.stream.rotate(self.send, self.mark)

    def close(self) -> None:
        for follower in [self.stream._current, *self.stream._older]:
            os.close(follower.fd)
        os.close(self.target)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path)
    yield made
    made.close()


def numbered(count: int, first: int = 0) -> list[str]:
    return [f"line {number} " + "." * (number % 50) for number in range(first, first + count)]


def test_rotation_keeps_the_cap_and_the_number_of_files(log: Log, tmp_path: Path) -> None:
    lines = numbered(1000)
    for line in lines:
        os.write(log.target, f"{line}\n".encode())
        log.pump()
    assert log.sent == lines
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["worker.out", "worker.out.1", "worker.out.2", "worker.out.3"]
    assert all((tmp_path / name).stat().st_size < CAP + 100 for name in files)
    kept = "".join((tmp_path / name).read_text() for name in (*reversed(files[1:]), files[0])).splitlines()
    assert kept == lines[-len(kept) :]
    assert log.positions == sorted(log.positions)


def test_descriptors_are_given_back(log: Log) -> None:
    def write(first: int) -> int:
        for line in numbered(200, first):
            os.write(log.target, f"{line}\n".encode())
            log.pump()
        log.pump()
        return len(os.listdir("/proc/self/fd"))

    assert write(0) == write(200) == write(400)


def test_without_old_files(tmp_path: Path) -> None:
    log = Log(tmp_path, backups=0)
    lines = numbered(500)
    for line in lines:
        os.write(log.target, f"{line}\n".encode())
        log.pump()
    assert log.sent == lines
    assert [path.name for path in tmp_path.iterdir()] == ["worker.out"]
    log.close()


def test_a_line_across_a_rotation_is_one_line(log: Log) -> None:
    os.write(log.target, b"a" * (CAP + 1))
    log.pump()
    assert os.path.getsize(log.path) == 0
    position = log.positions[-1]
    # Not sent yet: it would be read from the old file.
    assert unsent(log.path, position) == ["a" * (CAP + 1)]
    os.write(log.target, b"b" * 10)
    log.pump()
    assert unsent(log.path, log.stream.position()) == ["a" * (CAP + 1) + "b" * 10]
    os.write(log.target, b"\nnext\n")
    log.pump()
    assert log.sent == ["a" * (CAP + 1) + "b" * 10, "next"]
    assert unsent(log.path, log.stream.position()) == []


def test_a_line_longer_than_two_files(log: Log) -> None:
    for _ in range(5):
        os.write(log.target, b"a" * CAP)
        log.pump()
        assert unsent(log.path, log.stream.position()) == ["a" * sum(map(len, unsent(log.path, log.stream.position())))]
    assert sum(map(len, unsent(log.path, log.stream.position()))) == 5 * CAP
    os.write(log.target, b"\n")
    log.pump()
    assert log.sent == ["a" * 5 * CAP]


def test_a_child_goes_on_in_its_old_file(log: Log) -> None:
    """A child keeps the file that it inherited, however often its parent's is rotated."""
    code = "import sys\nfor line in sys.stdin: print('child', line, end='', flush=True)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log.target, text=True)
    assert child.stdin is not None
    expected = []
    for number in range(10):
        for line in numbered(100, number * 100):
            os.write(log.target, f"{line}\n".encode())
            log.pump()
        child.stdin.write(f"{number}\n")
        child.stdin.flush()
        expected.append(f"child {number}")

        def arrived(wanted: str = f"child {number}") -> bool:
            log.pump()
            return wanted in log.sent

        wait_until(arrived, what="the child's line")
    child.stdin.write("unended")
    child.stdin.close()
    child.wait()
    log.pump()
    assert [line for line in log.sent if "child" in line] == [*expected, "child unended"]
    assert [line for line in log.sent if "child" not in line] == numbered(1000)
    assert not log.stream._older


def test_what_is_unsent_is_known_at_each_step_of_a_rotation(log: Log) -> None:
    """Also while the old file has a writer, so that its unfinished line cannot go on in the new one."""
    holder = os.dup(log.target)
    os.write(log.target, b"x" * CAP + b"\nhalf")
    seen: list[tuple[bool, list[str]]] = []

    def look(position: int) -> None:
        seen.append((os.path.exists(log.path), unsent(log.path, position)))

    log.stream.pump(log.send)
    log.stream.rotate(log.send, look)
    assert seen == [(False, ["half"]), (True, ["half"])]
    os.write(holder, b" more\n")
    assert unsent(log.path, log.stream.position()) == ["half more"]
    os.close(holder)
    os.write(log.target, b"new\n")
    assert unsent(log.path, log.stream.position()) == ["half more", "new"]
    log.pump()
    assert log.sent[1:] == ["half more", "new"]
    assert unsent(log.path, log.stream.position()) == []


def test_user_code_that_saves_and_restores_the_descriptor(log: Log) -> None:
    saved = os.dup(log.target)
    os.write(log.target, b"x" * CAP + b"\n")
    log.pump()  # It is rotated: `saved` is the old file.
    os.dup2(saved, log.target)
    os.close(saved)
    os.write(log.target, b"into the old file\n")
    log.pump()
    os.write(log.target, b"into the new file\n")
    log.pump()
    assert log.sent[1:] == ["into the old file", "into the new file"]
    assert Path(log.path).read_text() == "into the new file\n"


def test_a_descriptor_that_user_code_redirected_is_left_alone(log: Log, tmp_path: Path) -> None:
    os.write(log.target, b"x" * (CAP + 1) + b"\n")
    saved = os.dup(log.target)
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    os.dup2(other, log.target)
    log.pump()
    assert os.path.samestat(os.fstat(log.target), os.fstat(other))
    os.dup2(saved, log.target)
    log.pump()
    assert Path(log.path).read_text() == ""
    os.close(other)
    os.close(saved)


def test_a_directory_that_cannot_be_written_ends_rotation_with_a_word(
    log: Log, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.write(log.target, b"x" * CAP + b"\n")
    os.rename(tmp_path, moved := tmp_path.with_name("moved"))
    log.pump()
    os.rename(moved, tmp_path)
    assert "cannot rotate" in capfd.readouterr().err
    os.write(log.target, b"more\n")
    log.pump()
    assert log.sent == ["x" * CAP, "more"]


def test_writers_and_rotation_at_once(tmp_path: Path) -> None:
    """Threads and a child write while another thread reads and rotates: each line arrives once, whole and in order."""
    log = Log(tmp_path, backups=2)
    code = "import os\nfor i in range(3000): os.write(1, f'child {i} {\".\" * (i % 40)}\\n'.encode())"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=log.target)

    def write(name: str) -> None:
        for number in range(3000):
            os.write(log.target, f"{name} {number} {'.' * (number % 40)}\n".encode())
            time.sleep(0.0001)  # So that the reader keeps up, and rotates often.

    threads = [threading.Thread(target=write, args=(f"thread{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    while child.poll() is None or any(thread.is_alive() for thread in threads):
        log.pump()
    log.pump()
    log.pump()
    for name in ("thread0", "thread1", "child"):
        found = [line for line in log.sent if line.startswith(f"{name} ")]
        assert found == [f"{name} {number} {'.' * (number % 40)}" for number in range(3000)]
    assert len(log.sent) == 9000
    assert log.stream.position() >> 41 > 5
    log.close()


# --- deaths -----------------------------------------------------------------------------------------------------

_DYING = """
import mmap, os, struct, sys
from moray.runtime.log_files import LogStream
path, mark_path = sys.argv[1:3]
target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
stream = LogStream("out", target, path, 2000, 3)
page = mmap.mmap(os.open(mark_path, os.O_RDWR), 8)
mark = lambda position: struct.pack_into("<Q", page, 0, position)
send = lambda lines, position: os.write(1, f"{position} {' '.join(lines)}\\n".encode())
number = 0
while True:
    os.write(target, f"<{number}>\\n".encode())
    number += 1
    if number % 7 == 0:
        os.write(target, b"<half")
        stream.pump(send)
        mark(stream.position())
        if stream.is_full():
            stream.rotate(send, mark)
        os.write(target, b">\\n")
"""


@pytest.mark.slow
def test_killed_at_any_moment_every_line_arrives_once(tmp_path: Path) -> None:
    """The driver's rule: the later of the mark and what arrived; then the files."""
    seed = random.randrange(1 << 32)
    delays = random.Random(seed)
    rotations = 0
    for round_ in range(25):
        path, mark_path = tmp_path / f"{round_}.out", tmp_path / f"{round_}.mark"
        mark_path.write_bytes(bytes(8))
        child = subprocess.Popen(
            [sys.executable, "-c", _DYING, str(path), str(mark_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(delays.random() * 0.05)  # The moment of death, not a wait for something.
        child.send_signal(signal.SIGKILL)
        messages = [first, *child.stdout.readlines()]
        child.stdout.close()
        child.wait()
        received = max(int(message.split()[0]) for message in messages)
        (marked,) = struct.unpack("<Q", mark_path.read_bytes())
        lines = [word for message in messages for word in message.split()[1:]] + unsent(
            str(path), max(received, marked)
        )
        numbers = [line for line in lines if line.strip("<>").isdigit()]
        assert numbers == [f"<{number}>" for number in range(len(numbers))], f"seed {seed}, round {round_}"
        halves = lines.count("<half>")
        assert halves in {len(numbers) // 7, len(numbers) // 7 - 1}, f"seed {seed}, round {round_}"
        rotations += received >> 41
    assert rotations > 25


def test_much_unsent_is_cut_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "worker.out"
    path.write_text("y" * 99 + "\n" + ("x" * 99 + "\n") * 20_000)
    lines = unsent(str(path), 100)
    assert sum(len(line) for line in lines) < 1 << 20
    assert lines[-1] == f"[{20_000 * 100 - (1 << 20)} bytes more are in {path}]"
    assert unsent(str(tmp_path / "none"), 0) == []


def test_settings() -> None:
    assert rotation_settings({}) == (64 << 20, 3)
    assert rotation_settings({"RAY_ROTATION_MAX_BYTES": "1000", "RAY_ROTATION_BACKUP_COUNT": "1"}) == (1000, 1)
    assert rotation_settings(
        {"MORAY_LOG_MAX_BYTES": "1MB", "MORAY_LOG_BACKUPS": "0", "RAY_ROTATION_MAX_BYTES": "7"}
    ) == (
        1_000_000,
        0,
    )
    with pytest.raises(ValueError, match="MORAY_LOG_BACKUPS=-1"):
        rotation_settings({"MORAY_LOG_BACKUPS": "-1"})
    with pytest.raises(ValueError, match="MORAY_LOG_MAX_BYTES='much'"):
        rotation_settings({"MORAY_LOG_MAX_BYTES": "much"})
