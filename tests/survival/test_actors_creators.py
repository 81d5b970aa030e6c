"""Who made an actor, or holds its handle, is killed: the actor goes, and its callers are told why (ACTORS-6)."""

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
from moray.exceptions import ActorDiedError, ActorError
from tests.support.procs import is_alive, session_leftovers, spawn_driver, wait_until

pytestmark = pytest.mark.slow


@moray.remote(num_cpus=0)
class Child:
    def __init__(self, path: str = "", wait_for: str = "", _argument: Any = None) -> None:
        if path:
            Path(path).write_text(str(os.getpid()))
        if wait_for:
            wait_until(Path(wait_for).exists, 60)

    def pid(self) -> int:
        return os.getpid()

    def sleep(self, path: str) -> None:
        Path(path).touch()
        time.sleep(60)


@moray.remote(num_cpus=0)
class Parent:
    """Makes children."""

    def pid(self) -> int:
        return os.getpid()

    def make(self, *arguments: Any, **options: Any) -> list[Any]:
        self.child = Child.options(**options).remote(*arguments)
        return [self.child]

    def make_waiting(self, go: str) -> list[Any]:
        """Its constructor waits for an argument."""

        @moray.remote(num_cpus=0)
        def argument() -> None:
            wait_until(Path(go).exists, 60)

        self.child = Child.remote("", "", argument.remote())
        return [self.child]

    def keep(self, held: list[Any]) -> None:
        self.held = held


def pid_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text() != "", 30, f"{path.name}")
    return int(path.read_text())


def gone(process: int) -> None:
    wait_until(lambda: not is_alive(process), 20, f"the end of process {process}")


def died(ref: Any, *words: str) -> None:
    with pytest.raises(ActorDiedError) as caught:
        moray.get(ref, timeout=30)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def parent() -> tuple[Any, int]:
    actor = Parent.remote()
    return actor, moray.get(actor.pid.remote(), timeout=30)


def test_the_creator_dies_before_the_actor_is_placed(moray_session: ModuleType, tmp_path: Path) -> None:
    maker, process = parent()
    (child,) = moray.get(maker.make_waiting.remote(str(tmp_path / "go")), timeout=30)
    ref = child.pid.remote()
    moray.wait([ref], timeout=0.2)
    os.kill(process, signal.SIGKILL)
    died(ref, "creator", str(process))
    died(child.pid.remote(), "creator")


def test_the_creator_dies_while_the_constructor_runs(moray_session: ModuleType, tmp_path: Path) -> None:
    maker, process = parent()
    (child,) = moray.get(maker.make.remote(str(tmp_path / "pid"), str(tmp_path / "go")), timeout=30)
    ref = child.pid.remote()
    actor = pid_in(tmp_path / "pid")
    os.kill(process, signal.SIGKILL)
    died(ref, "creator", str(process))
    gone(actor)


@pytest.mark.parametrize("restarts", [0, -1])
def test_the_creator_dies_while_a_call_runs(moray_session: ModuleType, tmp_path: Path, restarts: int) -> None:
    maker, process = parent()
    (child,) = moray.get(maker.make.remote(max_restarts=restarts, max_task_retries=restarts), timeout=30)
    actor = moray.get(child.pid.remote(), timeout=30)
    running, behind = child.sleep.remote(str(tmp_path / "begun")), child.pid.remote()
    wait_until((tmp_path / "begun").exists)
    os.kill(process, signal.SIGKILL)
    died(running, "creator", str(process))
    died(behind, "creator")
    gone(actor)
    died(child.pid.remote(), "creator")


def test_the_creator_dies_while_its_actor_restarts(moray_session: ModuleType, tmp_path: Path) -> None:
    maker, process = parent()
    go = tmp_path / "go"
    go.touch()
    (child,) = moray.get(maker.make.remote(str(tmp_path / "pid"), str(go), max_restarts=-1), timeout=30)
    first = moray.get(child.pid.remote(), timeout=30)
    go.unlink()
    (tmp_path / "pid").unlink()
    os.kill(first, signal.SIGKILL)
    second = pid_in(tmp_path / "pid")
    ref = child.pid.remote()
    os.kill(process, signal.SIGKILL)
    died(ref, "creator")
    gone(second)


def test_a_task_that_made_it_is_killed_in_force(moray_session: ModuleType, tmp_path: Path) -> None:
    @moray.remote(num_cpus=0, max_retries=0)
    def make() -> None:
        child = Child.options(name="found").remote(str(tmp_path / "pid"))
        moray.get(child.pid.remote())
        time.sleep(60)

    ref = make.remote()
    actor = pid_in(tmp_path / "pid")
    child = moray.get_actor("found")
    moray.cancel(ref, force=True)
    gone(actor)
    died(child.pid.remote(), "creator")
    with pytest.raises(ValueError, match="found"):
        moray.get_actor("found")


