"""Tasks and puts without end: no process of the session grows (REF-FREE)."""

from __future__ import annotations

import pytest

from tests.support.procs import anonymous_bytes, is_alive, session_processes, spawn_driver

MB = 1_000_000

#: Works in rounds of 1 000 tasks and 1 000 puts; stops to be measured when told to, and goes on when measured.
PROGRAM = """
import os, time
import moray
moray.init(num_cpus=2)
print("session", moray.get_runtime_context().get_session_name())

@moray.remote
def add(x, y):
    return x + y

@moray.remote
def length(data):
    return len(data)

def one_round():
    one = moray.put(1)
    assert sum(moray.get([add.remote(i, one) for i in range(900)])) == sum(range(1, 901))
    large = moray.put(bytes(150_000))
    assert moray.get([length.remote(large) for _ in range(100)]) == [150_000] * 100
    refs = [moray.put(i) for i in range(990)] + [moray.put(bytes(150_000)) for _ in range(10)]
    assert sum(len(v) if isinstance(v, bytes) else 1 for v in moray.get(refs)) == 990 + 1_500_000

for number in range({rounds}):
    one_round()
    if number == {warm_up}:
        moray.get([length.remote(moray.put([moray.put(i)])) for i in range(10)])
        print("warm")
        while not os.path.exists("measured"):
            time.sleep(0.01)
print("finished")
while True:
    time.sleep(1)
"""


def assert_flat(program: str, rounds: int, growth_bytes: int, timeout_s: float) -> None:
    """After a fifth of the rounds nothing grows any more."""
    with spawn_driver(program.format(rounds=rounds, warm_up=rounds // 5)) as driver:
        name = driver.wait_line("session")
        driver.wait_line("warm", timeout_s)
        pids = [driver.pid, *session_processes(name)]
        before = {pid: anonymous_bytes(pid) for pid in pids}
        (driver.directory / "measured").touch()
        driver.wait_line("finished", timeout_s)
        growth = {pid: anonymous_bytes(pid) - before[pid] for pid in pids if is_alive(pid)}
        assert driver.pid in growth
        assert len(growth) >= 3, "driver, node and a worker were there all the time"
        assert max(growth.values()) < growth_bytes, growth


@pytest.mark.long
def test_a_hundred_thousand_tasks_and_puts() -> None:
    assert_flat(PROGRAM, rounds=100, growth_bytes=6 * MB, timeout_s=100)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_million_tasks_and_puts() -> None:
    assert_flat(PROGRAM, rounds=1000, growth_bytes=10 * MB, timeout_s=1000)


@pytest.mark.long
def test_errors_crashes_and_timeouts_leave_nothing() -> None:
    """The paths that fail release what they took, too."""
    program = PROGRAM.replace("def one_round():", "def unused():").replace(
        "for number in range",
        """@moray.remote
def fail(data):
    raise ValueError(len(data))

@moray.remote
def late(path):
    while not os.path.exists(path):
        time.sleep(0.001)

def one_round():
    refs = [fail.remote(bytes(n)) for n in (10, 150_000) for _ in range(20)]
    for ref in refs:
        try:
            moray.get(ref)
        except ValueError:
            pass
    path = os.path.abspath("gate")
    ref = late.remote(path)
    for _ in range(50):
        moray.wait([ref], timeout=0)
        try:
            moray.get(ref, timeout=0)
        except moray.exceptions.GetTimeoutError:
            pass
    open(path, "w").close()
    moray.get(ref)
    os.remove(path)

for number in range""",
    )
    assert_flat(program, rounds=150, growth_bytes=6 * MB, timeout_s=100)
