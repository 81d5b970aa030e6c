"""``moray://`` from a host that nobody can connect to, and that may connect to the head's port and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import COMMAND_S, PORT, Host, Hosts, Network

STORE = "--object-store-memory=300000000"

pytestmark = pytest.mark.long

#: As behind a firewall that lets only what was asked for in.
_RULES = """
flush ruleset
table inet firewall {{
  chain incoming {{
    type filter hook input priority 0; policy drop;
    iif lo accept
    ip saddr {head} tcp sport {port} tcp flags & (syn | ack) != syn accept
  }}
  chain outgoing {{
    type filter hook output priority 0; policy drop;
    oif lo accept
    ip daddr {head} tcp dport {port} accept
  }}
}}
"""


class Fenced:
    """A cluster of two hosts, and a third one behind a firewall."""

    def __init__(self, network: Network) -> None:
        self.cluster = Hosts(network)
        *self.cluster.hosts, self.host = network.hosts
        self.head = self.cluster.hosts[0].address
        self.fence()

    def fence(self) -> None:
        self.host._nft(_RULES.format(head=self.head, port=PORT))

    def cut_and_heal(self, seconds: float) -> None:
        """The cable is pulled, and plugged in again."""
        self.host.cut_off()
        time.sleep(seconds)
        self.fence()


@pytest.fixture(name="shared_session", scope="module")
def _fenced(module_leaks: set[str]) -> Iterator[Fenced]:
    del module_leaks
    network = Network(3)
    try:
        fenced = Fenced(network)
        fenced.cluster.start([("--num-cpus=1", STORE), ("--num-cpus=2", STORE, '--resources={"b": 4}')])
        yield fenced
        fenced.cluster.stop()
        assert not fenced.host.pids()
    finally:
        network.close()


def start(fenced: Fenced, code: str) -> subprocess.Popen[str]:
    Path(f"{fenced.host.directory}/helper_here.py").write_text("def double(x):\n    return 2 * x\n", encoding="utf-8")
    path = f"{fenced.host.directory}/program.py"
    Path(path).write_text(
        "import sys, time\nimport numpy as np\nimport moray\n"
        "def say(text):\n    print(text, flush=True)\n" + code.format(address=fenced.cluster.address),
        encoding="utf-8",
    )
    return fenced.host.start(sys.executable, path, MORAY_TOKEN=fenced.cluster.token)


def expect(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != f"{text}\n":
        process.kill()
        raise AssertionError(f"{line!r} instead of {text!r}: {process.communicate(timeout=COMMAND_S)[1]}")


def finish(process: subprocess.Popen[str]) -> None:
    _out, err = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 0, err


def connects(host: Host, address: str) -> bool:
    code = f"import socket; socket.create_connection({address.rpartition(':')[::2]!r}, 2)"
    return host.run(sys.executable, "-c", code).returncode == 0


_BEGIN = """
moray.init("moray://{address}", log_to_driver=False)
@moray.remote(resources={{"b": 1}}, num_cpus=0)
class Counter:
    def __init__(self):
        self.seen = []
    def add(self, value):
        self.seen.append(value)
        return len(self.seen)
@moray.remote(resources={{"b": 1}}, num_cpus=0)
def total(value):
    return int(value.sum(dtype=np.int64))
@moray.remote(resources={{"b": 1}}, num_cpus=0)
def make(size):
    return np.full(size, 3, dtype=np.uint8)
counter = Counter.remote()
assert moray.get(counter.add.remote(0), timeout=60) == 1
say("connected")
"""


def test_the_firewall_is_one(shared_session: Fenced) -> None:
    """Otherwise the others here show nothing."""
    first, second = shared_session.cluster.hosts
    assert connects(shared_session.host, shared_session.cluster.address)
    assert not connects(shared_session.host, first.node().address)
    assert not connects(shared_session.host, second.node().address)
    with shared_session.host.start(
        sys.executable,
        "-c",
        "import socket; s = socket.create_server(('', 7000)); print(1, flush=True); s.settimeout(8); s.accept()",
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "1\n"
        assert not connects(first, f"{shared_session.host.address}:7000")
        server.kill()
        server.communicate()


def test_everything_works(shared_session: Fenced) -> None:
    process = start(
        shared_session,
        _BEGIN
        + """
for loop in range(50):
    assert moray.get([counter.add.remote(i) for i in range(20)], timeout=60)[-1] == 20 * (loop + 1) + 1
value = np.arange(100_000_000, dtype=np.uint8)
assert moray.get(total.remote(moray.put(value)), timeout=60) == int(value.sum(dtype=np.int64))
assert moray.get(make.remote(100_000_000), timeout=60).sum(dtype=np.int64) == 300_000_000
@moray.remote(resources={{"b": 1}}, num_cpus=0)
def use(value):
    import helper_here  # A file of this host.
    return helper_here.double(value)
assert moray.get(use.remote(4), timeout=60) == 8
moray.shutdown()
say("done")
""",
    )
    expect(process, "connected")
    expect(process, "done")
    finish(process)


@pytest.mark.timeout(240)
def test_a_cable_is_pulled_in_the_middle(shared_session: Fenced) -> None:
    """For longer than a lease of the cluster's other nodes."""
    process = start(
        shared_session,
        _BEGIN
        + """
end, refs = time.monotonic() + 12, []
while time.monotonic() < end:
    refs.append(counter.add.remote(1))
    time.sleep(0.002)
answers = moray.get(refs, timeout=60)
assert answers == list(range(2, len(refs) + 2)), "each once, in order"
say("calls")
value = np.arange(100_000_000, dtype=np.uint8)
ref, down = total.remote(moray.put(value)), make.remote(100_000_000)
say("objects")
assert moray.get(ref, timeout=60) == int(value.sum(dtype=np.int64))
assert moray.get(down, timeout=60).sum(dtype=np.int64) == 300_000_000
moray.shutdown()
say("done")
""",
    )
    expect(process, "connected")
    shared_session.cut_and_heal(7)
    expect(process, "calls")
    expect(process, "objects")
    shared_session.cut_and_heal(7)
    expect(process, "done")
    finish(process)


@pytest.mark.timeout(240)
def test_a_cable_that_stays_pulled(shared_session: Fenced) -> None:
    """The driver is told in one line, and the cluster forgets it."""
    process = start(
        shared_session,
        'import os\nos.environ["MORAY_RELAY_PATIENCE_S"] = "3"\n'
        + _BEGIN
        + """
try:
    moray.get(total.options(resources={{"b": 100}}).remote(np.ones(1)), timeout=60)
except moray.exceptions.LocalNodeDiedError as error:
    say("lost" if "the connection to the relay at {address} was lost" in str(error) else str(error))
""",
    )
    expect(process, "connected")
    shared_session.host.cut_off()
    expect(process, "lost")
    finish(process)
    shared_session.fence()
    process = start(shared_session, _BEGIN + "moray.get([make.options(resources={{'b': 3}}).remote(1)], timeout=60)\n")
    expect(process, "connected")
    finish(process)
