"""Options of tasks and actors: names, defaults, checks, resources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from moray import config
from moray.options import ActorOptions, TaskOptions
from moray.protocol import messages

TASK_DEFAULTS: dict[str, Any] = {
    "label_selector": None,
    "fallback_strategy": None,
    "infeasible": None,
    "accelerator_type": None,
    "memory": None,
    "name": None,
    "num_cpus": 1,
    "num_gpus": None,
    "object_store_memory": None,
    "placement_group": "default",
    "placement_group_bundle_index": -1,
    "placement_group_capture_child_tasks": None,
    "resources": None,
    "runtime_env": None,
    "scheduling_strategy": None,
    "enable_task_events": True,
    "_labels": None,
    "max_calls": 0,
    "max_retries": 3,
    "num_returns": None,
    "retry_exceptions": False,
    "_generator_backpressure_num_objects": None,
    "_num_objects_per_yield": 1,
}
ACTOR_DEFAULTS: dict[str, Any] = {
    name: value
    for name, value in TASK_DEFAULTS.items()
    if name not in {"max_calls", "max_retries", "num_returns", "retry_exceptions"}
    and name not in {"_generator_backpressure_num_objects", "_num_objects_per_yield"}
} | {
    "num_cpus": None,
    "concurrency_groups": None,
    "enable_tensor_transport": None,
    "lifetime": None,
    "max_concurrency": None,
    "max_restarts": 0,
    "max_task_retries": 0,
    "max_pending_calls": -1,
    "namespace": None,
    "get_if_exists": False,
    "allow_out_of_order_execution": None,
    "_actor_generator_backpressure_num_objects": None,
}


class PlacementGroup:
    pass


class NodeAffinitySchedulingStrategy:
    pass


def test_names_and_defaults_are_those_of_the_inventory() -> None:
    for kind, defaults in ((TaskOptions, TASK_DEFAULTS), (ActorOptions, ACTOR_DEFAULTS)):
        made = kind.make()
        assert {name: getattr(made, name) for name in defaults} == defaults
        assert set(kind.__struct_fields__) == {*defaults, "_metadata", "given"}


def test_none_means_the_default() -> None:
    for kind, defaults in ((TaskOptions, TASK_DEFAULTS), (ActorOptions, ACTOR_DEFAULTS)):
        given_none = kind.make(dict.fromkeys(defaults))
        assert {name: getattr(given_none, name) for name in defaults} == {**defaults, "placement_group": None}


@pytest.mark.parametrize(
    ("make", "name", "near"),
    [
        (TaskOptions.make, "num_cpu", "'num_cpus'"),
        (TaskOptions.make, "max_retry", "'max_retries'"),
        (TaskOptions.make, "max_restarts", "option of actors"),
        (ActorOptions.make, "max_retries", "option of tasks"),
        (ActorOptions.make, "lifetim", "'lifetime'"),
        (TaskOptions.make, "zzzzzz", "num_gpus"),
        (TaskOptions().merge, "num_gpu", "'num_gpus'"),
    ],
)
def test_an_unknown_name_is_refused_with_a_suggestion(make: Callable[..., Any], name: str, near: str) -> None:
    with pytest.raises(ValueError, match=near) as caught:
        make(**{name: 1})
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"num_cpus": -1}, ValueError),
        ({"num_cpus": 0.00001}, ValueError),
        ({"num_cpus": float("nan")}, ValueError),
        ({"num_cpus": float("inf")}, ValueError),
        ({"num_cpus": "2"}, TypeError),
        ({"num_cpus": []}, TypeError),
        ({"num_cpus": True}, TypeError),
        ({"num_gpus": 1.5}, ValueError),
        ({"memory": -1}, ValueError),
        ({"resources": {"CPU": 1}}, ValueError),
        ({"resources": {"GPU": 1}}, ValueError),
        ({"resources": {"a": -1}}, ValueError),
        ({"resources": {"a": 0.00001}}, ValueError),
        ({"resources": {1: 1}}, TypeError),
        ({"resources": ["a"]}, TypeError),
        ({"max_retries": -2}, ValueError),
        ({"max_retries": 1.5}, TypeError),
        ({"max_calls": -1}, ValueError),
        ({"num_returns": -1}, ValueError),
        ({"num_returns": "many"}, ValueError),
        ({"num_returns": 2.0}, TypeError),
        ({"retry_exceptions": 3}, TypeError),
        ({"retry_exceptions": [3]}, ValueError),
        ({"retry_exceptions": ValueError}, TypeError),
        ({"scheduling_strategy": "PACK"}, ValueError),
        ({"scheduling_strategy": 3}, TypeError),
        ({"placement_group": "mine"}, TypeError),
        ({"placement_group_bundle_index": "0"}, TypeError),
        ({"runtime_env": "pip"}, TypeError),
        ({"name": ["x"]}, TypeError),
        ({"object_store_memory": 5}, ValueError),
        ({"label_selector": {"a": 1}}, TypeError),
        ({"fallback_strategy": {}}, TypeError),
        ({"enable_task_events": 1}, TypeError),
        ({"accelerator_type": ""}, ValueError),
    ],
)
def test_wrong_values_of_task_options_are_refused(option: dict[str, Any], error: type[Exception]) -> None:
    (name,) = option
    with pytest.raises(error, match=name):
        TaskOptions.make(option)


@pytest.mark.parametrize(
    "option",
    [
        {"lifetime": "forever"},
        {"max_concurrency": 0},
        {"max_restarts": -2},
        {"max_task_retries": -2},
        {"max_pending_calls": -2},
        {"name": ""},
        {"namespace": ""},
        {"get_if_exists": True},
        {"concurrency_groups": {"io": 0}},
    ],
)
def test_wrong_values_of_actor_options_are_refused(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=name):
        ActorOptions.make(option)


def test_good_values_are_kept() -> None:
    group, strategy = PlacementGroup(), NodeAffinitySchedulingStrategy()
    task = TaskOptions.make(
        retry_exceptions=[KeyError, OSError], num_returns="dynamic", scheduling_strategy=strategy, _metadata={"a": 1}
    )
    assert task.retry_exceptions == (KeyError, OSError)
    assert (task.num_returns, task.scheduling_strategy, task._metadata) == ("dynamic", strategy, {"a": 1})
    assert TaskOptions.make(placement_group=group).placement_group is group
    groups = ActorOptions.make(concurrency_groups=[{"name": "io", "max_concurrency": 2}]).concurrency_groups
    assert groups == ActorOptions.make(concurrency_groups={"io": 2}).concurrency_groups == {"io": 2}
    assert ActorOptions.make(name="a", get_if_exists=True, lifetime="detached").lifetime == "detached"


def test_numbers_of_numpy_are_taken() -> None:
    options = TaskOptions.make(num_cpus=np.float32(0.5), max_retries=np.int64(2), resources={"a": np.int8(1)})
    assert options.resources_units() == {"CPU": 5000, "a": 10000}
    assert type(options.max_retries) is int


def test_a_group_and_a_strategy_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude"):
        TaskOptions.make(placement_group=PlacementGroup()).merge(scheduling_strategy="SPREAD")


def test_resources_come_in_exact_units() -> None:
    options = TaskOptions.make(
        num_cpus=0.5, num_gpus=0.25, memory=1000.7, resources={"x": 0.0001, "none": 0}, accelerator_type="A100"
    )
    assert options.resources_units() == {
        "CPU": 5000,
        "GPU": 2500,
        "memory": 10_000_000,
        "x": 1,
        "accelerator_type:A100": 10,
    }
    assert TaskOptions.make(num_cpus=0).resources_units() == {}
    assert TaskOptions().resources_units() == {"CPU": 10_000}
    assert ActorOptions().resources_units() == {}
    assert config.RESOURCE_UNIT == messages.RESOURCE_UNIT


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=20))
def test_fractions_do_not_drift(parts: list[int]) -> None:
    units = [TaskOptions.make(num_cpus=part / 10_000).resources_units()["CPU"] for part in parts]
    assert units == parts


def test_merge_replaces_and_leaves_the_old_one() -> None:
    old = TaskOptions.make(num_cpus=2, name="a")
    new = old.merge(num_cpus=3)
    assert (old.num_cpus, new.num_cpus, new.name) == (2, 3, "a")
    assert old.merge() is old
    assert new.merge(num_cpus=None).num_cpus == 1
    with pytest.raises(AttributeError):
        new.num_cpus = 4  # type: ignore[misc]


def test_gpu_functions_get_a_worker_for_each_call_unless_told() -> None:
    assert TaskOptions.make(num_gpus=1).calls_per_worker() == 1
    assert TaskOptions.make(num_gpus=1, max_calls=0).calls_per_worker() == 0
    assert TaskOptions.make(max_calls=5).calls_per_worker() == 5
    assert TaskOptions.make(num_gpus=0).calls_per_worker() == 0


def test_scheduling_keys() -> None:
    env = {"pip": ["a", "b"], "env_vars": {"A": "1"}}
    one = TaskOptions.make(runtime_env=env, name="a", max_retries=1)
    two = TaskOptions.make(runtime_env=dict(reversed(env.items())), name="b")
    assert one.scheduling_key() == two.scheduling_key()
    assert hash(one.scheduling_key()) == hash(two.scheduling_key())
    for other in ({"num_cpus": 2}, {"scheduling_strategy": "SPREAD"}, {"runtime_env": {"pip": ["a"]}}):
        assert one.merge(**other).scheduling_key() != one.scheduling_key()


def test_an_unhashable_value_is_named() -> None:
    with pytest.raises(TypeError, match=r"runtime_env\['x'\]\[1\]"):
        TaskOptions.make(runtime_env={"x": [1, bytearray()]}).scheduling_key()
