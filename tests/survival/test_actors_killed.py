"""An actor is killed at every point of a call: the call is completed once, or fails with a clear error (CALL-ORDER)."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return,no-untyped-call"

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import moray
from moray.exceptions import ActorDiedError, ActorUnavailableError
from tests.support.procs import is_alive, wait_until

pytestmark = pytest.mark.slow


class Bomb:
    """Kills who pickles it, once."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        if not os.path.exists(self.path):
            Path(self.path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return str, ("disarmed",)


@moray.remote(num_cpus=0)
class Victim:
    def pid(self) -> int:
        return os.getpid()

    def note(self, path: str, value: Any = None) -> Any:
        """Notes the run, then waits for the second one, if it is told to."""
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        return value

    def run(self, path: str) -> str:
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        if len(Path(path).read_text().split()) == 1:
            time.sleep(60)
        return "second"

    def bomb(self, path: str) -> Any:
        return [self.note(path), Bomb(path + " exploded")][1]

    def give(self, path: str, kept: list[Any]) -> list[Any]:
        """A reply with a reference of a third process, which must acknowledge before it leaves."""
        self.note(path)
        return kept


@moray.remote(num_cpus=0)
class Third:
    """Owns what others pass around."""

    def pid(self) -> int:
        return os.getpid()

    def make(self) -> list[Any]:
        return [moray.put("third's")]


def runs(path: Path) -> int:
    return len(path.read_text().split()) if path.exists() else 0


#: All of them in long runs; those that differ most each time.
OPTIONS = pytest.mark.parametrize(
    ("restarts", "retries"),
    [
        (0, 0),
        pytest.param(0, 3, marks=pytest.mark.long),
        pytest.param(1, 0, marks=pytest.mark.long),
        (1, 1),
        pytest.param(-1, -1, marks=pytest.mark.long),
    ],
)


def check(ref: Any, restarts: int, retries: int, expected: Any) -> None:
    """What a call must give whose actor was killed once while it had it."""
    if restarts and retries:
        assert moray.get(ref, timeout=40) == expected
        return
    kind = ActorUnavailableError if restarts else ActorDiedError
    with pytest.raises(kind) as caught:
        moray.get(ref, timeout=40)
    assert "SIGKILL" in str(caught.value)
    assert "Victim" in str(caught.value)


def start(restarts: int, retries: int) -> tuple[Any, int]:
    actor = Victim.options(max_restarts=restarts, max_task_retries=retries).remote()
    return actor, moray.get(actor.pid.remote(), timeout=30)


def after(actor: Any, restarts: int) -> None:
    """The calls that follow are as they should be."""
    if restarts:
        wait_until(lambda: _answers(actor), 30, "an answer of the next incarnation")
        return
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        moray.get(actor.pid.remote(), timeout=30)


def _answers(actor: Any) -> bool:
    try:
        process = moray.get(actor.pid.remote(), timeout=30)
    except ActorUnavailableError:
        return False
    return is_alive(process)


@OPTIONS
def test_before_the_call_arrives(moray_session: ModuleType, tmp_path: Path, restarts: int, retries: int) -> None:
    actor, process = start(restarts, retries)
    os.kill(process, signal.SIGSTOP)
    ref = actor.note.remote(str(tmp_path / "runs"), "value")
    moray.wait([ref], timeout=0.05)
    os.kill(process, signal.SIGKILL)
    check(ref, restarts, retries, "value")
    assert runs(tmp_path / "runs") == (1 if restarts and retries else 0)
    after(actor, restarts)


@OPTIONS
def test_while_references_in_arguments_are_registered(
    moray_session: ModuleType, tmp_path: Path, restarts: int, retries: int
) -> None:
    """Their owner is stopped, so that the method cannot start (REF-SEND)."""
    actor, process = start(restarts, retries)
    third = Third.remote()
    owner = moray.get(third.pid.remote(), timeout=30)
    given = moray.get(third.make.remote(), timeout=30)
    os.kill(owner, signal.SIGSTOP)
    try:
        ref = actor.note.remote(str(tmp_path / "runs"), given)
        moray.wait([ref], timeout=0.2)
        assert runs(tmp_path / "runs") == 0
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: not is_alive(process))
    finally:
        os.kill(owner, signal.SIGCONT)
    check(ref, restarts, retries, given)
    assert runs(tmp_path / "runs") == (1 if restarts and retries else 0)
    after(actor, restarts)
    assert moray.get(given[0], timeout=30) == "third's"


@OPTIONS
def test_while_it_runs(moray_session: ModuleType, tmp_path: Path, restarts: int, retries: int) -> None:
    actor, process = start(restarts, retries)
    ref = actor.run.remote(str(tmp_path / "runs"))
    behind = [actor.note.remote(str(tmp_path / "behind"), number) for number in range(5)]
    wait_until(lambda: runs(tmp_path / "runs") == 1)
    os.kill(process, signal.SIGKILL)
    check(ref, restarts, retries, "second")
    for number, each in enumerate(behind):
        check(each, restarts, retries, number)
    assert runs(tmp_path / "runs") == (2 if restarts and retries else 1)
    assert runs(tmp_path / "behind") == (5 if restarts and retries else 0)
    after(actor, restarts)


@OPTIONS
def test_after_it_ran_before_the_reply_left(
    moray_session: ModuleType, tmp_path: Path, restarts: int, retries: int
) -> None:
    actor, _process = start(restarts, retries)
    ref = actor.bomb.remote(str(tmp_path / "runs"))
    check(ref, restarts, retries, "disarmed")
    assert runs(tmp_path / "runs") == (2 if restarts and retries else 1)
    after(actor, restarts)


