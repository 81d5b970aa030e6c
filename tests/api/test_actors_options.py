"""Options of actor classes, of methods and of calls; what actors hold of the machine."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

import moray
from tests.support.procs import wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[None]:
    """The usual two CPUs, and something of every other kind."""
    with moray.init(num_cpus=2, num_gpus=2, resources={"disk": 2}):
        yield


class Plain:
    def one(self) -> int:
        return 1

    def pid(self) -> int:
        return os.getpid()

    def assigned(self) -> dict[str, float]:
        resources: dict[str, float] = moray.get_runtime_context().get_assigned_resources()
        return resources

    def gpus(self) -> tuple[list[int], str | None]:
        return moray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")


def free(name: str) -> float:
    return moray.available_resources().get(name, 0.0)


# --- which there are ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 0.25, "num_gpus": 0.5, "memory": 1_000_000, "resources": {"disk": 0.1}},
        {"max_restarts": 0, "max_task_retries": 0, "max_pending_calls": -1, "max_concurrency": 1},
        {"max_restarts": -1, "max_task_retries": -1, "max_pending_calls": 10, "max_concurrency": 3},
        {"name": "every", "namespace": "own", "get_if_exists": True},
        {"lifetime": "non_detached"},
        {"lifetime": None, "name": None, "namespace": None, "max_concurrency": None},
        {"concurrency_groups": {"io": 2}, "allow_out_of_order_execution": True},
        {"scheduling_strategy": "DEFAULT"},
        {"scheduling_strategy": "SPREAD"},
        {"scheduling_strategy": None, "runtime_env": None, "label_selector": None, "fallback_strategy": None},
        {"placement_group": None, "placement_group_bundle_index": -1},
        {"placement_group_capture_child_tasks": None, "accelerator_type": None, "object_store_memory": None},
        {"enable_task_events": False, "_labels": {"a": "b"}, "enable_tensor_transport": False},
        {"_actor_generator_backpressure_num_objects": 5},
    ],
    ids=lambda o: "-".join(o),
)
def test_every_option_is_accepted(options: dict[str, Any]) -> None:
    decorated = moray.remote(**options)(Plain).remote()
    # Groups belong to the class, whose methods name them.
    created = moray.remote(Plain).options(**{k: v for k, v in options.items() if k != "concurrency_groups"}).remote()
    assert moray.get([decorated.one.remote(), created.one.remote()], timeout=30) == [1, 1]


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("num_cpu", "num_cpus"), ("max_restart", "max_restarts"), ("get_if_exist", "get_if_exists"), ("names", "name")],
)
def test_option_typo_is_refused_with_a_suggestion(typo: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"{typo}.*{meant}"):
        moray.remote(Plain).options(**{typo: 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{typo}.*{meant}"):
        moray.remote(**{typo: 1})(Plain)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "options",
    [
        {"max_restarts": -2},
        {"max_task_retries": "3"},
        {"max_concurrency": 0},
        {"max_pending_calls": -5},
        {"lifetime": "for ever"},
        {"name": ""},
        {"namespace": 3},
        {"num_cpus": -1},
        {"concurrency_groups": {"io": 0}},
    ],
    ids=str,
)
def test_bad_option_value_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        moray.remote(Plain).options(**options)


def test_options_of_tasks_are_refused_for_actors_and_the_other_way_round() -> None:
    with pytest.raises(ValueError, match="option of tasks, not of actors"):
        moray.remote(max_retries=1)(Plain)
    with pytest.raises(ValueError, match="option of actors, not of tasks"):
        moray.remote(max_restarts=1)(lambda: None)
    with pytest.raises(ValueError, match="get_if_exists needs a name"):
        moray.remote(get_if_exists=True)(Plain)
    with pytest.raises(TypeError, match="@remote"):
        moray.remote(moray.remote(Plain))


def test_options_do_not_change_the_class() -> None:
    kind = moray.remote(num_cpus=1)(Plain)
    assert moray.get(kind.options(num_cpus=0.5).remote().assigned.remote()) == {"CPU": 0.5}
    assert moray.get(kind.remote().assigned.remote()) == {"CPU": 1.0}


@pytest.mark.parametrize("bad", [{"num_return": 2}, {"num_returns": -1}, {"max_task_retries": -2}], ids=str)
def test_bad_options_of_methods_are_refused(bad: dict[str, Any]) -> None:
    name = next(iter(bad))
    with pytest.raises(ValueError, match=name):
        moray.method(**bad)(Plain.one)
    with pytest.raises(ValueError, match=name):
        moray.remote(Plain).remote().one.options(**bad)


def test_method_decorates_functions_only() -> None:
    with pytest.raises(TypeError, match=r"@moray\.method"):
        moray.method(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"@moray\.method"):
        moray.method(num_returns=2)(3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="name"):
        moray.method(name="only for calls")  # type: ignore[call-overload]


def test_every_option_of_a_call_is_accepted() -> None:
    call = (
        moray.remote(Plain)
        .remote()
        .one.options(
            name="other",
            num_returns=1,
            max_task_retries=2,
            retry_exceptions=[ValueError],
            enable_task_events=False,
            _generator_backpressure_num_objects=None,
            concurrency_group=None,
        )
    )
    assert moray.get(call.remote()) == 1


def test_name_of_a_call() -> None:
    def name(_self: Any) -> str | None:
        found: str | None = moray.get_runtime_context().get_task_name()
        return found

    actor = moray.remote(Plain).remote()
    assert moray.get(actor.__ray_call__.options(name="renamed").remote(name)) == "renamed"
    assert moray.get(actor.__ray_call__.remote(name)) == "Plain.__ray_call__"


# --- resources ------------------------------------------------------------------------------------


def test_by_default_an_actor_holds_nothing() -> None:
    wait_until(lambda: free("CPU") == 2, what="free CPUs")
    actors = [moray.remote(Plain).remote() for _ in range(4)]
    assert moray.get([actor.one.remote() for actor in actors]) == [1] * 4
    wait_until(lambda: free("CPU") == 2, what="free CPUs while actors live")
    assert moray.get(actors[0].assigned.remote()) == {}


def test_resources_are_held_while_it_lives_and_then_given_back() -> None:
    actor = moray.remote(num_cpus=1.5, num_gpus=1, resources={"disk": 0.5}, memory=1_000_000)(Plain).remote()
    assert moray.get(actor.assigned.remote()) == {"CPU": 1.5, "GPU": 1.0, "disk": 0.5, "memory": 1_000_000.0}
    indices, visible = moray.get(actor.gpus.remote())
    assert len(indices) == 1
    assert visible == str(indices[0])
    assert (free("CPU"), free("GPU"), free("disk")) == (0.5, 1.0, 1.5)
    del actor
    wait_until(lambda: (free("CPU"), free("GPU"), free("disk")) == (2.0, 2.0, 2.0), what="resources given back")


def test_actors_wait_for_resources_in_order() -> None:
    kind = moray.remote(num_cpus=2)(Plain)
    first = kind.remote()
    moray.get(first.one.remote())
    second = kind.remote()
    waiting = second.one.remote()
    assert moray.wait([waiting], timeout=0.5)[0] == []
    moray.kill(first)
    assert moray.get(waiting, timeout=30) == 1


def test_two_actors_have_different_gpus() -> None:
    actors = [moray.remote(num_gpus=1)(Plain).remote() for _ in range(2)]
    indices = [moray.get(actor.gpus.remote())[0][0] for actor in actors]
    assert sorted(indices) == [0, 1]


def test_each_actor_is_a_process() -> None:
    actors = [moray.remote(Plain).remote() for _ in range(3)]
    assert len({os.getpid(), *moray.get([actor.pid.remote() for actor in actors])}) == 4


# --- max_pending_calls ----------------------------------------------------------------------------


def test_max_pending_calls() -> None:
    @moray.remote(max_pending_calls=3)
    class Slow:
        def wait(self, path: str | None = None) -> None:
            while path is not None and not os.path.exists(path):
                time.sleep(0.01)

    slow = Slow.remote()
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/go"
        refs = [slow.wait.remote(path) for _ in range(3)]
        with pytest.raises(moray.exceptions.PendingCallsLimitExceeded, match="max_pending_calls=3"):
            slow.wait.remote()
        with open(path, "w"):
            pass
        moray.get(refs)
        moray.get(slow.wait.remote())
