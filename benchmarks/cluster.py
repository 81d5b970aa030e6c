"""What a cluster costs and reaches, on one machine: ``python -m benchmarks.cluster [PART …] [--nodes=N] [--markdown]``.

Real daemons over TCP and TLS on loopback. Parts: ``calls`` (tasks and actor calls at another node beside local ones and
a bare TLS ping-pong), ``objects`` (a large object to another node beside a bare TLS socket), ``groups`` (placement
groups made and removed), ``nodes`` (100 daemons, or N: joining, memory, a task on each, idle CPU of nodes and head),
``start`` (`moray start --head`). Bare sockets run in the same process pair arrangement, in the same run.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

import moray
from benchmarks.procfs import descendants, memory
from moray.cluster_utils import Cluster
from moray.security.authority import Authority
from moray.security.identity import client_context, server_context

ROUNDS: Final = 5
PINGS: Final = 500
TASKS: Final = 10_000
BULK_BYTES: Final = 1 << 30
PIECE: Final = 1 << 22
NODES: Final = 100
#: The process of the head, as it calls itself.
HEAD_NAME: Final = "moray:head"
IDLE_S: Final = 60

Row = tuple[str, str, str]


def median_rate(count: int, call: Callable[[], Any]) -> float:
    """How many per second, the median of some rounds."""
    rates = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates)


def best_in_turn(count: int, calls: list[Callable[[], Any]]) -> list[float]:
    """How many per second, the best of some rounds. In turn: what else the machine does is the same for all."""
    best = [0.0] * len(calls)
    for _ in range(4 * ROUNDS):
        for number, call in enumerate(calls):
            began = time.perf_counter()
            call()
            best[number] = max(best[number], count / (time.perf_counter() - began))
    return best


# --- the floor ------------------------------------------------------------------------------------------


@contextmanager
def bare_tls(serve: Callable[[Any], None]) -> Iterator[Any]:
    """A TLS socket to a forked process that runs `serve` on the other end."""
    authority = Authority.create()
    identity = authority.issue("bare")
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if not child:
        try:
            accepted, _address = listener.accept()
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with server_context(identity).wrap_socket(accepted, server_side=True) as tls:
                serve(tls)
        finally:
            os._exit(0)
    try:
        sock = socket.create_connection(listener.getsockname())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client_context(identity).wrap_socket(sock) as tls:
            yield tls
    finally:
        listener.close()
        os.waitpid(child, 0)


@contextmanager
def bare_ping_pong() -> Iterator[Callable[[], None]]:
    """What makes :data:`PINGS` round trips of 100 bytes."""

    def serve(tls: Any) -> None:
        while data := tls.recv(4096):
            tls.sendall(data)

    with bare_tls(serve) as tls:

        def pings() -> None:
            for _ in range(PINGS):
                tls.sendall(b"x" * 100)
                tls.recv(4096)

        yield pings


def bare_bulk() -> float:
    """Bytes per second."""

    def serve(tls: Any) -> None:
        piece = bytes(PIECE)
        while tls.recv(1):
            for _ in range(BULK_BYTES // PIECE):
                tls.sendall(piece)

    with bare_tls(serve) as tls:
        buffer = bytearray(BULK_BYTES)
        view = memoryview(buffer)
        rates = []
        for _ in range(3):
            began, got = time.perf_counter(), 0
            tls.sendall(b"g")
            while got < BULK_BYTES:
                got += tls.recv_into(view[got:], min(PIECE, BULK_BYTES - got))
            rates.append(BULK_BYTES / (time.perf_counter() - began))
        return statistics.median(rates)


# --- parts -----------------------------------------------------------------------------------------------


@moray.remote
def empty() -> None:
    """Nothing."""


@moray.remote
class Empty:
    """Does nothing."""

    def call(self) -> None:
        """Nothing."""


def burst(make: Callable[[], Any]) -> None:
    """All at once."""
    moray.get([make() for _ in range(TASKS)])


def one_by_one(make: Callable[[], Any]) -> None:
    """Each after the answer to the one before."""
    for _ in range(PINGS):
        moray.get(make())


def calls() -> Iterator[Row]:
    """Tasks and calls at another node against local ones, and one at a time against bare TLS."""
    head = {"num_cpus": 1, "resources": {"here": 1}}
    with bare_ping_pong() as pings, Cluster(initialize_head=True, head_node_args=head) as cluster:
        cluster.add_node(num_cpus=1, resources={"there": 1})
        cluster.connect()
        cluster.wait_for_nodes()
        here, there = (empty.options(num_cpus=0, resources={name: 0.5}) for name in ("here", "there"))
        actors = [Empty.options(num_cpus=0, resources={name: 0.1}).remote() for name in ("here", "there")]
        for call in (here.remote, there.remote, *(actor.call.remote for actor in actors)):
            moray.get([call() for _ in range(2_000)])
        names = ("tasks here", "tasks at another node", "actor calls here", "actor calls at another node")
        makers = (here.remote, there.remote, actors[0].call.remote, actors[1].call.remote)
        bursts = [median_rate(TASKS, partial(burst, make)) for make in makers]
        floor, *single = best_in_turn(PINGS, [pings, *(partial(one_by_one, make) for make in makers)])
        for name, rate in zip(names, bursts, strict=True):
            yield f"{name}, burst", f"{rate:,.0f}/s", ""
        for number, what in ((1, "tasks"), (3, "actor calls")):
            yield f"{what}: burst at another node / local", f"{bursts[number] / bursts[number - 1]:.2f}", "≥ 0.5"
        yield "bare TLS ping-pong", f"{floor:,.0f}/s", ""
        for name, rate in zip(names, single, strict=True):
            yield f"{name}, one at a time", f"{rate:,.0f}/s", ""
        for number, what in ((1, "tasks"), (3, "actor calls")):
            yield f"{what}: time at another node / bare TLS", f"{floor / single[number]:.2f}", "≤ 2"
            yield f"{what}: time at another node / local", f"{single[number - 1] / single[number]:.2f}", ""


def objects() -> Iterator[Row]:
    """One GiB from node to node."""
    floor = bare_bulk()
    yield "bare TLS socket", f"{floor / 1e9:.2f} GB/s", ""
    store = 3 << 30
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store}) as cluster:
        cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=store)
        cluster.connect()
        cluster.wait_for_nodes()

        @moray.remote(num_cpus=0, resources={"there": 0.5})
        def touch(values: Any) -> int:
            return int(values[0])

        moray.get(touch.remote(np.ones(1 << 20)))
        rates = []
        for _ in range(3):
            ref = moray.put(np.ones(BULK_BYTES, dtype=np.uint8))
            began = time.perf_counter()
            moray.get(touch.remote(ref))
            rates.append(BULK_BYTES / (time.perf_counter() - began))
            del ref
        rate = statistics.median(rates)
        yield "1 GiB to another node", f"{rate / 1e9:.2f} GB/s", ""
        yield "1 GiB to another node / bare TLS", f"{rate / floor:.2f}", "≥ 0.7"


def groups() -> Iterator[Row]:
    """Placement groups of one bundle on two nodes, made and removed."""
    from moray.util import placement_group, remove_placement_group

    with Cluster(initialize_head=True, head_node_args={"num_cpus": 4}) as cluster:
        cluster.add_node(num_cpus=4)
        cluster.connect()
        cluster.wait_for_nodes()

        def together(count: int = 100) -> None:
            made = [placement_group([{"CPU": 0.01}]) for _ in range(count)]
            moray.get([group.ready() for group in made])
            for group in made:
                remove_placement_group(group)

        def one_by_one(count: int = 100) -> None:
            for _ in range(count):
                group = placement_group([{"CPU": 0.01}])
                moray.get(group.ready())
                remove_placement_group(group)

        together(10)
        yield "groups made and removed, 100 at once", f"{median_rate(100, together):,.0f}/s", "4x Ray"
        yield "groups made and removed, one by one", f"{median_rate(100, one_by_one):,.0f}/s", "2x Ray"
        began = time.perf_counter()
        thousand = [placement_group([{"CPU": 0.001}]) for _ in range(1_000)]
        moray.get([group.ready() for group in thousand])
        yield "1 000 groups ready", f"{time.perf_counter() - began:.2f} s", ""


def nodes(count: int = NODES) -> Iterator[Row]:
    """A hundred daemons on this machine."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"n0": 1}}) as cluster:
        began = time.perf_counter()
        for number in range(1, count):
            cluster.add_node(num_cpus=1, resources={f"n{number}": 1}, object_store_memory=8 << 20)
        cluster.connect()
        cluster.wait_for_nodes(120)
        yield f"{count} nodes joined", f"{time.perf_counter() - began:.1f} s", "≤ 30"
        pids = [node.pid for node in cluster.list_all_nodes()]
        sizes = [memory({pid}).pss for pid in pids]
        yield "PSS of a node daemon, median", f"{statistics.median(sizes) / 1e6:.1f} MB", "≤ 25"
        began = time.perf_counter()
        moray.get([empty.options(num_cpus=0, resources={f"n{number}": 1}).remote() for number in range(count)])
        yield "an empty task on each", f"{time.perf_counter() - began:.2f} s", "≤ 2"
        head = _head_of(pids[0])
        time.sleep(5)
        before, began = [_cpu_s(pid) for pid in (head, *pids)], time.perf_counter()
        time.sleep(IDLE_S)
        seconds = time.perf_counter() - began
        used = [_cpu_s(pid) - earlier for pid, earlier in zip((head, *pids), before, strict=True)]
        of_head, of_its_node, *others = (each / seconds * 100 for each in used)
        yield f"CPU of an idle node over {IDLE_S} s, median", f"{statistics.median(others):.2f} %", "< 0.2"
        yield "CPU of the head, all nodes idle", f"{of_head:.2f} %", "< 2"
        yield "CPU of the head and the node beside it", f"{of_head + of_its_node:.2f} %", "< 2"


