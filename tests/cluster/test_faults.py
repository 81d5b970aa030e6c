"""Workers, nodes and the head are killed while tasks, actors and objects are under way.

Every get ends with a value or a clear error, what the living nodes have is free again in the end, and nothing of it all
stays behind (the `leaks` fixtures look at that).
"""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return"

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import psutil
import pytest

import moray
from moray.cluster_utils import Cluster, ClusterNode
from moray.platform import process_control
from tests.support.procs import poll_until, wait_until

pytestmark = pytest.mark.slow

TIMEOUT_S = 60
#: Every get must end within this time after the last fault: leases last 5 s, and restarts take their time.
SETTLED_S = 40
SEEDS = 20
#: In ordinary runs.
FEW = 1

#: What a user may be told of work that a fault has hit.
CLEAR = (
    moray.exceptions.WorkerCrashedError,
    moray.exceptions.ActorDiedError,
    moray.exceptions.ActorUnavailableError,
    moray.exceptions.ObjectLostError,
    moray.exceptions.OwnerDiedError,
    moray.exceptions.ObjectReconstructionFailedError,
)


@moray.remote(max_retries=3)
def small(value: int) -> int:
    time.sleep(0.01)
    return value + 1


@moray.remote(max_retries=3)
def large(size: int) -> bytes:
    return bytes(size)


@moray.remote(max_retries=3)
def size_of(value: bytes) -> int:
    return len(value)


@moray.remote(max_retries=3)
def nested(value: int) -> int:
    return int(sum(moray.get([small.remote(value + number) for number in range(3)])))


@moray.remote(num_cpus=0.1, max_restarts=2, max_task_retries=-1)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def make(self, size: int) -> Any:
        return [moray.put(bytes(size))]


class Faults:
    """A cluster of three nodes and a driver; node and worker kills, chosen by a seed."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.pick = random.Random(seed)
        self.log: list[str] = []

    def kill_worker(self) -> None:
        node = self.pick.choice(self.cluster.list_all_nodes())
        workers = [child for child in _descendants(node.pid) if "moray-worker" in _title(child)]
        if workers:
            victim = self.pick.choice(workers)
            self.log.append(f"worker {victim.pid} of {node}")
            _kill(victim.pid)

    def kill_node(self) -> None:
        if self.cluster.worker_nodes:
            node = self.pick.choice(self.cluster.worker_nodes)
            self.log.append(f"{node}")
            self.cluster.remove_node(node, allow_graceful=False)
            wait_until(self._joined, SETTLED_S, "a new node's joining")

    def _joined(self) -> bool:
        try:
            self.cluster.add_node(num_cpus=2, resources={"b": 4}, wait=False)
        except OSError:
            return False  # The next head is on its way.
        return True

    def kill_head(self) -> None:
        for head in head_processes(self.cluster):
            self.log.append(f"head {head.pid}")
            _kill(head.pid)

    def strike(self) -> None:
        self.pick.choice([self.kill_worker] * 3 + [self.kill_node] + [self.kill_head])()


def head_processes(cluster: Cluster) -> list[psutil.Process]:
    assert cluster.head_node is not None
    return [child for child in psutil.Process(cluster.head_node.pid).children() if "moray-head" in _title(child)]


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) + process.name()
    except psutil.NoSuchProcess:
        return ""


def _kill(pid: int) -> None:
    try:
        process_control.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # It has ended by itself.


def outcome(ref: Any) -> Any:
    """The value, or the clear error; anything else fails the test."""
    try:
        return moray.get(ref, timeout=SETTLED_S)
    except moray.exceptions.GetTimeoutError as error:
        raise AssertionError(f"neither a value nor an error: {error}") from error
    except CLEAR as error:
        return error


def until_all_is_free(after: str) -> None:
    """Wait until the living nodes have all that they have in all; the difference fails the test."""

    def taken() -> dict[str, float]:
        available, total = moray.available_resources(), moray.cluster_resources()
        return {name: total[name] - available.get(name, 0) for name in total if available.get(name, 0) != total[name]}

    if not poll_until(lambda: not taken(), SETTLED_S):
        raise AssertionError(f"{taken()} is taken {SETTLED_S} s after {after}")


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[] if seed < FEW else [pytest.mark.long]) for seed in range(SEEDS)]
)
def test_random_faults(seed: int) -> None:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as cluster:
        for _ in range(2):
            cluster.add_node(num_cpus=2, resources={"b": 4})
        cluster.connect()
        cluster.wait_for_nodes()
        faults = Faults(cluster, seed)
        counters = [Counter.remote() for _ in range(3)]
        refs: list[tuple[str, Any, Callable[[Any], bool]]] = []

        def expect(what: str, ref: Any, value: int) -> None:
            refs.append((what, ref, lambda got: got == value))

        for _ in range(4):
            value = faults.pick.randrange(100)
            for _ in range(10):
                expect("small", small.remote(value), value + 1)
            expect("nested", nested.remote(value), 3 * value + 6)
            made = large.options(resources={"b": 0.1}).remote(300_000)
            expect("argument", size_of.remote(made), 300_000)
            refs += [("call", counter.add.remote(), lambda got: got > 0) for counter in counters for _ in range(3)]
            refs.append(("made", counters[0].make.remote(200_000), lambda got: len(got) == 1))
            del made
            faults.strike()
            time.sleep(faults.pick.uniform(0, 0.3))
        begin = time.monotonic()
        for what, ref, right in refs:
            got = outcome(ref)
            assert isinstance(got, CLEAR) or right(got), f"{what}: {got!r} after {faults.log}"
        assert time.monotonic() - begin < SETTLED_S, faults.log
        refs.clear()
        del ref, counters, got, right
        until_all_is_free(str(faults.log))


# --- one fault each ---------------------------------------------------------------------------------------


@moray.remote(num_cpus=0)
class Maker:
    """Owns what it makes."""

    def make(self) -> Any:
        return [moray.put(b"small")]

    def pid(self) -> int:
        return os.getpid()


@moray.remote
class Holder:
    """Knows of an actor at another node by its handle alone."""

    def __init__(self, maker: Any) -> None:
        self.maker = maker
        self.ref: Any = None

    def take(self) -> None:
        self.ref = moray.get(self.maker.make.remote())[0]

    def look(self) -> str:
        try:
            return repr(moray.get(self.ref, timeout=SETTLED_S))
        except moray.exceptions.MorayError as error:
            return type(error).__name__


def at(node: ClusterNode) -> dict[str, Any]:
    from moray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.node_id, soft=False)}


def test_whoever_called_an_actor_elsewhere_hears_of_its_death(shared_session: Cluster) -> None:
    """The actor's address comes from the head: nobody granted it, and nobody asked where it is."""
    b, c = shared_session.worker_nodes[:2]
    maker = Maker.options(**at(b)).remote()
    holder = Holder.options(**at(c)).remote(maker)
    moray.get(holder.take.remote(), timeout=TIMEOUT_S)
    _kill(moray.get(maker.pid.remote(), timeout=TIMEOUT_S))
    begin = time.monotonic()
    assert moray.get(holder.look.remote(), timeout=TIMEOUT_S) == "OwnerDiedError"
    assert time.monotonic() - begin < 20


