"""What moray's Pool does beyond the standard library's: errors instead of hangs, what it can send, its ends."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import moray
from moray.exceptions import ActorDiedError
from moray.util.multiprocessing import Pool, TimeoutError as PoolTimeout
from tests.support.procs import run_driver, wait_until
from tests.util import functions as f


@pytest.fixture
def pool(shared_session: ModuleType) -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def test_closures_and_lambdas_can_be_sent(pool: Pool) -> None:
    factor = 3
    assert pool.map(lambda x: x * factor, range(5)) == [0, 3, 6, 9, 12]
    assert pool.apply(lambda: factor) == 3
    assert list(pool.imap(lambda x: x + factor, [1])) == [4]


def used_bytes() -> float:
    return float(moray.cluster_resources()["object_store_memory"] - moray.available_resources()["object_store_memory"])


def test_long_chunks(pool: Pool) -> None:
    """Chunks that are put into the store; what it takes is free when they are done."""
    numbers, before = range(100_000, 160_000), used_bytes()
    for size in (9_999, 10_000, 30_000):
        assert pool.map(f.square, numbers, size) == [x * x for x in numbers]
        assert pool.starmap(f.add, [(x, 1) for x in numbers], size) == [x + 1 for x in numbers]
    with pytest.raises(TypeError, match="pickle"):
        pool.map(_type, [*numbers, threading.Lock()], 30_000)
    assert pool.map(f.square, numbers, 30_000) == [x * x for x in numbers]
    wait_until(lambda: used_bytes() < before + 1_000_000, 20, "what chunks took is free")


def test_what_an_object_is_at_the_call_counts(pool: Pool) -> None:
    """As with the standard library's, an object or closure is pickled for each call."""
    scaler = Scaler(2)
    assert pool.map(scaler, [1, 2]) == [2, 4]
    assert pool.map(scaler.scale, [1, 2]) == [2, 4]
    scaler.factor = 5
    assert pool.map(scaler, [1, 2]) == [5, 10]
    assert pool.apply(scaler.scale, (1,)) == 5


class Scaler:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return x * self.factor

    scale = __call__


def test_more_functions_than_a_process_remembers(pool: Pool) -> None:
    made = [_function(number) for number in range(80)]
    for _ in range(2):
        assert [pool.apply_async(function) for function in made][-1].get(30) == 79
        assert [pool.apply(function) for function in made] == list(range(80))


def _function(number: int) -> Any:
    space: dict[str, Any] = {"__name__": "__main__"}  # So that it is sent by value.
    exec(f"def function(): return {number}", space)
    return space["function"]


def test_an_argument_that_cannot_be_pickled_fails_alone(pool: Pool) -> None:
    pool.map(_type, range(2000), 1)  # From now on several are sent at a time.
    results = [pool.apply_async(_type, (threading.Lock() if x == 50 else x,)) for x in range(100)]
    for number, result in enumerate(results):
        if number == 50:
            with pytest.raises(TypeError, match="lock"):
                result.get(30)
        else:
            assert result.get(30) == "int"


def _type(x: Any) -> str:
    return type(x).__name__


def test_a_result_that_cannot_be_pickled_fails_alone_and_nothing_runs_twice(pool: Pool) -> None:
    seen = [(pid, count) for _value, pid, count in pool.map(_lock, range(2000), 1)]
    results = [pool.apply_async(_lock, (-x,)) for x in range(100, 0, -1)]
    for number, result in zip(range(100, 0, -1), results, strict=True):
        if number == 50:
            with pytest.raises(Exception, match="lock"):
                result.get(30)
        else:
            value, pid, count = result.get(30)
            assert value == -number
            seen.append((pid, count))
    counts: dict[int, int] = {}
    for pid, count in seen:
        counts[pid] = max(count, counts.get(pid, 0))
    assert sum(counts.values()) == 2100


def _lock(x: int) -> Any:
    f.state["calls"] += 1
    return threading.Lock() if x == -50 else (x, os.getpid(), f.state["calls"])


def test_errors_with_awkward_constructors(pool: Pool) -> None:
    with pytest.raises(f.AwkwardError) as caught:
        pool.apply(f.raise_awkward)
    assert (caught.value.what, caught.value.number) == ("bad", 7)
    with pytest.raises(f.AwkwardError):
        pool.map(f.raise_awkward, range(10), 1)


