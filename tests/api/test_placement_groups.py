"""Placement groups on one machine, from creation to removal, with real processes (PLACEMENT, BUNDLES)."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import moray
from moray import exceptions
from moray.ids import PlacementGroupID
from moray.util import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from moray.util.placement_group import PlacementGroup, check_placement_group_index
from moray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup
from tests.support.procs import run_driver, spawn_driver

CPU = {"CPU": 1}


@moray.remote
def where() -> tuple[int, str | None]:
    return os.getpid(), moray.get_runtime_context().get_placement_group_id()


@moray.remote
def hold(path: str) -> str:
    Path(path).touch()
    while not os.path.exists(f"{path}.go"):
        time.sleep(0.005)
    return "held"


@moray.remote
class Member:
    def group(self) -> PlacementGroup | None:
        return get_current_placement_group()

    def gpus(self) -> list[int]:
        return moray.get_gpu_ids()

    def children(self) -> list[Any]:
        made = Member.remote()
        return [moray.get(where.remote())[1], moray.get(made.group.remote())]


def until(condition: Callable[[], Any], deadline_s: float = 20) -> Any:
    deadline = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)
    return found


def free(name: str = "CPU") -> float:
    return moray.available_resources().get(name, 0.0)


def state(group: PlacementGroup) -> str:
    return str(placement_group_table(group)["state"])


@pytest.fixture(name="shared_session", scope="module")
def _shared_session(module_leaks: set[str]) -> Iterator[Any]:
    with moray.init(num_cpus=4, num_gpus=2, resources={"disk": 3}):
        yield moray


@pytest.fixture(autouse=True)
def _everything_comes_back(shared_session: Any) -> Iterator[None]:
    yield
    for entry in placement_group_table().values():
        if entry["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(entry["placement_group_id"])))
    until(lambda: (free(), free("GPU"), free("disk")) == (4, 2, 3))


# --- creation ----------------------------------------------------------------------------------


def test_a_group_is_ready_and_its_resources_are_taken() -> None:
    group = placement_group([CPU, {"CPU": 1, "disk": 2}], strategy="SPREAD")
    assert moray.get(group.ready(), timeout=20) == group
    assert group.ready() is group.ready()
    assert group.wait(0)
    assert (free(), free("disk")) == (2, 1)
    assert (group.bundle_specs, group.bundle_count) == ([CPU, {"CPU": 1, "disk": 2}], 2)
    assert not [name for name in moray.available_resources() if "group" in name]
    assert not [name for name in moray.cluster_resources() if "group" in name]
    entry = placement_group_table(group)
    assert (entry["state"], entry["strategy"], entry["bundles"][1]) == ("CREATED", "SPREAD", {"CPU": 1.0, "disk": 2.0})
    assert entry["bundles_to_node_id"] == dict.fromkeys((0, 1), moray.nodes()[0]["NodeID"])


def test_wait_keeps_its_timeout_while_the_resources_are_taken(tmp_path: Path) -> None:
    held = hold.options(num_cpus=4).remote(str(tmp_path / "held"))
    until((tmp_path / "held").exists)
    group = placement_group([CPU])
    begin = time.monotonic()
    assert not group.wait(0.3)
    assert 0.3 <= time.monotonic() - begin < 5
    assert state(group) == "PENDING"
    assert "placement group" in moray.explain(group.ready())
    (tmp_path / "held.go").touch()
    assert group.wait(20)
    assert moray.get(held) == "held"


def test_idle_leases_are_taken_back_for_a_group() -> None:
    """Workers that linger after a burst of tasks do not keep a group waiting until they are given back."""
    moray.get([where.remote() for _ in range(40)])
    begin = time.monotonic()
    group = placement_group([{"CPU": 4}])
    assert group.wait(20)
    assert time.monotonic() - begin < 5


def test_a_ready_object_goes_to_tasks_like_any_other() -> None:
    group = placement_group([CPU])

    @moray.remote
    def count(found: PlacementGroup, inside: list[Any]) -> tuple[int, bool]:
        return found.bundle_count, moray.get(inside[0]) == found

    assert moray.get(count.remote(group.ready(), [group.ready()]), timeout=20) == (1, True)


def test_a_group_that_never_fits_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    group = placement_group([CPU, {"CPU": 9}], name="too_big")
    until(lambda: placement_group_table(group)["stats"]["scheduling_state"] == "INFEASIBLE")
    waiting = where.options(placement_group=group, placement_group_bundle_index=1).remote()
    until(lambda: "infeasible" in moray.explain(waiting))
    text = moray.explain(waiting)
    assert "placement group 'too_big'" in text
    assert "bundle 1 (CPU: 9) fits on no node" in text
    until(lambda: "placement group 'too_big' cannot be created" in capfd.readouterr().err)


def test_what_waits_for_other_groups_is_created_when_they_go() -> None:
    first, second = placement_group([{"CPU": 3}]), placement_group([{"CPU": 3}])
    assert first.wait(20)
    assert not second.wait(0.1)
    remove_placement_group(first)
    assert second.wait(20)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"bundles": []}, ValueError, "there are no bundles"),
        ({"bundles": [{}]}, ValueError, "bundle 0 ({}) has no resources"),
        ({"bundles": [CPU, {"CPU": 0}]}, ValueError, "bundle 1 ({'CPU': 0}) has no resources"),
        ({"bundles": [{"CPU": -1}]}, ValueError, "bundle 0: CPU=-1 must be a finite number of at least 0"),
        ({"bundles": [{"CPU": "1"}]}, TypeError, "bundle 0: CPU must be a number, not '1' (str)"),
        ({"bundles": [{"GPU": 1.5}]}, ValueError, "more than one GPU must be a whole number"),
        ({"bundles": CPU}, TypeError, "give a list with a dict for each bundle"),
        ({"bundles": [CPU], "strategy": "STRIKT_PACK"}, ValueError, "did you mean 'STRICT_PACK'?"),
        ({"bundles": [CPU], "strategy": "x"}, ValueError, "there are 'PACK', 'SPREAD', 'STRICT_PACK', 'STRICT_SPREAD'"),
        ({"bundles": [CPU], "lifetime": "long"}, ValueError, 'lifetime must be "detached" or None'),
        ({"bundles": [CPU], "bundle_label_selector": [{}, {}]}, ValueError, "1 bundles and 2 label selectors"),
        ({"bundles": [CPU], "name": 3}, TypeError, "the name must be a string"),
    ],
)
def test_wrong_arguments_are_refused_where_they_are_written(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        placement_group(**arguments)
    assert text in str(caught.value)


# --- what runs in a group ----------------------------------------------------------------------


def test_tasks_and_actors_run_in_its_bundles() -> None:
    group = placement_group([CPU, {"CPU": 2}])
    tasks = [where.options(scheduling_strategy=InGroup(group, index)).remote() for index in (0, 1, -1)]
    assert {found[1] for found in moray.get(tasks, timeout=20)} == {group.id.hex()}
    assert moray.get(where.remote())[1] is None
    member = Member.options(num_cpus=1, placement_group=group, placement_group_bundle_index=1).remote()
    assert moray.get(member.group.remote(), timeout=20) == group
    until(lambda: free() == 1)


def test_a_bundle_gives_what_it_has_and_no_more(tmp_path: Path) -> None:
    group = placement_group([CPU, CPU])
    first = hold.options(scheduling_strategy=InGroup(group, 0)).remote(str(tmp_path / "a"))
    until((tmp_path / "a").exists)
    second = hold.options(scheduling_strategy=InGroup(group, 0)).remote(str(tmp_path / "b"))
    moray.get(where.options(scheduling_strategy=InGroup(group, 1)).remote(), timeout=20)
    assert not (tmp_path / "b").exists()
    text = moray.explain(second)
    assert f"1 CPU of bundle 0 of placement group {group.id.hex()[:8]}" in text
    assert "bundle_group" not in text
    for name in ("a.go", "b.go"):
        (tmp_path / name).touch()
    assert moray.get([first, second], timeout=20) == ["held", "held"]


def test_what_needs_no_cpu_can_be_in_a_bundle() -> None:
    group = placement_group([CPU])
    members = [Member.options(scheduling_strategy=InGroup(group, 0)).remote() for _ in range(3)]
    assert moray.get([member.group.remote() for member in members], timeout=30) == [group] * 3
    assert moray.get(where.options(num_cpus=0, placement_group=group).remote(), timeout=20)[1] == group.id.hex()


def test_blocked_tasks_lend_the_cpus_of_their_bundle() -> None:
    group = placement_group([CPU])

    @moray.remote
    def outer() -> Any:
        return moray.get(where.remote(), timeout=20)[1]

    strategy = InGroup(group, 0, placement_group_capture_child_tasks=True)
    assert moray.get(outer.options(scheduling_strategy=strategy).remote(), timeout=20) == group.id.hex()


def test_children_inherit_the_group_only_if_it_captures_them() -> None:
    group = placement_group([{"CPU": 3}])

    @moray.remote
    def children() -> list[Any]:
        outside = where.options(placement_group=None).remote()
        grandchild = Member.options(num_cpus=1).remote()
        return [moray.get(where.remote())[1], moray.get(outside)[1], moray.get(grandchild.group.remote())]

    captured = children.options(scheduling_strategy=InGroup(group, placement_group_capture_child_tasks=True)).remote()
    assert moray.get(captured, timeout=30) == [group.id.hex(), None, group]
    free_children = children.options(placement_group=group).remote()
    assert moray.get(free_children, timeout=30) == [None, None, None]
    # The same worker, or another one that has cached how `where` runs.
    again = children.options(scheduling_strategy=InGroup(group, placement_group_capture_child_tasks=True)).remote()
    assert moray.get(again, timeout=30) == [group.id.hex(), None, group]
    actor = Member.options(num_cpus=1, placement_group=group, placement_group_capture_child_tasks=True).remote()
    assert moray.get(actor.children.remote(), timeout=30) == [group.id.hex(), group]


def test_the_default_group_is_the_one_that_is_passed_on() -> None:
    """`placement_group="default"` in the strategy, as libraries that may run inside another one's group write it."""
    group = placement_group([{"CPU": 2}])

    @moray.remote
    def children() -> Any:
        return moray.get(where.options(scheduling_strategy=InGroup("default")).remote())[1]

    assert moray.get(children.remote(), timeout=30) is None
    strategy = InGroup(group, placement_group_capture_child_tasks=True)
    assert moray.get(children.options(scheduling_strategy=strategy).remote(), timeout=30) == group.id.hex()
    assert moray.get(where.options(scheduling_strategy=InGroup(None)).remote(), timeout=30)[1] is None
    with pytest.raises(ValueError, match="placement_group='mine' should be a PlacementGroup, None or 'default'"):
        InGroup("mine")  # type: ignore[arg-type]


