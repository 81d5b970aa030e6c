"""Module headers are theories of operation; the rules that they cite exist; no file is a monster (STYLE)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.tidy.source import PACKAGE, ROOT, modules, short, tree

MODULES = modules(PACKAGE)
#: Largest file of the package by lines. Healthy ones have 80 to 250; what outgrows this is two concepts.
MOST_LINES = 650
#: Longest function by lines.
MOST_FUNCTION_LINES = 70

_RULE_HEADING = re.compile(r"^- \*\*([A-Z][A-Z-]+)\*\*", re.MULTILINE)
_CITATION = re.compile(r"\(([A-Z]{2,}(?:-[A-Z]{2,})*(?:, [A-Z]{2,}(?:-[A-Z]{2,})*)*)\)")
#: In parentheses and in capitals, but no rules.
OTHER_CAPITALS = frozenset({
    "ACK", "API", "CA", "CPU", "DESIGN", "EAGAIN", "ENOSPC", "EOF", "EPIPE", "FIFO", "GC", "GIL", "GPU", "HTTP", "JSON",
    "LRU", "MAC", "OOM", "PID", "PSS", "RSS", "STYLE", "TCP", "TLS", "TTL", "URL", "UTC",
})  # fmt: skip


def rules() -> set[str]:
    return set(_RULE_HEADING.findall((ROOT / "docs" / "rules.md").read_text(encoding="utf-8")))


def docstrings(path: Path) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree(path)) if isinstance(node, kinds)]


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_module_has_a_header(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{short(path)} does not say what it is for"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_cited_rules_exist(path: Path) -> None:
    cited = {name for text in docstrings(path) for group in _CITATION.findall(text) for name in group.split(", ")}
    unknown = cited - rules() - OTHER_CAPITALS
    assert not unknown, f"{short(path)} cites {unknown}, which docs/rules.md does not have"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_file_is_no_monster(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{short(path)} has {lines} lines: it is more than one concept"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_functions_are_small(path: Path) -> None:
    functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {f"{short(path)}:{n.lineno} {n.name}": (n.end_lineno or n.lineno) - n.lineno + 1 for n in functions}
    found = {name: size for name, size in sizes.items() if size > MOST_FUNCTION_LINES}
    assert not found, f"longer than {MOST_FUNCTION_LINES} lines: {found}"
