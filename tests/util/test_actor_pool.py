"""ActorPool: results in order and as they come, timeouts, errors, actors that come and go, its fields."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import pytest

from moray.util import ActorPool


class Worker:
    def double(self, x: int) -> int:
        if x == 13:
            raise ValueError("unlucky")
        return 2 * x

    def slow(self, seconds: float) -> float:
        import time

        time.sleep(seconds)
        return seconds

    def pair(self, x: int) -> tuple[int, int]:
        return x, -x

    def pid(self, _x: Any = None) -> int:
        return os.getpid()


@pytest.fixture
def actors(shared_session: ModuleType) -> list[Any]:
    kind = shared_session.remote(Worker)
    return [kind.remote() for _ in range(2)]


def double(actor: Any, x: int) -> Any:
    return actor.double.remote(x)


def slow(actor: Any, x: float) -> Any:
    return actor.slow.remote(x)


def test_map_and_map_unordered(actors: list[Any]) -> None:
    pool: ActorPool[int] = ActorPool(actors)
    assert list(pool.map(double, range(12))) == [2 * x for x in range(12)]
    assert sorted(pool.map_unordered(double, iter(range(12)))) == [2 * x for x in range(12)]
    assert not pool.has_next()
    assert len(set(pool.map(lambda actor, x: actor.pid.remote(x), range(10)))) == 2


def test_map_submits_at_once(actors: list[Any]) -> None:
    pool: ActorPool[int] = ActorPool(actors)
    results = pool.map(double, [1, 2, 3])
    assert pool.has_next()
    assert len(pool._pending_submits) == 1
    assert list(results) == [2, 4, 6]


def test_submit_and_get_next(actors: list[Any]) -> None:
    pool: ActorPool[int] = ActorPool(actors)
    assert pool.has_free()
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()
    for x in range(5):
        pool.submit(double, x)
    assert not pool.has_free()
    assert pool.pop_idle() is None
    assert [pool.get_next() for _ in range(5)] == [0, 2, 4, 6, 8]
    assert not pool.has_next()
    assert pool.has_free()


def test_the_fields_that_programs_read(actors: list[Any]) -> None:
    pool: ActorPool[int] = ActorPool(actors)
    assert pool._idle_actors == actors
    for x in range(3):
        pool.submit(double, x)
    assert pool._idle_actors == []
    assert sorted(index for index, _actor in pool._future_to_actor.values()) == [0, 1]
    assert set(pool._index_to_future.values()) == set(pool._future_to_actor)
    assert pool._pending_submits == [(double, 2)]
    assert [pool.get_next() for _ in range(3)] == [0, 2, 4]
    assert pool._future_to_actor == pool._index_to_future == {}


def test_unordered_gives_the_quick_first_and_forbids_going_back(actors: list[Any]) -> None:
    pool: ActorPool[float] = ActorPool(actors)
    pool.submit(slow, 0.5)
    pool.submit(slow, 0.0)
    assert pool.get_next_unordered() == 0.0
    with pytest.raises(ValueError, match="get_next_unordered"):
        pool.get_next()
    assert pool.get_next_unordered() == 0.5


@pytest.mark.parametrize("method", ["get_next", "get_next_unordered"])
def test_timeouts(actors: list[Any], method: str) -> None:
    pool: ActorPool[float] = ActorPool(actors)
    pool.submit(slow, 0.3)
    get = getattr(pool, method)
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        get(timeout=0.01)
    assert pool.has_next()
    assert get(timeout=20) == 0.3
    pool.submit(slow, 0.3)
    with pytest.raises(TimeoutError, match="given up"):
        get(timeout=0.01, ignore_if_timedout=True)
    assert not pool.has_next()
    assert len(pool._idle_actors) == 2
    pool.submit(slow, 0.0)
    assert get(20, False) == 0.0


def test_an_error_is_raised_and_its_actor_goes_on(actors: list[Any]) -> None:
    pool: ActorPool[int] = ActorPool(actors[:1])
    for x in (1, 13, 2):
        pool.submit(double, x)
    assert pool.get_next() == 2
    with pytest.raises(ValueError, match="unlucky"):
        pool.get_next()
    assert pool.get_next() == 4
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda _actor, _x: 1 / 0, 1)
    assert pool.has_free()
    assert list(pool.map(double, [5])) == [10]


def test_map_drops_what_nobody_took(actors: list[Any]) -> None:
    pool: ActorPool[int] = ActorPool(actors)
    for x in (1, 13, 3, 4):
        pool.submit(double, x)
    assert list(pool.map(double, [7, 8])) == [14, 16]


def test_push_and_pop_idle(actors: list[Any]) -> None:
    pool: ActorPool[int] = ActorPool(actors[:1])
    pool.submit(double, 1)
    pool.submit(double, 2)
    with pytest.raises(ValueError, match="already belongs"):
        pool.push(actors[0])
    pool.push(actors[1])
    with pytest.raises(ValueError, match="already belongs"):
        pool.push(actors[1])
    assert [pool.get_next(), pool.get_next()] == [2, 4]
    taken = pool.pop_idle()
    assert taken in actors
    assert len(pool._idle_actors) == 1
    pool.push(taken)
    assert len(pool._idle_actors) == 2


def test_calls_with_several_results(actors: list[Any]) -> None:
    pool: ActorPool[int] = ActorPool(actors)
    results = list(pool.map(lambda actor, x: actor.pair.options(num_returns=2).remote(x), [1, 2, 3]))
    assert results == [[1, -1], [2, -2], [3, -3]]


def test_a_pool_of_actors_in_a_task(actors: list[Any], shared_session: ModuleType) -> None:
    @shared_session.remote
    def use(handles: list[Any]) -> list[int]:
        pool: ActorPool[int] = ActorPool(handles)
        return list(pool.map(lambda actor, x: actor.double.remote(x), [1, 2]))

    assert shared_session.get(use.remote(actors), timeout=30) == [2, 4]
