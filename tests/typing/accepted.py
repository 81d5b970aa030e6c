"""A program that mypy and pyright must accept, with the types that they must find. test_typing.py runs both."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any, assert_type

import moray
from moray.actor import ActorClass, ActorHandle, ActorProxy
from moray.object_ref import ObjectRef
from moray.object_ref_generator import DynamicObjectRefGenerator, ObjectRefGenerator

# --- functions -----------------------------------------------------------------------------------


@moray.remote
def add(x: int, y: int = 2) -> int:
    return x + y


@moray.remote(num_cpus=0.5, max_retries=0)
def text(x: int, *, width: int = 0) -> str:
    return str(x).rjust(width)


@moray.remote
def total(first: float, *rest: float) -> float:
    return first + sum(rest)


@moray.remote
def five(a: int, b: int, c: int, d: int, e: int) -> int:
    return a + b + c + d + e


@moray.remote
def count(n: int) -> Iterator[int]:
    yield from range(n)


@moray.remote
def letters(n: int) -> Generator[str, None, None]:
    yield from "abc"[:n]


@moray.remote
async def later(n: int) -> AsyncIterator[bytes]:
    yield bytes(n)


@moray.remote(num_returns=2)
def pair(x: int) -> tuple[int, str]:
    return x, str(x)


@moray.remote
def anything(x: int) -> Any:
    return x


def functions() -> None:
    assert_type(add.remote(1), ObjectRef[int])
    assert_type(add.remote(1, 2), ObjectRef[int])
    assert_type(add.remote(x=1, y=2), ObjectRef[int])
    assert_type(text.remote(1, width=3), ObjectRef[str])
    assert_type(total.remote(1, 2, 3), ObjectRef[float])
    assert_type(moray.remote(time.sleep).remote(0.1), ObjectRef[None])
    moray.get(anything.remote(1)).whatever()


def references_as_arguments() -> None:
    one = add.remote(1)
    assert_type(add.remote(one), ObjectRef[int])
    assert_type(add.remote(one, 2), ObjectRef[int])
    assert_type(add.remote(1, one), ObjectRef[int])
    assert_type(add.remote(one, one), ObjectRef[int])
    assert_type(add.remote(one, y=3), ObjectRef[int])
    assert_type(add.remote(moray.put(1)), ObjectRef[int])
    assert_type(text.remote(one, width=3), ObjectRef[str])
    assert_type(five.remote(1, one, 1, 1, 1), ObjectRef[int])
    assert_type(five.remote(one, 1, one, 1, 1), ObjectRef[int])
    assert_type(five.remote(1, 1, 1, one, 1), ObjectRef[int])
    assert_type(five.remote(1, 1, 1, 1, one), ObjectRef[int])
    assert_type(total.remote(1.0, one, one), ObjectRef[float])


def generators() -> None:
    assert_type(count.remote(3), ObjectRefGenerator[int])
    assert_type(letters.remote(3), ObjectRefGenerator[str])
    assert_type(later.remote(3), ObjectRefGenerator[bytes])
    for ref in count.remote(3):
        assert_type(ref, ObjectRef[int])
    assert_type([moray.get(ref) for ref in letters.remote(3)], list[str])


async def in_a_loop() -> None:
    assert_type(await add.remote(1), int)
    assert_type(add.remote(1).future().result(), int)
    async for ref in count.remote(3):
        assert_type(await ref, int)


def options(several: int) -> None:
    assert_type(add.options(name="add", num_cpus=2).remote(1, y=2), ObjectRef[int])
    assert_type(pair.remote(1), list[ObjectRef[Any]])
    assert_type(add.options(num_returns=3).remote(1), list[ObjectRef[Any]])
    assert_type(add.options(num_returns=0).remote(1), None)
    assert_type(count.options(num_returns="dynamic").remote(1), ObjectRef[DynamicObjectRefGenerator])
    assert_type(add.options(num_returns=several).remote(1), Any)


def api() -> None:
    assert_type(moray.get(add.remote(1)), int)
    assert_type(moray.get([add.remote(1), add.remote(2)]), list[int])
    assert_type(moray.get([text.remote(i) for i in range(3)], timeout=10), list[str])
    moray.get([add.remote(1), text.remote(2)])[0]
    assert_type(moray.put("a"), ObjectRef[str])
    refs = [add.remote(1), add.remote(2)]
    assert_type(moray.wait(refs, num_returns=1), tuple[list[ObjectRef[int]], list[ObjectRef[int]]])
    moray.wait([add.remote(1), count.remote(2)])
    moray.cancel(add.remote(1))
    moray.cancel(count.remote(1), force=True)
    assert_type(moray.explain(add.remote(1)), str)


# --- actors without @method: any call is accepted ------------------------------------------------


@moray.remote
class Free:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, x: int) -> int:
        self.value += x
        return self.value


class Undecorated:
    def __init__(self, start: int) -> None:
        self.value = start

    @moray.method(num_returns=2)
    def pair(self) -> tuple[int, int]:
        return self.value, self.value


def free_actors() -> None:
    free = Free.remote(1)
    moray.get(free.add.remote(1)).whatever()
    moray.get(free.add.options(name="x").remote(1, 2, 3))
    Free.remote()
    Free.remote(add.remote(1))
    Free.options(name="free", max_concurrency=2, lifetime="detached").remote(2)
    made: ActorClass[Undecorated] = moray.remote(Undecorated)
    assert_type(made.remote(1), ActorHandle[Undecorated])
    assert_type(moray.remote(num_cpus=1)(Undecorated).remote(1), ActorHandle[Undecorated])
    moray.get(made.remote(1).pair.remote())
    moray.kill(free)
    moray.kill(moray.get_actor("free"), no_restart=False)
    assert_type(moray.get_actor("free", "space"), ActorHandle[Any])


# --- actors with @method: calls are checked ------------------------------------------------------


class Counter(moray.actor.TypedActor):
    def __init__(self, start: int = 0) -> None:
        self.value = start

    @moray.method
    def add(self, x: int, times: int = 1) -> int:
        self.value += x * times
        return self.value

    @moray.method
    def twice(self, x: int) -> int:
        return self.add(x) + self.add(x)

    @moray.method
    async def soon(self, x: int) -> str:
        return str(x)

    @moray.method
    async def sooner(self, x: int) -> str:
        return await self.soon(x)

    @moray.method(concurrency_group="io")
    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    @moray.method(num_returns=2)
    def pair(self) -> tuple[int, int]:
        return self.value, self.value

    @moray.method
    def anything(self) -> Any:
        return self.value


@moray.remote(num_cpus=1)
class Decorated(moray.actor.TypedActor):
    def __init__(self, start: int) -> None:
        self.value = start

    @moray.method
    def get(self) -> int:
        return self.value


def use(counter: ActorProxy[Counter]) -> int:
    return moray.get(counter.add.remote(1))


def checked_actors() -> None:
    kind = moray.remote(Counter)
    counter = kind.remote(1)
    assert_type(counter.add.remote(1), ObjectRef[int])
    assert_type(counter.add.remote(add.remote(1), times=2), ObjectRef[int])
    assert_type(counter.soon.remote(1), ObjectRef[str])
    assert_type(counter.count.remote(1), ObjectRefGenerator[int])
    assert_type(counter.pair.remote(), list[ObjectRef[Any]])
    assert_type(counter.add.options(name="plus").remote(1), ObjectRef[int])
    assert_type(counter.add.options(num_returns=2).remote(1), list[ObjectRef[Any]])
    assert_type(moray.get([counter.add.remote(1)]), list[int])
    moray.get(counter.anything.remote()).whatever()
    assert_type(use(counter), int)
    assert_type(use(kind.options(name="c").remote(start=2)), int)
    assert_type(moray.get(Decorated.remote(1).get.remote()), int)
    assert_type(moray.get(Decorated.options(name="x").remote(add.remote(1)).get.remote()), int)
    moray.kill(counter)
    assert_type(moray.explain(counter), str)
