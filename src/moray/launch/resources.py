"""What a node offers when the user does not say: CPUs, GPUs, memory for tasks and for objects."""

from __future__ import annotations

import os
from typing import Any, Final

from moray.config import RESOURCE_UNIT
from moray.platform import machine

#: Part of the memory that objects may take. Shared memory counts against the same limit as the heaps of
#: workers, which need the larger part; pages are taken only when objects fill them.
_STORE_SHARE: Final = 0.3
#: An arena is at least this large, so that a tiny machine holds some objects before it spills,
_STORE_MIN_BYTES: Final = 64 << 20
#: and at most this large by default: beyond, the user should say that it is wanted.
_STORE_MAX_BYTES: Final = 256 << 30
_PAGE_BYTES: Final = 4096
#: The address of every node of a session on one machine.
NODE_ADDRESS: Final = "127.0.0.1"
#: What tasks ask a little of to run on a certain node, or on the head's: one unit of each.
HEAD_RESOURCE: Final = "node:__internal_head__"
LOCAL_NAMES: Final = (f"node:{NODE_ADDRESS}", HEAD_RESOURCE)


def store_bytes(wanted: int) -> int:
    """The size of the arena: what was asked for, or a share of the memory, in whole pages."""
    if wanted <= 0:
        share = int(machine.memory_total() * _STORE_SHARE)
        wanted = min(max(share, _STORE_MIN_BYTES), _STORE_MAX_BYTES)
    return -(-wanted // _PAGE_BYTES) * _PAGE_BYTES


def complete_resources(given: dict[str, int], arena_bytes: int, named: tuple[str, ...] = LOCAL_NAMES) -> dict[str, int]:
    """`given` (units) with CPU, GPU and memory added where they are missing; what is 0 stays out of the GPUs. `named`:
    resources of which every node has a unit, by which it is found."""
    total = dict(given)
    if "CPU" not in total:
        total["CPU"] = machine.cpu_count() * RESOURCE_UNIT
    if "GPU" not in total and (gpus := machine.gpu_count()):
        total["GPU"] = gpus * RESOURCE_UNIT
    if "memory" not in total:
        total["memory"] = max(0, machine.memory_total() - arena_bytes) * RESOURCE_UNIT
    for name in named:
        total.setdefault(name, RESOURCE_UNIT)
    return total


def complete_devices(given: dict[str, int], resources: dict[str, int]) -> dict[str, int]:
    """`given` with as many GPU indices as there are whole GPUs, if it does not say."""
    gpus = resources.get("GPU", 0) // RESOURCE_UNIT
    return {"GPU": gpus, **given} if gpus else dict(given)


def named_resources(node_ip: str, is_head: bool) -> tuple[str, ...]:
    """By which a node of a cluster is found."""
    return (f"node:{node_ip}", HEAD_RESOURCE) if is_head else (f"node:{node_ip}",)


def describe_node(
    node_id: bytes,
    resources: dict[str, int],
    arena_bytes: int,
    labels: dict[str, str],
    address: str,
    pid: int,
    *,
    ip: str = NODE_ADDRESS,
    port: int = 0,
    hostname: str = "",
    name: str = "",
    death: str | None = None,
) -> dict[str, Any]:
    """What ``nodes()`` says of a node: twice, as programs for Ray look for other keys. `resources` are in units;
    `death`: why it is dead, if it is."""
    hostname = hostname or os.uname().nodename
    amounts = {name: amount / RESOURCE_UNIT for name, amount in resources.items() if amount}
    return {
        "id": node_id.hex(),
        "hostname": hostname,
        "pid": pid,
        "resources": resources,
        "labels": labels,
        "alive": death is None,
        "NodeID": node_id.hex(),
        "Alive": death is None,
        "NodeName": name or ip,
        "NodeManagerAddress": ip,
        "NodeManagerHostname": hostname,
        # A machine has one port at most; within it, everything goes through Unix sockets.
        "NodeManagerPort": port,
        "ObjectManagerPort": port,
        "MetricsExportPort": 0,
        "RuntimeEnvAgentPort": 0,
        "ObjectStoreSocketName": address,
        "RayletSocketName": address,
        "DeathReason": 0 if death is None else 1,
        "DeathReasonMessage": death or "",
        "Resources": {**amounts, "object_store_memory": float(arena_bytes)},
        "Labels": {"ray.io/node-id": node_id.hex(), **labels},
    }
