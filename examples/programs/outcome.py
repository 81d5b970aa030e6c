"""What the scripts here share: one command line, one session, one line of JSON at the end.

``--engine none`` is the package without Ray, ``--engine ray`` is it with its Ray backend, whatever ``import ray``
gives: Ray, or moray if the script is run by ``moray run --as-ray``. The scripts themselves do not know moray.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

#: Processes of every session and of every pool here.
CPUS = 2


def measure(work: Callable[[bool], Mapping[str, Any]], *, own_session: bool = False) -> None:
    """Run `work` and print what it found, how long it took and whose ``ray`` it was.

    Args:
        work: is told whether to use Ray; gives numbers, texts and lists of them, for comparison between the ways.
        own_session: the package calls ``ray.init`` itself; its time then counts as work.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=("none", "ray"), default="none")
    with_ray = parser.parse_args().engine == "ray"
    if with_ray and not own_session:
        import ray

        ray.init(num_cpus=CPUS, include_dashboard=False)
    started = time.perf_counter()
    result = work(with_ray)
    seconds = time.perf_counter() - started
    ray_module = sys.modules.get("ray") if with_ray else None
    made_by = ray_module.get.__module__.partition(".")[0] if ray_module is not None else None
    # On a line of its own, whatever a progress bar left.
    print("\n" + json.dumps({"work_s": seconds, "made_by": made_by, "result": dict(result)}), flush=True)  # noqa: T201


def digest(data: bytes) -> str:
    """A short name for `data`, for results that must be equal to the last bit."""
    return hashlib.sha256(data).hexdigest()[:16]
