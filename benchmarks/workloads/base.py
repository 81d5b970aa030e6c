"""What every workload is given, and the register that finds it by system and name."""

from __future__ import annotations

import gc
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias, cast, overload

#: Systems that have Ray's API, so that one piece of code serves them.
CLUSTERS = ("moray", "ray")

#: What a workload returns: repeated measurements by name.
Figures: TypeAlias = dict[str, list[float]]

#: Repetitions go on until there are this many and they have taken this long; a burst of a tenth of a
#: second says little on a machine that does other things as well.
_REPEATS, _REPEAT_SECONDS, _MOST_REPEATS = 3, 1.0, 12


class Api(Protocol):
    """The part of Ray's API that workloads use."""

    @property
    def __version__(self) -> str: ...
    @property
    def exceptions(self) -> Any: ...
    @overload
    def remote(self, function: Callable[..., Any], /) -> Any: ...
    @overload
    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], Any]: ...
    def init(self, **options: Any) -> Any: ...
    def shutdown(self) -> None: ...
    def put(self, value: object) -> Any: ...
    def get(self, refs: Any) -> Any: ...
    def wait(self, refs: list[Any], *, timeout: float | None = None) -> tuple[list[Any], list[Any]]: ...
    def cancel(self, ref: Any) -> None: ...


class WrongResultError(Exception):
    """The system answered, but not with what was asked for; its time does not count."""


@dataclass(frozen=True)
class Context:
    #: "moray", "ray", "pool", "executor" or "floor".
    system: str
    #: Short sizes, for the gate and for tests.
    quick: bool = False

    @cached_property
    def api(self) -> Api:
        """The module under test."""
        return load(self.system)

    def size(self, full: int, quick: int | None = None) -> int:
        """How many, by mode; a quick run does a tenth unless told otherwise."""
        if not self.quick:
            return full
        return max(1, full // 10) if quick is None else quick

    def rates(self, count: int, run: Callable[[int], None]) -> list[float]:
        """Operations per second of ``run(count)``, warmed up by a tenth of it, repeated."""
        return [count / seconds for seconds in self.times(lambda: run(count), lambda: run(max(1, count // 10)))]

    def times(self, run: Callable[[], object], warm: Callable[[], object] | None = None) -> list[float]:
        """Seconds of `run`, repeated. Garbage of one repetition is not collected in the next one's time."""
        (warm or run)()
        taken: list[float] = []
        while not self._enough(taken):
            gc.collect()
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        return taken

    def _enough(self, taken: list[float]) -> bool:
        least = _REPEAT_SECONDS / 5 if self.quick else _REPEAT_SECONDS
        return len(taken) >= _REPEATS and (sum(taken) >= least or len(taken) >= _MOST_REPEATS)


def load(system: str) -> Api:
    return cast(Api, importlib.import_module(system))


Workload: TypeAlias = Callable[[Context], Figures]

_REGISTER: dict[tuple[str, str], Workload] = {}


def workload(*systems: str) -> Callable[[Workload], Workload]:
    """Register a function, under its name without a leading system name, for these systems."""

    def register(function: Workload) -> Workload:
        for system in systems:
            name = function.__name__.removeprefix(f"{system}_").removeprefix("pools_")
            _REGISTER[system, name] = function
        return function

    return register


def find(system: str, name: str) -> Workload | None:
    return _REGISTER.get((system, name))


def registered() -> list[tuple[str, str]]:
    return list(_REGISTER)


def check(got: object, expected: object) -> None:
    if got != expected:
        raise WrongResultError(f"got {str(got)[:100]}, expected {str(expected)[:100]}")


def median(values: list[float]) -> float:
    return statistics.median(values)
