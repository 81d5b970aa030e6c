"""Generators: items travel one by one, whatever happens on the way (STREAM)."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import moray
from moray import DynamicObjectRefGenerator, ObjectRefGenerator
from moray.exceptions import TaskCancelledError, TaskError
from tests.support.procs import wait_until

pytestmark = pytest.mark.usefixtures("shared_session")

#: Too large to travel in a message.
LARGE = 300_000


@moray.remote
def count(n: int) -> Iterator[int]:
    yield from range(n)


@moray.remote
def large(n: int) -> Iterator[bytes]:
    for i in range(n):
        yield bytes([i]) * LARGE


@moray.remote
def gated(path: str, before: int, after: int) -> Iterator[int]:
    """Some items, then a wait until the file is there, then the others."""
    yield from range(before)
    while not os.path.exists(path):
        time.sleep(0.005)
    yield from range(before, before + after)


@moray.remote
def total(values: Any) -> int:
    return sum(moray.get(list(values)))


def values_of(generator: Any) -> list[Any]:
    return [moray.get(ref, timeout=30) for ref in generator]


def used_bytes() -> float:
    return float(moray.cluster_resources()["object_store_memory"] - moray.available_resources()["object_store_memory"])


# --- items --------------------------------------------------------------------------------------------


def test_items_come_in_order() -> None:
    generator = count.remote(1000)
    assert isinstance(generator, ObjectRefGenerator)
    assert values_of(generator) == list(range(1000))


def test_no_item_at_all() -> None:
    generator = count.remote(0)
    assert list(generator) == []
    assert moray.get(generator.completed()) is None
    with pytest.raises(StopIteration):
        next(generator)


def test_large_items() -> None:
    assert [value[0] for value in values_of(large.remote(8))] == list(range(8))


def test_small_and_large_in_turn() -> None:
    @moray.remote
    def both() -> Iterator[bytes]:
        for i in range(20):
            yield bytes([i]) * (LARGE if i % 3 else 5)

    assert [(value[0], len(value)) for value in values_of(both.remote())] == [
        (i, LARGE if i % 3 else 5) for i in range(20)
    ]


def test_an_item_is_there_before_the_next_is_made(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    generator = gated.remote(str(gate), 2, 1)
    assert [moray.get(next(generator)), moray.get(next(generator))] == [0, 1]
    assert not generator.next_ready()
    gate.touch()
    assert moray.get(next(generator)) == 2
    assert list(generator) == []


def test_items_that_come_quickly_are_not_left_behind(tmp_path: Path) -> None:
    """The first item is sent at once; those right behind it are gathered, and sent while the generator does not
    yield."""
    gate = tmp_path / "gate"
    generator = gated.remote(str(gate), 5, 0)
    moray.get(next(generator))
    begin = time.monotonic()
    assert [moray.get(next(generator)) for _ in range(4)] == [1, 2, 3, 4]
    assert time.monotonic() - begin < 5
    gate.touch()
    assert list(generator) == []


def test_references_stay_valid_after_the_generator() -> None:
    refs = list(count.remote(10))
    gc.collect()
    assert moray.get(refs) == list(range(10))
    assert moray.get(total.remote(refs)) == 45


def test_items_as_arguments() -> None:
    @moray.remote
    def double(x: int) -> int:
        return 2 * x

    assert moray.get([double.remote(ref) for ref in count.remote(20)]) == [2 * i for i in range(20)]


def test_iterating_in_a_task() -> None:
    @moray.remote
    def outer(n: int) -> list[int]:
        return [moray.get(ref) for ref in count.remote(n)]

    assert moray.get(outer.remote(50)) == list(range(50))


def test_a_generator_of_generators_items() -> None:
    @moray.remote
    def relay(n: int) -> Iterator[int]:
        for ref in count.remote(n):
            yield moray.get(ref) * 10

    assert values_of(relay.remote(30)) == [i * 10 for i in range(30)]


def test_generator_with_arguments_by_reference() -> None:
    assert values_of(count.remote(moray.put(4))) == [0, 1, 2, 3]


def test_a_list_can_be_streamed() -> None:
    @moray.remote(num_returns="streaming")
    def listed() -> list[str]:
        return ["a", "b"]

    assert values_of(listed.remote()) == ["a", "b"]


def test_what_cannot_be_iterated_is_an_error() -> None:
    @moray.remote(num_returns="streaming")
    def number() -> int:
        return 5

    with pytest.raises(TypeError, match="not iterable"):
        values_of(number.remote())


def test_async_generator_as_a_task() -> None:
    @moray.remote
    async def ticks(n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    assert values_of(ticks.remote(5)) == [0, 1, 2, 3, 4]


def test_fixed_number_of_returns_is_still_possible() -> None:
    assert moray.get(count.options(num_returns=3).remote(3)) == [0, 1, 2]


class OddError(Exception):
    """Has references in it."""


@moray.remote
def partly(how: str, marker: str = "") -> Iterator[Any]:
    """Two values, then something else."""
    yield [moray.put("inside")]
    yield b"x" * LARGE
    if how == "raises":
        raise KeyError("no more")
    if how == "raises with references":
        raise OddError([moray.put("in the error")])
    if how == "does not pickle":
        yield threading.Lock()
    if how == "fails once" and not os.path.exists(marker):
        Path(marker).touch()
        raise OSError("once")
    if how == "fails always":
        raise OSError("always")
    if how == "sleeps":
        Path(marker).touch()
        time.sleep(1000)
    yield "third"


some_of: Any = partly


def inside(ref: Any) -> Any:
    return moray.get(moray.get(ref, timeout=30)[0], timeout=30)


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("raises", KeyError, "no more"),
        ("does not pickle", TypeError, "item 2 of the result of partly"),
        ("ends", ValueError, "num_returns=4, but returned 3 values"),
    ],
)
def test_values_before_an_error_are_kept(how: str, kind: type[Exception], text: str) -> None:
    before = used_bytes()
    refs = some_of.options(num_returns=4).remote(how)
    assert inside(refs[0]) == "inside"
    assert len(moray.get(refs[1])) == LARGE
    made = 3 if how == "ends" else 2
    for ref in refs[made:]:
        with pytest.raises(kind, match=text):
            moray.get(ref, timeout=30)
    del ref, refs
    gc.collect()
    wait_until(lambda: used_bytes() < before + LARGE, what="freed")


def test_values_before_an_error_with_references() -> None:
    refs = some_of.options(num_returns=4).remote("raises with references")
    assert inside(refs[0]) == "inside"
    for ref in refs[2:]:
        with pytest.raises(TaskError) as info:
            moray.get(ref)
        assert moray.get(info.value.cause.args[0][0], timeout=30) == "in the error"


def test_values_before_an_error_that_is_retried(tmp_path: Path) -> None:
    """The last attempt's count, and what the others have stored is freed."""
    before = used_bytes()
    retried = some_of.options(num_returns=3, max_retries=2, retry_exceptions=[OSError])
    refs = retried.remote("fails once", str(tmp_path / "failed"))
    assert [inside(refs[0]), len(moray.get(refs[1])), moray.get(refs[2])] == ["inside", LARGE, "third"]
    refs = retried.remote("fails always")
    assert [inside(refs[0]), len(moray.get(refs[1]))] == ["inside", LARGE]
    with pytest.raises(OSError, match="always"):
        moray.get(refs[2], timeout=30)
    del refs
    gc.collect()
    wait_until(lambda: used_bytes() < before + LARGE, what="freed")


