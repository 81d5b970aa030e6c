"""From an exception in a task to what its owner raises."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from moray import exceptions

if TYPE_CHECKING:
    from moray.runtime.worker import Worker


def make(runtime: Worker, name: str, error: BaseException, task_id: bytes) -> exceptions.MorayError:
    """A TaskError that carries `error`, its traceback, and where it happened."""
    host = runtime.executor.host
    return exceptions.make_task_error(
        name,
        error,
        pid=os.getpid(),
        ip=socket.gethostname(),
        node_id=runtime.welcome.node_id.hex(),
        worker_id=runtime.process.hex(),
        task_id=task_id.hex(),
        actor_id=host.actor.hex() if host is not None else None,
    )
