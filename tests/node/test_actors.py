"""Actors at a real node: placed, started, told about, named, killed, restarted, released (ACTORS-1 to 6)."""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec
import pytest

from moray.protocol import messages as m
from tests.node.client import Driver, alive, session, tell, wait_for

ONE_CPU = {"CPU": m.RESOURCE_UNIT}


def spec(actor: bytes | None = None, **changes: Any) -> m.ActorSpec:
    """An actor of which nobody has heard."""
    fields: dict[str, Any] = {"resources": {}, "placement": ONE_CPU} | changes
    return m.ActorSpec(actor or os.urandom(16), "Counter", **fields)


def detached(**changes: Any) -> m.ActorSpec:
    creation = m.Creation("Counter", b"class", b"arguments")
    return spec(detached=True, creation=msgspec.msgpack.encode(creation), **changes)


def register(driver: Driver, made: m.ActorSpec, request: int = 0) -> bytes:
    driver.send(m.RegisterActor(request, made))
    return made.actor


def placed(driver: Driver, actor: bytes, incarnation: int = 0) -> m.ActorPlaced:
    return driver.expect(m.ActorPlaced, lambda told: (told.actor, told.incarnation) == (actor, incarnation))


def state(driver: Driver, actor: bytes, name: str) -> m.ActorState:
    return driver.expect(m.ActorState, lambda told: (told.actor, told.state) == (actor, name))


def start(driver: Driver, place: m.ActorPlaced) -> m.ActorState:
    """Have the stand-in say that it is the actor."""
    tell(place.address, f"started {place.actor.hex()} {place.incarnation}")
    return state(driver, place.actor, "alive")


def create(driver: Driver, made: m.ActorSpec) -> tuple[bytes, m.ActorPlaced]:
    actor = register(driver, made)
    place = placed(driver, actor)
    start(driver, place)
    return actor, place


def listed(driver: Driver, actor: bytes) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = (other for other in driver.state()["actors"] if other["actor"] == actor.hex())
    return found


def gone(pid: int) -> None:
    wait_for(lambda: not alive(pid), f"process {pid} is gone")


def test_an_actor_is_placed_started_and_known() -> None:
    with session() as (_handle, driver):
        actor = register(driver, spec(resources=ONE_CPU))
        place = placed(driver, actor)
        assert alive(place.pid)
        assert driver.state()["available"]["CPU"] == m.RESOURCE_UNIT, "it holds its CPU"
        assert listed(driver, actor)["state"] == "pending"
        told = start(driver, place)
        assert (told.process, told.pid, told.address) == (place.process, place.pid, place.address)
        assert (told.incarnation, told.job_id, told.restarts_left) == (0, driver.welcome.job_id, 0)
        known = listed(driver, actor)
        assert (known["state"], known["pid"], known["class_name"]) == ("alive", place.pid, "Counter")


def test_an_actor_is_placed_when_its_arguments_are_there() -> None:
    with session() as (_handle, driver):
        actor = register(driver, spec(waiting=True))
        assert "arguments" in listed(driver, actor)["reason"]
        assert not driver.state()["workers"]
        driver.send(m.PlaceActor(actor))
        place = placed(driver, actor)
        # One of them is an error, which only the creator knows.
        driver.send(m.ActorStarted(actor, 0, b"PICKLE"))
        assert state(driver, actor, "dead").error == b"PICKLE"
        gone(place.pid)


def test_an_actor_holds_its_resources_through_pressure_and_blocking() -> None:
    with session(resources=ONE_CPU) as (handle, driver):
        actor, place = create(driver, spec(resources=ONE_CPU))
        other = Driver(handle.address)
        other.request(1)
        tell(place.address, "blocked")
        assert driver.state()["available"]["CPU"] == 0, "a blocked actor lends nothing"
        tell(place.address, "unblocked")
        wait_for(lambda: [p["cause"] for p in driver.state()["pending"]] == ["taken"], "the other driver waits")
        assert alive(place.pid), "its lease is not taken for another driver"
        driver.send(m.ReleaseActor(actor))
        other.expect(m.LeaseGranted)
        other.shutdown()
        other.close()


