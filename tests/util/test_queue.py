"""Queues between processes: every method, waits, timeouts, interrupts, many users at once."""

from __future__ import annotations

import asyncio
import queue as stdlib
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from moray.util.queue import Empty, Full, JoinableQueue, Queue
from tests.support.procs import run_driver


@pytest.fixture
def queue(shared_session: ModuleType) -> Iterator[Queue]:
    made = Queue()
    yield made
    made.shutdown(force=True)


def test_order_and_sizes(queue: Queue) -> None:
    assert queue.empty()
    assert not queue.full()
    for item in range(10):
        queue.put(item)
    assert queue.size() == queue.qsize() == len(queue) == 10
    assert [queue.get() for _ in range(10)] == list(range(10))
    assert queue.empty()


def test_empty_and_full(shared_session: ModuleType) -> None:
    queue = Queue(maxsize=1)
    for get in (
        queue.get_nowait,
        lambda: queue.get(block=False),
        lambda: queue.get(timeout=0.05),
        lambda: queue.get(timeout=0),
    ):
        with pytest.raises(Empty) as caught:
            get()
        assert type(caught.value) is Empty
        assert isinstance(caught.value, stdlib.Empty)
    queue.put(1)
    assert queue.full()
    for arguments in ({"block": False}, {"timeout": 0.05}, {"timeout": 0}):
        with pytest.raises(Full) as caught_full:
            queue.put(2, **arguments)
        assert isinstance(caught_full.value, stdlib.Full)
    with pytest.raises(Full):
        queue.put_nowait(2)
    with pytest.raises(ValueError, match="timeout=-1"):
        queue.put(1, timeout=-1)
    with pytest.raises(ValueError, match="timeout=-1"):
        queue.get(timeout=-1)
    assert queue.get() == 1
    queue.shutdown(force=True)


def test_batches_are_one_step(shared_session: ModuleType) -> None:
    queue = Queue(maxsize=5)
    queue.put_nowait_batch(iter([1, 2, 3]))
    with pytest.raises(Full, match="cannot add 3 items: the queue has 3, and room for 5"):
        queue.put_nowait_batch([4, 5, 6])
    with pytest.raises(Empty, match="cannot get 4 items: the queue has 3"):
        queue.get_nowait_batch(4)
    assert queue.get_nowait_batch(0) == []
    assert queue.get_nowait_batch(3) == [1, 2, 3]
    with pytest.raises(TypeError):
        queue.put_nowait_batch(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        queue.get_nowait_batch("2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="-1"):
        queue.get_nowait_batch(-1)
    queue.shutdown()


def test_waiting_gets_and_puts_meet(shared_session: ModuleType) -> None:
    """Far more that wait than an actor's usual concurrency."""
    import moray

    queue = Queue(maxsize=1)
    waiting = [queue.actor.get.remote() for _ in range(1500)]
    for item in range(1500):
        queue.put(item)
    assert sorted(moray.get(waiting, timeout=60)) == list(range(1500))
    queue.shutdown(force=True)


def test_async_methods(queue: Queue) -> None:
    async def use() -> list[Any]:
        getter = asyncio.create_task(queue.get_async())
        await queue.put_async("a")
        await queue.put_async("b", block=False)
        found = [await getter, await queue.get_async(block=False)]
        with pytest.raises(Empty):
            await queue.get_async(timeout=0.05)
        with pytest.raises(Empty):
            await queue.get_async(block=False)
        return found

    assert asyncio.run(use()) == ["a", "b"]


def test_a_cancelled_get_takes_nothing(queue: Queue) -> None:
    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(queue.get_async(), 0.1)

    asyncio.run(give_up())
    queue.put("kept")
    assert queue.get(timeout=20) == "kept"


def test_producers_and_consumers_in_tasks_and_actors(queue: Queue) -> None:
    import moray

    @moray.remote(num_cpus=0)
    def produce(to: Queue, first: int) -> None:
        for item in range(first, first + 50):
            to.put(item)

    @moray.remote
    class Consumer:
        def take(self, source: Queue, count: int) -> list[int]:
            return [source.get() for _ in range(count)]

    consumers = [Consumer.remote() for _ in range(2)]
    taken = [consumer.take.remote(queue, 75) for consumer in consumers]
    moray.get([produce.remote(queue, first) for first in (0, 50, 100)], timeout=60)
    lists = moray.get(taken, timeout=60)
    assert sorted(lists[0] + lists[1]) == list(range(150))
    for items in lists:  # What one producer put is got in its order.
        for first in (0, 50, 100):
            mine = [item for item in items if first <= item < first + 50]
            assert mine == sorted(mine)


def test_options_of_the_actor_and_what_items_may_be(shared_session: ModuleType) -> None:
    import moray

    queue = Queue(actor_options={"name": "the_queue"})
    ref = moray.put("value")
    queue.put([ref])
    queue.put(lambda x: x + 1)
    assert moray.get(moray.get_actor("the_queue").qsize.remote()) == 2
    assert queue.get() == [ref]
    assert queue.get()(1) == 2
    queue.shutdown(force=True)


def test_after_shutdown(shared_session: ModuleType) -> None:
    import moray

    queue = Queue()
    other: Queue = moray.get(moray.put(queue))
    queue.put(1)
    queue.shutdown()
    queue.shutdown()
    assert queue.actor is None
    with pytest.raises(RuntimeError, match="shut down"):
        queue.put(2)
    with pytest.raises(moray.exceptions.ActorDiedError):
        other.get(timeout=5)


def test_shutdown_ends_waiting_calls(shared_session: ModuleType) -> None:
    import moray

    queue = Queue()
    waiting = queue.actor.get.remote()
    queue.shutdown(grace_period_s=5)
    with pytest.raises(moray.exceptions.ActorDiedError):
        moray.get(waiting, timeout=20)


def test_joinable(shared_session: ModuleType) -> None:
    from moray.util.multiprocessing import JoinableQueue as SameQueue

    assert SameQueue is JoinableQueue
    queue = JoinableQueue(2)
    queue.put(1)
    queue.put(2)
    joined = threading.Event()
    thread = threading.Thread(target=lambda: (queue.join(), joined.set()))  # type: ignore[func-returns-value]
    thread.start()
    queue.get()
    queue.task_done()
    assert not joined.wait(0.1)
    queue.get()
    queue.task_done()
    assert joined.wait(20)
    thread.join()
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()
    queue.close()
    queue.join_thread()
    queue.shutdown(force=True)


@pytest.mark.slow
def test_an_interrupted_get_takes_nothing() -> None:
    out = run_driver("""
        import os, signal, threading
        from moray.util.queue import Queue
        queue = Queue()
        queue.qsize()
        for item in range(20):
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                queue.get()
            except KeyboardInterrupt:
                pass
            queue.put(item)
            assert queue.get(timeout=10) == item, item
        print("all there")
        """).stdout
    assert out.strip() == "all there"
