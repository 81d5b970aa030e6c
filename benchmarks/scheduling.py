"""What a placement decision costs in clusters of 10 to 10 000 nodes: ``python -m benchmarks.scheduling [--markdown]``.

The scheduler core alone, without processes: a cluster of 16-CPU nodes, every fourth with GPUs, CPUs taken at random.
Each decision is for a task of its own, and is released later, so that the load stays as it is. What making an index
costs is shown apart, as the first decision of a kind. Times are CPU times of this process.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections import deque
from time import process_time_ns
from typing import Any, Final

from moray.core.cluster_scheduler import ClusterScheduler, Demand
from moray.core.cluster_view import ClusterView
from moray.core.strategies import SPREAD, Strategy, selector_of
from moray.protocol.cluster_messages import NodeInfo

UNIT: Final = 10_000
SIZES: Final = (10, 100, 1_000, 10_000)
#: Decisions in one measurement, and measurements of each cell.
DECISIONS: Final = 2_000
ROUNDS: Final = 5
#: Tasks that run at once, in all.
RUNNING: Final = 8

DEMANDS: Final[dict[str, dict[str, Any]]] = {
    "DEFAULT, 1 CPU": {"need": {"CPU": UNIT}},
    "DEFAULT, 1 GPU": {"need": {"CPU": UNIT, "GPU": UNIT}},
    "SPREAD": {"need": {"CPU": UNIT}, "strategy": Strategy(SPREAD)},
    "labels": {"need": {"CPU": UNIT}, "strategy": Strategy(selector=selector_of({"zone": "in(a,b)"}))},
    "actor without CPU": {"need": {}, "placement": {"CPU": UNIT}},
    "infeasible": {"need": {"CPU": 64 * UNIT}},
}


def cluster(size: int, dice: random.Random) -> ClusterView:
    """A view of a half loaded cluster."""
    view = ClusterView()
    nodes = []
    for number in range(size):
        total = {"CPU": 16 * UNIT, "memory": UNIT}
        available = {"CPU": dice.randint(0, 16) * UNIT, "memory": UNIT}
        if number % 4 == 0:
            total["GPU"] = available["GPU"] = 4 * UNIT
        labels = {"zone": "abcd"[number % 4]}
        node_id = number.to_bytes(4, "big") + dice.randbytes(24)
        nodes.append(NodeInfo(node_id, "", total, available, labels))
    view.reset(1, nodes)
    return view


def measure(size: int, keywords: dict[str, Any]) -> tuple[float, float]:
    """(µs of one decision, ms of the first one)."""
    dice = random.Random(7)
    view = cluster(size, dice)
    scheduler = ClusterScheduler(view)
    running: deque[int] = deque()
    number = 0

    def decide() -> None:
        nonlocal number
        number += 1
        scheduler.decide(Demand(holder=number, count=1, **keywords), dice.randrange, 0.0)
        running.append(number)
        if len(running) > RUNNING:
            view.release(running.popleft())

    before = process_time_ns()
    decide()
    first = (process_time_ns() - before) / 1e6
    for _ in range(200):
        decide()
    rounds = []
    for _ in range(ROUNDS):
        before = process_time_ns()
        for _ in range(DECISIONS):
            decide()
        rounds.append((process_time_ns() - before) / DECISIONS / 1e3)
    return statistics.median(rounds), first


def measure_report(size: int) -> float:
    """µs of one node's report, with all indexes in use, what the next decision does about it included."""
    dice = random.Random(7)
    view = cluster(size, dice)
    scheduler = ClusterScheduler(view)
    infos = [node.info for node in view.nodes.values() if node.info is not None]
    rounds = []
    for _ in range(ROUNDS):
        before = process_time_ns()
        for _ in range(DECISIONS):
            view.apply(view.version + 1, [dice.choice(infos)], [])
            scheduler.decide(Demand(holder=0, need={"CPU": UNIT}, count=1), dice.randrange, 0.0)
        rounds.append((process_time_ns() - before) / DECISIONS / 1e3)
    return statistics.median(rounds)


def main() -> None:
    """Print the table."""
    rows: list[tuple[str, list[str]]] = []
    firsts: list[str] = []
    for name, keywords in DEMANDS.items():
        cells = []
        for size in SIZES:
            median, first = measure(size, keywords)
            cells.append(f"{median:.1f} µs")
            if name == "DEFAULT, 1 CPU":
                firsts.append(f"{first:.2f} ms")
        rows.append((name, cells))
    rows.append(("a report, then DEFAULT", [f"{measure_report(size):.1f} µs" for size in SIZES]))
    rows.append(("first decision of a kind", firsts))
    if "--markdown" in sys.argv[1:]:
        print("| decision | " + " | ".join(f"{size:,} nodes".replace(",", " ") for size in SIZES) + " |")
        print("|---|" + "---|" * len(SIZES))
        for name, cells in rows:
            print(f"| {name} | " + " | ".join(cells) + " |")
        return
    print(f"{'':26}" + "".join(f"{size:>12}" for size in SIZES))
    for name, cells in rows:
        print(f"{name:26}" + "".join(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    main()