def test_gpus_are_the_bundles_own() -> None:
    group = placement_group([{"GPU": 1, "CPU": 1}, {"GPU": 1}])
    members = [Member.options(num_gpus=1, scheduling_strategy=InGroup(group, index)).remote() for index in (0, 1)]
    indices = [moray.get(member.gpus.remote(), timeout=20) for member in members]
    assert sorted(indices) == [[0], [1]]
    assert free("GPU") == 0


def test_what_needs_more_than_a_bundle_has_is_refused_with_the_numbers() -> None:
    group = placement_group([CPU, {"CPU": 2, "disk": 1}], name="small")
    with pytest.raises(
        ValueError, match=r"where\(\) needs CPU: 3, and no bundle of placement group 'small' has as much"
    ):
        where.options(num_cpus=3, placement_group=group).remote()
    with pytest.raises(ValueError, match=r"the nearest, bundle 1 \(CPU: 2, disk: 1\), lacks 1 CPU"):
        where.options(num_cpus=3, placement_group=group).remote()
    with pytest.raises(ValueError, match=r"and bundle 0 of placement group 'small' has CPU: 1"):
        Member.options(num_cpus=2, scheduling_strategy=InGroup(group, 0)).remote()
    with pytest.raises(
        ValueError, match=r"no bundle 2: .* has 2 bundles; give 0 to 1 as the bundle's index, or -1 for any"
    ):
        where.options(placement_group=group, placement_group_bundle_index=2).remote()
    with pytest.raises(ValueError, match="there is no bundle 5"):
        check_placement_group_index(group, 5)
    check_placement_group_index(group, -1)