def test_values_before_a_cancel_leave_nothing(tmp_path: Path) -> None:
    before = used_bytes()
    refs = some_of.options(num_returns=3).remote("sleeps", str(tmp_path / "there"))
    wait_until((tmp_path / "there").exists)
    moray.cancel(refs[2])
    with pytest.raises(TaskCancelledError):
        moray.get(refs[2], timeout=30)
    del refs
    gc.collect()
    wait_until(lambda: used_bytes() < before + LARGE, what="freed")


def test_values_are_as_they_were_when_they_were_yielded() -> None:
    @moray.remote(num_returns=3)
    def grows() -> Iterator[Any]:
        some = np.zeros(100_000)
        for number in range(3):
            some[:] = number
            yield some

    assert [int(moray.get(ref)[0]) for ref in grows.remote()] == [0, 1, 2]


@moray.remote(num_cpus=0)
class Makers:
    def fails(self) -> Iterator[int]:
        yield 1
        raise KeyError("no more")


@moray.remote(num_cpus=0)
class AsyncMakers:
    def fails(self) -> Iterator[int]:
        yield 1
        raise KeyError("no more")

    async def other(self) -> None: ...


@pytest.mark.parametrize("kind", [Makers, AsyncMakers])
def test_values_before_an_error_of_a_method(kind: Any) -> None:
    refs = kind.remote().fails.options(num_returns=3).remote()
    assert moray.get(refs[0], timeout=30) == 1
    for ref in refs[1:]:
        with pytest.raises(KeyError, match="no more"):
            moray.get(ref, timeout=30)


