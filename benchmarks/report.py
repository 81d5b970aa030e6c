"""Turns results into tables: plain text for the terminal, Markdown for docs/benchmarks.md.

A cell shows the median of the rounds and, in brackets, the smallest and largest single repetition. Verdicts
are computed from unrounded figures.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from benchmarks.catalogue import SECTIONS, SYSTEMS, Limit, Ratio, Row, System, Target
from benchmarks.environments import ROOT
from benchmarks.runner import Results

DOCS = ROOT / "docs" / "benchmarks.md"

_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"

#: Column titles.
_NAMES: dict[System, str] = {
    "moray": "moray",
    "ray": "Ray",
    "pool": "mp.Pool",
    "executor": "ProcessPool",
    "floor": "floor",
}


def text(results: Results, rows: Iterable[Row]) -> str:
    """The table for a terminal."""
    lines = []
    for title, chosen in _sections(rows):
        lines += ["", title, "-" * len(title)]
        for row in chosen:
            lines += _text_row(results, row)
    return "\n".join(lines)


def _text_row(results: Results, row: Row) -> list[str]:
    lines = [f"{row.title} ({row.unit})" if row.unit else row.title]
    lines += [f"    {_NAMES[system]:12s} {_cell(results, row, system)}" for system in row.systems]
    others = [system for system in row.systems if system != "moray"]
    if "moray" in row.systems and others:
        compared = ", ".join(f"{_ratio(results, row, system)} {_NAMES[system]}" for system in others)
        lines.append(f"    {'moray is':12s} {compared}")
    for target in row.targets:
        lines.append(f"    {'target':12s} {_describe(target, row)}: {verdict(results, row, target)}")
    return lines


def failed(results: Results, rows: Iterable[Row]) -> bool:
    """Whether any measurement or target of these rows failed."""
    return bool(results.failures) or any(
        verdict(results, row, target) not in ("met", "not measured") for row in rows for target in row.targets
    )


def verdict(results: Results, row: Row, target: Target) -> str:
    """Say "met", "missed (figure)" or "not measured"."""
    if isinstance(target, Ratio):
        reached = results.ratio(row, target.system)
        met = reached is not None and reached >= target.least
        shown = _times(reached)
    else:
        reached = results.median(row, "moray")
        met = reached is not None and row.meets(target, reached)
        shown = _number(reached)
    if reached is None:
        return "not measured"
    return "met" if met else f"missed ({shown})"


def write_docs(results: Results, rows: Iterable[Row], command: str, path: Path = DOCS) -> None:
    """Replace the measured part of the page; the prose around it stays."""
    page = path.read_text()
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{path} has no {_BEGIN} ... {_END} part to replace")
    path.write_text(f"{before}{_BEGIN}\n{markdown(results, rows, command)}\n{_END}{after}")


def markdown(results: Results, rows: Iterable[Row], command: str) -> str:
    lines = [*_configuration(results, command), ""]
    for title, chosen in _sections(rows):
        systems = [system for system in SYSTEMS if any(system in row.systems for row in chosen)]
        others: list[System] = [system for system in systems if system != "moray"]
        heads = ["workload", "unit", *(_NAMES[system] for system in systems)]
        heads += [f"moray / {_NAMES[system]}" for system in others] + ["target", "verdict"]
        lines += [f"### {title}", "", _line(heads), _line(["---"] * len(heads))]
        lines += [_markdown_row(results, row, systems, others) for row in chosen]
        lines.append("")
    lines += [f"- **{name} on {system} failed:** {why}" for (name, system), why in results.failures.items()]
    return "\n".join(lines).rstrip()


def _markdown_row(results: Results, row: Row, systems: list[System], others: list[System]) -> str:
    cells = [row.title, row.unit]
    cells += [_cell(results, row, system) if system in row.systems else "" for system in systems]
    compared = "moray" in row.systems
    cells += [_ratio(results, row, system) if compared and system in row.systems else "" for system in others]
    cells.append("; ".join(_describe(target, row) for target in row.targets))
    cells.append("; ".join(verdict(results, row, target) for target in row.targets))
    return _line(cells)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _configuration(results: Results, command: str) -> list[str]:
    found = results.versions()
    clusters: tuple[System, ...] = ("moray", "ray")
    versions = "".join(f"; {_NAMES[system]} {found[system]}" for system in clusters if system in found)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"- Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d}, by `{command}`.",
        f"- Machine: {os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB, {platform.platform()}.",
        f"- Versions: CPython {platform.python_version()}{versions}.",
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _sections(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    wanted = {row.name for row in rows}
    found = ((title, [row for row in chosen if row.name in wanted]) for title, chosen in SECTIONS.items())
    return [(title, chosen) for title, chosen in found if chosen]


def _cell(results: Results, row: Row, system: System) -> str:
    middle = results.median(row, system)
    if middle is None:
        return "failed" if (row.workload, system) in results.failures else "-"
    values = results.values(row, system)
    spread = f" [{_number(min(values))} … {_number(max(values))}]" if len(values) > 1 else ""
    return f"{_number(middle)}{spread}"


def _ratio(results: Results, row: Row, system: System) -> str:
    return _times(results.ratio(row, system))


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{_number(ratio)}x"


def _describe(target: Target, row: Row) -> str:
    if isinstance(target, Limit):
        return f"{'≥' if row.more_is_better else '≤'} {_number(target.value)} {row.unit}".rstrip()
    return f"≥ {target.least:g}x {_NAMES[target.system]}"


def _number(value: float | None) -> str:
    """Three significant digits, thousands apart."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"
