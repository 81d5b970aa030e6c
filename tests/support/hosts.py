"""Hosts for tests: network namespaces with addresses of their own on one bridge, and a cluster on them.

A host shares nothing with the others but the network: it has its own interfaces, its own loopback, its own names of
abstract sockets, and its own TMPDIR, below which its sessions are. (It does share the machine's clock, which lets tests
compare times.) The bridge is in the namespace of the tests, which are so a machine outside, with an address of its own.

Needs root, iproute2 and nftables; where root has apt-get, they are installed. Where namespaces are forbidden, tests are
skipped, and say so at the end of the run. What a run leaves that was killed is removed by the next one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from moray.launch.cluster import find_nodes
from moray.launch.cluster_file import ClusterNode
from moray.launch.session_directory import remove_tree
from tests.support.packages import install

PORT: Final = 6379
#: A command line may take so long.
COMMAND_S: Final = 60.0
#: Namespaces are named moray-<process>-<network><host>, links mo<process><network>….
_PREFIX: Final = "moray-"
_PROGRAMS: Final = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables"}
_LETTERS: Final = string.ascii_lowercase
_numbers = count()
#: What goes through when a host is cut off: its own loopback.
_CUT: Final = """
table inet cut {
  chain incoming { type filter hook input priority 0; policy drop; iif lo accept; }
  chain outgoing { type filter hook output priority 0; policy drop; oif lo accept; }
}
"""


def run(*command: str, text: str | None = None) -> str:
    """Run a command of the system: its output. AssertionError with what it said if it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=COMMAND_S)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


@cache
def require_namespaces() -> None:
    """Install what is missing; skip the test if hosts cannot be had here."""
    if os.getuid() != 0:
        pytest.skip("tests on hosts of their own need root (network namespaces)")
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    require_programs(_PROGRAMS)
    name = f"{_PREFIX}{os.getpid()}-probe"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"the kernel allows no network namespaces here: {tried.stderr.strip()}")
    run("ip", "netns", "delete", name)


def require_programs(packages: Mapping[str, str]) -> None:
    """Install the packages of programs that are missing; skip the test if they cannot be had."""
    missing = sorted({package for program, package in packages.items() if shutil.which(program) is None})
    if missing:
        install(missing)


