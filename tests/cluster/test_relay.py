"""``moray://``: a driver that makes connections to one address only, and that nobody can connect to.

The address is that of a link (:mod:`tests.support.link`), which the tests cut while calls and objects are under way.
"""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return"

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import moray
from moray.cluster_utils import Cluster
from moray.launch.cluster import find_nodes
from tests.support.link import Link
from tests.support.procs import wait_until

TIMEOUT_S = 60
LARGE = 100_000_000

pytestmark = pytest.mark.slow


@pytest.fixture(name="shared_session", scope="module")
def _cluster(module_leaks: set[str]) -> Iterator[Cluster]:
    """The head's node, and one with two CPUs and resource "b". Nobody is connected."""
    del module_leaks
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        cluster.add_node(num_cpus=2, resources={"b": 4})
        yield cluster


def head_address(cluster: Cluster) -> str:
    return cluster.address.rpartition("/")[2]


def session_dir(cluster: Cluster) -> Path:
    """Of the head's node."""
    assert cluster.head_node is not None
    return Path(cluster.head_node._handle.session_dir)


def token(cluster: Cluster) -> str:
    return (session_dir(cluster) / "tls" / "token").read_text(encoding="utf-8").strip()


@contextmanager
def connected(cluster: Cluster, **environ: str) -> Iterator[Link]:
    """This process is a driver by way of a link."""
    environ["MORAY_TOKEN"] = token(cluster)
    with pytest.MonkeyPatch.context() as patch, Link(head_address(cluster)) as link:
        for name, value in environ.items():
            patch.setenv(name, value)
        moray.init(f"moray://{link.address}", log_to_driver=False)
        try:
            yield link
        finally:
            moray.shutdown()


def child(cluster: Cluster, title: str) -> int:
    """Of the head's node: the process with this title; 0: there is none."""
    assert cluster.head_node is not None
    for process in psutil.Process(cluster.head_node._handle.pid).children():
        if title in process.cmdline():
            return process.pid
    return 0


def own_node() -> psutil.Process:
    """The node of this driver."""
    state: Any = moray.runtime.state
    return psutil.Process(state.runtime.welcome.node_pid)


def node_log() -> str:
    """Of this driver's node."""
    state: Any = moray.runtime.state
    return Path(f"{state.runtime.session_dir}/logs/node.log").read_text(encoding="utf-8")


def wait_for_more(link: Link, before: int) -> None:
    """Until somebody connects again."""
    wait_until(lambda: link.tell("count") > before, TIMEOUT_S, "another connection")


@moray.remote(resources={"b": 1})
def add(value: int) -> int:
    return value + 1


@moray.remote(resources={"b": 1})
def size_of(value: Any) -> int:
    return len(value)


@moray.remote(resources={"b": 1})
def make(size: int) -> Any:
    return np.full(size, 7, dtype=np.uint8)


@moray.remote(resources={"b": 1})
def fetch(refs: list[Any]) -> Any:
    """What the driver owns comes from the driver."""
    return [moray.get(ref) for ref in refs]


@moray.remote(resources={"b": 1})
def numbers(count: int) -> Iterator[int]:
    yield from range(count)


@moray.remote(num_cpus=0, resources={"b": 1})
class Counter:
    def __init__(self) -> None:
        self.seen: list[int] = []
        self.kept: list[Any] = []

    def add(self, value: int) -> int:
        self.seen.append(value)
        return len(self.seen)

    def all(self) -> list[int]:
        return self.seen

    def keep(self, refs: list[Any]) -> None:
        self.kept = refs

    def give(self) -> list[Any]:
        return self.kept


# --- what works -------------------------------------------------------------------------------------------


