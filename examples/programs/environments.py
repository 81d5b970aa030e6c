"""Two virtualenvs: one with moray and the packages and no Ray, and one that adds Ray to these very packages."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.environments import RAY_VERSION
from examples.programs.catalogue import REQUIREMENTS, WITHOUT_DEPENDENCIES

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = Path(__file__).resolve().parent / ".venv"
WITH_RAY = Path(__file__).resolve().parent / ".venv-ray"


def make(packages: Path = PACKAGES, with_ray: Path = WITH_RAY) -> tuple[Path, Path]:
    """Directories of programs of both; makes what is missing, which downloads about a gigabyte."""
    if not (packages / "ready").exists():
        _make(packages, ["-e", str(ROOT), *REQUIREMENTS], ["--no-deps", *WITHOUT_DEPENDENCIES])
    if not (with_ray / "ready").exists():
        # Before pip runs: it then installs only what the packages did not bring, and both run the same versions.
        _make(with_ray, [f"ray=={RAY_VERSION}"], also=packages)
    return packages / "bin", with_ray / "bin"


def _make(place: Path, *installs: list[str], also: Path | None = None) -> None:
    print(f"making {place} ...", file=sys.stderr, flush=True)  # noqa: T201
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    if also is not None:
        scheme = {"base": str(also), "platbase": str(also)}
        below = sysconfig.get_path("purelib", vars=scheme)
        own = sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)})
        (Path(own) / "packages.pth").write_text(below + "\n")
    for install in installs:
        subprocess.run([str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *install], check=True)
    (place / "ready").touch()