def test_the_empty_group_is_none() -> None:
    nothing = PlacementGroup.empty()
    assert moray.get(where.options(placement_group=nothing).remote(), timeout=20)[1] is None
    assert nothing.bundle_count == 0
    assert get_current_placement_group() is None


def test_groups_travel() -> None:
    group = placement_group([CPU])
    assert pickle.loads(pickle.dumps(group)) == group

    @moray.remote
    def use(found: PlacementGroup) -> Any:
        assert found.wait(20)
        return moray.get(where.options(placement_group=found).remote())[1], found.bundle_specs

    assert moray.get(use.remote(group), timeout=30) == (group.id.hex(), [CPU])


def test_a_group_is_found_by_workers_before_the_head_has_heard_of_it() -> None:
    """Its creation and the questions of others travel on different connections."""

    @moray.remote(num_cpus=0)
    def look(found: PlacementGroup) -> bool:
        return PlacementGroup(found.id).wait(20)

    moray.get(look.remote(placement_group([{"disk": 0.1}])))
    groups = [placement_group([{"disk": 0.01}]) for _ in range(30)]
    assert all(moray.get([look.remote(group) for group in groups], timeout=30))


# --- the end -----------------------------------------------------------------------------------


def test_removal_ends_what_runs_in_it_and_nothing_else(tmp_path: Path) -> None:
    group = placement_group([CPU, CPU], name="gone")
    running = hold.options(placement_group=group, max_retries=3).remote(str(tmp_path / "in"))
    outside = hold.remote(str(tmp_path / "out"))
    member = Member.options(num_cpus=1, placement_group=group, max_restarts=-1).remote()
    assert moray.get(member.group.remote(), timeout=20) == group
    until((tmp_path / "in").exists)
    until((tmp_path / "out").exists)
    waiting = hold.options(placement_group=group).remote(str(tmp_path / "never"))
    remove_placement_group(group)
    assert state(group) == "REMOVED"
    late = where.options(placement_group=group).remote()
    for ref in (running, waiting, late):
        with pytest.raises(
            exceptions.TaskPlacementGroupRemoved, match="cannot run: placement group 'gone' was removed"
        ):
            moray.get(ref, timeout=20)
    with pytest.raises(exceptions.ActorDiedError, match="placement group 'gone' was removed"):
        moray.get(member.group.remote(), timeout=20)
    new = Member.options(placement_group=group).remote()
    with pytest.raises(exceptions.ActorDiedError, match="placement group 'gone' was removed"):
        moray.get(new.group.remote(), timeout=20)
    (tmp_path / "out.go").touch()
    assert moray.get(outside, timeout=20) == "held"
    assert not (tmp_path / "never").exists()
    remove_placement_group(group)


