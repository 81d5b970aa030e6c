"""However a driver ends, nothing of its session is left two seconds later (LIVENESS)."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.procs import (
    Driver,
    is_alive,
    poll_until,
    session_leftovers,
    session_processes,
    spawn_driver,
    wait_until,
)

#: What the issue grants a session to go.
END_S = 2.0

#: Starts a session with everything that could stay: busy workers, children of tasks, a full store, open views.
BUSY = """
# A shell in the background, or nohup, passes on that these are ignored.
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
import os, subprocess, sys, threading, time
print("started", flush=True)
import moray
context = moray.init(num_cpus=2, object_store_memory=100_000_000)
print("session", moray.get_runtime_context().get_session_name(), context.address_info["session_dir"], flush=True)

@moray.remote
def child(new_session):
    return subprocess.Popen(["sleep", "1000"], start_new_session=new_session).pid

@moray.remote
def work(data):
    return data * 2

@moray.remote(num_cpus=0)
def forever():
    while True:
        time.sleep(1)

children = moray.get([child.remote(False), child.remote(True)])
endless = forever.remote()
print("busy", *children, flush=True)
held = []
while True:
    held = [*held[-20:], moray.put(bytes(3_000_000))]
    moray.get([work.remote(b"x" * 50_000) for _ in range(50)])
"""


def session_of(driver: Driver) -> tuple[str, Path]:
    name, directory = driver.wait_line("session").split()
    return name, Path(directory)


def assert_nothing_left(driver: Driver, session: tuple[str, Path] | None) -> None:
    """By the driver's own mark as well as by the session's, in case it died before it could say its name."""

    def left() -> list[str]:
        lines = [f"process {pid}" for pid in driver.descendants()]
        return lines + (session_leftovers(*session) if session else [])

    poll_until(lambda: not left(), END_S)
    assert left() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [pytest.param(moment, marks=[] if moment % 4 == 0 else [pytest.mark.long]) for moment in range(20)]
)
def test_kill_at_a_random_moment(moment: int) -> None:
    """Twenty moments spread over start, work and steady state."""
    delay_s = (moment + random.Random(moment).random()) * 0.075
    with spawn_driver(BUSY) as driver:
        driver.wait_line("started")
        time.sleep(delay_s)
        driver.send(signal.SIGKILL)
        driver.wait()
        # It may have been killed in the middle of a line.
        words = [line.split() for line in driver.lines if line.startswith("session")]
        said = [each[1:] for each in words if len(each) == 3]
        assert_nothing_left(driver, (said[0][0], Path(said[0][1])) if said else None)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGHUP])
def test_signal(number: signal.Signals) -> None:
    with spawn_driver(BUSY) as driver:
        session = session_of(driver)
        children = [int(pid) for pid in driver.wait_line("busy").split()]
        # In the middle of an exec a process has no environment.
        until(lambda: set(children) <= set(session_processes(session[0])), "children of tasks carry the session's name")
        driver.send(number)
        driver.wait()
        assert_nothing_left(driver, session)
        assert not any(map(is_alive, children))


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "moray.shutdown()",
        "sys.exit(3)",
        "os._exit(0)",
        "raise RuntimeError('on purpose')",
        "threading.Thread(target=lambda: time.sleep(0.2)).start()",
        "moray.shutdown(); moray.init(num_cpus=1)",
        "os.kill(os.getpid(), 9)",
    ],
)
def test_end_of_the_program(end: str) -> None:
    program = BUSY.partition("held = []")[0] + end + "\n"
    with spawn_driver(program) as driver:
        session = session_of(driver)
        driver.wait()
        assert_nothing_left(driver, session)
        if end == "pass":
            assert "Traceback" not in driver.output()
            assert "Exception ignored" not in driver.output()


def test_forked_child_does_not_keep_the_session(tmp_path: Path) -> None:
    """LIVENESS: death is what a pidfd says; the child still has every socket of the driver."""
    program = BUSY.replace(
        "held = []", "pid = os.fork()\nif pid == 0:\n    time.sleep(1000)\nprint('forked', pid)\nheld = []"
    )
    with spawn_driver(program) as driver:
        session = session_of(driver)
        child = int(driver.wait_line("forked"))
        driver.send(signal.SIGKILL)
        driver.wait()
        poll_until(lambda: not session_processes(session[0]), END_S)
        assert session_processes(session[0]) == []
        assert not session[1].exists()
        assert is_alive(child), "the user's own child is not ours to end"


def test_stopped_driver_keeps_its_session() -> None:
    """A driver that is silent is not dead."""
    with spawn_driver(BUSY) as driver:
        session = session_of(driver)
        driver.wait_line("busy")
        driver.send(signal.SIGSTOP)
        time.sleep(END_S)
        assert session_processes(session[0])
        driver.send(signal.SIGCONT)
        driver.send(signal.SIGKILL)
        driver.wait()
        assert_nothing_left(driver, session)


def test_killed_node_ends_the_session() -> None:
    """The workers go with their node; the driver hears of it and goes on."""
    with spawn_driver(
        """
        import os, time
        import moray
        context = moray.init(num_cpus=2)
        print("session", moray.get_runtime_context().get_session_name(), context.address_info["session_dir"])

        @moray.remote
        def family():
            return os.getpid(), os.getppid()

        worker, template = moray.get(family.remote())
        line = [template]
        while line[-1] not in (1, os.getpid()):
            with open(f"/proc/{line[-1]}/stat") as stat:
                line.append(int(stat.read().rpartition(")")[2].split()[1]))
        node = line[-2]
        ref = moray.remote(lambda: time.sleep(1000)).remote()
        moray.get(family.remote())
        os.kill(node, 9)
        try:
            moray.get(ref, timeout=20)
        except moray.exceptions.GetTimeoutError:
            print("outcome silence")
        except Exception as error:
            print("outcome", type(error).__name__, error)
        moray.shutdown()
        print("shut down", moray.is_initialized())
        moray.init(num_cpus=1)
        print("again", moray.get(moray.remote(lambda: 5).remote()))
        """
    ) as driver:
        session = session_of(driver)
        outcome = driver.wait_line("outcome", timeout_s=30)
        assert outcome != "silence"
        assert driver.wait_line("shut down") == "False"
        assert driver.wait_line("again") == "5"
        driver.wait()
        wait_until(lambda: not session_leftovers(*session), END_S, "the end of the first session")
