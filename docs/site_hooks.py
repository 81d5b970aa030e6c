# ruff: noqa: INP001 - mkdocs and griffe load it by its path
"""Hooks of mkdocs: what the site needs that the documents, which are also read in the repository, do not.

README and CONTRIBUTING become pages, because documents link to them. Links to other files outside of docs lose their
target and keep their text: the site has no such pages. Pages that somebody has written but not put into the
navigation yet are put under "More".
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: File of the repository → the page that it becomes.
PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md"}
MORE = "More"

_LINK = re.compile(r"\[(?P<text>[^\]\[]+)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add to the navigation what is there and not named in it."""
    docs = Path(config.docs_dir)
    named = set(_named(config.nav))
    there = sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))
    extra: list[Any] = [path for path in [*there, *PAGES.values()] if path not in named]
    if config.nav is not None:
        config.nav.append({MORE: extra})
    return config


def _named(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    items = nav.values() if isinstance(nav, dict) else nav or []
    return [path for item in items for path in _named(item)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs'
    """Turn links that lead out of docs into links to pages, or into text."""
    source = page.file.src_uri
    original = next((name for name, target in PAGES.items() if target == source), f"docs/{source}")

    def turned(match: re.Match[str]) -> str:
        target = match["target"]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        full = posixpath.normpath(posixpath.join(posixpath.dirname(original), target))
        inside = PAGES.get(full) or (full.removeprefix("docs/") if full.startswith("docs/") else None)
        if inside is None:
            return match["text"]
        relative = posixpath.relpath(inside, posixpath.dirname(source) or ".")
        return f"[{match['text']}]({relative}{match['anchor'] or ''})"

    return _LINK.sub(turned, markdown)
