"""The core tests on five hosts that share nothing but the network; the driver is outside, on a sixth.

What does not count nodes is the very test of `tests/cluster`, with another fixture.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import moray
from moray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.cluster.test_actors import (
    Counter,
    test_a_handle_passed_on_keeps_the_actor_alive,
    test_actors_call_each_other_over_nodes,
    test_an_actor_that_dies_is_started_again,
    test_async_actors_and_generators,
    test_calls_of_one_caller_keep_their_order,
    test_kill,
    test_names,
)
from tests.cluster.test_tasks import (
    test_a_chain_over_nodes,
    test_a_worker_that_dies_at_another_node,
    test_an_exception_says_where_it_was_raised,
    test_cancel,
    test_generators,
    test_many_small_tasks_at_another_node,
    test_nested_tasks_and_references_made_elsewhere,
    test_references_as_arguments_and_inside,
)
from tests.support.hosts import Hosts
from tests.support.procs import wait_until

#: They are collected here, too.
__all__ = [
    "test_a_chain_over_nodes",
    "test_a_handle_passed_on_keeps_the_actor_alive",
    "test_a_worker_that_dies_at_another_node",
    "test_actors_call_each_other_over_nodes",
    "test_an_actor_that_dies_is_started_again",
    "test_an_exception_says_where_it_was_raised",
    "test_async_actors_and_generators",
    "test_calls_of_one_caller_keep_their_order",
    "test_cancel",
    "test_generators",
    "test_kill",
    "test_many_small_tasks_at_another_node",
    "test_names",
    "test_nested_tasks_and_references_made_elsewhere",
    "test_references_as_arguments_and_inside",
]

TIMEOUT_S = 60


@moray.remote
def where() -> str:
    return str(moray.get_runtime_context().get_node_id())


@moray.remote
def where_slowly() -> str:
    time.sleep(0.3)
    return str(moray.get_runtime_context().get_node_id())


@moray.remote
def make(megabytes: int, fill: int) -> Any:
    return np.full(megabytes << 20, fill, np.uint8)


@moray.remote
def total(array: Any) -> int:
    return int(array[:: 1 << 20].sum())


def test_each_host_runs_its_own(shared_session: Hosts) -> None:
    ids = shared_session.node_ids()
    by_label = [where.options(label_selector={"zone": zone}).remote() for zone in "abcde"]
    assert moray.get(by_label, timeout=TIMEOUT_S) == ids
    by_resource = [where.options(resources={name: 1}).remote() for name in "bcde"]
    assert moray.get(by_resource, timeout=TIMEOUT_S) == ids[1:]
    by_id = [
        where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in ids
    ]
    assert moray.get(by_id, timeout=TIMEOUT_S) == ids


def test_spread(shared_session: Hosts) -> None:
    def spread() -> bool:
        """Workers of earlier tests may still hold a host's only CPU."""
        refs = [where_slowly.options(scheduling_strategy="SPREAD").remote() for _ in range(10)]
        return set(moray.get(refs, timeout=TIMEOUT_S)) == set(shared_session.node_ids())

    wait_until(spread, TIMEOUT_S, "tasks on all five hosts")


def test_the_hosts_are_what_the_cluster_says(shared_session: Hosts) -> None:
    alive = {node["NodeID"]: node["NodeManagerAddress"] for node in moray.nodes() if node["Alive"]}
    assert alive == {host.node().node_id: host.address for host in shared_session.hosts}
    assert moray.cluster_resources()["CPU"] == 7


@pytest.mark.usefixtures("shared_session")
def test_big_objects_go_from_host_to_host() -> None:
    made = [make.options(resources={name: 1}).remote(16, number + 1) for number, name in enumerate("bcde")]
    sums = [
        total.options(resources={name: 1}).remote(ref) for ref in made for name in "bcde"
    ]  # Each host has each of them.
    assert moray.get(sums, timeout=TIMEOUT_S) == [16 * (number + 1) for number in range(4) for _ in range(4)]
    mine = moray.put(np.ones(20 << 20, np.uint8))
    assert (
        moray.get([total.options(resources={name: 1}).remote(mine) for name in "bcde"], timeout=TIMEOUT_S) == [20] * 4
    )
    assert int(moray.get(made[2], timeout=TIMEOUT_S)[-1]) == 3


@pytest.mark.usefixtures("shared_session")
def test_an_actor_is_called_from_its_own_host() -> None:
    """By somebody who did not make it: the head says how others reach it, which is not how neighbours do."""
    one, two = (Counter.options(resources={"d": 0.1}, num_cpus=0).remote() for _ in range(2))
    assert moray.get(one.call.remote(two, 5), timeout=TIMEOUT_S) == 5
    assert moray.get(two.call.remote(one, 7), timeout=TIMEOUT_S) == 7


def test_a_driver_on_a_host(shared_session: Hosts) -> None:
    program = """
import moray
moray.init("auto")
@moray.remote(resources={"b": 1})
def f(x):
    return x + 1, moray.get_runtime_context().get_node_id()
@moray.remote(num_cpus=0)
class Kept:
    def get(self):
        return "kept"
Kept.options(name="from a host", lifetime="detached", namespace="n", resources={"e": 1}).remote()
print(*moray.get(f.remote(41)), len([n for n in moray.nodes() if n["Alive"]]))
"""
    out = shared_session.run_program(shared_session.hosts[3], program)
    assert out.split() == ["42", shared_session.node_ids()[1], "5"]
    kept = moray.get_actor("from a host", namespace="n")
    assert moray.get(kept.get.remote(), timeout=TIMEOUT_S) == "kept"
    moray.kill(kept)


def test_a_driver_elsewhere_needs_no_node_there(shared_session: Hosts) -> None:
    """It says the head's address, from a machine without a node: like this test, but with a program of its own."""
    host = shared_session.hosts[4]
    program = f"""
import moray
moray.init("{shared_session.address}")
print(moray.get(moray.remote(lambda: 6 * 7).options(resources={{"c": 1}}).remote()))
"""
    assert shared_session.run_program(host, program).strip() == "42"


@pytest.mark.usefixtures("shared_session")
def test_calls_to_all_hosts_at_once() -> None:
    @moray.remote(num_cpus=0)
    class Echo:
        def echo(self, value: Any) -> Any:
            return value

    actors = [Echo.options(resources={name: 0.1}).remote() for name in "bcde" for _ in range(3)]
    began = time.monotonic()
    refs = [actor.echo.remote((number, number)) for number in range(100) for actor in actors]
    assert moray.get(refs, timeout=TIMEOUT_S) == [(number, number) for number in range(100) for _ in actors]
    print(f"{len(refs) / (time.monotonic() - began):.0f} calls/s to {len(actors)} actors on four hosts")
