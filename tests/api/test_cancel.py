"""Cancel: a request that ends what was not begun, interrupts what runs, and never hurts anybody else (CANCEL)."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return"

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.exceptions import GetTimeoutError, TaskCancelledError, WorkerCrashedError
from tests.support.procs import is_alive, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


def cancelled(ref: Any, timeout: float = 20) -> TaskCancelledError:
    """The error that `ref` must give."""
    with pytest.raises(TaskCancelledError) as caught:
        moray.get(ref, timeout=timeout)
    return caught.value


def begun(path: Path) -> None:
    wait_until(path.exists, 20, f"{path.name}: the begin of the task")


def pid_in(path: Path) -> int:
    """Who has written its pid there."""
    wait_until(lambda: path.exists() and path.read_text() != "", 20, f"{path.name}: the begin of the task")
    return int(path.read_text())


@moray.remote
def pid() -> int:
    return os.getpid()


@moray.remote
def echo(value: Any) -> Any:
    return value


# --- not begun ------------------------------------------------------------------------------------


def test_queued_tasks_never_run(tmp_path: Path) -> None:
    @moray.remote
    def hold() -> None:
        wait_until((tmp_path / "go").exists, 30)

    @moray.remote
    def note(number: int) -> int:
        (tmp_path / str(number)).touch()
        return number

    holders = [hold.remote() for _ in range(2)]
    refs = [note.remote(number) for number in range(20)]
    for ref in refs[::2]:
        moray.cancel(ref)
    for ref in refs[::2]:
        error = cancelled(ref, 5)  # At once, though nothing can run yet.
        assert "it had not begun" in str(error)
        assert error.task_id == ref.task_id().hex()
    (tmp_path / "go").touch()
    assert moray.get(refs[1::2], timeout=20) == list(range(1, 20, 2))
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name != "go") == list(range(1, 20, 2))
    moray.get(holders, timeout=20)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_task_that_waits_for_arguments(tmp_path: Path, at_once: bool) -> None:
    """At once: it has not reached the loop yet."""

    @moray.remote
    def argument() -> int:
        wait_until((tmp_path / "go").exists, 30)
        return 1

    @moray.remote
    def note(value: int) -> int:
        (tmp_path / "ran").touch()
        return value

    first = argument.remote()
    refs = []
    for _ in range(10):
        ref = note.remote(first)
        if not at_once:
            moray.wait([ref], timeout=0.02)
        moray.cancel(ref)
        refs.append(ref)
    for ref in refs:
        cancelled(ref, 5)
    (tmp_path / "go").touch()
    assert moray.get(first, timeout=20) == 1
    assert moray.get(echo.remote(2), timeout=20) == 2
    assert not (tmp_path / "ran").exists()


def test_a_task_with_ready_arguments_that_is_cancelled_at_once_is_cancelled_or_done() -> None:
    ready = moray.put(3)
    for _ in range(100):
        ref = echo.remote(ready)
        moray.cancel(ref)
        try:
            assert moray.get(ref, timeout=20) == 3
        except TaskCancelledError:
            pass
    assert moray.get(echo.remote(ready), timeout=20) == 3


def test_cancel_of_what_has_finished_does_nothing() -> None:
    ref = echo.remote("value")
    assert moray.get(ref, timeout=20) == "value"
    moray.cancel(ref)
    moray.cancel(ref, force=True)
    moray.cancel(moray.put(1))
    assert moray.get(ref, timeout=20) == "value"


def test_cancel_at_once_is_cancelled_or_done(tmp_path: Path) -> None:
    """The signal may come at any moment: before, in, and after each of them."""
    worker = moray.get(pid.remote(), timeout=20)
    for round_ in range(200):
        ref = echo.remote(round_)
        other = echo.remote(-round_)
        moray.cancel(ref)
        try:
            assert moray.get(ref, timeout=20) == round_
        except TaskCancelledError:
            pass
        assert moray.get(other, timeout=20) == -round_
    assert is_alive(worker)


# --- interrupted ----------------------------------------------------------------------------------


def _loops() -> None:
    while True:
        pass


def _sleeps() -> None:
    time.sleep(60)


def _reads_a_pipe() -> None:
    read, _write = os.pipe()
    os.read(read, 1)


def _waits_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _waits_for_an_event() -> None:
    threading.Event().wait()


def _gets() -> None:
    moray.get(moray.remote(num_cpus=0)(time.sleep).remote(60))


def _waits() -> None:
    moray.wait([moray.remote(num_cpus=0)(time.sleep).remote(60)])


def _awaits() -> None:
    asyncio.run(asyncio.sleep(60))


def _computes_in_c() -> None:
    while True:
        sum(range(10_000_000))


def _hashes() -> None:
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 1_500_000)
    time.sleep(60)


@pytest.mark.parametrize(
    "wastes_time",
    [
        _loops, _sleeps, _reads_a_pipe, _waits_for_a_lock, _waits_for_an_event, _gets, _waits, _awaits, _computes_in_c,
        _hashes,
    ],
)  # fmt: skip
def test_what_runs_is_interrupted_and_its_worker_goes_on(tmp_path: Path, wastes_time: Any) -> None:
    name = wastes_time.__name__

    @moray.remote(max_retries=3, retry_exceptions=True)
    def run() -> None:
        with (tmp_path / "pid").open("a") as file:
            file.write(str(os.getpid()))
        wastes_time()

    ref = run.options(name=name).remote()
    worker = pid_in(tmp_path / "pid")
    start = time.monotonic()
    moray.cancel(ref)
    error = cancelled(ref)
    assert time.monotonic() - start < 15
    assert "interrupted" in str(error)
    assert error.task_id == ref.task_id().hex()
    assert is_alive(worker)
    assert pid_in(tmp_path / "pid") == worker  # It was not tried again.
    assert set(moray.get([echo.remote(i) for i in range(20)], timeout=20)) == set(range(20))


def test_a_builtin_is_interrupted() -> None:
    sleep = moray.remote(num_cpus=0)(time.sleep)
    refs = [sleep.remote(60) for _ in range(2)]
    moray.wait(refs, timeout=0.5)
    for ref in refs:
        moray.cancel(ref)
    for ref in refs:
        cancelled(ref)


def test_finally_blocks_run(tmp_path: Path) -> None:
    @moray.remote
    def tidy() -> None:
        try:
            (tmp_path / "begun").touch()
            time.sleep(60)
        finally:
            (tmp_path / "tidied").touch()

    ref = tidy.remote()
    begun(tmp_path / "begun")
    moray.cancel(ref)
    cancelled(ref)
    assert (tmp_path / "tidied").exists()


def test_finally_blocks_take_their_time(tmp_path: Path) -> None:
    """The repeated signal leaves them alone, and what they wait for; it comes back when a block has swallowed it."""

    @moray.remote
    def tidy() -> None:
        try:
            try:
                (tmp_path / "begun").touch()
                time.sleep(60)
            finally:
                time.sleep(0.4)
                try:
                    os.environ["MORAY_MISSING"]
                except KeyError:
                    time.sleep(0.2)
                    assert moray.get(echo.options(num_cpus=0).remote(5)) == 5
                (tmp_path / "tidied").touch()
        except BaseException:
            pass
        time.sleep(60)

    ref = tidy.remote()
    begun(tmp_path / "begun")
    moray.cancel(ref)
    cancelled(ref)
    assert (tmp_path / "tidied").exists()


def test_ordinary_handlers_let_it_pass(tmp_path: Path) -> None:
    @moray.remote
    def stubborn() -> str:
        try:
            (tmp_path / "begun").touch()
            time.sleep(60)
        except Exception:
            return "caught"
        return "slept"

    ref = stubborn.remote()
    begun(tmp_path / "begun")
    moray.cancel(ref)
    cancelled(ref)


def test_code_that_swallows_it_and_returns_has_a_value(tmp_path: Path) -> None:
    @moray.remote
    def swallows() -> str:
        try:
            (tmp_path / "begun").touch()
            time.sleep(60)
        except BaseException as error:
            return type(error).__mro__[1].__name__
        return "slept"

    ref = swallows.remote()
    begun(tmp_path / "begun")
    moray.cancel(ref)
    assert moray.get(ref, timeout=20) == "KeyboardInterrupt"


def test_an_error_made_of_it_is_the_error(tmp_path: Path) -> None:
    @moray.remote
    def converts() -> None:
        try:
            (tmp_path / "begun").touch()
            time.sleep(60)
        except BaseException:
            raise LookupError("in its place") from None

    ref = converts.remote()
    begun(tmp_path / "begun")
    moray.cancel(ref)
    with pytest.raises(LookupError, match="in its place"):
        moray.get(ref, timeout=20)


def test_it_is_repeated_when_a_finalizer_swallows_it(tmp_path: Path) -> None:
    @moray.remote
    def finalizes() -> None:
        class Slow:
            def __del__(self) -> None:
                (tmp_path / "begun").touch()
                time.sleep(60)

        slow = Slow()
        del slow
        (tmp_path / "after").touch()
        time.sleep(60)

    ref = finalizes.remote()
    begun(tmp_path / "begun")
    moray.cancel(ref)
    cancelled(ref)
    assert (tmp_path / "after").exists()


def test_cancel_twice_and_then_the_next_task(tmp_path: Path) -> None:
    @moray.remote
    def sleep(number: int) -> None:
        (tmp_path / str(number)).write_text(str(os.getpid()))
        time.sleep(60)

    workers = set()
    for number in range(10):
        ref = sleep.remote(number)
        workers.add(pid_in(tmp_path / str(number)))
        moray.cancel(ref)
        moray.cancel(ref)
        cancelled(ref)
        moray.cancel(ref)
        # Nothing of it hits what the same worker does next.
        assert moray.get([echo.remote(i) for i in range(5)], timeout=20) == list(range(5))
    assert all(map(is_alive, workers))


def test_get_with_a_timeout_goes_on_waiting_after_it() -> None:
    ref = moray.remote(time.sleep).remote(60)
    with pytest.raises(GetTimeoutError):
        moray.get(ref, timeout=0.1)
    moray.cancel(ref)
    cancelled(ref)
    ready, _rest = moray.wait([ref], timeout=5)
    assert ready == [ref]


def test_a_waiting_get_is_woken() -> None:
    ref = moray.remote(time.sleep).remote(60)
    timer = threading.Timer(0.3, moray.cancel, [ref])
    timer.start()
    cancelled(ref)
    timer.join()


def test_a_task_with_several_returns() -> None:
    @moray.remote(num_returns=2)
    def two() -> tuple[int, int]:
        time.sleep(60)
        return 1, 2

    first, second = two.remote()
    moray.wait([first], timeout=0.3)
    moray.cancel(second)
    cancelled(first)
    cancelled(second)


def test_what_depends_on_it_gets_the_error() -> None:
    ref = moray.remote(time.sleep).remote(60)
    dependent = echo.remote(ref)
    moray.cancel(ref)
    with pytest.raises(TaskCancelledError):
        moray.get(dependent, timeout=20)


def test_a_task_that_is_retried_is_not_tried_again(tmp_path: Path) -> None:
    @moray.remote(max_retries=-1, retry_exceptions=True)
    def fails() -> None:
        (tmp_path / "begun").touch()
        time.sleep(0.05)
        raise OSError("again and again")

    ref = fails.remote()
    begun(tmp_path / "begun")
    moray.cancel(ref)
    with pytest.raises((TaskCancelledError, OSError)):
        moray.get(ref, timeout=20)


# --- force ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["python", "C with the interpreter's lock", "swallows"])
def test_force_ends_the_process(tmp_path: Path, how: str) -> None:
    @moray.remote(max_retries=3)
    def run() -> None:
        with (tmp_path / "pid").open("a") as file:
            file.write(str(os.getpid()))
        if how == "python":
            time.sleep(60)
        elif how == "swallows":
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
        else:
            ctypes.PyDLL(None).sleep(60)

    ref = run.remote()
    worker = pid_in(tmp_path / "pid")
    start = time.monotonic()
    moray.cancel(ref, force=True)
    error = cancelled(ref)
    assert not isinstance(error, WorkerCrashedError)
    wait_until(lambda: not is_alive(worker), 10, "the end of the worker")
    assert time.monotonic() - start < 4  # C code that never lets go is not given a grace.
    assert pid_in(tmp_path / "pid") == worker  # It was not tried again.
    assert moray.get(echo.remote(1), timeout=20) == 1


def test_force_of_what_has_not_begun_ends_nobody(tmp_path: Path) -> None:
    """It waits in a worker behind one that turned out long, which must not be hit."""

    @moray.remote(max_retries=0)
    def short(number: int) -> int:
        if number == 0:
            (tmp_path / "begun").write_text(str(os.getpid()))
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                pass
        return number

    with_one_cpu = short.options(num_cpus=2)
    moray.get([with_one_cpu.remote(i) for i in range(1, 100)], timeout=20)
    refs = [with_one_cpu.remote(number) for number in range(20)]
    pid_in(tmp_path / "begun")
    for ref in refs[1:10]:
        moray.cancel(ref, force=True)
    for ref in refs[1:10]:
        cancelled(ref)
    assert moray.get([refs[0], *refs[10:]], timeout=20) == [0, *range(10, 20)]


@pytest.mark.parametrize("what", [None, 5, "ref", echo, [1]], ids=repr)
def test_cancel_takes_references_only(what: Any) -> None:
    with pytest.raises(TypeError, match="ObjectRef"):
        moray.cancel(what)


# --- borrowers and children -----------------------------------------------------------------------


def test_a_borrower_cancels(tmp_path: Path) -> None:
    @moray.remote(num_cpus=0)
    def sleep() -> None:
        (tmp_path / "begun").touch()
        time.sleep(60)

    @moray.remote(num_cpus=0)
    def end(refs: list[Any]) -> None:
        moray.cancel(refs[0])

    ref = sleep.remote()
    begun(tmp_path / "begun")
    moray.get(end.remote([ref]), timeout=20)
    cancelled(ref)


@pytest.mark.parametrize("recursive", [True, False])
def test_children_end_with_it(tmp_path: Path, recursive: bool) -> None:
    @moray.remote(num_cpus=0)
    def grandchild() -> None:
        (tmp_path / "begun").touch()
        wait_until((tmp_path / "go").exists, 30)
        (tmp_path / "finished").touch()

    @moray.remote(num_cpus=0)
    def child(refs: list[Any]) -> None:
        moray.get(grandchild.remote())

    @moray.remote(num_cpus=0)
    def parent() -> None:
        ref = child.remote([])
        (tmp_path / "ref").touch()
        try:
            moray.get(ref)
        finally:
            (tmp_path / "parent ended").touch()

    ref = parent.remote()
    begun(tmp_path / "begun")
    moray.cancel(ref, recursive=recursive)
    cancelled(ref)
    assert (tmp_path / "parent ended").exists()
    if recursive:
        time.sleep(0.3)
        (tmp_path / "go").touch()
        time.sleep(0.3)
        assert not (tmp_path / "finished").exists()
    else:
        (tmp_path / "go").touch()
        wait_until((tmp_path / "finished").exists, 20, "the grandchild's end")


def test_children_that_it_submits_while_it_is_interrupted_end_too(tmp_path: Path) -> None:
    @moray.remote(num_cpus=0)
    def child(number: int) -> None:
        try:
            (tmp_path / f"begun {number}").touch()
            time.sleep(60)
        finally:
            (tmp_path / f"ended {number}").touch()

    @moray.remote(num_cpus=0)
    def parent() -> None:
        child.remote(0)
        try:
            time.sleep(60)
        finally:
            for number in range(1, 4):
                child.remote(number)

    ref = parent.remote()
    begun(tmp_path / "begun 0")
    moray.cancel(ref)
    cancelled(ref)

    def all_ended() -> bool:
        names = [path.name.split() for path in tmp_path.iterdir()]
        return {number for what, number in names if what == "begun"} == {n for what, n in names if what == "ended"}

    assert moray.get([echo.options(num_cpus=0).remote(i) for i in range(20)], timeout=20) == list(range(20))
    wait_until(all_ended, 20, "the end of the children")


# --- nothing is left ------------------------------------------------------------------------------


def test_holds_on_arguments_last_until_the_worker_ended_the_task(tmp_path: Path) -> None:
    """`get` may raise earlier; what the task still reads stays."""

    @moray.remote
    def reads(refs: list[Any], path: str) -> int:
        while True:
            try:
                Path(path).touch()
                time.sleep(60)
            except BaseException:
                break
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            pass
        return len(moray.get(refs[0], timeout=20))

    argument = moray.put(b"x" * 200_000)
    ref = reads.remote([argument], str(tmp_path / "begun"))
    begun(tmp_path / "begun")
    moray.cancel(ref)
    del argument
    try:
        assert moray.get(ref, timeout=20) == 200_000
    except TaskCancelledError:
        pass  # The repeated signal has hit its get().


def test_sys_exc_info_is_clean_afterwards() -> None:
    ref = moray.remote(time.sleep).remote(60)
    moray.cancel(ref)
    cancelled(ref)

    @moray.remote
    def info() -> bool:
        return sys.exc_info() == (None, None, None)

    assert moray.get(info.remote(), timeout=20)