def test_what_no_machine_has_leaves_it_pending_with_one_warning() -> None:
    with session() as (_handle, driver):
        actors = [register(driver, spec(placement={"unobtainium": 1})) for _ in range(3)]
        warning = driver.expect(m.LogLines)
        assert "unobtainium" in warning.lines[0]
        assert "Counter" in warning.lines[0]
        known = listed(driver, actors[2])
        assert known["state"] == "pending"
        assert "unobtainium" in known["reason"]
        assert not [told for told in driver.inbox if isinstance(told, m.LogLines)], "one for all of the class"
        driver.send(m.KillActor(actors[0], no_restart=True))
        assert "killed by moray.kill()" in state(driver, actors[0], "dead").reason


def test_watchers_hear_each_change_and_one_that_is_quicker_than_the_registration_waits() -> None:
    with session() as (handle, driver):
        watcher = Driver(handle.address)
        made = spec(max_restarts=1)
        watcher.send(m.WatchActor(made.actor, driver.process))
        watcher.state()  # The node has read it.
        register(driver, made)
        assert state(watcher, made.actor, "pending").restarts_left == 1
        place = placed(driver, made.actor)
        start(driver, place)
        assert state(watcher, made.actor, "alive").address == place.address
        tell(place.address, f"signal {signal.SIGSEGV}")
        restarting = state(watcher, made.actor, "restarting")
        assert "SIGSEGV" in restarting.reason
        assert (restarting.incarnation, restarting.restarts_left) == (1, 0)
        again = placed(driver, made.actor, 1)
        assert again.process != place.process
        start(driver, again)
        assert state(watcher, made.actor, "alive").incarnation == 1
        tell(again.address, "say my last words")
        tell(again.address, "exit 3")
        for listener in (watcher, driver):
            dead = state(listener, made.actor, "dead")
            assert "exited with code 3" in dead.reason
            assert "all 1 restarts are used" in dead.reason
            assert "my last words" in dead.reason
        # Deaths are told across jobs, because calls go across them.
        assert {watcher.expect(m.ProcessDied).process for _ in range(2)} == {place.process, again.process}
        watcher.send(m.WatchActor(made.actor, driver.process))
        assert "my last words" in state(watcher, made.actor, "dead").reason, "a late one hears it, too"
        watcher.shutdown()
        watcher.close()


def test_an_unknown_actor_of_a_dead_creator_is_dead() -> None:
    with session() as (handle, driver):
        actor = os.urandom(16)
        driver.send(m.WatchActor(actor, os.urandom(12)))
        assert "unknown actor" in state(driver, actor, "dead").reason
        creator = Driver(handle.address)
        driver.send(m.WatchActor(actor, creator.process))
        driver.state()
        creator.shutdown()
        creator.close()
        assert "before it was registered" in state(driver, actor, "dead").reason


def test_kill_for_good_and_kill_with_restart() -> None:
    with session() as (_handle, driver):
        actor, first = create(driver, spec(max_restarts=-1))
        driver.send(m.KillActor(actor, no_restart=False))
        assert state(driver, actor, "restarting").reason == "killed by moray.kill()"
        second = placed(driver, actor, 1)
        gone(first.pid)
        driver.send(m.KillActor(actor, no_restart=True))
        dead = state(driver, actor, "dead")
        assert dead.reason == "killed by moray.kill()"
        gone(second.pid)
        assert not [told for told in driver.inbox if isinstance(told, m.ActorPlaced)]
        once, place = create(driver, spec())
        driver.send(m.KillActor(once, no_restart=False))
        assert "max_restarts is 0" in state(driver, once, "dead").reason
        gone(place.pid)


def test_a_kill_that_is_quicker_than_the_registration_is_kept() -> None:
    with session() as (handle, driver):
        killer = Driver(handle.address)
        made = spec()
        killer.send(m.KillActor(made.actor, no_restart=True))
        killer.state()
        register(driver, made)
        assert "killed" in state(driver, made.actor, "dead").reason
        assert not driver.state()["workers"]
        killer.shutdown()
        killer.close()


