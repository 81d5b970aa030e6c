"""The command `moray` as a process of its own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.procs import run_driver


def command(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs `moray` with these arguments; with `check` it must succeed and leave nothing behind."""
    return run_driver("", argv=["-m", "moray", *arguments], env=env, cwd=cwd, check=check)


def refused(*arguments: str, code: int = 2, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What it says when it refuses, which is no traceback."""
    finished = command(*arguments, env=env, cwd=cwd, check=False)
    assert finished.returncode == code, finished
    # The end of a log that it quotes is indented.
    assert not re.search("^Traceback", finished.stderr, re.MULTILINE)
    return finished.stderr
