"""``python -m benchmarks``: measure, print the table, and say by the exit code whether all targets were met."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks import gate, report
from benchmarks.catalogue import ROWS, SYSTEMS, Row, System, workloads
from benchmarks.runner import Runner


def main() -> int:
    options = _options()
    if options.gate or options.record:
        return gate.run(record=options.record)
    rows = _chosen(options.only)
    runner = Runner(quick=options.quick, ray_python=options.ray_python)
    try:
        _measure(runner, rows, options.systems, options.rounds)
    except KeyboardInterrupt:
        print("interrupted; this is what was measured", file=sys.stderr)
    if options.json:
        options.json.write_text(runner.results.to_json())
    print(report.text(runner.results, rows))
    if options.write_docs:
        report.write_docs(runner.results, rows, _command(options))
    return 1 if report.failed(runner.results, rows) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--gate", action="store_true", help="short run against recorded ratios to the floor")
    parser.add_argument("--record", action="store_true", help="rewrite the recorded ratios")
    parser.add_argument("--rounds", type=int, default=3, help="processes per workload and system")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows or workloads to measure")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="systems to measure")
    parser.add_argument("--quick", action="store_true", help="short sizes; for trying things out")
    parser.add_argument("--write-docs", action="store_true", help="render docs/benchmarks.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single repetition here")
    parser.add_argument("--ray-python", metavar="PATH", help="interpreter that has Ray, instead of our own")
    return parser.parse_args()


def _command(options: argparse.Namespace) -> str:
    """The command that gives these figures again, without what only says where they go."""
    words = ["python", "-m", "benchmarks", "--write-docs", "--rounds", str(options.rounds)]
    if options.quick:
        words.append("--quick")
    if options.only:
        words += ["--only", *options.only]
    if options.systems != SYSTEMS:
        words += ["--systems", *options.systems]
    return shlex.join(words)


def _chosen(names: list[str] | None) -> tuple[Row, ...]:
    if not names:
        return ROWS
    rows = tuple(row for row in ROWS if row.name in names or row.workload in names)
    unknown = set(names) - {name for row in rows for name in (row.name, row.workload)}
    if unknown:
        raise SystemExit(f"no such row or workload: {', '.join(sorted(unknown))}; there are "
                         f"{', '.join(row.name for row in ROWS)}")  # fmt: skip
    return rows


def _measure(runner: Runner, rows: tuple[Row, ...], systems: list[System], rounds: int) -> None:
    for name, available in workloads(rows).items():
        for number in range(rounds):
            runner.round(number, name, [system for system in available if system in systems])


if __name__ == "__main__":
    sys.exit(main())
