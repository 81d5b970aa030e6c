"""Generators: items per second from a remote generator, each taken and fetched while it goes on."""

from __future__ import annotations

from benchmarks.workloads.base import CLUSTERS, Context, Figures, check, workload


@workload(*CLUSTERS)
def generator_1kb(ctx: Context) -> Figures:
    """Bytes of 1 KB."""
    api = ctx.api
    api.init(num_cpus=2)

    @api.remote
    def produce(count: int) -> object:
        for index in range(count):
            yield index.to_bytes(8, "little") + bytes(992)

    def run(count: int) -> None:
        taken = 0
        for ref in produce.remote(count):
            item = api.get(ref)
            check((len(item), int.from_bytes(item[:8], "little")), (1_000, taken))
            taken += 1
        check(taken, count)

    return {"per_s": ctx.rates(ctx.size(5_000, 2_000), run)}


@workload(*CLUSTERS)
def generator_1mb(ctx: Context) -> Figures:
    """Arrays of 1 MB: one array, changed before each item."""
    api = ctx.api
    api.init(num_cpus=2)

    @api.remote
    def produce(count: int) -> object:
        import numpy as np

        array = np.zeros(125_000)
        for index in range(count):
            array[0] = array[-1] = index
            yield array

    def run(count: int) -> None:
        taken = 0
        for ref in produce.remote(count):
            item = api.get(ref)
            check((item.nbytes, float(item[0]), float(item[-1])), (1_000_000, taken, taken))
            taken += 1
        check(taken, count)

    return {"per_s": ctx.rates(ctx.size(500, 200), run)}