@OPTIONS
def test_while_the_reply_is_in_the_reference_protocol(
    moray_session: ModuleType, tmp_path: Path, restarts: int, retries: int
) -> None:
    actor, process = start(restarts, retries)
    third = Third.remote()
    owner = moray.get(third.pid.remote(), timeout=30)
    moray.get(actor.__ray_call__.remote(_fetch, third), timeout=30)
    os.kill(owner, signal.SIGSTOP)
    try:
        ref = actor.__ray_call__.remote(_give_kept, str(tmp_path / "runs"))
        wait_until(lambda: runs(tmp_path / "runs") == 1)
        ready, _rest = moray.wait([ref], timeout=0.3)
        assert not ready
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: not is_alive(process))
    finally:
        os.kill(owner, signal.SIGCONT)
    check(ref, restarts, retries, ["nothing kept"])
    after(actor, restarts)


def _fetch(self: Any, third: Any) -> None:
    self.kept = moray.get(third.make.remote())


def _give_kept(self: Any, path: str) -> list[Any]:
    note_run(path)
    return getattr(self, "kept", ["nothing kept"])


def note_run(path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")


@pytest.mark.parametrize(
    ("restarts", "retries"),
    [
        pytest.param(0, 0, marks=pytest.mark.long),
        pytest.param(-1, 0, marks=pytest.mark.long),
        pytest.param(-1, -1, marks=pytest.mark.long),
    ],
)
def test_at_any_moment(moray_session: ModuleType, tmp_path: Path, restarts: int, retries: int) -> None:
    """A sweep: kills at moments that are closer together than the steps of a call."""
    for step in range(25):
        actor, process = start(restarts, retries)
        paths = [tmp_path / f"{step} {number}" for number in range(20)]
        spin = time.perf_counter() + step * 0.0002
        killer = threading.Thread(target=_kill_at, args=(process, spin))
        killer.start()
        refs = [actor.note.remote(str(path), number) for number, path in enumerate(paths)]
        for number, (ref, path) in enumerate(zip(refs, paths, strict=True)):
            try:
                assert moray.get(ref, timeout=40) == number
                assert runs(path) >= 1
            except ActorUnavailableError:
                assert restarts
                assert not retries
                assert runs(path) <= 1
            except ActorDiedError:
                assert not restarts
                assert runs(path) <= 1
            assert runs(path) <= 2
        killer.join()
        moray.kill(actor)


def _kill_at(process: int, moment: float) -> None:
    while time.perf_counter() < moment:
        pass
    os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("retries", [0, 1])
def test_in_the_middle_of_a_generator(moray_session: ModuleType, tmp_path: Path, retries: int) -> None:
    @moray.remote(num_cpus=0, max_restarts=-1)
    class Source:
        def items(self, path: str) -> Iterator[int]:
            note_run(path)
            for number in range(10):
                if number == 5 and len(Path(path).read_text().split()) == 1:
                    time.sleep(0.2)
                    os.kill(os.getpid(), signal.SIGKILL)
                yield number

    source = Source.remote()
    items = source.items.options(max_task_retries=retries).remote(str(tmp_path / "runs"))
    got = []
    failed = False
    for ref in items:
        try:
            got.append(moray.get(ref, timeout=40))
        except ActorUnavailableError:
            failed = True
    assert failed == (not retries)
    assert got == list(range(10 if retries else 5))


def test_a_full_window_of_calls(moray_session: ModuleType) -> None:
    """More than are sent at once: all of them fail, and so does what is called afterwards."""
    actor, process = start(0, 0)
    os.kill(process, signal.SIGSTOP)
    refs = [actor.pid.remote() for _ in range(3000)]
    moray.wait(refs[:1], timeout=0.3)
    os.kill(process, signal.SIGKILL)
    for ref in refs:
        with pytest.raises(ActorDiedError):
            moray.get(ref, timeout=40)
    for ref in [actor.pid.remote(), actor.note.remote("/dev/null", moray.put(1))]:
        with pytest.raises(ActorDiedError):
            moray.get(ref, timeout=10)


def test_a_caller_is_killed_while_it_calls(moray_session: ModuleType, tmp_path: Path) -> None:
    """Others' calls go on in order, and each of the dead caller's runs at most once."""
    actor, _process = start(0, 0)

    @moray.remote(num_cpus=0, max_retries=0)
    def call(handle: Any, me: int) -> None:
        (tmp_path / f"caller {me}").write_text(str(os.getpid()))
        number = 0
        while True:
            moray.get([handle.note.remote(str(tmp_path / f"run {me} {number} {i}")) for i in range(20)])
            number += 1

    callers = [call.remote(actor, me) for me in range(3)]
    for me in range(3):
        path = tmp_path / f"caller {me}"
        wait_until(lambda path=path: path.exists() and path.read_text() != "")  # type: ignore[misc]
        wait_until((tmp_path / f"run {me} 0 0").exists)
        os.kill(int(path.read_text()), signal.SIGKILL)
    for ref in callers:
        with pytest.raises(moray.exceptions.WorkerCrashedError):
            moray.get(ref, timeout=30)
    assert moray.get([actor.note.remote(str(tmp_path / "mine"), i) for i in range(100)], timeout=30) == list(range(100))
    assert all(runs(path) == 1 for path in tmp_path.glob("run *"))
