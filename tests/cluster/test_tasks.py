"""Tasks and references across nodes."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

import moray
from moray.cluster_utils import Cluster

TIMEOUT_S = 60


def where() -> str:
    """The node that this runs on."""
    return str(moray.get_runtime_context().get_node_id())


@moray.remote
def node_of(_value: Any = None) -> str:
    return where()


@moray.remote
def double(value: int) -> int:
    return 2 * value


def test_resources_decide_where_a_task_runs(shared_session: Cluster) -> None:
    b, c = shared_session.worker_nodes
    at_b = node_of.options(resources={"b": 1}).remote()
    at_c = node_of.options(resources={"c": 1}).remote()
    assert moray.get([at_b, at_c], timeout=TIMEOUT_S) == [b.node_id, c.node_id]


def test_tasks_spread_when_one_node_is_full(shared_session: Cluster) -> None:
    @moray.remote
    def slow() -> str:
        time.sleep(0.5)
        return where()

    places = set(moray.get([slow.remote() for _ in range(10)], timeout=TIMEOUT_S))
    assert places == {node.node_id for node in shared_session.list_all_nodes()}


def test_spread_strategy(shared_session: Cluster) -> None:
    @moray.remote(scheduling_strategy="SPREAD")
    def slow() -> str:
        time.sleep(0.3)
        return where()

    assert len(set(moray.get([slow.remote() for _ in range(5)], timeout=TIMEOUT_S))) == 3


def test_node_affinity(shared_session: Cluster) -> None:
    from moray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in shared_session.list_all_nodes():
        strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        assert moray.get(node_of.options(scheduling_strategy=strategy).remote(), timeout=TIMEOUT_S) == node.node_id


def test_label_selector(shared_session: Cluster) -> None:
    c = shared_session.worker_nodes[1]
    assert moray.get(node_of.options(label_selector={"zone": "c"}).remote(), timeout=TIMEOUT_S) == c.node_id


@pytest.mark.usefixtures("shared_session")
def test_many_small_tasks_at_another_node() -> None:
    refs = [double.options(resources={"b": 0.001}).remote(number) for number in range(3_000)]
    assert moray.get(refs, timeout=TIMEOUT_S) == [2 * number for number in range(3_000)]


@pytest.mark.usefixtures("shared_session")
def test_references_as_arguments_and_inside() -> None:
    ref = moray.put(21)
    assert moray.get(double.options(resources={"c": 1}).remote(ref), timeout=TIMEOUT_S) == 42

    @moray.remote(resources={"c": 1})
    def inside(values: list[Any]) -> int:
        return int(moray.get(values[0])) + 1

    assert moray.get(inside.remote([ref]), timeout=TIMEOUT_S) == 22


@pytest.mark.usefixtures("shared_session")
def test_a_chain_over_nodes() -> None:
    ref = moray.put(1)
    for step in range(12):
        ref = double.options(resources={"bc"[step % 2]: 1}).remote(ref)
    assert moray.get(ref, timeout=TIMEOUT_S) == 2**12


@pytest.mark.usefixtures("shared_session")
def test_nested_tasks_and_references_made_elsewhere() -> None:
    @moray.remote(resources={"b": 1})
    def outer() -> Any:
        inner = double.options(resources={"c": 1}).remote(5)
        return [inner, moray.put("made at b")]

    inner, made = moray.get(outer.remote(), timeout=TIMEOUT_S)
    assert moray.get(inner, timeout=TIMEOUT_S) == 10
    assert moray.get(made, timeout=TIMEOUT_S) == "made at b"


@pytest.mark.usefixtures("shared_session")
def test_generators() -> None:
    @moray.remote(resources={"c": 1})
    def count(number: int) -> Any:
        yield from range(number)

    assert [moray.get(ref) for ref in count.remote(50)] == list(range(50))


@pytest.mark.usefixtures("shared_session")
def test_an_exception_says_where_it_was_raised() -> None:
    @moray.remote(resources={"b": 1})
    def fails() -> None:
        raise KeyError("far away")

    with pytest.raises(KeyError, match="far away"):
        moray.get(fails.remote(), timeout=TIMEOUT_S)


@pytest.mark.usefixtures("shared_session")
def test_a_worker_that_dies_at_another_node() -> None:
    @moray.remote(resources={"b": 1}, max_retries=0)
    def dies() -> None:
        os._exit(7)

    with pytest.raises(moray.exceptions.WorkerCrashedError, match="exited with code 7"):
        moray.get(dies.remote(), timeout=TIMEOUT_S)


@pytest.mark.usefixtures("shared_session")
def test_a_crashed_task_is_tried_again(tmp_path: Any) -> None:
    @moray.remote(resources={"b": 1}, max_retries=2)
    def dies_once(path: str) -> str:
        if not os.path.exists(path):
            with open(path, "w"):
                pass
            os._exit(1)
        return "the second time"

    assert moray.get(dies_once.remote(str(tmp_path / "mark")), timeout=TIMEOUT_S) == "the second time"


@pytest.mark.usefixtures("shared_session")
def test_cancel() -> None:
    @moray.remote(resources={"b": 1})
    def sleeps() -> None:
        time.sleep(100)

    ref = sleeps.remote()
    with pytest.raises(moray.exceptions.GetTimeoutError):
        moray.get(ref, timeout=1)
    moray.cancel(ref)
    with pytest.raises(moray.exceptions.TaskCancelledError):
        moray.get(ref, timeout=TIMEOUT_S)


@pytest.mark.usefixtures("shared_session")
def test_infeasible_says_what_no_node_has() -> None:
    ref = double.options(resources={"nowhere": 1}).remote(1)
    with pytest.raises(moray.exceptions.GetTimeoutError, match="no node of 3 has a resource named 'nowhere'"):
        moray.get(ref, timeout=1)
    moray.cancel(ref)


@pytest.mark.usefixtures("shared_session")
def test_resources_of_all_nodes_are_summed_up() -> None:
    total = moray.cluster_resources()
    assert total["CPU"] == 5
    assert total["b"] == total["c"] == 4
    assert len(moray.nodes()) == 3
