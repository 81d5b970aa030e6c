"""Objects: small puts and gets, large arrays against memcpy, references in values, waits.

Large arrays are put from four sources in turn, each changed before it is put, and compared with copies of the
same sources into four mappings of /dev/shm that were written before: the same bytes, equally warm,
measured in turns in the same process.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import TYPE_CHECKING, Any

from benchmarks.workloads.base import CLUSTERS, Api, Context, Figures, check, workload
from benchmarks.workloads.tasks import CLIENTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Arrays put in turn, so that none is put twice in a row.
_SOURCES = 4
#: Bytes moved in one timed round of large puts, when rounds of one array would be too short to time.
_ROUND_BYTES = 200_000_000


@workload(*CLUSTERS)
def put_small(ctx: Context) -> Figures:
    api = ctx.api
    api.init(num_cpus=2)

    def run(count: int) -> None:
        for i in range(count):
            ref = api.put(i)
        check(api.get(ref), count - 1)

    return {"per_s": ctx.rates(ctx.size(5_000, 5_000), run)}


@workload(*CLUSTERS)
def get_small(ctx: Context) -> Figures:
    api = ctx.api
    api.init(num_cpus=2)
    refs = [api.put(i) for i in range(1_000)]

    def run(count: int) -> None:
        total = 0
        for i in range(count):
            total += api.get(refs[i % 1_000])
        check(total, sum(i % 1_000 for i in range(count)))

    return {"per_s": ctx.rates(ctx.size(10_000, 10_000), run)}


@workload(*CLUSTERS)
def put_clients(ctx: Context) -> Figures:
    api = ctx.api
    api.init(num_cpus=2)

    @api.remote(num_cpus=0)
    def client(count: int) -> int:
        for i in range(count):
            ref = api.put(i)
        return int(api.get(ref))

    def run(count: int) -> None:
        part = max(1, count // CLIENTS)
        check(api.get([client.remote(part) for _ in range(CLIENTS)]), [part - 1] * CLIENTS)

    return {"per_s": ctx.rates(ctx.size(8_000, 8_000), run)}


@workload(*CLUSTERS)
def put_1mb(ctx: Context) -> Figures:
    return _put_arrays(ctx, 1_000_000)


@workload(*CLUSTERS)
def put_10mb(ctx: Context) -> Figures:
    return _put_arrays(ctx, 10_000_000)


@workload(*CLUSTERS)
def put_100mb(ctx: Context) -> Figures:
    return _put_arrays(ctx, 100_000_000)


@workload(*CLUSTERS)
def get_10k_refs(ctx: Context) -> Figures:
    """Get one object that holds 10 000 references made by the task that returned it."""
    api = ctx.api
    api.init(num_cpus=2)
    held = ctx.size(10_000)

    @api.remote
    def make() -> list[Any]:
        return [api.put(i) for i in range(held)]

    outer = make.remote()

    def run(count: int) -> None:
        for _ in range(count):
            check(len(api.get(outer)), held)

    figures = {"per_s": ctx.rates(ctx.size(10, 10), run)}
    check(api.get(api.get(outer)[-1]), held - 1)
    return figures


@workload(*CLUSTERS)
def wait_1k(ctx: Context) -> Figures:
    """Wait for 1 000 tasks, taking one finished reference out at a time."""
    api = ctx.api
    api.init(num_cpus=2)
    count = ctx.size(1_000)

    @api.remote
    def echo(value: int) -> int:
        return value

    def run() -> None:
        waiting = [echo.remote(i) for i in range(count)]
        done = []
        while waiting:
            ready, waiting = api.wait(waiting)
            done += ready
        check(sorted(api.get(done)), list(range(count)))

    return {"per_s": [1 / seconds for seconds in ctx.times(run)]}


def _put_arrays(ctx: Context, size: int) -> Figures:
    api = ctx.api
    api.init(num_cpus=2)
    sources = make_sources(size)
    targets = [SharedArray(size) for _ in range(_SOURCES)]
    first = _timed_put(api, sources[0])
    check_array(api, sources[1])
    per_round = max(3, (ctx.size(_ROUND_BYTES)) // size)
    figures: Figures = {"first_touch_gb_s": [size / first / 1e9], "gb_s": [], "memcpy_gb_s": [], "of_memcpy": []}
    for number in range(7):
        copied = _copy_rate(sources, targets, per_round, number)
        put = _put_rate(api, sources, per_round, number)
        if number:  # the first round warms both sides
            figures["memcpy_gb_s"].append(copied)
            figures["gb_s"].append(put)
            figures["of_memcpy"].append(put / copied)
    return figures


def make_sources(size: int) -> list[Array]:
    import numpy as np

    return [np.random.default_rng(seed).random(size // 8) for seed in range(_SOURCES)]


class SharedArray:
    """A mapping of its own unlinked file in /dev/shm, as a numpy array."""

    def __init__(self, size: int) -> None:
        import numpy as np

        path = f"/dev/shm/moray-bench-{os.getpid()}-{id(self)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(path)
        os.ftruncate(fd, size)
        self.array: Array = np.frombuffer(mmap.mmap(fd, size), dtype=np.float64, count=size // 8)
        os.close(fd)


def check_array(api: Api, array: Array) -> None:
    got = api.get(api.put(array))
    if got.dtype != array.dtype or not (got == array).all():
        check("another array", "the array that was put")


def _timed_put(api: Api, array: Array) -> float:
    start = time.perf_counter()
    ref = api.put(array)
    taken = time.perf_counter() - start
    check(float(api.get(ref)[-1]), float(array[-1]))
    return taken


def _copy_rate(sources: list[Array], targets: list[SharedArray], count: int, mark: int) -> float:
    start = time.perf_counter()
    for i in range(count):
        source = sources[i % _SOURCES]
        source[0] = mark * count + i
        targets[i % _SOURCES].array[:] = source
    return count * sources[0].nbytes / (time.perf_counter() - start) / 1e9


def _put_rate(api: Api, sources: list[Array], count: int, mark: int) -> float:
    start = time.perf_counter()
    for i in range(count):
        source = sources[i % _SOURCES]
        source[0] = mark * count + i
        ref = api.put(source)
    taken = time.perf_counter() - start
    check(float(api.get(ref)[0]), float(mark * count + count - 1))
    return count * sources[0].nbytes / taken / 1e9
