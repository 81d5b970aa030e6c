"""Nodes that are drained: actors and objects move, what cannot is waited for until the deadline, and they leave."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return"

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.cluster_utils import Cluster, ClusterNode
from moray.runtime.cluster_report import cluster_report, drain_node
from moray.util.placement_group import placement_group
from moray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
from tests.support.procs import wait_until

pytestmark = pytest.mark.slow

TIMEOUT_S = 60
SIZE = 1 << 20


@pytest.fixture
def cluster(leaks: Any) -> Iterator[Cluster]:
    """The head's node with two CPUs, and two others with two each and all of "b"."""
    del leaks
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as made:
        made.add_node(num_cpus=2, resources={"b": 4})
        made.add_node(num_cpus=2, resources={"b": 4})
        made.connect()
        made.wait_for_nodes()
        yield made


def drain(node: ClusterNode, seconds: float) -> None:
    problem = drain_node(node.node_id, seconds, "test")
    assert not problem, problem


def leaving(node: ClusterNode) -> list[str]:
    """What holds a node, as `moray status` shows it."""
    found = next(each for each in cluster_report()["nodes"] if each["id"] == node.node_id)
    return found["leaving"]["holds"] if found["leaving"] else []


def wait_gone(node: ClusterNode, seconds: float) -> None:
    wait_until(lambda: not node.any_processes_alive(), seconds, f"the leave of {node}")


