"""Nothing leaves the head before it is stored; what fails is never told (DURABLE). With a storage that waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from moray.head.commits import Commits
from moray.head.storage import MemoryStorage, StorageError, Write
from moray.protocol.reactor import Reactor
from tests.support.procs import wait_until


class SlowStorage(MemoryStorage):
    """Each commit waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)
        self.began = 0
        self.failure: StorageError | None = None

    def commit(self, writes: Iterable[Write]) -> None:
        self.began += 1
        self.gate.acquire()
        if self.failure is not None:
            raise self.failure
        super().commit(writes)

    def commit_now(self, writes: Iterable[Write]) -> bool:
        return False


class Loop:
    def __init__(self, storage: SlowStorage) -> None:
        self.reactor = Reactor()
        self.storage = storage
        self.failures: list[StorageError] = []
        self.commits = Commits(self.storage, self.reactor, self.failures.append)
        self.done: list[str] = []

    def note(self, word: str) -> Callable[[], None]:
        return lambda: self.done.append(word)

    def turn(self) -> None:
        with self.reactor.lead:
            self.reactor.turn(0.01)

    def until(self, condition: Callable[[], bool]) -> None:
        def look() -> bool:
            self.turn()
            return condition()

        wait_until(look)


@pytest.fixture(name="loop")
def _loop() -> Iterator[Loop]:
    loop = Loop(SlowStorage())
    yield loop
    for _ in range(10):
        loop.storage.gate.release()
    loop.commits.close()
    loop.reactor.close()


def test_calls_wait_for_what_was_written_before_them(loop: Loop) -> None:
    loop.commits.after(loop.note("nothing to wait for"))
    loop.turn()
    assert loop.done == ["nothing to wait for"]
    loop.commits.write("t", b"k", b"1")
    loop.commits.after(loop.note("first"))
    loop.until(lambda: loop.storage.began == 1)
    # A later turn, which writes nothing itself: it may have seen what is not stored yet.
    loop.commits.after(loop.note("second"))
    loop.turn()
    loop.turn()
    assert loop.done == ["nothing to wait for"]
    assert loop.storage.get("t", b"k") is None
    loop.storage.gate.release()
    loop.until(lambda: len(loop.done) == 3)
    assert loop.done[1:] == ["first", "second"]
    assert loop.storage.get("t", b"k") == b"1"


def test_turns_that_pass_meanwhile_are_one_transaction(loop: Loop) -> None:
    loop.commits.write("t", b"k", b"0")
    loop.until(lambda: loop.storage.began == 1)
    for number in range(1, 100):
        loop.commits.write("t", b"k", str(number).encode())
        loop.commits.after(loop.note(str(number)))
        loop.turn()
    loop.storage.gate.release()
    loop.until(lambda: loop.storage.began == 2)
    assert loop.done == []
    loop.storage.gate.release()
    loop.until(lambda: len(loop.done) == 99)
    assert loop.done == list(map(str, range(1, 100)))
    assert loop.storage.get("t", b"k") == b"99"
    assert loop.storage.began == 2


def test_a_large_batch_takes_no_further_turn(loop: Loop) -> None:
    loop.commits.write("t", b"k", b"0")
    loop.until(lambda: loop.storage.began == 1)
    for number in range(3):
        for row in range(6_000):
            loop.commits.write("t", f"{number}-{row}".encode(), b"1")
        loop.commits.after(loop.note(str(number)))
        loop.turn()
    for began in (2, 3):
        loop.storage.gate.release()
        loop.until(lambda began=began: loop.storage.began == began)  # type: ignore[misc]
    assert loop.done == ["0", "1"]
    loop.storage.gate.release()
    loop.until(lambda: loop.done == ["0", "1", "2"])
    assert len(loop.storage.scan("t")) == 18_001


def test_calls_that_write_are_followed_by_their_own_transaction(loop: Loop) -> None:
    def more() -> None:
        loop.commits.write("t", b"more", b"1")
        loop.commits.after(loop.note("more"))

    loop.commits.write("t", b"k", b"1")
    loop.commits.after(more)
    loop.storage.gate.release()
    loop.until(lambda: loop.storage.began == 2)
    assert loop.done == []
    loop.storage.gate.release()
    loop.until(lambda: loop.done == ["more"])


