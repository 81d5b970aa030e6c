"""Generators when something goes wrong or is in a hurry: deaths, pauses, drops, methods, long streams (STREAM)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.exceptions import (
    StreamingGeneratorReplayInconsistentError,
    TaskCancelledError,
    WorkerCrashedError,
)
from tests.support.procs import anonymous_bytes, is_alive, session_processes, spawn_driver, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")

#: Too large to travel in a message.
LARGE = 300_000


@moray.remote
def count(n: int) -> Iterator[int]:
    yield from range(n)


@moray.remote
def large(n: int) -> Iterator[bytes]:
    for i in range(n):
        yield bytes([i]) * LARGE


@moray.remote
def total(values: Any) -> int:
    return sum(moray.get(list(values)))


def values_of(generator: Any) -> list[Any]:
    return [moray.get(ref, timeout=30) for ref in generator]


def used_bytes() -> float:
    return float(moray.cluster_resources()["object_store_memory"] - moray.available_resources()["object_store_memory"])


# --- deaths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, LARGE], ids=["small", "large"])
def test_a_worker_dies_in_mid_stream_and_nothing_is_lost_or_twice(tmp_path: Path, size: int) -> None:
    marker = tmp_path / "died"

    @moray.remote
    def dies_once() -> Iterator[tuple[int, bytes]]:
        for i in range(20):
            if i == 10 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield i, bytes(size)

    before = used_bytes()
    generator = dies_once.remote()
    assert [value[0] for value in values_of(generator)] == list(range(20))
    assert marker.exists()
    assert moray.get(generator.completed()) is None
    wait_until(lambda: used_bytes() < before + LARGE, what="everything freed")


def test_without_retries_the_death_is_the_last_item() -> None:
    @moray.remote(max_retries=0)
    def dies() -> Iterator[int]:
        yield 1
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

    generator = dies.remote()
    assert moray.get(next(generator)) == 1
    with pytest.raises(WorkerCrashedError, match="SIGKILL"):
        moray.get(next(generator))
    assert list(generator) == []


def test_a_shorter_replay_is_an_error_of_its_own(tmp_path: Path) -> None:
    marker = tmp_path / "died"

    @moray.remote
    def fickle() -> Iterator[int]:
        if marker.exists():
            yield 0
            return
        yield from range(5)
        time.sleep(0.2)
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    refs = list(fickle.remote())
    assert moray.get(refs[:5]) == [0, 1, 2, 3, 4]
    with pytest.raises(StreamingGeneratorReplayInconsistentError, match="made 1 items in attempt 2, but 5 had arrived"):
        moray.get(refs[5])
    assert len(refs) == 6


# --- flow -----------------------------------------------------------------------------------------------------


def reads(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


@pytest.mark.parametrize("ahead", [1, 3])
def test_the_generator_pauses_for_its_consumer(tmp_path: Path, ahead: int) -> None:
    made = tmp_path / "made"

    @moray.remote(_generator_backpressure_num_objects=ahead)
    def slow_down() -> Iterator[int]:
        for i in range(12):
            made.write_text(str(i))
            yield i

    generator = slow_down.remote()
    for taken in range(13 - ahead):
        at_most = taken + ahead - 1
        wait_until(partial(reads, made, str(at_most)), what="it pauses there")
        time.sleep(0.02)  # Were it not to pause, it would be further by now.
        assert made.read_text() == str(at_most)
        assert moray.get(next(generator)) == taken
    assert len(list(generator)) == ahead - 1


def test_a_paused_generator_is_replayed(tmp_path: Path) -> None:
    marker = tmp_path / "died"

    @moray.remote(_generator_backpressure_num_objects=2)
    def dies_once() -> Iterator[int]:
        for i in range(10):
            if i == 5 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield i

    assert values_of(dies_once.remote()) == list(range(10))
    assert marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threads", "coroutines"])
def test_the_generators_of_an_actor_share_its_limit(kind: str, tmp_path: Path) -> None:
    class Threads:
        def items(self, name: str) -> Iterator[int]:
            for i in range(10):
                (tmp_path / f"{name}{i}").touch()
                yield i

    class Coroutines:
        async def items(self, name: str) -> AsyncIterator[int]:
            for i in range(10):
                (tmp_path / f"{name}{i}").touch()
                yield i

    options = {"max_concurrency": 3, "_actor_generator_backpressure_num_objects": 3}
    actor = moray.remote(**options)(Threads if kind == "threads" else Coroutines).remote()  # type: ignore[call-overload]
    waiting, taken = [actor.items.remote(name) for name in "abc"], 0
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3, what="as many are made as may be")
    while waiting:
        (ready, *_), _ = moray.wait(waiting, timeout=30)
        try:
            moray.get(next(ready))
            taken += 1
        except StopIteration:
            waiting.remove(ready)
        made = len(list(tmp_path.iterdir()))
        # What is left of one that has ended counts no more.
        assert made <= taken + 3 or list(tmp_path.glob("?9"))
    assert taken == 30


def test_a_cancelled_generator_holds_up_no_other() -> None:
    @moray.remote(max_concurrency=2, _actor_generator_backpressure_num_objects=1)
    class Source:
        def items(self) -> Iterator[int]:
            yield from range(3)

    source = Source.remote()
    assert values_of(source.items.remote()) == [0, 1, 2]
    begun = time.monotonic()
    for _ in range(6):
        first = source.items.remote()
        moray.wait([first], timeout=30)
        second = source.items.remote()
        moray.cancel(first)
        assert values_of(second) == [0, 1, 2]
    assert time.monotonic() - begun < 3, "they were seen when the process looked after what it waits for, each second"


def test_a_narrower_limit_of_the_method_counts_too(tmp_path: Path) -> None:
    @moray.remote(_actor_generator_backpressure_num_objects=5)
    class Source:
        def items(self) -> Iterator[int]:
            for i in range(10):
                (tmp_path / str(i)).touch()
                yield i

    source = Source.remote()
    generator = source.items.options(_generator_backpressure_num_objects=2).remote()
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    assert moray.get(next(generator)) == 0
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3)
    time.sleep(0.02)  # Were it not to pause, it would be further by now.
    assert len(list(tmp_path.iterdir())) == 3
    assert values_of(generator) == list(range(1, 10))


def test_a_dynamic_generator_waits_for_nobody() -> None:
    """Nobody can take an item before all are made."""
    dynamic = count.options(num_returns="dynamic", _generator_backpressure_num_objects=2).remote(10)
    assert values_of(moray.get(dynamic, timeout=30)) == list(range(10))


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="=0 is not allowed"):
        count.options(_generator_backpressure_num_objects=0)


def test_paused_generators_lend_their_cpus() -> None:
    """Two paused generators on two CPUs do not keep the task from running that they wait for."""
    generators = [count.options(_generator_backpressure_num_objects=1).remote(3) for _ in range(2)]
    first = [next(generator) for generator in generators]
    assert moray.get([total.remote([ref]) for ref in first], timeout=30) == [0, 0]
    assert [len(list(generator)) for generator in generators] == [2, 2]


def test_many_large_items_ahead_of_a_slow_consumer() -> None:
    generator = count.remote(200)

    @moray.remote
    def wide(n: int) -> Iterator[bytes]:
        for _ in range(n):
            yield bytes(90_000)

    generator = wide.remote(500)  # type: ignore[assignment]
    assert len(moray.get(next(generator))) == 90_000  # type: ignore[arg-type]
    time.sleep(0.2)
    assert sum(len(moray.get(ref)) for ref in generator) == 499 * 90_000  # type: ignore[arg-type, misc]


# --- dropping ------------------------------------------------------------------------------------------------------


def test_unread_items_are_freed_with_the_generator() -> None:
    before = used_bytes()
    generator = large.remote(10)
    kept = next(generator)
    moray.get(generator.completed())
    wait_until(lambda: used_bytes() >= before + 10 * LARGE, what="all are there")
    del generator
    gc.collect()
    wait_until(lambda: used_bytes() < before + 2 * LARGE, what="all but one freed")
    assert moray.get(kept)[:1] == b"\0"


def test_items_that_come_after_the_drop_are_freed(tmp_path: Path) -> None:
    @moray.remote
    def slow() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(LARGE)
            time.sleep(0.002)

    before = used_bytes()
    generator = slow.remote()
    next(generator)
    del generator
    gc.collect()
    wait_until(lambda: used_bytes() < before + LARGE, timeout_s=20, what="everything freed")


@pytest.mark.parametrize("how", ["drop", "close", "in with"])
@pytest.mark.parametrize("limit", [-1, 2], ids=["computing", "paused"])
def test_the_producer_is_ended(tmp_path: Path, how: str, limit: int) -> None:
    """Needs cancel (CANCEL)."""
    ended = tmp_path / "ended"

    @moray.remote(_generator_backpressure_num_objects=limit)
    def endless() -> Iterator[int]:
        try:
            i = 0
            while True:
                yield i
                i += 1
                time.sleep(0.001)
        finally:
            ended.touch()

    generator = endless.remote()
    done = generator.completed()
    assert moray.get(next(generator)) == 0
    if how == "drop":
        del generator
        gc.collect()
    elif how == "close":
        generator.close()
        assert list(generator) == []
    else:
        with contextlib.closing(generator):
            next(generator)
    wait_until(ended.exists, what="its finally block has run")
    with pytest.raises(TaskCancelledError):
        moray.get(done, timeout=10)


def test_a_generator_that_never_began_is_dropped() -> None:
    @moray.remote(num_cpus=2)
    def occupy() -> None:
        time.sleep(0.3)

    busy = occupy.remote()
    generator = count.options(num_cpus=2).remote(5)
    done = generator.completed()
    del generator
    gc.collect()
    moray.get(busy)
    moray.wait([done], timeout=20)


# --- methods of actors ---------------------------------------------------------------------------------------------


@moray.remote
class Counter:
    def __init__(self) -> None:
        self.calls = 0

    def count(self, n: int) -> Iterator[int]:
        self.calls += 1
        yield from range(n)

    def fail(self) -> Iterator[int]:
        yield 1
        raise KeyError("method")

    def endless(self) -> Iterator[int]:
        i = 0
        while True:
            yield i
            i += 1
            time.sleep(0.001)

    def called(self) -> int:
        return self.calls


@moray.remote
class AsyncCounter:
    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0.001)
            yield i

    async def refs(self, n: int) -> AsyncIterator[list[Any]]:
        for i in range(n):
            yield [moray.put(i)]

    async def endless(self) -> AsyncIterator[int]:
        i = 0
        while True:
            yield i
            i += 1
            await asyncio.sleep(0.001)

    async def paused(self) -> AsyncIterator[int]:
        for i in range(5):
            yield i

    async def wide(self, n: int) -> AsyncIterator[bytes]:
        for _ in range(n):
            yield bytes(90_000)

    async def one(self) -> int:
        return 1


def start(kind: Any) -> Any:
    return kind.remote()


def test_methods_stream_too() -> None:
    actor = start(Counter)
    assert values_of(actor.count.remote(100)) == list(range(100))
    generator = actor.fail.remote()
    assert moray.get(next(generator)) == 1
    with pytest.raises(KeyError, match="method"):
        moray.get(next(generator))
    assert moray.get(actor.called.remote()) == 1


def test_async_methods_stream_side_by_side() -> None:
    actor = start(AsyncCounter)
    generators = [actor.count.remote(20) for _ in range(5)]
    assert moray.get(actor.one.remote()) == 1
    assert [values_of(generator) for generator in generators] == [list(range(20))] * 5
    assert [moray.get(refs[0]) for refs in values_of(actor.refs.remote(10))] == list(range(10))


def test_async_methods_pause_without_stopping_others() -> None:
    actor = start(AsyncCounter)
    generator = actor.paused.options(_generator_backpressure_num_objects=1).remote()
    moray.get(next(generator))
    assert moray.get(actor.one.remote(), timeout=30) == 1
    assert values_of(generator) == [1, 2, 3, 4]


def test_async_methods_do_not_fill_the_memory_of_a_slow_consumer() -> None:
    actor = start(AsyncCounter)
    generator = actor.wide.remote(400)
    assert len(moray.get(next(generator))) == 90_000
    time.sleep(0.1)
    assert moray.get(actor.one.remote(), timeout=30) == 1
    assert sum(len(moray.get(ref)) for ref in generator) == 399 * 90_000


@pytest.mark.parametrize("kind", [Counter, AsyncCounter])
def test_a_dropped_method_ends_and_the_actor_goes_on(kind: Any) -> None:
    actor = start(kind)
    generator = actor.endless.remote()
    done = generator.completed()
    next(generator)
    del generator
    gc.collect()
    with pytest.raises(TaskCancelledError):
        moray.get(done, timeout=20)
    assert [moray.get(ref) for ref in actor.count.remote(3)] == [0, 1, 2]


class Ends:
    """Notes which of its generators have ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def items(self, name: str) -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            self.ended.append(name)

    def which(self) -> list[str]:
        return self.ended


