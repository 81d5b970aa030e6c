# ruff: noqa: INP001 - mkdocs and griffe load it by its path
"""A griffe extension: docstrings as mkdocstrings wants them, from docstrings as the sources have them.

The sources say ``Example:``, which griffe takes for a remark and not for code, and refer to names as Sphinx does
(``:func:`moray.get```), which Markdown would show as it stands.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from griffe import Extension

if TYPE_CHECKING:
    from griffe import Object

_EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(?P<whole>~?)(?P<name>[^`]+)`")


class Docstrings(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_kwargs: Any) -> None:
        if obj.docstring is not None:
            text = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = _ROLE.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    name = match["name"].rpartition(".")[2] if match["whole"] else match["name"]
    return f"`{name}`"
