"""The table of programs, for the terminal and for docs/compatibility.md."""

from __future__ import annotations

import datetime as dt
import os
import platform
from typing import Final, NamedTuple

import moray
from benchmarks.environments import RAY_VERSION
from examples.programs.catalogue import PROGRAMS, Program
from examples.programs.ways import ROOT, Outcome, differences

DOCS: Final = ROOT / "docs" / "compatibility.md"
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
WAYS: Final = ("none", "moray", "ray")


class Row(NamedTuple):
    """A program, the version of its package, and what each way found."""

    program: Program
    version: str
    outcomes: dict[str, Outcome]

    def verdict(self, way: str) -> str:
        """What comparing `way` with the run without Ray gives: "equal", or what is wrong."""
        plain, found = self.outcomes["none"], self.outcomes[way]
        if plain.result is None or found.result is None:
            return "failed"
        different = differences(plain.result, found.result)
        return f"differs: {different[0]}" if different else "equal"

    def as_expected(self) -> bool:
        """Whether it runs on moray with equal results, or fails for the reason that is known."""
        return (self.verdict("moray") == "equal") != bool(self.program.fails)


def markdown(rows: list[Row], earlier: str = "") -> str:
    """The part of the page that runs write. Programs that did not run now keep their lines of `earlier`."""
    machine = f"{os.cpu_count()} cores, {platform.platform()}, CPython {platform.python_version()}"
    lines = [
        f"- Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d} by `python -m examples.programs --write-docs`, each once.",
        f"- Machine: {machine}; load average {os.getloadavg()[2]:.1f} over the last quarter of an hour.",
        f"- Versions: moray {moray.__version__}, Ray {RAY_VERSION}.",
        "",
        "| package | version | uses of Ray | no Ray: work | moray: work | Ray: work | moray: all | Ray: all | result |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    measured = {row.program: row for row in rows}
    kept = earlier.splitlines()
    running = [program for program in PROGRAMS if not program.fails]
    lines += [line for program in running for line in _lines(program, measured, kept)]
    failing = [program for program in PROGRAMS if program.fails]
    if failing:
        lines += ["", "Those that do not run yet:", "", "| package | version | cause |", "|---|---|---|"]
        lines += [line for program in failing for line in _lines(program, measured, kept)]
    return "\n".join(lines)


def _lines(program: Program, measured: dict[Program, Row], kept: list[str]) -> list[str]:
    link = f"[{program.package}](../examples/programs/{program.script}.py)"
    row = measured.get(program)
    if row is None:
        return [line for line in kept if link in line]
    if program.fails:
        return [f"| {link} | {row.version} | {program.fails} |"]
    cells = [_seconds(row, way, "work_s") for way in WAYS]
    cells += [_seconds(row, way, "whole_s") for way in ("moray", "ray")]
    verdicts = {way: row.verdict(way) for way in ("moray", "ray")}
    both = "equal" if set(verdicts.values()) == {"equal"} else f"moray {verdicts['moray']}, Ray {verdicts['ray']}"
    return [f"| {link} | {row.version} | {program.uses} | {' | '.join(cells)} | {both} |"]


def _seconds(row: Row, way: str, which: str) -> str:
    outcome = row.outcomes.get(way)
    if outcome is None or outcome.result is None:
        return "failed" if outcome is not None else ""
    return f"{outcome.work_s if which == 'work_s' else outcome.whole_s:.1f} s"


def text(row: Row) -> str:
    """What is said of a program when it is done."""
    parts = [f"{way} {_seconds(row, way, 'work_s')} ({_seconds(row, way, 'whole_s')})" for way in row.outcomes]
    lines = [f"{row.program.package} {row.version}: {', '.join(parts)}; moray: {row.verdict('moray')}"]
    for way, outcome in row.outcomes.items():
        if outcome.result is None:
            why = f"known: {row.program.fails}" if way == "moray" and row.program.fails else outcome.error
            lines.append(f"    {way}: {why}")
    return "\n".join(lines)


def write_docs(rows: list[Row]) -> None:
    """Replace the measured part of the page; the prose around it stays."""
    page = DOCS.read_text()
    before, begin, rest = page.partition(_BEGIN)
    earlier, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{DOCS} has no {_BEGIN} ... {_END} part to replace")
    DOCS.write_text(f"{before}{_BEGIN}\n{markdown(rows, earlier)}\n{_END}{after}")