class AsyncEnds:
    """The same with coroutines."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def items(self, name: str) -> AsyncIterator[int]:
        try:
            for i in range(100):
                yield i
        finally:
            self.ended.append(name)

    async def which(self) -> list[str]:
        return self.ended


@moray.remote(num_cpus=0)
class Reader:
    def begin(self, source: Any) -> int:
        self.items = source.items.options(_generator_backpressure_num_objects=2).remote("mine")
        moray.get(next(self.items))
        return os.getpid()


@pytest.mark.parametrize(("kind", "concurrency"), [(Ends, 3), (AsyncEnds, 10)])
def test_a_paused_method_ends_with_its_reader(kind: Any, concurrency: int) -> None:
    """No word of its reader's will ever end the pause."""
    source = moray.remote(num_cpus=0, max_concurrency=concurrency)(kind).remote()
    reader = start(Reader)
    process = moray.get(reader.begin.remote(source))
    time.sleep(0.05)
    assert moray.get(source.which.remote()) == []
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: moray.get(source.which.remote(), timeout=30) == ["mine"], 10, "it has ended")


# --- long streams ----------------------------------------------------------------------------------------------------

AFTER_SHUTDOWN = """
import moray
moray.init(num_cpus=1)

@moray.remote
def some(path):
    import os, time
    yield 1
    while True:
        time.sleep(0.01)

open_one, done = some.remote(""), some.remote("")
first = next(open_one)
moray.shutdown()
for ref in open_one:
    try:
        moray.get(ref)
    except moray.exceptions.MorayError as error:
        print("error", type(error).__name__)
try:
    next(open_one)
except StopIteration:
    print("stopped")
del open_one, done, first
"""


