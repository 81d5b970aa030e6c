"""What has no place in any file of the project: notes to oneself, paths of one machine, registry addresses."""

from __future__ import annotations

import re

import pytest

from tests.tidy.source import ROOT, short, texts

#: Written in pieces, so that this file does not find itself.
UNWANTED = {
    "a note to oneself": re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b"),
    "a path of one machine": re.compile(r"(?<![\w.])/(work|home|root|Users|opt)/\w"),
    "a package registry's address": re.compile(r"(pypi|pythonhosted|anaconda|npmjs)\.(org|com)|index-" r"url"),
    "an unresolved conflict": re.compile(r"^(<{7}|>{7}) ", re.MULTILINE),
    "a tab or a trailing blank": re.compile(r"[ \t]+$", re.MULTILINE),
}
#: Written by others, or with a meaning of its own for blanks.
EXEMPT = {"LICENSE"}
FILES = [path for path in texts() if path.name not in EXEMPT and path.suffix != ".patch"]


@pytest.mark.parametrize("what", UNWANTED)
def test_no_file_contains(what: str) -> None:
    found = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for match in UNWANTED[what].finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{short(path)}:{line} {match[0]!r}")
    assert not found, f"{what}:\n" + "\n".join(found)


def test_licence_is_apache() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
