"""What a node is told when it starts."""

from __future__ import annotations

from typing import Any, Final

import msgspec

#: In the environment of every process of a session: its name. What is left of a dead session is found by it.
SESSION_VARIABLE: Final = "MORAY_SESSION"
#: In the environment of a worker and of all that it starts: its process id in hex; zeros in the node's own.
WORKER_VARIABLE: Final = "MORAY_WORKER"
NO_WORKER: Final = "0" * 24

#: A node starts with three descriptors. 0: its :class:`NodeConfig`; 1: where it says that it is ready; 2: an anonymous
#: file for its last words, in case that it ends before it has a log. From this one on, it opens its own.
FIRST_OWN_FD: Final = 3


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
    log_to_driver: bool = True
    #: Settings that few need: see :mod:`moray.node.settings`.
    system_config: dict[str, Any] = {}


class NodeReady(msgspec.Struct):
    """What a node says on its descriptor 1 once it accepts connections."""

    address: str
    node_id: bytes
    pid: int
