"""What the demo shows: a table in the terminal, a bar chart and a contact sheet as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.table import Table

if TYPE_CHECKING:
    from examples.demo.photos import Pixels


@dataclass(frozen=True)
class Outcome:
    """One job, run both ways."""

    name: str
    detail: str
    serial_s: float
    parallel_s: float
    equal: bool
    summary: str

    @property
    def speedup(self) -> float:
        return self.serial_s / self.parallel_s


@dataclass(frozen=True)
class Shown:
    """One show that was run."""

    name: str
    seconds: float
    #: What came out is what must come out.
    right: bool


def shown_table(shown: Sequence[Shown]) -> Table:
    found = Table(title="what was shown, and how long it took")
    found.add_column("show")
    found.add_column("seconds", justify="right")
    found.add_column("as it must be", justify="right")
    for one in shown:
        found.add_row(one.name, f"{one.seconds:.2f}", "[green]yes[/]" if one.right else "[red]NO[/]")
    return found


def table(outcomes: Sequence[Outcome], cpus: int) -> Table:
    shown = Table(title=f"serial against moray on {cpus} CPUs")
    for heading in ("job", "what came out"):
        shown.add_column(heading)
    for heading in ("serial s", "moray s", "times faster", "equal"):
        shown.add_column(heading, justify="right")
    for outcome in outcomes:
        seconds = f"{outcome.serial_s:.2f}", f"{outcome.parallel_s:.2f}", f"{outcome.speedup:.2f}"
        equal = "[green]yes[/]" if outcome.equal else "[red]NO[/]"
        shown.add_row(outcome.name, outcome.summary, *seconds, equal)
    return shown


def chart(outcomes: Sequence[Outcome], cpus: int, path: Path) -> None:
    """Draws seconds as bars, two for each job."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(outcomes))
    runs = (
        ("serial", "#9aa5b1", [outcome.serial_s for outcome in outcomes]),
        (f"moray, {cpus} CPUs", "#1769aa", [outcome.parallel_s for outcome in outcomes]),
    )
    for offset, (label, colour, seconds) in zip((-0.2, 0.2), runs, strict=True):
        bars = axes.bar(places + offset, seconds, width=0.38, label=label, color=colour)
        axes.bar_label(bars, fmt="%.1f s", padding=2)
    axes.set_xticks(places, [f"{outcome.name}\n{outcome.speedup:.2f} times faster" for outcome in outcomes])
    axes.set_ylabel("seconds")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def contact_sheet(thumbnails: Sequence[Pixels], columns: int, path: Path) -> None:
    """Puts square thumbnails of one size side by side, `columns` in a row."""
    side, gap = thumbnails[0].shape[0], 6
    rows = -(-len(thumbnails) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + gap) + gap), "white")
    for number, pixels in enumerate(thumbnails):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(pixels), (gap + column * (side + gap), gap + row * (side + gap)))
    sheet.save(path)
