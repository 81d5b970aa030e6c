"""The floor's figures: bare sockets, plain copies, and the start and weight of a bare interpreter."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time

from benchmarks import procfs
from benchmarks.floor import Floor
from benchmarks.workloads.actors import SERVERS
from benchmarks.workloads.base import Context, Figures, check, workload


def _echo(value: int) -> int:
    return value


@workload("floor")
def floor_tasks_async(ctx: Context) -> Figures:
    return _bursts(ctx, workers=2, count=ctx.size(10_000, 5_000))


@workload("floor")
def floor_tasks_sync(ctx: Context) -> Figures:
    return _round_trips(ctx, workers=2)


@workload("floor")
def floor_actor_sync(ctx: Context) -> Figures:
    """An actor is one worker to this floor."""
    return _round_trips(ctx, workers=1)


@workload("floor")
def floor_actor_async(ctx: Context) -> Figures:
    return _bursts(ctx, workers=1, count=4_000)


@workload("floor")
def floor_actor_one_to_many(ctx: Context) -> Figures:
    return _bursts(ctx, workers=SERVERS, count=4_000)


@workload("floor")
def floor_memcpy(ctx: Context) -> Figures:
    """Copies into /dev/shm: into pages never touched, and again into the same pages."""
    size = ctx.size(100_000_000)
    source = os.urandom(1 << 20) * (size >> 20)
    figures: Figures = {"fresh_gb_s": [], "warm_gb_s": []}
    for _ in range(3):
        path = f"/dev/shm/moray-bench-{os.getpid()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(path)
        os.ftruncate(fd, len(source))
        with mmap.mmap(fd, len(source)) as shared:
            os.close(fd)
            for name in ("fresh_gb_s", "warm_gb_s", "warm_gb_s"):
                start = time.perf_counter()
                shared[:] = source
                figures[name].append(len(source) / (time.perf_counter() - start) / 1e9)
    return figures


@workload("floor")
def floor_process(ctx: Context) -> Figures:
    """Start and end of a bare interpreter, and its memory: what start-up and weight are held against."""
    figures: Figures = {"start_s": [], "mb": []}
    for _ in range(ctx.size(9, 7)):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        figures["start_s"].append(time.perf_counter() - start)
    idle = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(idle, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        figures["mb"].append(procfs.memory({child.pid}).total / 1e6)
        child.communicate(b"\n")
    return figures


def _bursts(ctx: Context, workers: int, count: int) -> Figures:
    floor = Floor(_echo, workers)

    def run(count: int) -> None:
        numbers = [floor.submit(i) for i in range(count)]
        check([floor.get(number) for number in numbers], list(range(count)))

    figures = {"per_s": ctx.rates(count, run)}
    floor.close()
    return figures


def _round_trips(ctx: Context, workers: int) -> Figures:
    floor = Floor(_echo, workers)

    def run(count: int) -> None:
        for i in range(count):
            check(floor.get(floor.submit(i)), i)

    figures = {"per_s": ctx.rates(ctx.size(1_000, 500), run)}
    floor.close()
    return figures
