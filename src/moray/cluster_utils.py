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
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, Self

from moray import config
from moray.launch.cluster import start_head, start_joined
from moray.launch.config import NodeConfig
from moray.launch.local import NodeHandle
from moray.launch.session_directory import remove_tree
from moray.platform import process_control

__all__ = ["AutoscalingCluster", "Cluster", "ClusterNode"]

_IP: Final = "127.0.0.1"
_END_S: Final = 10.0
#: Objects on a node of a test are few: sixty nodes shall fit into a laptop.
_STORE_BYTES: Final = 256 << 20
#: What Ray's tests say of a node and has no meaning here.
_WITHOUT_MEANING: Final = frozenset({
    "include_dashboard", "dashboard_host", "dashboard_port", "redis_port", "redis_password", "min_worker_port",
    "max_worker_port", "object_manager_port", "node_manager_port", "gcs_server_port", "num_redis_shards",
    "redis_max_clients", "memory", "dashboard_agent_listen_port", "metrics_export_port", "runtime_env_agent_port",
    "plasma_directory",
    "enable_object_reconstruction", "ray_client_server_port", "session_name", "env_vars",
})  # fmt: skip
_NODE_ARGS: Final = frozenset({
    "num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "_system_config", "node_name", "port",
    "node_ip_address", "storage", "durability", "temp_dir",
})  # fmt: skip


class ClusterNode:
    """A node of a :class:`Cluster`."""

    def __init__(self, handle: NodeHandle, is_head: bool) -> None:
        self._handle = handle
        self.is_head = is_head

    @property
    def node_id(self) -> str:
        """In hex, as in ``moray.nodes()``."""
        return self._handle.node_id.hex()

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
    def raylet_socket_name(self) -> str:
        """Where its drivers connect."""
        return self._handle.address

    def any_processes_alive(self) -> bool:
        """Whether its daemon lives."""
        return not self._handle.wait_ended(0)

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
        # A directory of its own: init("auto") of other programs must not find these nodes.
        self._temp_dir = tempfile.mkdtemp(prefix="moray-cluster-")
        self._removed = False
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
            wait: return when the others know it (it has joined in any case).
            node_args: num_cpus (default 1), num_gpus, resources, labels, object_store_memory (bytes), node_name.

        Raises:
            TypeError: an argument that no node knows.
            NodeStartError: it did not start.
        """
        unknown = node_args.keys() - _NODE_ARGS - _WITHOUT_MEANING
        if unknown:
            raise TypeError(f"add_node() knows no argument named {', '.join(sorted(unknown))}")
        node_config = _config(node_args)
        name = str(node_args.get("node_name") or "")
        if self.head_node is None:
            handle, self._token = start_head(
                node_config,
                node_ip=_IP,
                port=int(node_args.get("port") or 0),
                node_name=name,
                storage=str(node_args.get("storage") or ""),
                durability=str(node_args.get("durability") or ""),
                temp_dir=self._temp_dir,
                detached=False,
            )
            self._address = handle.cluster_address
            self.head_node = ClusterNode(handle, is_head=True)
            return self.head_node
        handle = start_joined(
            node_config,
            self._address,
            token=self._token,
            node_ip=_IP,
            node_name=name,
            temp_dir=self._temp_dir,
            detached=False,
        )
        node = ClusterNode(handle, is_head=False)
        self.worker_nodes.append(node)
        if wait and self.connected:
            self.wait_for_nodes()
        return node

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """End a node: in peace, or as if its machine had failed."""
        if allow_graceful:
            node.stop()
        else:
            node.kill()
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
        """Wait until the driver sees exactly the nodes that were added and not removed.

        Raises:
            TimeoutError: after `timeout` seconds, with both numbers.
        """
        import moray

        deadline = time.monotonic() + timeout
        wanted = {node.node_id for node in self.list_of_nodes}
        while True:
            alive = {node["NodeID"] for node in moray.nodes() if node["Alive"]}
            if alive == wanted:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"after {timeout:g} s the cluster shows {len(alive)} living nodes; {len(wanted)} were started: "
                    f"missing {sorted(name[:8] for name in wanted - alive)}, "
                    f"unexpected {sorted(name[:8] for name in alive - wanted)}"
                )
            time.sleep(0.02)

    def remaining_processes_alive(self) -> bool:
        """Whether every node's daemon lives."""
        return all(node.any_processes_alive() for node in self.list_of_nodes)

    def shutdown(self) -> None:
        """End all nodes, those that joined first, and leave nothing behind."""
        if self._removed:
            return
        self._removed = True
        atexit.unregister(self.shutdown)
        if self.connected:
            import moray

            moray.shutdown()
            self.connected = False
        threads = [threading.Thread(target=node.stop) for node in self.worker_nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.head_node is not None:
            self.head_node.stop()
        self.head_node, self.worker_nodes = None, []
        remove_tree(self._temp_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()


def _config(node_args: Mapping[str, Any]) -> NodeConfig:
    resources = {
        name: round(amount * config.RESOURCE_UNIT) for name, amount in (node_args.get("resources") or {}).items()
    }
    cpus = node_args.get("num_cpus")
    resources["CPU"] = round((1 if cpus is None else cpus) * config.RESOURCE_UNIT)
    if node_args.get("num_gpus") is not None:
        resources["GPU"] = round(node_args["num_gpus"] * config.RESOURCE_UNIT)
    return NodeConfig(
        resources=resources,
        labels=dict(node_args.get("labels") or {}),
        object_store_memory=int(node_args.get("object_store_memory") or _STORE_BYTES),
        system_config=dict(node_args.get("_system_config") or {}),
        environ=dict(os.environ),
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
