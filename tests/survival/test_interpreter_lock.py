"""Code that holds the interpreter lock in C: its process cannot answer, all others go on (LEASE)."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path

import pytest

import moray
from tests.support.procs import run_driver, wait_until

#: How long the lock is held, in ordinary runs and in long ones: others go on for as long as they like.
HELD_S = [pytest.param(6), pytest.param(10, marks=pytest.mark.long)]

#: The first program holds its lock for two seconds; the second works meanwhile.
TWO_DRIVERS = """
import subprocess, sys, time
program = '''
import ctypes, sys
import moray
moray.init(num_cpus=1)
f = moray.remote(lambda x: x)
moray.get(f.remote(0))
if sys.argv[1] == "hold":
    print("holding", flush=True)
    ctypes.PyDLL(None).sleep(2)
else:
    assert moray.get([f.remote(i) for i in range(200)], timeout=20) == list(range(200))
'''
holder = subprocess.Popen([sys.executable, "-c", program, "hold"], stdout=subprocess.PIPE, text=True)
holder.stdout.readline()
subprocess.run([sys.executable, "-c", program, "work"], check=True, timeout=20)
assert holder.wait(30) == 0
"""


@moray.remote
def hold_lock(seconds: int, started: str) -> int:
    """Sleeps without giving the lock up, as C code does that computes; no thread of the process runs."""
    Path(started).touch()
    ctypes.PyDLL(None).sleep(seconds)
    return os.getpid()


@moray.remote
def small(i: int) -> int:
    return i


@pytest.mark.slow
@pytest.mark.parametrize("held_s", HELD_S)
def test_others_go_on_while_a_task_holds_the_lock(moray_session: object, tmp_path: Path, held_s: int) -> None:
    started = time.monotonic()
    moray.get([small.remote(i) for i in range(100)])
    holding = hold_lock.remote(held_s, str(tmp_path / "started"))
    wait_until((tmp_path / "started").exists)
    for _ in range(5):
        assert moray.get([small.remote(i) for i in range(500)], timeout=held_s / 2) == list(range(500))
    data = moray.put(bytes(5_000_000))
    assert len(moray.get(data, timeout=held_s / 2)) == 5_000_000
    assert time.monotonic() - started < held_s, "the others were done while the lock was held"
    assert moray.wait([holding], timeout=0) == ([], [holding])
    assert moray.get(holding, timeout=3 * held_s)


@pytest.mark.slow
def test_tasks_behind_the_holder_move_to_other_workers(moray_session: object, tmp_path: Path) -> None:
    """LEASE: a recall needs the worker's answer, so nothing may have been queued behind an unknown run time."""
    holding = hold_lock.remote(3, str(tmp_path / "started"))
    refs = [small.remote(i) for i in range(1000)]
    assert moray.get(refs, timeout=2.5) == list(range(1000))
    moray.get(holding, timeout=30)


@pytest.mark.slow
def test_owner_that_holds_the_lock_delays_only_itself(moray_session: object, tmp_path: Path) -> None:
    """A borrower of its objects waits, everybody else does not, and nothing is declared dead.

    The others have a scheduling key of their own: a task that was sent to the owner just before would wait with it.
    """

    @moray.remote
    def owner(go: str) -> list[moray.ObjectRef[str]]:
        refs = [moray.put("owned")]
        threading.Timer(0.1, lambda: ctypes.PyDLL(None).sleep(3)).start()
        Path(go).touch()
        return refs

    [ref] = moray.get(owner.remote(str(tmp_path / "go")))
    time.sleep(0.2)
    other = small.options(num_cpus=0.5)
    assert moray.get([other.remote(i) for i in range(200)], timeout=2) == list(range(200))
    assert moray.get(ref, timeout=30) == "owned"


@pytest.mark.slow
def test_driver_that_holds_the_lock_finds_its_results() -> None:
    run_driver(
        """
        import ctypes, os, time
        import moray
        moray.init(num_cpus=2)

        @moray.remote
        def work(i):
            with open("log", "a") as log:
                log.write(f"{i}\\n")
            return i

        moray.get([work.remote(-1) for _ in range(20)])
        refs = [work.remote(i) for i in range(100)]
        ctypes.PyDLL(None).sleep(3)
        assert moray.get(refs, timeout=20) == list(range(100))
        assert len(open("log").readlines()) == 120
        """
    )


def test_second_driver_is_not_stopped_by_a_lock_in_the_first() -> None:
    """Two programs share nothing: one computing in C costs the other nothing."""
    run_driver(TWO_DRIVERS)
