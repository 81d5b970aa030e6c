"""What the pools' processes run; importable in those of the standard library's pool too."""

from __future__ import annotations

import os
import time
from typing import Any

state: dict[str, Any] = {"calls": 0}


def square(x: int) -> int:
    return x * x


def add(x: int, y: int = 0, *, z: int = 0) -> int:
    return x + y + z


def fail(x: int) -> int:
    if x == 3:
        raise KeyError(f"no {x}")
    return x


def setup(value: int) -> None:
    state["value"] = value


def read(_x: Any = None) -> Any:
    return state.get("value")


def calls(_x: Any = None) -> tuple[int, int]:
    """This process, and how often it was called."""
    state["calls"] += 1
    return os.getpid(), state["calls"]


def slow(x: float) -> float:
    time.sleep(x)
    return x


def generate(n: int, error_at: int = -1) -> Any:
    for i in range(n):
        if i == error_at:
            raise RuntimeError("the iterable fails")
        yield i


class AwkwardError(Exception):
    """Its `args` do not fit its ``__init__``."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")
        self.what = what
        self.number = number


def raise_awkward(_x: Any = None) -> None:
    raise AwkwardError("bad", 7)
