"""Imported by a job's template when its driver had not called :func:`moray.compat.install` by ``init()``.

The driver may do it later, when workers exist. It then leaves a file in the session's directory, and their finder,
which was silent, answers from then on. Until somebody imports ray in a worker nobody looks for the file.
"""

from __future__ import annotations

import os
import sys

from moray.compat import install
from moray.compat.finder import RayFinder


def mark_path(session_dir: str, job: bytes) -> str:
    """The file that says that ``ray`` is moray in this job."""
    return f"{session_dir}/as_ray_{job.hex()}"


def _installed_by_driver() -> bool:
    state = sys.modules.get("moray.runtime.state")
    runtime = state.runtime if state is not None else None
    # In the template, before the fork, there is no runtime.
    if runtime is None or not os.path.exists(mark_path(runtime.session_dir, runtime.job)):
        return False
    found = sys.modules.get("ray")
    if found is None:
        install()
        return True
    return False  # A real Ray is here, imported before: it stays.


sys.meta_path.insert(0, RayFinder(_installed_by_driver))
