"""What is said of options that are wrong has the phrases that programs written for Ray look for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from moray.options import ActorOptions, TaskOptions
from moray.runtime import actor_meta

ENDLESS = "only accepts None, 0, -1 or a positive integer, where -1 represents infinity."


@pytest.mark.parametrize(
    ("kind", "option", "text"),
    [
        (TaskOptions, {"max_retries": -7}, f"The keyword 'max_retries' {ENDLESS}"),
        (ActorOptions, {"max_restarts": -2}, f"The keyword 'max_restarts' {ENDLESS}"),
        (ActorOptions, {"max_task_retries": -3}, f"The keyword 'max_task_retries' {ENDLESS}"),
        (TaskOptions, {"max_calls": -1}, "The keyword 'max_calls' only accepts None, 0 or a positive integer"),
        (TaskOptions, {"num_returns": -1}, "The keyword 'num_returns' only accepts None, a non-negative integer, "),
        (TaskOptions, {"num_gpus": 1e-7}, "precision of the fractional quantity of resource num_gpus cannot go beyond"),
        (TaskOptions, {"resources": {"a": 1e-7}}, "of resource a cannot go beyond 0.0001; option resources['a']"),
        (TaskOptions, {"_generator_backpressure_num_objects": 0}, "backpressure_num_objects=0 is not allowed"),
        (TaskOptions, {"_num_objects_per_yield": 0}, "_num_objects_per_yield"),
        (
            ActorOptions,
            {"_actor_generator_backpressure_num_objects": 0},
            "_actor_generator_backpressure_num_objects must be > 0",
        ),
    ],
)  # fmt: skip
def test_values_out_of_range(kind: Any, option: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        kind.make(option)


@pytest.mark.parametrize(
    ("kind", "option", "types"),
    [
        (TaskOptions, {"max_retries": 0.5}, (int, type(None))),
        (TaskOptions, {"num_returns": 0.5}, (int, str, type(None))),
        (ActorOptions, {"max_restarts": 0.5}, (int, type(None))),
        (ActorOptions, {"_metadata": 0.5}, (dict, type(None))),
    ],
)
def test_values_of_the_wrong_type(kind: Any, option: dict[str, Any], types: tuple[type, ...]) -> None:
    (name,) = option
    text = f"The type of keyword '{name}' must be {types}, but received type {float}"
    with pytest.raises(TypeError, match=re.escape(text)):
        kind.make(option)


def test_methods_know_the_same_limits() -> None:
    for name in ("_generator_backpressure_num_objects", "_num_objects_per_yield"):
        with pytest.raises(ValueError, match=name):
            actor_meta.check_options({name: 0}, actor_meta.METHOD_CHECKS, "@moray.method")