def test_a_process_that_dies_fails_its_task_and_is_replaced(pool: Pool) -> None:
    pids = {pid for pid, _count in pool.map(f.calls, range(20), 1)}
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        pool.apply_async(_die).get(30)
    assert pool.map(f.square, range(50), 1) == [x * x for x in range(50)]
    assert pool.apply(os.getpid) > 0
    assert pids


def _die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def test_a_task_that_exits_does_not_hang(pool: Pool) -> None:
    with pytest.raises(ActorDiedError):
        pool.apply_async(os._exit, (3,)).get(30)
    with pytest.raises(ActorDiedError):
        pool.apply_async(_exit).get(30)
    assert pool.apply(f.square, (3,)) == 9


def _exit() -> None:
    raise SystemExit(2)


def test_an_initializer_that_fails_is_every_results_error(shared_session: ModuleType) -> None:
    with Pool(2, initializer=f.fail, initargs=(3,)) as pool:
        with pytest.raises(KeyError, match="no 3") as caught:
            pool.apply(f.square, (1,))
        assert "in fail" in str(caught.value.__cause__)
        with pytest.raises(KeyError):
            pool.map(f.square, range(10))


def test_terminate_ends_what_runs_and_fails_what_is_not_there(shared_session: ModuleType) -> None:
    pool = Pool(2)
    pid = pool.apply(os.getpid)
    results = [pool.apply_async(f.slow, (60,)) for _ in range(4)]
    mapped = pool.map_async(f.slow, [60, 60])
    lazy = pool.imap(f.slow, [60])
    pool.terminate()
    pool.join()
    for result in (*results, mapped):
        with pytest.raises(RuntimeError, match="terminated"):
            result.get(10)
    with pytest.raises(RuntimeError, match="terminated"):
        lazy.next(10)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the end of the process")