def test_a_group_that_is_removed_while_it_is_pending() -> None:
    first, second = placement_group([{"CPU": 4}]), placement_group([{"CPU": 4}])
    assert first.wait(20)
    waiting = where.options(placement_group=second).remote()
    member = Member.options(num_cpus=1, placement_group=second).remote()
    ready = second.ready()
    remove_placement_group(second)
    for ref in (waiting, ready):
        with pytest.raises(exceptions.TaskPlacementGroupRemoved):
            moray.get(ref, timeout=20)
    with pytest.raises(exceptions.ActorDiedError, match="was removed"):
        moray.get(member.group.remote(), timeout=20)
    assert not second.wait(0)


def test_objects_of_an_idle_worker_outlive_its_group() -> None:
    group = placement_group([CPU])

    @moray.remote
    def make() -> list[Any]:
        return [moray.put("kept")]

    (inner,) = moray.get(make.options(placement_group=group).remote(), timeout=20)
    remove_placement_group(group)
    until(lambda: free() == 4)
    assert moray.get(inner, timeout=20) == "kept"


def test_names_are_found_and_free_again() -> None:
    group = placement_group([CPU], name="workers")
    assert get_placement_group("workers") == group
    assert get_placement_group("workers").bundle_specs == [CPU]
    with pytest.raises(ValueError, match=r"the name 'workers' belongs to placement group") as taken:
        placement_group([CPU], name="workers")
    assert isinstance(taken.value, exceptions.MoraySystemError)
    with pytest.raises(ValueError, match="did you mean 'workers'"):
        get_placement_group("worker")
    with pytest.raises(ValueError, match="give the name"):
        get_placement_group("")
    remove_placement_group(group)
    with pytest.raises(ValueError, match="no placement group is named 'workers'"):
        get_placement_group("workers")
    assert placement_group([CPU], name="workers").wait(20)


