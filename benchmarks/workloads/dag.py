"""Graphs: a chain of three actors, by plain calls and compiled.

Five ways of doing the same: plain calls with a `get` after each chain, with ten chains under way, or with a `get` after
a hundred; the compiled chain with a `get` after each execution, or with ten under way.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable
from typing import Any

from benchmarks.workloads.base import CLUSTERS, Context, Figures, check, median, workload

_STEPS = (1, 10, 100)
#: What Ray's compiled graphs allow under way unless told otherwise, and so do moray's.
_UNDER_WAY = 10
_BURST = 100


@workload(*CLUSTERS)
def dag_chain(ctx: Context) -> Figures:
    api = ctx.api
    api.init(num_cpus=3)

    class Step:
        def __init__(self, more: int) -> None:
            self._more = more

        def add(self, x: int) -> int:
            return x + self._more

        def switches(self) -> int:
            import resource

            usage = resource.getrusage(resource.RUSAGE_SELF)
            return usage.ru_nvcsw + usage.ru_nivcsw

    remote_step = api.remote(Step)
    steps = [remote_step.remote(more) for more in _STEPS]
    figures = _plain(ctx, steps)
    dag = importlib.import_module(f"{ctx.system}.dag")

    def compiled_chain() -> Any:
        """A graph of its own each time: Ray compiles each once."""
        with dag.InputNode() as node:
            for step in steps:
                node = step.add.bind(node)  # noqa: PLW2901 - the graph grows.
        return node.experimental_compile()

    def switches() -> int:
        """Of the actors, while no loop runs in them; the driver's are not only those of the graph."""
        return sum(api.get([step.switches.remote() for step in steps]))

    before = switches()
    compiled = compiled_chain()
    count, figures["compiled_one"] = _compiled_one(ctx, compiled)
    compiled.teardown()
    figures["switches"] = [(switches() - before) / (count * len(_STEPS))]
    compiled = compiled_chain()
    figures["compiled_several"] = _compiled_several(ctx, compiled)
    compiled.teardown()
    several = median(figures["compiled_several"])
    figures["times"] = [several / median(figures["plain_one"])]
    figures["times_several"] = [several / median(figures["plain_several"])]
    return figures


def _plain(ctx: Context, steps: list[Any]) -> Figures:
    api = ctx.api

    def submit(x: int) -> Any:
        ref: Any = x
        for step in steps:
            ref = step.add.remote(ref)
        return ref

    def one_by_one(count: int) -> None:
        for x in range(count):
            check(api.get(submit(x)), x + sum(_STEPS))

    def in_bursts(count: int) -> None:
        for first in range(0, count, _BURST):
            numbers = range(first, min(first + _BURST, count))
            check(api.get([submit(x) for x in numbers]), [x + sum(_STEPS) for x in numbers])

    def under_way(count: int) -> None:
        _under_way(count, submit, api.get)

    return {
        "plain_one": ctx.rates(ctx.size(500), one_by_one),
        "plain_several": ctx.rates(ctx.size(2_000), under_way),
        "plain_burst": ctx.rates(ctx.size(2_000), in_bursts),
    }


def _compiled_one(ctx: Context, compiled: Any) -> tuple[int, list[float]]:
    """How many executions in all, and how many per second."""
    total = 0

    def run(count: int) -> None:
        nonlocal total
        total += count
        for x in range(count):
            check(compiled.execute(x).get(), x + sum(_STEPS))

    rates = ctx.rates(ctx.size(2_000), run)
    return total, rates


def _compiled_several(ctx: Context, compiled: Any) -> list[float]:
    def run(count: int) -> None:
        _under_way(count, compiled.execute, lambda ref: ref.get())

    return ctx.rates(ctx.size(5_000), run)


def _under_way(count: int, begin: Callable[[int], Any], result: Callable[[Any], Any]) -> None:
    """Ten at a time, each checked."""
    begun: deque[Any] = deque()
    for x in range(count):
        if len(begun) == _UNDER_WAY:
            check(result(begun.popleft()), x - _UNDER_WAY + sum(_STEPS))
        begun.append(begin(x))
    for x in range(count - len(begun), count):
        check(result(begun.popleft()), x + sum(_STEPS))
