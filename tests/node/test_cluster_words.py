"""What one node says to another crosses ends, deaths and what must be fetched first: nothing is lost or kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from moray.cluster_utils import Cluster
from moray.ids import new_process
from moray.platform import process_control
from moray.protocol import messages as m
from tests.node.false_node import FalseNode
from tests.node.raw_bytes import UNREADABLE

pytestmark = pytest.mark.slow

CPU = {"CPU": m.RESOURCE_UNIT}


@pytest.fixture
def false_node(tmp_path: Path) -> Iterator[FalseNode]:
    """A real node with the head and two CPUs, and a false one."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as cluster:
        made = FalseNode(cluster, tmp_path)
        try:
            yield made
        finally:
            made.close()


def both_cpus_are_free(node: FalseNode, job: int) -> None:
    """Another owner gets them."""
    other = node.process()
    node.say(other, job, m.RequestLeases(1, 2, 0, CPU))
    for _ in range(2):
        node.expect(other, m.LeaseGranted)


def test_an_owner_leaves_while_the_settings_of_its_job_are_fetched(false_node: FalseNode) -> None:
    job, _driver = false_node.job()
    owner = false_node.process()
    false_node.say(owner, job, m.RequestLeases(1, 2, 0, CPU))
    false_node.leave(owner)
    both_cpus_are_free(false_node, job)
    assert not [entry for entry in false_node.inbox if entry[0] == owner]


def test_a_wish_is_withdrawn_while_the_settings_of_its_job_are_fetched(false_node: FalseNode) -> None:
    job, driver = false_node.job()
    false_node.say(driver, job, m.RequestLeases(1, 2, 0, CPU))
    false_node.say(driver, job, m.RequestLeases(1, 0, 0, CPU))
    both_cpus_are_free(false_node, job)
    assert not [entry for entry in false_node.inbox if entry[0] == driver]


def test_a_job_ends_while_its_settings_are_fetched(false_node: FalseNode) -> None:
    job, driver = false_node.job()
    false_node.say(driver, job, m.RequestLeases(1, 2, 0, CPU))
    false_node.head.report(m.JobEnded(job, driver, "the test ends it"))
    false_node.until(lambda: false_node.ended == [job], "the job's end is told")
    false_node.say(false_node.process(), job, m.RequestLeases(1, 2, 0, CPU))  # Of a worker that does not know yet.
    next_job, _driver = false_node.job()
    both_cpus_are_free(false_node, next_job)


def test_an_owner_leaves_with_leases(false_node: FalseNode) -> None:
    job, driver = false_node.job()
    false_node.say(driver, job, m.RequestLeases(1, 2, 0, CPU))
    leases = [false_node.expect(driver, m.LeaseGranted).lease for _ in range(2)]
    false_node.leave(driver)
    for lease in leases:  # As its node does with grants that cross the end.
        false_node.say(driver, job, m.ReturnLease(lease))
    both_cpus_are_free(false_node, job)


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_bytes_that_are_no_message_are_relayed(false_node: FalseNode, body: bytes) -> None:
    job, driver = false_node.job()
    false_node.say_bytes(driver, job, body)
    false_node.links.get(false_node.real).send(m.ForClient([], body))
    both_cpus_are_free(false_node, job)


def test_a_process_of_a_node_that_is_not_known_is_located(false_node: FalseNode) -> None:
    """The asker hears that it is dead when the head has been heard of; a strange tag is no reason to wait for ever."""
    job, driver = false_node.job()
    stranger = new_process(os.urandom(4))
    false_node.say(driver, job, m.Locate(7, stranger))
    answer = false_node.expect(driver, m.Located)
    assert (answer.request, answer.address) == (7, "")
    assert "is dead, or left the cluster" in answer.reason


_CONNECTS = """
import os, sys
from moray.protocol import messages as m
from moray.protocol.handshake import connect, send_blocking
from tests.node.client import job_config
sock = connect(sys.argv[1], 10.0)
send_blocking(sock, m.Hello(m.PROTOCOL_VERSION, "driver", os.urandom(12), os.getpid(), "", job_config()))
"""


def test_a_driver_goes_while_its_number_is_fetched(tmp_path: Path) -> None:
    with Cluster(initialize_head=True) as cluster:
        node = cluster.head_node
        assert node is not None
        false_node = FalseNode(cluster, tmp_path)
        try:
            heads = [
                child for child in psutil.Process(node.pid).children() if "moray-head" in " ".join(child.cmdline())
            ]
            assert len(heads) == 1
            process_control.kill(heads[0].pid, signal.SIGSTOP)
            try:
                subprocess.run([sys.executable, "-c", _CONNECTS, node.raylet_socket_name], check=True, timeout=60)
            finally:
                process_control.kill(heads[0].pid, signal.SIGCONT)
            false_node.until(lambda: false_node.ended, "the end of the job that had no driver is told")
        finally:
            false_node.close()
