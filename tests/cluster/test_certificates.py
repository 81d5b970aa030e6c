"""Certificates that last seconds: everything goes on, with new ones; and joining with a clock that is wrong."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return"

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import moray
from moray.cluster_utils import Cluster, ClusterNode
from moray.launch.config import SESSION_VARIABLE
from moray.platform.process_table import tagged
from moray.protocol.tcp import connect_tcp, parse_address
from moray.security.identity import Identity, client_context, validity
from tests.support.packages import install

pytestmark = pytest.mark.slow

TIMEOUT_S = 60
#: A node has this long to start, which takes a while beside other tests.
LASTS_S = 30.0


class Aging(NamedTuple):
    """A cluster, and the certificates that its nodes had at first."""

    cluster: Cluster
    first: dict[ClusterNode, Identity]


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[Aging]:
    """Three nodes, whose certificates grow old while the tests of this module go on. The token is in the environment of
    who starts them and connects."""
    del module_leaks
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("MORAY_CERTIFICATE_LIFETIME_S", f"{LASTS_S}")
        environ.setenv("MORAY_AUTHORITY_LIFETIME_S", f"{2 * 86400}")
        with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as made:
            environ.setenv("MORAY_TOKEN", made.token)
            made.add_node(num_cpus=1, resources={"b": 4})
            made.add_node(num_cpus=1, resources={"c": 4})
            first = {node: certificate(node) for node in made.list_of_nodes}
            made.connect()
            made.wait_for_nodes()
            yield Aging(made, first)


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


def test_only_who_has_the_token_has_it(shared_session: Aging) -> None:
    """Nodes and workers need it no more, and tasks may say what their environment is."""

    @moray.remote(num_cpus=0)
    def environment() -> tuple[str | None, bytes]:
        return os.environ.get("MORAY_TOKEN"), Path("/proc/self/environ").read_bytes()

    secret = shared_session.cluster.token.split(".")[2].encode()
    sees = [environment.options(resources=resources).remote() for resources in ({}, {"b": 1})]
    for variable, started_with in moray.get(sees, timeout=TIMEOUT_S):
        assert variable is None
        assert secret not in started_with
    for node in shared_session.cluster.list_of_nodes:
        for process in tagged(SESSION_VARIABLE, Path(node.session_dir).name):
            if process == os.getpid():
                continue
            for said in ("environ", "cmdline"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # It may have just ended.
                    assert secret not in Path(f"/proc/{process}/{said}").read_bytes()


def test_the_authoritys_end_is_told(shared_session: Aging) -> None:
    cluster = shared_session.cluster
    from moray.runtime.cluster_report import cluster_report

    ends = cluster_report()["authority_ends"]
    assert 86400 < ends - time.time() < 2 * 86400 + 60
    assert cluster.head_node is not None
    assert "the cluster's authority ends in 2.0 days" in log_of(cluster.head_node)


def test_nodes_join_while_the_head_is_started_anew(shared_session: Aging) -> None:
    cluster = shared_session.cluster
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
def test_joining_with_a_wrong_clock(shared_session: Aging, faketime: str, shift: str, status: int, said: str) -> None:
    cluster = shared_session.cluster
    with tempfile.TemporaryDirectory(prefix="moray-clock-") as sessions:
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


# --- renewal: the last tests, since it takes its time -----------------------------------------------------------


def shown_at(address: str, identity: Identity) -> bytes:
    """The certificate that is shown to a new connection, as DER."""
    with (
        connect_tcp(*parse_address(address)) as sock,
        client_context(identity).wrap_socket(sock) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


def old_connections_go_on(aging: Aging, until: Callable[[], bool]) -> tuple[list[Any], list[str]]:
    """Actors of two nodes, and where they are; they are called all the time."""
    speakers = [Speaker.options(resources={name: 1}).remote() for name in "bc"]
    homes = moray.get([speaker.where.remote() for speaker in speakers], timeout=TIMEOUT_S)
    deadline = time.monotonic() + 2 * LASTS_S
    while not until():
        assert time.monotonic() < deadline
        assert moray.get([speaker.where.remote() for speaker in speakers], timeout=TIMEOUT_S) == homes
        time.sleep(0.1)
    for node, before in aging.first.items():
        now = certificate(node)
        assert now.certificate != before.certificate
        assert (now.key, now.authority) == (before.key, before.authority)
        assert validity(now.certificate)[1] > time.time()
        while "was renewed: it is good until" not in log_of(node):  # It says so when the file is there.
            assert time.monotonic() < deadline, log_of(node)
            time.sleep(0.05)
    return speakers, homes


def new_connections_are_made(aging: Aging, speakers: list[Any], homes: list[str]) -> None:
    """By old processes and by new ones, of both nodes and the head."""
    cluster, (old_b, old_c) = aging.cluster, speakers
    assert moray.get(old_b.ask.remote(old_c), timeout=TIMEOUT_S) == homes[1]
    new_c = Speaker.options(resources={"c": 1}).remote()
    assert moray.get(old_b.ask.remote(new_c), timeout=TIMEOUT_S) == homes[1]
    assert len(moray.get(old_b.make.remote(1 << 20), timeout=TIMEOUT_S)) == 1 << 20
    assert cluster.head_node is not None
    cluster.head_node.kill_gcs_server()
    added = cluster.add_node(num_cpus=0, resources={"d": 1})
    newest = Speaker.options(resources={"d": 1}).remote()
    assert moray.get(new_c.ask.remote(newest), timeout=TIMEOUT_S) == added.node_id
    cluster.remove_node(added)


def test_certificates_are_renewed_while_all_goes_on(shared_session: Aging) -> None:
    """And the new ones are shown, by nodes and by the head."""

    def renewed() -> bool:
        return all(certificate(node).certificate != first.certificate for node, first in shared_session.first.items())

    speakers, homes = old_connections_go_on(shared_session, renewed)
    ports = {node["NodeID"]: f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in moray.nodes()}
    head = shared_session.cluster.head_node
    assert head is not None
    for node in shared_session.first:
        now = certificate(node)
        der = ssl.PEM_cert_to_DER_cert(now.certificate.decode())
        assert shown_at(ports[node.node_id], now) == der
        if node is head:
            assert shown_at(shared_session.cluster.address, now) == der
    new_connections_are_made(shared_session, speakers, homes)


@pytest.mark.long
def test_the_first_certificates_end_while_all_goes_on(shared_session: Aging) -> None:
    last = max(validity(each.certificate)[1] for each in shared_session.first.values())
    speakers, homes = old_connections_go_on(shared_session, lambda: time.time() > last + 1)
    new_connections_are_made(shared_session, speakers, homes)
