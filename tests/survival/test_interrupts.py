"""Ctrl-C at any moment: no connection is lost, no lock stays held (INTERRUPT)."""

from __future__ import annotations

import signal

import pytest

from tests.support.procs import run_driver, session_leftovers, spawn_driver, wait_until

#: Interrupts `work` at random moments, and only `work`: the handler looks for its frame, because an interrupt between
#: two lines of the test's own loop would say nothing about the runtime.
STORM = """
import os, random, signal, threading, time
import moray

WANTED = {interrupts}
moray.init(num_cpus=2)
raised = 0

@moray.remote
def echo(value):
    return value

def work():
    small = [echo.remote(i) for i in range(20)]
    large = moray.put(b"x" * 200_000)
    assert moray.get(small) == list(range(20))
    moray.wait([echo.remote(large), *small], num_returns=5)
    assert len(moray.get(echo.remote(large))) == 200_000
    echo.remote([large, moray.put(1)])

def handler(number, frame):
    global raised
    while frame is not None:
        if frame.f_code is work.__code__:
            raised += 1
            raise KeyboardInterrupt
        frame = frame.f_back

def storm():
    chance = random.Random(5)
    while raised < WANTED:
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(chance.random() * 0.0008)

main = threading.main_thread().ident
signal.signal(signal.SIGINT, handler)
threading.Thread(target=storm, daemon=True).start()
finished = 0
while raised < WANTED:
    try:
        work()
        finished += 1
    except KeyboardInterrupt:
        pass
signal.signal(signal.SIGINT, signal.SIG_IGN)

@moray.remote(num_cpus=1)
def meet(directory, me):
    open(os.path.join(directory, str(me)), "w").close()
    while not os.path.exists(os.path.join(directory, str(1 - me))):
        time.sleep(0.001)
    return os.getpid()

import tempfile
with tempfile.TemporaryDirectory() as directory:
    assert len(set(moray.get([meet.remote(directory, me) for me in (0, 1)], timeout=30))) == 2
assert moray.get([echo.remote(i) for i in range(1000)], timeout=30) == list(range(1000))
assert moray.get(moray.put(b"y" * 1_000_000), timeout=30) == b"y" * 1_000_000
moray.shutdown()
print("interrupts", raised, "rounds finished", finished)
"""


@pytest.mark.long
def test_ten_thousand_random_interrupts_then_a_round_trip() -> None:
    finished = run_driver(STORM.format(interrupts=10_000), timeout_s=110)
    assert "interrupts 10000" in finished.stdout


def test_a_few_random_interrupts_then_a_round_trip() -> None:
    assert "interrupts 1000" in run_driver(STORM.format(interrupts=1_000)).stdout


@pytest.mark.parametrize(
    "waiting",
    [
        "moray.get(forever.remote())",
        "moray.wait([forever.remote()])",
        "asyncio.run(waits(forever.remote()))",
        "forever.remote().future().result()",
        "time.sleep(1000)",
    ],
)
def test_ctrl_c_ends_a_wait_and_then_the_program(waiting: str) -> None:
    """At once, with a KeyboardInterrupt that the program may catch; afterwards everything works."""
    with spawn_driver(
        f"""
        import asyncio, time
        import moray
        context = moray.init(num_cpus=2)
        print("session", moray.get_runtime_context().get_session_name(), context.address_info["session_dir"])

        @moray.remote(num_cpus=0)
        def forever():
            time.sleep(1000)

        async def waits(ref):
            await ref

        @moray.remote
        def one():
            return 1

        moray.get(one.remote())
        print("waiting")
        try:
            {waiting}
        except KeyboardInterrupt:
            print("interrupted")
        print("then", moray.get(one.remote(), timeout=20))
        """
    ) as driver:
        name, directory = driver.wait_line("session").split()
        driver.wait_line("waiting")
        wait_until(lambda: _sleeps(driver.pid), what="the driver's waiting")
        driver.send(signal.SIGINT)
        driver.wait_line("interrupted", timeout_s=2)
        assert driver.wait_line("then") == "1"
        assert driver.wait() == 0
        wait_until(lambda: not session_leftovers(name, directory), 2.0, "the end of the session")


def test_ctrl_c_does_not_reach_workers() -> None:
    """The terminal sends SIGINT to the whole foreground group; tasks go on."""
    with spawn_driver(
        """
        import os, signal, time
        import moray
        os.setpgid(0, 0)
        moray.init(num_cpus=2)

        @moray.remote
        def slow():
            time.sleep(0.5)
            return "unharmed"

        ref = slow.remote()
        moray.get(moray.remote(lambda: 1).remote())
        try:
            os.killpg(0, signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            print("outcome", moray.get(ref, timeout=20))
        """
    ) as driver:
        assert driver.wait_line("outcome") == "unharmed"


def _sleeps(pid: int) -> bool:
    """Whether the process's main thread waits in the kernel."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "S"
