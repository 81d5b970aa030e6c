"""Actors that end themselves: exit_actor() counts even if what it raises is swallowed; last words are said once."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import asyncio
import atexit
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.exceptions import ActorDiedError
from tests.support.procs import run_driver, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


class Stubborn:
    def leave(self, value: Any = None) -> Any:
        try:
            moray.actor.exit_actor()
        except BaseException:
            pass
        return value

    def touch(self, path: str) -> None:
        Path(path).touch()


class AsyncStubborn(Stubborn):
    async def idle(self) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", [Stubborn, AsyncStubborn, "threads"])
@pytest.mark.parametrize("value", [None, 1, "text", "reference"])
def test_an_exit_that_is_swallowed_is_an_exit(kind: Any, value: Any, tmp_path: Path) -> None:
    actor_class: Any = moray.remote(num_cpus=0)(Stubborn if kind == "threads" else kind)
    actor = (
        actor_class.options(max_concurrency=3, max_restarts=5).remote() if kind == "threads" else actor_class.remote()
    )
    moray.get(actor.touch.remote(str(tmp_path / "before")), timeout=20)
    ref = actor.leave.remote([moray.put(1)] if value == "reference" else value)
    late = actor.touch.remote(str(tmp_path / "after")) if kind is Stubborn else None
    with pytest.raises(ActorDiedError, match=r"exit_actor\(\) was called in .*\.leave"):
        moray.get(ref, timeout=20)
    if late is not None:
        with pytest.raises(ActorDiedError):
            moray.get(late, timeout=20)
    with pytest.raises(ActorDiedError):
        moray.get(actor.touch.remote(str(tmp_path / "after")), timeout=20)
    assert not (tmp_path / "after").exists()


def test_results_before_the_exit_arrive() -> None:
    actor: Any = moray.remote(num_cpus=0)(Stubborn).remote()
    refs = [actor.__ray_call__.remote(lambda _self, x: x, number) for number in range(100)]
    actor.leave.remote()
    assert moray.get(refs, timeout=20) == list(range(100))


def test_swallowed_in_local_mode() -> None:
    code = """
    import moray
    moray.init(local_mode=True)

    @moray.remote
    class Stubborn:
        def leave(self):
            try:
                moray.actor.exit_actor()
            except BaseException:
                pass

    actor = Stubborn.remote()
    for _ in range(2):
        try:
            moray.get(actor.leave.remote())
        except moray.exceptions.ActorDiedError as error:
            print("exit_actor() was called" in str(error))
    """
    assert run_driver(code).stdout.split() == ["True", "True"]


class LastWords:
    """Appends to a file what is done at its end."""

    def __init__(self, path: str) -> None:
        self.path = path
        atexit.register(self.say, "atexit")

    def say(self, word: str) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{word} ")

    def __ray_shutdown__(self) -> None:
        self.say("shutdown")
        raise ValueError("the one must not keep the other from its work")

    def slow(self, seconds: float) -> None:
        time.sleep(seconds)

    def leave(self) -> None:
        moray.actor.exit_actor()

    def quit(self) -> None:
        sys.exit()


def test_atexit_handlers_run_after_a_shutdown_method_that_fails(tmp_path: Path) -> None:
    words = tmp_path / "words"
    actor: Any = moray.remote(num_cpus=0)(LastWords).remote(str(words))
    moray.get(actor.slow.remote(0), timeout=20)
    del actor
    wait_until(lambda: words.exists() and words.read_text() == "shutdown atexit ", 20, "both")


def test_last_words_are_said_once_though_several_threads_leave(tmp_path: Path) -> None:
    for number in range(5):
        words = tmp_path / f"words{number}"
        actor: Any = moray.remote(num_cpus=0, max_concurrency=8)(LastWords).remote(str(words))
        refs = [actor.leave.remote() for _ in range(8)]
        for ref in refs:
            with pytest.raises(ActorDiedError):
                moray.get(ref, timeout=20)
        assert words.read_text() == "shutdown atexit "


def test_the_exit_code_is_told(tmp_path: Path) -> None:
    actor: Any = moray.remote(num_cpus=0)(LastWords).remote(str(tmp_path / "words"))
    with pytest.raises(ActorDiedError, match=r"exit code 0 was called in LastWords\.quit"):
        moray.get(actor.quit.remote(), timeout=20)


def test_who_asks_an_actor_to_terminate_is_not_told_that_it_did() -> None:
    code = """
    import moray, time
    moray.init(num_cpus=1)
    @moray.remote
    class A:
        def f(self): return 1
    a = A.remote()
    moray.get(a.f.remote())
    a.__ray_terminate__.remote()
    try:
        moray.get(a.f.remote())
    except moray.exceptions.ActorDiedError:
        pass
    """
    assert "nobody fetched" not in run_driver(code).stderr
