"""Handles of actors: passed, stored, pickled, compared, weak and strong; the actor ends with the last one."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import copy
import gc
import os
import pickle
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import moray
from moray.exceptions import ActorDiedError
from moray.ids import ActorID
from tests.support.procs import is_alive, run_driver, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote
class Cell:
    def __init__(self, value: Any = None) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> None:
        self.value = value

    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"


@moray.remote
def read(handle: Any) -> Any:
    return moray.get(handle.get.remote())


@moray.remote
def read_inside(box: dict[str, Any]) -> Any:
    return moray.get(box["cell"].get.remote())


def ended(pid: int) -> None:
    wait_until(lambda: not is_alive(pid), 10, f"the end of process {pid}")


# --- where they go --------------------------------------------------------------------------------


def test_handles_are_passed_to_tasks_and_actors() -> None:
    cell = Cell.remote("in the cell")
    other = Cell.remote()
    moray.get(other.set.remote([cell]))
    assert moray.get(read.remote(cell)) == "in the cell"
    assert moray.get(read_inside.remote({"cell": cell})) == "in the cell"
    assert moray.get(moray.get(other.get.remote())[0].get.remote()) == "in the cell"


def test_handles_are_put_returned_and_closed_over() -> None:
    cell = Cell.remote(1)

    @moray.remote
    def closed() -> Any:
        return moray.get(cell.get.remote())

    @moray.remote
    def make() -> Any:
        return [Cell.remote(2)]

    assert moray.get(moray.get(moray.put(cell)).get.remote()) == 1
    assert moray.get(closed.remote()) == 1
    assert moray.get(read.remote(moray.put(cell))) == 1


def test_handles_are_equal_by_actor() -> None:
    cell, other = Cell.remote(), Cell.remote()
    again = moray.get(moray.put(cell))
    assert cell == again
    assert hash(cell) == hash(again)
    assert cell != other
    assert cell != cell._actor_id
    assert {cell, again, other} == {cell, other}
    assert copy.copy(cell) == cell
    assert copy.deepcopy([cell]) == [cell]


def test_id_of_a_handle() -> None:
    cell = Cell.remote()
    assert isinstance(cell._actor_id, ActorID)
    assert cell._actor_id == cell._ray_actor_id
    assert cell._actor_id.job_id == moray.get_runtime_context().job_id


def test_methods_are_values_too() -> None:
    @moray.remote
    def call(method: Any) -> Any:
        return moray.get(method.remote())

    cell = Cell.remote(7)
    assert moray.get(call.remote(cell.get)) == 7
    assert moray.get(call.remote(cell.get.options(name="other"))) == 7


def test_handles_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="get_actor"):
        moray.actor.ActorHandle()


def test_unpickling_without_a_session_says_what_to_do() -> None:
    finished = run_driver(
        """
import pickle, moray
from moray.actor import ActorHandle
moray.init(num_cpus=1)

@moray.remote
class A:
    def f(self): return 1

a = A.remote()
blob = pickle.dumps(a)
method = a.f
moray.shutdown()
try:
    pickle.loads(blob)
except RuntimeError as error:
    print("unpickled:", error)
try:
    method.remote()
except Exception as error:
    print("called:", type(error).__name__, error)
moray.init(num_cpus=1)
try:
    method.remote()
except Exception as error:
    print("called again:", type(error).__name__, error)
try:
    moray.kill(a)
except Exception as error:
    print("killed:", type(error).__name__, error)
