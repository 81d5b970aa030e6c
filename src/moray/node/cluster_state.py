"""The answer to ClusterInfo: what the node has, who uses it, who waits for what. JSON-like values only."""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Any

from moray.launch.resources import describe_node

if TYPE_CHECKING:
    from moray.node.node import Node


def cluster_state(node: Node) -> dict[str, Any]:
    """Resources are in units of 1/10000, ids in hex, times in seconds."""
    scheduler = node.leases.scheduler
    pending = scheduler.explain(monotonic())
    return {
        "total": scheduler.total,
        "available": scheduler.available,
        "nodes": [
            describe_node(
                node.node_id,
                scheduler.total,
                node.store.stats()["capacity_bytes"],
                node.config.labels,
                node.address,
                os.getpid(),
            )
        ],
        "store": node.store.stats(),
        "pending": pending,
        "actors": _actors(node, pending),
        "jobs": [
            {
                "job": job.number,
                "pid": job.driver.pid if job.driver is not None else 0,
                "process": job.driver.process.hex() if job.driver is not None else "",
                "origin": job.origin,
                "namespace": job.config.namespace,
                "entrypoint": job.config.entrypoint,
                "ended": job.ended,
            }
            for job in node.jobs.values()
        ],
        "workers": [
            {
                "process": worker.process.hex(),
                "pid": worker.pid,
                "job": worker.job,
                "runtime_env": worker.runtime_env,
                "running": worker.running,
                "ending": worker.cause,
            }
            for worker in node.workers
        ],
    }


def _actors(node: Node, pending: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All living actors and the last dead ones; what waits says for what."""
    waits = {story["owner"]: f"{story['cause']}: {story['reason']}" for story in pending}
    actors = node.actors.table.describe()
    for actor in actors:
        if actor["state"] != "dead" and (why := waits.get(actor["actor"])):
            actor["reason"] = f"{actor['reason']}; {why}" if actor["incarnation"] else why
    return actors
