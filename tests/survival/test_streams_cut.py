"""Connections to living actors are cut while generators run: no item is lost, repeated or out of order (STREAM-5)."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return,no-untyped-call"

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import moray
from moray.exceptions import TaskCancelledError
from moray.runtime import state
from tests.support.procs import wait_until
from tests.support.tables import wait_until_empty
from tests.survival.test_actors_connections import Cutter, cut_all

pytestmark = pytest.mark.slow

ITEMS = 300


class Source:
    """Makes items of several kinds."""

    def __init__(self) -> None:
        self.resumed = 0

    def small(self, count: int, pause_s: float = 0.0003) -> Iterator[int]:
        for number in range(count):
            time.sleep(pause_s)
            self.resumed = number
            yield number

    def fast(self, count: int, size: int) -> Iterator[bytes]:
        for number in range(count):
            yield number.to_bytes(4, "big") * (size // 4)

    def large(self, count: int) -> Iterator[Any]:
        for number in range(count):
            yield np.full(40_000, number)

    def references(self, count: int, given: list[Any]) -> Iterator[list[Any]]:
        for number in range(count):
            time.sleep(0.001)
            yield [moray.put(number), given[0]]

    def fails(self, count: int) -> Iterator[int]:
        yield from self.small(count)
        raise ValueError("after all items")

    def how_far(self) -> int:
        return self.resumed

    def still_keeps(self) -> int:
        from moray.runtime import stream_producer

        return len(stream_producer._producers)


class AsyncSource:
    """The same, with coroutines."""

    async def small(self, count: int, pause_s: float = 0.0003) -> AsyncIterator[int]:
        import asyncio

        for number in range(count):
            await asyncio.sleep(pause_s)
            yield number

    async def ready(self) -> None:
        pass


def make(kind: str) -> Any:
    cls: Any = AsyncSource if kind == "async" else Source
    options: dict[str, Any] = {"num_cpus": 0} | ({"max_concurrency": 3} if kind == "threaded" else {})
    actor = moray.remote(**options)(cls).remote()
    moray.get(actor.__ray_ready__.remote(), timeout=30)
    return actor


KINDS = pytest.mark.parametrize("kind", ["sync", "threaded", "async"])


# Each kind of actor and both ways of the stream in ordinary runs; the other pairs in long ones.
@pytest.mark.parametrize(
    ("kind", "ahead"),
    [
        ("sync", 3),
        ("threaded", -1),
        ("async", 3),
        pytest.param("sync", -1, marks=pytest.mark.long),
        pytest.param("threaded", 3, marks=pytest.mark.long),
        pytest.param("async", -1, marks=pytest.mark.long),
    ],
)
def test_every_item_comes_once_in_order(moray_session: ModuleType, kind: str, ahead: int) -> None:
    actor = make(kind)
    method = actor.small.options(_generator_backpressure_num_objects=ahead)
    with Cutter(11, 0.03) as cutter:
        for _ in range(2):
            items = [moray.get(ref, timeout=30) for ref in method.remote(ITEMS)]
            assert items == list(range(ITEMS))
    assert cutter.cuts > 2


def test_several_at_once(moray_session: ModuleType) -> None:
    actor = make("async")
    with Cutter(12, 0.03) as cutter:
        streams = [actor.small.remote(ITEMS) for _ in range(5)]
        for stream in streams:
            assert [moray.get(ref, timeout=30) for ref in stream] == list(range(ITEMS))
    assert cutter.cuts > 2


@pytest.mark.parametrize("size", [1000, 60_000])
def test_items_that_fill_the_socket(moray_session: ModuleType, size: int) -> None:
    """What was sent and not read is sent again, however much it is."""
    actor = make("sync")
    with Cutter(13, 0.02) as cutter:
        for _ in range(2):
            for number, ref in enumerate(actor.fast.remote(1500, size)):
                value = moray.get(ref, timeout=30)
                assert len(value) == size
                assert value[:4] == number.to_bytes(4, "big")
            assert number == 1499
    assert cutter.cuts > 1


def test_items_in_the_store(moray_session: ModuleType) -> None:
    actor = make("sync")
    with Cutter(14, 0.02):
        for number, ref in enumerate(actor.large.remote(120)):
            value = moray.get(ref, timeout=30)
            assert int(value[0]) == int(value[-1]) == number
            del value
    assert number == 119


def test_items_with_references(moray_session: ModuleType) -> None:
    """Each is alive when it arrives (REF-SEND), and nothing stays behind."""
    actor = make("sync")
    with Cutter(15, 0.03):
        for _ in range(4):
            given = moray.put("given")
            for number, ref in enumerate(actor.references.remote(60, [given])):
                made, back = moray.get(ref, timeout=30)
                assert moray.get(made, timeout=30) == number
                assert moray.get(back, timeout=30) == "given"
                del made, back
            assert number == 59
            del given, ref
    del actor
    assert state.runtime is not None
    wait_until_empty(state.runtime)


def test_the_error_comes_after_all_items(moray_session: ModuleType) -> None:
    actor = make("sync")
    with Cutter(16, 0.03):
        for _ in range(3):
            refs = list(actor.fails.remote(ITEMS))
            assert moray.get(refs[:-1], timeout=30) == list(range(ITEMS))
            with pytest.raises(ValueError, match="after all items"):
                moray.get(refs[-1], timeout=30)


def test_a_paused_generator_goes_on_after_a_reconnect(moray_session: ModuleType) -> None:
    """The word that it may go on was lost with the connection: it is said again on the next one."""
    actor = make("threaded")
    stream = actor.small.options(_generator_backpressure_num_objects=2).remote(50)
    items = [moray.get(next(stream), timeout=30)]
    for _ in range(48):
        items.append(moray.get(next(stream), timeout=30))
        cut_all()
    items.append(moray.get(next(stream), timeout=30))
    assert items == list(range(50))
    with pytest.raises(StopIteration):
        next(stream)


def test_a_finished_generator_keeps_its_items_until_they_are_known(moray_session: ModuleType) -> None:
    """They are dropped once the caller has said that it has the reply, which it does within a second."""
    actor = make("sync")
    assert len(list(actor.small.remote(20))) == 20
    wait_until(lambda: moray.get(actor.still_keeps.remote(), timeout=30) == 0, 10)


def test_dynamic_generators(moray_session: ModuleType) -> None:
    actor = make("sync")
    with Cutter(17, 0.03):
        for _ in range(2):
            inner = moray.get(actor.small.options(num_returns="dynamic").remote(ITEMS), timeout=60)
            assert moray.get(list(inner), timeout=30) == list(range(ITEMS))


def test_cancelled_while_connections_are_cut(moray_session: ModuleType) -> None:
    actor = make("sync")
    for _ in range(5):
        stream = actor.small.remote(100_000, 0.001)
        assert moray.get(next(stream), timeout=30) == 0
        cut_all()
        moray.cancel(stream)
        with pytest.raises(TaskCancelledError):
            for ref in stream:
                moray.get(ref, timeout=30)
