"""Clusters of daemons on this machine: calls to another node, placement groups, many actors on many nodes.

Ray has a daemon, a store and agents for each node, and a process of 60 MB or more for each actor, so it is given fewer
of them where a row says so, and compared by rate.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.workloads.base import CLUSTERS, Context, Figures, check, workload

#: Nodes of the row with many actors.
NODES = 20


@contextmanager
def cluster_of(context: Context, nodes: int, cpus: int, **head: str) -> Iterator[None]:
    """A cluster of `nodes` nodes, each with a resource ``n<number>``; the driver is at the first (`head`)."""
    kind = importlib.import_module(f"{context.system}.cluster_utils").Cluster
    # Ray takes a third of the machine's memory for the store of each node unless told otherwise.
    sizes = {"num_cpus": cpus, "object_store_memory": 100 << 20}
    cluster = kind(initialize_head=True, head_node_args={**sizes, **head, "resources": {"n0": 10_000}})
    try:
        for number in range(1, nodes):
            cluster.add_node(**sizes, resources={f"n{number}": 10_000})
        cluster.wait_for_nodes()
        context.api.init(address=cluster.address, log_to_driver=False)
        yield
        context.api.shutdown()
    finally:
        cluster.shutdown()


@workload(*CLUSTERS)
def cluster_calls(context: Context) -> Figures:
    """Tasks and calls of an actor at another node, at once and one at a time."""
    api = context.api
    with cluster_of(context, 2, 1):

        @api.remote(num_cpus=0, resources={"n1": 1})
        def same(number: int) -> int:
            return number

        class Counter:
            def same(self, number: int) -> int:
                return number

        counter = api.remote(num_cpus=0, resources={"n1": 1})(Counter).remote()

        def burst(call: Any, count: int) -> None:
            check(api.get([call(number) for number in range(count)]), list(range(count)))

        def single(call: Any, count: int) -> None:
            for number in range(count):
                check(api.get(call(number)), number)

        many, few = context.size(5_000), context.size(500)
        return {
            "tasks_async": context.rates(many, lambda count: burst(same.remote, count)),
            "tasks_sync": context.rates(few, lambda count: single(same.remote, count)),
            "calls_async": context.rates(many, lambda count: burst(counter.same.remote, count)),
            "calls_sync": context.rates(few, lambda count: single(counter.same.remote, count)),
        }


@workload(*CLUSTERS)
def cluster_groups(context: Context) -> Figures:
    """Placement groups of one bundle on two nodes, made and removed; then a thousand that stay.

    By default moray's head stores each step on disk, and Ray's keeps all in memory; so once more in memory.
    """
    api = context.api
    util = importlib.import_module(f"{context.system}.util")
    make, remove = util.placement_group, util.remove_placement_group

    def together(count: int) -> None:
        made = [make([{"CPU": 0.01}]) for _ in range(count)]
        api.get([group.ready() for group in made])
        for group in made:
            remove(group)

    def single(count: int) -> None:
        for _ in range(count):
            group = make([{"CPU": 0.01}])
            check(group.wait(60), True)
            remove(group)

    with cluster_of(context, 2, 4):
        figures = {
            "together": context.rates(context.size(100), together),
            "single": context.rates(context.size(100), single),
        }
        count = context.size(1_000)
        began = time.perf_counter()
        made = [make([{"CPU": 0.001}]) for _ in range(count)]
        for group in made:
            check(group.wait(300), True)
        figures["thousand"] = [count / (time.perf_counter() - began)]
    figures["single_memory"] = figures["single"]
    if context.system == "moray":
        with cluster_of(context, 2, 4, storage="memory:"):
            figures["single_memory"] = context.rates(context.size(100), single)
    return figures


@workload(*CLUSTERS)
def cluster_actors(context: Context) -> Figures:
    """Actors on twenty nodes: 1 000 of moray's, 60 of Ray's; made, called once each, ended."""
    api = context.api
    with cluster_of(context, NODES, 1):

        class Counter:
            def same(self, number: int) -> int:
                return number

        remote = api.remote(num_cpus=0)(Counter)
        count = context.size(1_000 if context.system == "moray" else 60)
        api.get([same.remote() for same in _warmers(api)])
        began = time.perf_counter()
        actors = [remote.options(resources={f"n{number % NODES}": 1}).remote() for number in range(count)]
        check(api.get([actor.same.remote(number) for number, actor in enumerate(actors)]), list(range(count)))
        return {"rate": [count / (time.perf_counter() - began)]}


def _warmers(api: Any) -> list[Any]:
    """A task for each node, so that what a node does for its first worker is done."""

    def nothing() -> None: ...

    remote = api.remote(num_cpus=0)(nothing)
    return [remote.options(resources={f"n{number}": 1}) for number in range(NODES)]
