"""Nodes that leave, in the cores: actors move, bundles are placed anew, objects are handed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from moray.core.actor_actions import Move, Place, Registration, Site, Tell
from moray.core.actor_records import RecordedActorTable
from moray.core.local_scheduler import LocalScheduler
from moray.core.scheduler_actions import Grant, Revoke
from tests.core.test_placement import A as NODE_A, B as NODE_B, Head as Groups, cpus
from tests.core.test_transfers import A, B, C, P, Q, X, world_with
from tests.core.transfers_world import Node, World

CREATOR, CALLER, HOME = b"aaaacreator.", b"aaaacaller..", b"bbbbhome...."
UNIT = 10_000
T = TypeVar("T")


def moving(max_restarts: int = 1) -> tuple[RecordedActorTable, Site]:
    """An actor at the node "bbbb" that was told to move, with a watcher."""
    table = RecordedActorTable()
    table.register(Registration(b"a", CREATOR, 7, 1, "Counter", max_restarts=max_restarts), 0)
    table.watch(CALLER, b"a", CREATOR, True)
    site = Site(HOME, 1, "there", 1)
    table.granted(b"a", 0, site)
    table.started(HOME, b"a", 0, b"")
    if max_restarts:
        assert [made.actor for made in table.movable(b"bbbb")] == [b"a"]
        assert table.move(b"a", "drained", 9.0) == [Move(HOME, b"a", 0, "drained", 9.0)]
    return table, site


def only(actions: Sequence[object], kind: type[T]) -> T:
    (found,) = [action for action in actions if isinstance(action, kind)]
    return found


# --- actors -----------------------------------------------------------------------------------------------------


def test_callers_hear_what_had_begun() -> None:
    table, _site = moving()
    assert table.movable(b"bbbb") == [], "it is told once"
    assert table.moved(HOME, b"a", 1, {}) == [], "of another incarnation: late"
    table.moved(HOME, b"a", 0, {CALLER: [3, 4]})
    told = only(table.worker_died(HOME, "exited", ""), Tell)
    assert (told.state, told.incarnation, told.begun) == ("restarting", 1, {CALLER: [3, 4]})
    assert told.restarts_left == 1, "it is no restart that counts"
    assert "drained" in told.reason
    table.validate()


def test_the_next_death_counts_again() -> None:
    table, _site = moving()
    table.moved(HOME, b"a", 0, {})
    table.worker_died(HOME, "exited", "")
    for incarnation, left in ((1, 0), (2, -2)):
        process = b"cccchome...%d" % incarnation
        table.granted(b"a", incarnation, Site(process, 1, "there", 1))
        table.started(process, b"a", incarnation, b"")
        told = only(table.worker_died(process, "crashed", ""), Tell)
        assert told.begun is None
        assert told.state == ("restarting" if left == 0 else "dead")


def test_one_without_restarts_is_moved_all_the_same_if_it_had_some() -> None:
    table, _site = moving()
    table.worker_died(HOME, "crashed before it had moved", "")
    table.granted(b"a", 1, Site(b"bbbbhome2...", 1, "there", 1))
    table.started(b"bbbbhome2...", b"a", 1, b"")
    table.kill(b"a", no_restart=False)
    table.worker_died(b"bbbbhome2...", "killed", "")
    table.granted(b"a", 2, Site(b"bbbbhome3...", 1, "there", 1))
    table.started(b"bbbbhome3...", b"a", 2, b"")
    table.move(b"a", "drained", 9.0)
    assert only(table.worker_died(b"bbbbhome3...", "exited", ""), Place).incarnation == 3


def test_what_is_never_restarted_stays() -> None:
    table, _site = moving(max_restarts=0)
    assert table.movable(b"bbbb") == []
    table.drained(HOME, "its node was drained")
    told = only(table.worker_died(HOME, "killed", "words"), Tell)
    assert told.state == "dead"
    assert "killed; its node was drained; it is not restarted" in told.reason


def test_a_node_that_dies_while_it_leaves_costs_no_restart() -> None:
    table = RecordedActorTable()
    table.register(Registration(b"a", CREATOR, 7, 1, "Counter", max_restarts=1), 0)
    table.granted(b"a", 0, Site(HOME, 1, "there", 1))
    table.drained(HOME, "its node was drained")  # Its constructor runs: it was not told.
    told = only(table.worker_died(HOME, "its node is dead", ""), Tell)
    assert (told.restarts_left, told.begun) == (1, None)
    assert told.reason.endswith("its node is dead; its node was drained")


def test_why_it_died_is_said_once() -> None:
    table, _site = moving()
    table.moved(HOME, b"a", 0, {})
    table.worker_died(HOME, "exited", "")
    table.granted(b"a", 1, Site(b"cccchome....", 2, "elsewhere", 1))
    table.drained(b"cccchome....", "killed: the node was drained")
    told = only(table.worker_died(b"cccchome....", "killed: the node was drained", ""), Tell)
    assert told.reason == "its process (pid 2): killed: the node was drained"


def test_another_deadline_is_told() -> None:
    table, _site = moving()
    assert table.moving(b"bbbb") == [b"a"]
    assert table.moving(b"cccc") == []
    assert table.move(b"a", "drained", 5.0) == [Move(HOME, b"a", 0, "drained", 5.0)]
    table.kill(b"a", no_restart=True)
    assert table.moving(b"bbbb") == [], "it ends in any case"


def test_why_it_died_before_it_had_moved() -> None:
    table, _site = moving()
    told = only(table.worker_died(HOME, "killed by SIGSEGV", "its last words"), Tell)
    assert told.begun is None
    assert all(words in told.reason for words in ("SIGSEGV", "drained", "its last words"))


def test_killed_while_it_moves() -> None:
    table, _site = moving()
    table.kill(b"a", no_restart=True)
    told = only(table.worker_died(HOME, "killed", ""), Tell)
    assert told.state == "dead"


# --- placement groups -------------------------------------------------------------------------------------------


def test_bundles_leave_with_their_node() -> None:
    head = Groups(a=2, b=2)
    group = head.create(cpus(1), cpus(1), strategy="STRICT_PACK")
    (home, _) = head.where(group)
    node, other = (NODE_A, NODE_B) if home == b"a" else (NODE_B, NODE_A)
    head.node(node, cpus(2), draining=True)
    assert head.where(group) == [other[:1]] * 2
    assert head.table.state(group) == "created"
    head.log.clear()
    removed = {action.node for action in head.remove(group) if type(action).__name__ == "RemoveFrom"}
    assert removed == {node, other}, "what still runs at the node that leaves ends, too"


def test_bundles_wait_for_room_elsewhere() -> None:
    head = Groups(a=2, b=1)
    group = head.create(cpus(2))
    head.node(NODE_A, cpus(2), draining=True)
    assert head.table.state(group) == "rescheduling"
    assert "leaves" in head.why(group) or "CPU: 2" in head.why(group)
    head.node(b"c" * 28, cpus(2))
    assert head.where(group) == [b"c"]


# --- leases -----------------------------------------------------------------------------------------------------


def test_leases_end_and_no_others_begin() -> None:
    scheduler = LocalScheduler({"CPU": 2 * UNIT}, {})
    scheduler.job_started(1)
    scheduler.request(CALLER, 1, 1, 2, 0, {"CPU": UNIT}, "", "f", 0.0)
    scheduler.worker_started(HOME, 1, "", 0.0)
    actions = scheduler.drain(1.0)
    assert [action.worker for action in actions if isinstance(action, Revoke)] == [HOME]
    assert scheduler.holders() == [("f", False)]
    more = scheduler.revoked(HOME, actions[0].lease, 1.0) if isinstance(actions[0], Revoke) else []
    more += scheduler.request(CALLER, 1, 2, 1, 0, {"CPU": UNIT}, "", "g", 2.0)
    assert not [action for action in more if isinstance(action, Grant)]
    assert scheduler.holders() == []
    scheduler.validate()


# --- objects ----------------------------------------------------------------------------------------------------


def handed_over() -> tuple[World, Node, Node]:
    """X, which was at A, is at B now, and C has a copy from before."""
    world = world_with(10, 3)
    for tag in (C, B):
        world.nodes[tag].pin(P, 1, X, A, 10)
        world.settle()
        world.nodes[tag].unpin(P, 1)
    world.nodes[B].run(world.nodes[B].core.take_over(X, A))
    world.nodes[A].run(world.nodes[A].core.given(X, B))
    world.settle()
    return world, world.nodes[A], world.nodes[B]


def test_the_new_primary_copy_is_freed_with_all_others() -> None:
    world, first, second = handed_over()
    assert not second.store[X].secondary
    assert first.core.is_copy(X)
    second.free(X)
    world.settle()
    assert all(X not in node.store for node in world.nodes.values())


def test_what_is_freed_at_the_old_place_is_freed_at_the_new_one() -> None:
    """The owner's word crossed the move."""
    world, first, _second = handed_over()
    first.free(X)
    world.settle()
    assert all(X not in node.store for node in world.nodes.values())


def test_the_old_node_serves_until_it_is_gone() -> None:
    world, first, second = handed_over()
    world.nodes[C].drop(X)
    world.nodes[C].pin(Q, 2, X, A, 10)
    world.settle()
    assert world.nodes[C].answers[Q, 2] == "pinned"
    world.kill(first)
    world.settle()
    assert second.store[X].bytes == [1] * 10
