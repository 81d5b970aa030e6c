"""Which interpreter runs which system.

moray, the pools and the floor run on the interpreter that runs the benchmark. Ray has a virtualenv of its own,
made from the same base interpreter when it is missing, so that neither system sees the other's packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RAY_VERSION = "2.60.0"

ROOT = Path(__file__).resolve().parent.parent
_RAY_VENV = Path(__file__).resolve().parent / ".venv-ray"

#: Names that would attach a system to something that is running already.
_ATTACHING = ("RAY_ADDRESS", "MORAY_ADDRESS", "MORAY_SESSION")
#: Without the cache of compiled modules every start compiles everything: no default, on neither side.
_UNUSUAL = ("PYTHONDONTWRITEBYTECODE",)


def interpreter(system: str, ray_python: str | None = None) -> str:
    """Path of the interpreter for `system`; makes Ray's virtualenv unless `ray_python` is given."""
    if system != "ray":
        return sys.executable
    return ray_python or str(_ray_environment())


def environment() -> dict[str, str]:
    """Environment of a measured process: this one's, except what names a running session or makes starts slow."""
    return {name: value for name, value in os.environ.items() if name not in (*_ATTACHING, *_UNUSUAL)}


def _ray_environment() -> Path:
    python = _RAY_VENV / "bin" / "python"
    ready = _RAY_VENV / f"ray-{RAY_VERSION}"
    if not ready.exists():
        print(f"making {_RAY_VENV.relative_to(ROOT)} with ray {RAY_VERSION} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(_RAY_VENV)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", f"ray=={RAY_VERSION}", "numpy"]
        subprocess.run(install, check=True)
        ready.touch()
    return python