def test_everything_goes_through_one_connection(shared_session: Cluster) -> None:
    with connected(shared_session) as link:
        assert moray.get([add.remote(i) for i in range(100)], timeout=TIMEOUT_S) == list(range(1, 101))
        small, large = moray.put("small"), moray.put(np.ones(3_000_000, dtype=np.uint8))
        assert moray.get(size_of.remote(large), timeout=TIMEOUT_S) == 3_000_000
        assert [len(value) for value in moray.get(fetch.remote([small, large]), timeout=TIMEOUT_S)] == [5, 3_000_000]
        made = make.remote(3_000_000)
        assert (moray.get(made, timeout=TIMEOUT_S) == 7).all()
        counter = Counter.options(name="c").remote()
        assert moray.get([counter.add.remote(i) for i in range(50)], timeout=TIMEOUT_S) == list(range(1, 51))
        assert moray.get(moray.get_actor("c").add.remote(0), timeout=TIMEOUT_S) == 51
        items = numbers.options(num_returns="streaming").remote(20)
        assert [moray.get(ref, timeout=TIMEOUT_S) for ref in items] == list(range(20))
        ready, _ = moray.wait([add.remote(1)], timeout=TIMEOUT_S)
        assert len(ready) == 1
        assert len(moray.nodes()) == 2

        node = own_node()
        peers = {
            connection.raddr.port
            for process in (psutil.Process(), node)
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED
        }
        assert peers == {link.port}, "somebody has connected around the relay"
        listening = [c.laddr.ip for c in node.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert listening == ["127.0.0.1"]
    log = (session_dir(shared_session) / "logs" / "relay.log").read_text(encoding="utf-8")
    assert "has left" in log, "the relay knows that it is over"


def test_many_loops_of_calls(shared_session: Cluster) -> None:
    with connected(shared_session):
        counter = Counter.remote()
        for loop in range(50):
            answers = moray.get([counter.add.remote(i) for i in range(100)], timeout=TIMEOUT_S)
            assert answers == list(range(loop * 100 + 1, loop * 100 + 101))


def test_the_rays_way_to_connect(shared_session: Cluster) -> None:
    with pytest.MonkeyPatch.context() as patch, Link(head_address(shared_session)) as link:
        patch.setenv("MORAY_TOKEN", token(shared_session))
        found = moray.util.connect(link.address)
        try:
            assert found["num_clients"] == 1
            assert moray.get(add.remote(1), timeout=TIMEOUT_S) == 2
            assert link.tell("count") > 0
        finally:
            moray.util.disconnect()


OTHER = """
import moray, sys
moray.init("moray://" + sys.argv[1], namespace="shared", log_to_driver=False)
keeper = moray.get_actor("keeper")
refs = moray.get(keeper.give.remote(), timeout=30)
print([len(moray.get(ref, timeout=30)) for ref in refs])
moray.shutdown()
"""


def test_two_drivers_reach_each_other(shared_session: Cluster, tmp_path: Path) -> None:
    """What one of them owns comes to the other one: by way of the relay, twice."""
    (tmp_path / "other.py").write_text(OTHER, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, Link(head_address(shared_session)) as link:
        patch.setenv("MORAY_TOKEN", token(shared_session))
        moray.init(f"moray://{link.address}", namespace="shared", log_to_driver=False)
        try:
            keeper = Counter.options(name="keeper").remote()
            refs = [moray.put("mine"), moray.put("mine" * 10_000)]
            moray.get(keeper.keep.remote(refs), timeout=TIMEOUT_S)
            done = subprocess.run(
                [sys.executable, str(tmp_path / "other.py"), link.address],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            assert done.stdout == "[4, 40000]\n", done.stderr
        finally:
            moray.shutdown()


# --- a link that fails --------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", ["drop", "cut"])
def test_a_lost_link_in_the_middle_of_calls(shared_session: Cluster, fault: str) -> None:
    """Nothing is lost and nothing happens twice."""
    with connected(shared_session) as link:
        counter = Counter.remote()
        moray.get(counter.add.remote(-1), timeout=TIMEOUT_S)
        refs, tasks = [], []
        for loop in range(10):
            refs += [counter.add.remote(loop * 300 + i) for i in range(300)]
            tasks += [add.remote(i) for i in range(30)]
            if loop % 2:
                before = link.tell(fault)
                refs += [counter.add.remote(-2)]
                link.tell("heal")
                wait_for_more(link, before)
            moray.wait(refs, num_returns=len(refs) // 2, timeout=TIMEOUT_S)
        assert moray.get(refs, timeout=TIMEOUT_S) == list(range(2, len(refs) + 2)), "each once, in order"
        assert moray.get(tasks, timeout=TIMEOUT_S) == [i + 1 for _ in range(10) for i in range(30)]
        seen = moray.get(counter.all.remote(), timeout=TIMEOUT_S)
        assert [value for value in seen if value >= 0] == list(range(3000))
        log = node_log()
        assert len(re.findall(r"connected to the relay at .* again", log)) >= 3, log
        assert "another one begins" not in log


@pytest.mark.timeout(180)
def test_a_lost_link_in_the_middle_of_large_objects(shared_session: Cluster) -> None:
    with connected(shared_session) as link:
        moray.get(add.remote(1), timeout=TIMEOUT_S)
        value = np.random.default_rng(1).integers(0, 255, LARGE, dtype=np.uint8)
        up = size_of.remote(moray.put(value))
        down = make.remote(LARGE)
        for _ in range(4):
            moray.wait([up, down], num_returns=2, timeout=0.15)
            link.tell("drop")
        assert moray.get(up, timeout=TIMEOUT_S) == LARGE
        assert (moray.get(down, timeout=TIMEOUT_S) == 7).all()
        echoed = moray.get(fetch.remote([moray.put(value)]), timeout=TIMEOUT_S)[0]
        assert (echoed == value).all()


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_link_that_is_silent_is_taken_for_lost(shared_session: Cluster) -> None:
    """Nobody is told that it has failed, as where a machine in the middle forgets the connection."""
    with connected(shared_session) as link:
        counter = Counter.remote()
        moray.get(counter.add.remote(0), timeout=TIMEOUT_S)
        link.tell("stall")
        began = time.monotonic()
        ref = counter.add.remote(1)
        with pytest.raises(moray.exceptions.GetTimeoutError):
            moray.get(ref, timeout=8)
        link.tell("heal")
        assert moray.get(ref, timeout=TIMEOUT_S) == 2
        assert time.monotonic() - began < 30
        # Longer than a lease of other nodes, and the cluster has not given the driver up.
        assert moray.get(add.remote(1), timeout=TIMEOUT_S) == 2


@pytest.mark.timeout(180)
def test_a_link_that_stays_away_ends_the_session(shared_session: Cluster) -> None:
    with connected(shared_session, MORAY_RELAY_PATIENCE_S="2") as link:
        moray.get(add.remote(1), timeout=TIMEOUT_S)
        ref = add.options(resources={"b": 100}).remote(1)
        address = link.address
        link.tell("cut")
        with pytest.raises(moray.exceptions.LocalNodeDiedError) as caught:
            moray.get(ref, timeout=TIMEOUT_S)
        text = str(caught.value)
        assert f"the connection to the relay at {address} was lost" in text
        assert "MORAY_RELAY_PATIENCE_S, now 2" in text
    log = session_dir(shared_session) / "logs" / "relay.log"
    wait_until(lambda: "nothing was heard of it for" in log.read_text(encoding="utf-8"), 30, "the relay gives it up")


@pytest.mark.timeout(180)
def test_the_relay_is_killed(shared_session: Cluster) -> None:
    """All connections are lost at once; they are made anew, and calls that had not been answered are answered."""
    with connected(shared_session):
        counter = Counter.remote()
        moray.get(counter.add.remote(0), timeout=TIMEOUT_S)
        for round_ in range(3):
            refs = [counter.add.remote(i) for i in range(200)]
            psutil.Process(child(shared_session, "moray-relay")).kill()
            assert len(moray.get(refs, timeout=TIMEOUT_S)) == 200
            assert moray.get(add.remote(round_), timeout=TIMEOUT_S) == round_ + 1
        assert len(moray.get(counter.all.remote(), timeout=TIMEOUT_S)) == 601, "each once"


@pytest.mark.timeout(180)
def test_the_head_is_killed(shared_session: Cluster) -> None:
    """The relay is a process of its own: what it passes on goes on at once."""
    with connected(shared_session) as link:
        counter = Counter.remote()
        moray.get(counter.add.remote(0), timeout=TIMEOUT_S)
        before = link.tell("count")
        psutil.Process(child(shared_session, "moray-head")).kill()
        assert moray.get([counter.add.remote(i) for i in range(200)], timeout=TIMEOUT_S)[-1] == 201
        assert moray.get(add.remote(1), timeout=TIMEOUT_S) == 2
        named = Counter.options(name="after").remote()
        assert moray.get(named.add.remote(1), timeout=TIMEOUT_S) == 1
        assert link.tell("count") == before, "the tunnel was not touched"


def test_nobody_answers(shared_session: Cluster) -> None:
    with pytest.MonkeyPatch.context() as patch, Link(head_address(shared_session)) as link:
        patch.setenv("MORAY_TOKEN", token(shared_session))
        link.tell("cut")
        with pytest.raises(ConnectionError, match=f"no connection to {link.address}") as caught:
            moray.init(f"moray://{link.address}")
        assert "\n" not in str(caught.value)


# --- who may do what -------------------------------------------------------------------------------------------


def test_the_driver_dies(shared_session: Cluster, tmp_path: Path) -> None:
    """Nothing of it stays, here or there."""
    program = tmp_path / "dies.py"
    program.write_text(
        "import moray, sys, os, time\n"
        "moray.init('moray://' + sys.argv[1], log_to_driver=False)\n"
        "@moray.remote(resources={'b': 4})\n"
        "def hold():\n    time.sleep(1000)\n"
        "ref = hold.remote()\n"
        "print(len(moray.wait([ref], timeout=1)[0]), flush=True)\n"
        "os.kill(os.getpid(), 9)\n",
        encoding="utf-8",
    )
    with Link(head_address(shared_session)) as link:
        environ = {**os.environ, "MORAY_TOKEN": token(shared_session)}
        command = [sys.executable, str(program), link.address]
        done = subprocess.run(command, env=environ, capture_output=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        wait_until(lambda: not [f for f in find_nodes() if f.node.driver_only], 10, "its node ends")
    with connected(shared_session):
        assert moray.get(add.options(resources={"b": 4}).remote(1), timeout=10) == 2, "what it had is free"
