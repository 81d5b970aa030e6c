"""What is said of options that are wrong: which one, what it takes, and what was given."""

from __future__ import annotations

import re
from typing import Any

import pytest

from moray.options import ActorOptions, TaskOptions
from moray.runtime import actor_meta

ENDLESS = "must be a whole number of at least 0, or -1 for no limit, or None, not"


@pytest.mark.parametrize(
    ("kind", "option", "text"),
    [
        (TaskOptions, {"max_retries": -7}, f"option max_retries {ENDLESS} -7"),
        (ActorOptions, {"max_restarts": -2}, f"option max_restarts {ENDLESS} -2"),
        (ActorOptions, {"max_task_retries": -3}, f"option max_task_retries {ENDLESS} -3"),
        (TaskOptions, {"max_calls": -1}, "option max_calls must be a whole number of at least 0, or None, not -1"),
        (TaskOptions, {"num_returns": -1}, "option num_returns must be a whole number of at least 0, 'streaming' or "),
        (TaskOptions, {"num_gpus": 1e-7}, "option num_gpus is 1e-07, less than the smallest share of a resource"),
        (TaskOptions, {"resources": {"a": 1e-7}}, "option resources['a'] is 1e-07, less than the smallest share"),
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
        (TaskOptions, {"max_retries": 0.5}, "int"),
        (TaskOptions, {"num_returns": 0.5}, "int or str"),
        (ActorOptions, {"max_restarts": 0.5}, "int"),
        (ActorOptions, {"_metadata": 0.5}, "dict"),
    ],
)
def test_values_of_the_wrong_type(kind: Any, option: dict[str, Any], types: str) -> None:
    (name,) = option
    text = f"option {name} must be {types}, or None, not 0.5 (float)"
    with pytest.raises(TypeError, match=re.escape(text)):
        kind.make(option)


def test_methods_know_the_same_limits() -> None:
    for name in ("_generator_backpressure_num_objects", "_num_objects_per_yield"):
        with pytest.raises(ValueError, match=name):
            actor_meta.check_options({name: 0}, actor_meta.METHOD_CHECKS, "@moray.method")
