"""Cancel: of a whole queue, and of a task that sleeps; from the request until every get raises."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.workloads.base import CLUSTERS, Api, Context, Figures, check, workload
from benchmarks.workloads.gates import gate

_QUEUED = 1_000
#: Where a sleep cannot be interrupted, its rest is the figure.
_SLEEP_SECONDS = 5.0
#: From the sleeping task's last word until its sleep has surely begun.
_ASLEEP_SECONDS = 0.05
#: Repetitions end early once they took this long.
_MOST_SECONDS = 6.0


@workload(*CLUSTERS)
def cancel_queued(ctx: Context) -> Figures:
    """1 000 tasks queued behind two that hold the workers. None of them may run, not even later."""
    api = ctx.api
    api.init(num_cpus=2)

    @api.remote
    def leave_trace(path: str) -> str:
        with open(path, "x"):
            return path

    def repetition(directory: str) -> float:
        path = os.path.join(directory, "trace")
        with gate(api, 2) as held:
            refs = [leave_trace.remote(path) for _ in range(_QUEUED)]
            start = time.perf_counter()
            for ref in refs:
                api.cancel(ref)
            canceled = sum(_is_canceled(api, ref) for ref in refs)
            taken = time.perf_counter() - start
            check(canceled, _QUEUED)
            held.open()
            check(held.finished(), True)
        # Whatever was still queued comes before this one.
        later = os.path.join(directory, "later")
        check(api.get(leave_trace.remote(later)), later)
        check(os.listdir(directory), ["later"])
        return taken

    return {"ms": [seconds * 1000 for seconds in _repeated(repetition, ctx.size(10, 5))]}


@workload(*CLUSTERS)
def cancel_sleep(ctx: Context) -> Figures:
    """One task in ``time.sleep`` on the only CPU; and when the next task has run there."""
    api = ctx.api
    api.init(num_cpus=1)

    @api.remote
    def sleep(path: str) -> None:
        with open(path, "wb"):  # opens, then closes, the driver's reading end
            pass
        time.sleep(_SLEEP_SECONDS)

    @api.remote
    def echo(value: int) -> int:
        return value

    check(api.get(echo.remote(1)), 1)
    freed: list[float] = []

    def repetition(directory: str) -> float:
        path = os.path.join(directory, "begun")
        os.mkfifo(path)
        ref = sleep.remote(path)
        with open(path, "rb") as fifo:
            check(fifo.read(), b"")
        time.sleep(_ASLEEP_SECONDS)
        start = time.perf_counter()
        api.cancel(ref)
        canceled = _is_canceled(api, ref)
        raised = time.perf_counter() - start
        check(api.get(echo.remote(2)), 2)
        freed.append(time.perf_counter() - start)
        check(canceled, True)
        return raised

    raised = _repeated(repetition, ctx.size(20, 7))
    return {"ms": [seconds * 1000 for seconds in raised], "freed_ms": [seconds * 1000 for seconds in freed]}


def _repeated(repetition: Callable[[str], float], most: int) -> list[float]:
    """Up to `most` repetitions, each in a directory of its own."""
    taken: list[float] = []
    while len(taken) < most and sum(taken) < _MOST_SECONDS:
        with tempfile.TemporaryDirectory() as directory:
            taken.append(repetition(directory))
    return taken


def _is_canceled(api: Api, ref: Any) -> bool:
    try:
        api.get(ref)
    except api.exceptions.TaskCancelledError:
        return True
    return False
