"""``get_runtime_context()``: where the calling code runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moray.api import connected, is_initialized, nodes
from moray.protocol import messages as m
from moray.runtime import state

if TYPE_CHECKING:
    from moray.actor import ActorHandle
    from moray.runtime.actor_host import ActorHost
    from moray.runtime.runtime import Runtime


class NoSessionError(RuntimeError, AssertionError):
    """There is nothing to tell about. What Ray raises was an AssertionError before it was a RuntimeError."""


class RuntimeContext:
    """Ids and names of the job, node, worker, task and actor that the calling code belongs to. RuntimeError once the
    session has ended: asking for one of them starts none."""

    _runtime: Runtime
    _host: ActorHost | None

    def __getattr__(self, name: str) -> Any:
        # Looked up when they are first needed, by when there may be a session.
        if name not in {"_runtime", "_host"}:
            raise AttributeError(f"the runtime context has no attribute {name!r}")
        if not is_initialized():
            raise NoSessionError("there is no session to ask: call init() first (Ray has not been initialized)")
        from moray.actor import running_actor

        self._runtime = connected()
        self._host = running_actor(self._runtime)
        return self.__dict__[name]

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
        return self._runtime.current_name() or None

    def get_task_function_name(self) -> str | None:
        """The running task's function; None in a driver."""
        return self._runtime.function_name() or None

    def get_actor_id(self) -> str | None:
        """The id of the actor that the calling code belongs to, hexadecimal; None if it is no actor's."""
        return self._host.actor.hex() if self._host is not None else None

    def get_actor_name(self) -> str | None:
        """The actor's name, "" if it has none; None if the calling code is no actor's."""
        return self._host.creation.name if self._host is not None else None

    def get_placement_group_id(self) -> str | None:
        """The id of the placement group that the task or actor runs in, hexadecimal; None: in none."""
        placement = self._placement()
        return placement.group.hex() if placement is not None else None

    def _placement(self) -> m.Placement | None:
        extra = getattr(self._runtime, "task_extra", None)
        return extra.placement if extra is not None else None

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task asked for, or what the actor holds, name → amount; empty in a driver."""
        if self._host is None:
            return self._runtime.task_resources()
        return {name: amount / m.RESOURCE_UNIT for name, amount in self._host.creation.resources.items()}

    def get_node_labels(self) -> dict[str, str]:
        """The labels of the node, name → value."""
        node_id = self.get_node_id()
        return next((dict(node["labels"]) for node in nodes() if node["id"] == node_id), {})

    def get_runtime_env_string(self) -> str:
        """The runtime environment of this process, as JSON: the one that the task or actor asked for, or its job's."""
        from moray.runtime.packages import shown

        return shown(self._runtime.welcome.runtime_env or "{}")

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Ids of the devices that the task may use, name → indices; of GPUs what CUDA_VISIBLE_DEVICES calls them."""
        extra = getattr(self._runtime, "task_extra", None)
        devices = extra.devices if extra is not None else {}
        from moray.platform.machine import gpu_ids

        names = gpu_ids(devices.get("GPU", []), self._runtime.welcome.gpus)
        return {name: [str(index) for index in indices] for name, indices in devices.items()} | {"GPU": names}

    get_resource_ids = get_accelerator_ids

    def is_canceled(self) -> bool:
        """Whether the running task or call was cancelled: for threads, which cancel() cannot interrupt."""
        return bool(getattr(self._runtime.current_work(), "cancelled", False))

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
    def actor_id(self) -> Any:
        """The actor's id; None if the calling code is no actor's."""
        from moray.ids import ActorID

        return ActorID(self._host.actor) if self._host is not None else None

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the actor was restarted since it was made. RuntimeError if the calling code is no actor's."""
        if self._host is None:
            raise RuntimeError("was_current_actor_reconstructed: this code does not run in an actor")
        return bool(self._host.incarnation > 0)

    @property
    def current_actor(self) -> ActorHandle[Any]:
        """A handle of the actor itself. It is weak: it does not keep the actor alive. RuntimeError if there is none."""
        from moray.actor import current_handle

        return current_handle(self._runtime)

    @property
    def current_placement_group_id(self) -> Any:
        """The id of the placement group that the task or actor runs in; None: in none."""
        from moray.ids import PlacementGroupID

        placement = self._placement()
        return PlacementGroupID(placement.group) if placement is not None else None

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what is submitted here runs in the same placement group unless it says otherwise."""
        return self._runtime.captured is not None

    @property
    def runtime_env(self) -> dict[str, Any]:
        """The runtime environment that the task or actor asked for beside its job's."""
        import json

        found: dict[str, Any] = json.loads(self.get_runtime_env_string())
        return found

    @property
    def gcs_address(self) -> str:
        """The address of the session."""
        return f"{self._runtime.session_dir}/node.sock"

    def get(self) -> dict[str, Any]:
        """The ids as a dict; those of a task or actor only where there is one."""
        ids = {"job_id": self.job_id, "node_id": self.node_id, "namespace": self.namespace}
        more = {"task_id": self.task_id, "actor_id": self.actor_id}
        return ids | {name: found for name, found in more.items() if found is not None}


def get_runtime_context() -> RuntimeContext:
    """The context of the calling code. A local session is started if there is none.

    Example:
        >>> import moray
        >>> len(moray.get_runtime_context().get_job_id())
        8
    """
    if state.runtime is None:
        connected()
    return RuntimeContext()