def test_a_failed_constructor_is_the_end() -> None:
    with session() as (_handle, driver):
        actor = register(driver, spec(max_restarts=5))
        place = placed(driver, actor)
        tell(place.address, f"started {actor.hex()} 0 PICKLE")
        dead = state(driver, actor, "dead")
        assert dead.error == b"PICKLE"
        assert "constructor" in dead.reason
        gone(place.pid)


def test_exiting_by_its_own_will_is_no_reason_for_a_restart() -> None:
    with session() as (_handle, driver):
        actor, place = create(driver, spec(max_restarts=5))
        tell(place.address, f"exiting {actor.hex()} 0 enough")
        assert state(driver, actor, "dead").reason == "enough"


def test_release_is_peaceful_and_a_stubborn_one_is_killed() -> None:
    with session(system_config={"actor_stop_grace_s": 0.2}) as (_handle, driver):
        polite, place = create(driver, spec(max_restarts=5))
        stubborn, other = create(driver, spec(max_restarts=5))
        tell(other.address, "hang")
        for actor in (polite, stubborn):
            driver.send(m.ReleaseActor(actor))
            assert "no handle" in state(driver, actor, "dead").reason
        deaths = {death.process: death for death in (driver.expect(m.ProcessDied), driver.expect(m.ProcessDied))}
        assert deaths[place.process].status == 0
        assert "asked to end: no handle of it was left" in deaths[place.process].stderr
        assert deaths[other.process].status == -signal.SIGKILL


def test_what_is_released_before_it_has_a_worker_never_gets_one() -> None:
    with session(resources=ONE_CPU) as (_handle, driver):
        create(driver, spec(resources=ONE_CPU))
        waiting = register(driver, spec(resources=ONE_CPU))
        reason = listed(driver, waiting)["reason"]
        assert "taken: free now: CPU: 0 (of CPU: 1); held by Counter of job 1 (CPU: 1)" in reason
        driver.send(m.ReleaseActor(waiting))
        assert "no handle" in state(driver, waiting, "dead").reason
        assert len(driver.state()["workers"]) == 1
        assert not driver.state()["pending"]


def test_names_are_unique_among_the_living_of_a_namespace() -> None:
    with session() as (_handle, driver):

        def ask(request: int, made: m.ActorSpec) -> m.ActorRegistered:
            register(driver, made, request)
            return driver.expect(m.ActorRegistered, lambda answer: answer.request == request)

        def find(request: int, name: str, namespace: str) -> m.ActorRegistered:
            driver.send(m.FindActor(request, name, namespace))
            return driver.expect(m.ActorRegistered, lambda answer: answer.request == request)

        made = spec(name="x", namespace="a", meta=b"meta")
        assert ask(1, made).actor == made.actor
        assert "'x'" in ask(2, spec(name="x", namespace="a")).reason
        same = ask(3, spec(name="x", namespace="a", get_if_exists=True))
        assert (same.actor, same.meta, same.creator) == (made.actor, b"meta", driver.process)
        elsewhere = spec(name="x", namespace="b")
        assert ask(4, elsewhere).actor == elsewhere.actor
        assert find(5, "x", "a").actor == made.actor
        assert "there is one in 'a', 'b'" in find(6, "x", "c").reason
        assert "did you mean 'x'?" in find(7, "xx", "a").reason
        driver.send(m.ListActors(9, "a"))
        assert driver.expect(m.ActorNames).names == [("a", "x")]
        driver.send(m.ListActors(10, ""))
        assert driver.expect(m.ActorNames).names == [("a", "x"), ("b", "x")]
        driver.send(m.KillActor(made.actor, no_restart=True))
        younger = spec(name="x", namespace="a")
        assert ask(11, younger).actor == younger.actor, "the name is free as soon as its actor is to die"
        state(driver, made.actor, "dead")
        assert find(12, "x", "a").actor == younger.actor, "the old one's death does not take the new one's name"


