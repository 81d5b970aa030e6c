"""The standard library's pools, two processes each: what one gets without a runtime."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from benchmarks.workloads.base import Context, Figures, check, workload


def echo(value: int) -> int:
    """Pools pickle functions by name, so this one is at module level."""
    return value


@workload("pool")
def pool_tasks_async(ctx: Context) -> Figures:
    with multiprocessing.Pool(2) as pool:

        def run(count: int) -> None:
            results = [pool.apply_async(echo, (i,)) for i in range(count)]
            check([result.get() for result in results], list(range(count)))

        return {"per_s": ctx.rates(ctx.size(10_000, 5_000), run)}


@workload("pool")
def pool_tasks_sync(ctx: Context) -> Figures:
    with multiprocessing.Pool(2) as pool:

        def run(count: int) -> None:
            for i in range(count):
                check(pool.apply_async(echo, (i,)).get(), i)

        return {"per_s": ctx.rates(ctx.size(1_000, 500), run)}


@workload("executor")
def executor_tasks_async(ctx: Context) -> Figures:
    with ProcessPoolExecutor(2) as executor:

        def run(count: int) -> None:
            futures = [executor.submit(echo, i) for i in range(count)]
            check([future.result() for future in futures], list(range(count)))

        return {"per_s": ctx.rates(ctx.size(10_000, 5_000), run)}


@workload("executor")
def executor_tasks_sync(ctx: Context) -> Figures:
    with ProcessPoolExecutor(2) as executor:

        def run(count: int) -> None:
            for i in range(count):
                check(executor.submit(echo, i).result(), i)

        return {"per_s": ctx.rates(ctx.size(1_000, 500), run)}
