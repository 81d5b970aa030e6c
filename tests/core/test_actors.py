"""Scenarios of the table of actors, one crossing or rule each (ACTORS-1 to 6)."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from moray.core import actor_tombstones
from moray.core.actor_actions import (
    ActorAction,
    Names,
    Over,
    Place,
    Placed,
    Registered,
    Registration,
    Site,
    Start,
    Stop,
    Tell,
    WarnJob,
    Withdraw,
)
from moray.core.actors import ActorTable

A = TypeVar("A", bound=ActorAction)

CREATOR, WATCHER, OTHER = b"creator", b"watcher", b"other"


class Head:
    """A table that is checked after each step."""

    def __init__(self) -> None:
        self.table = ActorTable()
        self.log: list[ActorAction] = []
        self.processes = 0

    def __getattr__(self, event: str) -> Any:
        def call(*arguments: Any, **options: Any) -> list[ActorAction]:
            actions: list[ActorAction] = getattr(self.table, event)(*arguments, **options)
            self.table.validate()
            self.log = actions
            return actions

        return call

    def only(self, kind: type[A]) -> A:
        """The one action of a kind in the last step."""
        (action,) = self.all(kind)
        return action

    def all(self, kind: type[A]) -> list[A]:
        return [action for action in self.log if isinstance(action, kind)]

    def create(self, actor: bytes = b"a", **changes: Any) -> Registration:
        made = Registration(actor, CREATOR, 7, 1, "Counter", **changes)
        self.register(made, 1)
        return made

    def grant(self, actor: bytes = b"a", incarnation: int = 0) -> Site:
        self.processes += 1
        site = Site(b"worker%d" % self.processes, 100 + self.processes, "address", 1)
        self.granted(actor, incarnation, site)
        return site

    def live(self, actor: bytes = b"a", incarnation: int = 0) -> Site:
        site = self.grant(actor, incarnation)
        self.started(site.process, actor, incarnation, b"")
        return site


@pytest.fixture(name="head")
def _head() -> Head:
    return Head()


# --- an ordinary life ----------------------------------------------------------------------------------


def test_placed_started_told(head: Head) -> None:
    made = head.create()
    assert head.only(Registered).actor == b"a"
    assert head.only(Place).made is made
    site = head.grant()
    assert head.log == [Placed(CREATOR, b"a", 0, site)]
    head.watch(WATCHER, b"a", CREATOR, True)
    assert head.only(Tell).state == "pending"
    head.started(site.process, b"a", 0, b"")
    told = head.only(Tell)
    assert (told.processes, told.state, told.site) == ((CREATOR, WATCHER), "alive", site)
    head.worker_died(site.process, "exited with code 3", "oh dear")
    told = head.only(Tell)
    assert (told.processes, told.state) == ((CREATOR, WATCHER), "dead")
    assert "pid 101" in told.reason
    assert "exited with code 3; it is not restarted, because max_restarts is 0" in told.reason
    assert told.reason.endswith("the end of its stderr:\noh dear")
    assert head.only(Over).actor == b"a"


@pytest.mark.parametrize("order", ["ready first", "registered first"])
def test_an_actor_is_placed_when_its_arguments_are_there(head: Head, order: str) -> None:
    if order == "ready first":
        head.ready(CREATOR, b"a")
        assert not head.log
    head.create(waiting=True)
    if order == "registered first":
        assert not head.all(Place)
        assert "arguments" in head.table.describe()[0]["reason"]
        head.kill(b"a", False)
        head.ready(OTHER, b"a")
        assert not head.log, "it is the creator who knows"
        head.ready(CREATOR, b"a")
    assert head.only(Place).incarnation == 0
    head.ready(CREATOR, b"a")
    assert not head.log


def test_what_is_released_before_its_arguments_are_there_was_never_wanted(head: Head) -> None:
    head.create(waiting=True)
    head.release(CREATOR, b"a")
    assert head.only(Tell).state == "dead"
    assert not head.all(Withdraw)
    head.ready(CREATOR, b"a")
    assert not head.log


def test_an_argument_that_is_an_error_is_told_by_the_creator(head: Head) -> None:
    head.create(max_restarts=1)
    site = head.grant()
    head.started(OTHER, b"a", 0, b"pickle")
    head.started(CREATOR, b"a", 1, b"pickle")
    head.started(CREATOR, b"a", 0, b"")
    assert not head.log
    head.started(CREATOR, b"a", 0, b"pickle")
    assert head.only(Stop).process == site.process
    assert head.only(Tell).error == b"pickle"


def test_a_request_of_zero_is_not_answered(head: Head) -> None:
    head.register(Registration(b"a", CREATOR, 7, 1, "Counter"), 0)
    assert not head.all(Registered)


def test_restarts_are_counted_and_the_last_death_is_final(head: Head) -> None:
    head.create(max_restarts=2)
    for incarnation in (0, 1):
        site = head.live(incarnation=incarnation)
        head.worker_died(site.process, "killed by SIGSEGV", "")
        told, place = head.log
        assert isinstance(told, Tell)
        assert isinstance(place, Place), "told before it is placed"
        assert (told.state, told.incarnation, told.restarts_left) == ("restarting", incarnation + 1, 1 - incarnation)
        assert "SIGSEGV" in told.reason
        assert place.incarnation == incarnation + 1
    site = head.live(incarnation=2)
    head.worker_died(site.process, "killed by SIGSEGV", "")
    assert "all 2 restarts are used" in head.only(Tell).reason
    assert not head.all(Place)


def test_a_detached_actor_is_started_by_its_node_each_time(head: Head) -> None:
    head.create(detached=True, max_restarts=-1, creation=b"creation")
    for incarnation in range(5):
        site = head.grant(incarnation=incarnation)
        assert head.log == [Start(b"a", incarnation, site, b"creation")]
        head.worker_died(site.process, "killed by SIGKILL", "")
        assert head.only(Tell).restarts_left == -1


# --- ends at each point ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["kill", "release", "creator", "job"])
@pytest.mark.parametrize("point", ["pending", "placed", "alive", "restarting", "placed again"])
def test_an_end_at_each_point(head: Head, point: str, end: str) -> None:
    head.create(max_restarts=3, name="x")
    head.watch(WATCHER, b"a", CREATOR, True)
    site = None
    if point != "pending":
        site = head.grant()
    if point == "alive":
        head.started(b"worker1", b"a", 0, b"")
    if point in ("restarting", "placed again"):
        head.worker_died(b"worker1", "killed by SIGKILL", "")
        site = head.grant(incarnation=1) if point == "placed again" else None
    events = {
        "kill": lambda: head.kill(b"a", True),
        "release": lambda: head.release(CREATOR, b"a"),
        "creator": lambda: head.process_died(CREATOR),
        "job": lambda: head.job_ended(1),
    }
    reasons = {
        "kill": "killed by moray.kill()",
        "release": "no handle of it was left",
        "creator": "its creator, pid 7, has ended",
        "job": "its job has ended",
    }
    events[end]()
    if site is None:
        assert head.only(Withdraw).actor == b"a"
        assert not head.all(Stop)
    else:
        stop = head.only(Stop)
        assert (stop.process, stop.graceful) == (site.process, end == "release")
        assert not head.all(Tell), "it is dead when its process is"
        head.find(OTHER, 9, "x", "")
        assert head.only(Registered).actor == b"", "but nobody finds it any more"
        head.worker_died(site.process, "killed by SIGKILL", "words")
    told = head.only(Tell)
    assert (told.state, told.reason) == ("dead", reasons[end])
    assert set(told.processes) == {CREATOR, WATCHER}
    assert not head.all(Place)
    head.process_died(CREATOR)
    assert not head.log


def test_the_first_reason_stays(head: Head) -> None:
    head.create()
    site = head.live()
    head.release(CREATOR, b"a")
    head.process_died(CREATOR)
    assert not head.only(Stop).graceful, "but its end becomes urgent"
    head.kill(b"a", True)
    assert not head.log, "killed already"
    head.worker_died(site.process, "killed by SIGKILL", "")
    assert head.only(Tell).reason == "no handle of it was left"


def test_a_kill_with_restart_waits_for_the_old_process(head: Head) -> None:
    head.create(max_restarts=1)
    site = head.live()
    head.kill(b"a", False)
    assert head.log == [Stop(site.process, "moray.kill()", graceful=False)]
    head.worker_died(site.process, "killed by SIGKILL", "words of no interest")
    assert head.only(Tell).reason == "killed by moray.kill()"
    head.kill(b"a", False)
    assert not head.log, "it has no process now"
    site = head.live(incarnation=1)
    head.kill(b"a", False)
    head.worker_died(site.process, "killed by SIGKILL", "")
    assert head.only(Tell).state == "dead"


def test_a_kill_overtakes_an_exit_but_not_its_reason(head: Head) -> None:
    head.create(max_restarts=1)
    site = head.live()
    head.exiting(site.process, b"a", 0, "exit_actor() was called")
    assert head.only(Stop).graceful, "so that it does end"
    head.kill(b"a", False)
    assert head.only(Stop) == Stop(site.process, "moray.kill()", graceful=False)
    head.worker_died(site.process, "killed by SIGKILL", "")
    assert head.only(Tell).reason == "exit_actor() was called"


def test_processes_that_die_before_they_are_the_actor_come_ever_more_slowly(head: Head) -> None:
    head.create(max_restarts=-1)
    delays = []
    for incarnation in range(12):
        site = head.grant(incarnation=incarnation)
        head.worker_died(site.process, "killed by SIGSEGV", "")
        delays.append(head.only(Place).delay_s)
    assert delays[:3] == [0.05, 0.1, 0.2]
    assert delays[-1] == 10.0
    site = head.live(incarnation=12)
    head.worker_died(site.process, "killed by SIGSEGV", "")
    assert head.only(Place).delay_s == 0, "it had lived"


def test_a_failed_constructor_is_told_at_once_and_its_process_asked_to_end(head: Head) -> None:
    head.create(max_restarts=5, name="x")
    site = head.grant()
    head.started(site.process, b"a", 0, b"pickle")
    assert head.only(Stop) == Stop(site.process, "the constructor of its actor failed", graceful=True)
    assert head.only(Tell).error == b"pickle"
    head.worker_died(site.process, "exited with code 0", "")
    assert not head.log
    head.watch(WATCHER, b"a", CREATOR, True)
    assert head.only(Tell).error == b"pickle", "late watchers hear it, too"


def test_a_constructor_that_fails_after_the_kill_changes_nothing(head: Head) -> None:
    head.create()
    site = head.grant()
    head.kill(b"a", True)
    head.started(site.process, b"a", 0, b"pickle")
    assert not head.log
    head.worker_died(site.process, "killed by SIGKILL", "")
    assert head.only(Tell).reason == "killed by moray.kill()"


# --- words that cross ------------------------------------------------------------------------------------------


def test_a_grant_that_crosses_a_withdrawal_is_stopped(head: Head) -> None:
    head.create()
    head.release(CREATOR, b"a")
    site = head.grant()
    assert head.only(Stop).process == site.process
    assert not head.all(Placed)
    head.worker_died(site.process, "killed by SIGKILL", "")
    assert not head.log


def test_a_grant_for_an_older_incarnation_is_stopped(head: Head) -> None:
    head.create(max_restarts=-1)
    head.worker_died(head.live().process, "killed by SIGKILL", "")
    stray = head.grant(incarnation=0)
    assert head.only(Stop).process == stray.process


def test_late_words_of_an_old_incarnation_are_ignored(head: Head) -> None:
    head.create(max_restarts=-1)
    old = head.live()
    head.worker_died(old.process, "killed by SIGKILL", "")
    new = head.grant(incarnation=1)
    for process, incarnation in ((old.process, 0), (old.process, 1), (new.process, 0)):
        head.started(process, b"a", incarnation, b"error")
        assert not head.log
        head.exiting(process, b"a", incarnation, "enough")
    head.started(new.process, b"a", 1, b"")
    assert head.only(Tell).state == "alive"


def test_a_watcher_quicker_than_the_registration_waits(head: Head) -> None:
    head.watch(WATCHER, b"a", CREATOR, True)
    assert not head.log
    head.create()
    assert head.only(Tell) == Tell((WATCHER,), b"a", "pending", 0, Site(b"", 0, "", 0), "", b"", 0)
    head.live()
    assert head.only(Tell).processes == (CREATOR, WATCHER)


def test_a_watcher_of_what_never_comes_hears_so_when_the_creator_dies(head: Head) -> None:
    head.watch(WATCHER, b"a", CREATOR, True)
    head.process_died(CREATOR)
    assert head.only(Tell).processes == (WATCHER,)
    assert "unknown actor" in head.only(Tell).reason
    head.watch(WATCHER, b"b", CREATOR, False)
    assert "its creator has ended" in head.only(Tell).reason


def test_a_watcher_of_a_refused_registration_hears_so(head: Head) -> None:
    head.create(name="x")
    head.watch(WATCHER, b"b", CREATOR, True)
    head.create(b"b", name="x")
    assert head.only(Registered).actor == b""
    assert "its name 'x' was taken" in head.only(Tell).reason


def test_a_dead_watcher_is_told_nothing(head: Head) -> None:
    head.create()
    head.watch(WATCHER, b"a", CREATOR, True)
    head.watch(OTHER, b"b", CREATOR, True)
    for process in (WATCHER, OTHER):
        head.process_died(process)
    head.create(b"b")
    assert not head.all(Tell)
    head.live()
    assert head.only(Tell).processes == (CREATOR,)


def test_a_kill_quicker_than_the_registration_is_kept(head: Head) -> None:
    head.kill(b"a", True)
    head.kill(b"b", False)
    head.create()
    assert head.only(Tell).reason == "killed by moray.kill() before it was started"
    assert not head.all(Place)
    head.create(b"b")
    assert head.only(Place).actor == b"b", "there was nothing to restart"


def test_only_the_creator_releases_and_detached_actors_not_at_all(head: Head) -> None:
    head.create()
    head.release(OTHER, b"a")
    assert not head.log
    head.create(b"b", detached=True)
    head.release(CREATOR, b"b")
    assert not head.log
    head.release(CREATOR, b"unknown")
    assert not head.log


def test_a_detached_actor_outlives_creator_and_job(head: Head) -> None:
    head.create(detached=True)
    site = head.live()
    head.process_died(CREATOR)
    head.job_ended(1)
    assert not head.log
    head.kill(b"a", True)
    assert head.only(Stop).process == site.process


def test_a_repeated_registration_is_told_how_it_stands(head: Head) -> None:
    made = head.create(max_restarts=1)
    head.register(made, 2)
    assert head.only(Tell).state == "pending"
    assert not head.all(Place)
    site = head.grant()
    head.register(made, 3)
    assert head.only(Placed).site is site
    head.started(site.process, b"a", 0, b"")
    head.register(made, 4)
    assert head.only(Tell).state == "alive"
    assert not head.all(Placed)
    head.kill(b"a", True)
    head.worker_died(site.process, "killed by SIGKILL", "")
    head.register(made, 5)
    assert head.only(Registered).actor == b"a"
    assert head.only(Tell).state == "dead"


# --- names ----------------------------------------------------------------------------------------------------


def test_a_name_belongs_to_one_and_is_free_when_that_is_to_die(head: Head) -> None:
    head.create(name="x", namespace="s", meta=b"meta")
    site = head.live()
    head.create(b"b", name="x", namespace="s")
    assert "'x'" in head.only(Registered).reason
    assert not head.all(Place)
    head.create(b"c", name="x", namespace="s", get_if_exists=True)
    assert head.only(Registered) == Registered(CREATOR, 1, b"a", b"meta", CREATOR, "")
    assert not head.all(Place)
    head.kill(b"a", True)
    head.create(b"d", name="x", namespace="s")
    assert head.only(Registered).actor == b"d"
    head.worker_died(site.process, "killed by SIGKILL", "")
    head.find(OTHER, 9, "x", "s")
    assert head.only(Registered).actor == b"d", "the old one's death takes no name away"


def test_names_and_what_is_not_found(head: Head) -> None:
    head.create(b"a", name="counter", namespace="s")
    head.create(b"b", name="counter", namespace="t")
    head.create(b"c")
    head.names(OTHER, 1, "")
    assert head.only(Names).names == [("s", "counter"), ("t", "counter")]
    head.names(OTHER, 1, "t")
    assert head.only(Names).names == [("t", "counter")]
    head.find(OTHER, 2, "counter", "u")
    assert "there is one in 's', 't'" in head.only(Registered).reason
    head.find(OTHER, 3, "conuter", "s")
    assert "did you mean 'counter'?" in head.only(Registered).reason


def test_a_detached_actor_has_no_creator_for_others(head: Head) -> None:
    head.create(detached=True, name="x")
    assert head.only(Registered).creator == b""


# --- refusals, memory, views -----------------------------------------------------------------------------------


def test_a_refusal_is_warned_of_once_per_class_and_explained(head: Head) -> None:
    for actor in (b"a", b"b"):
        head.create(actor)
        head.refused(actor, 0, "this machine has no resource named 'x'", True)
        assert len(head.all(WarnJob)) == (actor == b"a")
    assert "no resource named 'x'" in head.table.describe()[0]["reason"]
    head.grant()
    assert "no resource" not in head.table.describe()[0]["reason"]
    head.refused(b"a", 0, "late", True)
    assert not head.log


def test_tombstones_go_with_their_creator_but_not_those_of_detached_actors(head: Head) -> None:
    head.create(b"a")
    head.create(b"b", detached=True)
    for actor in (b"a", b"b"):
        head.kill(actor, True)
    assert [dead["state"] for dead in head.table.describe()] == ["dead", "dead"]
    head.process_died(CREATOR)
    assert [dead["actor"] for dead in head.table.describe()] == [b"b".hex()]
    head.watch(WATCHER, b"b", b"", False)
    assert head.only(Tell).reason == "killed by moray.kill()"


def test_an_actor_that_dies_after_its_creator_leaves_no_tombstone(head: Head) -> None:
    head.create()
    site = head.live()
    head.process_died(CREATOR)
    head.worker_died(site.process, "killed by SIGKILL", "")
    assert head.only(Tell).state == "dead"
    assert not head.table.describe()


def test_tombstones_are_bounded_in_number_and_bytes(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_tombstones, "MOST", 3)
    monkeypatch.setattr(actor_tombstones, "MOST_BYTES", 1000)
    for number in range(5):
        head.create(b"%d" % number)
        head.kill(b"%d" % number, True)
    assert [bytes.fromhex(dead["actor"]) for dead in head.table.describe()] == [b"2", b"3", b"4"]
    head.create(b"large")
    head.started(head.grant(b"large").process, b"large", 0, b"x" * 2000)
    assert [bytes.fromhex(dead["actor"]) for dead in head.table.describe()] == [b"large"]
