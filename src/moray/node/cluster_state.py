"""The answer to ClusterInfo: what the node has, who uses it, who waits for what. JSON-like values only."""

from __future__ import annotations

import os
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any

from moray.core.bundles import split_name
from moray.launch.resources import describe_node
from moray.protocol import messages as m
from moray.protocol.tcp import parse_address

if TYPE_CHECKING:
    from moray.node.cluster import Cluster
    from moray.node.jobs import Job
    from moray.node.node import Node


def cluster_state(node: Node) -> dict[str, Any]:
    """Resources are in units of 1/10000, ids in hex, times in seconds."""
    scheduler = node.leases.scheduler
    pending = scheduler.explain(monotonic())
    return {
        "store": node.store.stats(),
        **(_this_node(node) if node.cluster is None else _all_nodes(node, node.cluster)),
        "pending": pending,
        "actors": _actors(node, pending),
        "jobs": [job_state(job) for job in node.jobs.values()],
        "past_jobs": list(node.past_jobs),
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


def job_state(job: Job) -> dict[str, Any]:
    """What is told of a job."""
    return {
        "job": job.number,
        "pid": job.driver.pid if job.driver is not None else 0,
        "process": job.driver.process.hex() if job.driver is not None else "",
        "origin": job.origin,
        "namespace": job.config.namespace,
        "entrypoint": job.config.entrypoint,
        "ended": job.ended,
    }


def _this_node(node: Node) -> dict[str, Any]:
    scheduler, store = node.leases.scheduler, node.store.stats()
    described = describe_node(
        node.node_id, scheduler.total, store["capacity_bytes"], node.config.labels, node.address, os.getpid()
    )
    return {"total": scheduler.total, "available": scheduler.available, "nodes": [described]}


def _all_nodes(node: Node, cluster: Cluster) -> dict[str, Any]:
    """This node's own amounts are at first hand; those of others as they were told last."""
    total: Counter[str] = Counter()
    available: Counter[str] = Counter()
    for info in cluster.head.nodes().values():
        if info.driver:
            continue
        own = info.node_id == node.node_id
        total.update(_plain(info.resources))
        available.update(node.leases.scheduler.available if own else _plain(info.available))
    living = [_describe(info, None) for info in cluster.head.nodes().values() if not info.driver]
    dead = [_describe(info, reason) for info, reason in cluster.dead_nodes if not info.driver]
    others = sum(
        info.object_store_bytes
        for info in cluster.head.nodes().values()
        if info.node_id != node.node_id and not info.driver
    )
    store = node.store.stats()
    store["capacity_bytes"] += others  # Of the others it is not known how much is in use.
    return {
        "total": dict(total),
        "available": dict(available),
        "nodes": living + dead,
        "store": store,
        "authority_ends": cluster.certificate.authority_ends,
    }


def _plain(amounts: dict[str, int]) -> dict[str, int]:
    """Without what placement groups have made of them."""
    return {name: amount for name, amount in amounts.items() if not split_name(name)[1]}


def _describe(info: m.NodeInfo, death: str | None) -> dict[str, Any]:
    ip, port = parse_address(info.address)
    described = describe_node(
        info.node_id,
        _plain(info.resources),
        info.object_store_bytes,
        info.labels,
        info.address,
        info.pid,
        ip=ip,
        port=port,
        hostname=info.hostname,
        name=info.name,
        death=death,
    )
    return described | {
        "head": info.head,
        "draining": info.drain_deadline > 0,
        "leaving": {"deadline": info.drain_deadline, "reason": info.drain_reason, "holds": info.holds}
        if info.drain_deadline
        else None,
        "available": _plain(info.available),
        "demand": [[need, count] for need, count in info.demand],
    }


def _actors(node: Node, pending: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All living actors and the last dead ones; what waits says for what."""
    waits = {story["owner"]: f"{story['cause']}: {story['reason']}" for story in pending}
    actors = node.actors.table.describe()
    for actor in actors:
        if actor["state"] != "dead" and (why := waits.get(actor["actor"])):
            actor["reason"] = f"{actor['reason']}; {why}" if actor["incarnation"] else why
    return actors
