"""The store's server with a real arena, a real disk thread and real files."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moray.platform import machine
from moray.protocol.messages import AbortObject, CreateObject, ObjectCreated, PinObject, SealObject, StoreError
from tests.store.harness import Loop

A, B = b"process-aaaa", b"process-bbbb"
MIB = 1 << 20


def name(number: int) -> bytes:
    return b"%028d" % number


def data(number: int, size: int = MIB) -> bytes:
    return bytes([number % 251]) * size


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    with Loop(4 * MIB, tmp_path) as loop:
        yield loop


def test_put_get_free(loop: Loop) -> None:
    loop.put(A, name(1), data(1))
    view = loop.pin(B, name(1))
    assert view == data(1)
    assert loop["pins"] == {B.hex(): (1, MIB)}
    loop.free(name(1))
    assert loop["used_bytes"] == MIB
    del view
    loop.until(lambda: loop["used_bytes"] == 0)
    assert loop["objects"] == 0


def test_more_than_fits_is_spilled_and_comes_back(loop: Loop) -> None:
    for number in range(12):
        loop.put(A, name(number), data(number))
    assert loop["spilled_objects"] >= 8
    assert loop.files()
    for number in range(12):
        assert loop.pin(B, name(number)) == data(number)
    loop.free(*map(name, range(12)))
    loop.until(lambda: loop["objects"] == 0 and loop["used_bytes"] == 0 and not loop.files())


def test_many_small_objects_are_spilled_in_few_files(loop: Loop) -> None:
    for number in range(600):
        loop.put(A, name(number), data(number, 10_001))
    assert loop["spilled_objects"] > 100
    assert len(loop.files()) < 10
    for number in range(0, 600, 7):
        assert loop.pin(B, name(number)) == data(number, 10_001)


def test_what_is_all_pinned_sends_new_objects_to_files_with_one_warning(loop: Loop) -> None:
    """STORE-SPACE."""
    views = []
    for number in range(4):
        loop.put(A, name(number), data(number))
        views.append(loop.pin(B, name(number)))
    for number in range(4, 7):
        loop.put(A, name(number), data(number))
        views.append(loop.pin(B, name(number)))
    assert [bytes(view[:1]) for view in views] == [data(number, 1) for number in range(7)]
    assert len(loop.warnings) == 1
    assert loop["fallback_objects"] == 3
    loop.free(*map(name, range(7)))
    assert len(loop.files()) == 3
    views.clear()
    loop.until(lambda: loop["used_bytes"] == 0 and not loop.files())


def test_an_object_larger_than_the_arena(loop: Loop) -> None:
    loop.put(A, name(1), data(1, 9 * MIB))
    assert loop.pin(B, name(1)) == data(1, 9 * MIB)


def test_an_empty_object(loop: Loop) -> None:
    loop.put(A, name(1), b"")
    assert bytes(loop.pin(B, name(1))) == b""


def test_requests_that_make_no_sense_are_answered(loop: Loop) -> None:
    loop.put(A, name(1), data(1, 10))
    assert loop.ask(A, CreateObject, name(1), 10).code == "exists"
    assert loop.ask(A, CreateObject, name(2), -1).code == "full"
    assert loop.ask(A, SealObject, name(3)).code == "lost"
    assert loop.ask(A, PinObject, name(3)).code == "lost"
    loop.unpin(A, name(3))
    loop.free(name(3))
    loop.server.handle(A, AbortObject(name(3)))


def test_an_aborted_object_leaves_no_trace(loop: Loop) -> None:
    assert isinstance(loop.ask(A, CreateObject, name(1), MIB), ObjectCreated)
    loop.server.handle(A, AbortObject(name(1)))
    assert loop["used_bytes"] == 0


def test_a_large_arena_grows_outside_of_the_loop(tmp_path: Path) -> None:
    """And only as far as it is used: the idle store has no pages."""
    with Loop(1 << 40, tmp_path) as loop:
        assert os.fstat(loop.server.fd).st_blocks == 0
        loop.put(A, name(1), data(1, 20 * MIB))
        assert loop["backed_bytes"] == 20 * MIB
        assert os.fstat(loop.server.fd).st_blocks * 512 == 20 * MIB


def test_close_deletes_all_files(tmp_path: Path) -> None:
    with Loop(2 * MIB, tmp_path) as loop:
        for number in range(6):
            loop.put(A, name(number), data(number))
        assert loop.files()
    assert not loop.directory.exists()
    loop.server.close()


READER = """
import mmap, os, sys
fd, size, offset, length = map(int, sys.argv[1:])
arena = mmap.mmap(fd, size)
print(arena[offset : offset + length].hex(), flush=True)
sys.stdin.read()
"""


def test_a_killed_reader_holds_nothing(loop: Loop) -> None:
    """LIVENESS: its pins go with its death, and only then."""
    loop.put(A, name(1), b"to be read")
    pinned = loop.ask(B, PinObject, name(1))
    fd = loop.server.fd
    arguments = [str(value) for value in (fd, 4 * MIB, pinned.offset, pinned.size)]
    with subprocess.Popen(
        [sys.executable, "-c", READER, *arguments], pass_fds=(fd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert bytes.fromhex(reader.stdout.readline().decode()) == b"to be read"
        loop.free(name(1))
        assert loop["used_bytes"] == 64
        reader.kill()
        reader.wait()
    loop.server.process_died(B)
    assert loop["used_bytes"] == 0


def test_a_dead_writer_loses_its_region_and_its_waiters_hear_of_it(loop: Loop) -> None:
    """STORE-SEAL, LIVENESS."""
    loop.ask(A, CreateObject, name(1), MIB)
    loop.server.handle(B, PinObject(99, name(1)))
    assert (B, 99) not in loop.replies
    loop.server.process_died(A)
    answer = loop.replies[B, 99]
    assert isinstance(answer, StoreError)
    assert answer.code == "lost"
    assert loop["used_bytes"] == 0


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = tmp_path / "tiny"
    target.mkdir()
    if libc.mount(b"none", os.fsencode(target), b"tmpfs", 0, b"size=2m") != 0:
        pytest.skip(f"needs the right to mount a tmpfs: {os.strerror(ctypes.get_errno())}")
    yield target
    libc.umount2(os.fsencode(target), 2)


def test_a_full_disk_while_spilling(tiny_disk: Path) -> None:
    """STORE-SPACE: an error that says who holds what, no partial file, nothing lost; then it works again."""
    with Loop(4 * MIB, tiny_disk, spill_file_bytes=8 * MIB) as loop:
        filler = tiny_disk / "filler"
        filler.write_bytes(b"x" * (MIB + MIB // 2))
        for number in range(4):
            loop.put(A, name(number), data(number))
        view = loop.pin(B, name(3))
        refused = loop.ask(A, CreateObject, name(4), MIB)
        assert isinstance(refused, StoreError)
        assert refused.code == "full"
        assert "No space left on device [ENOSPC]" in refused.detail
        assert f"process {B.hex()} reads 1 objects of {MIB} bytes" in refused.detail
        assert loop.files() == []
        for number in range(4):
            assert loop.pin(A, name(number)) == data(number)
        del view
        filler.unlink()
        loop.put(A, name(4), data(4))
        for number in range(5):
            assert loop.pin(A, name(number)) == data(number)


def test_memory_that_the_machine_does_not_have_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the kernel ends processes to find it: an anonymous memory file has no limit of its own (STORE-SPACE)."""
    monkeypatch.setattr(machine, "memory_used", lambda: machine.memory_total() - MIB)
    with Loop(64 * MIB, tmp_path) as loop:
        loop.put(A, name(1), data(1, 8 * MIB))
        assert os.fstat(loop.server.fd).st_blocks * 512 < MIB, "it lies in a file of its own"
        assert loop.pin(B, name(1)) == data(1, 8 * MIB)
        monkeypatch.undo()
        for number in range(2, 40):  # It is not asked each time.
            loop.put(A, name(number), data(number, 8 * MIB))
            loop.free(name(number))
        assert os.fstat(loop.server.fd).st_blocks * 512 >= 8 * MIB, "there is memory again"
