"""What a node of a cluster says of itself, in a file beside its socket, where drivers and the command line find it.

Apart from :mod:`moray.launch.cluster`, because the node imports it, and nothing of what starts nodes.
"""

from __future__ import annotations

import os

import msgspec

from moray.launch.session_directory import CLUSTER_FILE


class ClusterNode(msgspec.Struct, kw_only=True):
    """What a node says of itself in its session's directory."""

    cluster_id: str
    #: The head's "HOST:PORT".
    head: str
    #: This node's.
    address: str
    node_id: str
    pid: int
    #: The head runs beside it.
    is_head: bool = False
    #: It was started by a driver elsewhere in the cluster, for itself, and ends with it.
    driver_only: bool = False


def write_cluster_file(session_dir: str, node: ClusterNode) -> None:
    """Say what this node belongs to. Called by the node."""
    path = f"{session_dir}/{CLUSTER_FILE}"
    with open(f"{path}.new", "wb") as file:
        file.write(msgspec.json.encode(node))
    os.rename(f"{path}.new", path)
