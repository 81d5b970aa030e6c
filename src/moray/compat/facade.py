"""The module that ``import ray`` gives: moray's public names, and Ray's that have no other place.

It is a module of its own only because ``ray.__version__`` differs from ``moray.__version__``. Names that every program
uses are here from the start; others come from moray when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any, Final

import moray
from moray import (
    LOCAL_MODE,
    SCRIPT_MODE,
    WORKER_MODE,
    ObjectRef,
    available_resources,
    cancel,
    cluster_resources,
    exceptions,
    get,
    get_gpu_ids,
    init,
    is_initialized,
    nodes,
    put,
    remote,
    shutdown,
    timeline,
    wait,
)
from moray.actor import get_actor, kill, method
from moray.compat import RAY_VERSION
from moray.compat.finder import find_target
from moray.runtime_context import RuntimeContext, get_runtime_context

#: What it is found by: `from ray import x` and pickles of functions that use it import by this name.
__name__ = "ray"
__version__ = RAY_VERSION
__commit__ = ""
#: An older name of it.
ObjectID = ObjectRef
#: Makes it a package: everything below it is found by :mod:`moray.compat.finder`.
__path__: list[str] = []

__all__ = [
    "LOCAL_MODE", "SCRIPT_MODE", "WORKER_MODE", "ObjectID", "ObjectRef", "__version__", "available_resources", "cancel",
    "cluster_resources", "exceptions", "get", "get_actor", "get_gpu_ids", "get_runtime_context", "init",
    "is_initialized", "kill", "method", "nodes", "put", "remote", "shutdown", "timeline", "wait",
]  # fmt: skip

#: Of `ray.client_builder`.
_CLIENT: Final = frozenset({"ClientBuilder", "client"})


def _worker_of(_context: RuntimeContext) -> Any:
    from moray.compat.stand_ins._private.worker import global_worker

    return global_worker


# Not documented by Ray either; programs ask `get_runtime_context().worker.mode` whether they are the driver.
setattr(RuntimeContext, "worker", property(_worker_of))


def __getattr__(name: str) -> Any:
    if name == "logger":
        # Libraries log by it, and expect that init() has set it up.
        import logging

        return globals().setdefault(name, logging.getLogger("moray"))
    if not name.startswith("_"):
        value = getattr(moray, name, None)
        # moray's own modules are found by what Ray calls them; those that Ray does not have are no users' business.
        if value is not None and not isinstance(value, ModuleType):
            globals()[name] = value
            return value
    if name in _CLIENT:
        value = globals()[name] = getattr(import_module("ray.client_builder"), name)
        return value
    target = find_target(f"ray.{name}") if not name.startswith("__") else None
    if target is None:
        raise AttributeError(f"module 'ray' (which is moray here) has no attribute {name!r}")
    module = globals()[name] = import_module(target)
    return module


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for name in moray.__all__ if find_target(f"ray.{name}") or name in __all__)})
