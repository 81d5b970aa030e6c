"""``python -m examples.programs``: programs of others without Ray, on moray and on Ray, side by side."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.programs import environments, report
from examples.programs.catalogue import PROGRAMS, Program
from examples.programs.ways import LIMIT_S, run

#: A program that is known to hang is not waited for longer.
_KNOWN_FAILURE_LIMIT_S = 40.0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every program does what the catalogue says of it."""
    options = _options(arguments)
    packages, with_ray = environments.make(options.packages, options.with_ray)
    rows = []
    for program in _chosen(options.only):
        rows.append(_measure(program, packages / "python", with_ray / "python"))
        print(report.text(rows[-1]), flush=True)  # noqa: T201
    if options.write_docs:
        report.write_docs(rows)
    return 0 if all(row.as_expected() for row in rows) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.programs", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="SCRIPT", help="the scripts to run")
    parser.add_argument("--write-docs", action="store_true", help="write what ran into docs/compatibility.md")
    parser.add_argument("--packages", type=Path, default=environments.PACKAGES, help="virtualenv of the packages")
    parser.add_argument("--with-ray", type=Path, default=environments.WITH_RAY, help="virtualenv that adds Ray")
    return parser.parse_args(arguments)


def _chosen(names: list[str] | None) -> tuple[Program, ...]:
    unknown = set(names or ()) - {program.script for program in PROGRAMS}
    if unknown:
        known = ", ".join(program.script for program in PROGRAMS)
        raise SystemExit(f"no such script: {', '.join(sorted(unknown))}; there are {known}")
    return tuple(program for program in PROGRAMS if names is None or program.script in names)


def _measure(program: Program, packages: Path, with_ray: Path) -> report.Row:
    question = f"from importlib.metadata import version; print(version({program.package!r}))"
    asked = subprocess.run([str(packages), "-c", question], capture_output=True, text=True, check=True)
    interpreters = {"none": packages, "moray": packages, "ray": with_ray}
    outcomes = {}
    for way, python in interpreters.items():
        limit_s = _KNOWN_FAILURE_LIMIT_S if program.fails and way == "moray" else LIMIT_S
        outcomes[way] = run(program.script, way, str(python), limit_s)
    return report.Row(program, asked.stdout.strip(), outcomes)


if __name__ == "__main__":
    sys.exit(main())
