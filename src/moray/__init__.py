"""moray: a distributed runtime for Python with Ray's programming model.

>>> import moray
>>> @moray.remote
... def square(x):
...     return x * x
>>> moray.get([square.remote(i) for i in range(4)])
[0, 1, 4, 9]

``import moray as ray`` runs an existing Ray program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moray import exceptions
from moray.api import (
    available_resources,
    cancel,
    cluster_resources,
    explain,
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
from moray.object_ref import ObjectRef

if TYPE_CHECKING:
    from moray import actor, util
    from moray.actor import get_actor, kill, method
    from moray.runtime_context import get_runtime_context

__version__ = "0.1.0.dev0"

__all__ = [
    "ObjectRef", "__version__", "actor", "available_resources", "cancel", "cluster_resources", "exceptions", "explain",
    "get", "get_actor", "get_gpu_ids", "get_runtime_context", "init", "is_initialized", "kill", "method", "nodes",
    "put", "remote", "shutdown", "timeline", "util", "wait",
]  # fmt: skip

#: Public names that are imported when first used: name → module.
_LAZY = {
    "get_runtime_context": "moray.runtime_context",
    **dict.fromkeys(("get_actor", "kill", "method"), "moray.actor"),
    "LoggingConfig": "moray.logging_config",
    **dict.fromkeys(("DynamicObjectRefGenerator", "ObjectRefGenerator"), "moray.object_ref_generator"),
    **dict.fromkeys(
        (
            "ActorClassID",
            "ActorID",
            "FunctionID",
            "JobID",
            "NodeID",
            "PlacementGroupID",
            "TaskID",
            "UniqueID",
            "WorkerID",
        ),
        "moray.ids",
    ),
}

#: Modules that are imported when first used.
_MODULES = frozenset(("actor", "autoscaler", "compat", "dag", "experimental", "runtime_env", "util"))

#: What a process can be, by the names and numbers that programs for Ray know.
SCRIPT_MODE = 0
WORKER_MODE = 1
LOCAL_MODE = 2


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name == "ObjectID":
        return ObjectRef  # Ray's older name.
    if name in _MODULES:
        return importlib.import_module(f"moray.{name}")
    raise AttributeError(f"module 'moray' has no attribute {name!r}")
