"""From an exception in a task to what its owner raises."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from moray import exceptions
from moray.core.actor_actions import DRAINED, LAST_WORDS, UNSCHEDULABLE
from moray.error_text import describe
from moray.runtime.unfetched import tell_watchers
from moray.serialization import loads, serialize

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


class _Inherited:
    """Pickles as the error of what was not begun, since an argument is an error."""

    def __init__(self, name: str, blob: bytes) -> None:
        self._parts = (name, blob)

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_inherited, self._parts


def inherited(name: str, blob: bytes) -> bytes:
    """The error of the task or call `name`, one of whose arguments is the error in `blob`. Unpickles nothing."""
    return serialize(_Inherited(name, blob)).to_bytes()


def _load_inherited(name: str, blob: bytes) -> BaseException:
    """A TaskError, whatever the argument's error is; one that is a TaskError already, or a cancel, stays itself."""
    error: BaseException = loads(blob)
    if isinstance(error, (exceptions.TaskError, exceptions.TaskCancelledError)):
        return error
    return exceptions.TaskError(name, f"an argument could not be computed:\n{describe(error)}", error)


def actor_died(actor: str, text: str, reason: str) -> exceptions.MorayError:
    """The error of calls of an actor that is dead, or that no node may host."""
    if reason.startswith(UNSCHEDULABLE):
        return exceptions.ActorUnschedulableError(f"{text}: {reason.removeprefix(UNSCHEDULABLE)}")
    if reason.startswith("its process (pid "):
        tell_watchers("worker_died", f"the worker of {text} died: {reason}")
    preempted = DRAINED in reason.partition(LAST_WORDS)[0]
    if "moray.compat.facade" in sys.modules:
        reason = _rays_words(reason)
    return exceptions.ActorDiedError(f"{text} is dead: {reason or 'it has ended'}", actor_id=actor, preempted=preempted)


def _rays_words(reason: str) -> str:
    """For programs that were written for Ray: they know `ray.kill`, and some look for words."""
    if reason.startswith("killed by moray.kill()"):
        return reason.replace("killed by moray.kill()", "it was killed by `ray.kill`", 1)
    if reason.startswith("its process (pid "):
        if ": its node " in reason:
            return f"its node has died: {reason}"
        return f"its worker process has died: {reason}".replace("with code", "with exit code", 1)
    if reason.startswith("placement group "):
        return f"the actor died: {reason}"
    if "its creator" in reason:
        return f"its owner has died: {reason}"
    return reason


def crashed(task: Task, death: ProcessDied, fate: str) -> exceptions.MorayError:
    """The error of a task whose worker is gone, and that is not tried again."""
    group = getattr(task.options.pool, "group", None)
    if group is not None and group.state == "removed":
        removed: exceptions.MorayError = group.removed_error(f"task {task.options.name}()")
        return removed
    tell_watchers("worker_died", f"a worker died that was executing task {task.options.name}()")
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
