"""Clusters of several nodes on one machine, for tests: real daemons, each with its own store, port and certificate.

.. code-block:: python

    from moray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=4, resources={"special": 1})
    cluster.connect()
    ...
    cluster.shutdown()
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from moray import config
from moray.launch import session_directory
from moray.launch.cluster import start_head, start_joined
from moray.launch.config import NodeConfig
from moray.launch.local import NodeHandle
from moray.launch.session_directory import OWN_CLUSTERS, own_clusters, remove_tree
from moray.launch.spilling import spill_targets
from moray.platform import process_control, process_table
from moray.runtime import state

__all__ = ["AutoscalingCluster", "Cluster", "ClusterNode", "cluster_not_supported"]

#: Programs for Ray ask before they make one.
cluster_not_supported: Final = False

_IP: Final = "127.0.0.1"
_END_S: Final = 10.0
#: How often something is looked at again.
_PAUSE_S: Final = 0.02
#: What stands in a head's command line (:mod:`moray.node.head_process`).
_HEAD_TITLE: Final = "moray-head"
#: Objects on a node of a test are few: sixty nodes shall fit into a laptop.
_STORE_BYTES: Final = 256 << 20
#: What Ray's tests say of a node and has no meaning here.
_WITHOUT_MEANING: Final = frozenset({
    "include_dashboard", "dashboard_host", "dashboard_port", "redis_port", "redis_password", "min_worker_port",
    "max_worker_port", "object_manager_port", "node_manager_port", "gcs_server_port", "num_redis_shards",
    "redis_max_clients", "dashboard_agent_listen_port", "metrics_export_port", "runtime_env_agent_port",
    "plasma_directory", "worker_port_list", "cluster_id", "resource_isolation_config", "external_addresses",
    "enable_object_reconstruction", "ray_client_server_port", "session_name", "env_vars", "include_log_monitor",
    "huge_pages", "redis_address", "redis_username", "tracing_startup_hook", "no_monitor", "ray_debugger_external",
    "metrics_agent_port", "dashboard_agent_grpc_port",
})  # fmt: skip
_NODE_ARGS: Final = frozenset({
    "num_cpus", "num_gpus", "memory", "resources", "labels", "object_store_memory", "_system_config", "node_name",
    "port", "node_ip_address", "storage", "durability", "temp_dir",
})  # fmt: skip


class ClusterNode:
    """A node of a :class:`Cluster`."""

    def __init__(self, handle: NodeHandle, is_head: bool, ip: str = _IP) -> None:
        self._handle = handle
        self._ip = ip
        self.is_head = is_head

    @property
    def node_id(self) -> str:
        """In hex, as in ``moray.nodes()``; another one since the node was cut off and has joined anew."""
        try:
            return session_directory.read_node_id(self._handle.session_dir).hex()
        except OSError:
            return self._handle.node_id.hex()  # It has ended.

    @property
    def unique_id(self) -> str:
        """The same, as programs for Ray call it."""
        return self.node_id

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self._handle.pid

    @property
    def session_dir(self) -> str:
        """Its directory, with its logs."""
        return self._handle.session_dir

    @property
    def head(self) -> bool:
        """Whether it is the first one, with the head beside it."""
        return self.is_head

    @property
    def raylet_socket_name(self) -> str:
        """Where its drivers connect."""
        return self._handle.address

    _raylet_socket_name = raylet_socket_name

    @property
    def node_ip_address(self) -> str:
        """Where the others reach it."""
        return self._ip

    raylet_ip_address = node_ip_address

    @property
    def address(self) -> str:
        """The head's "HOST:PORT"."""
        return self._handle.cluster_address

    gcs_address = address

    def get_session_dir_path(self) -> str:
        """The same as `session_dir`."""
        return self.session_dir

    def get_logs_dir_path(self) -> str:
        """The directory of its log files."""
        return f"{self.session_dir}/logs"

    def any_processes_alive(self) -> bool:
        """Whether its daemon lives."""
        return not self._handle.wait_ended(0)

    live_processes_alive = remaining_processes_alive = any_processes_alive

    def kill_gcs_server(self, check_alive: bool = True) -> None:
        """Kill the head, at once. The node beside it starts the next one, which goes on where this one was."""
        heads = self._heads()
        if check_alive and not heads:
            raise RuntimeError(f"no head runs beside {self!r}")
        for pid in heads:
            process_control.kill(pid, signal.SIGKILL)
        self._wait_for_head(lambda now: not set(heads) & set(now), "the killed head has not ended")

    def start_gcs_server(self) -> None:
        """Wait until there is a head again, as there will be by itself."""
        self._wait_for_head(bool, "no head runs")

    def _wait_for_head(self, condition: Callable[[list[int]], bool], problem: str) -> None:
        deadline = time.monotonic() + _END_S
        while not condition(self._heads()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {_END_S:g} s {problem} beside {self!r}; see {self.session_dir}/logs")
            time.sleep(_PAUSE_S)

    def kill_raylet(self, check_alive: bool = True) -> None:
        """The same as :meth:`kill`."""
        if check_alive and not self.any_processes_alive():
            raise RuntimeError(f"{self!r} has ended before")
        self.kill()

    def _heads(self) -> list[int]:
        """The living heads among its children; one, or none for a moment."""
        return [pid for pid in process_table.children(self.pid) if _HEAD_TITLE in process_table.command_line(pid)]

    def kill(self) -> None:
        """End it as a machine ends whose power fails: at once, with all that it runs."""
        self._handle.kill()

    def stop(self) -> None:
        """Have it leave."""
        if self._handle.wait_ended(0):
            return
        process_control.kill(self._handle.pid, signal.SIGTERM)
        if not self._handle.wait_ended(_END_S):
            self._handle.kill()

    def __repr__(self) -> str:
        return f"ClusterNode({self.node_id[:8]}{', head' if self.is_head else ''})"


class Cluster:
    """Several nodes on this machine.

    Args:
        initialize_head: start the first node, with the head, now.
        connect: become a driver of it, too.
        head_node_args: of the first node, as for :meth:`add_node`.
        shutdown_at_exit: end all when the program ends.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: Mapping[str, Any] | None = None,
        shutdown_at_exit: bool = True,
    ) -> None:
        self.head_node: ClusterNode | None = None
        self.worker_nodes: list[ClusterNode] = []
        self.connected = False
        self._address = ""
        self._token = ""
        # A directory of its own: init("auto") of other programs must not find these nodes, only this one and those
        # that it starts.
        self._temp_dir, self._lock = session_directory.make_cluster_directory()
        _set_own_clusters([self._temp_dir, *own_clusters()])
        self._removed = False
        #: The first node's settings, which are the cluster's.
        self._system_config: dict[str, Any] = {}
        #: Whether the cluster may still count nodes that were removed.
        self._shrunk = False
        if shutdown_at_exit:
            atexit.register(self.shutdown)
        if not initialize_head and connect:
            raise RuntimeError("Cluster(connect=True) needs initialize_head=True: there is nothing to connect to")
        if initialize_head:
            self.add_node(**dict(head_node_args or {}))
            if connect:
                self.connect()

    @property
    def address(self) -> str:
        """The head's "HOST:PORT", for ``moray.init()``."""
        if self.head_node is None:
            raise RuntimeError("the cluster has no node yet: call add_node() first")
        return self._address

    @property
    def gcs_address(self) -> str:
        """The same, as programs for Ray call it."""
        return self.address

    redis_address = gcs_address

    @property
    def token(self) -> str:
        """What lets others join."""
        return self._token

    def connect(self, namespace: str | None = None) -> Any:
        """Make this program a driver of the cluster."""
        import moray

        assert self.head_node is not None, "the cluster has no node yet"
        context = moray.init(
            f"unix://{self.head_node.raylet_socket_name}", namespace=namespace, ignore_reinit_error=True
        )
        self.connected = True
        return context

    def add_node(self, wait: bool = True, **node_args: Any) -> ClusterNode:
        """Start a node; the first one brings the head.

        Args:
            wait: return when this program's driver knows it (it has joined in any case).
            node_args: num_cpus (default 1), num_gpus, memory (bytes), resources, labels, object_store_memory (bytes),
                node_name, node_ip_address (one of this machine's), _system_config (of the first node: for all).

        Raises:
            TypeError: an argument that no node knows.
            NodeStartError: it did not start.
        """
        unknown = node_args.keys() - _NODE_ARGS - _WITHOUT_MEANING
        if unknown:
            raise TypeError(f"add_node() knows no argument named {', '.join(sorted(unknown))}")
        if self.head_node is None:
            self._system_config = dict(node_args.get("_system_config") or {})
        node_config = _config(node_args, self._system_config)
        name, ip = str(node_args.get("node_name") or ""), str(node_args.get("node_ip_address") or _IP)
        if self.head_node is None:
            handle, self._token = start_head(
                node_config,
                node_ip=ip,
                port=int(node_args.get("port") or 0),
                node_name=name,
                storage=str(node_args.get("storage") or ""),
                durability=str(node_args.get("durability") or ""),
                temp_dir=self._temp_dir,
                detached=False,
            )
            self._address = handle.cluster_address
            self.head_node = ClusterNode(handle, is_head=True, ip=ip)
            return self.head_node
        handle = start_joined(
            node_config,
            self._address,
            token=self._token,
            node_ip=ip,
            node_name=name,
            temp_dir=self._temp_dir,
            detached=False,
        )
        node = ClusterNode(handle, is_head=False, ip=ip)
        self.worker_nodes.append(node)
        if wait and self._has_driver():
            self.wait_for_nodes()
        return node

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """End a node: in peace, or as if its machine had failed."""
        if allow_graceful:
            node.stop()
        else:
            node.kill()
        self._shrunk = True
        if node is self.head_node:
            self.head_node = None
        elif node in self.worker_nodes:
            self.worker_nodes.remove(node)

    @property
    def list_of_nodes(self) -> list[ClusterNode]:
        """All that were added and not removed, the head's first."""
        return ([self.head_node] if self.head_node is not None else []) + self.worker_nodes

    def list_all_nodes(self) -> list[ClusterNode]:
        """The same."""
        return self.list_of_nodes

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Wait until the cluster has exactly the nodes that were added and not removed.

        Raises:
            TimeoutError: after `timeout` seconds, with both numbers.
        """
        import moray

        if not self._has_driver():
            # Nodes have joined when add_node() returns. Of those that were removed only a driver can ask.
            if not self._shrunk or self.head_node is None or moray.is_initialized():
                return
            moray.init(f"unix://{self.head_node.raylet_socket_name}", log_to_driver=False, configure_logging=False)
            try:
                self.wait_for_nodes(timeout)
            finally:
                moray.shutdown()
            return
        deadline = time.monotonic() + timeout
        wanted = {node.node_id for node in self.list_of_nodes}
        while True:
            alive = {node["NodeID"] for node in moray.nodes() if node["Alive"]}
            if alive == wanted:
                self._shrunk = False
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"after {timeout:g} s the cluster shows {len(alive)} living nodes; {len(wanted)} were started: "
                    f"missing {sorted(name[:8] for name in wanted - alive)}, "
                    f"unexpected {sorted(name[:8] for name in alive - wanted)}"
                )
            time.sleep(_PAUSE_S)

    def _has_driver(self) -> bool:
        """Whether this program is a driver of this cluster, by :meth:`connect` or by ``init()``."""
        runtime = state.runtime
        return (
            runtime is not None
            and runtime.ended is None
            and not runtime.forked
            and runtime.welcome.session_dir in {node.session_dir for node in self.list_of_nodes}
        )

    def remaining_processes_alive(self) -> bool:
        """Whether every node's daemon lives."""
        return all(node.any_processes_alive() for node in self.list_of_nodes)

    def shutdown(self) -> None:
        """End all nodes, those that joined first, and leave nothing behind."""
        if self._removed:
            return
        self._removed = True
        atexit.unregister(self.shutdown)
        if self._has_driver():
            import moray

            moray.shutdown()
        self.connected = False
        _set_own_clusters([path for path in own_clusters() if path != self._temp_dir])
        threads = [threading.Thread(target=node.stop) for node in self.worker_nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.head_node is not None:
            self.head_node.stop()
        self.head_node, self.worker_nodes = None, []
        remove_tree(self._temp_dir)
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()


def _set_own_clusters(directories: list[str]) -> None:
    """Say to this program, and to those that it starts, where its clusters are."""
    if directories:
        os.environ[OWN_CLUSTERS] = os.pathsep.join(directories)
    else:
        os.environ.pop(OWN_CLUSTERS, None)


def _config(node_args: Mapping[str, Any], system_config: Mapping[str, Any]) -> NodeConfig:
    settings = dict(system_config)
    resources = {
        name: round(amount * config.RESOURCE_UNIT) for name, amount in (node_args.get("resources") or {}).items()
    }
    cpus = node_args.get("num_cpus")
    resources["CPU"] = round((1 if cpus is None else cpus) * config.RESOURCE_UNIT)
    if node_args.get("num_gpus") is not None:
        resources["GPU"] = round(node_args["num_gpus"] * config.RESOURCE_UNIT)
    if node_args.get("memory") is not None:
        resources["memory"] = round(node_args["memory"] * config.RESOURCE_UNIT)
    return NodeConfig(
        resources=resources,
        labels=dict(node_args.get("labels") or {}),
        object_store_memory=int(node_args.get("object_store_memory") or _STORE_BYTES),
        spill_targets=spill_targets(settings, config.env_str("SPILL_DIR")),
        system_config=settings,
    )


class AutoscalingCluster:
    """Clusters that grow by demand come later: this says so, and nothing else."""

    def __init__(
        self,
        head_resources: dict[str, Any],
        worker_node_types: dict[str, Any],
        autoscaler_v2: bool = False,
        **_options: Any,
    ) -> None:
        raise NotImplementedError(
            "AutoscalingCluster: moray does not start machines by demand yet. "
            "Use moray.cluster_utils.Cluster and its add_node()."
        )
