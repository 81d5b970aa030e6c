"""The three storages keep one contract (DURABLE, HEAD-EPOCH): memory, SQLite, Redis with a password, and with TLS."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from moray.head.sqlite_storage import SqliteStorage
from moray.head.storage import (
    MemoryDatabase,
    MemoryStorage,
    StaleEpochError,
    Storage,
    StorageError,
    StorageLostError,
    delete,
    open_storage,
    put,
)
from tests.support.procs import wait_until
from tests.support.redis import RedisServer

#: Processes are started, killed, and waited for.
pytestmark = pytest.mark.slow

Open = Callable[[], Storage]


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture(name="open_one", params=["memory", "sqlite", "sqlite-full", "redis", "rediss"])
def _open_one(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same storage again and again; what was opened is closed at the end."""
    opened: list[Storage] = []
    server: RedisServer | None = None
    if request.param == "memory":
        make: Open = partial(MemoryStorage, MemoryDatabase())
    elif request.param.startswith("sqlite"):
        make = partial(open_storage, f"sqlite:{tmp_path}/head.db", full=request.param == "sqlite-full")
    else:
        server = RedisServer(tmp_path, tls=request.param == "rediss")
        make = partial(open_storage, server.url)

    def open_again() -> Storage:
        if opened:
            opened[-1].close()
        opened.append(make())
        return opened[-1]

    yield open_again
    for storage in opened:
        storage.close()
    if server is not None:
        server.kill()


def test_what_was_committed_is_there_for_the_next_head(open_one: Open) -> None:
    first = open_one()
    assert first.scan("t") == []
    first.commit([put("t", b"b", b"2"), put("t", b"a\0\xff", b""), put("u", b"a", b"x" * 100_000)])
    first.commit([put("t", b"b", b"3"), put("t", b"gone", b"1")])
    first.commit([delete("t", b"gone"), delete("t", b"never")])
    epoch, cluster_id = first.epoch, first.cluster_id
    for again in (False, True):
        storage = open_one() if again else first
        assert storage.scan("t") == [(b"a\0\xff", b""), (b"b", b"3")]
        assert storage.get("u", b"a") == b"x" * 100_000
        assert storage.get("u", b"b") is None
        assert storage.get("none", b"b") is None
    assert storage.epoch == epoch + 1
    assert storage.cluster_id == cluster_id
    storage.commit([put("t", b"c", b"4")])
    assert storage.get("t", b"c") == b"4"


def test_what_is_committed_now_is_as_good(open_one: Open) -> None:
    storage = open_one()
    for row in range(500):  # More than SQLite's log takes before it wants to wait for the disk.
        writes = [put("t", b"%d" % row, b"1"), put("t", b"last", b"%d" % row), delete("t", b"%d" % (row - 1))]
        if not storage.commit_now(writes):
            assert storage.get("t", b"%d" % row) is None, "nothing was done"
            storage.commit(writes)
    for again in (False, True):
        if again:
            storage = open_one()
        assert storage.scan("t") == [(b"499", b"1"), (b"last", b"499")]


def test_what_waits_for_the_disk_is_not_committed_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushing, go_on = threading.Event(), threading.Event()

    def flush(_path: str) -> None:
        flushing.set()
        go_on.wait(30)

    monkeypatch.setattr("moray.head.sqlite_storage._flush", flush)
    storage = open_storage(f"{tmp_path}/head.db")
    try:
        assert storage.commit_now([put("t", b"k", b"1")])
        assert flushing.wait(30)
        assert not storage.commit_now([put("t", b"k", b"2")]), "its log is being flushed"
        assert storage.get("t", b"k") == b"1"
        storage.commit([put("t", b"k", b"3")])  # This one may wait.
        go_on.set()
        wait_until(lambda: storage.commit_now([put("t", b"k", b"4")]))
        for row in range(100):
            storage.commit([put("t", b"%d" % row, os.urandom(100_000))])
        assert os.stat(f"{tmp_path}/head.db-wal").st_size < 2 * 1000 * 4096, "the log begins anew"
        assert os.stat(f"{tmp_path}/head.db").st_size > 5_000_000
    finally:
        go_on.set()
        storage.close()


def test_what_begins_the_log_anew_is_not_committed_now(tmp_path: Path) -> None:
    """SQLite has the first frames after a checkpoint flushed."""
    storage = SqliteStorage(f"{tmp_path}/head.db")
    try:
        wait_until(lambda: storage.commit_now([put("t", b"k", b"1")]))
        while storage._log_pages:  # Until it was brought into the database.
            storage.commit([put("t", b"large", os.urandom(100_000))])
        storage.commit([])  # Writes nothing.
        assert not storage.commit_now([put("t", b"k", b"2")])
        storage.commit([put("t", b"k", b"3")])
        wait_until(lambda: storage.commit_now([put("t", b"k", b"4")]))
    finally:
        storage.close()


