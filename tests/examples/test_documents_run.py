"""Every Python example of the documents runs as it stands, and prints what the document says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.documents import Example, documents, examples
from tests.support.procs import run_driver
from tests.tidy.source import short

EXAMPLES = [example for path in documents() for example in examples(path)]


@pytest.mark.parametrize(
    "example",
    [pytest.param(found, id=f"{short(found.path)}:{found.line}") for found in EXAMPLES if found.not_run is None],
)
def test_example_of_a_document_runs(example: Example) -> None:
    printed = run_driver(example.code).stdout
    assert example.prints(printed), f"it should print\n{example.output}\nand printed\n{printed}"


def test_first_example_prints_what_it_says() -> None:
    assert run_driver(EXAMPLES[0].code).stdout.strip() == "285"


def test_unlike_output_is_noticed(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("```python\nprint(1)\n```\n\n```output\n1 … 2\n```\n")
    (example,) = examples(document)
    assert example.prints("1 and 2\n")
    assert not example.prints("1 and 3\n")


def test_only_numbers_of_a_measured_output_may_differ(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("```python\n```\n<!-- measured -->\n```output\none: 12.5 s\nall:  3 s\n```\n")
    (example,) = examples(document)
    assert example.prints("one: 9 s\nall:  1,250.25 s\n")
    assert not example.prints("one: 9 s\nall: many s\n")


def test_blocks_that_say_why_are_not_run(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("<!-- not run: it never ends -->\n```python\nwhile True: ...\n```\n")
    assert [example.not_run for example in examples(document)] == ["it never ends"]
