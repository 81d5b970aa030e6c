"""``ray.util.state``: what there is in the session, as lists of things with fields. What nobody keeps is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NoReturn

from moray.api import connected, nodes
from moray.compat.stand_ins._private import state
from moray.protocol import messages as m

__all__ = [
    "get_actor", "get_job", "get_node", "get_placement_group", "list_actors", "list_jobs", "list_nodes",
    "list_placement_groups", "list_workers",
]  # fmt: skip

#: (field, "=" or "!=", value).
Filter = tuple[str, str, Any]

_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {"=": operator.eq, "!=": operator.ne}
_REFUSED: Final = frozenset({
    "get_log", "get_objects", "get_task", "get_worker", "list_cluster_events", "list_logs", "list_objects",
    "list_runtime_envs", "list_tasks", "summarize_actors", "summarize_objects", "summarize_tasks",
})  # fmt: skip


class State(dict[str, Any]):
    """One thing: its fields as attributes, and by name."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no field {name!r}: {', '.join(self)}") from None


def __getattr__(name: str) -> Any:
    if name not in _REFUSED:
        raise AttributeError(f"module 'ray.util.state' (moray's stand-in for it) has no attribute {name!r}")

    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"ray.util.state.{name}(): moray keeps no such records; see moray.explain and timeline"
        )

    return refuse


def list_actors(
    address: str | None = None,  # noqa: ARG001 - Ray's; the session's
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    **_options: Any,
) -> list[State]:
    """Living actors, and those that ended lately."""
    return _chosen(map(_actor, state.actors().values()), filters, limit)


def list_nodes(
    address: str | None = None,  # noqa: ARG001 - as above
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    **_options: Any,
) -> list[State]:
    """Machines."""
    return _chosen(map(_node, nodes()), filters, limit)


def list_jobs(
    address: str | None = None,  # noqa: ARG001 - as above
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    **_options: Any,
) -> list[State]:
    """Programs that are, or were, connected."""
    return _chosen(map(_job, _cluster()["jobs"]), filters, limit)


def list_workers(
    address: str | None = None,  # noqa: ARG001 - as above
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    **_options: Any,
) -> list[State]:
    """Living worker processes of this machine."""
    return _chosen(map(_worker, _cluster()["workers"]), filters, limit)


def list_placement_groups(
    address: str | None = None,  # noqa: ARG001 - as above
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    **_options: Any,
) -> list[State]:
    """Placement groups."""
    from moray.util.placement_group import placement_group_table

    return _chosen(map(State, placement_group_table().values()), filters, limit)


def get_actor(id: str, **_options: Any) -> State | None:
    """One of them; None if it is not known."""
    return _one(list_actors(limit=1 << 30), "actor_id", id)


def get_node(id: str, **_options: Any) -> State | None:
    """The same for machines."""
    return _one(list_nodes(limit=1 << 30), "node_id", id)


def get_job(id: str, **_options: Any) -> State | None:
    """The same for jobs."""
    return _one(list_jobs(limit=1 << 30), "job_id", id)


def get_placement_group(id: str, **_options: Any) -> State | None:
    """The same for placement groups."""
    return _one(list_placement_groups(limit=1 << 30), "placement_group_id", id)


def _cluster() -> dict[str, Any]:
    found: dict[str, Any] = connected().ask(m.ClusterInfo).state
    return found


def _one(states: list[State], field: str, value: str) -> State | None:
    return next((each for each in states if each[field] == value), None)


def _chosen(states: Iterable[State], filters: Sequence[Filter] | None, limit: int) -> list[State]:
    chosen = list(states)
    for field, how, value in filters or ():
        if how not in _COMPARE:
            raise ValueError(f"filters compare by {' or '.join(map(repr, _COMPARE))}, not by {how!r}")
        matches = _COMPARE[how]
        chosen = [each for each in chosen if matches(str(each.get(field.lower())), str(value))]
    return chosen[:limit]


def _actor(actor: dict[str, Any]) -> State:
    return State(
        actor_id=actor["ActorID"],
        class_name=actor["ActorClassName"],
        state=actor["State"],
        job_id=actor["ActorID"][-8:],
        name=actor["Name"],
        pid=actor["Pid"],
        node_id=actor["Address"]["NodeID"],
        ray_namespace=actor["RayNamespace"],
        is_detached=actor["IsDetached"],
        num_restarts=actor["NumRestarts"],
        death_cause={"error_message": actor["DeathCause"]} if actor["DeathCause"] else None,
    )


def _node_of(process: str) -> str:
    """The node whose tag the process's id begins with; "" if it is not known."""
    return next((node["NodeID"] for node in nodes() if process and process.startswith(node["NodeID"][:8])), "")


def _node(node: dict[str, Any]) -> State:
    return State(
        node_id=node["NodeID"],
        node_ip=node["NodeManagerAddress"],
        state="ALIVE" if node["Alive"] else "DEAD",
        node_name=node["NodeName"],
        is_head_node="node:__internal_head__" in node["Resources"],
        resources_total=dict(node["Resources"]),
        labels=dict(node.get("Labels") or node.get("labels") or {}),
    )


def _job(job: dict[str, Any]) -> State:
    return State(
        job_id=f"{job['job']:08x}",
        type="DRIVER",
        entrypoint=job["entrypoint"],
        status="SUCCEEDED" if job["ended"] else "RUNNING",
        driver_info={"pid": job["pid"]},
    )


def _worker(worker: dict[str, Any]) -> State:
    return State(
        worker_id=worker["process"],
        pid=worker["pid"],
        worker_type="WORKER",
        is_alive=True,
        node_id=_node_of(worker["process"]),
        job_id=f"{worker['job']:08x}",
    )
