"""Actors that come back: restarts, calls that are tried again, and what is told in between."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.exceptions import ActorDiedError, ActorUnavailableError
from tests.support.procs import wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote
class Phoenix:
    def __init__(self, note: Any = None) -> None:
        self.note = note
        self.calls = 0

    def pid(self) -> int:
        return os.getpid()

    def again(self) -> bool:
        found: bool = moray.get_runtime_context().was_current_actor_reconstructed
        return found

    def kept(self) -> Any:
        return self.note

    def count(self) -> int:
        self.calls += 1
        return self.calls

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(30)

    def die_at_first(self, directory: str, value: int) -> int:
        """Dies at its first try."""
        path = Path(directory) / str(value)
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(30)
        return value

    def fail_until(self, directory: str, times: int, error: type[Exception]) -> int:
        tries = len(list(Path(directory).iterdir()))
        (Path(directory) / f"try {tries}").touch()
        if tries < times:
            raise error(f"try {tries}")
        return tries


def answer(method: Any) -> Any:
    """The value of a call that is made until the actor is there again."""
    found: list[Any] = []

    def there() -> bool:
        try:
            found.append(moray.get(method.remote()))
        except ActorUnavailableError:
            return False
        return True

    wait_until(there, 30, "an answer of the actor")
    return found[0]


# --- restarts -------------------------------------------------------------------------------------


def test_an_actor_comes_back_with_new_state_and_the_same_arguments() -> None:
    actor = Phoenix.options(max_restarts=2).remote([moray.put("argument")])
    assert moray.get([actor.count.remote(), actor.count.remote()]) == [1, 2]
    assert moray.get(actor.again.remote()) is False
    pids = [moray.get(actor.pid.remote())]
    for _ in range(2):
        with pytest.raises(ActorUnavailableError) as caught:
            moray.get(actor.die.remote())
        assert "SIGKILL" in str(caught.value)
        assert caught.value.actor_id == actor._actor_id.hex()
        assert answer(actor.count) == 1
        pids.append(moray.get(actor.pid.remote()))
        assert moray.get(actor.again.remote()) is True
        assert moray.get(moray.get(actor.kept.remote())[0]) == "argument"
    assert len(set(pids)) == 3
    with pytest.raises(ActorDiedError, match="restart"):
        moray.get(actor.die.remote())
    with pytest.raises(ActorDiedError, match="restart"):
        moray.get(actor.count.remote())


def test_endless_restarts() -> None:
    actor = Phoenix.options(max_restarts=-1).remote()
    for _ in range(5):
        with pytest.raises(ActorUnavailableError):
            moray.get(actor.die.remote())
        assert answer(actor.count) == 1


def test_kill_with_restart() -> None:
    actor = Phoenix.options(max_restarts=1).remote()
    first = moray.get(actor.pid.remote())
    moray.kill(actor, no_restart=False)
    wait_until(lambda: answer(actor.pid) != first, what="another process")
    moray.kill(actor, no_restart=False)
    with pytest.raises(ActorDiedError):
        while True:
            answer(actor.pid)


def test_kill_without_restart_ends_a_restartable_actor() -> None:
    actor = Phoenix.options(max_restarts=-1, max_task_retries=-1).remote()
    moray.get(actor.pid.remote())
    waiting = actor.__ray_call__.remote(lambda _: time.sleep(30))
    moray.kill(actor)
    for ref in (waiting, actor.count.remote()):
        with pytest.raises(ActorDiedError, match="kill"):
            moray.get(ref)


def test_queued_calls_run_in_the_next_incarnation_if_they_were_not_sent(tmp_path: Path) -> None:
    actor = Phoenix.options(max_restarts=1, max_task_retries=1).remote()
    refs = [actor.die_at_first.remote(str(tmp_path), 0), *[actor.count.remote() for _ in range(100)]]
    assert moray.get(refs[0], timeout=60) == 0
    assert moray.get(refs[1:], timeout=60) == list(range(1, 101))


# --- retries of calls -----------------------------------------------------------------------------


def test_max_task_retries(tmp_path: Path) -> None:
    actor = Phoenix.options(max_restarts=-1, max_task_retries=2).remote()
    assert moray.get(actor.die_at_first.remote(str(tmp_path), 1), timeout=60) == 1
    with pytest.raises(ActorUnavailableError):
        moray.get(actor.die_at_first.options(max_task_retries=0).remote(str(tmp_path), 2))
    with pytest.raises(ActorUnavailableError):
        moray.get(actor.die.remote(), timeout=60)


def test_retries_given_by_method_and_by_call(tmp_path: Path) -> None:
    @moray.remote(max_restarts=-1)
    class Methods:
        @moray.method(max_task_retries=1)
        def die_at_first(self, directory: str, value: int) -> int:
            path = Path(directory) / str(value)
            if not path.exists():
                path.touch()
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(30)
            return value

    actor = Methods.remote()
    assert moray.get(actor.die_at_first.remote(str(tmp_path), 1), timeout=60) == 1
    assert moray.get(actor.die_at_first.options(max_task_retries=-1).remote(str(tmp_path), 2), timeout=60) == 2


def test_retry_exceptions(tmp_path: Path) -> None:
    directories = [tmp_path / name for name in "abcd"]
    for directory in directories:
        directory.mkdir()
    a, b, c, d = map(str, directories)
    actor = Phoenix.options(max_task_retries=3).remote()
    retried = actor.fail_until.options(retry_exceptions=True)
    assert moray.get(retried.remote(a, 3, ValueError)) == 3
    some = actor.fail_until.options(retry_exceptions=[LookupError])
    assert moray.get(some.remote(b, 2, KeyError)) == 2
    with pytest.raises(ValueError, match="try 0"):
        moray.get(some.remote(c, 2, ValueError))
    with pytest.raises(ValueError, match="try 0"):
        moray.get(actor.fail_until.remote(d, 1, ValueError))


def test_retry_exceptions_given_by_the_method(tmp_path: Path) -> None:
    @moray.remote(max_task_retries=2)
    class Stubborn:
        @moray.method(retry_exceptions=[OSError])
        def fail_twice(self, directory: str) -> int:
            tries = len(list(Path(directory).iterdir()))
            (Path(directory) / f"try {tries}").touch()
            if tries < 2:
                raise FileNotFoundError(f"try {tries}")
            return tries

    assert moray.get(Stubborn.remote().fail_twice.remote(str(tmp_path))) == 2


def test_unsent_calls_of_an_actor_without_retries_reach_the_next_incarnation() -> None:
    actor = Phoenix.options(max_restarts=1).remote()
    moray.get(actor.pid.remote())
    with pytest.raises(ActorUnavailableError):
        moray.get(actor.die.remote())
    assert answer(actor.count) == 1


def test_a_restarted_actor_keeps_its_name_and_its_handles() -> None:
    @moray.remote
    def call(handle: Any) -> Any:
        return answer(handle.pid)

    actor = Phoenix.options(max_restarts=1, name="phoenix").remote()
    first = moray.get(actor.pid.remote())
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: answer(actor.pid) != first, what="another process")
    assert moray.get(moray.get_actor("phoenix").pid.remote()) == moray.get(call.remote(actor))


def test_resources_survive_a_restart() -> None:
    actor = Phoenix.options(max_restarts=1, num_cpus=1).remote()
    first = moray.get(actor.pid.remote())
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: answer(actor.pid) != first, what="another process")
    wait_until(lambda: moray.available_resources().get("CPU") == 1, what="one CPU held, as before")
    moray.kill(actor)
    wait_until(lambda: moray.available_resources().get("CPU") == 2, what="the CPU given back")
