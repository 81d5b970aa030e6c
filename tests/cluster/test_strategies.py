"""Scheduling strategies over several nodes: the shells around the cluster scheduler, and its words at the user."""

from __future__ import annotations

import re
from typing import Any

import pytest

import moray
from moray.cluster_utils import Cluster
from moray.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)
from tests.support.procs import poll_until

TIMEOUT_S = 60


@moray.remote
def node_of() -> str:
    return str(moray.get_runtime_context().get_node_id())


@moray.remote
class Place:
    def node_of(self) -> str:
        return str(moray.get_runtime_context().get_node_id())


def cases(cluster: Cluster) -> list[tuple[dict[str, Any], str]]:
    b, c = (str(node.node_id) for node in cluster.worker_nodes)
    gone = "ab" * 28
    return [
        ({"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": NotIn("a", "b")})}, c),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": NotIn("a")}, soft={"zone": In("b")})}, b),
        ({"label_selector": {"ray.io/node-id": b}}, b),
        ({"label_selector": {"zone": "x"}, "fallback_strategy": [{"label_selector": {"zone": "c"}}]}, c),
        ({"scheduling_strategy": NodeAffinitySchedulingStrategy(c, soft=True)}, c),
        ({"scheduling_strategy": NodeAffinitySchedulingStrategy(gone, soft=True), "resources": {"b": 1}}, b),
    ]


@pytest.mark.parametrize("number", range(6))
def test_tasks_and_actors_run_where_they_are_to(shared_session: Cluster, number: int) -> None:
    options, expected = cases(shared_session)[number]
    assert moray.get(node_of.options(**options).remote(), timeout=TIMEOUT_S) == expected
    place = Place.options(**options).remote()
    assert moray.get(place.node_of.remote(), timeout=TIMEOUT_S) == expected


@pytest.mark.usefixtures("shared_session")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_selector": {"zone": "x"}}, "no node of 3 has label 'zone' = 'x'; the nearest, node "),
        ({"num_cpus": 64}, "CPU: 64 wanted, no node of 3 has more than 2"),
        ({"resources": {"b": 1, "c": 1}}, "no node of 3 has all of"),
        (
            {"label_selector": {"zone": "b"}, "resources": {"c": 1}},
            "no node of the 1 matching has a resource named 'c'",
        ),
    ],
)
def test_what_no_node_can_run_says_which_comes_nearest(options: dict[str, Any], words: str) -> None:
    with pytest.raises(moray.exceptions.TaskUnschedulableError, match=re.escape(words)):
        moray.get(node_of.options(**options, infeasible="error").remote(), timeout=TIMEOUT_S)
    place = Place.options(**{"num_cpus": 1, **options}, infeasible="error").remote()
    with pytest.raises(moray.exceptions.ActorUnschedulableError, match=re.escape(words)):
        moray.get(place.node_of.remote(), timeout=TIMEOUT_S)


def test_no_room_at_one_node_is_an_error_if_asked_for(shared_session: Cluster) -> None:
    b = str(shared_session.worker_nodes[0].node_id)
    fail = NodeAffinitySchedulingStrategy(b, soft=False, _fail_on_unavailable=True)
    holder = Place.options(num_cpus=2, scheduling_strategy=fail).remote()
    assert moray.get(holder.node_of.remote(), timeout=TIMEOUT_S) == b
    with pytest.raises(moray.exceptions.TaskUnschedulableError, match=r"no room for CPU: 1 in 1 s"):
        moray.get(node_of.options(scheduling_strategy=fail).remote(), timeout=TIMEOUT_S)
    spill = NodeAffinitySchedulingStrategy(b, soft=True, _spill_on_unavailable=True)
    assert moray.get(node_of.options(scheduling_strategy=spill).remote(), timeout=TIMEOUT_S) != b
    moray.kill(holder)


def test_what_waits_for_a_label_runs_when_such_a_node_joins(shared_session: Cluster) -> None:
    ref = node_of.options(label_selector={"zone": "late"}).remote()
    place = Place.options(label_selector={"zone": "late"}).remote()
    called = place.node_of.remote()
    assert moray.wait([ref, called], timeout=0.5)[0] == []
    late = shared_session.add_node(num_cpus=1, labels={"zone": "late"})
    try:
        assert moray.get([ref, called], timeout=TIMEOUT_S) == [str(late.node_id)] * 2
        hard = NodeAffinitySchedulingStrategy(str(late.node_id), soft=False)
    finally:
        shared_session.remove_node(late)
    assert poll_until(lambda: len([node for node in moray.nodes() if node["Alive"]]) == 3, TIMEOUT_S)
    with pytest.raises(moray.exceptions.TaskUnschedulableError, match="is not in the cluster"):
        moray.get(node_of.options(scheduling_strategy=hard).remote(), timeout=TIMEOUT_S)


def test_tasks_go_where_their_large_arguments_are(shared_session: Cluster) -> None:
    @moray.remote
    def make() -> bytes:
        return bytes(4 << 20)

    @moray.remote
    def node_with(data: bytes) -> tuple[int, str]:
        return len(data), str(moray.get_runtime_context().get_node_id())

    for cpus, node in zip((0.5, 0.25), shared_session.worker_nodes, strict=True):
        strategy = NodeAffinitySchedulingStrategy(str(node.node_id), soft=False)
        data = make.options(scheduling_strategy=strategy).remote()
        moray.wait([data], timeout=TIMEOUT_S, fetch_local=False)
        # Other resources each time: workers that such tasks have left elsewhere would be taken first.
        there = node_with.options(num_cpus=cpus).remote(data)
        assert moray.get(there, timeout=TIMEOUT_S) == (4 << 20, str(node.node_id))
