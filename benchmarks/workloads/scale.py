"""Large numbers: queued tasks, arguments, returns, gets; and whether the cost of one task grows with them."""

from __future__ import annotations

import gc
import time
from typing import Any

from benchmarks import procfs
from benchmarks.workloads.base import CLUSTERS, Api, Context, Figures, check, median, workload
from benchmarks.workloads.gates import gate

#: Ray keeps several kilobytes and milliseconds per queued task; its rate is taken from fewer.
_QUEUED = {"moray": 1_000_000, "ray": 100_000}
#: Queue lengths and numbers of live objects over which the cost of a task may not grow.
_DECADES = (1_000, 10_000, 100_000, 1_000_000)
#: Worker counts over which it may not grow either (on two cores they take turns).
_WORKERS = (2, 8, 32)


@workload(*CLUSTERS)
def queue(ctx: Context) -> Figures:
    """Tasks queued while every worker is held, then run: memory per task, and time over all."""
    api = ctx.api
    api.init(num_cpus=2)

    @api.remote
    def echo(value: int) -> int:
        return value

    check(api.get([echo.remote(i) for i in range(100)]), list(range(100)))
    count = ctx.size(_QUEUED[ctx.system], 20_000)
    submitted, drained, size = _fill_and_drain(api, echo, count)
    return {
        "count": [float(count)],
        "bytes_per_task": [size / count],
        "submit_per_s": [count / submitted],
        "per_s": [count / (submitted + drained)],
    }


@workload(*CLUSTERS)
def args_10k(ctx: Context) -> Figures:
    """One task that takes 10 000 objects."""
    api = ctx.api
    api.init(num_cpus=2)
    count = ctx.size(10_000)
    refs = [api.put(i) for i in range(count)]

    @api.remote
    def total(*values: int) -> int:
        return sum(values)

    def run() -> None:
        check(api.get(total.remote(*refs)), sum(range(count)))

    return {"s": ctx.times(run)}


@workload(*CLUSTERS)
def returns_3k(ctx: Context) -> Figures:
    """One task that returns 3 000 objects, all of them fetched."""
    api = ctx.api
    api.init(num_cpus=2)
    count = ctx.size(3_000)

    @api.remote(num_returns=count)
    def spread() -> list[int]:
        return list(range(count))

    def run() -> None:
        check(api.get(spread.remote()), list(range(count)))

    return {"s": ctx.times(run)}


@workload(*CLUSTERS)
def get_10k(ctx: Context) -> Figures:
    """One get of 10 000 objects."""
    api = ctx.api
    api.init(num_cpus=2)
    count = ctx.size(10_000)
    refs = [api.put(i) for i in range(count)]

    def run() -> None:
        check(api.get(refs), list(range(count)))

    return {"s": ctx.times(run)}


@workload("moray")
def growth_queued(ctx: Context) -> Figures:
    """Microseconds per task, submission and execution, by the length of the queue."""
    api = ctx.api
    api.init(num_cpus=2)

    @api.remote
    def echo(value: int) -> int:
        return value

    def cost(count: int) -> float:
        submitted, drained, _ = _fill_and_drain(api, echo, count)
        return (submitted + drained) / count * 1e6

    return _by_decade(ctx, cost)


@workload("moray")
def growth_objects(ctx: Context) -> Figures:
    """Microseconds per task by the number of objects alive."""
    api = ctx.api
    api.init(num_cpus=2)
    alive: list[Any] = []

    @api.remote
    def echo(value: int) -> int:
        return value

    def cost(count: int) -> float:
        while len(alive) < count:
            alive.append(api.put(len(alive)))
        return _burst(api, echo)

    figures = _by_decade(ctx, cost)
    check(api.get(alive[-1]), len(alive) - 1)
    return figures


@workload("moray")
def growth_workers(ctx: Context) -> Figures:
    """Microseconds per task by the number of workers."""
    api = ctx.api

    @api.remote
    def echo(value: int) -> int:
        return value

    figures: Figures = {}
    for count in _WORKERS:
        api.init(num_cpus=count)
        _burst(api, echo)
        figures[f"us_{count}"] = [_burst(api, echo) for _ in range(5)]
        api.shutdown()
    return _with_growth(figures)


def _fill_and_drain(api: Api, echo: Any, count: int) -> tuple[float, float, int]:
    """Seconds to submit `count` tasks to held workers, seconds to finish them, bytes that the queue took."""
    gc.collect()
    with gate(api, 2) as held:
        before = procfs.resident_bytes()
        start = time.perf_counter()
        refs = [echo.remote(i) for i in range(count)]
        submitted = time.perf_counter() - start
        size = procfs.resident_bytes() - before
        start = time.perf_counter()
        held.open()
        total = sum(api.get(refs))
        drained = time.perf_counter() - start
        check(held.finished(), True)
    check(total, sum(range(count)))
    return submitted, drained, size


def _burst(api: Api, echo: Any) -> float:
    count = 10_000
    start = time.perf_counter()
    check(sum(api.get([echo.remote(i) for i in range(count)])), sum(range(count)))
    return (time.perf_counter() - start) / count * 1e6


def _by_decade(ctx: Context, cost: Any) -> Figures:
    cost(1_000)
    figures: Figures = {}
    for count in _DECADES[: 3 if ctx.quick else None]:
        figures[f"us_{count}"] = [cost(count) for _ in range(max(1, min(9, 100_000 // count)))]
    return _with_growth(figures)


def _with_growth(figures: Figures) -> Figures:
    """Adds how many times the cost of the fewest the cost of the most is."""
    series = list(figures.values())
    return {**figures, "growth": [median(series[-1]) / median(series[0])]}