def at(node: ClusterNode) -> dict[str, Any]:
    """Options: on this node as long as it is there, else anywhere."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.node_id, soft=True)}


@moray.remote(max_restarts=1)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, seconds: float = 0, begun: Path | None = None) -> int:
        if begun is not None:
            begun.touch()
        time.sleep(seconds)
        self.count += 1
        return self.count

    def note(self, number: int) -> tuple[int, int]:
        self.count += 1
        return number, os.getpid()

    def where(self) -> str:
        return str(moray.get_runtime_context().get_node_id())

    def make(self, size: int) -> bytes:
        return bytes(size)

    def keep(self, size: int, seconds: float = 0, begun: Path | None = None) -> Any:
        if begun is not None:
            begun.touch()
        time.sleep(seconds)
        return [moray.put(bytes(size))]


@moray.remote(max_restarts=1)
class Waiter:
    async def where(self) -> str:
        return str(moray.get_runtime_context().get_node_id())

    async def echo(self, number: int) -> int:
        return number


@moray.remote(max_retries=0)
def make(size: int) -> bytes:
    return os.urandom(size)


@moray.remote
def nap(seconds: float, begun: Path | None = None) -> str:
    if begun is not None:
        begun.touch()
    time.sleep(seconds)
    return str(moray.get_runtime_context().get_node_id())


class Callers:
    """Threads that call an actor one after the other, and burst after burst, and note what they get."""

    def __init__(self, actor: Any, count: int = 3) -> None:
        self._actor = actor
        self._over = threading.Event()
        self.answers: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._call, args=(which,)) for which in range(count)]
        for thread in self._threads:
            thread.start()

    def _call(self, which: int) -> None:
        answers, number = self.answers[which], 0
        try:
            while not self._over.is_set():
                burst = 1 if which == 0 else 20
                refs = [self._actor.note.remote(number + more) for more in range(burst)]
                number += burst
                answers += moray.get(refs, timeout=TIMEOUT_S)
        except BaseException as error:
            self.errors.append(error)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert not self.errors, self.errors


def test_actors_move_while_they_are_called(cluster: Cluster) -> None:
    node = cluster.worker_nodes[0]
    actor = Counter.options(num_cpus=0.5, **at(node)).remote()
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) == node.node_id
    callers = Callers(actor)
    wait_until(lambda: all(callers.answers), 20, "all call it")
    drain(node, 60)
    wait_gone(node, 30)
    callers.end()
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) != node.node_id
    for answers in callers.answers:
        numbers, pids = zip(*answers, strict=True)
        assert list(numbers) == list(range(len(numbers))), "each once, in order"
        changes = sum(one != other for one, other in pairwise(pids))
        assert changes == 1, "first the old incarnation, then the new one"


def test_a_call_in_progress_finishes_and_what_waits_behind_it_moves(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.worker_nodes[0]
    actor = Counter.options(num_cpus=0.5, **at(node)).remote()
    assert moray.get(actor.add.remote(), timeout=TIMEOUT_S) == 1
    running = actor.add.remote(2, tmp_path / "begun")
    behind = [actor.add.remote() for _ in range(30)]
    wait_until((tmp_path / "begun").exists, 20, "the call has begun")
    drain(node, 60)
    assert moray.get(running, timeout=TIMEOUT_S) == 2
    assert moray.get(behind, timeout=TIMEOUT_S) == list(range(1, 31)), "begun anew, in order, without retries"
    wait_gone(node, 30)


def test_moving_is_no_restart_that_counts(cluster: Cluster) -> None:
    """max_restarts=1: moved once and again, and then restarted."""
    actor = Counter.options(num_cpus=0, resources={"b": 1}).remote()
    for _ in range(2):
        home = moray.get(actor.where.remote(), timeout=TIMEOUT_S)
        node = next(each for each in cluster.worker_nodes if each.node_id == home)
        drain(node, 60)
        wait_gone(node, 30)
        cluster.worker_nodes.remove(node)
        cluster.add_node(num_cpus=1, resources={"b": 1})
    assert moray.get(actor.add.remote(), timeout=TIMEOUT_S) == 1
    moray.kill(actor, no_restart=False)
    wait_until(lambda: _restarted(actor), TIMEOUT_S, "its one restart")


def _restarted(actor: Any) -> bool:
    try:
        return moray.get(actor.add.remote(), timeout=TIMEOUT_S) == 1
    except moray.exceptions.ActorUnavailableError:
        return False


def test_an_async_actor_and_a_detached_one_move(cluster: Cluster) -> None:
    node = cluster.worker_nodes[0]
    actor = Waiter.options(num_cpus=0.5, **at(node)).remote()
    detached = Counter.options(num_cpus=0.5, name="kept", lifetime="detached", **at(node)).remote()
    assert moray.get([actor.where.remote(), detached.where.remote()], timeout=TIMEOUT_S) == [node.node_id] * 2
    refs = [actor.echo.remote(number) for number in range(500)]
    drain(node, 60)
    refs += [actor.echo.remote(number) for number in range(500, 1000)]
    assert moray.get(refs, timeout=TIMEOUT_S) == list(range(1000))
    wait_gone(node, 30)
    assert moray.get(moray.get_actor("kept").where.remote(), timeout=TIMEOUT_S) != node.node_id
    moray.kill(detached)


def test_objects_move_without_lineage(cluster: Cluster) -> None:
    """Results of tasks without retries and of calls, borrowed ones, and spilled ones: nothing could make them again."""
    node = cluster.worker_nodes[0]
    actor = Counter.options(num_cpus=0.5, max_restarts=0, **at(node)).remote()
    refs = [make.options(num_cpus=0.5, **at(node)).remote(SIZE) for _ in range(20)]
    refs += [actor.make.remote(SIZE)]
    ready, _ = moray.wait(refs, num_returns=len(refs), timeout=TIMEOUT_S, fetch_local=False)
    assert len(ready) == len(refs)
    borrower = Counter.options(num_cpus=0.5, **at(cluster.worker_nodes[1])).remote()
    values = [hash(moray.get(refs[0], timeout=TIMEOUT_S))]
    del actor
    drain(node, 60)
    wait_gone(node, 30)
    assert [len(value) for value in moray.get(refs, timeout=TIMEOUT_S)] == [SIZE] * len(refs)
    assert [hash(moray.get(refs[0], timeout=TIMEOUT_S))] == values
    del borrower, refs


def test_spilled_objects_move() -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        node = cluster.add_node(num_cpus=1, resources={"b": 1}, object_store_memory=32 << 20)
        cluster.connect()
        refs = [make.options(num_cpus=0, resources={"b": 1}).remote(8 * SIZE) for _ in range(12)]
        moray.wait(refs, num_returns=len(refs), timeout=TIMEOUT_S, fetch_local=False)
        drain(node, 60)
        wait_gone(node, 40)
        for ref in refs:
            assert len(moray.get(ref, timeout=TIMEOUT_S)) == 8 * SIZE


def test_objects_freed_while_they_move_are_freed_everywhere(cluster: Cluster) -> None:
    node = cluster.worker_nodes[0]
    for _ in range(3):
        refs = [make.options(num_cpus=0.5, **at(node)).remote(SIZE) for _ in range(10)]
        moray.wait(refs, num_returns=10, timeout=TIMEOUT_S, fetch_local=False)
    drain(node, 60)
    while node.any_processes_alive() and len(refs) > 1:
        refs.pop()
        time.sleep(0.02)
    wait_gone(node, 30)
    assert len(moray.get(refs[0], timeout=TIMEOUT_S)) == SIZE
    del refs
    wait_until(lambda: _stored() == 0, 10, "all copies are freed")


def _stored() -> int:
    """Objects in the stores of the living nodes."""
    nodes = [node["NodeID"] for node in moray.nodes() if node["Alive"]]
    return sum(
        moray.get(
            _objects_here.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(),
            timeout=TIMEOUT_S,
        )
        for node in nodes
    )


@moray.remote
def _objects_here() -> int:
    from moray.protocol import messages as m
    from moray.runtime import state

    assert state.runtime is not None
    return int(state.runtime.ask(m.ClusterInfo).state["store"]["objects"])


def test_an_actor_with_objects_of_others_stays_until_the_deadline(cluster: Cluster) -> None:
    """OWNER-STAYS: they would end with it."""
    node = cluster.worker_nodes[0]
    actor = Counter.options(num_cpus=0.5, **at(node)).remote()
    [kept] = moray.get(actor.keep.remote(SIZE), timeout=TIMEOUT_S)
    drain(node, 8)
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) == node.node_id
    assert len(moray.get(kept, timeout=TIMEOUT_S)) == SIZE
    wait_gone(node, 20)
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) != node.node_id


def test_the_deadline_ends_what_cannot_move(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.worker_nodes[0]
    stays = Counter.options(num_cpus=0.5, max_restarts=0, **at(node)).remote()
    sleeper = Counter.options(num_cpus=0.5, max_restarts=-1, **at(node)).remote()
    task = nap.options(num_cpus=0.5, max_retries=-1, **at(node))
    assert moray.get([stays.add.remote(), sleeper.add.remote()], timeout=TIMEOUT_S) == [1, 1]
    begun = [tmp_path / "call", tmp_path / "task"]
    long_call, long_task = sleeper.add.remote(600, begun[0]), task.remote(600, begun[1])
    behind = sleeper.add.remote()
    wait_until(lambda: all(path.exists() for path in begun), 20, "both have begun")
    began = time.monotonic()
    drain(node, 5)
    wait_until(lambda: any("actor" in line for line in leaving(node)), 5, "the status says what holds it")
    held = " ".join(leaving(node))
    assert "Counter" in held, held
    assert "nap" in held, held
    wait_gone(node, 15)
    assert time.monotonic() - began > 4
    with pytest.raises(moray.exceptions.ActorDiedError, match="drained: test"):
        moray.get(stays.add.remote(), timeout=TIMEOUT_S)
    with pytest.raises(moray.exceptions.ActorUnavailableError, match="drained: test"):
        moray.get(long_call, timeout=TIMEOUT_S)
    assert moray.get(behind, timeout=TIMEOUT_S) == 1, "what had not begun costs nothing"
    moray.cancel(long_task, force=True)


def test_no_other_node_has_room(cluster: Cluster) -> None:
    node = cluster.worker_nodes[0]
    actor = Counter.options(num_cpus=2, **at(node)).remote()
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) == node.node_id
    assert cluster.head_node is not None
    others = [
        Counter.options(num_cpus=1, max_restarts=0, **at(each)).remote()
        for each in (cluster.head_node, cluster.worker_nodes[1])
    ]
    moray.get([other.add.remote() for other in others], timeout=TIMEOUT_S)
    drain(node, 60)
    wait_until(lambda: any("needs CPU: 2" in line for line in leaving(node)), 10, "the status says why")
    wait_until(lambda: any("the most free is CPU: 1" in line for line in leaving(node)), 10, "the status has numbers")
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) == node.node_id, "it goes on meanwhile"
    del others
    wait_gone(node, 30)
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) != node.node_id


def test_two_nodes_at_once(cluster: Cluster) -> None:
    actors = [Counter.options(num_cpus=0.25, **at(node)).remote() for node in cluster.worker_nodes for _ in range(2)]
    refs = [make.options(num_cpus=0.5, **at(node)).remote(SIZE) for node in cluster.worker_nodes for _ in range(5)]
    moray.get([actor.add.remote() for actor in actors], timeout=TIMEOUT_S)
    moray.wait(refs, num_returns=len(refs), timeout=TIMEOUT_S, fetch_local=False)
    callers = [Callers(actor, 1) for actor in actors]
    for node in cluster.worker_nodes:
        drain(node, 60)
    for node in cluster.worker_nodes:
        wait_gone(node, 40)
    for each in callers:
        each.end()
    assert cluster.head_node is not None
    assert moray.get([actor.where.remote() for actor in actors], timeout=TIMEOUT_S) == [cluster.head_node.node_id] * 4
    assert [len(value) for value in moray.get(refs, timeout=TIMEOUT_S)] == [SIZE] * len(refs)


def test_the_heads_node_stays(cluster: Cluster) -> None:
    assert cluster.head_node is not None
    assert "has the head" in drain_node(cluster.head_node.node_id, 10, "test")
    from moray.protocol import messages as m
    from moray.runtime import state

    assert state.runtime is not None
    node_id = bytes.fromhex(cluster.head_node.node_id)
    answer = state.runtime.ask(lambda number: m.DrainNode(number, node_id, "test", time.time() + 10))
    assert "has the head" in answer.detail, "the head itself says so, too"
    assert "there is no node" in state.runtime.ask(lambda n: m.DrainNode(n, bytes(28), "", time.time())).detail


def test_a_node_is_killed_while_it_is_drained(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.worker_nodes[0]
    actor = Counter.options(num_cpus=0.5, **at(node)).remote()
    busy = Counter.options(num_cpus=0.5, max_restarts=1, **at(node)).remote()
    moray.get([actor.add.remote(), busy.add.remote()], timeout=TIMEOUT_S)
    refs = [make.options(num_cpus=0.5, max_retries=1, **at(node)).remote(SIZE) for _ in range(10)]
    moray.wait(refs, num_returns=len(refs), timeout=TIMEOUT_S, fetch_local=False)
    long_call = busy.add.remote(600, tmp_path / "begun")
    wait_until((tmp_path / "begun").exists, 20, "the call has begun")
    drain(node, 60)
    time.sleep(0.3)
    node.kill()
    assert [len(value) for value in moray.get(refs, timeout=TIMEOUT_S)] == [SIZE] * len(refs)
    with pytest.raises(moray.exceptions.ActorUnavailableError):
        moray.get(long_call, timeout=TIMEOUT_S)
    for each in (actor, busy):
        assert moray.get(each.where.remote(), timeout=TIMEOUT_S) != node.node_id
    cluster.worker_nodes.remove(node)


def test_the_head_is_killed_while_a_node_is_drained(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.worker_nodes[0]
    actor = Counter.options(num_cpus=0.5, **at(node)).remote()
    moray.get(actor.add.remote(), timeout=TIMEOUT_S)
    running = actor.add.remote(3, tmp_path / "begun")
    behind = [actor.add.remote() for _ in range(5)]
    wait_until((tmp_path / "begun").exists, 20, "the call has begun")
    drain(node, 60)
    assert cluster.head_node is not None
    cluster.head_node.kill_gcs_server()
    assert moray.get(running, timeout=TIMEOUT_S) == 2
    assert moray.get(behind, timeout=TIMEOUT_S) == [1, 2, 3, 4, 5]
    wait_gone(node, 40)


def test_bundles_and_what_is_in_them_move(cluster: Cluster) -> None:
    group = placement_group([{"b": 1}, {"b": 1}], strategy="STRICT_PACK")
    assert group.wait(TIMEOUT_S)
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=1)
    actor = Counter.options(num_cpus=0, resources={"b": 1}, scheduling_strategy=strategy).remote()
    home = moray.get(actor.where.remote(), timeout=TIMEOUT_S)
    node = next(each for each in cluster.worker_nodes if each.node_id == home)
    callers = Callers(actor, 1)
    drain(node, 60)
    wait_gone(node, 40)
    callers.end()
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) not in ("", home)
    moray.util.remove_placement_group(group)


def test_streams_of_tasks_go_elsewhere(cluster: Cluster) -> None:
    """Owners that always have a next task do not keep a node: its leases are taken back."""
    node = cluster.worker_nodes[0]
    over = threading.Event()
    homes: list[str] = []

    def submit() -> None:
        while not over.is_set():
            homes.extend(moray.get([nap.options(num_cpus=0.5).remote(0.01) for _ in range(12)], timeout=TIMEOUT_S))

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        wait_until(lambda: node.node_id in homes, 20, "the node has work")
        drain(node, 60)
        wait_gone(node, 20)
    finally:
        over.set()
        thread.join()


@moray.remote(max_restarts=1, max_concurrency=4)
class Asker:
    """Threads; its calls ask another actor, which asks it."""

    def ask(self, other: Any, me: Any, depth: int, begun: Path) -> int:
        begun.touch()
        time.sleep(0.5 if depth > 1 else 0)
        return 1 + moray.get(other.ask.remote(me, other, depth - 1, begun)) if depth else 0

    def where(self) -> str:
        return str(moray.get_runtime_context().get_node_id())


@moray.remote(max_restarts=1)
class AsyncAsker:
    async def ask(self, other: Any, me: Any, depth: int, begun: Path) -> int:
        await asyncio.to_thread(begun.touch)
        await asyncio.sleep(0.5 if depth > 1 else 0)
        return 1 + await other.ask.remote(me, other, depth - 1, begun) if depth else 0

    async def where(self) -> str:
        return str(moray.get_runtime_context().get_node_id())


@pytest.mark.parametrize("kind", [Asker, AsyncAsker])
def test_calls_that_come_back_to_an_actor_that_moves(cluster: Cluster, tmp_path: Path, kind: Any) -> None:
    """What it has begun could not finish otherwise."""
    node = cluster.worker_nodes[0]
    actor = kind.options(num_cpus=0.5, **at(node)).remote()
    other = kind.options(num_cpus=0.5, **at(cluster.worker_nodes[1])).remote()
    assert moray.get([actor.where.remote(), other.where.remote()], timeout=TIMEOUT_S)[0] == node.node_id
    calls = [actor.ask.remote(other, actor, 2, tmp_path / "begun") for _ in range(2)]
    wait_until((tmp_path / "begun").exists, 20, "a call has begun")
    drain(node, 60)
    assert moray.get(calls, timeout=20) == [2, 2]
    wait_gone(node, 20)
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) != node.node_id


@moray.remote(max_restarts=1)
class Signal:
    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def wait(self, begun: Path) -> str:
        await asyncio.to_thread(begun.touch)
        await self.event.wait()
        return "sent"

    async def send(self) -> str:
        self.event.set()
        return str(moray.get_runtime_context().get_node_id())


def test_a_call_that_waits_for_what_another_one_sets(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.worker_nodes[0]
    actor = Signal.options(num_cpus=0.5, **at(node)).remote()
    waits = actor.wait.remote(tmp_path / "begun")
    wait_until((tmp_path / "begun").exists, 20, "the call has begun")
    drain(node, 60)
    time.sleep(2)
    assert moray.get(actor.send.remote(), timeout=20) == node.node_id
    assert moray.get(waits, timeout=5) == "sent"
    wait_gone(node, 20)
    assert moray.get(actor.send.remote(), timeout=TIMEOUT_S) != node.node_id


def test_objects_that_a_call_in_progress_returns(cluster: Cluster, tmp_path: Path) -> None:
    """OWNER-STAYS: they came after the actor had been told to move."""
    node = cluster.worker_nodes[0]
    actor = Counter.options(num_cpus=0.5, **at(node)).remote()
    slow = actor.keep.remote(SIZE, 2, tmp_path / "begun")
    behind = actor.add.remote()
    wait_until((tmp_path / "begun").exists, 20, "the call has begun")
    drain(node, 60)
    [kept] = moray.get(slow, timeout=TIMEOUT_S)
    assert moray.get(behind, timeout=TIMEOUT_S) == 1
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) == node.node_id, "it goes on"
    assert len(moray.get(kept, timeout=TIMEOUT_S)) == SIZE
    del kept, slow
    wait_gone(node, 30)
    assert moray.get(actor.where.remote(), timeout=TIMEOUT_S) != node.node_id


def test_a_second_drain_sets_another_deadline(cluster: Cluster, tmp_path: Path) -> None:
    """Earlier: what has not begun costs nothing nevertheless. Later: what was kept for others stays."""
    first, second = cluster.worker_nodes
    actors = [Counter.options(num_cpus=0.5, **at(node)).remote() for node in (first, second)]
    kept = [moray.get(actor.keep.remote(SIZE), timeout=TIMEOUT_S)[0] for actor in actors]
    drain(first, 600)
    drain(second, 6)
    time.sleep(1)  # Both have been told to move.
    long_call, behind = actors[0].add.remote(600, tmp_path / "begun"), actors[0].add.remote()
    wait_until((tmp_path / "begun").exists, 20, "the call has begun")
    drain(first, 6)
    drain(second, 600)
    wait_gone(first, 15)
    with pytest.raises(moray.exceptions.ActorUnavailableError, match="drained: test"):
        moray.get(long_call, timeout=TIMEOUT_S)
    assert moray.get(behind, timeout=TIMEOUT_S) == 1, "what had not begun costs nothing"
    assert moray.get(actors[1].where.remote(), timeout=TIMEOUT_S) == second.node_id
    assert len(moray.get(kept[1], timeout=TIMEOUT_S)) == SIZE
    del kept
    wait_gone(second, 20)


def test_the_deadline_comes_and_nobody_has_room(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.worker_nodes[0]
    actor = Counter.options(num_cpus=0, resources={"b": 3}, **at(node)).remote()
    other = Counter.options(num_cpus=0, resources={"b": 2}, **at(cluster.worker_nodes[1])).remote()
    moray.get([actor.add.remote(), other.add.remote()], timeout=TIMEOUT_S)
    long_call, behind = actor.add.remote(600, tmp_path / "begun"), actor.add.remote()
    wait_until((tmp_path / "begun").exists, 20, "the call has begun")
    drain(node, 5)
    wait_gone(node, 15)
    with pytest.raises(moray.exceptions.ActorUnavailableError, match="drained: test"):
        moray.get(long_call, timeout=TIMEOUT_S)
    del other
    assert moray.get(behind, timeout=TIMEOUT_S) == 1, "what had not begun costs nothing"


def test_the_node_that_takes_objects_over_dies(cluster: Cluster) -> None:
    """Copies that it had are those of the node that leaves again."""
    node, other = cluster.worker_nodes
    refs = [make.options(num_cpus=0.5, **at(node)).remote(SIZE) for _ in range(150)]
    moray.wait(refs, num_returns=len(refs), timeout=TIMEOUT_S, fetch_local=False)
    keeper = Counter.options(num_cpus=0.5, max_restarts=0, **at(node)).remote()
    assert moray.get(keeper.add.remote(), timeout=TIMEOUT_S) == 1
    drain(node, 60)
    time.sleep(0.5)
    other.kill()
    cluster.worker_nodes.remove(other)
    # A node that leaves can keep its copies for a death only if it has heard of it.
    wait_until(lambda: other.node_id not in [n["NodeID"] for n in moray.nodes() if n["Alive"]], 40, "word of the death")
    del keeper
    wait_gone(node, 40)
    assert [len(value) for value in moray.get(refs, timeout=TIMEOUT_S)] == [SIZE] * len(refs)


@moray.remote
def length(value: bytes) -> int:
    return len(value)


@moray.remote(max_restarts=0)
class Owner:
    """Has objects at a node that leaves."""

    def begin(self, options: dict[str, Any]) -> int:
        self.refs = [make.options(num_cpus=0.5, **options).remote(SIZE) for _ in range(4)]
        moray.wait(self.refs, num_returns=4, timeout=TIMEOUT_S, fetch_local=False)
        return os.getpid()

    def sizes(self) -> list[int]:
        return [len(value) for value in moray.get(self.refs, timeout=20)]

    def copy(self, options: dict[str, Any]) -> int:
        return sum(moray.get([length.options(num_cpus=0.5, **options).remote(ref) for ref in self.refs], timeout=20))


def test_a_copy_stays_until_its_owner_has_found_it() -> None:
    """The node that took objects over dies, and what is left of them lies at the node that leaves."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 64 << 20}) as cluster:
        node, other = (cluster.add_node(num_cpus=1, object_store_memory=256 << 20) for _ in range(2))
        cluster.connect()
        assert cluster.head_node is not None
        owner = Owner.options(num_cpus=0.5, **at(cluster.head_node)).remote()
        keeper = Counter.options(num_cpus=0, max_restarts=0, **at(node)).remote()
        assert moray.get(keeper.where.remote(), timeout=TIMEOUT_S) == node.node_id
        pid = moray.get(owner.begin.remote(at(node)), timeout=TIMEOUT_S)
        drain(node, 60)
        wait_until(lambda: leaving(node) == ["1 actor: Counter"], 20, "the objects have moved")
        os.kill(pid, signal.SIGSTOP)
        try:
            other.kill()
            cluster.worker_nodes.remove(other)
            wait_until(lambda: any("copies" in line for line in leaving(node)), 20, "the node waits for the owner")
            del keeper
            wait_until(lambda: not any("actor" in line for line in leaving(node)), 20, "nothing else is there")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert moray.get(owner.sizes.remote(), timeout=TIMEOUT_S) == [SIZE] * 4
        wait_gone(node, 20)
        assert moray.get(owner.sizes.remote(), timeout=TIMEOUT_S) == [SIZE] * 4


def test_a_copy_stays_also_if_the_other_node_died_before_this_one_was_told_to_leave() -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        node, other = (cluster.add_node(num_cpus=1) for _ in range(2))
        cluster.connect()
        assert cluster.head_node is not None
        owner = Owner.options(num_cpus=0.5, **at(cluster.head_node)).remote()
        pid = moray.get(owner.begin.remote(at(other)), timeout=TIMEOUT_S)
        assert moray.get(owner.copy.remote(at(node)), timeout=TIMEOUT_S) == 4 * SIZE
        os.kill(pid, signal.SIGSTOP)
        try:
            other.kill()
            cluster.worker_nodes.remove(other)
            wait_until(lambda: other.node_id not in [n["NodeID"] for n in moray.nodes() if n["Alive"]], 40, "its death")
            drain(node, 60)
            wait_until(lambda: any("copies" in line for line in leaving(node)), 5, "the node waits for the owner")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert moray.get(owner.sizes.remote(), timeout=TIMEOUT_S) == [SIZE] * 4
        wait_gone(node, 20)
        assert moray.get(owner.sizes.remote(), timeout=TIMEOUT_S) == [SIZE] * 4