def test_many_groups_come_and_go() -> None:
    for _ in range(5):
        groups = [placement_group([{"CPU": 0.1}]) for _ in range(20)]
        refs = [where.options(num_cpus=0.1, placement_group=group).remote() for group in groups]
        assert [found[1] for found in moray.get(refs, timeout=60)] == [group.id.hex() for group in groups]
        for group in groups:
            remove_placement_group(group)
    groups_here = moray.runtime.state.runtime.groups  # type: ignore[union-attr]
    until(lambda: not groups_here._leaving and not groups_here._pools)
    assert all(key < 1 << 32 for key in moray.runtime.state.runtime.submitter._by_key)  # type: ignore[union-attr]


def test_groups_that_were_removed_at_once_and_forgotten_do_not_come_back() -> None:
    for group in [placement_group([{"CPU": 0.001}]) for _ in range(1500)]:
        remove_placement_group(group)  # The word that some of them were created is still on its way.
    placement_group_table()
    groups_here = moray.runtime.state.runtime.groups  # type: ignore[union-attr]
    assert {group.state for group in groups_here.records.values()} == {"removed"}


# --- several drivers ---------------------------------------------------------------------------

_OTHER = """
import sys, moray
from moray.util import placement_group, remove_placement_group
moray.init(address={address!r}, namespace={namespace!r}, log_to_driver=False)
"""


def other(script: str, namespace: str = "") -> str:
    context = moray.get_runtime_context()
    address = os.path.dirname(context.gcs_address)
    return _OTHER.format(address=address, namespace=namespace or context.namespace) + script


def test_groups_end_with_their_driver_unless_they_are_detached() -> None:
    script = other(
        "mortal = placement_group([{'CPU': 1}], name='mortal'); assert mortal.wait(20)\n"
        "stays = placement_group([{'CPU': 1}], name='stays', lifetime='detached'); assert stays.wait(20)\n"
    )
    run_driver(script)
    until(lambda: free() == 3)
    stays = get_placement_group("stays")
    assert moray.get(where.options(placement_group=stays).remote(), timeout=20)[1] == stays.id.hex()
    with pytest.raises(ValueError, match="no placement group is named 'mortal'"):
        get_placement_group("mortal")


def test_names_of_another_namespace_are_others() -> None:
    run_driver(other("placement_group([{'CPU': 1}], name='x', lifetime='detached').wait(20)", namespace="elsewhere"))
    with pytest.raises(ValueError, match="there is one in 'elsewhere'"):
        get_placement_group("x")
    assert placement_group([CPU], name="x").wait(20)


def test_two_drivers_that_compete_both_get_their_groups() -> None:
    script = other(
        "for _ in range(10):\n"
        "    group = placement_group([{'CPU': 3}])\n"
        "    assert group.wait(60)\n"
        "    remove_placement_group(group)\n"
    )
    with spawn_driver(script) as rival:
        for _ in range(10):
            group = placement_group([{"CPU": 2}, {"CPU": 1}])
            assert group.wait(60)
            remove_placement_group(group)
        assert rival.wait(60) == 0, rival.output()


def test_in_local_mode_groups_are_created_at_once() -> None:
    run_driver(
        "import moray\n"
        "from moray.util import get_placement_group, placement_group, placement_group_table, remove_placement_group\n"
        "moray.init(local_mode=True)\n"
        "group = placement_group([{'CPU': 1}], name='x')\n"
        "assert moray.get(group.ready()) == group and group.wait(1)\n"
        "assert get_placement_group('x') == group\n"
        "assert moray.get(moray.remote(abs).options(placement_group=group).remote(-1)) == 1\n"
        "remove_placement_group(group)\n"
        "assert placement_group_table(group)['state'] == 'REMOVED'\n"
    )
