"""Actors of a cluster: placed on nodes, told of across nodes, restarted elsewhere, known to the next head."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from moray.protocol import messages as m
from tests.head.world import LEASE_S, ONE_CPU, FakeNode, World, detached, running_world, spec

#: Processes are started, killed, and waited for.
pytestmark = pytest.mark.slow


def register(node: FakeNode, driver: bytes, job: int, made: m.ActorSpec, request: int = 0) -> bytes:
    node.say(driver, job, m.RegisterActor(request, made))
    return made.actor


def asked(world: World, actor: bytes, incarnation: int = 0) -> FakeNode:
    """The node that was asked for a worker, last."""

    def look() -> FakeNode | None:
        for node in world.nodes:
            wishes = [
                told
                for told in node.told
                if isinstance(told, m.PlaceWorker) and (told.actor, told.incarnation) == (actor, incarnation)
            ]
            if wishes and wishes[-1].count:
                return node
        return None

    found = world.until(look, "a node is asked for a worker")
    assert found is not None
    return found


def place(node: FakeNode, actor: bytes, job: int, incarnation: int = 0) -> bytes:
    """It has one."""
    process = node.process()
    node.link.report(m.WorkerPlaced(actor, incarnation, process, 77, f"tcp://{process.hex()}", job))
    return process


def state(node: FakeNode, actor: bytes, name: str) -> m.ActorState:
    return node.expect(m.ActorState, lambda told: (told.actor, told.state) == (actor, name))


def live(world: World, home: FakeNode, driver: bytes, job: int, made: m.ActorSpec) -> tuple[FakeNode, bytes]:
    """An actor with all its life until its constructor has returned: its node, and its process."""
    actor = register(home, driver, job, made)
    node = asked(world, actor)
    process = place(node, actor, job)
    if not made.detached:
        assert home.expect(m.ActorPlaced, lambda told: told.actor == actor).process == process
    else:
        assert node.expect(m.StartActor).creation.payload == b"arguments"
    node.say(process, job, m.ActorStarted(actor, 0))
    assert state(home, actor, "alive").process == process
    return node, process


def test_an_actor_lives_on_one_node_and_is_told_of_on_another(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(resources={}), world.node()
        job, driver = a.job()
        node, process = live(world, a, driver, job, spec(resources=ONE_CPU, name="n", namespace="s"))
        assert node is b, "where there is room"
        other = b.process()
        b.say(other, job, m.FindActor(5, "n", "s"))
        found = b.expect(m.ActorRegistered)
        assert found.creator == driver
        b.say(other, job, m.WatchActor(found.actor, driver))
        assert state(b, found.actor, "alive").process == process
        b.link.report(m.ProcessDied(process, 77, -9, "was killed by SIGKILL", "last words"))
        told = state(a, found.actor, "dead")
        assert "SIGKILL" in told.reason
        assert "last words" in told.reason
        assert state(b, found.actor, "dead").reason == told.reason


def test_every_step_survives_the_death_of_the_head(tmp_path: Path) -> None:
    """kill -9 after each message: the next head goes on where the last one was."""
    with running_world(tmp_path) as world:
        a, b = world.node(resources={}), world.node()
        job, driver = a.job()
        made = spec(resources=ONE_CPU, name="n", namespace="s", max_restarts=1)
        world.kill_head()
        actor = register(a, driver, job, made, request=1)
        world.kill_head()
        assert a.expect(m.ActorRegistered).actor == actor
        assert asked(world, actor) is b
        process = place(b, actor, job)
        world.kill_head()
        assert a.expect(m.ActorPlaced).process == process
        b.say(process, job, m.ActorStarted(actor, 0))
        world.kill_head()
        assert state(a, actor, "alive").pid == 77
        watcher = b.process()
        b.say(watcher, job, m.WatchActor(actor, driver))
        world.kill_head()
        state(b, actor, "alive")
        b.link.report(m.ProcessDied(process, 77, 1, "ended"))
        world.kill_head()
        assert state(b, actor, "restarting").incarnation == 1
        assert state(a, actor, "restarting").restarts_left == 0
        assert asked(world, actor, 1) is b
        second = place(b, actor, job, 1)
        world.kill_head()
        assert a.expect(m.ActorPlaced).incarnation == 1
        b.say(second, job, m.ActorStarted(actor, 1))
        state(a, actor, "alive")
        a.say(driver, job, m.ReleaseActor(actor))
        world.kill_head()
        assert b.expect_told(m.StopProcess).graceful
        b.link.report(m.ProcessDied(second, 77, 0, "ended"))
        world.kill_head()
        assert "no handle" in state(a, actor, "dead").reason
        assert len([told for told in b.told if isinstance(told, m.PlaceWorker)]) == 2, "each was asked for once"
        b.say(watcher, job, m.WatchActor(actor, driver))
        assert "no handle" in state(b, actor, "dead").reason, "its tombstone is remembered"


def test_a_named_detached_actor_is_known_to_the_next_head(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        job, driver = a.job()
        made = detached(name="svc", namespace="s", max_restarts=-1)
        node, process = live(world, a, driver, job, made)
        a.link.report(m.JobEnded(job, driver))
        world.until(lambda: a.ended, "its creator's job ends")
        world.kill_head()
        node.actors = [(made.actor, 0, process, 77, "tcp://", job + 1)]
        other_job, other = b.job()
        b.say(other, other_job, m.FindActor(5, "svc", "s"))
        assert b.expect(m.ActorRegistered).actor == made.actor
        b.say(other, other_job, m.WatchActor(made.actor, b""))
        assert state(b, made.actor, "alive").process == process
        # It can still be started: what makes it is stored.
        node.link.report(m.ProcessDied(process, 77, -9, "killed"))
        next_node = asked(world, made.actor, 1)
        wish = next_node.expect_told(m.PlaceWorker, lambda told: told.incarnation == 1)
        assert wish.config, "its own job's settings ride along"
        assert wish.job not in {job, other_job}
        again = place(next_node, made.actor, wish.job, 1)
        assert next_node.expect(m.StartActor).creation.payload == b"arguments"
        next_node.say(again, wish.job, m.ActorStarted(made.actor, 1))
        state(b, made.actor, "alive")
        b.say(other, other_job, m.KillActor(made.actor, no_restart=True))
        assert next_node.expect_told(m.StopProcess).process == again
        next_node.link.report(m.ProcessDied(again, 77, -9, "killed"))
        state(b, made.actor, "dead")
        world.until(lambda: wish.job in a.ended, "its job ends with it")


def test_actors_of_a_dead_node_are_started_elsewhere_and_not_too_early(tmp_path: Path) -> None:
    """FENCE: the next incarnation is not asked for before the old node's lease is over, and a fifth of it more."""
    with running_world(tmp_path) as world:
        a, b, c = world.node(resources={}), world.node(), world.node()
        job, driver = a.job()
        node, _process = live(world, a, driver, job, spec(resources=ONE_CPU, max_restarts=1))
        other = c if node is b else b
        actor = next(told.actor for told in node.told if isinstance(told, m.PlaceWorker))
        lease_end = node.page.end_ns
        node.die()
        assert asked(world, actor, 1) is other
        late_s = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - lease_end) / 1e9
        assert late_s > 0.2 * LEASE_S - 0.05
        assert "node is dead" in state(a, actor, "restarting").reason
        process = place(other, actor, job, 1)
        assert a.expect(m.ActorPlaced, lambda told: told.incarnation == 1).process == process


