"""Results that are lost with their nodes are made again (LINEAGE)."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moray
from moray.cluster_utils import Cluster, ClusterNode
from moray.runtime import state

TIMEOUT_S = 60
#: Bytes of a result that goes into the store.
LARGE = 800_000


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[Cluster]:
    """The head's node with one CPU, where the driver is; tests add nodes with resource "far"."""
    del module_leaks
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        cluster.connect()
        yield cluster


@pytest.fixture
def far(shared_session: Cluster) -> Iterator[list[ClusterNode]]:
    """One node with resource "far". What is added to the list is removed after the test."""
    nodes = [add(shared_session)]
    yield nodes
    while nodes:
        shared_session.remove_node(nodes.pop(), allow_graceful=False)
    wait_until_known(nodes)


def wait_until_known(far: list[ClusterNode]) -> None:
    """The driver's node knows which nodes are left."""
    deadline = time.monotonic() + TIMEOUT_S
    while moray.cluster_resources().get("far", 0) != 2.0 * len(far):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def add(cluster: Cluster) -> ClusterNode:
    node = cluster.add_node(num_cpus=2, resources={"far": 2})
    cluster.wait_for_nodes()
    return node


def replace(cluster: Cluster, far: list[ClusterNode]) -> None:
    """A node dies; there is another one."""
    far.append(add(cluster))
    cluster.remove_node(far.pop(0), allow_graceful=False)


