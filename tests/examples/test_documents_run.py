"""Every Python example of the documents runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.procs import run_driver
from tests.tidy.source import ROOT, short

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[Path, int, str]]:
    """Document, line and text of each block."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        found += [(path, text.count("\n", 0, match.start()) + 1, match[1]) for match in _BLOCK.finditer(text)]
    return found


@pytest.mark.parametrize("code", [pytest.param(code, id=f"{short(path)}:{line}") for path, line, code in examples()])
def test_example_of_a_document_runs(code: str) -> None:
    run_driver(code)


def test_first_example_prints_what_it_says() -> None:
    assert run_driver(examples()[0][2]).stdout.strip() == "285"
