"""mypy and pyright accept the right program, and find each error of the wrong one (docs/typing.md)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.tidy.source import ROOT

HERE = Path(__file__).parent
ACCEPTED, REFUSED = HERE / "accepted.py", HERE / "refused.py"
_MARK = re.compile(r"# error(?:: (\w+))?$")


def run(*arguments: str) -> str:
    """What a checker prints; 1 is its exit code when it has found errors."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), f"{arguments} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


Found = dict[Path, dict[int, str]]


# Both programs at once: most of a checker's time is moray's own, and its start.


@cache
def mypy() -> Found:
    """Program → line → the error that mypy finds there."""
    found: Found = {ACCEPTED: {}, REFUSED: {}}
    for line in run("mypy", "--no-error-summary", "--hide-error-context", *map(str, found)).splitlines():
        match = re.fullmatch(r"(.+?):(\d+): error: (.*)", line)
        if match and (ROOT / match[1]) in found:
            found[ROOT / match[1]][int(match[2])] = match[3]
    return found


@cache
def pyright() -> Found:
    """Program → line → the error that pyright finds there."""
    found: Found = {ACCEPTED: {}, REFUSED: {}}
    with tempfile.TemporaryDirectory() as folder:  # Its own settings: the project's leave the wrong program out.
        settings = Path(folder, "pyrightconfig.json")
        settings.write_text(json.dumps({"typeCheckingMode": "strict"}), encoding="utf-8")
        for path in found:
            shutil.copy(path, folder)
        report = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(settings)))
    assert report["summary"]["filesAnalyzed"] == len(found)
    diagnostics: list[dict[str, Any]] = report["generalDiagnostics"]
    for each in diagnostics:
        found[HERE / Path(each["file"]).name][each["range"]["start"]["line"] + 1] = each["message"]
    return found


def marked(path: Path, checker: str) -> set[int]:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    marks = ((number, _MARK.search(line)) for number, line in lines)
    return {number for number, mark in marks if mark and mark[1] in (None, checker)}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_the_right_program_is_accepted(checker: Callable[[], Found]) -> None:
    assert checker()[ACCEPTED] == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_each_error_is_found(checker: Callable[[], Found]) -> None:
    found = checker()[REFUSED]
    expected = marked(REFUSED, checker.__name__)
    assert len(expected) > 40
    assert sorted(expected - set(found)) == [], "lines whose error is not found"
    assert {line: found[line] for line in set(found) - expected} == {}, "errors in lines that are right"