def test_what_is_raised_after_the_last_value_is_only_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert moray.get(fails_after.options(num_returns=2).remote(2)) == [0, 1]
    wait_until(lambda: "raised KeyError after its last one" in capfd.readouterr().err)


def test_what_is_raised_when_the_rest_is_left_out_is_no_reason_to_try_again(tmp_path: Path) -> None:
    @moray.remote(num_returns=2, max_retries=1, retry_exceptions=True)
    def grumbles() -> Iterator[int]:
        with (tmp_path / "runs").open("a") as runs:
            runs.write("x")
        try:
            yield from range(3)
        finally:
            raise ValueError("at the end")

    assert moray.get(grumbles.remote(), timeout=30) == [0, 1]
    assert (tmp_path / "runs").read_text() == "x"


def test_what_is_printed_before_an_item_is_shown_before_it(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @moray.remote
    def talk() -> Iterator[int]:
        print("said before the item")
        yield 1
        while not gate.exists():
            time.sleep(0.005)

    generator = talk.remote()
    moray.get(next(generator))
    assert "said before the item" in capfd.readouterr().out
    gate.touch()
    assert list(generator) == []


# --- references in items -----------------------------------------------------------------------------------


def test_references_made_by_the_generator() -> None:
    @moray.remote
    def puts(n: int) -> Iterator[list[Any]]:
        for i in range(n):
            yield [moray.put(i), moray.put(bytes(LARGE))]

    refs = list(puts.remote(10))
    for i, ref in enumerate(refs):
        small, big = moray.get(ref)
        assert moray.get(small) == i
        assert len(moray.get(big)) == LARGE


def test_references_of_the_caller_come_back() -> None:
    @moray.remote
    def echo(refs: list[Any]) -> Iterator[Any]:
        for ref in refs:
            yield {"ref": ref}
            yield "between"

    mine = [moray.put(i) for i in range(10)]
    got = values_of(echo.remote(mine))
    assert got[1::2] == ["between"] * 10
    assert [item["ref"] for item in got[::2]] == mine


def test_references_of_third_processes() -> None:
    @moray.remote
    def put_there(value: Any) -> list[Any]:
        return [moray.put(value)]

    @moray.remote
    def relay(n: int) -> Iterator[Any]:
        for i in range(n):
            yield moray.get(put_there.remote(i))
            yield i

    got = values_of(relay.remote(10))
    assert got[1::2] == list(range(10))
    assert [moray.get(refs[0], timeout=30) for refs in got[::2]] == list(range(10))


def test_items_with_references_hold_them_until_they_go() -> None:
    @moray.remote
    def puts() -> Iterator[list[Any]]:
        yield [moray.put(bytes(3_000_000))]
        yield [moray.put(bytes(3_000_000))]

    before = used_bytes()
    generator = puts.remote()
    moray.get(generator.completed())
    assert used_bytes() >= before + 6_000_000
    first = next(generator)
    assert len(moray.get(moray.get(first)[0])) == 3_000_000
    del generator, first
    gc.collect()
    wait_until(lambda: used_bytes() < before + 1_000_000, what="both freed, the read and the unread")


# --- errors -----------------------------------------------------------------------------------------------


@moray.remote
def fails_after(n: int) -> Iterator[int]:
    yield from range(n)
    raise KeyError("no more of these")


def test_an_error_is_the_last_item() -> None:
    generator = fails_after.remote(3)
    assert [moray.get(next(generator)) for _ in range(3)] == [0, 1, 2]
    error = next(generator)
    with pytest.raises(KeyError, match="no more of these"):
        moray.get(error)
    with pytest.raises(StopIteration):
        next(generator)
    with pytest.raises(KeyError):
        moray.get(generator.completed())
    assert generator.is_finished()


def test_an_error_at_the_call() -> None:
    @moray.remote(num_returns="streaming")
    def refuses() -> Iterator[int]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        values_of(refuses.remote())


def test_an_error_with_references_in_it() -> None:
    class OddError(Exception):
        pass

    @moray.remote
    def fails() -> Iterator[int]:
        yield 1
        raise OddError([moray.put("inside")])

    refs = list(fails.remote())
    assert moray.get(refs[0]) == 1
    with pytest.raises(TaskError) as info:
        moray.get(refs[1])
    assert moray.get(info.value.cause.args[0][0]) == "inside"


def test_an_error_of_an_argument() -> None:
    @moray.remote
    def bad() -> int:
        raise ValueError("from upstream")

    with pytest.raises(ValueError, match="from upstream"):
        values_of(count.remote(bad.remote()))


def test_an_item_that_does_not_pickle_is_named() -> None:
    @moray.remote
    def locks() -> Iterator[Any]:
        yield 1
        yield {"a": threading.Lock()}

    generator = locks.remote()
    assert moray.get(next(generator)) == 1
    with pytest.raises(TypeError, match="item 1"):
        moray.get(next(generator))


def test_errors_are_retried_from_where_it_was(tmp_path: Path) -> None:
    marker = tmp_path / "failed"

    @moray.remote(retry_exceptions=True)
    def once() -> Iterator[int]:
        for i in range(6):
            if i == 3 and not marker.exists():
                marker.touch()
                raise OSError("once")
            yield i

    assert values_of(once.remote()) == [0, 1, 2, 3, 4, 5]


# --- wait, get, and the object itself -------------------------------------------------------------------------


def test_wait_on_generators(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    late = gated.remote(str(gate), 0, 1)
    soon = count.remote(1)
    assert moray.wait([late, soon], num_returns=1, timeout=30) == ([soon], [late])
    next(soon)
    ready, rest = moray.wait([soon, late], num_returns=2, timeout=0.3)
    assert (ready, rest) == ([soon], [late]), "the end is something to find out"
    plain = moray.put(1)
    assert moray.wait([late, plain], num_returns=1) == ([plain], [late])
    gate.touch()
    assert moray.wait([late], timeout=30) == ([late], [])
    assert moray.get(next(late)) == 0


def test_wait_for_completion(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    generator = gated.remote(str(gate), 1, 0)
    next(generator)
    assert moray.wait([generator.completed()], timeout=0.05) == ([], [generator.completed()])
    assert not generator.is_finished()
    gate.touch()
    moray.get(generator.completed(), timeout=30)
    assert list(generator) == []
    assert generator.is_finished()


def as_argument(value: Any) -> Any:
    return total.remote(value)


@pytest.mark.parametrize("dump", [pickle.dumps, cloudpickle.dumps, moray.put, as_argument, copy.copy])
def test_a_generator_stays_where_it_is(dump: Any) -> None:
    with pytest.raises(TypeError, match="ObjectRefGenerator"):
        dump(count.remote(1))


def test_conversations_are_refused() -> None:
    generator = count.remote(1)
    with pytest.raises(NotImplementedError, match="send"):
        generator.send(1)
    with pytest.raises(NotImplementedError, match="throw"):
        generator.throw(ValueError())
    with pytest.raises(TypeError, match="not made by hand"):
        ObjectRefGenerator()


def test_ids() -> None:
    generator = count.remote(2)
    refs = list(generator)
    assert generator.task_id() == refs[0].task_id() == generator.completed().task_id()
    assert len({ref.hex() for ref in refs} | {generator.completed().hex()}) == 3
    assert generator.completed().hex() in repr(generator)


def test_several_threads_take_each_item_once() -> None:
    generator = count.remote(3000)
    taken: list[list[int]] = [[] for _ in range(4)]

    def take(into: list[int]) -> None:
        into.extend(moray.get(ref) for ref in generator)

    threads = [threading.Thread(target=take, args=(into,)) for into in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(value for each in taken for value in each) == list(range(3000))
    assert all(each == sorted(each) for each in taken)


def test_ctrl_c_while_waiting_for_an_item(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    generator = gated.remote(str(gate), 0, 2)
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(generator)
    timer.join()
    gate.touch()
    assert values_of(generator) == [0, 1]


# --- asyncio ----------------------------------------------------------------------------------------------------


def test_async_for() -> None:
    async def main() -> list[int]:
        return [await ref async for ref in count.remote(50)]

    assert asyncio.run(main()) == list(range(50))


def test_async_for_leaves_the_loop_free(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def main() -> list[int]:
        got: list[int] = []
        first = asyncio.Event()

        async def consume() -> None:
            async for ref in gated.remote(str(gate), 1, 1):
                got.append(await ref)
                first.set()

        consumer = asyncio.create_task(consume())
        await first.wait()
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert got == [0]
        gate.touch()
        await consumer
        return got

    assert asyncio.run(main()) == [0, 1]


def test_async_error() -> None:
    async def main() -> None:
        generator = fails_after.remote(1)
        assert await (await anext(generator)) == 0
        with pytest.raises(KeyError):
            await (await anext(generator))
        with pytest.raises(StopAsyncIteration):
            await anext(generator)

    asyncio.run(main())


# --- dynamic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 50])
def test_dynamic(n: int) -> None:
    ref = count.options(num_returns="dynamic").remote(n)
    assert isinstance(ref, moray.ObjectRef)
    items = moray.get(ref)
    assert isinstance(items, DynamicObjectRefGenerator)
    assert len(items) == n
    assert moray.get(list(items)) == list(range(n))


def test_dynamic_in_another_task() -> None:
    assert moray.get(total.remote(count.options(num_returns="dynamic").remote(10))) == 45


def test_dynamic_items_live_as_long_as_their_container() -> None:
    before = used_bytes()
    ref = large.options(num_returns="dynamic").remote(5)
    moray.wait([ref])
    gc.collect()
    assert used_bytes() >= before + 5 * LARGE
    one = next(iter(moray.get(ref)))
    del ref
    gc.collect()
    wait_until(lambda: used_bytes() < before + 2 * LARGE, what="all but one freed")
    assert moray.get(one)[:1] == b"\0"


def test_dynamic_that_nobody_wants() -> None:
    before = used_bytes()
    for number in range(20):
        ref = large.options(num_returns="dynamic").remote(1)
        if number % 2:
            time.sleep(number / 5000)  # The reference goes at any time of the task's life.
        del ref
    ref = large.options(num_returns="dynamic").remote(20)
    del ref
    assert moray.get(count.options(num_returns="dynamic").remote(1)) is not None
    wait_until(lambda: used_bytes() < before + LARGE, what="everything freed")


def test_dynamic_error() -> None:
    *made, last = moray.get(fails_after.options(num_returns="dynamic").remote(3))
    assert len(made) == 3
    with pytest.raises(KeyError, match="no more"):
        moray.get(last)
    (only,) = moray.get(fails_after.options(num_returns="dynamic").remote(0))
    with pytest.raises(KeyError, match="no more"):
        moray.get(only)
