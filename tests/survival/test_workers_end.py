"""Workers that end in every way while ten thousand tasks run: no task is lost, none is answered twice."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.exceptions import WorkerCrashedError

pytestmark = [pytest.mark.usefixtures("moray_session"), pytest.mark.slow]

TASKS = 10_000

ENDS: dict[str, Callable[[], Any]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGSEGV": lambda: ctypes.string_at(0),
    "SIGABRT": os.abort,
    "os._exit": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit(3),
    "sys.exit in a thread, then SIGKILL": lambda: _exit_in_thread(),
}
#: In ordinary runs; other signals end a worker as SIGKILL does.
FEW = ("SIGKILL", "os._exit", "sys.exit")


def _exit_in_thread() -> None:
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()
    os.kill(os.getpid(), signal.SIGKILL)


@moray.remote(max_retries=-1)
def square(x: int) -> int:
    return x * x


@moray.remote(max_retries=0)
def end(how: str) -> None:
    ENDS[how]()


@moray.remote
def pid() -> int:
    return os.getpid()


@pytest.mark.parametrize("how", [pytest.param(how, marks=[] if how in FEW else [pytest.mark.long]) for how in ENDS])
def test_workers_that_end_themselves(how: str) -> None:
    ends, squares = [], []
    for i in range(TASKS):
        squares.append(square.remote(i))
        if i % 500 == 250:
            ends.append(end.remote(how))
    assert moray.get(squares, timeout=90) == [i * i for i in range(TASKS)]
    for ref in ends:
        with pytest.raises(moray.exceptions.RayError) as info:
            moray.get(ref, timeout=30)
        if how != "sys.exit":
            assert isinstance(info.value, WorkerCrashedError)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda n: n.name)
def test_workers_killed_from_outside(number: signal.Signals) -> None:
    chance, over = random.Random(number), threading.Event()
    victims = set(moray.get([pid.remote() for _ in range(20)]))

    def hunt() -> None:
        while not over.wait(0.2):
            for victim in victims:
                if os.path.exists(f"/proc/{victim}") and chance.random() < 0.5:
                    os.kill(victim, number)
            victims.clear()
            victims.update(moray.get([pid.options(max_retries=-1).remote() for _ in range(4)], timeout=60))

    hunter = threading.Thread(target=hunt)
    hunter.start()
    try:
        for _ in range(5):
            refs = [square.remote(i) for i in range(TASKS // 5)]
            assert moray.get(refs, timeout=60) == [i * i for i in range(TASKS // 5)]
    finally:
        over.set()
        hunter.join()


def test_tasks_run_once_unless_their_worker_died(tmp_path: Path) -> None:
    """Retries are for lost starts only: a task that was merely queued behind the victim runs once."""

    @moray.remote(max_retries=-1)
    def mark(i: int) -> int:
        with (tmp_path / "log").open("a") as log:
            log.write(f"{i}\n")
        return i

    refs = []
    for i in range(1000):
        refs.append(mark.remote(i))
        if i % 100 == 50:
            end.remote("SIGKILL")
    assert moray.get(refs, timeout=60) == list(range(1000))
    runs = (tmp_path / "log").read_text().split()
    assert len(set(runs)) == 1000
    assert len(runs) <= 1000 + 10 * 2


def test_large_results_while_workers_end() -> None:
    """STORE-SEAL: what a dead worker had not sealed is not taken for a value."""

    @moray.remote(max_retries=-1)
    def large(i: int) -> bytes:
        return bytes([i % 256]) * 500_000

    refs = []
    for i in range(200):
        refs.append(large.remote(i))
        if i % 20 == 10:
            end.remote("SIGKILL")
    for i, ref in enumerate(refs):
        assert moray.get(ref, timeout=60) == bytes([i % 256]) * 500_000


def test_nested_tasks_while_workers_end() -> None:
    @moray.remote(max_retries=-1)
    def outer(i: int) -> int:
        return int(sum(moray.get([square.remote(i), square.remote(i + 1)])))

    refs = []
    for i in range(100):
        refs.append(outer.remote(i))
        if i % 10 == 5:
            end.remote("SIGKILL")
    assert moray.get(refs, timeout=90) == [i * i + (i + 1) ** 2 for i in range(100)]


def test_workers_that_always_die_do_not_stop_others() -> None:
    doomed = [end.options(max_retries=3).remote("os._exit") for _ in range(10)]
    assert moray.get([square.remote(i) for i in range(1000)], timeout=60) == [i * i for i in range(1000)]
    for ref in doomed:
        with pytest.raises(WorkerCrashedError):
            moray.get(ref, timeout=60)
