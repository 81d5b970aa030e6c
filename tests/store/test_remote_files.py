"""Spilling to URLs: memory://, other directories, and a service that speaks S3."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moray.protocol.messages import CreateObject, ObjectPinned, PinObject, StoreError
from moray.store.remote_files import RemoteFiles
from tests.store.harness import Loop

fsspec = pytest.importorskip("fsspec")

MIB = 1 << 20
ROOT = Path(__file__).parents[2]
A = b"process-a---"


def name(number: int) -> bytes:
    return bytes([number]) * 28


def contents(count: int) -> list[bytes]:
    return [os.urandom(MIB - number) for number in range(count)]


@pytest.fixture(name="url")
def _url(tmp_path: Path) -> Iterator[str]:
    url = f"memory://{tmp_path.name}/spilled"
    yield url
    fsspec.filesystem("memory").store.clear()


def stored(url: str) -> list[str]:
    system, root = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    return list(system.find(root)) if system.exists(root) else []


def loop_of(tmp_path: Path, *targets: str, arena: int = 4 * MIB) -> Loop:
    return Loop(arena, tmp_path, targets=targets)


def test_objects_go_to_a_url_and_come_back_and_are_deleted(tmp_path: Path, url: str) -> None:
    data = contents(12)
    with loop_of(tmp_path, url) as loop:
        for number, each in enumerate(data):
            loop.put(A, name(number), each)
        assert loop["spilled_objects"] > 4
        assert stored(url)
        assert loop.files() == []
        for _ in range(2):
            for number, each in enumerate(data):
                assert bytes(loop.pin(A, name(number))) == each
        loop.free(*map(name, range(12)))
        loop.until(lambda: not stored(url))
        assert not loop.warnings


def test_the_end_of_the_session_deletes_everything(tmp_path: Path, url: str) -> None:
    with loop_of(tmp_path, url) as loop:
        for number, each in enumerate(contents(8)):
            loop.put(A, name(number), each)
        assert stored(url)
    assert not stored(url)


def test_what_finds_no_room_is_read_from_a_local_file(tmp_path: Path, url: str) -> None:
    """STORE-SPACE: everything else is pinned."""
    data = contents(7)
    with loop_of(tmp_path, url) as loop:
        for number, each in enumerate(data):
            loop.put(A, name(number), each)
        views = [loop.pin(A, name(number)) for number in range(7)]
        assert [bytes(view) for view in views] == data
        assert [file for file in loop.files() if file.startswith("fetched-")]
        del views
        loop.free(*map(name, range(7)))
        loop.until(lambda: not stored(url) and not loop.files())


def test_several_targets_take_turns(tmp_path: Path, url: str) -> None:
    other = tmp_path / "other"
    data = contents(12)
    with loop_of(tmp_path, url, f"file://{other}") as loop:
        for number, each in enumerate(data):
            loop.put(A, name(number), each)
        assert stored(url)
        assert os.listdir(other)
        assert [bytes(loop.pin(A, name(number))) for number in range(12)] == data
    assert not other.exists()


def test_a_url_that_refuses_warns_once_and_the_objects_stay(tmp_path: Path) -> None:
    url = "no-such-scheme://host/path"
    data = contents(8)
    with loop_of(tmp_path, url) as loop:
        for number, each in enumerate(data):
            loop.put(A, name(number), each)
        assert [bytes(loop.pin(A, name(number))) for number in range(8)] == data
        assert sum(url in text for text in loop.warnings) == 1


class _Failing:
    """A file system that loses its files."""

    def __init__(self, system: Any) -> None:
        self._system = system

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._system, attribute)

    def open(self, path: str, mode: str) -> Any:
        if mode == "rb":
            raise RuntimeError("the service is away")
        return self._system.open(path, mode)


def test_what_cannot_be_read_back_is_an_error_with_the_url(tmp_path: Path, url: str) -> None:
    with loop_of(tmp_path, url) as loop:
        for number, each in enumerate(contents(8)):
            loop.put(A, name(number), each)
        [target] = loop.server._targets
        assert isinstance(target, RemoteFiles)
        system, root = target._place or (None, "")
        target._place = _Failing(system), root
        answer = loop.ask(A, PinObject, name(0))
        assert isinstance(answer, StoreError)
        assert answer.code == "disk"
        assert f"{url}/objects-" in answer.detail
        assert "the service is away" in answer.detail
        target._place = system, root
        assert isinstance(loop.ask(A, PinObject, name(0)), ObjectPinned)


def test_a_disk_that_is_asked_while_all_fails_does_not_end(tmp_path: Path) -> None:
    """The store's disk thread survives whatever a library raises."""
    with loop_of(tmp_path, "no-such-scheme://host/path") as loop:
        for number, each in enumerate(contents(8)):
            loop.put(A, name(number), each)
        created = loop.ask(A, CreateObject, name(9), MIB)
        assert created.path


# --- S3 ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_objects_go_to_s3_and_come_back(tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    command = [sys.executable, "-m", "tests.store.s3_session", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert ended.stdout.endswith("done\n"), ended.stderr
