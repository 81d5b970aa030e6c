"""What needs clusters of its own: nodes that die, stores that are full."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moray
from moray.cluster_utils import Cluster
from moray.util import placement_group
from moray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

TIMEOUT_S = 60


@moray.remote(num_cpus=1)
def where() -> str:
    return str(moray.get_runtime_context().get_node_id())


@moray.remote
def total(values: Any) -> float:
    return float(values.sum())


def bundle_nodes(group: Any) -> list[str]:
    """Where tasks in the two bundles of a group run."""
    strategies = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index) for index in range(2)]
    refs = [where.options(scheduling_strategy=strategy).remote() for strategy in strategies]
    nodes: list[str] = moray.get(refs, timeout=TIMEOUT_S)
    return nodes


def test_a_temporary_directory_may_have_a_path_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 200)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        there = cluster.add_node(num_cpus=1, resources={"there": 1})
        cluster.connect()
        cluster.wait_for_nodes()
        assert moray.get(where.options(resources={"there": 1}).remote(), timeout=TIMEOUT_S) == there.node_id


def test_bundles_of_a_dead_node_are_placed_anew() -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        lost = cluster.add_node(num_cpus=1)
        cluster.connect()
        cluster.wait_for_nodes()
        group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
        moray.get(group.ready(), timeout=TIMEOUT_S)
        before = bundle_nodes(group)
        cluster.remove_node(lost, allow_graceful=False)
        fresh = cluster.add_node(num_cpus=1)
        after = bundle_nodes(group)
        assert set(after) == (set(before) - {lost.node_id}) | {fresh.node_id}


def test_copies_make_room() -> None:
    """Sixteen times what the other node's store holds passes through it."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 256 << 20}) as cluster:
        cluster.add_node(num_cpus=1, resources={"small": 1}, object_store_memory=32 << 20)
        cluster.connect()
        cluster.wait_for_nodes()
        there = total.options(num_cpus=0, resources={"small": 0.1})
        size = 1_000_000
        refs = [moray.put(np.full(size, float(number))) for number in range(16)]
        for _ in range(4):
            assert moray.get([there.remote(ref) for ref in refs], timeout=TIMEOUT_S) == [
                float(number * size) for number in range(16)
            ]
