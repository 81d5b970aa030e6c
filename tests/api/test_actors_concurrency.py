"""Actors that run several calls at once: threads, coroutines, concurrency groups, out of order."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable
from typing import Any

import pytest

import moray
from tests.support.procs import is_alive, run_driver, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


# --- threads --------------------------------------------------------------------------------------


@moray.remote(max_concurrency=4)
class Threaded:
    def __init__(self) -> None:
        self.barrier = threading.Barrier(4, timeout=20)
        self.lock = threading.Lock()
        self.running = self.most = 0
        self.opened = threading.Event()

    def meet(self) -> int:
        return self.barrier.wait()

    def work(self) -> int:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.02)
        with self.lock:
            self.running -= 1
        return threading.get_ident()

    def most_at_once(self) -> int:
        return self.most

    def wait_open(self) -> bool:
        return self.opened.wait(20)

    def open(self) -> None:
        self.opened.set()

    def fail(self) -> None:
        raise LookupError("in a thread")

    def context(self) -> str | None:
        time.sleep(0.05)
        task: str | None = moray.get_runtime_context().get_task_id()
        return task

    def nested(self) -> int:
        value: int = moray.get(moray.put(3))
        return value


def test_threads_run_at_once_and_not_more_than_allowed() -> None:
    actor = Threaded.remote()
    assert sorted(moray.get([actor.meet.remote() for _ in range(4)])) == [0, 1, 2, 3]
    threads = set(moray.get([actor.work.remote() for _ in range(40)]))
    assert 1 < len(threads) <= 4
    assert moray.get(actor.most_at_once.remote()) == 4


def test_one_call_waits_for_another() -> None:
    actor = Threaded.remote()
    waiting = actor.wait_open.remote()
    moray.get(actor.open.remote())
    assert moray.get(waiting) is True


def test_errors_gets_and_contexts_in_threads() -> None:
    actor = Threaded.remote()
    with pytest.raises(LookupError, match="in a thread"):
        moray.get(actor.fail.remote())
    assert moray.get([actor.nested.remote() for _ in range(8)]) == [3] * 8
    refs = [actor.context.remote() for _ in range(8)]
    assert moray.get(refs) == [ref.task_id().hex() for ref in refs]


def test_a_threaded_actor_does_not_wait_for_the_arguments_of_others() -> None:
    @moray.remote
    def slow() -> int:
        time.sleep(1)
        return 1

    @moray.remote(max_concurrency=2)
    class Notes:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def note(self, x: int) -> list[int]:
            self.seen.append(x)
            return self.seen

    notes = Notes.remote()
    moray.get(notes.note.remote(0))
    late = notes.note.remote(slow.remote())
    assert moray.get(notes.note.remote(2)) == [0, 2]
    assert moray.get(late) == [0, 2, 1]


def test_out_of_order_execution() -> None:
    @moray.remote
    def slow() -> int:
        time.sleep(1)
        return 1

    def note(self: Any, x: int) -> list[int]:
        self.seen = [*getattr(self, "seen", []), x]
        seen: list[int] = self.seen
        return seen

    kind = type("Notes", (), {"note": note, "__module__": __name__})
    ordered = moray.remote(kind).remote()  # type: ignore[var-annotated]
    unordered = moray.remote(allow_out_of_order_execution=True)(kind).remote()  # type: ignore[var-annotated]
    for actor, last in ((ordered, [1, 2]), (unordered, [2, 1])):
        refs = [actor.note.remote(slow.remote()), actor.note.remote(2)]
        assert max(moray.get(refs), key=len) == last


# --- coroutines -----------------------------------------------------------------------------------


@moray.remote
class Async:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.event = asyncio.Event()
        self.running = self.most = 0

    async def wait_open(self) -> bool:
        await self.event.wait()
        return True

    async def open(self) -> None:
        self.event.set()

    async def work(self, seconds: float = 0.01) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(seconds)
        self.running -= 1

    async def most_at_once(self) -> int:
        return self.most

    async def same_loop(self) -> bool:
        return asyncio.get_running_loop() is self.loop

    def sync(self, x: int) -> int:
        return x + 1

    async def fail(self) -> None:
        await asyncio.sleep(0)
        raise LookupError("in a coroutine")

    async def nested(self, refs: list[Any]) -> list[Any]:
        return [await ref for ref in refs]

    async def blocking(self, refs: list[Any]) -> Any:
        return moray.get(refs[0])

    async def task(self) -> str | None:
        await asyncio.sleep(0.05)
        found: str | None = moray.get_runtime_context().get_task_id()
        return found

    async def take(self, value: Any, inside: list[Any]) -> tuple[Any, Any]:
        return value, await inside[0]

    async def echo(self, x: int) -> int:
        return x


def test_coroutines_run_at_once() -> None:
    actor = Async.remote()
    waiting = [actor.wait_open.remote() for _ in range(100)]
    moray.get(actor.open.remote())
    assert moray.get(waiting) == [True] * 100


def test_the_constructor_sees_the_running_loop() -> None:
    assert moray.get(Async.remote().same_loop.remote()) is True


def test_max_concurrency_of_async_actors() -> None:
    for options, most in (({"max_concurrency": 3}, 3), ({}, 50)):
        actor = Async.options(**options).remote()  # type: ignore[arg-type]
        moray.get([actor.work.remote(0.1 if most == 50 else 0.01) for _ in range(50)])
        found = moray.get(actor.most_at_once.remote())
        assert found == most if most == 3 else 3 < found <= most


def test_sync_methods_errors_and_arguments_of_async_actors() -> None:
    actor = Async.remote()
    assert moray.get([actor.sync.remote(i) for i in range(5)]) == [1, 2, 3, 4, 5]
    with pytest.raises(LookupError, match="in a coroutine"):
        moray.get(actor.fail.remote())
    assert moray.get(actor.take.remote(moray.put(b"v" * 300_000), [moray.put(2)])) == (b"v" * 300_000, 2)
    assert moray.get([actor.echo.remote(i) for i in range(2000)]) == list(range(2000))


def test_async_actors_wait_for_others() -> None:
    @moray.remote
    def slow(x: int) -> int:
        time.sleep(0.2)
        return x

    actor = Async.remote()
    refs = [actor.nested.remote([slow.remote(i), moray.put(i)]) for i in range(4)]
    assert moray.get(refs) == [[i, i] for i in range(4)]


@moray.remote
class Sweeper:
    async def sweep(self) -> str:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return "swept"

    async def wait(self) -> None:
        await asyncio.sleep(60)


def test_calls_that_user_code_cancels_before_they_begin_are_answered() -> None:
    """Those that came together begin one after the other, in one round of the event loop."""
    actor = Sweeper.remote()
    moray.get(actor.sweep.remote(), timeout=30)
    refs = [[actor.wait.remote(), actor.sweep.remote()] for _ in range(20)]
    assert [moray.get(swept, timeout=30) for _waiting, swept in refs] == ["swept"] * 20
    for waiting, _swept in refs:
        with pytest.raises(moray.exceptions.TaskError, match="CancelledError"):
            moray.get(waiting, timeout=30)


def test_each_coroutine_has_its_own_context() -> None:
    actor = Async.remote()
    refs = [actor.task.remote() for _ in range(10)]
    assert moray.get(refs) == [ref.task_id().hex() for ref in refs]


def test_a_blocking_get_in_a_coroutine_works_and_warns_once() -> None:
    finished = run_driver(
        """