def test_how_a_process_ends_that_is_terminated_is_nobodys_error(
    shared_session: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its death may be known before the pool's thread ends."""
    pool = Pool(1)
    result = pool.apply_async(f.slow, (60,))
    dispatcher = pool._dispatcher
    wait_until(lambda: dispatcher._slots[0].batch is not None, what="the process has the task")
    kill = dispatcher._kill

    def kill_and_wait(handle: Any) -> None:
        kill(handle)
        wait_until(lambda: not dispatcher.events.empty(), 20, "the word of its death")

    monkeypatch.setattr(dispatcher, "_kill", kill_and_wait)
    pool.terminate()
    with pytest.raises(RuntimeError, match="terminated"):
        result.get(10)


def test_join_waits_for_exit_handlers(shared_session: ModuleType, tmp_path: Any) -> None:
    pool = Pool(1, initializer=_at_exit, initargs=(str(tmp_path / "left"),))
    pool.apply(f.square, (1,))
    pool.close()
    pool.join()
    assert (tmp_path / "left").exists()


def _at_exit(path: str) -> None:
    import atexit
    import pathlib
    import time

    def leave() -> None:
        time.sleep(0.2)
        pathlib.Path(path).touch()

    atexit.register(leave)


def test_a_dropped_pool_ends(shared_session: ModuleType) -> None:
    pool = Pool(1)
    pid = pool.apply(os.getpid)
    gone = weakref.ref(pool)
    # A result keeps its pool until it is there.
    result = pool.apply_async(f.slow, (0.3,))
    del pool
    gc.collect()
    assert result.get(20) == 0.3
    gc.collect()
    wait_until(lambda: gone() is None, what="the end of the pool object")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the end of its process")


def test_an_endless_iterable(pool: Pool) -> None:
    results = pool.imap(f.square, itertools.count())
    assert list(itertools.islice(results, 2000)) == [x * x for x in range(2000)]
    del results
    unordered = pool.imap_unordered(f.square, itertools.count(), chunksize=10)
    assert len(set(itertools.islice(unordered, 2000))) == 2000
    del unordered
    pool.close()
    pool.join()  # Iterators that nobody has any more hold nothing up.


def test_several_threads_take_from_one_iterator(pool: Pool) -> None:
    results = pool.imap(f.square, f.generate(3000))
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.extend(results)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert sorted(got) == [x * x for x in range(3000)]


def test_a_callback_that_raises_is_logged_and_harms_nobody(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    assert pool.apply_async(f.square, (2,), callback=lambda _value: 1 / 0).get(20) == 4
    assert pool.apply(f.square, (3,)) == 9
    wait_until(lambda: "ZeroDivisionError" in caplog.text, what="the log")


def test_results_are_there_when_the_callback_is_called_and_it_may_submit_more(pool: Pool) -> None:
    later: list[Any] = []
    result = pool.apply_async(f.square, (2,), callback=lambda value: later.append(pool.apply_async(f.square, (value,))))
    assert result.get(20) == 4
    wait_until(lambda: bool(later), what="the callback")
    assert later[0].get(20) == 16


def test_rays_starmap_async_takes_callbacks_third(pool: Pool) -> None:
    got: list[Any] = []
    pool.starmap_async(f.add, [(1, 2)], got.append).get(20)
    wait_until(lambda: got == [[3]], what="the callback")


def test_more_processes_than_cpus(shared_session: ModuleType) -> None:
    with Pool(5) as pool:
        assert sum(pool.imap_unordered(f.slow, [0.2] * 5)) == 1.0
        assert len(pool._actor_pool) == 5


def test_options_of_the_actors(shared_session: ModuleType) -> None:
    import moray

    with Pool(1, ray_remote_args={"num_cpus": 1}) as pool:
        assert pool.apply(_assigned) == {"CPU": 1.0}
        assert moray.available_resources().get("CPU", 0) == 1.0


def _assigned() -> dict[str, float]:
    import moray

    return moray.get_runtime_context().get_assigned_resources()


def test_processes_default_to_the_sessions_cpus(shared_session: ModuleType) -> None:
    with Pool() as pool:
        assert repr(pool) == "<Pool of 2 processes>"


def test_a_pool_in_a_task(shared_session: ModuleType) -> None:
    import moray

    @moray.remote
    def total() -> int:
        with Pool(1) as pool:
            return sum(pool.map(f.square, range(10)))

    assert moray.get(total.remote(), timeout=60) == 285


def test_large_values(pool: Pool) -> None:
    import numpy as np

    arrays = [np.full(300_000, x) for x in range(4)]
    assert [float(out.sum()) for out in pool.map(_twice, arrays, 1)] == [600_000.0 * x for x in range(4)]


def _twice(array: Any) -> Any:
    return array * 2


def test_timeouts_are_those_of_multiprocessing() -> None:
    import multiprocessing

    assert PoolTimeout is multiprocessing.TimeoutError


@pytest.mark.slow
def test_a_pool_starts_a_session_of_its_size_and_outlives_none() -> None:
    out = run_driver("""
        import moray
        from moray.util.multiprocessing import Pool
        def square(x): return x * x
        pool = Pool(3)
        print(int(moray.cluster_resources()["CPU"]), pool.map(square, range(4)))
        late = pool.apply_async(__import__("time").sleep, (60,))
        moray.shutdown()
        try:
            late.get(20)
        except Exception as error:
            print(type(error).__name__ != "TimeoutError")
        try:
            pool.apply_async(square, (2,)).get(20)
        except Exception as error:
            print("ended" in str(error), moray.is_initialized())
        pool.terminate()
        pool.join()
        print(moray.is_initialized())
        """).stdout
    assert out.split("\n")[:4] == ["3 [0, 1, 4, 9]", "True", "True False", "False"]


@pytest.mark.slow
def test_ctrl_c_in_a_wait_leaves_the_pool_usable() -> None:
    out = run_driver("""
        import os, signal, threading
        from moray.util.multiprocessing import Pool
        def square(x): return x * x
        with Pool(2) as pool:
            pool.map(square, range(10))
            for _ in range(20):
                threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
                try:
                    while True:
                        pool.map(square, range(300), chunksize=1)
                except KeyboardInterrupt:
                    pass
            print(pool.map(square, range(5)))
        """).stdout
    assert out.strip() == "[0, 1, 4, 9, 16]"
