"""``Pool.apply`` from several threads at once, beside other tasks, interrupted, and while processes and pools end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import TimeoutError as PoolTimeoutError
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from moray.exceptions import ActorError
from moray.util.multiprocessing import AsyncResult, Pool


@pytest.fixture
def pool(shared_session: ModuleType) -> Iterator[Pool]:
    """Two processes, which lend themselves: `apply` was called."""
    with Pool(2) as pool:
        assert [pool.apply(abs, (-number,)) for number in range(5)] == list(range(5))
        yield pool


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def double(x: int, plus: int = 0) -> int:
    return 2 * x + plus


def wait_for(path: str) -> int:
    while not os.path.exists(path):
        time.sleep(0.005)
    return os.getpid()


def test_arguments_results_and_errors(pool: Pool) -> None:
    assert pool.apply(double, (4,), {"plus": 1}) == 9
    with pytest.raises(TypeError, match="positional"):
        pool.apply(double)
    with pytest.raises(TypeError, match="lock"):
        pool.apply(double, (threading.Lock(),))
    with pytest.raises(Exception, match="lock"):
        pool.apply(threading.Lock)
    more = 5
    assert pool.apply(lambda x: x + more, (1,)) == 6
    assert pool.apply(double, (1,)) == 2


def test_threads_beside_a_map(pool: Pool) -> None:
    wrong: list[Any] = []

    def call(first: int) -> None:
        for number in range(first, first + 100):
            result = pool.apply(double, (number,))
            if result != 2 * number:
                wrong.append((number, result))

    threads = [threading.Thread(target=call, args=(1000 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        assert pool.map(double, range(50)) == list(range(0, 100, 2))
        assert list(pool.imap(double, range(20))) == list(range(0, 40, 2))
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_tasks_get_the_process_when_it_comes_back(pool: Pool, tmp_path: Path) -> None:
    """Both processes are lent out and busy; what is submitted meanwhile runs as soon as one is back."""
    pids: list[int] = []

    def call(name: str) -> None:
        pids.append(pool.apply(wait_for, (str(tmp_path / name),)))

    threads = [threading.Thread(target=call, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    eventually(lambda: not pool._dispatcher._spare)
    later = pool.apply_async(double, (3,))
    assert not later.ready()
    (tmp_path / "a").touch()
    assert later.get(20) == 6
    (tmp_path / "b").touch()
    for thread in threads:
        thread.join()
    assert len(set(pids)) == 2


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_replaced(pool: Pool) -> None:
    for _ in range(3):
        with pytest.raises(ActorError):
            pool.apply(die)
    assert pool.apply(double, (2,)) == 4
    assert pool.map(double, range(4)) == [0, 2, 4, 6]


def test_the_end_of_the_pool_ends_calls(shared_session: ModuleType, tmp_path: Path) -> None:
    pool = Pool(1)
    pool.apply(abs, (-1,))
    pool.apply(abs, (-1,))
    errors: list[BaseException] = []

    def call() -> None:
        try:
            pool.apply(wait_for, (str(tmp_path / "never"),))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    eventually(lambda: not pool._dispatcher._spare)
    pool.terminate()
    thread.join(20)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [RuntimeError]


def test_close_waits_for_calls(shared_session: ModuleType, tmp_path: Path) -> None:
    pool = Pool(1)
    for _ in range(2):
        pool.apply(abs, (-1,))
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(pool.apply(wait_for, (str(tmp_path / "go"),))))
    thread.start()
    eventually(lambda: not pool._dispatcher._spare)
    pool.close()
    threading.Timer(0.2, (tmp_path / "go").touch).start()
    pool.join()
    thread.join()
    assert len(got) == 1


def interrupt_often(call: Callable[[int], bool]) -> int:
    """Ctrl-C at any moment of calls that must be right; how many were interrupted."""
    main = threading.main_thread().ident
    assert main is not None
    ended = threading.Event()

    def interrupt() -> None:
        # A pause of any length: the moments are to differ.
        while not ended.wait(0.001 + time.perf_counter_ns() % 1000 * 2e-6):
            signal.pthread_kill(main, signal.SIGINT)

    armed = False

    def on_interrupt(_number: int, _frame: Any) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    calls = interrupted = 0
    kept: list[KeyboardInterrupt] = []
    before = signal.signal(signal.SIGINT, on_interrupt)
    thread = threading.Thread(target=interrupt)
    deadline = time.monotonic() + 4
    try:
        try:
            thread.start()
            while time.monotonic() < deadline:
                try:
                    calls += 1
                    armed = True
                    assert call(calls)
                    armed = False
                except KeyboardInterrupt as error:
                    interrupted += 1
                    kept = [error]  # Whoever keeps the error keeps its frames.
        finally:
            signal.signal(signal.SIGINT, lambda _number, _frame: None)
            ended.set()
            thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert kept
    return interrupted


@pytest.mark.slow
def test_interrupted_calls_lose_no_process(pool: Pool) -> None:
    """INTERRUPT: Ctrl-C at any moment of `apply`; all processes are there afterwards."""
    assert interrupt_often(lambda number: bool(pool.apply(double, (number,)) == 2 * number)) > 20
    assert pool.apply(double, (1,)) == 2
    eventually(lambda: len(pool._dispatcher._spare) == 2)
    assert pool.map(double, range(100)) == list(range(0, 200, 2))


def lent(pool: Pool) -> None:
    """Wait until both processes are to be had."""
    eventually(lambda: len(pool._dispatcher._spare) == 2)


def test_apply_async_begins_in_an_idle_process(pool: Pool, tmp_path: Path) -> None:
    """Results come to whoever waits, or looks, or to nobody; processes that are wanted by others come back."""
    lent(pool)
    first = pool.apply_async(double, (1,))
    assert len(pool._dispatcher._spare) == 1
    assert first.get() == 2
    lent(pool)
    seen = pool.apply_async(double, (2,))
    eventually(seen.ready)
    assert seen.successful()
    lent(pool)
    pool.apply_async(double, (3,))
    lent(pool)
    waiting = pool.apply_async(wait_for, (str(tmp_path / "a"),))
    with pytest.raises(PoolTimeoutError, match="not ready within"):
        waiting.get(0.05)
    # The other process, and then the queue.
    assert [pool.apply_async(double, (x,)).get(20) for x in range(5)] == [0, 2, 4, 6, 8]
    assert pool.map(double, range(4)) == [0, 2, 4, 6]
    (tmp_path / "a").touch()
    assert isinstance(waiting.get(20), int)
    lent(pool)
    with pytest.raises(TypeError, match="positional"):
        pool.apply_async(double).get()
    with pytest.raises(TypeError, match="lock"):
        pool.apply_async(double, (threading.Lock(),)).get()
    with pytest.raises(Exception, match="lock"):
        pool.apply_async(threading.Lock).get()
    for _ in range(2):
        with pytest.raises(ActorError):
            pool.apply_async(die).get()
    assert pool.apply_async(double, (2,)).get(20) == 4


def get_into(result: AsyncResult, got: list[int]) -> None:
    got.append(result.get(20))


def test_many_wait_for_one_result(pool: Pool, tmp_path: Path) -> None:
    for number in range(30):
        lent(pool)
        result = pool.apply_async(double, (number,))
        got: list[int] = []
        threads = [threading.Thread(target=partial(get_into, result, got)) for _ in range(3)]
        for thread in threads:
            thread.start()
        later = pool.map_async(double, range(3)) if number % 2 else None  # Which wants the processes.
        for thread in threads:
            thread.join()
        assert got == [2 * number] * 3
        assert later is None or later.get(20) == [0, 2, 4]


def test_the_end_of_the_pool_ends_what_was_begun(shared_session: ModuleType, tmp_path: Path) -> None:
    pool = Pool(1)
    for _ in range(2):
        pool.apply(abs, (-1,))
    eventually(lambda: len(pool._dispatcher._spare) == 1)
    result = pool.apply_async(wait_for, (str(tmp_path / "never"),))
    assert not pool._dispatcher._spare
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            result.get()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    pool.terminate()
    thread.join(20)
    assert [type(error) for error in errors] == [RuntimeError]
    with pytest.raises(RuntimeError, match="terminated"):
        result.get()


def test_a_dropped_pool_first_ends_what_was_begun(shared_session: ModuleType, tmp_path: Path) -> None:
    pool = Pool(1)
    for _ in range(2):
        pool.apply(abs, (-1,))
    dispatcher = pool._dispatcher
    eventually(lambda: len(dispatcher._spare) == 1)
    pool.apply_async(Path.touch, (tmp_path / "there",))
    assert not dispatcher._spare
    del pool
    eventually((tmp_path / "there").exists)
    dispatcher.join()


def slow_from(name: str, x: int) -> int:
    if os.path.exists(name):
        time.sleep(0.3)
    return x


def test_a_small_map_that_takes_long_is_divided_after_all(pool: Pool, tmp_path: Path) -> None:
    name = str(tmp_path / "slow")
    for _ in range(20):
        assert pool.starmap(slow_from, [(name, x) for x in range(4)]) == [0, 1, 2, 3]
    Path(name).touch()
    lent(pool)
    begin = time.monotonic()
    assert pool.starmap(slow_from, [(name, x) for x in range(4)]) == [0, 1, 2, 3]
    assert time.monotonic() - begin < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("call", ["async", "map"])
def test_interrupted_waits_lose_no_process(pool: Pool, call: str) -> None:
    calls: dict[str, Callable[[int], Any]] = {
        "async": lambda number: pool.apply_async(double, (number,)).get(),
        "map": lambda number: pool.map(double, [number, number])[0],
    }
    interrupted = interrupt_often(lambda number: calls[call](number) == 2 * number)
    assert interrupted > 20
    assert pool.apply(double, (1,)) == 2
    lent(pool)
    assert pool.map(double, range(100)) == list(range(0, 200, 2))
