"""Wrong programs: mypy and pyright must each find an error in each line marked so, and in no other.

What only one of them finds is marked with its name.
"""

from __future__ import annotations

from collections.abc import Iterator

import moray


@moray.remote
def add(x: int, y: int = 2) -> int:
    return x + y


@moray.remote
def text(x: int) -> str:
    return str(x)


@moray.remote
def count(n: int) -> Iterator[int]:
    yield from range(n)


class Plain:
    def __init__(self, start: int = 0) -> None:
        self.value = start


@moray.remote
class Free:
    def __init__(self, start: int = 0) -> None:
        self.value = start


@moray.remote
class Counter(moray.actor.TypedActor):
    def __init__(self, start: int) -> None:
        self.value = start

    @moray.method
    def add(self, x: int, times: int = 1) -> int:
        self.value += x * times
        return self.value

    @moray.method
    async def soon(self) -> str:
        return str(self.value)

    def forgotten(self) -> int:
        return self.value


def functions() -> None:
    add.remote()  # error
    add.remote("1")  # error
    add.remote(1, "2")  # error
    add.remote(1, 2, 3)  # error
    add.remote(1, y="2")  # error
    add.remote(1, z=2)  # error
    add.remote(text.remote(1))  # error: pyright
    add.remote("1", add.remote(1))  # error: pyright
    add.remote(add.remote(1), "2")  # error
    add.remote(add.remote(1), add.remote(1), add.remote(1))  # error: pyright
    add.remote(y=1)  # error
    count.remote("1")  # error
    add(1)  # error
    add.options(num_cpu=1)  # error
    add.options(num_cpus="1")  # error
    add.options(name="a").remote("1")  # error
    add.options(num_returns=2).remote("1")  # error
    moray.remote(num_cpu=1)  # error
    wrong: str = moray.get(add.remote(1))  # error
    print(wrong)


def api() -> None:
    moray.get(count.remote(1))  # error
    moray.get(1)  # error
    moray.get([1])  # error
    moray.get(add.remote(1), timeout="1")  # error
    moray.get(add.remote(1)).upper()  # error
    moray.wait(add.remote(1))  # error
    moray.wait([1])  # error
    moray.cancel(1)  # error
    moray.kill(add.remote(1))  # error
    moray.get_actor(1)  # error


def actors() -> None:
    moray.remote(Plain).remote("1")  # error
    moray.remote(Plain).remote(1, 2)  # error
    moray.remote(Plain).options(nam="x")  # error
    moray.remote(Plain).options(name="x").remote("1")  # error
    Free.remote("1")  # error
    Free.remote(1, 2)  # error
    Free.options(max_retries=1)  # error
    Free.options(name="x").remote("1")  # error
    Counter.remote()  # error
    counter = Counter.remote(1)
    counter.add.remote("1")  # error
    counter.add.remote()  # error
    counter.add.remote(1, time=1)  # error
    counter.add.options(nam="x")  # error
    counter.add.options(name="x").remote("1")  # error
    counter.add(1)  # error
    counter.soon.remote(1)  # error
    counter.forgotten.remote()  # error
    counter.missing.remote()  # error
    moray.get(counter.add.remote(1)).upper()  # error


def right_but_refused() -> None:
    """What docs/typing.md lists: nothing in Python's types says it."""
    add.remote(1, y=add.remote(1))  # error
