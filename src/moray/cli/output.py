"""Tables for terminals, and lines without colours or frames for everything else."""

from __future__ import annotations

from collections.abc import Sequence

#: Colours of the first column's words.
_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "missing": "bold red"}


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """A table; the columns numbered in `right` hold numbers."""
    import rich.box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        for row in (columns, *rows):
            print("\t".join(row))  # noqa: T201 - a command's output
        return
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console.print(table)


def size(size_bytes: float) -> str:
    """``12.3 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
