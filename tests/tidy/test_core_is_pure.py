"""Cores hold no I/O: time, randomness and ids are inputs (DESIGN: layers).

import-linter checks the same in `make lint`; here it is looked at file by file, with the calls of
builtins that import nothing, so that the fault is named with its line.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.tidy.source import PACKAGE, imports, modules, short, tree

CORE = modules(PACKAGE / "core")

#: Modules whose import makes a core impure.
IMPURE = frozenset({
    "_thread", "asyncio", "concurrent", "contextvars", "ctypes", "datetime", "fcntl", "gc", "glob", "io", "logging",
    "mmap", "multiprocessing", "os", "pathlib", "psutil", "queue", "random", "resource", "sched", "secrets", "select",
    "selectors", "shutil", "signal", "socket", "socketserver", "ssl", "subprocess", "tempfile", "threading",
    "time", "uuid", "warnings",
})  # fmt: skip
#: Parts of moray that a core may import; messages of the wire are not among them.
ALLOWED = ("moray.config", "moray.core", "moray.ids", "moray.labels", "moray.options")
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "breakpoint", "__import__", "hash"})


@pytest.mark.parametrize("path", CORE, ids=short)
def test_core_imports_nothing_impure(path: Path) -> None:
    found = [f"{short(path)}:{line} imports {name}" for name, line in imports(path) if name.split(".")[0] in IMPURE]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", CORE, ids=short)
def test_core_imports_only_what_lies_below(path: Path) -> None:
    ours = [(name, line) for name, line in imports(path) if name.split(".")[0] == "moray"]
    found = [f"{short(path)}:{line} imports {name}" for name, line in ours if not name.startswith(ALLOWED)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", CORE, ids=short)
def test_core_calls_nothing_impure(path: Path) -> None:
    """`hash` is among them: that of a string differs from run to run, so a replay would differ too."""
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    names = [called for called in calls if isinstance(called, ast.Name) and called.id in IMPURE_CALLS]
    found = [f"{short(path)}:{name.lineno} calls {name.id}" for name in names]
    assert not found, "\n".join(found)
