"""``ray._private.worker``, also ``ray.worker``: the API again, and ``global_worker``."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from moray import LOCAL_MODE, SCRIPT_MODE, WORKER_MODE
from moray.api import cancel, get, get_gpu_ids, init, is_initialized, nodes, put, remote, shutdown, wait
from moray.launch.resources import NODE_ADDRESS
from moray.object_ref import ObjectRef
from moray.platform import process_control, process_table
from moray.runtime import state, unfetched

__all__ = [
    "LOCAL_MODE", "SCRIPT_MODE", "WORKER_MODE", "cancel", "get", "get_gpu_ids", "get_resource_ids", "global_worker",
    "init", "is_initialized", "put", "remote", "shutdown", "wait",
]  # fmt: skip

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
    _raylet_socket_name = address

    @property
    def unique_id(self) -> str:
        """The node's id, hexadecimal."""
        return str(_runtime().welcome.node_id.hex())

    node_id = unique_id

    @property
    def session_name(self) -> str:
        """The session's name."""
        return str(_runtime().welcome.session)

    def kill_gcs_server(self, check_alive: bool = True) -> None:  # noqa: ARG002 - Ray's
        """Kill the head beside this node; there is none beside other nodes, and in a local session it is the node."""
        from moray.compat.stand_ins._common.test_utils import wait_for_condition

        heads = self._heads()
        for pid in heads:
            process_control.kill(pid)
        wait_for_condition(lambda: not set(heads) & set(self._heads()), retry_interval_ms=20)

    def start_gcs_server(self) -> None:
        """Wait until there is a head again, as there will be by itself."""
        from moray.compat.stand_ins._common.test_utils import wait_for_condition

        if any(node.get("head") and node["NodeID"] == self.unique_id for node in nodes()):
            wait_for_condition(self._heads, retry_interval_ms=20)

    def _heads(self) -> list[int]:
        return [
            pid
            for pid in process_table.children(_runtime().welcome.node_pid)
            if "moray-head" in process_table.command_line(pid)
        ]

    def get_session_dir_path(self) -> str:
        """The session's directory."""
        return str(_runtime().session_dir)

    def get_logs_dir_path(self) -> str:
        """The directory of its log files."""
        return f"{_runtime().session_dir}/logs"


class CoreWorker:
    """A few questions about objects that programs and tests ask."""

    def get_all_reference_counts(self) -> dict[bytes, dict[str, int]]:
        """Object id, hexadecimal → counts: "local" is 1 for each object of which this process has a reference."""
        return {ref.hex().encode(): {"local": 1, "submitted": 0} for ref in self._references()}

    def get_memory_store_size(self) -> int:
        """How many small objects this process has in its own memory."""
        return sum(ref._entry.ready and not ref._entry.size for ref in self._references())

    def object_exists(self, object_ref: ObjectRef[Any], memory_store_only: bool = False) -> bool:
        """Whether the object lies in the shared store (or, if asked so, in this process's memory)."""
        entry = object_ref._entry
        return bool(entry.ready and not entry.error and (entry.size == 0) == memory_store_only)

    def get_worker_id(self) -> Any:
        """This process's id, as long as others of its kind."""
        from moray.ids import WorkerID

        return WorkerID(global_worker.worker_id.ljust(WorkerID.SIZE, b"\0"))

    def get_current_task_id(self) -> Any:
        """The running task's id."""
        return global_worker.current_task_id

    def _references(self) -> list[ObjectRef[Any]]:
        # The runtime has no table of references that never left the process; Python has one of all objects.
        return [found for found in gc.get_objects() if type(found) is ObjectRef]


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

    @property
    def core_worker(self) -> CoreWorker:
        """What this process owns."""
        _runtime()
        return CoreWorker()

    def check_connected(self) -> None:
        """RuntimeError if there is no session."""
        _runtime()


def get_resource_ids() -> dict[str, list[tuple[int, float]]]:
    """What the running task or actor holds: of a placement group's resources by their names there."""
    context = _context()
    held = context.get_assigned_resources()
    extra = getattr(_runtime(), "task_extra", None)
    placement = extra.placement if extra is not None else None
    if placement is not None:
        group, index = placement.group.hex(), placement.index
        parts = [f"group_{group}"] + ([f"group_{index}_{group}"] if index >= 0 else [])
        held = {f"{name}_{part}": amount for name, amount in held.items() for part in parts}
    return {name: [(0, amount)] for name, amount in held.items()}


def _runtime() -> Any:
    if not is_initialized():
        raise RuntimeError("there is no session in this process: call init() first")
    return state.runtime


def _context() -> Any:
    from moray.runtime_context import get_runtime_context

    _runtime()
    return get_runtime_context()


global_worker: Final = GlobalWorker()


class _Module(ModuleType):
    """This module, with what programs set in it, or ask it for anew each time."""

    @property
    def _unhandled_error_handler(self) -> Callable[[BaseException], None] | None:
        return unfetched.handler

    @_unhandled_error_handler.setter
    def _unhandled_error_handler(self, handler: Callable[[BaseException], None] | None) -> None:
        unfetched.handler = handler

    @property
    def pickle(self) -> ModuleType:
        return import_module("cloudpickle")

    @property
    def _global_node(self) -> Node | None:
        return global_worker.node


sys.modules[__name__].__class__ = _Module