def test_what_failed_is_never_told(loop: Loop) -> None:
    loop.storage.failure = StorageError("the disk is full")
    loop.commits.write("t", b"k", b"1")
    loop.commits.after(loop.note("lie"))
    loop.storage.gate.release()
    loop.until(lambda: bool(loop.failures))
    loop.commits.write("t", b"l", b"1")
    loop.commits.after(loop.note("another"))
    loop.commits.check()
    for _ in range(5):
        loop.turn()
    assert loop.done == []
    assert loop.storage.began == 1
    assert [str(failure) for failure in loop.failures] == ["the disk is full"]


def test_gatherers_write_with_their_turn(loop: Loop) -> None:
    dirty = ["x"]

    def gather() -> None:
        while dirty:
            loop.commits.write("t", dirty.pop().encode(), b"1")
            loop.commits.after(loop.note("gathered"))

    loop.commits.gatherers.append(gather)
    loop.commits.write("t", b"k", b"1")
    loop.storage.gate.release()
    loop.until(lambda: loop.done == ["gathered"])
    assert loop.storage.scan("t") == [(b"k", b"1"), (b"x", b"1")]
    assert loop.storage.began == 1


def test_a_check_is_a_transaction_without_writes(loop: Loop) -> None:
    before = loop.commits.confirmed_at
    loop.commits.check()
    loop.commits.check()
    loop.storage.gate.release()
    loop.until(lambda: loop.commits.count == 1)
    assert loop.storage.began == 1
    assert loop.commits.confirmed_at > before


class QuickStorage(SlowStorage):
    """Small transactions wait for nothing, unless it says that they would."""

    quick = True

    def commit_now(self, writes: Iterable[Write]) -> bool:
        if not self.quick:
            return False
        if self.failure is not None:
            raise self.failure
        MemoryStorage.commit(self, writes)
        return True


@pytest.fixture(name="quick")
def _quick() -> Iterator[Loop]:
    loop = Loop(QuickStorage())
    yield loop
    for _ in range(10):
        loop.storage.gate.release()
    loop.commits.close()
    loop.reactor.close()


def test_the_loop_itself_stores_what_is_quickly_stored(quick: Loop) -> None:
    def more() -> None:
        assert quick.storage.get("t", b"k") == b"1", "it is stored first"
        quick.commits.write("t", b"more", b"1")
        quick.commits.after(quick.note("more"))

    quick.commits.write("t", b"k", b"1")
    quick.commits.after(more)
    quick.turn()
    assert quick.done == ["more"]
    assert quick.storage.get("t", b"more") == b"1"
    assert (quick.commits.count, quick.storage.began) == (2, 0)


def test_nothing_overtakes_what_the_writer_has(quick: Loop) -> None:
    assert isinstance(quick.storage, QuickStorage)
    quick.storage.quick = False
    quick.commits.write("t", b"k", b"1")
    quick.commits.after(quick.note("first"))
    quick.until(lambda: quick.storage.began == 1)
    quick.storage.quick = True
    quick.commits.write("t", b"k", b"2")
    quick.commits.after(quick.note("second"))
    quick.turn()
    assert quick.done == []
    assert quick.storage.get("t", b"k") is None
    quick.storage.gate.release()
    quick.until(lambda: len(quick.done) == 2)
    assert quick.done == ["first", "second"]
    assert quick.storage.get("t", b"k") == b"2"
    assert quick.storage.began == 1


def test_many_writes_are_the_writers(quick: Loop) -> None:
    for row in range(1000):
        quick.commits.write("t", str(row).encode(), b"1")
    quick.until(lambda: quick.storage.began == 1)


def test_large_values_are_the_writers(quick: Loop) -> None:
    quick.commits.write("t", b"gone", None)
    quick.commits.write("t", b"large", bytes(10_000_000))
    quick.until(lambda: quick.storage.began == 1)


def test_what_the_loop_fails_to_store_is_never_told(quick: Loop) -> None:
    quick.storage.failure = StorageError("the disk is full")
    quick.commits.write("t", b"k", b"1")
    quick.commits.after(quick.note("lie"))
    for _ in range(3):
        quick.turn()
    assert quick.done == []
    assert [str(failure) for failure in quick.failures] == ["the disk is full"]
    assert quick.commits.failed
