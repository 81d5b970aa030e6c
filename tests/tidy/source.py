"""The files of the project, for the tests that look at all of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "src" / "moray"
#: Folders that no one writes by hand, or that are not ours.
OTHER: Final = frozenset({".git", ".hypothesis", "build", "dist", "__pycache__"})
#: What a text file of the project ends in.
TEXT: Final = frozenset({".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".patch", ".sh", ""})


def modules(*folders: Path) -> list[Path]:
    """The Python files under `folders`, in order."""
    return sorted(path for folder in folders if folder.is_dir() for path in _walk(folder) if path.suffix == ".py")


def texts() -> list[Path]:
    """Every text file that belongs to the project."""
    return sorted(_walk(ROOT))


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in OTHER or path.name.endswith("_cache") or path.name.startswith(".venv"):
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.suffix in TEXT:
            yield path


def short(path: Path) -> str:
    """The path as it is said in messages."""
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """The full name of every module or attribute that the file imports, with its line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
