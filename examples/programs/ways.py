"""One script, three ways: without Ray, on moray under the name ray, on Ray; each a process of its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.environments import environment

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
#: A script that takes longer hangs.
LIMIT_S = 240.0
#: Results are sums of floats, some in the order in which tasks end: equal but for rounding.
TOLERANCE = 1e-9


class Outcome(NamedTuple):
    """What a run found."""

    #: What the script compares; None if it failed.
    result: dict[str, Any] | None
    #: Of the package's own work, and of the whole process from start to end.
    work_s: float
    whole_s: float
    #: Why it failed: the last lines of its output.
    error: str = ""


def run(script: str, way: str, python: str, limit_s: float = LIMIT_S) -> Outcome:
    """Run `script` by the way "none", "moray" or "ray", with the interpreter `python`."""
    command = [python, "-m", "moray", "run", "--as-ray"] if way == "moray" else [python]
    command += [str(FOLDER / f"{script}.py"), "--engine", "none" if way == "none" else "ray"]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit_s, cwd=FOLDER,
            env={**environment(), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    except subprocess.TimeoutExpired as expired:
        return Outcome(None, 0.0, limit_s, f"not done after {limit_s:.0f} s; {_end(expired.stderr)}")
    whole_s = time.perf_counter() - started
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"work_s"')]
    if done.returncode or len(lines) != 1:
        return Outcome(None, 0.0, whole_s, f"exit code {done.returncode}; {_end(done.stderr)}")
    found = json.loads(lines[0])
    expected = {"none": None, "moray": "moray", "ray": "ray"}[way]
    if found["made_by"] != expected:
        return Outcome(None, 0.0, whole_s, f"ran on {found['made_by']} instead of {expected}")
    return Outcome(found["result"], found["work_s"], whole_s)


def _end(stderr: str | bytes | None) -> str:
    text = stderr.decode(errors="replace") if isinstance(stderr, bytes) else stderr or ""
    return os.linesep.join(text.splitlines()[-15:])


def differences(one: Any, other: Any, where: str = "result") -> list[str]:
    """Where two results differ by more than rounding."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return [line for key in one for line in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for index, pair in pairs for line in differences(*pair, f"{where}[{index}]")]
    if isinstance(one, float) and isinstance(other, float | int):
        if math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(one) and math.isnan(other)):
            return []
    elif one == other:
        return []
    return [f"{where}: {one} against {other}"]
