"""Every example in the docstrings of the package runs and prints what it says. They share one session."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.tidy.source import PACKAGE

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
#: Of the modules whose examples are read.
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def doctests() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        module = importlib.import_module(name)
        yield from (found for found in finder.find(module, name) if found.examples)


@pytest.mark.parametrize("example", [pytest.param(found, id=found.name) for found in doctests()])
def test_example_of_a_docstring(example: doctest.DocTest, shared_session: ModuleType) -> None:
    if not shared_session.is_initialized():
        shared_session.init(num_cpus=2)  # An example ended the session.
    said: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    assert outcome.failed == 0, "".join(said)


def test_there_are_examples_of_the_whole_api() -> None:
    named = {found.name for found in doctests()}
    assert {"moray", "moray.api.get", "moray.actor.get_actor", "moray.util.queue.Queue"} <= named
