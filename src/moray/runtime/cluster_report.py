"""What the command line shows of a cluster, and asks of it."""

from __future__ import annotations

import time
from typing import Any

from moray.config import RESOURCE_UNIT
from moray.protocol import messages as m
from moray.runtime import state


def cluster_report() -> dict[str, Any]:
    """Nodes with what is used of what they have, and what waits and why. JSON-like."""
    found = _runtime().ask(m.ClusterInfo).state
    return {
        "nodes": [_node(node) for node in found["nodes"]],
        # When the cluster's certificates end for good, in seconds of the epoch; 0: it has none.
        "authority_ends": found.get("authority_ends", 0.0),
        "pending": [
            {"count": item["count"], "name": item["label"] or item["owner"], "reason": item["reason"] or item["cause"]}
            for item in found["pending"]
        ]
        + [
            {"count": count, "name": _amounts(need), "reason": f"waits for room, asked for at node {node['id'][:8]}"}
            for node in found["nodes"]
            for need, count in node.get("demand", ())
        ],
    }


def _node(node: dict[str, Any]) -> dict[str, Any]:
    free = node.get("available") or {}
    resources = {
        name: ((total - free.get(name, total)) / RESOURCE_UNIT, total / RESOURCE_UNIT)
        for name, total in sorted(node["resources"].items())
        if total and not name.startswith("node:") and name != "memory"
    }
    dead = "dead: " + node["DeathReasonMessage"]
    return {
        "id": node["id"],
        "state": ("draining" if node.get("draining") else "alive") if node["alive"] else dead,
        "leaving": node.get("leaving"),
        "address": f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}",
        "hostname": node["hostname"],
        "name": node["NodeName"],
        "head": bool(node.get("head")),
        "resources": resources,
        "labels": node["labels"],
    }


def _amounts(need: dict[str, int]) -> str:
    return ", ".join(f"{name}: {amount / RESOURCE_UNIT:g}" for name, amount in sorted(need.items()) if amount) or "0"


def drain_node(name: str, seconds: float, reason: str) -> str:
    """Have the node whose id begins with `name` leave within so many seconds; "" if that has begun, or why not."""
    runtime = _runtime()
    nodes = [node for node in runtime.ask(m.ClusterInfo).state["nodes"] if node["alive"]]
    chosen = [node["id"] for node in nodes if node["id"].startswith(name.lower())]
    if any(node["id"] in chosen and node.get("head") for node in nodes):
        return f"node {name} has the head, and cannot leave the cluster: `moray stop` there ends it"
    if len(chosen) != 1:
        known = ", ".join(node["id"][:8] for node in nodes)
        return f"{len(chosen)} living nodes have ids that begin with {name!r}; there are {known}"
    deadline = time.time() + seconds
    answer = runtime.ask(lambda number: m.DrainNode(number, bytes.fromhex(chosen[0]), reason, deadline))
    return answer.detail if isinstance(answer, m.StoreError) else ""


def _runtime() -> Any:
    assert state.runtime is not None, "moray.init() comes first"
    return state.runtime
