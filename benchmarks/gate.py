"""The short run that fails when something became slower.

Absolute times differ between machines and hours, so each row is divided by the floor's figure of the same run
(or by the bound it is measured with), and that ratio is compared with the recorded one: a row fails
under 0.8 of it. A round is one interleaved pass over the floor and all rows; rounds go on while
their time allows, and the median of the rounds counts. What then fails is measured again, more
often, before it is believed: a slow minute of the machine passes, a slow row does not.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.catalogue import ROWS, Row, System, workloads
from benchmarks.runner import Runner

RECORDED = Path(__file__).resolve().parent / "recorded.json"

#: Part of its recorded ratio that a row must reach.
_LEAST = 0.8
#: Rounds are started until one more would pass this; with what is measured again the run stays under 90 s.
_ROUNDS_SECONDS = 70.0
_MOST_ROUNDS = 5
#: Rounds added for rows that failed, and when to stop adding.
_AGAIN, _ALL_SECONDS = 4, 85.0
#: Longest one measurement may take here; far above what any of them needs.
_TIMEOUT_SECONDS = 20.0
#: These rest on sleeps, pages and the kernel, not on our speed alone, and take long: once is enough.
_ONCE = frozenset({"actors_many", "memory", "mixed", "sleeps_after_empty", "second_driver"})


@dataclass(frozen=True)
class Verdict:
    row: Row
    #: Ratio to the floor now; None when the row failed to run.
    reached: float | None
    recorded: float | None

    @property
    def failed(self) -> bool:
        if self.reached is None:
            return True
        return self.recorded is not None and self.reached < _LEAST * self.recorded

    def __str__(self) -> str:
        reached = "did not run" if self.reached is None else f"{self.reached:.4g}"
        recorded = "not recorded" if self.recorded is None else f"recorded {self.recorded:.4g}"
        if self.reached is not None and self.recorded is not None:
            recorded += f", {self.reached / self.recorded:.2f} of it"
        return f"{'FAILED' if self.failed else 'ok':7s} {self.row.name:20s} {reached} ({recorded})"


def gated_rows() -> tuple[Row, ...]:
    return tuple(row for row in ROWS if row.gated and "moray" in row.systems)


def run(record: bool = False, path: Path = RECORDED) -> int:
    """Measure, print a line per row; returns the exit code."""
    runner = Runner(quick=True, timeout_s=_TIMEOUT_SECONDS)
    start = time.monotonic()
    rounds = _rounds(runner, start)
    if record:
        return _record(runner, path)
    recorded = _load(path)
    verdicts = judge(runner, recorded)
    again = tuple(verdict.row for verdict in verdicts if verdict.failed)
    for number in range(rounds, rounds + _AGAIN):
        _round(runner, number, again, start + _ALL_SECONDS)
    verdicts = judge(runner, recorded)
    print("\n".join(str(verdict) for verdict in verdicts))
    return 1 if any(verdict.failed for verdict in verdicts) else 0


def judge(runner: Runner, recorded: dict[str, float]) -> list[Verdict]:
    return [Verdict(row, floor_ratio(runner, row), recorded.get(row.name)) for row in gated_rows()]


def floor_ratio(runner: Runner, row: Row) -> float | None:
    """The row's figure over the floor's, larger is better: the median over rounds."""
    ours = runner.results.per_round(row.workload, row.figure, "moray")
    if row.floor is None:
        ratios = [_goodness(value, row.more_is_better) for value in ours.values()]
    else:
        workload, figure = row.floor
        floors = runner.results.per_round(workload, figure, "floor")
        rate = figure.endswith("per_s")
        ratios = [
            _goodness(ours[number], row.more_is_better) / _goodness(floors[number], rate)
            for number in ours.keys() & floors.keys()
        ]
    return statistics.median(ratios) if ratios else None


def _goodness(value: float, more_is_better: bool) -> float:
    """Larger is better; times and sizes are turned over, so that they can be divided by rates."""
    return value if more_is_better else 1 / value


def _rounds(runner: Runner, start: float) -> int:
    """Measure for as long as there is time; returns how many rounds that were."""
    slowest = 0.0
    for number in range(_MOST_ROUNDS):
        began = time.monotonic()
        if number and began - start + slowest > _ROUNDS_SECONDS:
            return number
        rows = gated_rows()
        chosen = rows if number == 0 else tuple(row for row in rows if row.workload not in _ONCE)
        _round(runner, number, chosen, start + _ALL_SECONDS)
        # The first round holds what is measured once, so it is no guide to the length of the next.
        slowest = time.monotonic() - began if number else slowest
    return _MOST_ROUNDS


def _round(runner: Runner, number: int, rows: tuple[Row, ...], until: float) -> None:
    """One pass; past `until` it stops, so that a runtime that hangs fails soon: its rows did not run."""
    floors = dict.fromkeys(row.floor[0] for row in rows if row.floor)
    ours = workloads(rows)
    for name in [*floors, *(name for name in ours if name not in floors)]:
        if time.monotonic() > until:
            return
        systems: list[System] = []
        if name in floors:
            systems.append("floor")
        if name in ours:
            systems.append("moray")
        runner.round(number, name, systems)


def _record(runner: Runner, path: Path) -> int:
    ratios = {row.name: floor_ratio(runner, row) for row in gated_rows()}
    known = {name: float(f"{value:.6g}") for name, value in ratios.items() if value is not None}
    for name in ratios.keys() - known.keys():
        print(f"not recorded, it did not run: {name}", file=sys.stderr)
    page = {"python": platform.python_version(), "ratios": known}
    path.write_text(json.dumps(page, indent=2) + "\n")
    print(f"recorded {len(known)} ratios in {path.name}")
    return 0 if len(known) == len(ratios) else 1


def _load(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    ratios: dict[str, float] = json.loads(path.read_text())["ratios"]
    return ratios