def test_the_end_of_the_session_ends_the_stream() -> None:
    with spawn_driver(AFTER_SHUTDOWN) as driver:
        assert driver.wait_line("error")
        driver.wait_line("stopped")
        assert driver.wait() == 0


PROGRAM = """
import os, time
import moray
moray.init(num_cpus=1)
print("session", moray.get_runtime_context().get_session_name())

@moray.remote(_generator_backpressure_num_objects=10_000)
def numbers(n):
    yield from range(n)

total = 0
for i, ref in enumerate(numbers.remote(1_000_000)):
    total += moray.get(ref)
    if i == 200_000:
        print("warm")
        while not os.path.exists("measured"):
            time.sleep(0.01)
print("result", total)
while True:
    time.sleep(1)
"""


@pytest.mark.long
def test_a_million_items_in_flat_memory() -> None:
    with spawn_driver(PROGRAM) as driver:
        session = driver.wait_line("session")
        driver.wait_line("warm", 60)
        before = {pid: anonymous_bytes(pid) for pid in [driver.pid, *session_processes(session)]}
        (driver.directory / "measured").touch()
        assert int(driver.wait_line("result", 100)) == 999_999 * 1_000_000 // 2
        growth = {pid: anonymous_bytes(pid) - size for pid, size in before.items() if is_alive(pid)}
        assert len(growth) >= 3, "driver, node and worker were there all the time"
        assert max(growth.values()) < 6_000_000, growth