def start() -> Iterator[Row]:
    """`moray start --head` until the prompt is back."""
    times = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="moray-bench-") as directory:
            environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
            environ["TMPDIR"] = directory
            command = [sys.executable, "-m", "moray"]
            began = time.perf_counter()
            subprocess.run(
                [*command, "start", "--head", "--port=0", "--node-ip-address=127.0.0.1"],
                env=environ,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            times.append(time.perf_counter() - began)
            subprocess.run([*command, "stop"], env=environ, check=True, stdout=subprocess.DEVNULL)
    yield "moray start --head", f"{statistics.median(times):.2f} s", "≤ 0.6"


def _head_of(node: int) -> int:
    """The process of the head beside a node."""
    (head,) = [pid for pid in descendants(node) if Path(f"/proc/{pid}/comm").read_text().strip() == HEAD_NAME]
    return head


def _cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


PARTS: Final = {"start": start, "calls": calls, "objects": objects, "groups": groups, "nodes": nodes}


def main() -> None:
    """Print a table."""
    chosen = [name for name in sys.argv[1:] if not name.startswith("-")] or list(PARTS)
    markdown = "--markdown" in sys.argv
    parts: dict[str, Callable[[], Iterator[Row]]] = dict(PARTS)
    for argument in sys.argv[1:]:
        if argument.startswith("--nodes="):
            parts["nodes"] = partial(nodes, int(argument.removeprefix("--nodes=")))
    if markdown:
        print("| what | measured | wanted |\n|---|---|---|")
    for name in chosen:
        for what, measured, wanted in parts[name]():
            print(
                f"| {what} | {measured} | {wanted} |" if markdown else f"{what:52}{measured:>16}   {wanted}", flush=True
            )


if __name__ == "__main__":
    main()
