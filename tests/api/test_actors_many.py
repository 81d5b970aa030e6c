"""Many actors at once, actors that make actors, and what actors print."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import os
import re
from typing import Any

import pytest

import moray
from moray.runtime import state
from tests.support.procs import is_alive, run_driver, wait_until
from tests.support.tables import empty_tables, runtime_tables


@moray.remote
class Small:
    def __init__(self, number: int) -> None:
        self.number = number

    def get(self) -> int:
        return self.number

    def pid(self) -> int:
        return os.getpid()


def make_and_end(count: int, timeout_s: float) -> None:
    actors = [Small.remote(i) for i in range(count)]
    assert moray.get([actor.get.remote() for actor in actors], timeout=timeout_s) == list(range(count))
    pids = moray.get([actor.pid.remote() for actor in actors], timeout=timeout_s)
    assert len(set(pids)) == count
    del actors
    wait_until(lambda: not any(map(is_alive, pids)), timeout_s, "the end of all actors")


@pytest.mark.slow
@pytest.mark.usefixtures("moray_session")
def test_a_hundred_actors() -> None:
    make_and_end(100, 60)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("moray_session")
def test_five_hundred_actors() -> None:
    make_and_end(500, 240)


@pytest.mark.slow
@pytest.mark.usefixtures("moray_session")
def test_actors_made_and_dropped_in_a_row_leave_nothing() -> None:
    for i in range(40):
        assert moray.get(Small.remote(i).get.remote()) == i
    wait_until(lambda: moray.available_resources().get("CPU") == 2, what="free CPUs")


@pytest.mark.usefixtures("moray_session")
def test_actors_create_actors() -> None:
    @moray.remote
    class Node:
        def __init__(self, depth: int) -> None:
            self.children = [Node.remote(depth - 1) for _ in range(2)] if depth else []

        def count(self) -> int:
            return 1 + sum(moray.get([child.count.remote() for child in self.children]))

    assert moray.get(Node.remote(3).count.remote(), timeout=60) == 15


@pytest.mark.usefixtures("moray_session")
def test_actors_call_tasks_and_tasks_make_actors() -> None:
    @moray.remote
    def square(x: int) -> int:
        return x * x

    @moray.remote
    class Boss:
        def total(self, n: int) -> int:
            return sum(moray.get([square.remote(i) for i in range(n)]))

    @moray.remote
    def employ(n: int) -> int:
        value: int = moray.get(Boss.remote().total.remote(n))
        return value

    assert moray.get([employ.remote(10) for _ in range(3)], timeout=60) == [285] * 3


@pytest.mark.usefixtures("moray_session")
def test_nothing_is_left_in_the_tables() -> None:
    @moray.remote
    def use(handle: Any, box: list[Any]) -> int:
        return sum(moray.get([handle.get.remote(), box[0].get.remote()]))

    def work() -> None:
        first, second = Small.remote(1), Small.remote(moray.put(2))
        assert moray.get([use.remote(first, [second]) for _ in range(5)]) == [3] * 5
        with pytest.raises(AttributeError):
            first.missing.remote()
        pid = moray.get(second.pid.remote())
        moray.kill(second)
        wait_until(lambda: not is_alive(pid), what="the end of the process")
        with pytest.raises(moray.exceptions.ActorDiedError):
            moray.get(second.get.remote())

    work()
    runtime = state.runtime
    assert runtime is not None
    actors = runtime.actors
    wait_until(
        lambda: runtime_tables(runtime) == empty_tables() and not actors._callees and not actors.creations._created,
        what="empty tables",
    )


# --- output ---------------------------------------------------------------------------------------


def test_prefix_of_what_an_actor_prints() -> None:
    finished = run_driver(
        """
import os, moray
moray.init(num_cpus=2)

@moray.remote
class Speaker:
    def __init__(self):
        print("made")
    def speak(self):
        print("spoken")
        return os.getpid()

@moray.remote
class Titled:
    def __init__(self, title):
        self.title = title
    def __repr__(self):
        return f"Titled({self.title})"
    def speak(self):
        print("titled words")
        return os.getpid()

speaker, titled = Speaker.remote(), Titled.remote("x")
print("pids", moray.get(speaker.speak.remote()), moray.get(titled.speak.remote()))
"""
    )
    match = re.search(r"pids (\d+) (\d+)", finished.stdout)
    assert match is not None
    assert re.search(rf"\(Speaker pid={match[1]}[^)]*\)\S*\s+made", finished.stdout)
    assert re.search(rf"\(Speaker pid={match[1]}[^)]*\)\S*\s+spoken", finished.stdout)
    assert re.search(rf"\(Titled\(x\) pid={match[2]}[^)]*\)\S*\s+titled words", finished.stdout)


def test_output_of_an_actor_comes_before_the_get_that_follows() -> None:
    finished = run_driver(
        """
import moray
moray.init(num_cpus=2)

@moray.remote
class Speaker:
    def speak(self, i):
        print("said", i)

speaker = Speaker.remote()
for i in range(30):
    moray.get(speaker.speak.remote(i))
    print("heard", i)
"""
    )
    words: Any = [tuple(found) for found in re.findall(r"(said|heard) (\d+)", finished.stdout)]
    assert words == [(word, str(i)) for i in range(30) for word in ("said", "heard")]
