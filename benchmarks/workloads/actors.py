"""Actors: calls one at a time, in bursts, among several callers and actors, and the life of many.

Actors number their calls, so that a burst's results say whether each call ran once and in its caller's order.
Each repetition first asks where the numbers stand.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable
from typing import Any

from benchmarks.workloads.base import CLUSTERS, Api, Context, Figures, WrongResultError, check, workload
from benchmarks.workloads.tasks import CLIENTS

#: Actors that are called at the same time, in the rows of several.
SERVERS = 4
#: Actors made and ended in one go. Ray starts an interpreter for each; its rate is taken from fewer.
_MANY = {"moray": 200, "ray": 20}
#: How long actors may live on once their handles are gone.
_END_SECONDS = 30.0


@workload(*CLUSTERS)
def actor_sync(ctx: Context) -> Figures:
    api = ctx.api
    api.init(num_cpus=2)
    counter = _counters(api, 1)[0]
    return {"per_s": ctx.rates(ctx.size(1_000, 500), lambda count: _one_by_one(api, counter, count))}


@workload(*CLUSTERS)
def actor_async(ctx: Context) -> Figures:
    api = ctx.api
    api.init(num_cpus=2)
    counters = _counters(api, 1)
    return {"per_s": ctx.rates(ctx.size(4_000, 4_000), lambda count: _burst(api, counters, count))}


@workload(*CLUSTERS)
def actor_one_to_many(ctx: Context) -> Figures:
    """One driver calls several actors in turn."""
    api = ctx.api
    api.init(num_cpus=2)
    counters = _counters(api, SERVERS)
    return {"per_s": ctx.rates(ctx.size(4_000, 4_000), lambda count: _burst(api, counters, count))}


@workload(*CLUSTERS)
def actor_many_to_many(ctx: Context) -> Figures:
    """Each client, itself an actor, makes its part of the calls, to all actors in turn."""
    api = ctx.api
    api.init(num_cpus=2)

    class Client:
        def __init__(self, counters: list[Any]) -> None:
            self._counters = counters

        def run(self, turns: int) -> tuple[int, bool]:
            """The sum of the numbers that the calls got, and whether each actor numbered them in order."""
            numbers = api.get([counter.call.remote() for _ in range(turns) for counter in self._counters])
            by_actor = [numbers[first :: len(self._counters)] for first in range(len(self._counters))]
            return sum(numbers), all(part == sorted(part) for part in by_actor)

    remote_client = api.remote(Client)
    counters = _counters(api, SERVERS)
    clients = [remote_client.remote(counters) for _ in range(CLIENTS)]

    def run(count: int) -> None:
        turns = max(1, count // (CLIENTS * SERVERS))
        stand = api.get([counter.call.remote() for counter in counters])
        sums = api.get([client.run.remote(turns) for client in clients])
        check([ordered for _, ordered in sums], [True] * CLIENTS)
        expected = sum(sum(range(last + 1, last + 1 + turns * CLIENTS)) for last in stand)
        check(sum(part for part, _ in sums), expected)

    return {"per_s": ctx.rates(ctx.size(3_200, 3_200), run)}


@workload(*CLUSTERS)
def actor_object_argument(ctx: Context) -> Figures:
    """As above; each client puts one object and passes it to all of its calls."""
    api = ctx.api
    api.init(num_cpus=2)

    class Server:
        def echo(self, value: int) -> int:
            return value

    class Client:
        def __init__(self, servers: list[Any]) -> None:
            self._servers = servers

        def run(self, value: int, turns: int) -> int:
            ref = api.put(value)
            return sum(api.get([server.echo.remote(ref) for _ in range(turns) for server in self._servers]))

    remote_server, remote_client = api.remote(Server), api.remote(Client)
    servers = [remote_server.remote() for _ in range(SERVERS)]
    clients = [remote_client.remote(servers) for _ in range(CLIENTS)]
    values = range(1, CLIENTS + 1)

    def run(count: int) -> None:
        turns = max(1, count // (CLIENTS * SERVERS))
        sums = api.get([client.run.remote(value, turns) for client, value in zip(clients, values, strict=True)])
        check(sums, [value * turns * SERVERS for value in values])

    return {"per_s": ctx.rates(ctx.size(3_200, 3_200), run)}


@workload(*CLUSTERS)
def async_actor_sync(ctx: Context) -> Figures:
    api = ctx.api
    api.init(num_cpus=2)
    actor = _coroutines(api)
    return {"per_s": ctx.rates(ctx.size(1_000, 500), lambda count: _one_by_one(api, actor, count))}


@workload(*CLUSTERS)
def async_actor_async(ctx: Context) -> Figures:
    """Coroutines may begin in any order: each number must come once."""
    api = ctx.api
    api.init(num_cpus=2)
    actor = _coroutines(api)

    def run(count: int) -> None:
        stand = api.get(actor.call.remote())
        numbers = api.get([actor.call.remote() for _ in range(count)])
        check(sorted(numbers), list(range(stand + 1, stand + 1 + count)))

    return {"per_s": ctx.rates(ctx.size(3_000, 3_000), run)}


@workload(*CLUSTERS)
def async_actor_arguments(ctx: Context) -> Figures:
    api = ctx.api
    api.init(num_cpus=2)
    actor = _coroutines(api)

    def run(count: int) -> None:
        check(api.get([actor.echo.remote(i) for i in range(count)]), list(range(count)))

    return {"per_s": ctx.rates(ctx.size(3_000, 3_000), run)}


@workload(*CLUSTERS)
def actors_many(ctx: Context) -> Figures:
    """Create actors, call each once, let go of all handles, and wait until every process has ended."""
    api = ctx.api
    api.init(num_cpus=2)

    class Cell:
        def __init__(self, value: int) -> None:
            self._value = value

        def read(self) -> tuple[int, int]:
            return self._value, os.getpid()

    remote_cell = api.remote(Cell)

    def life(count: int) -> tuple[float, float]:
        """Seconds until all have answered, and until all have ended."""
        start = time.perf_counter()
        cells = [remote_cell.remote(i) for i in range(count)]
        answers = api.get([cell.read.remote() for cell in cells])
        called = time.perf_counter() - start
        check([value for value, _ in answers], list(range(count)))
        pids = {pid for _, pid in answers}
        check(len(pids), count)
        drop(cells, pids)
        return called, time.perf_counter() - start

    count = ctx.size(_MANY[ctx.system])
    life(max(1, count // 10))
    lives = [life(count) for _ in range(1 if ctx.system == "ray" else 3)]
    return {
        "s": [whole for _, whole in lives],
        "per_s": [count / whole for _, whole in lives],
        "called_s": [called for called, _ in lives],
    }


def _counters(api: Api, count: int) -> list[Any]:
    """Actors that number their calls, all of them running."""

    class Counter:
        def __init__(self) -> None:
            self._calls = 0

        def call(self) -> int:
            self._calls += 1
            return self._calls

    remote_counter = api.remote(Counter)
    counters = [remote_counter.remote() for _ in range(count)]
    check(api.get([counter.call.remote() for counter in counters]), [1] * count)
    return counters


def _coroutines(api: Api) -> Any:
    """An actor whose methods are coroutines, running."""

    class Coroutines:
        def __init__(self) -> None:
            self._calls = 0

        async def call(self) -> int:
            self._calls += 1
            return self._calls

        async def echo(self, value: int) -> int:
            return value

    actor = api.remote(Coroutines).remote()
    check(api.get(actor.call.remote()), 1)
    return actor


def _one_by_one(api: Api, counter: Any, count: int) -> None:
    stand = api.get(counter.call.remote())
    for number in range(stand + 1, stand + 1 + count):
        check(api.get(counter.call.remote()), number)


def _burst(api: Api, counters: list[Any], count: int) -> None:
    """`count` calls to these actors in turn, then one get."""
    stand = api.get([counter.call.remote() for counter in counters])
    turns = range(1, 1 + count // len(counters))
    numbers = api.get([counter.call.remote() for _ in turns for counter in counters])
    check(numbers, [last + turn for turn in turns for last in stand])


def drop(actors: list[Any], pids: Iterable[int], timeout_s: float = _END_SECONDS) -> None:
    """Let go of the last handles of `actors`; return when their processes have ended.

    A pidfd is readable once its process has ended, so no polling takes time from the ending ones.
    """
    waiting = select.poll()
    left = {os.pidfd_open(pid) for pid in pids}
    try:
        for fd in left:
            waiting.register(fd, select.POLLIN)
        actors.clear()
        deadline = time.monotonic() + timeout_s
        while left:
            ended = waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ended:
                raise WrongResultError(f"{len(left)} actors still run {timeout_s:g} s after their last handles went")
            for fd, _ in ended:
                waiting.unregister(fd)
                os.close(fd)
                left.remove(fd)
    finally:
        for fd in left:
            os.close(fd)
