"""Cancels and kills of actors whose constructors run, or have not begun (CANCEL)."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return,no-untyped-call"

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import moray
from moray.exceptions import ActorDiedError, TaskCancelledError
from tests.support.procs import is_alive, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@pytest.fixture(scope="module", autouse=True)
def _session(shared_session: ModuleType) -> None:
    """One session for all tests of the module."""


class Slow:
    """Writes how its constructor went."""

    def __init__(self, directory: str, seconds: float = 60, swallow: bool = False, _argument: Any = None) -> None:
        note(directory, "begun", os.getpid())
        try:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(0.2)
        except KeyboardInterrupt:
            if not swallow:
                raise
        finally:
            note(directory, "ended", 0)

    def answer(self) -> int:
        return 42


class AsyncSlow(Slow):
    async def later(self) -> int:
        return 43


def note(directory: str, name: str, value: int) -> None:
    with open(os.path.join(directory, f"{name}.part"), "w") as file:
        file.write(str(value))
    os.rename(os.path.join(directory, f"{name}.part"), os.path.join(directory, name))


def read(path: Path) -> int:
    wait_until(path.exists, 20, f"{path.name}")
    return int(path.read_text())


@moray.remote(num_cpus=0)
class Holder:
    """Keeps what a cancelled task has made."""

    def __init__(self) -> None:
        self.handle: Any = None

    def keep(self, handle: Any) -> None:
        self.handle = handle

    def call(self) -> Any:
        return moray.get(self.handle.answer.remote(), timeout=20)


@moray.remote(num_cpus=0)
def create(kind: Any, options: dict[str, Any], holder: Any, *args: Any) -> Any:
    actor = moray.remote(**{"num_cpus": 0, **options})(kind).remote(*args)
    moray.get(holder.keep.remote(actor))
    return moray.get(actor.answer.remote())


KINDS = pytest.mark.parametrize(
    ("kind", "options"),
    [(Slow, {}), (Slow, {"max_concurrency": 3}), (AsyncSlow, {})],
    ids=["sync", "threaded", "async"],
)


@KINDS
def test_a_cancelled_task_takes_the_constructor_with_it(tmp_path: Path, kind: Any, options: dict[str, Any]) -> None:
    """It is interrupted, its `finally` runs, and who has a handle learns why there is no actor."""
    holder = Holder.remote()
    ref = create.remote(kind, options, holder, str(tmp_path))
    process = read(tmp_path / "begun")
    moray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        moray.get(ref, timeout=20)
    read(tmp_path / "ended")
    wait_until(lambda: not is_alive(process), 20, "the end of the actor's process")
    with pytest.raises(ActorDiedError, match=r"__init__.*interrupted"):
        moray.get(holder.call.remote(), timeout=20)


@KINDS
def test_a_constructor_that_swallows_it_makes_an_actor(tmp_path: Path, kind: Any, options: dict[str, Any]) -> None:
    holder = Holder.remote()
    ref = create.remote(kind, options, holder, str(tmp_path), 60, True)
    read(tmp_path / "begun")
    moray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        moray.get(ref, timeout=20)
    assert moray.get(holder.call.remote(), timeout=20) == 42


def test_not_recursive_spares_it(tmp_path: Path) -> None:
    holder = Holder.remote()
    ref = create.remote(Slow, {}, holder, str(tmp_path), 1)
    read(tmp_path / "begun")
    moray.cancel(ref, recursive=False)
    with pytest.raises(TaskCancelledError):
        moray.get(ref, timeout=20)
    assert moray.get(holder.call.remote(), timeout=20) == 42


def test_one_that_waits_for_an_argument_never_begins(tmp_path: Path) -> None:
    @moray.remote(num_cpus=0)
    def never() -> None:
        wait_until((tmp_path / "go").exists, 60)

    @moray.remote(num_cpus=0)
    def create_waiting(refs: list[Any], holder: Any, directory: str) -> Any:
        actor = moray.remote(num_cpus=0)(_Waits).remote(directory, refs[0])
        moray.get(holder.keep.remote(actor))
        note(directory, "asked", 1)
        return moray.get(actor.answer.remote())

    holder, argument = Holder.remote(), never.remote()
    ref = create_waiting.remote([argument], holder, str(tmp_path))
    read(tmp_path / "asked")
    moray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        moray.get(ref, timeout=20)
    with pytest.raises(ActorDiedError):
        moray.get(holder.call.remote(), timeout=20)
    (tmp_path / "go").touch()
    moray.get(argument, timeout=20)
    assert not (tmp_path / "waited").exists()


class _Waits:
    def __init__(self, directory: str, argument: Any) -> None:
        note(directory, "waited", 1)

    def answer(self) -> int:
        return 1


def test_an_actor_that_is_made_stays(tmp_path: Path) -> None:
    """A cancel ends what has not finished: the constructor has."""
    holder = Holder.remote()

    @moray.remote(num_cpus=0)
    def make_and_sleep(directory: str) -> None:
        actor = moray.remote(num_cpus=0)(Slow).remote(directory, 0)
        moray.get(holder.keep.remote(actor))
        moray.get(actor.answer.remote())
        note(directory, "made", 1)
        time.sleep(60)

    ref = make_and_sleep.remote(str(tmp_path))
    read(tmp_path / "made")
    moray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        moray.get(ref, timeout=20)
    assert moray.get(holder.call.remote(), timeout=20) == 42


def test_what_the_constructor_has_submitted_ends_with_it(tmp_path: Path) -> None:
    class Parent:
        def __init__(self, directory: str) -> None:
            moray.get(sleeps.remote(directory))

        def answer(self) -> int:
            return 1

    @moray.remote(num_cpus=0)
    def sleeps(directory: str) -> None:
        note(directory, "begun", os.getpid())
        try:
            time.sleep(60)
        finally:
            note(directory, "ended", 0)

    ref = create.remote(Parent, {}, Holder.remote(), str(tmp_path))
    read(tmp_path / "begun")
    moray.cancel(ref)
    read(tmp_path / "ended")
    with pytest.raises(TaskCancelledError):
        moray.get(ref, timeout=20)


@KINDS
def test_kill_while_the_constructor_runs(tmp_path: Path, kind: Any, options: dict[str, Any]) -> None:
    """The process ends at once; every call learns why."""
    actor = moray.remote(**{"num_cpus": 0, "max_restarts": 3, **options})(kind).remote(str(tmp_path))
    refs = [actor.answer.remote() for _ in range(3)]
    process = read(tmp_path / "begun")
    moray.kill(actor)
    for ref in [*refs, actor.answer.remote()]:
        with pytest.raises(ActorDiedError, match="kill"):
            moray.get(ref, timeout=20)
    wait_until(lambda: not is_alive(process), 20, "the end of the actor's process")
    assert not (tmp_path / "ended").exists()


def test_kill_for_a_restart_while_the_constructor_runs(tmp_path: Path) -> None:
    """Calls that were made meanwhile have not begun: the next incarnation runs them."""

    class Second(Slow):
        def __init__(self, directory: str) -> None:
            super().__init__(directory, 0 if moray.get_runtime_context().was_current_actor_reconstructed else 60)

    actor = moray.remote(num_cpus=0, max_restarts=1)(Second).remote(str(tmp_path))
    refs = [actor.answer.remote() for _ in range(3)]
    process = read(tmp_path / "begun")
    moray.kill(actor, no_restart=False)
    assert moray.get(refs, timeout=20) == [42] * 3
    assert not is_alive(process)
