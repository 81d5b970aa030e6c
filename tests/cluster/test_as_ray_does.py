"""Small things of clusters that programs written for Ray rely on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

import moray
from moray.cluster_utils import Cluster, ClusterNode
from moray.exceptions import ActorDiedError
from moray.runtime.cluster_report import drain_node
from tests.support.procs import wait_until

TIMEOUT_S = 60


@moray.remote(num_cpus=0)
class Gate:
    """Holds tasks until so many have come."""

    def __init__(self) -> None:
        self.come = 0

    def pass_through(self) -> None:
        self.come += 1

    def count(self) -> int:
        return self.come


@pytest.mark.parametrize("number", [2, 4])
def test_nodes_are_packed_to_the_half(number: int) -> None:
    """Also while the first workers are starting."""

    @moray.remote
    def where(gate: Any) -> str:
        gate.pass_through.remote()
        wait_until(lambda: moray.get(gate.count.remote()) == number, TIMEOUT_S, "the others")
        return str(moray.get_runtime_context().get_node_id())

    with Cluster(initialize_head=True, head_node_args={"num_cpus": 4}) as cluster:
        cluster.add_node(num_cpus=4)
        cluster.connect()
        cluster.wait_for_nodes()
        assert cluster.head_node is not None
        gate = Gate.remote()
        # Memory is not lent to others while a task waits.
        needs = where.options(memory=1 << 20)
        found = moray.get([needs.remote(gate) for _ in range(number)], timeout=TIMEOUT_S)
        assert found.count(cluster.head_node.node_id) == 2


def test_gpus_are_called_what_their_node_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a driver has in its environment, or a task is given, names no GPUs of other indices."""

    @moray.remote(num_gpus=1)
    class OnGpu:
        def look(self) -> tuple[list[Any], str]:
            return moray.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5")
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 2}) as cluster:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        cluster.connect()
        given = {"env_vars": {"CUDA_VISIBLE_DEVICES": "0"}}
        actors = [OnGpu.remote(), OnGpu.options(runtime_env=given).remote()]
        found = moray.get([actor.look.remote() for actor in actors], timeout=TIMEOUT_S)
        assert sorted(found) == [([5], "5"), ([7], "7")]


def let_be(_cluster: Cluster, _node: ClusterNode) -> None: ...


def stop(cluster: Cluster, node: ClusterNode) -> None:
    cluster.remove_node(node)


def kill(cluster: Cluster, node: ClusterNode) -> None:
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.parametrize(("seconds", "end"), [(0.5, let_be), (600, stop), (600, kill)])
def test_an_actor_whose_node_was_drained_was_preempted(
    seconds: float, end: Callable[[Cluster, ClusterNode], None]
) -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        node = cluster.add_node(num_cpus=1, resources={"there": 1})
        cluster.connect()
        cluster.wait_for_nodes()
        gate = Gate.options(resources={"there": 1}).remote()
        moray.get(gate.count.remote(), timeout=TIMEOUT_S)
        assert not drain_node(node.node_id, seconds, "spot")
        end(cluster, node)
        with pytest.raises(ActorDiedError, match="was drained: spot") as caught:
            wait_until(lambda: moray.get(gate.count.remote(), timeout=TIMEOUT_S) is None, TIMEOUT_S, "its death")
        assert caught.value.preempted


def test_an_actor_whose_node_died_was_not_preempted() -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        node = cluster.add_node(num_cpus=1, resources={"there": 1})
        cluster.connect()
        cluster.wait_for_nodes()
        gate = Gate.options(resources={"there": 1}).remote()
        moray.get(gate.count.remote(), timeout=TIMEOUT_S)
        kill(cluster, node)
        with pytest.raises(ActorDiedError) as caught:
            moray.get(gate.count.remote(), timeout=TIMEOUT_S)
        assert not caught.value.preempted


def test_a_nodes_address() -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "node_ip_address": "127.0.0.2"}) as cluster:
        node = cluster.add_node(num_cpus=1, resources={"there": 1}, node_ip_address="127.0.0.3", metrics_agent_port=0)
        assert cluster.address.startswith("127.0.0.2:")
        assert node.node_ip_address == "127.0.0.3"
        moray.init(cluster.address)
        cluster.wait_for_nodes()
        try:
            assert {each["NodeManagerAddress"] for each in moray.nodes()} == {"127.0.0.2", "127.0.0.3"}
            gate = Gate.options(resources={"there": 1}).remote()
            assert moray.get(gate.count.remote(), timeout=TIMEOUT_S) == 0
        finally:
            moray.shutdown()
