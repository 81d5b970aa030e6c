"""``ray._private.state``, also ``ray.state``: what the session has."""

from __future__ import annotations

from typing import Any

from moray.api import available_resources, cluster_resources, connected, nodes, timeline
from moray.config import RESOURCE_UNIT
from moray.launch.resources import NODE_ADDRESS
from moray.protocol import messages as m

__all__ = [
    "actors", "available_resources", "available_resources_per_node", "cluster_resources", "jobs", "node_ids", "nodes",
    "state", "timeline", "total_resources_per_node",
]  # fmt: skip


def _cluster() -> dict[str, Any]:
    found: dict[str, Any] = connected().ask(m.ClusterInfo).state
    return found


def actors(actor_id: str | None = None) -> dict[str, Any]:
    """The actors, living ones and those that ended lately: id → fields; the fields alone if an id is given."""
    found = {
        actor["actor"]: {
            "ActorID": actor["actor"],
            "ActorClassName": actor.get("class_name", ""),
            "Name": actor.get("name", ""),
            "State": str(actor["state"]).upper(),
            "NumRestarts": actor.get("incarnation", 0),
        }
        for actor in _cluster()["actors"]
    }
    return found if actor_id is None else found.get(actor_id, {})


def jobs() -> list[dict[str, Any]]:
    """The jobs of the session."""
    return [
        {
            "JobID": f"{job['job']:08x}",
            "DriverIPAddress": NODE_ADDRESS,
            "DriverPid": job["pid"],
            "IsDead": job["ended"],
            "Entrypoint": job["entrypoint"],
        }
        for job in _cluster()["jobs"]
    ]


def node_ids() -> list[str]:
    """Names of the resources that stand for single nodes."""
    return [name for node in nodes() for name in node["Resources"] if name.startswith("node:")]


def total_resources_per_node() -> dict[str, dict[str, float]]:
    """Node id → resource → amount."""
    return {node["NodeID"]: dict(node["Resources"]) for node in nodes()}


def available_resources_per_node() -> dict[str, dict[str, float]]:
    """Node id → resource → amount that is not leased at the moment."""
    found = _cluster()
    free = {name: amount / RESOURCE_UNIT for name, amount in found["available"].items() if amount > 0}
    return {node["NodeID"]: free for node in found["nodes"]}


class GlobalState:
    """The same by methods, as ``ray.state.state`` has them."""

    def node_table(self) -> list[dict[str, Any]]:
        """One dict per machine."""
        return nodes()

    def job_table(self) -> list[dict[str, Any]]:
        """The jobs of the session."""
        return jobs()

    def actor_table(self, actor_id: str | None = None) -> dict[str, Any]:
        """See :func:`actors`."""
        return actors(actor_id)

    def cluster_resources(self) -> dict[str, float]:
        """The session's total resources."""
        return cluster_resources()

    def available_resources(self) -> dict[str, float]:
        """What is not leased at the moment."""
        return available_resources()


state = GlobalState()
