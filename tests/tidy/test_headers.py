"""Module headers are theories of operation; the rules that they cite exist; no file is a monster (STYLE)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

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


# Each test looks at all files: one for each of them would take longer to begin and to end than it lasts.


def test_modules_have_headers() -> None:
    found = [short(path) for path in MODULES if not ast.get_docstring(tree(path))]
    assert not found, f"they do not say what they are for: {found}"


def test_cited_rules_exist() -> None:
    known = rules() | OTHER_CAPITALS
    found: dict[str, set[str]] = {}
    for path in MODULES:
        cited = {name for text in docstrings(path) for group in _CITATION.findall(text) for name in group.split(", ")}
        if cited - known:
            found[short(path)] = cited - known
    assert not found, f"they cite what docs/rules.md does not have: {found}"


def test_no_file_is_a_monster() -> None:
    lines = {short(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    found = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert not found, f"more than {MOST_LINES} lines are more than one concept: {found}"


def test_functions_are_small() -> None:
    found: dict[str, int] = {}
    for path in MODULES:
        functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        sizes = {f"{short(path)}:{n.lineno} {n.name}": (n.end_lineno or n.lineno) - n.lineno + 1 for n in functions}
        found |= {name: size for name, size in sizes.items() if size > MOST_FUNCTION_LINES}
    assert not found, f"longer than {MOST_FUNCTION_LINES} lines: {found}"
