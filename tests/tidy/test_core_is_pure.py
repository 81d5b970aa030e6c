"""Cores hold no I/O: time, randomness and ids are inputs (DESIGN: layers).

import-linter checks the same in `make lint`; here it is looked at file by file, with the calls of
builtins that import nothing, so that the fault is named with its line.
"""

from __future__ import annotations

import ast

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


def test_core_imports_nothing_impure() -> None:
    found = [
        f"{short(path)}:{line} imports {name}"
        for path in CORE
        for name, line in imports(path)
        if name.split(".")[0] in IMPURE
    ]
    assert not found, "\n".join(found)


def test_core_imports_only_what_lies_below() -> None:
    ours = [(path, name, line) for path in CORE for name, line in imports(path) if name.split(".")[0] == "moray"]
    found = [f"{short(path)}:{line} imports {name}" for path, name, line in ours if not name.startswith(ALLOWED)]
    assert not found, "\n".join(found)


def test_core_calls_nothing_impure() -> None:
    """`hash` is among them: that of a string differs from run to run, so a replay would differ too."""
    calls = [(path, node.func) for path in CORE for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    found = [
        f"{short(path)}:{called.lineno} calls {called.id}"
        for path, called in calls
        if isinstance(called, ast.Name) and called.id in IMPURE_CALLS
    ]
    assert not found, "\n".join(found)