def test_leases_of_an_owner_that_is_killed_are_free_again(shared_session: Cluster) -> None:
    """The owner is a worker at one node, what it uses is at another, and runs to its end there."""
    b, _c = shared_session.worker_nodes[:2]

    @moray.remote(max_retries=0)
    def hold(seconds: float) -> None:
        time.sleep(seconds)

    @moray.remote(max_retries=0)
    def own() -> int:
        refs = [hold.options(resources={"c": 1}).remote(3) for _ in range(2)]
        moray.wait(refs, timeout=1)
        os.kill(os.getpid(), signal.SIGKILL)
        return len(refs)

    with pytest.raises(moray.exceptions.WorkerCrashedError):
        moray.get(own.options(**at(b)).remote(), timeout=TIMEOUT_S)
    until_all_is_free("the death of the owner")


def test_work_goes_on_while_the_head_is_killed_again_and_again(shared_session: Cluster) -> None:
    over, kills = threading.Event(), 0

    def kill_heads() -> None:
        nonlocal kills
        # Two in a row, and then time enough for one to start on a busy machine.
        for pause_s in cycle((0.5, 0.5, 2.0)):
            if over.wait(pause_s):
                return
            for head in head_processes(shared_session):
                _kill(head.pid)
                kills += 1

    thread = threading.Thread(target=kill_heads)
    thread.start()
    try:
        rounds = 0
        while rounds < 3 or kills < 5:
            rounds += 1
            counter = Counter.remote()
            numbers = moray.get([counter.add.remote() for _ in range(5)], timeout=TIMEOUT_S)
            assert numbers == [1, 2, 3, 4, 5]
            refs = [small.options(resources={"bc"[number % 2]: 0.1}).remote(number) for number in range(20)]
            assert moray.get(refs, timeout=TIMEOUT_S) == list(range(1, 21))
            del counter
    finally:
        over.set()
        thread.join()
    until_all_is_free("the deaths of the head")
