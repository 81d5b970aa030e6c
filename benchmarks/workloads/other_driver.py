"""The second driver of :func:`benchmarks.workloads.latency.second_driver`, a program of its own.

``python -m benchmarks.workloads.other_driver SYSTEM ADDRESS NUMBER`` joins the session at ADDRESS and prints
one JSON line: how long joining took, and how long its first task then took.
"""

from __future__ import annotations

import json
import sys
import time

from benchmarks.workloads.base import check, load


def main(system: str, address: str, number: int) -> None:
    api = load(system)
    start = time.perf_counter()
    api.init(address=address)
    joined = time.perf_counter()

    @api.remote
    def echo(value: int) -> int:
        return value

    check(api.get(echo.remote(number)), number)
    finished = time.perf_counter()
    api.shutdown()
    print(json.dumps({"init_s": joined - start, "first_task_s": finished - joined}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
