"""A program that was written for Ray, run without a change by ``moray run --as-ray``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from examples.demo.show import Show, check

PROGRAM = Path(__file__).parents[1] / "ray_program.py"
BLOCKS = 100
#: What it must find, for so many blocks: the first largest gap between neighbours of one block.
FOUND = "after 4,652,353 the next prime is 154 away"
TIMEOUT_S = 120


class AsRayShow(Show):
    name = "a Ray program"
    detail = f"moray run --as-ray examples/{PROGRAM.name}"

    def run(self) -> str:
        command = [sys.executable, "-m", "moray", "run", "--as-ray", str(PROGRAM), str(BLOCKS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        check(done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        check(FOUND in done.stdout, f"it should print {FOUND!r}, and printed {done.stdout!r}")
        return done.stdout.strip()
