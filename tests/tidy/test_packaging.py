"""The base install stays small, the extras are those that users expect, the package is typed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest

from tests.tidy.source import PACKAGE, ROOT

BASE = {"click", "cloudpickle", "cryptography", "msgspec", "psutil", "rich"}
EXTRAS = {"default", "data", "train", "tune", "serve", "serve-grpc", "rl", "rllib", "redis", "all", "docs", "dev"}
#: What `import moray` must not load: it has 60 ms, and daemons must never see the last two.
HEAVY = {"asyncio", "click", "cryptography", "multiprocessing", "psutil", "rich", "ssl", "numpy", "pyarrow"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s\[<>=~!;]", requirement, maxsplit=1)[0] for requirement in requirements}


def test_base_install_is_small(project: dict[str, Any]) -> None:
    assert names(project["dependencies"]) == BASE


def test_extras(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    assert set(extras) == EXTRAS
    assert extras["rllib"] == ["moray[rl]"]
    everything = set(re.split(r"[\[\],]", extras["all"][0])) - {"moray", ""}
    assert everything == EXTRAS - {"all", "dev", "docs", "rllib"}


def test_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_import_loads_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import moray; print(*(set(sys.modules) - before))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(output.split())