class Runs:
    """Counts runs of tasks, in files."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)

    def note(self, name: str) -> None:
        fd, _path = tempfile.mkstemp(prefix=f"{name}-", dir=self.directory)
        os.close(fd)

    def of(self, name: str) -> int:
        return sum(each.startswith(f"{name}-") for each in os.listdir(self.directory))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@moray.remote(resources={"far": 1})
def make(runs: Runs, name: str, value: int = 1) -> Any:
    runs.note(name)
    return np.full(LARGE // 8, value)


@moray.remote(resources={"far": 1})
def add_up(runs: Runs, name: str, *arrays: Any) -> Any:
    runs.note(name)
    return sum(arrays[1:], arrays[0]) + 1


@moray.remote(num_cpus=0)
def first(array: Any) -> int:
    return int(array[0])


def ready(*refs: Any) -> None:
    done, _ = moray.wait(list(refs), num_returns=len(refs), timeout=TIMEOUT_S)
    assert len(done) == len(refs)


def test_a_result_is_made_again(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    ref = make.remote(runs, "a", 7)
    ready(ref)
    replace(shared_session, far)
    assert moray.get(ref, timeout=TIMEOUT_S)[0] == 7
    assert runs.of("a") == 2
    assert moray.get(first.remote(ref), timeout=TIMEOUT_S) == 7


def test_a_chain_whose_links_are_freed(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    a = make.remote(runs, "a", 1)
    b = add_up.remote(runs, "b", a)
    c = add_up.remote(runs, "c", b)
    ready(c)
    del a, b
    replace(shared_session, far)
    assert moray.get(c, timeout=TIMEOUT_S)[0] == 3
    assert [runs.of(name) for name in "abc"] == [2, 2, 2]


def test_a_shared_argument_is_made_again_once(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    shared = make.remote(runs, "shared", 1)
    sums = [add_up.remote(runs, f"sum{number}", shared) for number in range(4)]
    ready(*sums)
    del shared
    replace(shared_session, far)
    assert [value[0] for value in moray.get(sums, timeout=TIMEOUT_S)] == [2] * 4
    assert runs.of("shared") == 2
    assert [runs.of(f"sum{number}") for number in range(4)] == [2] * 4


def test_a_copy_elsewhere_is_used_first(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    ref = make.remote(runs, "a", 5)
    kept = moray.get(ref, timeout=TIMEOUT_S)
    replace(shared_session, far)
    wait_until_known(far)
    assert moray.get(ref, timeout=TIMEOUT_S)[0] == kept[0] == 5
    assert runs.of("a") == 1


def test_an_argument_that_was_put_is_kept(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    result = add_up.remote(runs, "b", np.full(LARGE // 8, 3))
    ready(result)
    replace(shared_session, far)
    assert moray.get(result, timeout=TIMEOUT_S)[0] == 4


def test_a_put_by_a_dead_worker_is_named(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    @moray.remote(resources={"far": 1})
    def puts() -> Any:
        return [moray.put(np.full(LARGE // 8, 3))]

    (inner,) = moray.get(puts.remote(), timeout=TIMEOUT_S)
    result = add_up.remote(runs, "b", inner)
    ready(result)
    replace(shared_session, far)
    with pytest.raises(moray.exceptions.ObjectLostError, match=inner.hex()):
        moray.get(result, timeout=TIMEOUT_S)


def test_without_retries(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    ref = make.options(max_retries=0).remote(runs, "a")
    ready(ref)
    replace(shared_session, far)
    with pytest.raises(moray.exceptions.ObjectReconstructionFailedError, match=r"task make\(\) has max_retries=0"):
        moray.get(ref, timeout=TIMEOUT_S)
    with pytest.raises(moray.exceptions.ObjectReconstructionFailedError):
        moray.get(first.remote(ref), timeout=TIMEOUT_S)
    assert runs.of("a") == 1


def test_no_more_often_than_max_retries(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    ref = make.options(max_retries=1).remote(runs, "a", 4)
    ready(ref)
    replace(shared_session, far)
    ready(first.options(resources={"far": 1}).remote(ref))  # Where the value is: no node gets a copy.
    assert runs.of("a") == 2
    replace(shared_session, far)
    with pytest.raises(moray.exceptions.ObjectReconstructionFailedError, match="max_retries=1, and it was run 2 times"):
        moray.get(ref, timeout=TIMEOUT_S)
    assert runs.of("a") == 2


def test_generator_items(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    @moray.remote(resources={"far": 1})
    def items(number: int) -> Any:
        runs.note("items")
        for index in range(number):
            yield np.full(LARGE // 8, index) if index % 2 else index

    refs = list(items.remote(6))
    ready(*refs)
    del refs[3]
    replace(shared_session, far)
    values = moray.get(refs, timeout=TIMEOUT_S)
    assert [int(np.ravel(value)[0]) for value in values] == [0, 1, 2, 4, 5]
    assert runs.of("items") == 2


def test_one_of_several_results(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    @moray.remote(resources={"far": 1}, num_returns=3)
    def three() -> Any:
        runs.note("three")
        return np.full(LARGE // 8, 1), 2, np.full(LARGE // 8, 3)

    one, two, last = three.remote()
    ready(one, two, last)
    held = moray.get(one, timeout=TIMEOUT_S)  # There is a copy here.
    replace(shared_session, far)
    assert moray.get(last, timeout=TIMEOUT_S)[0] == 3
    assert moray.get(one, timeout=TIMEOUT_S)[0] == held[0] == 1
    assert moray.get(two) == 2
    assert runs.of("three") == 2


def test_borrowers_get_the_rebuilt_value(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    @moray.remote(num_cpus=0)
    class Reader:
        def take(self, refs: list[Any]) -> bool:
            self.refs = refs
            ready(*refs)
            return True

        def read(self) -> int:
            return int(moray.get(self.refs[0], timeout=TIMEOUT_S)[0])

        def given(self, array: Any) -> int:
            return int(array[0])

    from moray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(shared_session.list_all_nodes()[0].node_id, soft=False)
    readers = [Reader.options(scheduling_strategy=here).remote() for _ in range(3)]
    ref = make.remote(runs, "a", 8)
    assert moray.get([reader.take.remote([ref]) for reader in readers], timeout=TIMEOUT_S) == [True] * 3
    replace(shared_session, far)
    given = [reader.given.remote(ref) for reader in readers]
    read = [reader.read.remote() for reader in readers]
    assert moray.get(read, timeout=TIMEOUT_S) == [8] * 3
    assert moray.get(given, timeout=TIMEOUT_S) == [8] * 3
    assert runs.of("a") == 2


def test_actors_rebuild_what_they_own(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    @moray.remote(num_cpus=0)
    class Owner:
        def begin(self) -> list[Any]:
            self.made = make.remote(runs, "a", 2)
            self.sum = add_up.remote(runs, "b", self.made)
            ready(self.sum)
            del self.made
            return [self.sum]

        def value(self) -> int:
            return int(moray.get(self.sum, timeout=TIMEOUT_S)[0])

        async def later(self) -> int:
            return int((await self.sum)[0])

    from moray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(shared_session.list_all_nodes()[0].node_id, soft=False)
    owner = Owner.options(scheduling_strategy=here).remote()
    (borrowed,) = moray.get(owner.begin.remote(), timeout=TIMEOUT_S)
    replace(shared_session, far)
    later, value, given = owner.later.remote(), owner.value.remote(), first.remote(borrowed)
    assert moray.get(borrowed, timeout=TIMEOUT_S)[0] == 3
    assert moray.get([later, value, given], timeout=TIMEOUT_S) == [3, 3, 3]
    assert runs.of("a") == runs.of("b") == 2


def test_a_node_dies_during_the_rebuilding(shared_session: Cluster, far: list[ClusterNode], runs: Runs) -> None:
    @moray.remote(resources={"far": 1})
    def slow(array: Any) -> Any:
        runs.note("slow")
        time.sleep(0.3)
        return array + 1

    made = make.remote(runs, "a", 1)
    result = slow.remote(made)
    ready(result)
    del made
    replace(shared_session, far)
    deadline = time.monotonic() + TIMEOUT_S
    while runs.of("slow") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    replace(shared_session, far)
    assert moray.get(result, timeout=TIMEOUT_S)[0] == 2
    assert runs.of("slow") == 3


@pytest.mark.usefixtures("far")
def test_a_dead_attempts_leavings_elsewhere_are_not_the_result(runs: Runs, tmp_path_factory: Any) -> None:
    go = str(tmp_path_factory.mktemp("go") / "go")

    @moray.remote(max_retries=1)
    def dies_once(array: Any) -> Any:
        runs.note("dies")
        if runs.of("dies") == 1:
            while not os.path.exists(go):
                time.sleep(0.005)
            os._exit(1)
        return array + 1

    @moray.remote(num_cpus=1)
    class Blocker:
        def there(self) -> str:
            return str(moray.get_runtime_context().get_node_id())

    # The node of the driver is full at first; when the task is tried again, it is free, and has the argument.
    from moray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = moray.get_runtime_context().get_node_id()
    blocker = Blocker.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote()
    assert moray.get(blocker.there.remote(), timeout=TIMEOUT_S) == here
    result = dies_once.remote(moray.put(np.full(LARGE // 8, 1)))
    deadline = time.monotonic() + TIMEOUT_S
    while not runs.of("dies"):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    moray.kill(blocker)
    with open(go, "w"):
        pass
    assert moray.get(result, timeout=TIMEOUT_S)[0] == 2
    assert runs.of("dies") == 2


def test_what_actors_made(shared_session: Cluster, far: list[ClusterNode]) -> None:
    @moray.remote(resources={"far": 1})
    class Maker:
        def make(self) -> Any:
            return np.full(LARGE // 8, 6)

    once = Maker.remote()
    often = Maker.options(max_restarts=-1, max_task_retries=-1).remote()
    lost, again = once.make.remote(), often.make.remote()
    ready(lost, again)
    replace(shared_session, far)
    with pytest.raises(moray.exceptions.ObjectReconstructionFailedError, match=r"make\(\) has max_task_retries=0"):
        moray.get(lost, timeout=TIMEOUT_S)
    assert moray.get(again, timeout=TIMEOUT_S)[0] == 6


def test_a_get_in_progress_goes_on_and_explain_says_why(
    shared_session: Cluster, far: list[ClusterNode], runs: Runs
) -> None:
    ref = make.remote(runs, "a", 9)
    ready(ref)
    shared_session.remove_node(far.pop(), allow_graceful=False)
    with pytest.raises(moray.exceptions.GetTimeoutError):
        moray.get(ref, timeout=1)
    assert "is being rebuilt" in str(moray.explain(ref))
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(moray.get(ref, timeout=TIMEOUT_S)))
    thread.start()
    assert not moray.wait([ref], timeout=0.2)[0]
    far.append(add(shared_session))
    thread.join()
    assert got[0][0] == 9


def test_what_went_by_the_budget_is_named(
    shared_session: Cluster, far: list[ClusterNode], runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state.runtime is not None
    made = make.remote(runs, "a")
    ready(made)
    monkeypatch.setattr(state.runtime.recovery.core, "budget", 1)
    result = add_up.remote(runs, "b", made)
    ready(result)
    assert "If its copies are lost, it cannot be rebuilt" in str(moray.explain(made))
    del made
    replace(shared_session, far)
    with pytest.raises(moray.exceptions.ObjectReconstructionFailedError, match=r"how to run task \w+\(\) again was"):
        moray.get(result, timeout=TIMEOUT_S)


@pytest.mark.usefixtures("shared_session")
def test_nothing_is_remembered_in_vain(far: list[ClusterNode], runs: Runs) -> None:
    assert state.runtime is not None
    recovery = state.runtime.recovery
    refs = [add_up.remote(runs, "b", make.remote(runs, "a")) for _ in range(3)]
    ready(*refs)
    assert recovery._recipes
    del refs
    deadline = time.monotonic() + TIMEOUT_S
    while recovery._recipes or recovery._entries or recovery.core.bytes:
        assert time.monotonic() < deadline, recovery._recipes
        state.runtime.wake()
        time.sleep(0.01)
    recovery.core.check()
