"""A session's life: import, init to the first result, shutdown, and the memory that it holds when idle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks import procfs
from benchmarks.workloads.base import CLUSTERS, Context, Figures, check, workload

#: How long a session rests after its first task before it is weighed.
_IDLE_SECONDS = 10.0


@workload(*CLUSTERS)
def import_module(ctx: Context) -> Figures:
    """The import alone, timed inside fresh interpreters, and what it adds to the life of a whole process."""
    timed = f"import time; t = time.perf_counter(); import {ctx.system}; print(time.perf_counter() - t)"
    figures: Figures = {"inside_s": [], "added_s": []}
    _interpreter(timed)  # writes the bytecode caches
    for _ in range(ctx.size(7, 5)):
        bare, _ = _interpreter("pass")
        whole, _ = _interpreter(f"import {ctx.system}")
        figures["added_s"].append(whole - bare)
        figures["inside_s"].append(float(_interpreter(timed)[1]))
    return figures


@workload(*CLUSTERS)
def session(ctx: Context) -> Figures:
    """``init()`` with its defaults up to the first task's result, and ``shutdown()``."""
    api = ctx.api

    @api.remote
    def echo(value: int) -> int:
        return value

    start = time.perf_counter()
    api.init()
    check(api.get(echo.remote(7)), 7)
    first = time.perf_counter() - start
    start = time.perf_counter()
    api.shutdown()
    return {"init_s": [first], "shutdown_s": [time.perf_counter() - start]}


@workload(*CLUSTERS)
def memory(ctx: Context) -> Figures:
    """Everything that the session occupies beside its driver, after a rest."""
    api = ctx.api
    context = api.init(num_cpus=2)

    @api.remote
    def echo(value: int) -> int:
        return value

    check(api.get(echo.remote(7)), 7)
    time.sleep(_IDLE_SECONDS if not ctx.quick else 2.0)
    usage = procfs.memory(procfs.session_processes(os.getpid(), hint=str(context.address_info)))
    if usage.processes < 2:
        check(f"{usage.processes} processes", "a node and workers")
    print(usage, file=sys.stderr)
    return {
        "mb": [usage.total / 1e6],
        "pss_mb": [usage.pss / 1e6],
        "unmapped_shared_mb": [usage.unmapped_shared / 1e6],
        "processes": [float(usage.processes)],
    }


def _interpreter(code: str) -> tuple[float, str]:
    """Seconds and output of a fresh interpreter."""
    command: Sequence[str] = (sys.executable, "-c", code)
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stdout