def test_an_actor_dies_with_its_creator() -> None:
    with session() as (_handle, driver):
        parent, place = create(driver, spec())
        child = os.urandom(16)
        tell(place.address, f"register {child.hex()}")
        driver.send(m.WatchActor(child, place.process))
        wait_for(lambda: listed(driver, child)["pid"], "the child is placed")
        pid = listed(driver, child)["pid"]
        tell(place.address, "exit 0")
        state(driver, parent, "dead")
        assert f"its creator, pid {place.pid}, has ended" in state(driver, child, "dead").reason
        gone(pid)


def test_an_actor_dies_with_its_job() -> None:
    with session() as (handle, driver):
        creator = Driver(handle.address)
        actor, place = create(creator, spec())
        driver.send(m.WatchActor(actor, creator.process))
        state(driver, actor, "alive")
        creator.shutdown()
        creator.close()
        assert "has ended" in state(driver, actor, "dead").reason
        gone(place.pid)
        assert {driver.expect(m.ProcessDied).process for _ in range(2)} == {creator.process, place.process}


def test_a_detached_actor_outlives_its_creators_job_and_is_restarted_by_its_node() -> None:
    with session() as (handle, driver):
        creator = Driver(handle.address, namespace="a", environ=dict(os.environ) | {"MORAY_TEST_COLOUR": "green"})
        made = detached(name="x", namespace="a", max_restarts=1)
        register(creator, made, 1)
        assert creator.expect(m.ActorRegistered).creator == b"", "it has no creator to be asked"
        first = state(creator, made.actor, "alive")
        assert first.job_id not in (driver.welcome.job_id, creator.welcome.job_id)
        creator.shutdown()
        creator.close()
        driver.send(m.FindActor(5, "x", "a"))
        assert driver.expect(m.ActorRegistered).actor == made.actor
        driver.send(m.WatchActor(made.actor, b""))
        assert state(driver, made.actor, "alive").pid == first.pid
        assert tell(first.address, "creation") == "arguments"
        tell(first.address, f"signal {signal.SIGKILL}")
        state(driver, made.actor, "restarting")
        second = state(driver, made.actor, "alive")
        assert tell(second.address, "env MORAY_TEST_COLOUR") == "green"
        assert tell(second.address, "creation") == "arguments"
        assert [job["pid"] for job in driver.state()["jobs"]] == [os.getpid(), 0]
        driver.send(m.KillActor(made.actor, no_restart=True))
        assert state(driver, made.actor, "dead").reason == "killed by moray.kill()"
        gone(second.pid)
        wait_for(lambda: len(driver.state()["jobs"]) == 1, "its job has ended with it")


def test_a_detached_actor_whose_creation_is_unreadable_is_refused() -> None:
    with session() as (_handle, driver):
        register(driver, spec(detached=True, creation=b"\xc1"), 1)
        assert "cannot be read" in driver.expect(m.ActorRegistered).reason


def test_a_repeated_registration_changes_nothing() -> None:
    with session() as (_handle, driver):
        made = spec(name="x", namespace="a")
        for request in (1, 2):
            register(driver, made, request)
            assert driver.expect(m.ActorRegistered).actor == made.actor
        place = placed(driver, made.actor)
        start(driver, place)
        register(driver, made, 3)
        assert driver.expect(m.ActorRegistered).actor == made.actor
        assert state(driver, made.actor, "alive").pid == place.pid
        assert len(driver.state()["workers"]) == 1


@pytest.mark.slow
def test_a_hundred_actors_start_a_few_at_a_time() -> None:
    with session() as (_handle, driver):
        actors = {register(driver, spec()) for _ in range(100)}
        most = 0
        for _ in range(100):
            place = driver.expect(m.ActorPlaced)
            tell(place.address, f"started {place.actor.hex()} 0")
            most = max(most, sum(not worker["running"] for worker in driver.state()["workers"]))
        assert {driver.expect(m.ActorState).actor for _ in range(100)} == actors
        assert most <= 4, "two per CPU"
        for actor in actors:
            driver.send(m.ReleaseActor(actor))
        for _ in range(100):
            assert driver.expect(m.ActorState).state == "dead"
        wait_for(lambda: not driver.state()["workers"], "all processes are gone")
