"""The rows of the table: which figure of which workload, on which systems, against which targets.

A *ratio* says how many times better moray is, whichever way the figure points: 2 means twice the rate or half
the time. A target is a least ratio to another system, or a limit on moray's own figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

System: TypeAlias = Literal["moray", "ray", "pool", "executor", "floor"]

SYSTEMS: tuple[System, ...] = ("moray", "ray", "pool", "executor", "floor")
BOTH: tuple[System, ...] = ("moray", "ray")


@dataclass(frozen=True)
class Ratio:
    """moray must be at least `least` times as good as `system`."""

    system: System
    least: float


@dataclass(frozen=True)
class Limit:
    """moray's figure must not be worse than `value`, in the row's unit."""

    value: float


Target: TypeAlias = Ratio | Limit


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    #: Stable key, used by recorded.json.
    name: str
    title: str
    workload: str
    figure: str
    unit: str
    more_is_better: bool = True
    systems: tuple[System, ...] = BOTH
    targets: tuple[Target, ...] = ()
    #: What the gate divides by: (workload, figure) of the floor; None when the figure is relative to
    #: something measured with it, or to a constant, already.
    floor: tuple[str, str] | None = None
    #: Whether the gate measures this row.
    gated: bool = True

    def advantage(self, ours: float, theirs: float) -> float:
        return ours / theirs if self.more_is_better else theirs / ours

    def meets(self, limit: Limit, value: float) -> bool:
        return value >= limit.value if self.more_is_better else value <= limit.value


_RATE, _SYNC = ("tasks_async", "per_s"), ("tasks_sync", "per_s")
_START, _WEIGHT = ("process", "start_s"), ("process", "mb")
_ALL: tuple[System, ...] = SYSTEMS
_WITH_FLOOR: tuple[System, ...] = ("moray", "ray", "floor")


def _tasks() -> Iterator[Row]:
    yield Row(
        "tasks_sync", "tasks, one at a time", "tasks_sync", "per_s", "/s",
        systems=_ALL, targets=(Ratio("ray", 14),), floor=_SYNC,
    )  # fmt: skip
    yield Row(
        "tasks_async", "tasks, in bursts", "tasks_async", "per_s", "/s",
        systems=_ALL, targets=(Ratio("ray", 30), Ratio("floor", 0.25), Ratio("pool", 1.5)), floor=_RATE,
    )  # fmt: skip
    yield Row(
        "tasks_clients", "tasks, from 4 clients at once", "tasks_clients", "per_s", "/s",
        targets=(Ratio("ray", 15),), floor=_RATE,
    )  # fmt: skip


def _objects() -> Iterator[Row]:
    yield Row("put_small", "put, small", "put_small", "per_s", "/s", targets=(Ratio("ray", 50),), floor=_RATE)
    yield Row("get_small", "get, small", "get_small", "per_s", "/s", targets=(Ratio("ray", 15),), floor=_RATE)
    yield Row(
        "put_clients", "put, small, from 4 clients at once", "put_clients", "per_s", "/s",
        targets=(Ratio("ray", 40),), floor=_RATE,
    )  # fmt: skip
    for size in (1, 10, 100):
        name = f"put_{size}mb"
        yield Row(
            f"{name}_of_memcpy", f"put of {size} MB arrays, warm, as part of memcpy", name, "of_memcpy", "",
            targets=(Limit(0.8),),
        )  # fmt: skip
        yield Row(f"{name}_gb_s", f"… in GB/s ({size} MB)", name, "gb_s", "GB/s", gated=False)
        yield Row(
            f"{name}_first_touch", f"… the session's first put ({size} MB)", name, "first_touch_gb_s", "GB/s",
            gated=False,
        )  # fmt: skip
    for figure, what in (("warm_gb_s", "warm"), ("fresh_gb_s", "never touched")):
        yield Row(
            f"memcpy_{figure}", f"memcpy of 100 MB into shared memory, {what}", "memcpy", figure, "GB/s",
            systems=("floor",), gated=False,
        )  # fmt: skip
    yield Row(
        "get_10k_refs", "get of an object that holds 10 000 references", "get_10k_refs", "per_s", "/s",
        targets=(Ratio("ray", 3),), floor=_RATE,
    )  # fmt: skip
    yield Row(
        "wait_1k", "wait on 1 000 references, one by one", "wait_1k", "per_s", "/s",
        targets=(Ratio("ray", 20),), floor=_RATE,
    )  # fmt: skip


def _actors() -> Iterator[Row]:
    for name, title, least, systems, floor in (
        ("actor_sync", "actor calls, one at a time", 7, _WITH_FLOOR, _SYNC),
        ("actor_async", "actor calls, in bursts", 12, _WITH_FLOOR, _RATE),
        ("actor_one_to_many", "actor calls, in bursts to 4 actors", 8, _WITH_FLOOR, _RATE),
        ("actor_many_to_many", "actor calls, from 4 clients to 4 actors", 8, BOTH, _RATE),
        ("actor_object_argument", "… with an object as argument", 20, BOTH, _RATE),
        ("async_actor_sync", "async actor calls, one at a time", 8, BOTH, _SYNC),
        ("async_actor_async", "async actor calls, in bursts", 12, BOTH, _RATE),
        ("async_actor_arguments", "… with an argument", 12, BOTH, _RATE),
    ):
        yield Row(name, title, name, "per_s", "/s", systems=systems, targets=(Ratio("ray", least),), floor=floor)
    yield Row(
        "actors_many", "200 actors created, called once and ended (Ray: 20)", "actors_many", "per_s", "/s",
        targets=(Ratio("ray", 5),), floor=_START,
    )  # fmt: skip
    yield Row(
        "actors_many_s", "… all 200 of them", "actors_many", "s", "s",
        more_is_better=False, systems=("moray",), gated=False,
    )  # fmt: skip


def _graphs() -> Iterator[Row]:
    for figure, title in (
        ("plain_one", "three actors in a chain, `get` after each chain"),
        ("plain_several", "… 10 chains under way"),
        ("plain_burst", "… 100 chains, then `get`"),
        ("compiled_one", "… compiled, `get` after each"),
        ("compiled_several", "… compiled, 10 under way"),
    ):
        yield Row(f"dag_{figure}", title, "dag_chain", figure, "/s", gated=False)
    yield Row(
        "dag_times", "… 10 under way / plain, `get` after each chain", "dag_chain", "times", "",
        systems=("moray",), targets=(Limit(5),), gated=False,
    )  # fmt: skip
    yield Row(
        "dag_times_several", "… 10 under way, compiled / plain", "dag_chain", "times_several", "",
        systems=("moray",), targets=(Limit(5),), gated=False,
    )  # fmt: skip
    yield Row(
        "dag_switches", "… compiled, `get` after each: context switches per hop", "dag_chain", "switches", "",
        more_is_better=False, systems=("moray",), targets=(Limit(3),), gated=False,
    )  # fmt: skip


def _generators() -> Iterator[Row]:
    for name, title, least in (
        ("generator_1kb", "items of a generator, 1 KB each, taken and fetched", 10),
        ("generator_1mb", "items of a generator, arrays of 1 MB", 3),
    ):
        yield Row(name, title, name, "per_s", "/s", targets=(Ratio("ray", least),), floor=_RATE)


def _cancel() -> Iterator[Row]:
    yield Row(
        "cancel_queued", "cancel of 1 000 queued tasks, until all gets raise", "cancel_queued", "ms", "ms",
        more_is_better=False, targets=(Limit(50),), gated=False,
    )  # fmt: skip
    yield Row(
        "cancel_sleep", "cancel of a task in time.sleep (5 s), until get raises", "cancel_sleep", "ms", "ms",
        more_is_better=False, targets=(Limit(150),), gated=False,
    )  # fmt: skip
    yield Row(
        "cancel_sleep_freed", "… until its CPU has run another task", "cancel_sleep", "freed_ms", "ms",
        more_is_better=False, gated=False,
    )  # fmt: skip


def _session() -> Iterator[Row]:
    yield Row(
        "init", "init() to the first result", "session", "init_s", "s", more_is_better=False,
        targets=(Ratio("ray", 12), Limit(0.3)), floor=_START,
    )  # fmt: skip
    yield Row(
        "shutdown", "shutdown()", "session", "shutdown_s", "s", more_is_better=False,
        targets=(Ratio("ray", 10),), floor=_START,
    )  # fmt: skip
    yield Row(
        "import", "import, inside a fresh interpreter", "import_module", "inside_s", "s", more_is_better=False,
        targets=(Limit(0.060),), floor=_START,
    )  # fmt: skip
    yield Row(
        "import_process", "import, added to a process's whole life", "import_module", "added_s", "s",
        more_is_better=False, gated=False,
    )  # fmt: skip
    yield Row(
        "memory", "memory of an idle session, without its driver", "memory", "mb", "MB", more_is_better=False,
        targets=(Ratio("ray", 8),), floor=_WEIGHT,
    )  # fmt: skip
    yield Row(
        "processes", "… its processes", "memory", "processes", "", more_is_better=False, gated=False
    )  # fmt: skip


def _scale() -> Iterator[Row]:
    yield Row(
        "queued", "1 000 000 queued tasks, submitted and run (Ray: 100 000)", "queue", "per_s", "/s",
        targets=(Ratio("ray", 1),), floor=_RATE,
    )  # fmt: skip
    yield Row("queued_submit", "… submission alone", "queue", "submit_per_s", "/s", gated=False)
    yield Row(
        "queued_bytes", "… memory of the driver per queued task", "queue", "bytes_per_task", "B",
        more_is_better=False, targets=(Limit(2_500),),
    )  # fmt: skip
    for name, title in (
        ("args_10k", "10 000 object arguments to one task"),
        ("returns_3k", "3 000 returns of one task"),
        ("get_10k", "get of 10 000 objects"),
    ):
        yield Row(name, title, name, "s", "s", more_is_better=False, targets=(Ratio("ray", 1),), floor=_RATE)


def _latency() -> Iterator[Row]:
    yield Row(
        "mixed", "1 000 sleeps of 1 ms among 20 of 0.5 s, 8 CPUs: makespan / lower bound", "mixed", "of_bound", "",
        more_is_better=False, targets=(Limit(1.1),),
    )  # fmt: skip
    yield Row(
        "sleeps_after_empty", "ten 1 s sleeps right after 10 000 empty tasks, 10 CPUs", "sleeps_after_empty", "s",
        "s", more_is_better=False, targets=(Limit(1.3),),
    )  # fmt: skip
    yield Row(
        "sleeps_behind_empty", "… the empty tasks not waited for, all in one burst", "sleeps_after_empty",
        "behind_s", "s", more_is_better=False, gated=False,
    )  # fmt: skip
    yield Row(
        "second_driver", "a second driver's first task, all workers busy", "second_driver", "first_task_s", "s",
        more_is_better=False, targets=(Limit(0.1),), floor=_START,
    )  # fmt: skip
    yield Row(
        "second_driver_init", "… its init()", "second_driver", "init_s", "s", more_is_better=False, gated=False
    )  # fmt: skip


def _growth() -> Iterator[Row]:
    """Cost of one task as things grow. Half as much again is what caches and allocators may take."""
    for what, title, points in (
        ("queued", "queued tasks", ("1000", "10000", "100000", "1000000")),
        ("objects", "live objects", ("1000", "10000", "100000", "1000000")),
        ("workers", "workers", ("2", "8", "32")),
    ):
        for point in points:
            yield Row(
                f"growth_{what}_{point}", f"µs per task at {int(point):,} {title}".replace(",", " "),
                f"growth_{what}", f"us_{point}", "µs", more_is_better=False, systems=("moray",), gated=False,
            )  # fmt: skip
        yield Row(
            f"growth_{what}", f"… last of them / first ({title})", f"growth_{what}", "growth", "",
            more_is_better=False, systems=("moray",), targets=(Limit(1.5),), gated=False,
        )  # fmt: skip


def _clusters() -> Iterator[Row]:
    """Nodes that are processes of one machine. `python -m benchmarks.cluster` compares with bare TLS."""
    for figure, title, least in (
        ("tasks_async", "tasks at another node, in bursts", 30),
        ("tasks_sync", "tasks at another node, one at a time", None),
        ("calls_async", "actor calls to another node, in bursts", 12),
        ("calls_sync", "actor calls to another node, one at a time", None),
    ):
        targets = () if least is None else (Ratio("ray", least),)
        yield Row(f"cluster_{figure}", title, "cluster_calls", figure, "/s", targets=targets, gated=False)
    for figure, title, least in (
        ("together", "placement groups made and removed, 100 at once", 4),
        ("single", "placement groups made and removed, one by one", 2),
        ("single_memory", "… with the head's state in memory, as Ray's is", 2),
        ("thousand", "1 000 placement groups, made and ready", 1),
    ):
        yield Row(
            f"groups_{figure}", title, "cluster_groups", figure, "/s", targets=(Ratio("ray", least),), gated=False
        )  # fmt: skip
    yield Row(
        "cluster_actors", "1 000 actors on 20 nodes (Ray: 60), made and called", "cluster_actors", "rate", "/s",
        targets=(Ratio("ray", 1),), gated=False,
    )  # fmt: skip


#: Sections of the table, in order.
SECTIONS: dict[str, tuple[Row, ...]] = {
    "Tasks": tuple(_tasks()),
    "Objects": tuple(_objects()),
    "Actors": tuple(_actors()),
    "Graphs": tuple(_graphs()),
    "Generators": tuple(_generators()),
    "Cancel": tuple(_cancel()),
    "A session": tuple(_session()),
    "Large numbers": tuple(_scale()),
    "Fairness": tuple(_latency()),
    "Clusters on one machine": tuple(_clusters()),
    "Growth": tuple(_growth()),
}

ROWS: tuple[Row, ...] = tuple(row for rows in SECTIONS.values() for row in rows)


def workloads(rows: tuple[Row, ...]) -> dict[str, tuple[System, ...]]:
    """Which workloads these rows need, and on which systems, in order."""
    needed: dict[str, list[System]] = {}
    for row in rows:
        systems = needed.setdefault(row.workload, [])
        systems += [system for system in row.systems if system not in systems]
    return {name: tuple(systems) for name, systems in needed.items()}
