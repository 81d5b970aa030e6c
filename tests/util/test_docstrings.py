"""The examples in the docstrings of moray.util and moray.experimental run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import moray.util

MODULES = ["moray.util", "moray.experimental"] + [
    info.name for info in pkgutil.walk_packages(moray.util.__path__, "moray.util.") if info.name.count(".") == 2
]


@pytest.mark.parametrize("name", [*MODULES, "moray.util.multiprocessing.pool"])
def test_examples_run(name: str, shared_session: ModuleType) -> None:
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0
