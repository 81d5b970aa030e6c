"""Boxes, arrows and labels, drawn by matplotlib into an SVG that is the same each time."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

INK, BLUE, GREY, PAPER = "#263238", "#1769aa", "#9aa5b1", "#eef3f8"


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure in inches, and axes without anything, whose unit is a hundredth of an inch."""
    drawn = Figure(figsize=(width, height))
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width * 100)
    axes.set_ylim(0, height * 100)
    axes.axis("off")
    return drawn, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, title: str, text: str = "") -> None:
    """A rounded box whose lower left corner is (x, y)."""
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=8", fc=PAPER, ec=BLUE, lw=1.3)
    axes.add_patch(shape)
    middle = x + width / 2
    title_y = y + height / 2 + (13 if text else 0)
    axes.text(middle, title_y, title, ha="center", va="center", color=INK, fontsize=11, weight="bold")
    if text:
        axes.text(middle, y + height / 2 - 10, text, ha="center", va="center", color=INK, fontsize=8.5)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "", *, both: bool = False,
    dashed: bool = False, above: float = 8,
) -> None:  # fmt: skip
    """An arrow with a label over its middle."""
    style = "<->" if both else "->"
    look = {"arrowstyle": style, "color": GREY if dashed else BLUE, "lw": 1.3, "ls": "--" if dashed else "-"}
    axes.annotate("", xy=end, xytext=start, arrowprops=look)
    if label:
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + above
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(*middle, label, ha="center", va="center", color=INK, fontsize=8.5, bbox=paper)


def save(drawn: Figure, path: Path) -> None:
    """As SVG, with text as text, without the date."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "moray", "font.family": "sans-serif"}):
        drawn.savefig(path, format="svg", metadata={"Date": None})
    # Without the blanks at line ends that matplotlib leaves.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
