"""Scheduling where it is easy to be unfair: mixed durations, a change of duration, a second driver.

The tasks sleep, so their number may exceed the cores: what is measured is who waits behind whom.
"""

from __future__ import annotations

import heapq
import json
import random
import subprocess
import sys
import time

from benchmarks.workloads.base import CLUSTERS, Context, Figures, WrongResultError, check, workload

_MIXED_CPUS, _SHORT, _LONG = 8, (1_000, 0.001), (20, 0.5)
#: The order of the mixed tasks. A scheduler that cannot know durations starts tasks in order of arrival;
#: with this seed doing so at no cost at all comes within 5 % of the bound, so that the row
#: shows the scheduler and not the luck of the shuffle.
_MIXED_SEED = 5
#: Ten-millisecond tasks that keep two workers busy while second drivers come and go: 50 s on two workers.
_BACKGROUND = 10_000


@workload(*CLUSTERS)
def mixed(ctx: Context) -> Figures:
    """1 000 sleeps of 1 ms mixed with 20 of 0.5 s, one function, eight logical CPUs."""
    api = ctx.api
    api.init(num_cpus=_MIXED_CPUS)

    @api.remote
    def sleep(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    api.get([sleep.remote(0.2) for _ in range(_MIXED_CPUS)])  # all workers exist
    durations = mixed_durations()

    def run() -> None:
        check(api.get([sleep.remote(seconds) for seconds in durations]), durations)

    taken = ctx.times(run, warm=lambda: None)
    return {
        "s": taken,
        "of_bound": [seconds / mixed_bound() for seconds in taken],
        "ideal_fifo_s": [fifo_makespan(durations, _MIXED_CPUS)],
    }


def mixed_durations() -> list[float]:
    durations = [seconds for count, seconds in (_SHORT, _LONG) for _ in range(count)]
    random.Random(_MIXED_SEED).shuffle(durations)
    return durations


def mixed_bound() -> float:
    """Seconds that no schedule can beat.

    Neither the work divided by the workers, nor whole long tasks one after the other on the worker that
    gets the most of them.
    """
    work = sum(count * seconds for count, seconds in (_SHORT, _LONG)) / _MIXED_CPUS
    return max(work, -(-_LONG[0] // _MIXED_CPUS) * _LONG[1])


def fifo_makespan(durations: list[float], workers: int) -> float:
    """Each task, in order, to the worker that is free first, at no cost."""
    free = [0.0] * workers
    for seconds in durations:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


@workload(*CLUSTERS)
def sleeps_after_empty(ctx: Context) -> Figures:
    """Ten 1 s sleeps right after 10 000 empty tasks of the same function, ten logical CPUs."""
    api = ctx.api
    api.init(num_cpus=10)

    @api.remote
    def sleep(seconds: float) -> float:
        if seconds:
            time.sleep(seconds)
        return seconds

    empty = 10_000
    figures: Figures = {"s": [], "behind_s": []}
    for _ in range(ctx.size(3, 1)):
        check(sum(api.get([sleep.remote(0.0) for _ in range(empty)])), 0.0)
        start = time.perf_counter()
        check(sum(api.get([sleep.remote(1.0) for _ in range(10)])), 10.0)
        figures["s"].append(time.perf_counter() - start)
        start = time.perf_counter()
        refs = [sleep.remote(0.0) for _ in range(empty)] + [sleep.remote(1.0) for _ in range(10)]
        check(sum(api.get(refs)), 10.0)
        figures["behind_s"].append(time.perf_counter() - start)
    return figures


@workload(*CLUSTERS)
def second_driver(ctx: Context) -> Figures:
    """A second driver's first task while all workers run this driver's 10 ms tasks."""
    api = ctx.api
    context = api.init(num_cpus=2)

    @api.remote
    def work(value: int) -> int:
        time.sleep(0.01)
        return value

    refs = [work.remote(i) for i in range(ctx.size(_BACKGROUND))]
    check(api.get(refs[:10]), list(range(10)))
    address = context.address_info["address"]
    figures: Figures = {"first_task_s": [], "init_s": []}
    for number in range(ctx.size(3, 2)):
        for name, value in _run_second_driver(ctx, address, number).items():
            figures[name].append(value)
    if api.wait([refs[-1]], timeout=0)[0]:
        raise WrongResultError("the first driver's tasks ran out before the second driver was measured")
    return figures


def _run_second_driver(ctx: Context, address: str, number: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.workloads.other_driver", ctx.system, address, str(number)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
