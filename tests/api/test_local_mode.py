"""``init(local_mode=True)``: what programs see of a session, in one process and in the calling thread."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moray
from moray import exceptions


@pytest.fixture(autouse=True)
def local() -> Iterator[None]:
    moray.init(local_mode=True, num_cpus=2, num_gpus=2)
    try:
        yield
    finally:
        moray.shutdown()


def functions_on_the_stack() -> list[str]:
    frame = sys._getframe()
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return names


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, x: int) -> int:
        self.value += x
        return self.value

    def fail(self) -> None:
        raise ValueError("no")

    def items(self, n: int) -> Iterator[int]:
        for _ in range(n):
            self.value += 1
            yield self.value

    def leave(self) -> None:
        moray.actor.exit_actor()

    def stack(self) -> list[str]:
        return functions_on_the_stack()


# --- where it runs -------------------------------------------------------------------------------


def test_frames_of_tasks_are_above_the_callers() -> None:
    assert "test_frames_of_tasks_are_above_the_callers" in moray.get(moray.remote(functions_on_the_stack).remote())
    counter = moray.remote(Counter).remote()
    assert "test_frames_of_tasks_are_above_the_callers" in moray.get(counter.stack.remote())


def test_nothing_is_started() -> None:
    def place() -> tuple[int, int, int]:
        return os.getpid(), threading.get_ident(), threading.active_count()

    assert moray.get(moray.remote(place).remote()) == (os.getpid(), threading.get_ident(), threading.active_count())


def test_it_has_run_when_remote_returns(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[int] = []
    moray.remote(lambda: ran.append(1)).remote()
    moray.remote(lambda: print("seen")).remote()
    assert ran == [1], "closures are the caller's own"
    assert capsys.readouterr().out == "seen\n"


def test_unpicklable_closures_work() -> None:
    lock = threading.Lock()

    @moray.remote
    def locked() -> bool:
        with lock:
            return lock.locked()

    assert moray.get(locked.remote())


def test_keyboard_interrupts_are_the_callers() -> None:
    @moray.remote
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.remote()


# --- values ----------------------------------------------------------------------------------------


def test_arguments_and_results_are_snapshots() -> None:
    mine = [1]

    @moray.remote
    def change(values: list[int]) -> list[int]:
        values.append(2)
        return values

    ref = change.remote(mine)
    first = moray.get(ref)
    first.append(3)
    assert (mine, moray.get(ref)) == ([1], [1, 2])
    stored = moray.put(mine)
    mine.append(9)
    assert moray.get(stored) == [1]


def test_arrays_are_read_only() -> None:
    array = moray.get(moray.put(np.arange(3)))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_unpicklable_arguments_and_results_are_found() -> None:
    with pytest.raises(TypeError, match="argument 0 of echo"):
        echo.remote(threading.Lock())
    with pytest.raises(TypeError, match="the result of"):
        moray.get(moray.remote(threading.Lock).remote())  # type: ignore[call-overload]


@moray.remote
def echo(value: Any) -> Any:
    return value


def test_references_are_replaced_at_the_top_and_kept_inside() -> None:
    ref = moray.put(7)
    assert moray.get(echo.remote(ref)) == 7
    inside = moray.get(echo.remote([ref]))[0]
    assert inside == ref
    del ref
    assert moray.get(moray.get(echo.remote([inside]))[0]) == 7


def test_num_returns() -> None:
    @moray.remote(num_returns=2)
    def pair() -> tuple[int, int]:
        return 1, 2

    assert moray.get(pair.remote()) == [1, 2]
    assert pair.options(num_returns=0).remote() is None
    with pytest.raises(ValueError, match="returned 2 values"):
        moray.get(pair.options(num_returns=3).remote())


def test_wait_and_timeouts() -> None:
    refs = [echo.remote(i) for i in range(3)]
    assert moray.wait(refs, num_returns=2) == (refs[:2], refs[2:])
    signal = moray.remote(Signal).remote()
    waiting = signal.wait.remote()
    begin = time.monotonic()
    assert moray.wait([waiting, refs[0]], num_returns=2, timeout=0.2) == ([refs[0]], [waiting])
    with pytest.raises(exceptions.GetTimeoutError, match="waits for another call"):
        moray.get(waiting, timeout=0.2)
    assert 0.4 <= time.monotonic() - begin < 5
    signal.send.remote()


def test_futures() -> None:
    assert echo.remote(3).future().result(timeout=5) == 3


# --- errors ------------------------------------------------------------------------------------------


def test_errors_are_raised_by_get_with_both_types() -> None:
    @moray.remote
    def fails() -> None:
        raise KeyError("gone")

    ref = fails.remote()
    with pytest.raises(KeyError) as caught:
        moray.get(ref)
    assert isinstance(caught.value, exceptions.TaskError)
    assert isinstance(caught.value.cause, KeyError)
    assert "in fails" in str(caught.value)
    with pytest.raises(KeyError):
        moray.get(echo.remote(ref))


def test_retries_of_exceptions() -> None:
    tries: list[int] = []

    @moray.remote(max_retries=2, retry_exceptions=[ValueError])
    def third(error: type[Exception]) -> int:
        tries.append(1)
        if len(tries) < 3:
            raise error
        return len(tries)

    assert moray.get(third.remote(ValueError)) == 3
    tries.clear()
    with pytest.raises(KeyError):
        moray.get(third.remote(KeyError))
    assert len(tries) == 1


def test_sys_exit_in_a_task_is_a_crashed_worker() -> None:
    with pytest.raises(exceptions.WorkerCrashedError, match=r"sys\.exit\(3\)"):
        moray.get(moray.remote(max_retries=0)(sys_exit).remote(3))


def sys_exit(code: int) -> None:
    sys.exit(code)


# --- actors -------------------------------------------------------------------------------------------


def test_actors_keep_their_state_and_run_in_order() -> None:
    counter = moray.remote(Counter).remote(10)
    assert moray.get([counter.add.remote(i) for i in range(4)]) == [10, 11, 13, 16]
    with pytest.raises(ValueError, match="no"):
        moray.get(counter.fail.remote())
    assert moray.get(counter.add.remote(0)) == 16


def test_names_and_kill() -> None:
    actor_class = moray.remote(Counter)
    counter = actor_class.options(name="c").remote(1)
    assert moray.get(moray.get_actor("c").add.remote(1)) == 2
    with pytest.raises(exceptions.ActorAlreadyExistsError, match="'c' belongs to"):
        actor_class.options(name="c").remote()
    assert actor_class.options(name="c", get_if_exists=True).remote() == counter
    assert moray.util.list_named_actors() == ["c"]
    moray.kill(counter)
    with pytest.raises(exceptions.ActorDiedError, match=r"killed by moray\.kill"):
        moray.get(counter.add.remote(1))
    with pytest.raises(ValueError, match="no living actor"):
        moray.get_actor("c")


def test_the_last_handle_ends_an_actor_unless_it_is_detached() -> None:
    actor_class = moray.remote(Counter)
    counter = actor_class.options(name="short").remote()
    inside = moray.put([counter])
    del counter
    assert moray.get(moray.get_actor("short").add.remote(1)) == 1
    del inside
    with pytest.raises(ValueError, match="no living actor"):
        moray.get_actor("short")
    actor_class.options(name="long", lifetime="detached").remote()
    assert moray.get(moray.get_actor("long").add.remote(1)) == 1


def test_restarts() -> None:
    counter = moray.remote(Counter).options(max_restarts=1).remote(5)
    moray.get(counter.add.remote(1))
    moray.kill(counter, no_restart=False)
    assert moray.get(counter.add.remote(1)) == 6
    moray.kill(counter, no_restart=False)
    with pytest.raises(exceptions.ActorDiedError):
        moray.get(counter.add.remote(1))


def test_exit_actor() -> None:
    counter = moray.remote(Counter).remote()
    with pytest.raises(exceptions.ActorDiedError, match=r"exit_actor\(\) was called in Counter\.leave"):
        moray.get(counter.leave.remote())
    with pytest.raises(exceptions.ActorDiedError):
        moray.get(counter.add.remote(1))


def test_errors_of_constructors_come_with_the_calls() -> None:
    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("at the start")

        def method(self) -> None: ...

    broken = moray.remote(Broken).remote()
    with pytest.raises(exceptions.ActorDiedError, match="at the start"):
        moray.get(broken.method.remote())


# --- async and threaded actors ------------------------------------------------------------------------


class Signal:
    def __init__(self) -> None:
        asyncio.get_running_loop()
        self.event = asyncio.Event()

    async def wait(self) -> str:
        await self.event.wait()
        return "waited"

    async def send(self) -> None:
        self.event.set()

    async def sleep(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def in_thread(self) -> int:
        return await asyncio.get_running_loop().run_in_executor(None, threading.get_ident)

    async def items(self, n: int) -> Any:
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    async def call_self(self) -> str:
        me = moray.get_runtime_context().current_actor
        ref = me.wait.remote()
        await me.send.remote()
        value: str = await ref
        return value


def test_coroutines_run_through_unless_they_wait_for_another_call() -> None:
    signal = moray.remote(Signal).remote()
    assert moray.get(signal.sleep.remote(0.05)) == 0.05
    waiting = signal.wait.remote()
    later = echo.remote(waiting)
    assert moray.wait([waiting, later], num_returns=2, timeout=0)[0] == []
    signal.send.remote()
    assert moray.wait([waiting, later], num_returns=2, timeout=0)[1] == []
    assert moray.get([waiting, later]) == ["waited", "waited"]
    assert moray.get(signal.in_thread.remote()) != threading.get_ident()


def test_another_thread_may_bring_what_is_waited_for() -> None:
    signal = moray.remote(Signal).remote()
    waiting = signal.wait.remote()
    timer = threading.Timer(0.2, signal.send.remote)
    timer.start()
    assert moray.get(waiting, timeout=10) == "waited"
    timer.join()


def test_within_event_loops() -> None:
    signal = moray.remote(Signal).remote()

    async def main() -> list[Any]:
        return [
            await signal.sleep.remote(0.01),
            await signal.call_self.remote(),
            [await r async for r in signal.items.remote(2)],
        ]

    assert asyncio.run(main()) == [0.01, "waited", [0, 1]]


def test_threaded_actors() -> None:
    counter = moray.remote(max_concurrency=4)(Counter).remote()
    assert moray.get([counter.add.remote(1) for _ in range(3)]) == [1, 2, 3]


def test_an_ordinary_actor_runs_one_call_at_a_time() -> None:
    class Slow:
        value = 0

        def add(self) -> int:
            value = self.value
            time.sleep(0.001)
            self.value = value + 1
            return self.value

    actor = moray.remote(Slow).remote()
    threads = [threading.Thread(target=lambda: [actor.add.remote() for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert moray.get(actor.add.remote()) == 81


# --- generators and cancel ---------------------------------------------------------------------------


def test_generators_are_one_item_ahead() -> None:
    made: list[int] = []

    @moray.remote
    def endless() -> Iterator[int]:
        try:
            for i in range(1_000_000):
                made.append(i)
                yield i
        finally:
            made.append(-1)

    generator = endless.remote()
    assert generator.next_ready()
    assert [moray.get(next(generator)) for _ in range(3)] == [0, 1, 2]
    assert made == [0, 1, 2, 3]
    del generator
    echo.remote(1)
    assert made[-1] == -1


def test_an_error_is_a_generators_last_item() -> None:
    @moray.remote
    def breaks() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    generator = breaks.remote()
    done = generator.completed()
    first, second = list(generator)
    assert moray.get(first) == 1
    for ref in (second, done):
        with pytest.raises(ValueError, match="broken"):
            moray.get(ref)
    assert generator.is_finished()


def test_generators_of_actors_end_before_the_next_call() -> None:
    counter = moray.remote(Counter).remote()
    generator = counter.items.remote(3)
    assert moray.get(counter.add.remote(10)) == 13
    assert [moray.get(ref) for ref in generator] == [1, 2, 3]
    dynamic = moray.get(counter.items.options(num_returns="dynamic").remote(2))
    assert [moray.get(ref) for ref in dynamic] == [14, 15]


def test_cancel() -> None:
    done = echo.remote(1)
    moray.cancel(done)
    assert moray.get(done) == 1
    signal = moray.remote(Signal).remote()
    waiting = signal.wait.remote()
    later = echo.remote(waiting)
    moray.cancel(later)
    moray.cancel(waiting)
    for ref in (waiting, later):
        with pytest.raises(exceptions.TaskCancelledError):
            moray.get(ref, timeout=5)


# --- context -------------------------------------------------------------------------------------------


def test_runtime_context() -> None:
    def ids() -> tuple[Any, ...]:
        context = moray.get_runtime_context()
        return context.get_task_id(), context.get_worker_id(), context.get_actor_id(), context.get_assigned_resources()

    class Actor:
        def ids(self) -> tuple[Any, ...]:
            return ids()

        def gpus(self) -> list[int]:
            return moray.get_gpu_ids()

    mine = ids()
    assert mine[0] is None
    assert mine[2] is None
    task = moray.get(moray.remote(num_cpus=2)(ids).remote())
    actors = [moray.remote(Actor).options(num_gpus=1).remote() for _ in range(2)]
    calls = moray.get([actor.ids.remote() for actor in actors])
    assert task[3] == {"CPU": 2.0}
    named = moray.remote(lambda: moray.get_runtime_context().get_task_name()).options(name="mine")
    assert moray.get(named.remote()) == "mine"
    assert len({each[0] for each in (mine, task, *calls)}) == 4
    assert len({each[1] for each in (mine, task, *calls)}) == 4
    assert len({each[2] for each in calls}) == 2
    assert moray.get(actors[0].gpus.remote()) == [0]
    assert moray.cluster_resources()["CPU"] == 2.0
    assert moray.nodes()[0]["NodeID"] == moray.get_runtime_context().get_node_id()


def test_timeline(tmp_path: Path) -> None:
    moray.get(echo.remote(1))
    moray.timeline(str(tmp_path / "trace.json"))
    assert "echo" in [event["name"] for event in json.loads((tmp_path / "trace.json").read_text())]


def test_init_again() -> None:
    assert moray.is_initialized()
    with pytest.raises(RuntimeError, match="already connected"):
        moray.init(local_mode=True)
    assert moray.init(ignore_reinit_error=True).address_info["address"] == "local"
    ref = moray.put(1)
    moray.shutdown()
    with pytest.warns(UserWarning, match="runtime_env has no effect"):
        moray.init(local_mode=True, runtime_env={"env_vars": {"A": "b"}})
    with pytest.raises(exceptions.ObjectLostError, match="has ended"):
        moray.get(ref)
