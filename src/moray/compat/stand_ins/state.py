"""``ray.state``, as it was called before it became private."""

from __future__ import annotations

from moray.compat.stand_ins._private.state import (
    actors,
    available_resources,
    available_resources_per_node,
    cluster_resources,
    jobs,
    node_ids,
    nodes,
    state,
    timeline,
    total_resources_per_node,
)

__all__ = [
    "actors", "available_resources", "available_resources_per_node", "cluster_resources", "jobs", "node_ids", "nodes",
    "state", "timeline", "total_resources_per_node",
]  # fmt: skip
