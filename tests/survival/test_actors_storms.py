"""Actors that die again and again, that wait, and that are stopped: the node and all others go on (LIVENESS)."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return,no-untyped-call"

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import moray
from moray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError
from tests.support.procs import is_alive, session_leftovers, wait_until

pytestmark = pytest.mark.slow


@moray.remote
def echo(value: Any) -> Any:
    return value


@moray.remote(num_cpus=0)
class DiesInConstructor:
    def __init__(self, directory: str) -> None:
        Path(directory, str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def one(self) -> int:
        return 1


@moray.remote(num_cpus=0)
class DiesInCalls:
    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def one(self) -> int:
        return 1


@moray.remote(num_cpus=0)
class Ordinary:
    def pid(self) -> int:
        return os.getpid()

    def add(self, one: int, two: int) -> int:
        return one + two


def responsive() -> None:
    """Tasks and actors of others get on."""
    begin = time.monotonic()
    assert moray.get([echo.remote(i) for i in range(100)], timeout=30) == list(range(100))
    other = Ordinary.remote()
    assert moray.get(other.add.remote(1, 2), timeout=30) == 3
    assert time.monotonic() - begin < 15


def test_endless_deaths_in_the_constructor_are_slowed_down(moray_session: ModuleType, tmp_path: Path) -> None:
    actor = DiesInConstructor.options(max_restarts=-1).remote(str(tmp_path))
    ref = actor.one.remote()
    begin = time.monotonic()
    for _ in range(3):
        responsive()
    with pytest.raises((GetTimeoutError, ActorUnavailableError)):
        moray.get(ref, timeout=1)
    took = time.monotonic() - begin
    assert len(list(tmp_path.iterdir())) < 10 * took + 10
    moray.kill(actor)
    with pytest.raises(ActorDiedError, match="kill"):
        moray.get(actor.one.remote(), timeout=30)
    count = len(list(tmp_path.iterdir()))
    responsive()
    assert len(list(tmp_path.iterdir())) <= count + 1


def test_restarts_are_counted(moray_session: ModuleType, tmp_path: Path) -> None:
    actor = DiesInConstructor.options(max_restarts=5).remote(str(tmp_path))
    ref = actor.one.remote()
    with pytest.raises(ActorDiedError, match=r"SIGKILL[\s\S]*all 5 restarts are used"):
        moray.get(ref, timeout=60)
    assert len(list(tmp_path.iterdir())) == 6


def test_deaths_in_each_call(moray_session: ModuleType) -> None:
    actor = DiesInCalls.options(max_restarts=20).remote()
    for _ in range(20):
        with pytest.raises(ActorUnavailableError, match="SIGKILL"):
            moray.get(actor.die.remote(), timeout=30)
    with pytest.raises(ActorDiedError, match="all 20 restarts are used"):
        moray.get(actor.die.remote(), timeout=30)
    responsive()


def test_calls_that_always_kill_use_up_their_retries(moray_session: ModuleType) -> None:
    actor = DiesInCalls.options(max_restarts=-1, max_task_retries=3).remote()
    refs = [actor.die.remote() for _ in range(3)]
    others = [actor.one.remote() for _ in range(3)]
    for ref in refs:
        with pytest.raises(ActorUnavailableError):
            moray.get(ref, timeout=60)
    for ref in others:
        try:
            assert moray.get(ref, timeout=60) == 1
        except ActorUnavailableError:
            pass  # Sent together with those that kill, it has shared their tries.
    responsive()


def test_many_actors_die_at_once(moray_session: ModuleType) -> None:
    actors = [Ordinary.options(max_restarts=1, max_task_retries=-1).remote() for _ in range(20)]
    pids = moray.get([actor.pid.remote() for actor in actors], timeout=60)
    refs = [actor.add.remote(i, i) for i, actor in enumerate(actors)]
    for process in pids:
        os.kill(process, signal.SIGKILL)
    refs += [actor.add.remote(i, i) for i, actor in enumerate(actors)]
    assert moray.get(refs, timeout=60) == [2 * i for i in range(20)] * 2
    assert not set(pids) & set(moray.get([actor.pid.remote() for actor in actors], timeout=60))


@pytest.mark.filterwarnings("ignore:a blocking")
def test_a_get_inside_async_actors(moray_session: ModuleType) -> None:
    """It stops the event loop as long as it lasts, and nothing else: answers come by the I/O thread."""

    @moray.remote(num_cpus=0)
    class Blocking:
        async def get(self, refs: list[Any]) -> Any:
            return moray.get(refs[0])

        async def call(self, other: Any, number: int) -> int:
            if number == 0:
                return 0
            return 1 + moray.get(other.call.remote(other, 0))

    actors = [Blocking.remote() for _ in range(2)]
    for number in range(50):
        assert moray.get([actor.get.remote([echo.remote(number)]) for actor in actors], timeout=30) == [number] * 2
        assert moray.get(actors[0].call.remote(actors[1], 1), timeout=30) == 1
    refs = [actor.get.remote([moray.put(i)]) for i in range(100) for actor in actors]
    assert moray.get(refs, timeout=30) == [i for i in range(100) for _ in actors]


def test_a_stopped_actor(moray_session: ModuleType) -> None:
    actor, other = Ordinary.remote(), Ordinary.remote()
    process = moray.get(actor.pid.remote(), timeout=30)
    os.kill(process, signal.SIGSTOP)
    try:
        refs = [actor.add.remote(i, 1) for i in range(100)]
        with pytest.raises(GetTimeoutError, match="Ordinary"):
            moray.get(refs[0], timeout=0.3)
        responsive()
        assert moray.get([other.add.remote(i, 1) for i in range(100)], timeout=30) == list(range(1, 101))
    finally:
        os.kill(process, signal.SIGCONT)
    assert moray.get(refs, timeout=30) == list(range(1, 101))


def test_a_stopped_worker(moray_session: ModuleType, tmp_path: Path) -> None:
    @moray.remote
    def stop_yourself() -> str:
        (tmp_path / "pid").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
        return "went on"

    ref = stop_yourself.remote()
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    with pytest.raises(GetTimeoutError, match="stop_yourself"):
        moray.get(ref, timeout=0.5)
    responsive()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)
    assert moray.get(ref, timeout=30) == "went on"


def test_a_stopped_actor_is_killed_and_restarted(moray_session: ModuleType) -> None:
    actor = Ordinary.options(max_restarts=-1, max_task_retries=-1).remote()
    process = moray.get(actor.pid.remote(), timeout=30)
    os.kill(process, signal.SIGSTOP)
    refs = [actor.add.remote(i, 1) for i in range(10)]
    moray.kill(actor, no_restart=False)
    assert moray.get(refs, timeout=30) == list(range(1, 11))
    assert moray.get(actor.pid.remote(), timeout=30) != process


def test_shutdown_ends_what_is_stopped(tmp_path: Path) -> None:
    context = moray.init(num_cpus=2)
    try:
        name = moray.get_runtime_context().get_session_name()
        directory = context.address_info["session_dir"]
        actor = Ordinary.remote()
        process = moray.get(actor.pid.remote(), timeout=30)
        worker = moray.get(moray.remote(os.getpid).remote(), timeout=30)
        os.kill(process, signal.SIGSTOP)
        os.kill(worker, signal.SIGSTOP)
    finally:
        moray.shutdown()
    wait_until(lambda: not is_alive(process) and not is_alive(worker), 20, "the end of stopped processes")
    wait_until(lambda: not session_leftovers(name, directory), 10, "the end of the session")


def test_a_dropped_handle_of_a_stopped_actor_ends_it_after_its_grace(moray_session: ModuleType) -> None:
    """Asked in peace, it cannot answer: nothing of others waits for it."""
    actor = Ordinary.remote()
    process = moray.get(actor.pid.remote(), timeout=30)
    os.kill(process, signal.SIGSTOP)
    try:
        del actor
        responsive()
    finally:
        os.kill(process, signal.SIGCONT)
    wait_until(lambda: not is_alive(process), 20, "the end of the actor")