def test_logs_of_killed_heads_do_not_add_up(tmp_path: Path) -> None:
    storage = open_storage(f"{tmp_path}/head.db")
    storage.commit([put("t", b"%d" % row, os.urandom(100_000)) for row in range(39)])
    for name in ("head.db", "head.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / f"killed-{name}")
    storage.close()
    for name in ("head.db", "head.db-wal"):
        os.rename(tmp_path / f"killed-{name}", tmp_path / name)
    storage = open_storage(f"{tmp_path}/head.db")
    try:
        for row in range(20):
            if not storage.commit_now([put("u", b"%d" % row, os.urandom(100_000))]):
                storage.commit([put("u", b"%d" % row, b"")])
        assert len(storage.scan("t")) == 39
        assert os.stat(f"{tmp_path}/head.db").st_size > 3_900_000, "the log was brought in"
    finally:
        storage.close()


def test_an_empty_transaction_only_checks(open_one: Open) -> None:
    storage = open_one()
    storage.commit([])
    storage.commit([])


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_a_head_that_was_replaced_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Both believe that they are the head: no lock helps, as on another machine or a network file system."""
    server = RedisServer(tmp_path) if kind == "redis" else None
    database = MemoryDatabase()
    opened: list[Storage] = []
    try:
        for _ in range(2):
            if kind == "memory":
                opened.append(MemoryStorage(database))
            elif server is not None:
                opened.append(open_storage(server.url))
            else:
                opened.append(open_storage(f"{tmp_path}/head.db"))
                os.unlink(f"{tmp_path}/head.db.lock")
        old, new = opened
        assert new.epoch == old.epoch + 1
        for _ in range(2):
            with pytest.raises(StaleEpochError, match=f"epoch {new.epoch}.*epoch {old.epoch}"):
                old.commit([put("t", b"k", b"old")])
            if kind != "redis":
                with pytest.raises(StaleEpochError):
                    old.commit_now([put("t", b"k", b"old")])
        assert new.get("t", b"k") is None
        new.commit([put("t", b"k", b"new")])
        assert new.get("t", b"k") == b"new"
    finally:
        for storage in opened:
            storage.close()
        if server is not None:
            server.kill()


def test_a_file_has_one_head(tmp_path: Path) -> None:
    first = open_storage(f"{tmp_path}/head.db")
    with pytest.raises(StorageError, match=f"in use by another head, process {os.getpid()}"):
        open_storage(f"{tmp_path}/head.db")
    first.close()
    open_storage(f"{tmp_path}/head.db").close()
    assert os.stat(f"{tmp_path}/head.db").st_mode & 0o077 == 0


@pytest.mark.parametrize("url", ["", "sqlite:", "mysql://x", "/nowhere/at/all/head.db", "redis://127.0.0.1:1"])
def test_a_wrong_storage_says_what_is_wrong(url: str) -> None:
    with pytest.raises(StorageError, match=r"names no storage|cannot be opened|did not answer"):
        open_storage(url)


_WRITER = """
import sys
from moray.head.storage import open_storage, put
storage = open_storage(sys.argv[1], full=sys.argv[2] == "full")
number = 0
while True:
    number += 1
    storage.commit([put("t", b"number", str(number).encode()), put("t", b"twin", str(number).encode())])
    print(number, flush=True)
"""


@pytest.mark.parametrize("kind", ["sqlite", "full", "redis"])
def test_what_was_acknowledged_survives_kill_9(kind: str, tmp_path: Path) -> None:
    """The head is killed between commit and answer, wherever that hits: at most one commit is there unacknowledged."""
    server = RedisServer(tmp_path) if kind == "redis" else None
    url = server.url if server is not None else f"sqlite:{tmp_path}/head.db"
    try:
        said = 0
        for round_ in range(3):
            with subprocess.Popen([sys.executable, "-c", _WRITER, url, kind], stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None
                for _ in range(20 + round_):
                    said = int(writer.stdout.readline())
                writer.send_signal(signal.SIGKILL)
                said = max([said, *(int(line) for line in writer.stdout.read().split(b"\n")[:-1])])
            storage = open_storage(url)
            number, twin = storage.get("t", b"number"), storage.get("t", b"twin")
            storage.close()
            assert number == twin, "all or nothing"
            assert number is not None
            assert int(number) in {said, said + 1}
    finally:
        if server is not None:
            server.kill()


def test_redis_is_killed_and_comes_back(server: RedisServer) -> None:
    storage = open_storage(server.url)
    for number in range(10):
        storage.commit([put("t", b"number", str(number).encode())])
    server.kill()
    done = threading.Event()

    def commit() -> None:
        storage.commit([put("t", b"number", b"late")])
        done.set()

    waiting = threading.Thread(target=commit)
    waiting.start()
    assert not done.wait(0.5), "there is nobody who could have stored it"
    server.start()
    wait_until(done.is_set, 20, "the commit is carried out when Redis is back")
    waiting.join()
    assert storage.get("t", b"number") == b"late"
    storage.close()


def test_redis_that_forgets_ends_the_head(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, append_only=False)
    try:
        storage = open_storage(server.url)
        storage.commit([put("t", b"k", b"1")])
        server.kill()
        server.start()
        with pytest.raises(StorageLostError, match="has lost what it had acknowledged: 1 transactions"):
            storage.commit([put("t", b"k", b"2")])
        storage.close()
    finally:
        server.kill()


def test_a_repeated_commit_is_one(server: RedisServer) -> None:
    """Its answer was lost: Redis has carried it out, and is asked again."""
    storage = open_storage(server.url)
    storage.commit([put("t", b"k", b"1")])
    # The same transaction again, as after a lost answer: not counted, not lost.
    storage._commits -= 1  # type: ignore[attr-defined]
    storage.commit([put("t", b"k", b"1")])
    storage.commit([put("t", b"k", b"2")])
    assert storage.get("t", b"k") == b"2"
    storage.close()


def test_a_wrong_password_is_said_without_it(server: RedisServer) -> None:
    url = f"redis://:secret-word@127.0.0.1:{server.port}"
    with pytest.raises(StorageError, match=r"Redis at redis://127\.0\.0\.1:\d+ ") as raised:
        open_storage(url)
    assert "secret-word" not in str(raised.value)
