"""``get_runtime_context()``: where the calling code runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moray.api import connected

if TYPE_CHECKING:
    from moray.runtime.runtime import Runtime


class RuntimeContext:
    """Ids and names of the job, node, worker and task that the calling code belongs to."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def get_job_id(self) -> str:
        """The job's id, hexadecimal."""
        return self._runtime.job.hex()

    def get_node_id(self) -> str:
        """The node's id, hexadecimal."""
        return self._runtime.welcome.node_id.hex()

    def get_worker_id(self) -> str:
        """This process's id, hexadecimal."""
        return self._runtime.process.hex()

    def get_session_name(self) -> str:
        """The session's name, which is also MORAY_SESSION in the environment of all of its processes."""
        return self._runtime.welcome.session

    def get_temp_dir(self) -> str:
        """The session's directory."""
        return self._runtime.session_dir

    def get_task_id(self) -> str | None:
        """The running task's id, hexadecimal; None in a driver."""
        task_id = self._runtime.current_task_id()
        return task_id.hex() if task_id is not None else None

    def get_task_name(self) -> str | None:
        """The running task's name; None in a driver."""
        return self._runtime.task_name() or None

    def get_task_function_name(self) -> str | None:
        """The running task's function; None in a driver."""
        return self._runtime.function_name() or None

    def get_actor_id(self) -> str | None:
        """None: the calling code is not an actor's."""
        return None

    def get_actor_name(self) -> str | None:
        """None: the calling code is not an actor's."""
        return None

    def get_placement_group_id(self) -> str | None:
        """None: not in a placement group."""
        return None

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task asked for, name → amount; empty in a driver."""
        return self._runtime.task_resources()

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Indices of the devices that the task may use, name → indices."""
        extra = getattr(self._runtime, "task_extra", None)
        devices = extra.devices if extra is not None else {}
        return {"GPU": [], **{name: [str(index) for index in indices] for name, indices in devices.items()}}

    get_resource_ids = get_accelerator_ids

    def is_canceled(self) -> bool:
        """Whether the running task was cancelled."""
        return False

    @property
    def namespace(self) -> str:
        """The job's namespace."""
        return self._runtime.welcome.namespace

    @property
    def job_id(self) -> Any:
        """The job's id."""
        from moray.ids import JobID

        return JobID(self._runtime.job)

    @property
    def node_id(self) -> Any:
        """The node's id."""
        from moray.ids import NodeID

        return NodeID(self._runtime.welcome.node_id)

    @property
    def task_id(self) -> Any:
        """The running task's id; None in a driver."""
        from moray.ids import TaskID

        task_id = self._runtime.current_task_id()
        return TaskID(task_id) if task_id is not None else None

    @property
    def gcs_address(self) -> str:
        """The address of the session."""
        return f"{self._runtime.session_dir}/node.sock"

    def get(self) -> dict[str, Any]:
        """The ids as a dict."""
        return {"job_id": self.job_id, "node_id": self.node_id, "namespace": self.namespace, "task_id": self.task_id}


def get_runtime_context() -> RuntimeContext:
    """The context of the calling code.

    Example:
        >>> import moray
        >>> len(moray.get_runtime_context().get_job_id())
        8
    """
    return RuntimeContext(connected())
