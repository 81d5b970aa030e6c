"""References in event loops and as futures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from typing import Any

import pytest

import moray

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote
def after(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


@moray.remote
def fail() -> None:
    raise KeyError("async")


# --- await ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_await(size: int) -> None:
    async def main() -> Any:
        return await after.remote(0, b"x" * size), await moray.put(b"y" * size)

    assert asyncio.run(main()) == (b"x" * size, b"y" * size)


def test_await_does_not_stop_the_loop() -> None:
    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticker = asyncio.create_task(tick())
        await after.remote(0.3)
        ticker.cancel()
        return ticks

    assert asyncio.run(main()) >= 10


def test_gather_keeps_order() -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*[after.remote(0, i) for i in range(200)]))

    assert asyncio.run(main()) == list(range(200))


def test_as_completed() -> None:
    async def main() -> list[str]:
        slow, fast = after.remote(0.4, "slow"), after.remote(0.05, "fast")
        return [await next_one for next_one in asyncio.as_completed([_wrap(slow), _wrap(fast)])]

    async def _wrap(ref: Any) -> Any:
        return await ref

    assert asyncio.run(main()) == ["fast", "slow"]


def test_wait_for_times_out_and_the_value_is_still_there() -> None:
    async def main() -> Any:
        ref = after.remote(0.5, "late")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ref, 0.05)
        return await ref

    assert asyncio.run(main()) == "late"


def test_cancelled_await_does_not_cancel_the_task() -> None:
    async def main() -> Any:
        ref = after.remote(0.2, "done")

        async def waiting() -> Any:
            return await ref

        task = asyncio.create_task(waiting())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await ref

    assert asyncio.run(main()) == "done"


def test_error_is_raised_by_await() -> None:
    async def main() -> None:
        await fail.remote()

    with pytest.raises(KeyError):
        asyncio.run(main())


def test_await_twice() -> None:
    async def main() -> tuple[Any, Any]:
        ref = after.remote(0.01, 1)
        return await ref, await ref

    assert asyncio.run(main()) == (1, 1)


def test_several_loops_in_several_threads() -> None:
    ref, got = after.remote(0.1, "shared"), []

    async def main() -> None:
        got.append(await ref)

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got == ["shared"] * 5


def test_loop_that_ended_before_the_value_came() -> None:
    async def give_up(ref: Any) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ref, 0.01)

    ref = after.remote(0.2, "late")
    asyncio.run(give_up(ref))
    assert moray.get(ref) == "late"


def test_async_code_in_a_task() -> None:
    @moray.remote
    def run() -> list[int]:
        async def main() -> list[int]:
            return list(await asyncio.gather(*[after.remote(0, i) for i in range(5)]))

        return asyncio.run(main())

    assert moray.get(run.remote(), timeout=30) == list(range(5))


# --- futures --------------------------------------------------------------------------------------


def test_future() -> None:
    future = after.remote(0.05, "value").future()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(timeout=20) == "value"
    assert future.done()


def test_future_of_something_ready() -> None:
    ref = moray.put(b"x" * 1_000_000)
    assert len(ref.future().result(timeout=20)) == 1_000_000


def test_future_of_a_failed_task() -> None:
    assert isinstance(fail.remote().future().exception(timeout=20), KeyError)


def test_future_times_out() -> None:
    with pytest.raises(concurrent.futures.TimeoutError):
        after.remote(0.3).future().result(timeout=0.01)


def test_standard_library_waits_for_futures() -> None:
    futures = [after.remote(0, i).future() for i in range(20)]
    done, pending = concurrent.futures.wait(futures, timeout=20)
    assert sorted(future.result() for future in done) == list(range(20))
    assert not pending


def test_callback_may_use_the_api() -> None:
    """CALLBACKS: a callback does not run where it could stop the replies that it waits for."""
    got: list[Any] = []
    finished = threading.Event()

    def callback(future: concurrent.futures.Future[Any]) -> None:
        got.append(moray.get(after.remote(0.05, future.result() + 1)))
        finished.set()

    after.remote(0.05, 1).future().add_done_callback(callback)
    assert finished.wait(20)
    assert got == [2]


def test_failing_callback_does_no_harm() -> None:
    finished = threading.Event()

    def callback(_future: concurrent.futures.Future[Any]) -> None:
        finished.set()
        raise RuntimeError("in a callback")

    after.remote(0.01).future().add_done_callback(callback)
    assert finished.wait(20)
    assert moray.get(after.remote(0, 5)) == 5


def test_future_keeps_the_object_alive() -> None:
    @moray.remote
    def large() -> bytes:
        time.sleep(0.1)
        return b"x" * 1_000_000

    future = large.remote().future()
    assert len(future.result(timeout=20)) == 1_000_000
