"""``python -m benchmarks.workloads --system SYSTEM NAME``: measure, print one JSON line."""

from __future__ import annotations

import argparse
import importlib
import json
import platform

from benchmarks.workloads import base

#: Importing them registers their workloads.
_MODULES = (
    "actors",
    "bare",
    "cancel",
    "clusters",
    "dag",
    "generators",
    "latency",
    "objects",
    "pools",
    "scale",
    "session",
    "tasks",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workloads", description=__doc__)
    parser.add_argument("--system", required=True, help="moray, ray, pool, executor or floor")
    parser.add_argument("--quick", action="store_true", help="short sizes")
    parser.add_argument("name", help="the workload")
    options = parser.parse_args()
    for module in _MODULES:
        importlib.import_module(f"benchmarks.workloads.{module}")
    measure = base.find(options.system, options.name)
    if measure is None:
        known = sorted(f"{name} ({system})" for system, name in base.registered())
        parser.error(f"no workload {options.name} for {options.system}; there are {', '.join(known)}")
    context = base.Context(options.system, options.quick)
    figures = measure(context)
    print(json.dumps({"figures": figures, "version": _version(context)}), flush=True)


def _version(context: base.Context) -> str:
    if context.system not in base.CLUSTERS:
        return platform.python_version()
    return str(context.api.__version__)


if __name__ == "__main__":
    main()
