"""A host that is cut off from the others, and healed (FENCE)."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.launch.cluster import find_nodes
from moray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.support.hosts import Host, Hosts
from tests.support.procs import wait_until

TIMEOUT_S = 60

pytestmark = pytest.mark.slow


@moray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Beating:
    """Notes the time at which each of its methods starts."""

    def __init__(self, path: str) -> None:
        # Two incarnations may live at the same time: one write is one line.
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def beat(self) -> int:
        os.write(self.file, f"{os.getpid()} {time.monotonic()}\n".encode())
        return os.getpid()


@moray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class BeatingAsync:
    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def beat(self) -> int:
        os.write(self.file, f"{os.getpid()} {time.monotonic()}\n".encode())
        return os.getpid()


@moray.remote(num_cpus=0)
class Pacer:
    """Has it beat without a pause, from its own host."""

    def run(self, actor: Any) -> None:
        while True:
            moray.get(actor[0].beat.remote())


@moray.remote
def slow(path: str, seconds: float) -> str:
    """The first attempt takes for ever, wherever it runs."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{moray.get_runtime_context().get_node_id()}\n")
    if len(Path(path).read_text(encoding="utf-8").splitlines()) == 1:
        time.sleep(1_000)
    time.sleep(seconds)
    return str(moray.get_runtime_context().get_node_id())


def beats(path: Path) -> dict[int, list[float]]:
    """Process → when its methods started."""
    found: dict[int, list[float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        pid, at = line.split()
        found.setdefault(int(pid), []).append(float(at))
    return found


@pytest.mark.long
@pytest.mark.usefixtures("leaks")
def test_cut_off_and_healed(shared_session: Hosts, tmp_path: Path) -> None:
    cluster, host = shared_session, shared_session.hosts[1]
    old = host.node()
    there = NodeAffinitySchedulingStrategy(old.node_id, soft=True)
    only_there = NodeAffinitySchedulingStrategy(old.node_id, soft=False)
    kinds: dict[str, Any] = {
        "ordinary": Beating,
        "threads": Beating.options(max_concurrency=3),
        "async": BeatingAsync,
    }
    paths = {kind: tmp_path / kind for kind in kinds}
    actors = {kind: made.options(scheduling_strategy=there).remote(str(paths[kind])) for kind, made in kinds.items()}
    first = {kind: moray.get(actor.beat.remote(), timeout=TIMEOUT_S) for kind, actor in actors.items()}
    pacers = [Pacer.options(scheduling_strategy=only_there).remote() for _ in actors]
    for pacer, actor in zip(pacers, actors.values(), strict=True):
        pacer.run.remote([actor])
    task = slow.options(scheduling_strategy=there, max_retries=3).remote(str(tmp_path / "attempts"), 0.1)
    wait_until(lambda: (tmp_path / "attempts").exists(), TIMEOUT_S, "the task began")
    wait_until(lambda: all(len(beats(path)[first[kind]]) > 50 for kind, path in paths.items()), TIMEOUT_S, "they beat")

    host.cut_off()
    cut_at = time.monotonic()
    second = {kind: moray.get(actor.beat.remote(), timeout=TIMEOUT_S) for kind, actor in actors.items()}
    moved_s = time.monotonic() - cut_at
    assert 4 < moved_s < 15, "a lease of 5 s, and 20 % more"
    for kind, path in paths.items():
        found = beats(path)
        assert set(found) == {first[kind], second[kind]}, kind
        last, began = max(found[first[kind]]), min(found[second[kind]])
        assert last > cut_at + 1, f"{kind}: the cut-off host goes on for what is left of its lease"
        assert last < began, f"{kind}: the old incarnation started something {last - began:.3f} s after the new one"
        print(f"{kind}: last start there {last - cut_at:.2f} s after the cut, first elsewhere {began - cut_at:.2f} s")
    assert moray.get(task, timeout=TIMEOUT_S) != old.node_id
    dead = next(node for node in moray.nodes() if node["NodeID"] == old.node_id)
    assert not dead["Alive"]
    with pytest.raises(moray.exceptions.RayActorError, match="nothing was heard of it for"):
        moray.get(pacers[0].run.remote([actors["ordinary"]]), timeout=TIMEOUT_S)

    host.heal()
    healed_at = time.monotonic()
    wait_until(lambda: rejoined(host, old.node_id), TIMEOUT_S, "the host joins anew")
    print(f"healed: back after {time.monotonic() - healed_at:.2f} s")
    assert host.node().pid == old.pid, "in the same process"
    assert not known(old.node_id)
    here = moray.remote(lambda: moray.get_runtime_context().get_node_id())
    assert moray.get(here.options(resources={"b": 1}).remote(), timeout=TIMEOUT_S) == host.node().node_id
    assert "the head took this node for dead: it was declared dead (nothing was heard of it for" in host.log()
    for path in paths.values():
        assert len(beats(path)) == 2, "nothing of the old incarnation runs"
    assert cluster.hosts[0].moray("status").returncode == 0


PROGRAM = """
import time, moray
moray.init("{address}")

@moray.remote(resources={{"c": 1}})
def forever():
    time.sleep(1_000)

ref = forever.remote()
print(moray.wait([ref], timeout=1), flush=True)
try:
    moray.get(ref)
except moray.exceptions.MorayError as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.mark.long
def test_a_driver_is_cut_off(shared_session: Hosts) -> None:
    """It has no node but its own: it is told that it is dead to the cluster, and its tasks end."""
    host = shared_session.hosts[4]
    folder = f"{host.directory}/driver"
    os.mkdir(folder)
    program = PROGRAM.format(address=shared_session.address)
    with host.start(sys.executable, "-c", program, MORAY_TOKEN=shared_session.token, TMPDIR=folder) as process:
        assert process.stdout is not None
        assert "ObjectRef" in process.stdout.readline()
        assert moray.available_resources()["c"] == 3
        host.cut_off()
        wait_until(lambda: moray.available_resources()["c"] == 4, 20, "the task of a driver that is dead ends")
        host.heal()
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert re.search(r"LocalNodeDiedError .*the head took this node for dead: .*nothing was heard of it for", out), out
    assert err.count("has not been heard of for 5 s") == 1, err
    assert os.listdir(folder) == []


def rejoined(host: Host, old_id: str) -> bool:
    """Whether there is another node on the host, which the cluster knows."""
    found = find_nodes(host.directory)
    return bool(found) and found[0].node.node_id != old_id and known(found[0].node.node_id)


def known(node_id: str) -> bool:
    """Whether the cluster counts it among the living."""
    return any(node["NodeID"] == node_id and node["Alive"] for node in moray.nodes())
