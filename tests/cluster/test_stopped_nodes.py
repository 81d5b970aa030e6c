"""Nodes whose daemon stands still: one that joins anew later, and one that is asked something and dies."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return"

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

import moray
from moray.cluster_utils import Cluster
from moray.runtime import state
from tests.support.procs import wait_until

pytestmark = pytest.mark.slow

TIMEOUT_S = 60


@pytest.fixture
def cluster(leaks: Any) -> Iterator[Cluster]:
    del leaks
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as made:
        made.add_node(num_cpus=1, resources={"b": 1})
        made.connect()
        made.wait_for_nodes()
        yield made


@moray.remote(num_cpus=0, resources={"b": 0.5})
class Owner:
    def keep(self) -> Any:
        return [moray.put("kept")]


@moray.remote(num_cpus=0)
class Middle:
    """Has something of an owner that the driver has never spoken with."""

    def __init__(self) -> None:
        self.owner = Owner.remote()
        self.kept = moray.get(self.owner.keep.remote())

    def ready(self) -> bool:
        return True

    def give(self) -> Any:
        return self.kept


def test_a_node_that_joins_anew_has_another_id(cluster: Cluster) -> None:
    node = cluster.worker_nodes[0]
    before = node.node_id
    os.kill(node.pid, signal.SIGSTOP)
    try:
        dead = {"NodeID": before, "Alive": False}
        wait_until(lambda: any(dead.items() <= each.items() for each in moray.nodes()), 30, "it is dead to the others")
    finally:
        os.kill(node.pid, signal.SIGCONT)
    wait_until(lambda: node.node_id != before, 30, "it is another node")
    cluster.wait_for_nodes()
    assert node.node_id in {each["NodeID"] for each in moray.nodes() if each["Alive"]}


def test_a_question_to_a_node_that_dies_is_forgotten(cluster: Cluster) -> None:
    node, runtime = cluster.worker_nodes[0], state.runtime
    assert runtime is not None
    middle = Middle.remote()
    assert moray.get(middle.ready.remote(), timeout=TIMEOUT_S)
    os.kill(node.pid, signal.SIGSTOP)
    try:
        [kept] = moray.get(middle.give.remote(), timeout=TIMEOUT_S)
        wait_until(lambda: bool(runtime.pending), 10, "the owner is looked for")
    finally:
        node.kill()
    wait_until(lambda: not runtime.pending, 30, "nobody waits for the answer")
    with pytest.raises(moray.exceptions.OwnerDiedError):
        moray.get(kept, timeout=TIMEOUT_S)
    cluster.worker_nodes.remove(node)
