"""Clusters that a program makes for itself: how it, and programs that it starts, become their drivers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.cluster_utils import Cluster
from moray.compat.stand_ins._private import state
from moray.exceptions import ActorError
from moray.launch.session_directory import OWN_CLUSTERS
from moray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from moray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@pytest.fixture
def cluster(leaks: None) -> Iterator[Cluster]:
    del leaks
    with Cluster() as made:
        made.add_node(num_cpus=2, resources={"first": 1})
        made.add_node(num_cpus=1, resources={"second": 1}, memory=1 << 30)
        yield made
        moray.shutdown()
    assert OWN_CLUSTERS not in os.environ


def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run_driver(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_driver_is_at_the_first_node_whatever_it_gives_as_address(cluster: Cluster) -> None:
    assert cluster.head_node is not None
    cluster.wait_for_nodes()  # Without a driver.
    assert not moray.is_initialized()
    for address in (cluster.address, "auto", None):
        moray.init(address)
        assert moray.get_runtime_context().get_node_id() == cluster.head_node.node_id
        assert moray.cluster_resources()["CPU"] == 3
        moray.shutdown()
        assert cluster.remaining_processes_alive()  # The nodes are the cluster's, not the driver's.
    with moray.init(num_cpus=1):  # What a running cluster cannot follow asks for a session.
        assert len(moray.nodes()) == 1
    with moray.init("local"):
        assert len(moray.nodes()) == 1


def test_programs_that_it_starts_find_it_and_others_do_not(cluster: Cluster) -> None:
    count = "import moray; moray.init({!r}); print(len(moray.nodes()))"
    assert run_driver(count.format("auto")) == "2\n"
    assert run_driver(count.format(cluster.address)) == "2\n"
    environ = {name: value for name, value in os.environ.items() if name != OWN_CLUSTERS}
    done = subprocess.run(
        [sys.executable, "-c", count.format(cluster.address)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environ,
    )
    assert "no token" in done.stderr


@pytest.mark.usefixtures("leaks")
def test_a_killed_program_leaves_no_directory_of_its_cluster() -> None:
    code = (
        "import time; from moray.cluster_utils import Cluster\n"
        "made = Cluster(initialize_head=True, head_node_args={'num_cpus': 1}); made.add_node(num_cpus=1)\n"
        "made.connect(); print(made._temp_dir, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        directory = program.stdout.readline().strip()
        assert os.path.isdir(directory)
        program.kill()
    until(lambda: not os.path.exists(directory))


def test_what_a_program_left_that_was_killed_early_goes_with_the_next_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is a node, nobody is left to remove its directory. Those that are young or in use stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Cluster() as living:
        left, young = tmp_path / "moray-cluster-left", tmp_path / "moray-cluster-young"
        for directory in (left, young):
            (directory / f"moray-{os.getuid()}" / ".new_0123").mkdir(parents=True, mode=0o700)
            directory.chmod(0o700)
        for directory in (left, Path(living._temp_dir)):
            os.utime(directory, (0, 0))
        with Cluster():
            assert not left.exists()
            assert young.exists()
            assert os.path.isdir(living._temp_dir)
    assert os.listdir(tmp_path) == ["moray-cluster-young"]


def test_nodes_that_come_and_go_are_waited_for(cluster: Cluster) -> None:
    third = cluster.add_node(num_cpus=1)
    cluster.remove_node(third, allow_graceful=False)
    cluster.wait_for_nodes()  # Without a driver: it becomes one meanwhile.
    assert not moray.is_initialized()
    moray.init(cluster.address)
    assert moray.cluster_resources()["CPU"] == 3
    fourth = cluster.add_node(num_cpus=4)
    assert moray.cluster_resources()["CPU"] == 7
    assert any(node["NodeID"] == fourth.node_id and node["Alive"] for node in moray.nodes())


def test_a_head_that_is_killed_is_followed_by_the_next(cluster: Cluster) -> None:
    assert cluster.head_node is not None
    moray.init(cluster.address)
    (first,) = cluster.head_node._heads()
    cluster.head_node.kill_gcs_server()
    cluster.head_node.start_gcs_server()
    assert cluster.head_node._heads() != [first]
    assert moray.get(moray.remote(abs).options(resources={"second": 1}).remote(-1)) == 1


def test_memory_is_a_resource_of_the_node(cluster: Cluster) -> None:
    moray.init(cluster.address)
    second = next(node for node in moray.nodes() if "second" in node["Resources"])
    assert second["Resources"]["memory"] == 1 << 30


def test_where_actors_live_and_which_jobs_have_ended(cluster: Cluster) -> None:
    moray.init(cluster.address)

    @moray.remote(num_cpus=0, resources={"second": 1})
    class Somewhere:
        def node(self) -> str:
            return moray.get_runtime_context().get_node_id()

    actor: Any = Somewhere.options(name="it", namespace="here").remote()
    where = moray.get(actor.node.remote())
    found = state.actors(actor._actor_id.hex())
    assert (found["State"], found["Address"]["NodeID"], found["Name"]) == ("ALIVE", where, "it")
    assert where != moray.get_runtime_context().get_node_id()
    moray.kill(actor)
    until(lambda: state.actors(actor._actor_id.hex())["State"] == "DEAD")
    assert not any(job["IsDead"] for job in state.jobs())
    pid = int(run_driver("import os, moray; moray.init('auto'); print(os.getpid())"))
    until(lambda: any(job["IsDead"] and job["DriverPid"] == pid for job in state.jobs()))
    free = state.available_resources_per_node()
    assert {name for amounts in free.values() for name in amounts if name in ("first", "second")} == {"first", "second"}
    assert len(free) == 2


def test_placement_groups_as_programs_for_ray_see_them(cluster: Cluster) -> None:
    moray.init(cluster.address)
    with pytest.raises(ValueError, match="'bundle'"):
        placement_group([{"bundle": 1}])
    group = placement_group([{"CPU": 1}, {"CPU": 1}])
    assert group.wait(20)
    assert placement_group_table(group)["stats"]["scheduling_state"] == "FINISHED"
    again = type(group).from_dict(group.to_dict())
    assert (again, again.bundle_specs) == (group, group.bundle_specs)
    task = moray.remote(abs)
    for index in (2, -2):
        with pytest.raises(ValueError, match=f"there is no bundle {index}: "):
            task.options(placement_group=group, placement_group_bundle_index=index).remote(1)
    with pytest.raises(ValueError, match="bundle index must be -1"):
        task.options(placement_group_bundle_index=0).remote(1)
    waiting, never = placement_group([{"CPU": 2}, {"CPU": 1}]), placement_group([{"CPU": 50}])
    until(lambda: placement_group_table(never)["stats"]["scheduling_state"] == "INFEASIBLE")
    for one, why in ((waiting, "NO_RESOURCES"), (never, "INFEASIBLE")):
        entry = placement_group_table(one)
        assert (entry["state"], entry["stats"]["scheduling_state"]) == ("PENDING", why)

    @moray.remote(num_cpus=1)
    class Inside:
        def held(self) -> dict[str, Any]:
            from moray.compat.stand_ins._private.worker import get_resource_ids

            return get_resource_ids()

    actor: Any = Inside.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0)).remote()
    name = group.id.hex()
    assert set(moray.get(actor.held.remote())) == {f"CPU_group_{name}", f"CPU_group_0_{name}"}
    remove_placement_group(group)
    with pytest.raises(ActorError, match="was removed"):
        while True:  # The removal is on its way.
            moray.get(actor.held.remote(), timeout=20)