import time
import moray
moray.init(num_cpus=2)

@moray.remote
def slow():
    time.sleep(0.3)
    return "slow"

@moray.remote
class Async:
    async def wait(self, refs):
        return moray.get(refs[0])

actor = Async.remote()
print(moray.get([actor.wait.remote([slow.remote()]) for _ in range(3)]))
"""
    )
    assert "['slow', 'slow', 'slow']" in finished.stdout
    assert (finished.stdout + finished.stderr).count("write `await ref` instead") == 1


def test_an_awaitable_from_a_sync_method_is_awaited() -> None:
    @moray.remote
    class Mixed:
        async def one(self) -> int:
            return 1

        def indirect(self) -> Awaitable[int]:
            return self.one()

    assert moray.get(Mixed.remote().indirect.remote()) == 1


def test_an_actor_is_awaited_by_the_driver() -> None:
    actor = Async.remote()

    async def drive() -> list[int]:
        return list(await asyncio.gather(*[actor.echo.remote(i) for i in range(50)]))

    assert asyncio.run(drive()) == list(range(50))


# --- concurrency groups ---------------------------------------------------------------------------


@moray.remote(concurrency_groups={"io": 2, "compute": 1})
class Groups:
    def __init__(self) -> None:
        self.opened = threading.Event()
        self.pair = threading.Barrier(2, timeout=20)

    @moray.method(concurrency_group="io")
    def block(self) -> bool:
        return self.opened.wait(20)

    @moray.method(concurrency_group="io")
    def meet(self) -> int:
        return self.pair.wait()

    @moray.method(concurrency_group="compute")
    def name(self) -> str:
        return threading.current_thread().name

    def open(self) -> str:
        self.opened.set()
        return threading.current_thread().name


def test_groups_do_not_wait_for_each_other() -> None:
    actor = Groups.remote()
    blocked = [actor.block.remote() for _ in range(3)]
    assert moray.get(actor.name.remote()) != moray.get(actor.open.remote())
    assert moray.get(blocked) == [True] * 3
    assert sorted(moray.get([actor.meet.remote() for _ in range(2)])) == [0, 1]


def test_a_call_may_choose_another_group() -> None:
    actor = Groups.remote()
    blocked = [actor.block.remote() for _ in range(3)]
    waiting = actor.block.options(concurrency_group="compute").remote()
    moray.get(actor.open.remote())
    assert moray.get([*blocked, waiting]) == [True] * 4


def test_unknown_groups_are_refused() -> None:
    actor = Groups.remote()
    with pytest.raises(ValueError, match=r"no concurrency group 'oi'.*io, compute"):
        actor.open.options(concurrency_group="oi")

    class Bad:
        @moray.method(concurrency_group="missing")
        def one(self) -> int:
            return 1

    with pytest.raises(ValueError, match=r"Bad\.one: no concurrency group 'missing'"):
        moray.remote(Bad).remote()


def test_groups_of_async_actors() -> None:
    @moray.remote(concurrency_groups={"io": 2})
    class AsyncGroups:
        def __init__(self) -> None:
            self.most = self.running = 0

        @moray.method(concurrency_group="io")
        async def work(self) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.02)
            self.running -= 1

        async def most_at_once(self) -> int:
            return self.most

    actor = AsyncGroups.remote()
    refs = [actor.work.remote() for _ in range(10)]
    assert moray.get(actor.most_at_once.remote()) <= 2
    moray.get(refs)
    assert moray.get(actor.most_at_once.remote()) == 2


def test_groups_of_async_actors_do_not_block_each_other() -> None:
    """Each has an event loop and a thread of its own, for ordinary methods too; the rest stays in the main thread."""

    @moray.remote(concurrency_groups={"io": 2, "compute": 1})
    class Loops:
        def __init__(self) -> None:
            self.made_in = asyncio.get_running_loop()
            self.go = threading.Event()

        async def block(self) -> bool:
            return self.go.wait(20)

        @moray.method(concurrency_group="io")
        async def where(self) -> tuple[int, int]:
            return threading.get_ident(), id(asyncio.get_running_loop())

        @moray.method(concurrency_group="io")
        def here(self) -> tuple[int, int]:
            return threading.get_ident(), id(asyncio.get_running_loop())

        @moray.method(concurrency_group="compute")
        async def block_too(self) -> bool:
            return self.go.wait(20)

        @moray.method(concurrency_group="io")
        def release(self) -> None:
            self.go.set()

        def main(self) -> bool:
            in_main = threading.current_thread() is threading.main_thread()
            return in_main and asyncio.get_running_loop() is self.made_in

    actor: Any = Loops.remote()
    blocked = [actor.block.remote(), actor.block_too.remote()]
    coroutine, function = moray.get([actor.where.remote(), actor.here.remote()], timeout=20)
    assert coroutine == function
    moray.get(actor.release.remote(), timeout=20)
    assert moray.get(blocked, timeout=20) == [True, True]
    assert moray.get(actor.main.remote(), timeout=20)
    assert moray.get(actor.where.options(concurrency_group="compute").remote(), timeout=20) != coroutine


def test_calls_in_a_group_of_an_async_actor_are_cancelled_and_fail_like_others() -> None:
    @moray.remote(concurrency_groups={"io": 1})
    class Waits:
        @moray.method(concurrency_group="io")
        async def forever(self) -> None:
            await asyncio.sleep(600)

        @moray.method(concurrency_group="io")
        async def items(self, count: int) -> Any:
            for number in range(count):
                yield [moray.put(number)]

        @moray.method(concurrency_group="io")
        async def fail(self) -> None:
            raise KeyError("no")

        @moray.method(concurrency_group="io")
        def leave(self) -> None:
            moray.actor.exit_actor()

    actor: Any = Waits.remote()
    running, queued = actor.forever.remote(), actor.forever.remote()
    moray.wait([running], timeout=0.2)
    for ref in (queued, running):
        moray.cancel(ref)
        with pytest.raises(moray.exceptions.TaskCancelledError):
            moray.get(ref, timeout=20)
    with pytest.raises(KeyError):
        moray.get(actor.fail.remote(), timeout=20)
    assert [moray.get(moray.get(item)[0]) for item in actor.items.remote(50)] == list(range(50))
    with pytest.raises(moray.exceptions.ActorDiedError, match="exit_actor"):
        moray.get(actor.leave.remote(), timeout=20)


def test_concurrent_actors_end_with_their_last_handle_too() -> None:
    kinds: list[Any] = [Threaded, Async, Groups]
    for kind in kinds:
        actor = kind.remote()
        pid = moray.get(actor.__ray_call__.remote(lambda _: __import__("os").getpid()))
        del actor
        ended(pid, kind)


def ended(pid: int, kind: Any) -> None:
    wait_until(lambda: not is_alive(pid), what=f"the end of {kind}")