class Host:
    """One namespace."""

    def __init__(self, network: Network, number: int) -> None:
        self.namespace = f"{_PREFIX}{os.getpid()}-{network.link[-1]}{number}"
        self.address = f"{network.prefix}.{number + 10}"
        self.directory = f"{network.directory}/{number}"
        os.mkdir(self.directory)
        self._link = f"{network.link}h{number}"
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        run("ip", "link", "set", self._link, "master", network.link, "up")
        run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        run("ip", "-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", self.namespace, "link", "set", "eth0", "up")
        run("ip", "-n", self.namespace, "route", "add", "default", "via", f"{network.prefix}.1")
        self._delaying: subprocess.Popen[str] | None = None
        #: What programs see here.
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("MORAY_", "RAY_"))
        } | {
            "TMPDIR": self.directory,
            "HOME": self.directory,
            "MORAY_TEST_RUN": os.environ.get("MORAY_TEST_RUN", ""),
        }

    def start(self, *command: str, **environ: str) -> subprocess.Popen[str]:
        """Start a program here; what it writes can be read."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, timeout_s: float = COMMAND_S, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end."""
        with self.start(*command, **environ) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def moray(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """``moray …`` as a user of this host types it."""
        return self.run(sys.executable, "-m", "moray", *arguments, timeout_s=COMMAND_S, **environ)

    def node(self) -> ClusterNode:
        """The node that runs here."""
        return find_nodes(self.directory)[0].node

    def log(self, name: str = "node.log") -> str:
        """What the node (or the head) has logged."""
        return "".join(
            path.read_text(encoding="utf-8") for path in Path(self.directory).glob(f"*/session_*/logs/{name}")
        )

    def pids(self) -> list[int]:
        """All processes of this host."""
        return [int(pid) for pid in run("ip", "netns", "pids", self.namespace).split()]

    # --- faults ------------------------------------------------------------------------------------------

    def cut_off(self) -> None:
        """Not a packet in or out from now on; nobody is told."""
        self._nft(_CUT)

    def heal(self) -> None:
        """As before :meth:`cut_off` or :meth:`lose`."""
        self._nft("flush ruleset")

    def lose(self, per_cent: int) -> None:
        """So many of the packets that leave are lost."""
        rule = f"meta oif != lo numgen random mod 100 < {per_cent} counter drop"
        self._nft(f"table inet loss {{ chain outgoing {{ type filter hook output priority 0; {rule}; }}\n}}\n")

    def lost(self) -> int:
        """How many packets were lost since :meth:`lose`."""
        found = re.search(r"packets ([0-9]+)", run("ip", "netns", "exec", self.namespace, "nft", "list", "ruleset"))
        assert found is not None
        return int(found[1])

    def limit(self, rate: str) -> None:
        """What leaves is limited to `rate`, such as "80mbit"."""
        run(*self._tc("add"), "tbf", "rate", rate, "burst", "64kb", "latency", "50ms")

    def unlimit(self) -> None:
        """As before :meth:`limit`."""
        run(*self._tc("delete"))

    def delay(self, seconds: float) -> None:
        """What leaves arrives so much later."""
        command = [sys.executable, str(Path(__file__).with_name("delay.py")), self.address, str(seconds)]
        self._delaying = self.start(*command)
        assert self._delaying.stdout is not None
        if self._delaying.stdout.readline() != "ready\n":
            raise AssertionError(self._delaying.communicate()[1])

    def undelay(self) -> None:
        """As before :meth:`delay`."""
        process, self._delaying = self._delaying, None
        if process is not None:
            process.terminate()
            _out, err = process.communicate()
            assert process.returncode == -signal.SIGTERM, err

    def _tc(self, what: str) -> list[str]:
        return ["tc", "-n", self.namespace, "qdisc", what, "dev", "eth0", "root"]

    def _nft(self, rules: str) -> None:
        run("ip", "netns", "exec", self.namespace, "nft", "-f", "-", text=rules)

    def close(self) -> None:
        """End what still runs here, and the namespace."""
        self.undelay()
        remove_namespace(self.namespace)


def remove_namespace(namespace: str) -> None:
    """Kill the processes in it, and remove it, with its end of the cable."""
    deadline = time.monotonic() + COMMAND_S
    while pids := run("ip", "netns", "pids", namespace).split():
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        assert time.monotonic() < deadline, f"processes {pids} of {namespace} do not end"
        time.sleep(0.01)
    run("ip", "netns", "delete", namespace)


def sweep() -> None:
    """Remove what runs of these tests left that were killed."""
    for line in run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(_PREFIX) and not os.path.exists(f"/proc/{name.split('-')[1]}"):
            remove_namespace(name)
    for line in run("ip", "-o", "link", "show", "type", "bridge").splitlines():
        name = line.split()[1].rstrip(":")
        found = re.fullmatch(r"mo([0-9]+)[a-z]", name)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            run("ip", "link", "delete", name)
    for name in os.listdir(tempfile.gettempdir()):
        found = re.match(r"mo([0-9]+)-", name)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            remove_tree(f"{tempfile.gettempdir()}/{name}")


class Network:
    """A bridge, and hosts on it."""

    def __init__(self, count: int) -> None:
        require_namespaces()
        sweep()
        pid, number = os.getpid(), next(_numbers)
        self.link = f"mo{pid}{_LETTERS[number % 26]}"
        #: First three numbers of all addresses.
        self.prefix = f"10.{64 + pid % 128}.{((pid >> 7) * 26 + number) % 256}"
        #: The address of the tests themselves.
        self.outside = f"{self.prefix}.1"
        # Short: sockets lie in it.
        self.directory = tempfile.mkdtemp(prefix=f"mo{pid}-")
        self.hosts: list[Host] = []
        try:
            run("ip", "link", "add", self.link, "type", "bridge")
            run("ip", "address", "add", f"{self.outside}/24", "dev", self.link)
            run("ip", "link", "set", self.link, "up")
            for number in range(count):
                self.hosts.append(Host(self, number))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove all of it."""
        for host in self.hosts:
            host.close()
        if f" {self.link}:" in run("ip", "-o", "link"):
            run("ip", "link", "delete", self.link)
        remove_tree(self.directory)


class Hosts:
    """A cluster on hosts: the first has the head."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.hosts = network.hosts
        self.token = ""
        self.address = f"{self.hosts[0].address}:{PORT}"

    def start(self, options: Sequence[Sequence[str]]) -> None:
        """``moray start`` on each host, with these options; those that join do so at the same time."""
        done = self.hosts[0].moray("start", "--head", *options[0])
        assert done.returncode == 0, done.stderr
        line = next(line for line in done.stdout.splitlines() if "MORAY_TOKEN=" in line)
        self.token = line.split("MORAY_TOKEN=")[1].split()[0]
        assert line.endswith(f"--address='{self.address}'"), line
        joining = [
            host.start(
                *(sys.executable, "-m", "moray", "start", f"--address={self.address}", *more), MORAY_TOKEN=self.token
            )
            for host, more in zip(self.hosts[1:], options[1:], strict=True)
        ]
        for process in joining:
            _out, err = process.communicate(timeout=COMMAND_S)
            assert process.returncode == 0, err

    def node_ids(self) -> list[str]:
        """Of all hosts, in order."""
        return [host.node().node_id for host in self.hosts]

    @contextmanager
    def connected(self) -> Iterator[None]:
        """These tests are a driver of it, from outside."""
        import moray

        os.environ["MORAY_TOKEN"] = self.token
        try:
            moray.init(self.address, log_to_driver=False)
            yield
        finally:
            moray.shutdown()
            del os.environ["MORAY_TOKEN"]

    def run_program(self, host: Host, code: str, timeout_s: float = COMMAND_S) -> str:
        """A driver on a host: its output."""
        path = f"{host.directory}/program.py"
        Path(path).write_text(code, encoding="utf-8")
        done = host.run(sys.executable, path, MORAY_TOKEN=self.token, timeout_s=timeout_s)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        """``moray stop`` everywhere; AssertionError if anything is left."""
        for host in reversed(self.hosts):
            done = host.moray("stop")
            assert done.returncode == 0, done.stderr
        found = [Path(f"/proc/{pid}/cmdline") for host in self.hosts for pid in host.pids()]
        lines = [path.read_bytes() for path in found if path.exists()]
        # A line that is empty is of a process that has ended, and waits for its parent, or for the kernel.
        left = [line.replace(b"\0", b" ")[-120:] for line in lines if line]
        assert not left, f"processes are left after `moray stop`: {left}"


@contextmanager
def hosts(*options: Sequence[str]) -> Iterator[Hosts]:
    """A cluster with a host for each of `options`, those of its ``moray start``."""
    network = Network(len(options))
    try:
        cluster = Hosts(network)
        cluster.start(options)
        yield cluster
        cluster.stop()
    finally:
        network.close()
