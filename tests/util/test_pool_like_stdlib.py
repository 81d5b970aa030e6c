"""The same scenarios on the standard library's Pool and on moray's: same results, same errors."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.support.procs import wait_until
from tests.util import functions as f

MakePool = Callable[..., Any]


@pytest.fixture(params=["stdlib", "moray"])
def make_pool(request: pytest.FixtureRequest, shared_session: ModuleType) -> Iterator[MakePool]:
    pools: list[Any] = []

    def make(*args: Any, **kwargs: Any) -> Any:
        if request.param == "stdlib":
            pools.append(multiprocessing.get_context("fork").Pool(*args, **kwargs))
        else:
            from moray.util.multiprocessing import Pool

            pools.append(Pool(*args, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool.terminate()
        pool.join()


@pytest.fixture
def pool(make_pool: MakePool) -> Any:
    return make_pool(2)


pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def test_apply(pool: Any) -> None:
    assert pool.apply(f.add, (1, 2), {"z": 3}) == 6
    assert pool.apply(f.add, [1]) == 1
    with pytest.raises(KeyError) as caught:
        pool.apply(f.fail, (3,))
    assert type(caught.value) is KeyError
    assert caught.value.args == ("no 3",)
    assert "in fail" in str(caught.value.__cause__)


def test_apply_async_and_its_result(pool: Any) -> None:
    result = pool.apply_async(f.slow, (0.3,))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    result.wait(0.01)
    assert not result.ready()
    assert result.get(20) == 0.3
    assert result.ready()
    assert result.successful()
    failed = pool.apply_async(f.fail, (3,))
    failed.wait(20)
    assert not failed.successful()
    with pytest.raises(KeyError):
        failed.get()
    with pytest.raises(KeyError):
        failed.get()


def test_callbacks(pool: Any) -> None:
    got: list[Any] = []
    errors: list[Any] = []
    done = threading.Semaphore(0)

    def on_result(value: Any) -> None:
        got.append(value)
        done.release()

    def on_error(error: Any) -> None:
        errors.append(error)
        done.release()

    pool.apply_async(f.square, (4,), callback=on_result, error_callback=on_error)
    pool.apply_async(f.fail, (3,), callback=on_result, error_callback=on_error)
    pool.map_async(f.square, [1, 2, 3], callback=on_result, error_callback=on_error)
    pool.map_async(f.fail, range(5), callback=on_result, error_callback=on_error)
    pool.starmap_async(f.add, [(1, 2)], callback=on_result)
    for _ in range(5):
        assert done.acquire(timeout=20)
    assert sorted(got, key=str) == [16, [1, 4, 9], [3]]
    assert [type(error) for error in errors] == [KeyError, KeyError]


@pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
def test_map_and_starmap(pool: Any, chunksize: int | None) -> None:
    assert pool.map(f.square, range(20), chunksize) == [x * x for x in range(20)]
    assert pool.map(f.square, f.generate(20), chunksize=chunksize) == [x * x for x in range(20)]
    assert pool.starmap(f.add, [(x, 1) for x in range(20)], chunksize) == list(range(1, 21))
    assert pool.map_async(f.square, [5], chunksize).get(20) == [25]
    with pytest.raises(KeyError):
        pool.map(f.fail, range(20), chunksize)


def test_of_nothing(pool: Any) -> None:
    got: list[Any] = []
    assert pool.map(f.square, []) == []
    assert pool.starmap(f.add, []) == []
    assert list(pool.imap(f.square, [])) == []
    assert list(pool.imap_unordered(f.square, iter([]))) == []
    assert pool.map_async(f.square, [], callback=got.append).get(20) == []
    pool.apply_async(f.square, (3,), callback=got.append)
    wait_until(lambda: got == [9], what="the callback of a call, and none of the empty map")


@pytest.mark.parametrize("chunksize", [1, 4])
def test_imap(pool: Any, chunksize: int) -> None:
    assert list(pool.imap(f.square, range(30), chunksize)) == [x * x for x in range(30)]
    assert list(pool.imap(f.square, f.generate(30), chunksize=chunksize)) == [x * x for x in range(30)]
    assert sorted(pool.imap_unordered(f.square, f.generate(30), chunksize)) == [x * x for x in range(30)]


def test_imap_is_an_iterator_with_timeouts(pool: Any) -> None:
    results = pool.imap(f.slow, [0.0, 0.4])
    assert iter(results) is results
    assert results.next(timeout=20) == 0.0
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(0.01)
    assert results.next(20) == 0.4
    with pytest.raises(StopIteration):
        results.next()
    with pytest.raises(StopIteration):
        next(results)


def test_imap_goes_on_after_an_error(pool: Any) -> None:
    results = pool.imap(f.fail, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
    assert list(results) == [4, 5]


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_imap_of_an_iterable_that_fails(pool: Any, method: str) -> None:
    results = getattr(pool, method)(f.square, f.generate(10, error_at=4))
    got: list[int] = []
    with pytest.raises(RuntimeError, match="the iterable fails"):
        got.extend(results)  # extend() keeps what came before the error.
    rest = list(results)
    assert sorted(got + rest) == [0, 1, 4, 9]


def test_imap_unordered_gives_the_quick_first(pool: Any) -> None:
    assert list(pool.imap_unordered(f.slow, [0.5, 0.0])) == [0.0, 0.5]


def test_a_map_whose_iterable_fails_raises_at_once(pool: Any) -> None:
    with pytest.raises(RuntimeError, match="the iterable fails"):
        pool.map(f.square, f.generate(5, error_at=2))


def test_wrong_arguments(make_pool: MakePool) -> None:
    for arguments in ({"processes": 0}, {"maxtasksperchild": 0}, {"maxtasksperchild": "2", "processes": 1}):
        with pytest.raises(ValueError):
            make_pool(**arguments)
    with pytest.raises(TypeError):
        make_pool(1, initializer=5)
    pool = make_pool(1)
    with pytest.raises(ValueError):
        pool.imap(f.square, [1], chunksize=0)
    with pytest.raises(NotImplementedError, match="cannot be passed"):
        pool.__reduce__()


def test_initializer_runs_in_each_process(make_pool: MakePool) -> None:
    pool = make_pool(2, f.setup, (42,))
    assert set(pool.map(f.read, range(8), 1)) == {42}


def test_processes_are_several_and_keep_their_state(make_pool: MakePool) -> None:
    pool = make_pool(2)
    assert sorted(pool.map(f.slow, [0.3, 0.3], 1)) == [0.3, 0.3]
    seen = pool.map(f.calls, range(40), 1)
    by_process = {pid: [count for other, count in seen if other == pid] for pid, _ in seen}
    assert 1 <= len(by_process) <= 2
    assert all(sorted(counts) == list(range(1, len(counts) + 1)) for counts in by_process.values())


def test_maxtasksperchild(make_pool: MakePool) -> None:
    pool = make_pool(1, maxtasksperchild=3)
    seen = [pool.apply(f.calls) for _ in range(9)]
    assert [count for _pid, count in seen] == [1, 2, 3] * 3
    assert len({pid for pid, _count in seen}) == 3


def test_maxtasksperchild_counts_chunks(make_pool: MakePool) -> None:
    pool = make_pool(1, maxtasksperchild=2)
    seen = pool.map(f.calls, range(12), chunksize=2)
    assert [count for _pid, count in seen] == [1, 2, 3, 4] * 3


def test_close_lets_work_end_and_takes_no_more(make_pool: MakePool) -> None:
    pool = make_pool(2)
    later = [pool.apply_async(f.slow, (0.1,)) for _ in range(4)]
    lazy = pool.imap(f.square, f.generate(5))
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    for method in (pool.apply_async, pool.apply):
        with pytest.raises(ValueError, match="not running"):
            method(f.square, (1,))
    for method in (pool.map, pool.imap, pool.imap_unordered, pool.starmap, pool.map_async, pool.starmap_async):
        with pytest.raises(ValueError, match="not running"):
            method(f.square, [1])
    pool.join()
    assert [result.ready() for result in later] == [True] * 4
    assert list(lazy) == [0, 1, 4, 9, 16]


def test_context_manager_terminates(make_pool: MakePool) -> None:
    with make_pool(2) as pool:
        assert pool.map(f.square, [2]) == [4]
    with pytest.raises(ValueError, match="not running"):
        pool.apply(f.square, (1,))
    with pytest.raises(ValueError, match="not running"), pool:
        pass
    pool.join()


def test_tasks_that_wait_for_each_other(make_pool: MakePool, tmp_path: Any) -> None:
    """As many as there are processes run at the same time, also after many short ones."""
    pool = make_pool(2)
    pool.map(f.square, range(2000), 1)
    names = [str(tmp_path / name) for name in ("a", "b")]
    assert pool.starmap(meet, [(names[0], names[1]), (names[1], names[0])], 1) == [True, True]


def meet(mine: str, other: str) -> bool:
    import pathlib

    pathlib.Path(mine).touch()
    wait_until(pathlib.Path(other).exists, 20)
    return True


def test_tasks_sent_together_do_not_wait_behind_a_long_one(make_pool: MakePool, tmp_path: Any) -> None:
    """The function has been short for long, so its tasks are sent several at a time; then one waits for a later one."""
    pool = make_pool(2)
    for _ in range(5):
        pool.map(visit, [("", "")] * 400, 1)
    gate = str(tmp_path / "gate")
    tasks = [("", "")] * 4 + [(gate, "")] + [("", "")] * 3 + [("", gate)] + [("", "")] * 76
    assert pool.map_async(visit, tasks, 1).get(30) == [True] * len(tasks)
    # Both processes answer, and together they ran each task once.
    counts = dict(pool.map(visits, range(2), 1))
    assert len(counts) == 2
    assert sum(counts.values()) == 2000 + len(tasks)


def visits(_x: int) -> tuple[int, int]:
    f.slow(0.3)  # So that the other process takes the other call.
    return os.getpid(), f.state.get("visits", 0)


def visit(task: tuple[str, str]) -> bool:
    import pathlib

    f.state["visits"] = f.state.get("visits", 0) + 1

    wait_for, touch = task
    if wait_for:
        wait_until(pathlib.Path(wait_for).exists, 20)
    if touch:
        pathlib.Path(touch).touch()
    return True


def test_many_threads_share_a_pool(pool: Any) -> None:
    found: dict[int, list[int]] = {}

    def use(number: int) -> None:
        found[number] = [pool.apply_async(f.add, (number, x)).get(30) for x in range(50)]

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [number + x for x in range(50)] for number in range(6)}
