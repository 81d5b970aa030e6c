"""What a node is told when it starts."""

from __future__ import annotations

import os
from typing import Any, Final

import msgspec

#: In the environment of every process of a session: its name. What is left of a dead session is found by it.
SESSION_VARIABLE: Final = "MORAY_SESSION"
#: In the environment of a worker and of all that it starts: its process id in hex; zeros in the node's own.
WORKER_VARIABLE: Final = "MORAY_WORKER"
NO_WORKER: Final = "0" * 24
#: In the environment of whoever starts a cluster, joins it or connects to it: its token (:mod:`moray.security.token`).
TOKEN_VARIABLE: Final = "MORAY_TOKEN"  # noqa: S105 - a name

#: A node starts with three descriptors. 0: its :class:`NodeConfig`; 1: where it says that it is ready; 2: an anonymous
#: file for its last words, in case that it ends before it has a log. From this one on, it opens its own.
FIRST_OWN_FD: Final = 3


def session_environ() -> dict[str, str]:
    """This process's environment for nodes and workers: without the token, which they do not need, and which programs
    that say what their environment is would tell everybody (TOKEN)."""
    return {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}


class ClusterConfig(msgspec.Struct, kw_only=True):
    """What makes a node one of several."""

    #: The head's "HOST:PORT".
    head: str
    #: This node's address for the others, and its one port (0: any that is free).
    node_ip: str
    port: int = 0
    #: A directory with this node's certificate and key, and the cluster's CA certificate (:mod:`moray.security`).
    credentials: str
    #: This node's id, 28 bytes; its certificate is issued to it.
    node_id: bytes = b""
    node_name: str = ""
    #: A driver has started it for itself: it takes no work, and ends with the driver.
    driver_only: bool = False
    #: It reaches the cluster through a tunnel to a relay beside the head, and how long that may be interrupted.
    relayed: bool = False
    relay_patience_s: float = 60.0
    #: It starts the head, and starts it again when it dies.
    start_head: bool = False
    #: Of the head, if it is started here: where its state lies, "sqlite", "memory" or a URL of Redis; "" is sqlite.
    storage: str = ""
    #: "" or "full": wait for the disk before anything is acknowledged.
    durability: str = ""
    #: It was another node of this cluster, and why it is not any more (:mod:`moray.node.rejoin`).
    rejoins: str = ""


class NodeConfig(msgspec.Struct, kw_only=True):
    """The settings of one node; `start_node` fills in what is empty."""

    #: Name of the session.
    session: str = ""
    session_dir: str = ""
    #: The process whose end is the session's; 0: the node lives until it is told to end.
    driver_pid: int = 0
    #: Total resources in units of 1/10000. "CPU", "GPU" and "memory" are detected where missing.
    resources: dict[str, int] = {}
    #: Device resources and how many indices each has, e.g. {"GPU": 2}; made from `resources` where missing.
    devices: dict[str, int] = {}
    #: Bytes of shared memory for objects; 0: 30 % of the machine's memory.
    object_store_memory: int = 0
    labels: dict[str, str] = {}
    #: Namespace of jobs that name none.
    namespace: str = ""
    #: The node's environment, from which its processes inherit; empty: the caller's.
    environ: dict[str, str] = {}
    #: ``module:function`` that a worker runs.
    worker_entry: str = "moray.runtime.worker:main"
    #: Where spilled objects go; "": into the session directory.
    spill_dir: str = ""
    #: The same, if there are several, or URLs (:mod:`moray.launch.spilling`).
    spill_targets: list[str] = []
    log_to_driver: bool = True
    #: None: a local session.
    cluster: ClusterConfig | None = None
    #: Settings that few need: see :mod:`moray.node.settings`.
    system_config: dict[str, Any] = {}


class NodeReady(msgspec.Struct):
    """What a node says on its descriptor 1 once it accepts connections."""

    address: str
    node_id: bytes
    pid: int
    #: "HOST:PORT" of the head of its cluster; "": it is in none.
    head: str = ""
    #: Why it ends at once, in one line; "" if it runs.
    problem: str = ""
