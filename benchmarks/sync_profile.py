"""Where the time of one task goes when each is waited for: ``python -m benchmarks.sync_profile``.

Timestamps are taken by wrapping a few methods of the runtime in this process, so they add a microsecond or two.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import moray
from moray.protocol.connection import Connection

CALLS = 3000
#: Names of the stretches of a call, in order.
STRETCHES = (
    "remote() until the frame is sent (one system call that wakes the worker)",
    "worker: wake, read, run, answer (until the I/O thread runs)",
    "I/O thread: receive, decode, book the result, wake the caller",
    "caller: wake, interpreter lock, unpickle, return",
)


def measure(calls: int = CALLS) -> list[tuple[str, float]]:
    """Medians in microseconds, one per stretch, and the whole."""
    stamps = {"sent": 0, "woken": 0, "booked": 0}
    _stamp(Connection, "flush", stamps, None, "sent")
    _stamp(Connection, "_receive", stamps, "woken", "booked")

    @moray.remote
    def empty() -> int:
        return 1

    rows = []
    with moray.init(num_cpus=1):
        moray.get(empty.remote())
        for _ in range(calls):
            begin = perf_counter_ns()
            ref = empty.remote()
            sent = stamps["sent"]
            moray.get(ref)
            end = perf_counter_ns()
            woken, booked = stamps["woken"], min(stamps["booked"], end)
            if begin < sent < woken < booked:
                rows.append((sent - begin, woken - sent, booked - woken, end - booked, end - begin))
    columns = zip(*rows, strict=True)
    return [
        (name, statistics.median(column) / 1000)
        for name, column in zip((*STRETCHES, "the whole call"), columns, strict=True)
    ]


def _stamp(owner: type, name: str, stamps: dict[str, int], before: str | None, after: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def stamped(self: Any) -> Any:
        if before is not None:
            stamps[before] = perf_counter_ns()
        result = original(self)
        stamps[after] = perf_counter_ns()
        return result

    setattr(owner, name, stamped)


if __name__ == "__main__":
    for stretch, median_us in measure():
        print(f"{median_us:8.1f} µs  {stretch}")
