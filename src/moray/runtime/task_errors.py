"""From an exception in a task to what its owner raises."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from moray import exceptions
from moray.core.actors import UNSCHEDULABLE

if TYPE_CHECKING:
    from moray.protocol.messages import ProcessDied
    from moray.runtime.tasks import Task
    from moray.runtime.worker import Worker


class ArgumentLostError(exceptions.ObjectLostError):
    """A task's argument is not where its owner said: it shall look, and run the task then. Never leaves moray."""

    #: The object's id, and the tag of the node where it should be.
    what = b""


def make(runtime: Worker, name: str, error: BaseException, task_id: bytes) -> exceptions.MorayError:
    """A TaskError that carries `error`, its traceback, and where it happened."""
    if isinstance(error, ModuleNotFoundError) and runtime.welcome.shipped:
        _explain_missing(error, runtime.welcome.shipped)
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


def _explain_missing(error: ModuleNotFoundError, shipped: str) -> None:
    """Say what this host has of the program's; once, if the error passes through several tasks."""
    if shipped in str(error):
        return
    module = (error.name or "it").partition(".")[0]
    error.msg = (
        f"{error}: {shipped}. Install {module} on every host, or ship it: "
        f'runtime_env={{"py_modules": ["path/to/{module}"]}}'
    )
    error.args = (error.msg,)


def actor_died(actor: str, text: str, reason: str) -> exceptions.MorayError:
    """The error of calls of an actor that is dead, or that no node may host."""
    if reason.startswith(UNSCHEDULABLE):
        return exceptions.ActorUnschedulableError(f"{text}: {reason.removeprefix(UNSCHEDULABLE)}")
    return exceptions.ActorDiedError(f"{text} is dead: {reason or 'it has ended'}", actor_id=actor)


def crashed(task: Task, death: ProcessDied, fate: str) -> exceptions.MorayError:
    """The error of a task whose worker is gone, and that is not tried again."""
    group = getattr(task.options.pool, "group", None)
    if group is not None and group.state == "removed":
        removed: exceptions.MorayError = group.removed_error(f"task {task.options.name}()")
        return removed
    return exceptions.WorkerCrashedError(
        f"the worker (pid {death.pid}) that ran task {task.options.name}() {fate}: {death.reason}"
        + (f"; it was tried {task.attempt + 1} times" if task.attempt else ""),
        exit_code=death.status if death.status >= 0 else None,
        signal_number=-death.status if death.status < 0 else None,
        stderr_tail=death.stderr,
        pid=death.pid,
        function_name=task.options.name,
        attempts=task.attempt + 1,
    )