def test_actors_whose_creators_node_dies_end(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(resources={}), world.node()
        job, driver = a.job()
        node, process = live(world, a, driver, job, spec(resources=ONE_CPU, max_restarts=5))
        assert node is b
        a.die()
        assert b.expect_told(m.StopProcess).process == process
        b.link.report(m.ProcessDied(process, 77, -9, "killed"))
        world.pass_time(0.2)
        assert len([told for told in b.told if isinstance(told, m.PlaceWorker)]) == 1, "it is not restarted"


def test_what_nobody_can_serve_waits_and_says_why(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a = world.node()
        job, driver = a.job()
        actor = register(a, driver, job, spec(resources={"GPU": m.RESOURCE_UNIT}))
        warned = a.expect(m.LogLines)
        assert "GPU" in warned.lines[0]
        world.kill_head()
        b = world.node(resources={"GPU": m.RESOURCE_UNIT, "CPU": m.RESOURCE_UNIT})
        assert asked(world, actor) is b, "when a node comes that can"


def test_a_wish_moves_when_its_node_is_full_and_another_is_not(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a = world.node(resources=ONE_CPU)
        job, driver = a.job()
        a.free = {"CPU": 0}
        a.link.changed()
        world.until(lambda: a.link.nodes()[a.tag].available == {"CPU": 0}, "it is full")
        actor = register(a, driver, job, spec(resources=ONE_CPU))
        assert asked(world, actor) is a, "there is no other"
        b = world.node(resources=ONE_CPU)
        assert b.expect_told(m.PlaceWorker).actor == actor
        world.until(lambda: len(a.told) == 2, "the first one need not any more")
        assert a.told[-1] == m.PlaceWorker(actor, 0, job, 0, ONE_CPU, ONE_CPU, "", "Counter")
        # Both have found one: the first counts, the second is ended.
        first = place(a, actor, job)
        assert a.expect(m.ActorPlaced).process == first
        second = place(b, actor, job)
        assert b.expect_told(m.StopProcess).process == second


def test_watchers_that_are_quicker_than_the_registration(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        job, driver = a.job()
        made = spec()
        watcher = b.process()
        b.say(watcher, job, m.WatchActor(made.actor, driver))
        b.say(watcher, job, m.KvRequest(1, "get", b"", b"k"))
        b.expect(m.KvAnswer)
        world.kill_head()
        register(a, driver, job, made)
        assert state(b, made.actor, "pending").incarnation == 0
        # Its creator is dead, and never came to register.
        ghost = a.process()
        actor = spec().actor
        b.say(watcher, job, m.WatchActor(actor, ghost))
        a.link.report(m.ProcessDied(ghost, 1, 1, "ended"))
        assert "unknown actor" in state(b, actor, "dead").reason
        b.say(watcher, job, m.WatchActor(actor, ghost))
        assert "its creator has ended" in state(b, actor, "dead").reason


def test_a_node_ends_actors_that_were_replaced(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a = world.node()
        job, driver = a.job()
        _node, process = live(world, a, driver, job, spec())
        actor = next(told.actor for told in a.told if isinstance(told, m.PlaceWorker))
        a.actors = [(actor, 0, process, 77, "", job), (b"x" * 16, 3, a.process(), 78, "", job)]
        world.kill_head()
        world.until(lambda: a.link.epoch == 2 and a.link.welcomed, "it registers again")
        assert a.fenced_actors == [(b"x" * 16, 3)]
