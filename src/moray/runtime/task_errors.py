"""From an exception in a task to what its owner raises."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from moray import exceptions

if TYPE_CHECKING:
    from moray.runtime.executor import Queued
    from moray.runtime.runtime import Runtime


def make(runtime: Runtime, name: str, error: BaseException, queued: Queued) -> exceptions.MorayError:
    """A TaskError that carries `error`, its traceback, and where it happened."""
    spec: Any = queued.spec
    task_id = spec.seq.to_bytes(8, "big") + queued.connection.peer.origin.tail
    return exceptions.make_task_error(
        name,
        error,
        pid=os.getpid(),
        ip=socket.gethostname(),
        node_id=runtime.welcome.node_id.hex(),
        worker_id=runtime.process.hex(),
        task_id=task_id.hex(),
    )
