"""Names and namespaces of actors, detached actors, and who may be found."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import os
import time
import warnings
from typing import Any

import numpy as np
import pytest

import moray
from moray.exceptions import ActorAlreadyExistsError, ActorDiedError, ActorHandleNotFoundError
from moray.util import list_named_actors
from tests.support.procs import is_alive, run_driver, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote
class Cell:
    def __init__(self, value: Any = None) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value

    def pid(self) -> int:
        return os.getpid()


def gone(name: str, namespace: str | None = None) -> bool:
    try:
        moray.get_actor(name, namespace)
    except ValueError:
        return True
    return False


# --- names ----------------------------------------------------------------------------------------


def test_a_named_actor_is_found() -> None:
    cell = Cell.options(name="found").remote(1)
    same = moray.get_actor("found")
    assert same == cell
    assert moray.get(same.get.remote()) == 1

    @moray.remote
    def find() -> Any:
        return moray.get(moray.get_actor("found").get.remote())

    assert moray.get(find.remote()) == 1


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(ActorHandleNotFoundError, match="nobody"):
        moray.get_actor("nobody")
    with pytest.raises(ValueError, match="nobody"):
        moray.get_actor("nobody")


@pytest.mark.parametrize(("name", "namespace"), [(None, None), (3, None), ("", None), ("x", 3), ("x", "")], ids=str)
def test_bad_names_are_refused(name: Any, namespace: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="get_actor"):
        moray.get_actor(name, namespace)


def test_a_name_is_taken_once() -> None:
    cell = Cell.options(name="taken").remote()
    with pytest.raises(ActorAlreadyExistsError, match="taken"):
        Cell.options(name="taken").remote()
    with pytest.raises(ValueError, match="taken"):
        Cell.options(name="taken").remote()
    assert moray.get(cell.get.remote()) is None


def test_a_name_is_free_again_when_its_actor_is_dead() -> None:
    cell = Cell.options(name="again").remote(1)
    moray.get(cell.get.remote())
    moray.kill(cell)
    wait_until(lambda: gone("again"), what="the end of the name")
    assert moray.get(Cell.options(name="again").remote(2).get.remote()) == 2


def test_get_actor_does_not_keep_an_actor_alive() -> None:
    cell = Cell.options(name="weak").remote()
    pid = moray.get(cell.pid.remote())
    weak = moray.get_actor("weak")
    del cell
    wait_until(lambda: not is_alive(pid), what="the end of the actor")
    with pytest.raises(ActorDiedError):
        moray.get(weak.get.remote())
    assert gone("weak")


def test_get_if_exists() -> None:
    kind = Cell.options(name="one", get_if_exists=True)
    first = kind.remote(1)
    second = kind.remote(2)
    assert first == second
    assert moray.get([first.get.remote(), second.get.remote()]) == [1, 1]
    moray.kill(first)
    wait_until(lambda: gone("one"), what="the end of the name")
    assert moray.get(kind.remote(3).get.remote()) == 3


def test_get_if_exists_by_many_at_once() -> None:
    @moray.remote(num_cpus=0.1)
    def make(i: int) -> Any:
        handle = Cell.options(name="race", get_if_exists=True, lifetime="detached").remote(i)
        return moray.get(handle.pid.remote()), moray.get(handle.get.remote())

    found = moray.get([make.remote(i) for i in range(12)])
    assert len(set(found)) == 1
    moray.kill(moray.get_actor("race"))


def test_namespaces_are_apart() -> None:
    mine = Cell.options(name="same").remote("mine")
    other = Cell.options(name="same", namespace="elsewhere").remote("other")
    assert moray.get(moray.get_actor("same").get.remote()) == "mine"
    assert moray.get(moray.get_actor("same", "elsewhere").get.remote()) == "other"
    assert moray.get_actor("same", namespace=moray.get_runtime_context().namespace) == mine
    assert mine != other
    with pytest.raises(ValueError, match="elsewhere"):
        moray.get_actor("different", "elsewhere")


def test_list_of_names() -> None:
    mine = Cell.options(name="listed").remote()
    other = Cell.options(name="listed too", namespace="far").remote()
    namespace = moray.get_runtime_context().namespace
    assert "listed" in list_named_actors()
    assert "listed too" not in list_named_actors()
    everywhere = list_named_actors(all_namespaces=True)
    assert {"name": "listed", "namespace": namespace} in everywhere
    assert {"name": "listed too", "namespace": "far"} in everywhere
    moray.kill(mine)
    moray.kill(other)
    wait_until(lambda: "listed" not in list_named_actors(), what="the end of the name")


# --- detached -------------------------------------------------------------------------------------


def test_a_detached_actor_outlives_its_handles_and_its_creator() -> None:
    @moray.remote
    def make() -> int:
        handle = Cell.options(name="detached", lifetime="detached").remote("stays")
        pid: int = moray.get(handle.pid.remote())
        return pid

    pid = moray.get(make.remote())
    time.sleep(0.3)  # Long enough for an end that should not come.
    assert is_alive(pid)
    handle = moray.get_actor("detached")
    assert moray.get(handle.get.remote()) == "stays"
    moray.kill(handle)
    wait_until(lambda: not is_alive(pid), what="the end of the detached actor")


def test_arguments_of_a_detached_actor_travel_with_it() -> None:
    @moray.remote
    class Sum:
        def __init__(self, array: Any, factor: int, *, more: Any) -> None:
            self.value = int(array.sum()) * factor + int(more.sum())

        def get(self) -> int:
            return self.value

    array = np.ones(300_000, dtype=np.int64)
    ref = moray.put(array)
    handle = Sum.options(lifetime="detached", name="sum", max_restarts=1).remote(ref, 2, more=array)
    del ref
    assert moray.get(handle.get.remote()) == 900_000
    moray.kill(handle, no_restart=False)
    wait_until(lambda: _value(handle) == 900_000, 30, "the restarted actor's value")
    moray.kill(handle)


def _value(handle: Any) -> Any:
    try:
        return moray.get(handle.get.remote())
    except moray.exceptions.ActorUnavailableError:
        return None


def test_references_inside_the_arguments_of_a_detached_actor_warn() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        handle = Cell.options(lifetime="detached").remote([moray.put("inner")])
    assert "1 references" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert moray.get(moray.get(handle.get.remote())[0]) == "inner"
    moray.kill(handle)


def test_a_detached_actor_outlives_its_driver() -> None:
    finished = run_driver(
        """
import subprocess, sys, textwrap, moray

context = moray.init(num_cpus=2)
address = context.address_info["address"]
child = textwrap.dedent('''
    import sys, moray
    moray.init(address=sys.argv[1], namespace="shared")

    @moray.remote
    class Counter:
        def __init__(self):
            self.value = 0
        def add(self):
            self.value += 1
            return self.value

    moray.get(Counter.options(name="plain").remote().add.remote())
    print("child:", moray.get(Counter.options(name="stays", lifetime="detached").remote().add.remote()))
''')
print(subprocess.run([sys.executable, "-c", child, address], capture_output=True, text=True, check=True).stdout)
print("parent:", moray.get(moray.get_actor("stays", "shared").add.remote()))
print("names:", moray.util.list_named_actors(all_namespaces=True))
"""
    )
    assert "child: 1" in finished.stdout
    assert "parent: 2" in finished.stdout
    assert "names: [{'name': 'stays', 'namespace': 'shared'}]" in finished.stdout
