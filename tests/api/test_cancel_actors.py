"""Cancel of actors' calls and of generators: the call ends, the actor goes on (CANCEL, STREAM)."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return"
# ruff: noqa: ASYNC240, ASYNC251 - the files tell the test how far it is, and one blocks its loop on purpose.

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.exceptions import TaskCancelledError
from tests.support.procs import wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


def cancelled(ref: Any, timeout: float = 20) -> TaskCancelledError:
    """The error that `ref` must give."""
    with pytest.raises(TaskCancelledError) as caught:
        moray.get(ref, timeout=timeout)
    return caught.value


def begun(path: Path) -> None:
    wait_until(path.exists, 20, f"{path.name}: the begin of the task")


@moray.remote
def echo(value: Any) -> Any:
    return value


# --- actors ---------------------------------------------------------------------------------------


@moray.remote
class Sync:
    def __init__(self) -> None:
        self.calls = 0

    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float, path: str = "") -> None:
        self.calls += 1
        if path:
            Path(path).touch()
        time.sleep(seconds)

    def count(self, *_values: Any) -> int:
        return self.calls

    def items(self, path: str, pause: float) -> Iterator[int]:
        try:
            for number in range(1_000_000):
                Path(path).touch()
                yield number
                time.sleep(pause)
        finally:
            Path(path + " ended").touch()


@moray.remote
class Async:
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def sleep(self, seconds: float, path: str = "") -> None:
        try:
            if path:
                Path(path).touch()
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.seen.append("CancelledError")
            raise

    async def swallow(self, path: str) -> str:
        try:
            Path(path).touch()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "swallowed"
        return "slept"

    async def block(self, seconds: float, path: str) -> None:
        Path(path).touch()
        time.sleep(seconds)

    async def what_was_seen(self) -> list[str]:
        return self.seen

    async def items(self, path: str) -> AsyncIterator[int]:
        try:
            for number in range(1_000_000):
                Path(path).touch()
                yield number
                await asyncio.sleep(0.01)
        finally:
            Path(path + " ended").touch()


def test_a_call_of_a_sync_actor_is_interrupted_and_the_actor_goes_on(tmp_path: Path) -> None:
    actor = Sync.remote()
    process = moray.get(actor.pid.remote(), timeout=20)
    for number in range(5):
        path = tmp_path / str(number)
        ref = actor.sleep.remote(60, str(path))
        behind = [actor.count.remote() for _ in range(3)]
        begun(path)
        moray.cancel(ref)
        cancelled(ref)
        assert moray.get(behind, timeout=20) == [number + 1] * 3
    assert moray.get(actor.pid.remote(), timeout=20) == process


def test_queued_calls_of_a_sync_actor_never_run(tmp_path: Path) -> None:
    actor = Sync.remote()
    running = actor.sleep.remote(1, str(tmp_path / "begun"))
    begun(tmp_path / "begun")
    queued = [actor.sleep.remote(0) for _ in range(10)]
    for ref in queued:
        moray.cancel(ref)
    for ref in queued:
        assert "it had not begun" in str(cancelled(ref, 0.9))
    moray.get(running, timeout=20)
    assert moray.get(actor.count.remote(), timeout=20) == 1


def test_calls_behind_a_cancelled_one_that_waited_for_arguments_go_on(tmp_path: Path) -> None:
    """Calls of one caller go out in order: those behind it must not wait for what never comes."""
    actor = Sync.remote()
    moray.get(actor.count.remote(), timeout=20)

    @moray.remote(num_cpus=0)
    def never() -> None:
        wait_until((tmp_path / "go").exists, 60)

    argument = never.remote()
    waits = actor.count.remote(argument)
    behind = [actor.count.remote() for _ in range(3)]
    moray.wait(behind, timeout=0.2)
    moray.cancel(waits)
    cancelled(waits)
    assert moray.get(behind, timeout=10) == [0, 0, 0]
    (tmp_path / "go").touch()
    moray.get(argument, timeout=20)


def test_calls_of_an_actor_that_is_not_there_yet() -> None:
    """Its constructor goes on: only the calls are cancelled."""

    @moray.remote
    class Slow:
        def __init__(self) -> None:
            time.sleep(1)

        def one(self) -> int:
            return 1

    actor = Slow.remote()
    refs = [actor.one.remote() for _ in range(3)]
    moray.cancel(refs[0])
    moray.cancel(refs[2])
    cancelled(refs[0], 0.9)
    cancelled(refs[2], 0.9)
    assert moray.get(refs[1], timeout=20) == 1


def test_a_coroutine_sees_cancelled_error_and_the_actor_goes_on(tmp_path: Path) -> None:
    actor = Async.remote()
    refs = []
    for number in range(5):
        refs.append(actor.sleep.remote(60, str(tmp_path / str(number))))
        begun(tmp_path / str(number))
    for ref in refs:
        moray.cancel(ref)
    for ref in refs:
        assert "coroutine was cancelled" in str(cancelled(ref))
    assert moray.get(actor.what_was_seen.remote(), timeout=20) == ["CancelledError"] * 5


def test_a_coroutine_that_tidies_up_and_returns_is_cancelled_all_the_same(tmp_path: Path) -> None:
    """Whoever cancelled it does not take what was left over for a result."""
    actor = Async.remote()
    ref = actor.swallow.remote(str(tmp_path / "begun"))
    begun(tmp_path / "begun")
    moray.cancel(ref)
    assert "it ended after it had been asked to" in str(cancelled(ref))


def test_a_call_of_an_async_actor_whose_loop_is_busy(tmp_path: Path) -> None:
    """The call has arrived, and no coroutine of it has begun."""
    actor = Async.remote()
    blocking = actor.block.remote(1, str(tmp_path / "begun"))
    begun(tmp_path / "begun")
    refs = [actor.sleep.remote(60) for _ in range(5)]
    moray.wait(refs, timeout=0.3)
    for ref in refs:
        moray.cancel(ref)
    for ref in refs:
        cancelled(ref)
    moray.get(blocking, timeout=20)
    assert moray.get(actor.what_was_seen.remote(), timeout=20) == []


def test_a_call_that_waits_for_its_turn_in_an_async_actor(tmp_path: Path) -> None:
    actor = Async.options(max_concurrency=1).remote()
    running = actor.sleep.remote(60, str(tmp_path / "begun"))
    begun(tmp_path / "begun")
    waiting = [actor.sleep.remote(60, str(tmp_path / "wrong")) for _ in range(3)]
    moray.wait(waiting, timeout=0.3)
    for ref in waiting:
        moray.cancel(ref)
    for ref in waiting:
        cancelled(ref)
    moray.cancel(running)
    cancelled(running)
    assert moray.get(actor.what_was_seen.remote(), timeout=20) == ["CancelledError"]
    assert not (tmp_path / "wrong").exists()


@moray.remote(max_concurrency=2)
class Threaded:
    def until_canceled(self, path: str) -> str:
        Path(path).touch()
        while not moray.get_runtime_context().is_canceled():
            time.sleep(0.01)
        return "left"

    def hold(self, path: str) -> str:
        wait_until(Path(path).exists, 30)
        return "canceled" if moray.get_runtime_context().is_canceled() else "not canceled"


def test_a_thread_asks_whether_it_is_cancelled(tmp_path: Path) -> None:
    actor = Threaded.remote()
    ref = actor.until_canceled.remote(str(tmp_path / "begun"))
    other = actor.hold.remote(str(tmp_path / "go"))
    begun(tmp_path / "begun")
    moray.cancel(ref)
    assert "had been asked to" in str(cancelled(ref))  # What it returned then is nobody's.
    (tmp_path / "go").touch()
    assert moray.get(other, timeout=20) == "not canceled"


def test_queued_calls_of_a_threaded_actor_never_run(tmp_path: Path) -> None:
    actor = Threaded.remote()
    running = [actor.hold.remote(str(tmp_path / "go")) for _ in range(2)]
    queued = [actor.hold.remote(str(tmp_path / "go")) for _ in range(5)]
    moray.wait(queued, timeout=0.3)
    for ref in queued:
        moray.cancel(ref)
    for ref in queued:
        cancelled(ref, 10)
    (tmp_path / "go").touch()
    assert moray.get(running, timeout=20) == ["not canceled"] * 2
    assert moray.get(actor.hold.remote(str(tmp_path / "go")), timeout=20) == "not canceled"


def test_children_of_a_call_end_with_it(tmp_path: Path) -> None:
    @moray.remote(num_cpus=0)
    def child() -> None:
        try:
            (tmp_path / "begun").touch()
            time.sleep(60)
        finally:
            (tmp_path / "ended").touch()

    @moray.remote(num_cpus=0)
    class Parent:
        def work(self) -> None:
            moray.get(child.remote())

    @moray.remote(num_cpus=0)
    class AsyncParent:
        async def work(self) -> None:
            await child.remote()

    for kind in (Parent, AsyncParent):
        actor = kind.remote()
        ref = actor.work.remote()
        begun(tmp_path / "begun")
        moray.cancel(ref)
        cancelled(ref)
        wait_until((tmp_path / "ended").exists, 20, "the child's end")
        (tmp_path / "begun").unlink()
        (tmp_path / "ended").unlink()


def test_force_is_refused_for_calls_of_actors() -> None:
    actor = Sync.remote()
    ref = actor.sleep.remote(60)
    with pytest.raises(ValueError, match=r"force=True.*moray\.kill"):
        moray.cancel(ref, force=True)
    moray.cancel(ref)
    cancelled(ref)


# --- generators -----------------------------------------------------------------------------------


@moray.remote
def count_up(path: str, pause: float) -> Iterator[int]:
    try:
        for number in range(1_000_000):
            Path(path).touch()
            yield number
            time.sleep(pause)
    finally:
        Path(path + " ended").touch()


@moray.remote
async def count_async(path: str) -> AsyncIterator[int]:
    try:
        for number in range(1_000_000):
            Path(path).touch()
            yield number
            await asyncio.sleep(0.01)
    finally:
        Path(path + " ended").touch()


def _generator(kind: str, path: str) -> tuple[Any, Any]:
    """(the generator, what must be kept)."""
    if kind == "task":
        return count_up.remote(path, 0.01), None
    if kind == "task in a hurry":
        return count_up.remote(path, 0), None
    if kind == "async task":
        return count_async.remote(path), None
    actor = Async.remote() if kind == "async method" else Sync.remote()
    return (actor.items.remote(path) if kind == "async method" else actor.items.remote(path, 0.01)), actor


GENERATORS = ["task", "task in a hurry", "async task", "method", "async method"]


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("how", ["cancel", "drop"])
def test_generators_end(tmp_path: Path, kind: str, how: str) -> None:
    path = tmp_path / "begun"
    items, actor = _generator(kind, str(path))
    assert moray.get(next(items), timeout=20) == 0
    if how == "drop":
        del items
    else:
        moray.cancel(items)
        with pytest.raises(TaskCancelledError):
            for item in items:
                moray.get(item, timeout=20)
        cancelled(items.completed())
        with pytest.raises(StopIteration):
            next(items)
    wait_until((tmp_path / "begun ended").exists, 20, "the end of the generator")
    if kind == "method":
        assert moray.get(actor.count.remote(), timeout=20) == 0
    elif kind == "async method":
        assert moray.get(actor.what_was_seen.remote(), timeout=20) == []
    assert moray.get(echo.remote(1), timeout=20) == 1


def test_a_generator_that_waits_for_its_consumer_is_cancelled(tmp_path: Path) -> None:
    items = count_up.options(_generator_backpressure_num_objects=2).remote(str(tmp_path / "begun"), 0)
    assert moray.get(next(items), timeout=20) == 0
    moray.wait([items.completed()], timeout=0.3)
    moray.cancel(items)
    wait_until((tmp_path / "begun ended").exists, 20, "the end of the generator")
    cancelled(items.completed())
