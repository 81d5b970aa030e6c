"""The head killed, stopped, or gone with its host, while work goes on."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import moray
from moray.launch.cluster import find_nodes
from tests.support.hosts import Host, Hosts, hosts
from tests.support.procs import wait_until

TIMEOUT_S = 60
STORE = "--object-store-memory=300000000"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[Hosts]:
    """Three hosts; connected."""
    del module_leaks
    with (
        hosts(
            ("--num-cpus=1", STORE),
            ("--num-cpus=2", STORE, '--resources={"b": 4}'),
            ("--num-cpus=2", STORE, '--resources={"c": 4}'),
        ) as cluster,
        cluster.connected(),
    ):
        yield cluster


@moray.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


@moray.remote
def sleeps(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@moray.remote
def double(value: int) -> int:
    return 2 * value


def head_of(host: Host) -> int:
    """The process of the head on this host."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() for pid in host.pids()}
    return next(pid for pid, name in names.items() if name == "moray:head")


def names() -> set[str]:
    return {str(each["name"]) for each in moray.util.list_named_actors(all_namespaces=True)}


def test_killed(shared_session: Hosts) -> None:
    named = Counter.options(name="named", resources={"b": 1}).remote()
    detached = Counter.options(name="detached", lifetime="detached", resources={"c": 1}).remote()
    assert moray.get([named.add.remote(), detached.add.remote()], timeout=TIMEOUT_S) == [1, 1]
    long = [sleeps.options(resources={name: 1}).remote(3) for name in "bc"]
    for time_of_kill in range(3):
        before = head_of(shared_session.hosts[0])
        os.kill(before, signal.SIGKILL)
        calls = [named.add.remote() for _ in range(200)]
        assert moray.get(calls, timeout=1.5) == [200 * time_of_kill + 2 + number for number in range(200)]
        refs = [double.options(resources={name: 0.1}).remote(number) for number in range(50) for name in "bc"]
        assert moray.get(refs, timeout=TIMEOUT_S) == [2 * number for number in range(50) for _ in "bc"]
        again = moray.get_actor("detached")
        assert moray.get(again.add.remote(), timeout=TIMEOUT_S) == time_of_kill + 2
        assert head_of(shared_session.hosts[0]) != before
    assert moray.get(long, timeout=TIMEOUT_S) == ["slept"] * 2
    assert {"named", "detached"} <= names()
    new = Counter.options(resources={"c": 1}).remote()
    assert moray.get(new.add.remote(), timeout=TIMEOUT_S) == 1
    moray.kill(detached)
    assert len([node for node in moray.nodes() if node["Alive"]]) == 3


@pytest.mark.parametrize("seconds", [3.0, pytest.param(10.0, marks=pytest.mark.long)])
def test_stopped(shared_session: Hosts, seconds: float) -> None:
    actor = Counter.options(resources={"b": 1}).remote()
    assert moray.get(actor.add.remote(), timeout=TIMEOUT_S) == 1
    ids = shared_session.node_ids()
    pid = head_of(shared_session.hosts[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        until = time.monotonic() + seconds
        assert moray.get([double.options(resources={"b": 0.1}).remote(number) for number in range(20)], timeout=5)
        assert moray.get(actor.add.remote(), timeout=5) == 2
        if seconds > 6:
            wait_until(lambda: "has not been heard of for 5 s" in shared_session.hosts[1].log(), 8, "the lease ends")
            late = actor.add.remote()
            assert moray.wait([late], timeout=0.5)[0] == [], "nothing starts without a lease (FENCE)"
        wait_until(lambda: time.monotonic() > until, seconds + 1)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert moray.get(actor.add.remote(), timeout=TIMEOUT_S) >= 3
    assert moray.get(double.options(resources={"c": 1}).remote(4), timeout=TIMEOUT_S) == 8
    assert shared_session.node_ids() == ids, "nobody was taken for dead because the head was stopped"
    assert {node["NodeID"] for node in moray.nodes() if node["Alive"]} == set(ids)


@pytest.mark.long
def test_the_heads_node_stopped(shared_session: Hosts) -> None:
    """Its own node is not dead to the head while it is stopped."""
    ids = shared_session.node_ids()
    pid = shared_session.hosts[0].node().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        until = time.monotonic() + 8
        wait_until(lambda: time.monotonic() > until, 9)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert moray.get(double.options(resources={"c": 1}).remote(4), timeout=TIMEOUT_S) == 8
    assert shared_session.node_ids() == ids
    assert {node["NodeID"] for node in moray.nodes() if node["Alive"]} == set(ids)


PROGRAM = """
import sys, time, moray
moray.init("auto")

@moray.remote(num_cpus=1)
def forever():
    time.sleep(1_000)

@moray.remote(num_cpus=0)
class Actor:
    def call(self):
        return 1

actor = Actor.options(resources={"b": 1}).remote()
print(moray.get(actor.call.remote()), flush=True)
try:
    moray.get(forever.options(resources={"b": 1}).remote())
except moray.exceptions.MorayError as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.mark.long
def test_the_heads_host_gone() -> None:
    """Others say so once, wait a minute, and give up; then their nodes look for the cluster, until they are stopped."""
    options = ("--num-cpus=1", STORE), ("--num-cpus=2", STORE, '--resources={"b": 4}')
    with hosts(*options) as cluster:
        first, second = cluster.hosts
        old = second.node()
        path = Path(second.directory) / "program.py"
        path.write_text(PROGRAM, encoding="utf-8")
        program = second.start(sys.executable, str(path), MORAY_TOKEN=cluster.token)
        assert program.stdout is not None
        assert program.stdout.readline() == "1\n"
        for pid in first.pids():
            os.kill(pid, signal.SIGKILL)
        out, err = program.communicate(timeout=80)
        assert re.search(r"LocalNodeDiedError .*head at 10\.\S+ has not been heard of for 60 s \(.*refused", out), out
        said = [line for line in err.splitlines() if "has not been heard of for 5 s" in line]
        assert len(said) == 1, err
        assert "If it stays away for 60 s, this session ends" in said[0]
        wait_until(lambda: bool(found := find_nodes(second.directory)) and found[0].node.node_id != old.node_id, 10)
        done = second.moray("stop")
        assert "has ended" in done.stdout
        assert second.pids() == []
        assert first.pids() == []


@pytest.mark.long
def test_block_lives_on() -> None:
    """A supervisor sees one process, whatever becomes of the node's place in the cluster."""
    with hosts(("--num-cpus=1", STORE), ("--num-cpus=0", STORE)) as cluster:
        host = cluster.hosts[1]
        done = host.moray("stop")
        assert done.returncode == 0
        command = [sys.executable, "-m", "moray", "start", f"--address={cluster.address}", "--block", STORE]
        with host.start(*command, MORAY_TOKEN=cluster.token) as process:
            try:
                wait_until(lambda: bool(find_nodes(host.directory)), TIMEOUT_S)
                old = host.node()
                os.kill(old.pid, signal.SIGSTOP)
                until = time.monotonic() + 7
                wait_until(lambda: time.monotonic() > until, 8)
                os.kill(old.pid, signal.SIGCONT)
                wait_until(
                    lambda: bool(found := find_nodes(host.directory)) and found[0].node.node_id != old.node_id,
                    TIMEOUT_S,
                )
                assert process.poll() is None
                assert host.node().pid == old.pid
                process.terminate()
                assert process.wait(TIMEOUT_S) == 0
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
        wait_until(lambda: host.pids() == [], 10, "nothing is left")
