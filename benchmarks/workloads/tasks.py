"""Task throughput: submitted in a burst, one by one, and from several clients at once."""

from __future__ import annotations

from benchmarks.workloads.base import CLUSTERS, Context, Figures, check, workload

#: Clients that submit at the same time; with two cores and two workers beside them, enough to contend.
CLIENTS = 4


@workload(*CLUSTERS)
def tasks_async(ctx: Context) -> Figures:
    api = ctx.api
    api.init(num_cpus=2)

    @api.remote
    def echo(value: int) -> int:
        return value

    def run(count: int) -> None:
        check(api.get([echo.remote(i) for i in range(count)]), list(range(count)))

    return {"per_s": ctx.rates(ctx.size(10_000, 5_000), run)}


@workload(*CLUSTERS)
def tasks_sync(ctx: Context) -> Figures:
    api = ctx.api
    api.init(num_cpus=2)

    @api.remote
    def echo(value: int) -> int:
        return value

    def run(count: int) -> None:
        for i in range(count):
            check(api.get(echo.remote(i)), i)

    return {"per_s": ctx.rates(ctx.size(1_000, 500), run)}


@workload(*CLUSTERS)
def tasks_clients(ctx: Context) -> Figures:
    """Clients are tasks without CPUs, each submitting its part and waiting for it."""
    api = ctx.api
    api.init(num_cpus=2)

    @api.remote
    def echo(value: int) -> int:
        return value

    @api.remote(num_cpus=0)
    def client(first: int, count: int) -> int:
        refs = [echo.remote(i) for i in range(first, first + count)]
        return sum(api.get(refs))

    def run(count: int) -> None:
        part = count // CLIENTS
        parts = [client.remote(number * part, part) for number in range(CLIENTS)]
        check(sum(api.get(parts)), sum(range(part * CLIENTS)))

    return {"per_s": ctx.rates(ctx.size(10_000, 4_000), run)}
