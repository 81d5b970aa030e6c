"""A cluster of three nodes on this machine, shared by a module's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moray.cluster_utils import Cluster


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[Cluster]:
    """The head's node with one CPU; one with two CPUs and resource "b"; one with two and resource "c". Connected."""
    del module_leaks
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "labels": {"zone": "a"}}) as cluster:
        cluster.add_node(num_cpus=2, resources={"b": 4}, labels={"zone": "b"})
        cluster.add_node(num_cpus=2, resources={"c": 4}, labels={"zone": "c"})
        cluster.connect()
        cluster.wait_for_nodes()
        yield cluster
