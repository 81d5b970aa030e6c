"""Placement groups over nodes."""

from __future__ import annotations

from typing import Any

import pytest

import moray
from moray.cluster_utils import Cluster
from moray.util import placement_group, placement_group_table, remove_placement_group
from moray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

TIMEOUT_S = 60


@moray.remote(num_cpus=1)
def where() -> str:
    return str(moray.get_runtime_context().get_node_id())


def inside(group: Any, index: int = -1) -> Any:
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)


def bundle_nodes(group: Any, count: int) -> list[str]:
    refs = [where.options(scheduling_strategy=inside(group, index)).remote() for index in range(count)]
    nodes: list[str] = moray.get(refs, timeout=TIMEOUT_S)
    return nodes


@pytest.mark.parametrize(
    ("strategy", "bundles", "nodes"), [("STRICT_SPREAD", 3, {3}), ("SPREAD", 3, {3}), ("STRICT_PACK", 2, {1})]
)
@pytest.mark.usefixtures("shared_session")
def test_strategies(strategy: str, bundles: int, nodes: set[int]) -> None:
    group = placement_group([{"CPU": 1}] * bundles, strategy=strategy)
    assert moray.get(group.ready(), timeout=TIMEOUT_S) is not None
    assert len(set(bundle_nodes(group, bundles))) in nodes
    remove_placement_group(group)


def test_labels_of_bundles(shared_session: Cluster) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 1}], bundle_label_selector=[{"zone": "b"}, {"zone": "c"}])
    assert group.wait(TIMEOUT_S)
    assert bundle_nodes(group, 2) == [node.node_id for node in shared_session.worker_nodes]
    remove_placement_group(group)


@pytest.mark.usefixtures("shared_session")
def test_actors_in_a_group_end_with_it() -> None:
    @moray.remote(num_cpus=1)
    class Member:
        def where(self) -> str:
            return str(moray.get_runtime_context().get_node_id())

    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
    members = [Member.options(scheduling_strategy=inside(group, index)).remote() for index in range(3)]
    assert len(set(moray.get([member.where.remote() for member in members], timeout=TIMEOUT_S))) == 3
    remove_placement_group(group)
    for member in members:
        # It ends within a moment: a call may still be answered.
        with pytest.raises(moray.exceptions.ActorDiedError, match="was removed"):
            for _ in range(10_000):
                moray.get(member.where.remote(), timeout=TIMEOUT_S)


@pytest.mark.usefixtures("shared_session")
def test_infeasible_waits_keep_their_limit() -> None:
    group = placement_group([{"CPU": 50}])
    assert not group.wait(0.5)
    assert placement_group_table(group)["state"] != "CREATED"
    remove_placement_group(group)


@pytest.mark.usefixtures("shared_session")
def test_a_hundred_groups() -> None:
    groups = [placement_group([{"CPU": 0.01}]) for _ in range(100)]
    moray.get([group.ready() for group in groups], timeout=TIMEOUT_S)
    for group in groups:
        remove_placement_group(group)
