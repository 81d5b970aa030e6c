"""``ray.worker``, as it was called before it became private."""

from __future__ import annotations

from typing import Any

from moray.compat.stand_ins._private import worker
from moray.compat.stand_ins._private.worker import (
    LOCAL_MODE,
    SCRIPT_MODE,
    WORKER_MODE,
    cancel,
    get,
    get_gpu_ids,
    global_worker,
    init,
    is_initialized,
    put,
    remote,
    shutdown,
    wait,
)

__all__ = [
    "LOCAL_MODE", "SCRIPT_MODE", "WORKER_MODE", "cancel", "get", "get_gpu_ids", "global_worker", "init",
    "is_initialized", "put", "remote", "shutdown", "wait",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    return getattr(worker, name)
