"""``moray://`` when the head's machine is started anew: its node, where drivers are found, has another port."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return"

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.cluster_utils import Cluster, ClusterNode
from moray.launch.config import ClusterConfig, NodeConfig
from moray.launch.local import start_node
from tests.support.link import Link

TIMEOUT_S = 60
SIZE = 3_000_000

pytestmark = pytest.mark.slow


@moray.remote(resources={"b": 1})
def fetch(refs: list[Any]) -> int:
    """What lies with the driver's node comes from there."""
    return sum(len(value) for value in moray.get(refs))


@moray.remote(num_cpus=0, resources={"b": 1})
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


def start_again(cluster: Cluster, storage: str, copy: Path) -> None:
    """The head's machine fails, and comes back with the head's storage and certificates, at the same address."""
    head, address = cluster.head_node, cluster.address
    assert head is not None
    shutil.copytree(Path(head.session_dir) / "tls", copy)
    cluster.remove_node(head, allow_graceful=False)
    config = ClusterConfig(
        head=address.rpartition("/")[2],
        node_ip="127.0.0.1",
        credentials=str(copy),
        node_id=os.urandom(28),
        start_head=True,
        storage=storage,
    )
    handle = start_node(NodeConfig(resources={"CPU": 10_000}, cluster=config), str(copy.parent))
    cluster.head_node = ClusterNode(handle, is_head=True)


@pytest.mark.timeout(180)
def test_the_heads_node_comes_back_with_another_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = f"sqlite:{tmp_path}/head.sqlite"
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "storage": storage}) as cluster:
        cluster.add_node(num_cpus=1, resources={"b": 4})
        monkeypatch.setenv("MORAY_TOKEN", cluster.token)
        with Link(cluster.address.rpartition("/")[2]) as link:
            moray.init(f"moray://{link.address}", log_to_driver=False)
            try:
                counter = Counter.remote()
                assert moray.get(counter.add.remote(), timeout=TIMEOUT_S) == 1
                assert moray.get(fetch.remote([moray.put(bytes(SIZE))]), timeout=TIMEOUT_S) == SIZE
                start_again(cluster, storage, tmp_path / "tls")
                assert moray.get(counter.add.remote(), timeout=TIMEOUT_S) == 2
                # For this, node b connects to the driver's node, which it finds behind the new port only.
                assert moray.get(fetch.remote([moray.put(bytes(SIZE))]), timeout=TIMEOUT_S) == SIZE
            finally:
                moray.shutdown()
