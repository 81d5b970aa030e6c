"""A worker that ends under its task: the caller learns how, and what the worker said last."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import time
from functools import partial
from typing import Any

import pytest

import moray
from moray.exceptions import WorkerCrashedError
from tests.support.procs import is_alive, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote(max_retries=0)
def end_by_signal(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(30)


@moray.remote(max_retries=0)
def end_by_exit_code(code: int, last_words: str = "") -> None:
    if last_words:
        print(last_words, file=sys.stderr, flush=True)
    os._exit(code)


@moray.remote
def pid() -> int:
    return os.getpid()


def has_ended(process: int) -> bool:
    return not is_alive(process)


def crash(ref: Any) -> WorkerCrashedError:
    with pytest.raises(WorkerCrashedError) as info:
        moray.get(ref, timeout=30)
    return info.value


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT], ids=lambda n: n.name)
def test_signal_is_named(number: signal.Signals) -> None:
    assert number.name in str(crash(end_by_signal.remote(number)))


def test_segmentation_fault_is_named() -> None:
    @moray.remote(max_retries=0)
    def fault() -> None:
        ctypes.string_at(0)

    assert "SIGSEGV" in str(crash(fault.remote()))


@pytest.mark.parametrize("code", [0, 1, 77])
def test_exit_code_is_named(code: int) -> None:
    assert str(code) in str(crash(end_by_exit_code.remote(code)))


def test_last_lines_of_stderr_are_shown() -> None:
    assert "the disk is on fire" in str(crash(end_by_exit_code.remote(3, "the disk is on fire")))


def test_message_names_the_task() -> None:
    assert "end_by_exit_code" in str(crash(end_by_exit_code.remote(3)))


def test_stack_of_a_segmentation_fault_is_shown() -> None:
    """faulthandler is on in workers; what it writes is part of the last lines."""

    @moray.remote(max_retries=0)
    def fault_in_here() -> None:
        ctypes.string_at(0)

    assert "fault_in_here" in str(crash(fault_in_here.remote()))


def test_sys_exit_ends_the_task_with_an_error() -> None:
    @moray.remote(max_retries=0)
    def leave() -> None:
        sys.exit(4)

    with pytest.raises(moray.exceptions.RayError):
        moray.get(leave.remote(), timeout=30)
    assert moray.get(pid.remote(), timeout=30)


def test_error_pickles() -> None:
    error = crash(end_by_exit_code.remote(9))
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, WorkerCrashedError)
    assert str(copy) == str(error)


def test_crash_of_a_dependency() -> None:
    @moray.remote
    def use(value: Any) -> str:
        return "ran"

    crash(use.remote(end_by_exit_code.remote(1)))


def test_crash_reaches_every_return() -> None:
    for ref in end_by_exit_code.options(num_returns=3).remote(1):
        crash(ref)


def test_other_tasks_go_on() -> None:
    refs = [end_by_exit_code.remote(1) if i % 10 == 0 else pid.remote() for i in range(100)]
    for i, ref in enumerate(refs):
        if i % 10 == 0:
            crash(ref)
        else:
            assert moray.get(ref, timeout=30)


def test_killed_from_outside_while_idle() -> None:
    """Nobody is hurt by the end of a worker that has nothing to do."""
    for _ in range(5):
        victim = moray.get(pid.remote(), timeout=30)
        os.kill(victim, signal.SIGKILL)
        wait_until(partial(has_ended, victim))
        assert moray.get(pid.remote(), timeout=30) != victim


def test_object_put_by_a_worker_that_died_is_lost() -> None:
    """Its owner is gone: reading it is an error that says so, not a wait without end."""

    @moray.remote
    def put_and_tell() -> tuple[int, list[Any]]:
        return os.getpid(), [moray.put("small"), moray.put(b"x" * 1_000_000)]

    owner, refs = moray.get(put_and_tell.remote())
    os.kill(owner, signal.SIGKILL)
    wait_until(lambda: not is_alive(owner))
    for ref in refs:
        with pytest.raises(moray.exceptions.ObjectLostError):
            moray.get(ref, timeout=30)


def test_result_of_a_worker_that_died_later_is_still_there() -> None:
    @moray.remote
    def make() -> tuple[int, bytes]:
        return os.getpid(), b"x" * 1_000_000

    ref = make.remote()
    worker, _ = moray.get(ref)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_alive(worker))
    assert len(moray.get(ref, timeout=30)[1]) == 1_000_000


def test_children_of_a_dead_worker_are_ended() -> None:
    """Processes that a task started do not outlive its worker, not even those in a session of their own."""

    @moray.remote
    def start(new_session: bool) -> tuple[int, int]:
        import subprocess

        child = subprocess.Popen(["sleep", "1000"], start_new_session=new_session)
        return os.getpid(), child.pid

    for new_session in (False, True):
        worker, child = moray.get(start.remote(new_session))
        assert is_alive(child)
        os.kill(worker, signal.SIGKILL)
        wait_until(partial(has_ended, child), what="the end of the child")
