"""``ray._private.state``, also ``ray.state``: what the session has."""

from __future__ import annotations

from typing import Any

from moray.api import available_resources, cluster_resources, connected, nodes, timeline
from moray.config import RESOURCE_UNIT
from moray.ids import TAG_BYTES
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
    runtime = connected()
    described = runtime.ask(lambda number: m.ListActors(number, "", describe=True)).described
    nodes_by_tag = {node["NodeID"][: 2 * TAG_BYTES]: node for node in nodes()}
    found = {actor["actor"]: _actor(actor, nodes_by_tag) for actor in described}
    return found if actor_id is None else found.get(actor_id, {})


def _actor(actor: dict[str, Any], nodes_by_tag: dict[str, dict[str, Any]]) -> dict[str, Any]:
    node = nodes_by_tag.get(actor["process"][: 2 * TAG_BYTES], {}) if actor["process"] else {}
    return {
        "ActorID": actor["actor"],
        "ActorClassName": actor.get("class_name", ""),
        "Name": actor.get("name", ""),
        "RayNamespace": actor.get("namespace", ""),
        "IsDetached": actor.get("detached", False),
        "State": _actor_state(actor),
        "NumRestarts": actor["restarts"],
        "Pid": actor["pid"],
        "Address": {
            "NodeID": node.get("NodeID", ""),
            "IPAddress": node.get("NodeManagerAddress", ""),
            "Port": node.get("NodeManagerPort", 0),
        },
        "DeathCause": actor["reason"] if actor["state"] == "dead" else "",
    }


def _actor_state(actor: dict[str, Any]) -> str:
    """By Ray's names."""
    phase = str(actor["state"])
    if phase in ("alive", "dead"):
        return phase.upper()
    if actor.get("incarnation", 0):
        return "RESTARTING"
    return "DEPENDENCIES_UNREADY" if phase == "held" else "PENDING_CREATION"


def jobs() -> list[dict[str, Any]]:
    """The jobs of the session, and the last that ended."""
    found = _cluster()
    return [
        {
            "JobID": f"{job['job']:08x}",
            "DriverIPAddress": NODE_ADDRESS,
            "DriverPid": job["pid"],
            "IsDead": job["ended"],
            "Entrypoint": job["entrypoint"],
        }
        for job in (*found["jobs"], *found.get("past_jobs", ()))
        if job["pid"]  # Others are detached actors'.
    ]


def node_ids() -> list[str]:
    """Names of the resources that stand for single nodes."""
    return [name for node in nodes() for name in node["Resources"] if name.startswith("node:")]


def total_resources_per_node() -> dict[str, dict[str, float]]:
    """Node id → resource → amount."""
    return {node["NodeID"]: dict(node["Resources"]) for node in nodes() if node["Alive"]}


def available_resources_per_node() -> dict[str, dict[str, float]]:
    """Node id → resource → amount that is not leased at the moment."""
    found = _cluster()
    return {
        node["NodeID"]: {
            name: amount / RESOURCE_UNIT
            for name, amount in node.get("available", found["available"]).items()
            if amount > 0
        }
        for node in found["nodes"]
        if node["Alive"]
    }


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
