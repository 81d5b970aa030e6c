"""``ray._private.worker``, also ``ray.worker``: the API again, and ``global_worker``."""

from __future__ import annotations

from typing import Any, Final

from moray.api import cancel, get, get_gpu_ids, init, is_initialized, put, remote, shutdown, wait
from moray.launch.resources import NODE_ADDRESS
from moray.runtime import state

__all__ = [
    "LOCAL_MODE", "SCRIPT_MODE", "WORKER_MODE", "cancel", "get", "get_gpu_ids", "global_worker", "init",
    "is_initialized", "put", "remote", "shutdown", "wait",
]  # fmt: skip

SCRIPT_MODE: Final = 0
WORKER_MODE: Final = 1
LOCAL_MODE: Final = 2

_MODES: Final = {"driver": SCRIPT_MODE, "worker": WORKER_MODE, "local": LOCAL_MODE}


class Node:
    """The machine's node, as ``global_worker.node`` shows it."""

    node_ip_address = NODE_ADDRESS
    raylet_ip_address = NODE_ADDRESS

    @property
    def address(self) -> str:
        """What another program gives to ``init(address=…)``."""
        return f"{_runtime().session_dir}/node.sock"

    gcs_address = address
    raylet_socket_name = address

    @property
    def unique_id(self) -> str:
        """The node's id, hexadecimal."""
        return str(_runtime().welcome.node_id.hex())

    node_id = unique_id

    @property
    def session_name(self) -> str:
        """The session's name."""
        return str(_runtime().welcome.session)

    def get_session_dir_path(self) -> str:
        """The session's directory."""
        return str(_runtime().session_dir)

    def get_logs_dir_path(self) -> str:
        """The directory of its log files."""
        return f"{_runtime().session_dir}/logs"


class GlobalWorker:
    """This process, as Ray's programs look at it."""

    node_ip_address = NODE_ADDRESS

    @property
    def mode(self) -> int | None:
        """0 in a driver, 1 in a worker, 2 in local mode; None if not connected."""
        return _MODES[_runtime().kind] if is_initialized() else None

    @property
    def connected(self) -> bool:
        """Whether there is a session."""
        return is_initialized()

    @property
    def node(self) -> Node | None:
        """The machine's node; None if not connected."""
        return Node() if is_initialized() else None

    @property
    def worker_id(self) -> bytes:
        """This process's id."""
        process: bytes = _runtime().process
        return process

    @property
    def namespace(self) -> str:
        """The job's namespace."""
        return str(_runtime().welcome.namespace)

    @property
    def current_job_id(self) -> Any:
        """The job's id."""
        return _context().job_id

    @property
    def current_node_id(self) -> Any:
        """The node's id."""
        return _context().node_id

    @property
    def current_task_id(self) -> Any:
        """The running task's id; None in a driver."""
        return _context().task_id

    @property
    def actor_id(self) -> Any:
        """The actor's id; None if this is no actor."""
        return _context().actor_id

    def check_connected(self) -> None:
        """RuntimeError if there is no session."""
        _runtime()


def _runtime() -> Any:
    if not is_initialized():
        raise RuntimeError("there is no session in this process: call init() first")
    return state.runtime


def _context() -> Any:
    from moray.runtime_context import get_runtime_context

    _runtime()
    return get_runtime_context()


global_worker: Final = GlobalWorker()
