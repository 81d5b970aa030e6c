"""How actors end: killed, by themselves, by an error of the constructor, by a signal; what callers hear."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import pytest

import moray
from moray.exceptions import ActorDiedError, ActorError, RayActorError, TaskError
from tests.support.procs import is_alive, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote
class Fragile:
    def pid(self) -> int:
        return os.getpid()

    def one(self) -> int:
        return 1

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def die(self, number: int) -> None:
        print("these are my last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), number)
        time.sleep(30)

    def leave(self) -> None:
        moray.actor.exit_actor()

    def system_exit(self, code: int) -> None:
        sys.exit(code)

    def os_exit(self, code: int) -> None:
        os._exit(code)


def started(**options: Any) -> tuple[Any, int]:
    actor = Fragile.options(**options).remote() if options else Fragile.remote()
    return actor, moray.get(actor.pid.remote())


def death_of(ref: Any) -> ActorDiedError:
    with pytest.raises(ActorDiedError) as caught:
        moray.get(ref, timeout=30)
    assert isinstance(caught.value, RayActorError)
    assert isinstance(caught.value, ActorError)
    return caught.value


def outcome(ref: Any) -> str:
    try:
        return str(moray.get(ref, timeout=30))
    except ActorDiedError as error:
        return "killed" if "kill" in str(error) else str(error)


def ended(pid: int) -> None:
    wait_until(lambda: not is_alive(pid), 10, f"the end of process {pid}")


# --- kill -----------------------------------------------------------------------------------------


def test_kill_ends_the_process_now() -> None:
    actor, pid = started()
    running = actor.sleep.remote(60)
    queued = actor.one.remote()
    moray.kill(actor)
    ended(pid)
    for ref in (running, queued, actor.one.remote()):
        error = death_of(ref)
        assert "kill" in str(error)
        assert error.actor_id == actor._actor_id.hex()
        assert error.actor_init_failed is False
    moray.kill(actor)


def test_calls_after_a_kill_are_not_answered() -> None:
    for _ in range(10):
        actor, _pid = started()
        moray.kill(actor)
        assert "kill" in str(death_of(actor.one.remote()))


def test_kill_before_it_started() -> None:
    actors = [Fragile.options(num_cpus=1).remote() for _ in range(4)]
    refs = [actor.one.remote() for actor in actors]
    for actor in actors:
        moray.kill(actor)
    for ref in refs:
        assert outcome(ref) in ("1", "killed")
    wait_until(lambda: moray.available_resources().get("CPU") == 2, what="the CPUs given back")


@pytest.mark.parametrize(
    "what", ["name", None, 5, Fragile, moray.kill], ids=["str", "None", "int", "class", "function"]
)
def test_kill_takes_handles_only(what: Any) -> None:
    with pytest.raises(ValueError, match=r"kill\(\) takes an actor handle"):
        moray.kill(what)
    with pytest.raises(ValueError, match=r"moray\.cancel"):
        moray.kill(moray.put(1))  # type: ignore[arg-type]


def test_an_actor_may_be_killed_by_a_task() -> None:
    @moray.remote
    def end(handle: Any) -> None:
        moray.kill(handle)

    actor, pid = started()
    moray.get(end.remote(actor))
    ended(pid)
    death_of(actor.one.remote())


# --- by itself ------------------------------------------------------------------------------------


def test_exit_actor() -> None:
    actor, pid = started(max_restarts=5)
    before = actor.one.remote()
    leaving = actor.leave.remote()
    after = actor.one.remote()
    assert moray.get(before) == 1
    assert "exit_actor" in str(death_of(leaving))
    death_of(after)
    ended(pid)


def test_exit_actor_outside_of_actors() -> None:
    with pytest.raises(TypeError, match=r"exit_actor.*moray\.kill"):
        moray.actor.exit_actor()

    @moray.remote
    def wrong() -> None:
        moray.actor.exit_actor()

    with pytest.raises(TypeError, match="exit_actor"):
        moray.get(wrong.remote())


def test_exit_actor_in_an_async_actor() -> None:
    @moray.remote
    class Async:
        async def pid(self) -> int:
            return os.getpid()

        async def leave(self) -> None:
            moray.actor.exit_actor()

    actor = Async.remote()
    pid = moray.get(actor.pid.remote())
    assert "exit_actor" in str(death_of(actor.leave.remote()))
    ended(pid)


def test_ray_terminate() -> None:
    actor, pid = started()
    before = [actor.one.remote() for _ in range(10)]
    actor.__ray_terminate__.remote()
    assert moray.get(before) == [1] * 10
    ended(pid)
    death_of(actor.one.remote())


@pytest.mark.parametrize("code", [0, 3])
def test_sys_exit(code: int) -> None:
    actor, pid = started()
    error = death_of(actor.system_exit.remote(code))
    assert ("sys.exit" if code == 0 else "3") in str(error)
    ended(pid)


# --- by accident ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM], ids=lambda n: n.name)
def test_death_by_a_signal_is_told_with_its_last_words(number: signal.Signals) -> None:
    actor, pid = started()
    dying = actor.die.remote(int(number))
    queued = actor.one.remote()
    for ref in (dying, queued, actor.one.remote()):
        text = str(death_of(ref))
        assert number.name in text
        # After a fault Python's own report of it comes last, and is longer than what is kept.
        assert ("Extension modules" if number == signal.SIGSEGV else "these are my last words") in text
        assert "Fragile" in text
    ended(pid)


def test_death_by_an_exit_code() -> None:
    actor, _pid = started()
    assert "code 7" in str(death_of(actor.os_exit.remote(7)))


def test_a_dead_actors_cause_is_heard_by_those_who_come_late() -> None:
    @moray.remote
    def call(handle: Any) -> str:
        try:
            moray.get(handle.one.remote())
        except ActorDiedError as error:
            return str(error)
        return "alive"

    actor, pid = started()
    death_of(actor.os_exit.remote(9))
    ended(pid)
    assert "code 9" in moray.get(call.remote(actor))


def test_results_of_a_dead_actor_stay() -> None:
    @moray.remote
    class Maker:
        def small(self) -> str:
            return "small"

        def large(self) -> bytes:
            return b"x" * 1_000_000

    maker = Maker.remote()
    refs = [maker.small.remote(), maker.large.remote()]
    moray.wait(refs, num_returns=2)
    moray.kill(maker)
    death_of(maker.small.remote())
    assert moray.get(refs[0]) == "small"
    assert len(moray.get(refs[1])) == 1_000_000


# --- constructors ---------------------------------------------------------------------------------


@moray.remote(max_restarts=3)
class Stillborn:
    def __init__(self, text: str) -> None:
        raise LookupError(text)

    def one(self) -> int:
        return 1


def test_an_error_of_the_constructor_is_heard_by_every_call() -> None:
    actor = Stillborn.remote("no luck")
    for ref in [actor.one.remote() for _ in range(3)]:
        error = death_of(ref)
        assert error.actor_init_failed is True
        assert isinstance(error.cause, TaskError)
        assert isinstance(error.cause.cause, LookupError)
        assert "no luck" in str(error)
        assert "Stillborn.__init__" in str(error)
    death_of(actor.one.remote())


def test_an_error_of_the_constructor_is_heard_by_other_callers() -> None:
    @moray.remote
    def call(handle: Any) -> str:
        try:
            moray.get(handle.one.remote())
        except ActorDiedError as error:
            return str(error)
        return "alive"

    actor = Stillborn.remote("told to all")
    assert "told to all" in moray.get(call.remote(actor))
    assert "told to all" in moray.get(call.remote(actor))


def test_a_constructor_whose_argument_is_an_error() -> None:
    @moray.remote
    def broken() -> str:
        raise OSError("no text")

    error = death_of(Stillborn.remote(broken.remote()).one.remote())
    assert "no text" in str(error)


def test_a_constructor_that_kills_its_process() -> None:
    @moray.remote
    class Suicidal:
        def __init__(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def one(self) -> int:
            return 1

    assert "SIGKILL" in str(death_of(Suicidal.remote().one.remote()))


def test_a_constructor_that_leaves() -> None:
    @moray.remote
    class Shy:
        def __init__(self) -> None:
            moray.actor.exit_actor()

        def one(self) -> int:
            return 1

    assert "exit_actor" in str(death_of(Shy.remote().one.remote()))


def test_a_class_that_cannot_be_loaded() -> None:
    class Unloadable:
        def __reduce__(self) -> Any:
            return _raise, ("cannot be loaded",)

    thing = Unloadable()

    @moray.remote
    class Uses:
        def one(self) -> Any:
            return thing

    assert "cannot be loaded" in str(death_of(Uses.remote().one.remote()))


def _raise(text: str) -> None:
    raise ImportError(text)


# --- creators -------------------------------------------------------------------------------------


def test_an_actor_dies_with_its_creator() -> None:
    @moray.remote
    class Parent:
        def make(self) -> Any:
            self.child = Fragile.remote()
            return [self.child, moray.get(self.child.pid.remote())]

    parent = Parent.remote()
    child, pid = moray.get(parent.make.remote())
    moray.kill(parent)
    ended(pid)
    assert "creator" in str(death_of(child.one.remote()))
