"""Certificates that last seconds: everything goes on, with new ones; and joining with a clock that is wrong."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return"

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.cluster_utils import Cluster, ClusterNode
from moray.security.identity import Identity, validity
from tests.support.packages import install

pytestmark = pytest.mark.slow

TIMEOUT_S = 60
#: A node has this long to start, which takes a while beside other tests.
LASTS_S = 30.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, leaks: Any) -> Iterator[Cluster]:
    del leaks
    monkeypatch.setenv("MORAY_CERTIFICATE_LIFETIME_S", f"{LASTS_S}")
    monkeypatch.setenv("MORAY_AUTHORITY_LIFETIME_S", f"{2 * 86400}")
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as made:
        made.add_node(num_cpus=1, resources={"b": 4})
        made.add_node(num_cpus=1, resources={"c": 4})
        made.connect()
        made.wait_for_nodes()
        yield made


def certificate(node: ClusterNode) -> Identity:
    return Identity.load(Path(node.session_dir) / "tls")


@moray.remote(num_cpus=0)
class Speaker:
    def where(self) -> str:
        return str(moray.get_runtime_context().get_node_id())

    def ask(self, other: Any) -> str:
        return str(moray.get(other.where.remote()))

    def make(self, size: int) -> bytes:
        return bytes(size)


def log_of(node: ClusterNode) -> str:
    return "".join(path.read_text() for path in sorted(Path(node.session_dir, "logs").glob("*node*.log")))


def test_certificates_are_renewed_while_all_goes_on(cluster: Cluster) -> None:
    nodes = cluster.list_of_nodes
    first = [certificate(node) for node in nodes]
    old_b, old_c = (Speaker.options(resources={name: 1}).remote() for name in "bc")
    homes = moray.get([old_b.where.remote(), old_c.where.remote()], timeout=TIMEOUT_S)
    last = max(validity(each.certificate)[1] for each in first)
    while time.time() < last + 1:
        # What stands goes on.
        assert moray.get([old_b.where.remote(), old_c.where.remote()], timeout=TIMEOUT_S) == homes
        time.sleep(0.1)
    for node, before in zip(nodes, first, strict=True):
        now = certificate(node)
        assert now.certificate != before.certificate
        assert (now.key, now.authority) == (before.key, before.authority)
        assert validity(now.certificate)[1] > time.time()
        assert "was renewed: it is good until" in log_of(node)
    # New connections, of old processes and of new ones, of both nodes and the head.
    assert moray.get(old_b.ask.remote(old_c), timeout=TIMEOUT_S) == homes[1]
    new_c = Speaker.options(resources={"c": 1}).remote()
    assert moray.get(old_b.ask.remote(new_c), timeout=TIMEOUT_S) == homes[1]
    assert len(moray.get(old_b.make.remote(1 << 20), timeout=TIMEOUT_S)) == 1 << 20
    assert cluster.head_node is not None
    cluster.head_node.kill_gcs_server()
    added = cluster.add_node(num_cpus=0, resources={"d": 1})
    newest = Speaker.options(resources={"d": 1}).remote()
    assert moray.get(new_c.ask.remote(newest), timeout=TIMEOUT_S) == added.node_id


def test_the_authoritys_end_is_told(cluster: Cluster) -> None:
    from moray.runtime.cluster_report import cluster_report

    ends = cluster_report()["authority_ends"]
    assert 86400 < ends - time.time() < 2 * 86400 + 60
    assert cluster.head_node is not None
    assert "the cluster's authority ends in 2.0 days" in log_of(cluster.head_node)


def test_nodes_join_while_the_head_is_started_anew(cluster: Cluster) -> None:
    assert cluster.head_node is not None
    for _ in range(3):
        cluster.head_node.kill_gcs_server()
        added = cluster.add_node(num_cpus=0, resources={"d": 1})
        cluster.remove_node(added)


# --- clocks -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faketime() -> str:
    """A library that shifts the clock of a process."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        install(["libfaketime"])
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return str(found[0])


@pytest.mark.parametrize(
    ("shift", "status", "said"),
    [
        ("-3d", 1, "this machine's clock is 3.0 days behind the head's"),
        ("+60d", 1, "this machine's clock is 60.0 days ahead of the head's"),
        ("-10m", 0, "this machine's clock is 10.0 minutes behind the head's"),
        ("+0", 0, ""),
    ],
)
def test_joining_with_a_wrong_clock(faketime: str, shift: str, status: int, said: str) -> None:
    with (
        Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster,
        tempfile.TemporaryDirectory(prefix="moray-clock-") as sessions,
    ):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MORAY_")}
        environ |= {"TMPDIR": sessions, "HOME": sessions, "MORAY_TOKEN": cluster.token}
        environ["MORAY_TEST_RUN"] = os.environ.get("MORAY_TEST_RUN", "")
        command = [sys.executable, "-m", "moray", "start", f"--address={cluster.address}", "--num-cpus=0"]
        shifted = environ | {"LD_PRELOAD": faketime, "FAKETIME": shift, "DONT_FAKE_MONOTONIC": "1"}
        done = subprocess.run(command, env=shifted, capture_output=True, text=True, timeout=60, check=False)
        try:
            assert done.returncode == status, done.stderr
            assert said in done.stderr
            assert len(done.stderr.splitlines()) == bool(said), done.stderr
        finally:
            command = [sys.executable, "-m", "moray", "stop", "--force"]
            subprocess.run(command, env=environ, capture_output=True, timeout=60, check=True)


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from moray.launch.joining import join_patiently
    from moray.security import token

    monkeypatch.setenv("MORAY_JOIN_WAIT_S", "1")
    told: list[str] = []
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError, match="it was tried for 1 s"):
        join_patiently("127.0.0.1", 1, token.make(b"key"), "node", told.append)
    assert 0.5 < time.monotonic() - began < 10
    assert len(told) == 1
    assert "trying for up to 1 s" in told[0]
