"""Debian's packages that tests need."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest


def install(packages: list[str]) -> None:
    """Install what is missing; skips the test if that cannot be."""
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"no {', '.join(packages)} here, and no right or no apt-get to install it")
    # RUNLEVEL 1: the packages' scripts do not start services of the machine.
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    # One run of the tests at a time installs: this very directory is locked, so that no file is left.
    lock = os.open(Path(__file__).parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(["apt-get", *command], env=environ, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"apt-get {command[0]} failed, so there is no {packages}: {done.stderr.strip()[-300:]}")
    finally:
        os.close(lock)