"""
    )
    assert "unpickled: " in finished.stdout
    assert "moray.init()" in finished.stdout
    for word in ("called: ", "called again: ", "killed: "):
        line = next(line for line in finished.stdout.splitlines() if line.startswith(word))
        assert "session that has ended" in line


# --- the end with the last handle -----------------------------------------------------------------


def test_the_process_ends_with_the_last_handle() -> None:
    cell = Cell.remote()
    pid = moray.get(cell.pid.remote())
    again = moray.get(moray.put(cell))
    del cell
    assert moray.get(again.get.remote()) is None
    del again
    ended(pid)


def test_an_actor_that_is_never_called_ends_too() -> None:
    def all_free() -> bool:
        return moray.available_resources().get("CPU") == moray.cluster_resources()["CPU"]

    wait_until(all_free, what="the end of what other tests have started")
    handles = [Cell.options(num_cpus=1).remote() for _ in range(4)]
    del handles
    wait_until(all_free, what="the CPUs given back")


def test_calls_on_their_way_are_finished_first() -> None:
    cell = Cell.remote()
    refs = [cell.sleep.remote(0.1) for _ in range(5)]
    pid_ref = cell.pid.remote()
    del cell
    assert moray.get(refs) == ["slept"] * 5
    ended(moray.get(pid_ref))


def test_a_handle_of_a_temporary_is_enough() -> None:
    assert moray.get(Cell.remote("short").get.remote()) == "short"


def test_a_method_object_keeps_the_actor() -> None:
    method = Cell.remote("kept").get
    gc.collect()
    assert moray.get(method.remote()) == "kept"


def test_a_handle_inside_an_object_keeps_the_actor() -> None:
    cell = Cell.remote("inside")
    pid = moray.get(cell.pid.remote())
    box = moray.put({"cell": cell})
    del cell
    time.sleep(0.3)  # Long enough for an end that should not come.
    assert moray.get(read_inside.remote(box)) == "inside"
    del box
    ended(pid)


def test_a_handle_in_another_actor_keeps_the_actor() -> None:
    cell, holder = Cell.remote("held"), Cell.remote()
    pid = moray.get(cell.pid.remote())
    moray.get(holder.set.remote([cell]))
    del cell
    time.sleep(0.3)  # Long enough for an end that should not come.
    assert is_alive(pid)
    assert moray.get(moray.get(holder.get.remote())[0].get.remote()) == "held"
    moray.get(holder.set.remote(None))
    ended(pid)


def test_a_handle_that_only_a_function_closes_over_keeps_the_actor() -> None:
    def make(kept: Any) -> Any:
        @moray.remote
        def use() -> Any:
            return moray.get(kept.get.remote())

        return use

    cell = Cell.remote("closed over")
    pid = moray.get(cell.pid.remote())
    use = make(cell)
    del cell
    assert [moray.get(use.remote()) for _ in range(3)] == ["closed over"] * 3
    del use
    gc.collect()
    ended(pid)


def test_an_actor_made_in_a_task_ends_with_the_task_that_made_it() -> None:
    @moray.remote
    def make() -> int:
        pid: int = moray.get(Cell.remote().pid.remote())
        return pid

    ended(moray.get(make.remote()))


def test_a_handle_pickled_outside_of_moray_keeps_the_actor() -> None:
    cell = Cell.remote("pickled")
    blob = pickle.dumps(cell)
    same = cloudpickle.dumps([cell])
    del cell
    assert moray.get(pickle.loads(blob).get.remote()) == "pickled"
    again = cloudpickle.loads(same)[0]
    assert moray.get(again.get.remote()) == "pickled"
    moray.kill(again)


def test_an_own_weak_handle_does_not_keep_the_actor() -> None:
    @moray.remote
    class Selfish:
        def __init__(self) -> None:
            self.me = moray.get_runtime_context().current_actor

        def pid(self) -> int:
            return os.getpid()

        def through_itself(self) -> Any:
            return self.me

    selfish = Selfish.remote()
    pid = moray.get(selfish.pid.remote())
    weak = moray.get(selfish.through_itself.remote())
    assert weak == selfish
    assert weak._actor_ref is None
    del selfish
    ended(pid)
    with pytest.raises(ActorDiedError):
        moray.get(weak.pid.remote())


def test_farewell_of_an_actor_that_ends_in_peace(tmp_path: Path) -> None:
    @moray.remote
    class Polite:
        def __init__(self, path: str) -> None:
            import atexit

            self.path = path
            atexit.register(lambda: Path(f"{path}/atexit").touch())

        def ready(self) -> bool:
            return True

        def __ray_shutdown__(self) -> None:
            Path(f"{self.path}/shutdown").touch()

    polite = Polite.remote(str(tmp_path))
    moray.get(polite.ready.remote())
    del polite
    wait_until(lambda: {p.name for p in tmp_path.iterdir()} == {"atexit", "shutdown"}, what="both farewells")
