"""Actors at other nodes."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

import moray
from moray.cluster_utils import Cluster

TIMEOUT_S = 60


@moray.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.count = start

    def add(self, number: int = 1) -> int:
        self.count += number
        return self.count

    def where(self) -> str:
        return str(moray.get_runtime_context().get_node_id())

    def call(self, other: Any, *arguments: Any) -> Any:
        return moray.get(other.add.remote(*arguments))

    def leave(self) -> None:
        os._exit(5)


def test_an_actor_lives_where_its_resources_are(shared_session: Cluster) -> None:
    actor = Counter.options(resources={"c": 1}).remote(10)
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) == shared_session.worker_nodes[1].node_id
    assert moray.get([actor.add.remote() for _ in range(100)], timeout=TIMEOUT_S) == list(range(11, 111))


@pytest.mark.usefixtures("shared_session")
def test_actors_call_each_other_over_nodes() -> None:
    at_b = Counter.options(resources={"b": 1}).remote()
    at_c = Counter.options(resources={"c": 1}).remote()
    assert moray.get(at_b.call.remote(at_c, 5), timeout=TIMEOUT_S) == 5
    assert moray.get(at_c.call.remote(at_b, 7), timeout=TIMEOUT_S) == 7


@pytest.mark.usefixtures("shared_session")
def test_calls_of_one_caller_keep_their_order() -> None:
    @moray.remote
    class Log:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def note(self, number: int) -> None:
            self.seen.append(number)

        def read(self) -> list[int]:
            return self.seen

    log = Log.options(resources={"b": 1}).remote()
    for number in range(1_000):
        log.note.remote(number)
    assert moray.get(log.read.remote(), timeout=TIMEOUT_S) == list(range(1_000))


@pytest.mark.usefixtures("shared_session")
def test_names() -> None:
    kept = Counter.options(name="by name", resources={"b": 1}).remote(3)
    assert moray.get(moray.get_actor("by name").add.remote(), timeout=TIMEOUT_S) == 4

    @moray.remote(resources={"c": 1})
    def from_elsewhere() -> int:
        return int(moray.get(moray.get_actor("by name").add.remote()))

    assert moray.get(from_elsewhere.remote(), timeout=TIMEOUT_S) == 5
    with pytest.raises(ValueError, match="by name"):
        Counter.options(name="by name").remote()
    del kept


@pytest.mark.usefixtures("shared_session")
def test_an_actor_that_dies_is_started_again() -> None:
    actor = Counter.options(resources={"b": 1}, max_restarts=1, max_task_retries=1).remote(7)
    assert moray.get(actor.add.remote(), timeout=TIMEOUT_S) == 8
    actor.leave.options(max_task_retries=0).remote()
    assert moray.get(actor.add.remote(), timeout=TIMEOUT_S) == 8
    actor.leave.options(max_task_retries=0).remote()
    with pytest.raises(moray.exceptions.ActorDiedError, match="exited with code 5"):
        moray.get(actor.add.remote(), timeout=TIMEOUT_S)


@pytest.mark.usefixtures("shared_session")
def test_kill() -> None:
    actor = Counter.options(resources={"c": 1}).remote()
    moray.get(actor.add.remote(), timeout=TIMEOUT_S)
    moray.kill(actor)
    with pytest.raises(moray.exceptions.ActorDiedError):
        moray.get(actor.add.remote(), timeout=TIMEOUT_S)


@pytest.mark.usefixtures("shared_session")
def test_async_actors_and_generators() -> None:
    @moray.remote(resources={"b": 1})
    class Async:
        async def wait(self, seconds: float) -> float:
            await asyncio.sleep(seconds)
            return seconds

        async def items(self, number: int) -> Any:
            for item in range(number):
                yield item

    actor = Async.remote()
    assert moray.get([actor.wait.remote(0.2) for _ in range(20)], timeout=TIMEOUT_S) == [0.2] * 20
    assert [moray.get(ref) for ref in actor.items.options(num_returns="streaming").remote(10)] == list(range(10))


@pytest.mark.usefixtures("shared_session")
def test_a_handle_passed_on_keeps_the_actor_alive() -> None:
    @moray.remote(resources={"c": 1})
    class Keeper:
        def keep(self, handle: list[Any]) -> None:
            self.handle = handle[0]

        def use(self) -> int:
            return int(moray.get(self.handle.add.remote()))

    keeper = Keeper.remote()
    counter = Counter.options(resources={"b": 1}).remote()
    moray.get(keeper.keep.remote([counter]), timeout=TIMEOUT_S)
    del counter
    assert moray.get(keeper.use.remote(), timeout=TIMEOUT_S) == 1
    assert moray.get(keeper.use.remote(), timeout=TIMEOUT_S) == 2
