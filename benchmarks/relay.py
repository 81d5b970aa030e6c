"""``moray://`` beside Ray Client (``ray://``), on one machine: ``python -m benchmarks.relay [--markdown] [--short]``.

Both are drivers outside of a cluster of two CPUs that talk to it through one port of its head. The same program runs
with each, in turn, in a process of its own; numbers are medians of rounds. What Ray calls a put has gone to the cluster
when it returns; moray's lies in the memory of the driver's own host, and goes where it is read. So "put and read", with
a task that reads the object, is the fair number; "put" alone is what a program waits for.

Ray's virtualenv (:mod:`benchmarks.environments`) needs ``grpcio`` for this, which is installed there if it is missing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.environments import ROOT, environment, interpreter

ROUNDS: Final = 5
CALLS: Final = 1_000
BULK_BYTES: Final = 100_000_000
GRPC: Final = "grpcio"
#: Ray's token: on one machine, for one user, nothing is gained by it here, and nothing lost.
NO_TOKEN: Final = {"RAY_AUTH_MODE": "disabled"}
#: A system's whole program may take so long.
LIMIT_S: Final = 600

LABELS: Final = {
    "sync": ("actor calls, one after the other", "/s"),
    "batch": ("actor calls, 1 000 at once", "/s"),
    "tasks": ("tasks, 1 000 at once", "/s"),
    "put": ("put of 100 MB", "MB/s"),
    "put_read": ("put of 100 MB and a task that reads it", "MB/s"),
    "get": ("get of 100 MB that a task made", "MB/s"),
}


# --- the program: with either system, in a process of its own ------------------------------------------


def measure(api: Any, rounds: int) -> dict[str, float]:
    """All numbers of one system; `api` is connected."""
    import numpy as np

    class Echo:
        def say(self, value: int) -> int:
            return value

    def length_of(value: Any) -> int:
        return len(value)

    def make_array() -> Any:
        return np.ones(BULK_BYTES, dtype=np.uint8)

    nothing, length, make = api.remote(lambda: None), api.remote(length_of), api.remote(make_array)
    echo = api.remote(Echo).remote()
    value = np.ones(BULK_BYTES, dtype=np.uint8)
    megabytes = BULK_BYTES / 1e6

    def sync() -> None:
        for number in range(CALLS):
            api.get(echo.say.remote(number))

    def put_and_read() -> None:
        assert api.get(length.remote(api.put(value))) == BULK_BYTES

    def get() -> None:
        assert len(api.get(make.remote())) == BULK_BYTES

    def rate(amount: float, call: Callable[[], Any]) -> float:
        call()
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return amount / statistics.median(taken)

    return {
        "sync": rate(CALLS, sync),
        "batch": rate(CALLS, lambda: api.get([echo.say.remote(number) for number in range(CALLS)])),
        "tasks": rate(CALLS, lambda: api.get([nothing.remote() for _ in range(CALLS)])),
        "put": rate(megabytes, lambda: api.put(value)),
        "put_read": rate(megabytes, put_and_read),
        "get": rate(megabytes, get),
    }


def _child(system: str, address: str, rounds: int) -> None:
    api = importlib.import_module(system)
    api.init(address, log_to_driver=False) if system == "moray" else api.init(address)
    found = measure(api, rounds)
    api.shutdown()
    print(json.dumps(found), flush=True)


# --- clusters ---------------------------------------------------------------------------------------------


@contextmanager
def moray_cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of one, and what a driver's environment needs."""
    from moray.cluster_utils import Cluster

    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 2 << 30}) as cluster:
        assert cluster.head_node is not None
        token = Path(cluster.head_node._handle.session_dir, "tls", "token").read_text(encoding="utf-8").strip()
        yield f"moray://{cluster.address.rpartition('/')[2]}", {"MORAY_TOKEN": token}


@contextmanager
def ray_cluster(python: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The same."""
    _install_grpc(python)
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        port, client_port = first.getsockname()[1], second.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray-") as directory:
        command = [
            *(python, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}", "--num-cpus=2"),
            *(f"--ray-client-server-port={client_port}", "--include-dashboard=false", f"--temp-dir={directory}"),
            *("--object-store-memory=2147483648", "--disable-usage-stats", "--block"),
        ]
        log = os.open(f"{directory}/start.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        environ = environment() | NO_TOKEN
        head = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(client_port, head)
            yield f"ray://127.0.0.1:{client_port}", NO_TOKEN
        finally:
            # It ends all that it has started.
            head.terminate()
            try:
                head.wait(30)
            except subprocess.TimeoutExpired:
                head.kill()
                head.wait()
            os.close(log)


def _install_grpc(python: str) -> None:
    if subprocess.run([python, "-c", "import grpc"], capture_output=True, check=False).returncode:
        print(f"installing {GRPC} beside Ray ...", file=sys.stderr, flush=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", GRPC], check=True)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    with socket.socket() as probe:
        while probe.connect_ex(("127.0.0.1", port)):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"Ray's client server does not listen at port {port}")
            time.sleep(0.1)


def run(system: str, rounds: int) -> dict[str, float]:
    """The numbers of one system."""
    python = interpreter(system)
    with moray_cluster() if system == "moray" else ray_cluster(python) as (address, extra):
        command = [python, "-m", "benchmarks.relay", "--child", system, address, "--rounds", str(rounds)]
        environ = environment() | extra | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(
            command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=True
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(moray: dict[str, float], ray: dict[str, float] | None, *, markdown: bool) -> list[str]:
    """Lines of a table."""
    rows = [("", "moray://", "ray://", "times")]
    for name, (label, unit) in LABELS.items():
        ours, theirs = moray[name], ray[name] if ray else 0.0
        times = f"{ours / theirs:.1f}" if theirs else "-"
        rows.append((label, f"{ours:,.0f} {unit}", f"{theirs:,.0f} {unit}" if theirs else "-", times))
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return [lines[0], "|---|---:|---:|---:|", *lines[1:]]
    return [f"{row[0]:<42}{row[1]:>16}{row[2]:>16}{row[3]:>8}" for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay", description=__doc__)
    parser.add_argument("--child", nargs=2, metavar=("SYSTEM", "ADDRESS"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--short", action="store_true", help="one round of each")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--without-ray", action="store_true")
    options = parser.parse_args()
    rounds = 1 if options.short else options.rounds
    if options.child:
        _child(options.child[0], options.child[1], rounds)
        return
    ours = run("moray", rounds)
    theirs = None if options.without_ray else run("ray", rounds)
    print("\n".join(report(ours, theirs, markdown=options.markdown)))


if __name__ == "__main__":
    main()
