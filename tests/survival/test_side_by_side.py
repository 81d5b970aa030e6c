"""Several sessions on one machine, and one program's sessions one after the other."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from tests.support.procs import run_driver, session_leftovers, session_processes, spawn_driver, wait_until

WORKING = """
import os, sys, time
import moray
context = moray.init(num_cpus=2)
print("session", moray.get_runtime_context().get_session_name(), context.address_info["session_dir"])

@moray.remote
def session():
    return os.environ["MORAY_SESSION"]

@moray.remote
def add(x, data):
    return x + len(data)

mine = moray.get_runtime_context().get_session_name()
rounds = 0
while not os.path.exists("stop"):
    large = moray.put(bytes(200_000))
    assert moray.get([add.remote(i, large) for i in range(20)], timeout=30) == [i + 200_000 for i in range(20)]
    assert set(moray.get([session.remote() for _ in range(5)], timeout=30)) == {mine}
    rounds += 1
    if rounds == 3:
        print("working")
print("rounds", rounds)
"""

DRIVER_IN_A_TASK = """
import subprocess, sys
import moray
moray.init(num_cpus=1)

PROGRAM = '''
import os
import moray
outer = os.environ["MORAY_SESSION"]
moray.init("local", num_cpus=1)
inner = moray.get(moray.remote(lambda: os.environ["MORAY_SESSION"]).remote())
print(inner != outer)
'''

@moray.remote
def run():
    return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30)

finished = moray.get(run.remote(), timeout=60)
print(finished.stdout, finished.stderr)
"""


def test_two_sessions_do_not_meet() -> None:
    with ExitStack() as stack:
        drivers = [stack.enter_context(spawn_driver(WORKING)) for _ in range(2)]
        sessions = [driver.wait_line("session").split() for driver in drivers]
        for driver in drivers:
            driver.wait_line("working")
        first, second = (set(session_processes(name)) for name, _ in sessions)
        assert first
        assert second
        assert not first & second
        for driver in drivers:
            (driver.directory / "stop").touch()
            assert int(driver.wait_line("rounds")) >= 3
            assert driver.wait() == 0


def test_death_of_one_session_does_not_touch_the_other() -> None:
    with spawn_driver(WORKING) as victim, spawn_driver(WORKING) as survivor:
        name, directory = victim.wait_line("session").split()
        for driver in (victim, survivor):
            driver.wait_line("working")
        victim.send(signal.SIGKILL)
        victim.wait()
        wait_until(lambda: not session_leftovers(name, directory), 2.0, "the end of the killed session")
        (survivor.directory / "stop").touch()
        assert int(survivor.wait_line("rounds")) >= 3
        assert survivor.wait() == 0


@pytest.mark.slow
def test_eight_sessions_start_at_once() -> None:
    with ExitStack() as stack:
        drivers = [stack.enter_context(spawn_driver(WORKING)) for _ in range(8)]
        names = [driver.wait_line("session", timeout_s=60).split()[0] for driver in drivers]
        assert len(set(names)) == 8
        for driver in drivers:
            driver.wait_line("working", timeout_s=60)
            (driver.directory / "stop").touch()
        assert [driver.wait(60) for driver in drivers] == [0] * 8


def test_session_inside_a_task_of_another() -> None:
    """A program that a task starts may be a driver of its own."""
    finished = run_driver(DRIVER_IN_A_TASK)
    assert finished.stdout.split()[0] == "True"


# --- init and shutdown, again and again -----------------------------------------------------------

CYCLES = """
import gc, os, sys, threading
import moray

def measure():
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        memory = sum(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))
    with open("/proc/self/maps") as file:
        maps = len(file.readlines())
    return len(os.listdir("/proc/self/fd")), threading.active_count(), maps, memory

def cycle(number):
    moray.init(num_cpus=2)
    if number % 5 == 0:
        f = moray.remote(lambda x: x)
        assert moray.get([f.remote(i) for i in range(10)]) == list(range(10))
        assert len(moray.get(moray.put(bytes(1_000_000)))) == 1_000_000
    moray.shutdown()

for number in range({warm_up}):
    cycle(number)
before = measure()
for number in range({cycles} - {warm_up}):
    cycle(number)
print(*before, *measure())
"""


@pytest.mark.long
def test_init_and_shutdown_a_hundred_times() -> None:
    """No descriptor, thread, mapping or memory is lost."""
    finished = run_driver(CYCLES.format(cycles=100, warm_up=20), timeout_s=110)
    _assert_steady(finished.stdout)


def test_init_and_shutdown_ten_times() -> None:
    _assert_steady(run_driver(CYCLES.format(cycles=10, warm_up=5)).stdout)


def _assert_steady(printed: str) -> None:
    files, threads, maps, memory, files_after, threads_after, maps_after, memory_after = map(int, printed.split()[-8:])
    assert files_after <= files
    assert threads_after <= threads
    assert maps_after <= maps + 10
    assert memory_after <= memory + 4_000
