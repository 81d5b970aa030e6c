"""The examples of the documents: where they stand, what they should print, and whether they do.

A fenced ``python`` block is a program of its own. A fenced ``output`` block right after it is what the program must
print, where ``…`` stands for anything. Comments, which readers do not see, stand on the line above a block:

- ``<!-- not run: why -->`` above a program that cannot run as it stands;
- ``<!-- measured -->`` above an output whose numbers differ from run to run: any number is as good.

``python -m tests.examples.documents docs/tutorial.md …`` runs the programs of these documents and writes what they
print into their output blocks, except where it agrees already and is not measured.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.procs import run_driver
from tests.tidy.source import ROOT

_BLOCK: Final = re.compile(
    r"^(?:<!-- not run: (?P<why>.+) -->\n)?```python\n(?P<code>.*?)^```\n"
    r"(?:\n?(?P<measured><!-- measured -->\n)?```output\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_NUMBER: Final = re.compile(r"\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Example:
    """One program of a document."""

    path: Path
    line: int
    code: str
    #: Why it cannot run; None if it can.
    not_run: str | None
    #: What it must print, or None if nothing is said; where it stands in the document's text.
    output: str | None
    output_at: tuple[int, int]
    #: Numbers in `output` are those of one run.
    measured: bool

    def prints(self, printed: str) -> bool:
        """Whether `printed` is what the document says."""
        return self.output is None or self._expected().fullmatch(printed.strip()) is not None

    def _expected(self) -> re.Pattern[str]:
        assert self.output is not None
        parts = []
        for literal in self.output.strip().split("…"):
            if self.measured:
                # Blanks too: columns are as wide as their numbers.
                words = (r"\s+".join(map(re.escape, re.split(r"\s+", text))) for text in _NUMBER.split(literal))
                parts.append(_NUMBER.pattern.join(words))
            else:
                parts.append(re.escape(literal))
        return re.compile(".*?".join(parts), re.DOTALL)


def documents() -> list[Path]:
    """README and everything under docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def examples(path: Path) -> Iterator[Example]:
    """The programs of a document, in order."""
    text = path.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        yield Example(
            path=path,
            line=text.count("\n", 0, match.start("code")),
            code=match["code"],
            not_run=match["why"],
            output=match["output"],
            output_at=match.span("output"),
            measured=match["measured"] is not None,
        )


def rewrite(path: Path) -> None:
    """Run the programs of a document, and write what they print where it says what they print."""
    text = path.read_text(encoding="utf-8")
    for example in reversed(list(examples(path))):
        if example.output is None or example.not_run is not None:
            continue
        printed = run_driver(example.code).stdout.strip() + "\n"
        if example.measured or not example.prints(printed):
            start, end = example.output_at
            text = text[:start] + printed + text[end:]
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rewrite(ROOT / name)