def test_the_holder_of_the_last_handle_dies(moray_session: ModuleType) -> None:
    """A borrower's death is the end of its handles: the actor is freed."""
    child = Child.remote()
    actor = moray.get(child.pid.remote(), timeout=30)
    holder, process = parent()
    moray.get(holder.keep.remote([child]), timeout=30)
    del child
    moray.wait([holder.pid.remote()], timeout=0.3)
    assert is_alive(actor)
    os.kill(process, signal.SIGKILL)
    gone(actor)


def test_actors_that_hold_each_other_end_with_the_session(tmp_path: Path) -> None:
    """Counting frees no cycle: that is documented, and nothing is left of it."""
    with moray.init(num_cpus=2):
        one, two, self_loving = Parent.remote(), Parent.remote(), Parent.remote()
        moray.get([one.keep.remote([two]), two.keep.remote([one]), self_loving.keep.remote([self_loving])], timeout=30)
        processes = moray.get([each.pid.remote() for each in (one, two, self_loving)], timeout=30)
        del one, two, self_loving
        assert moray.get(moray.remote(lambda: 1).remote(), timeout=30) == 1
        assert all(map(is_alive, processes))
    for process in processes:
        gone(process)


def test_a_caller_whose_actor_has_gone_may_go_on(moray_session: ModuleType) -> None:
    maker, process = parent()
    children = [moray.get(maker.make.remote(), timeout=30)[0] for _ in range(3)]
    actors = moray.get([child.pid.remote() for child in children], timeout=30)
    os.kill(process, signal.SIGKILL)
    for actor in actors:
        gone(actor)
    for child in children:
        with pytest.raises(ActorError):
            moray.get(child.pid.remote(), timeout=30)
    again, _process = parent()
    assert moray.get(moray.get(again.make.remote(), timeout=30)[0].pid.remote(), timeout=30) > 0


DRIVER = """
import subprocess, sys, textwrap, time, moray

context = moray.init(num_cpus=2, namespace="shared")
print("session", moray.get_runtime_context().get_session_name(), context.address_info["session_dir"])
child = textwrap.dedent('''
    import os, sys, time, moray
    moray.init(address=sys.argv[1], namespace="shared")

    @moray.remote(num_cpus=0)
    class Counter:
        def __init__(self):
            self.value = 0
        def add(self):
            self.value += 1
            return self.value
        def sleep(self):
            time.sleep(60)
        def pid(self):
            return os.getpid()

    plain = Counter.options(name="plain").remote()
    stays = Counter.options(name="stays", lifetime="detached", max_restarts=1).remote()
    moray.get(stays.add.remote())
    pids = os.getpid(), moray.get(plain.pid.remote()), moray.get(stays.pid.remote())
    plain.sleep.remote()  # Before anybody else knows of it: a call of theirs waits behind this one.
    print("pids", *pids, flush=True)
    time.sleep(60)
''')
address = context.address_info["address"]
second = subprocess.Popen([sys.executable, "-c", child, address], stdout=subprocess.PIPE, text=True)
_, driver, plain, stays = second.stdout.readline().split()
print("pids", driver, plain, stays)
mine = moray.get_actor("plain")
running = mine.add.remote()
print("ready")
"""


def test_a_second_driver_is_killed() -> None:
    """Its actors end, with a clear error for callers of other jobs; a detached one stays, and is restarted."""
    with spawn_driver(
        DRIVER
        + """
import os, signal
os.kill(int(driver), signal.SIGKILL)
second.wait()
try:
    moray.get(running, timeout=30)
except moray.exceptions.ActorDiedError as error:
    print("error", str(error).replace("\\n", " "))
stays_handle = moray.get_actor("stays")
print("value", moray.get(stays_handle.add.remote(), timeout=30))
os.kill(int(stays), signal.SIGKILL)
for _ in range(1000):
    try:
        print("restarted", moray.get(stays_handle.add.remote(), timeout=30))
        break
    except moray.exceptions.ActorUnavailableError:
        time.sleep(0.02)
moray.shutdown()
second.stdout.close()
print("over")
"""
    ) as driver:
        name, directory = driver.wait_line("session").split()
        _second, plain, stays = (int(each) for each in driver.wait_line("pids").split())
        error = driver.wait_line("error", 40)
        assert "creator" in error or "job" in error
        assert driver.wait_line("value", 40) == "2"
        assert driver.wait_line("restarted", 40) == "1"
        driver.wait_line("over", 40)
        gone(plain)
        gone(stays)
        wait_until(lambda: not session_leftovers(name, directory), 10, "the end of the session")


def test_the_first_driver_is_killed_and_nothing_stays() -> None:
    """A session ends with the driver that started it, detached actors with it."""
    with spawn_driver(DRIVER + "time.sleep(60)") as driver:
        name, directory = driver.wait_line("session").split()
        _second, plain, stays = (int(each) for each in driver.wait_line("pids").split())
        driver.wait_line("ready")
        driver.send(signal.SIGKILL)
        gone(plain)
        gone(stays)
        wait_until(lambda: not Path(directory).exists(), 10, "the end of the session")
        assert name
