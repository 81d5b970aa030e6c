"""What a task raises reaches its caller: as the original type, with everything that helps to find it."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

import moray
from moray.exceptions import TaskError

pytestmark = pytest.mark.usefixtures("shared_session")


class ApplicationError(Exception):
    """Has fields, and a constructor that takes something else than its args."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.detail = detail


class LockedError(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a file")
        self.file = sys.stdout


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class UnpicklableHereError(Exception):
    """Can be pickled but not unpickled."""

    def __reduce__(self) -> Any:
        return _refuse_to_load, ()


def _refuse_to_load() -> None:
    raise RuntimeError("refused to load")


@moray.remote
def fail(error: Any) -> None:
    raise error


@moray.remote
def deep_failure() -> None:
    def inner_step() -> None:
        raise ValueError("from the depth")

    inner_step()


@moray.remote
def chained() -> None:
    try:
        _ = dict[str, int]()["missing"]
    except KeyError as error:
        raise ApplicationError(7, detail="looked up") from error


@moray.remote
def grouped() -> None:
    raise ExceptionGroup("several", [ValueError("v"), ExceptionGroup("inner", [TypeError("t")])])


@moray.remote
def identity(value: Any) -> Any:
    return value


def raised_by(ref: Any) -> Any:
    with pytest.raises(BaseException) as info:
        moray.get(ref, timeout=30)
    return info.value


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, however that is linked."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [current.__cause__, current.__context__, getattr(current, "cause", None)]


# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("v"),
        KeyError("k"),
        OSError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(3),
        AssertionError("a"),
        ImportError("i", name="module"),
        RecursionError("r"),
        MemoryError("m"),
        asyncio.CancelledError("c"),
        json.JSONDecodeError("msg", "doc", 0),
        ZeroDivisionError(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_error_is_of_both_types(error: BaseException) -> None:
    raised = raised_by(fail.remote(error))
    assert isinstance(raised, TaskError)
    if isinstance(error, Exception):
        assert isinstance(raised, type(error))
        assert raised.args == error.args
    assert type(raised.cause) is type(error)


def test_both_except_clauses_catch_it() -> None:
    for kind in (TaskError, moray.exceptions.RayTaskError, ValueError, Exception):
        with pytest.raises(kind):
            moray.get(fail.remote(ValueError("v")))


def test_fields_of_the_original_are_there() -> None:
    error = raised_by(chained.remote())
    assert isinstance(error, ApplicationError)
    assert (error.code, error.detail) == (7, "looked up")
    assert raised_by(fail.remote(OSError(2, "gone", "name"))).errno == 2


def test_exception_class_from_main() -> None:
    from tests.support.procs import run_driver

    run_driver(
        """
        import moray
        moray.init(num_cpus=1)

        class Mine(Exception):
            pass

        @moray.remote
        def fail():
            raise Mine("own", 3)

        try:
            moray.get(fail.remote())
        except Mine as error:
            assert isinstance(error, moray.exceptions.TaskError)
            assert error.args == ("own", 3)
        else:
            raise SystemExit("nothing was raised")
        """
    )


def test_locally_defined_exception() -> None:
    class LocalError(Exception):
        pass

    @moray.remote
    def fail_locally() -> None:
        raise LocalError("here")

    with pytest.raises(LocalError, match="here"):
        moray.get(fail_locally.remote())


# --- text -----------------------------------------------------------------------------------------


def test_text_has_the_remote_traceback() -> None:
    text = str(raised_by(deep_failure.remote()))
    assert "inner_step" in text
    assert 'raise ValueError("from the depth")' in text
    assert os.path.basename(__file__) in text
    assert text.rstrip().endswith("ValueError: from the depth")


def test_text_says_where_it_ran() -> None:
    @moray.remote
    def fail_with_pid() -> None:
        raise ValueError(f"<{os.getpid()}>")

    error = raised_by(fail_with_pid.remote())
    pid = str(error.cause).strip("<>")
    assert f"pid={pid}" in str(error)
    assert "fail_with_pid" in str(error)


def test_text_does_not_show_the_runtimes_own_frames() -> None:
    text = str(raised_by(deep_failure.remote()))
    assert os.path.dirname(moray.__file__) not in text


def test_printed_traceback_shows_both_sides() -> None:
    error = raised_by(deep_failure.remote())
    text = "".join(traceback.format_exception(error))
    assert "inner_step" in text
    assert "raised_by" in text


def test_notes_are_kept() -> None:
    @moray.remote
    def with_note() -> None:
        error = ValueError("v")
        error.add_note("remember this")
        raise error

    error = raised_by(with_note.remote())
    assert "remember this" in "".join(traceback.format_exception(error))


# --- chains ---------------------------------------------------------------------------------------


def test_raise_from_is_kept() -> None:
    error = raised_by(chained.remote())
    assert any(type(e) is KeyError for e in chain_of(error))
    assert "direct cause" in str(error)
    assert "'missing'" in str(error)


def test_implicit_context_is_kept() -> None:
    @moray.remote
    def while_handling() -> None:
        try:
            _ = 1 // 0
        except ZeroDivisionError:
            raise ValueError("second")  # noqa: B904 (the implicit context is what is tested)

    error = raised_by(while_handling.remote())
    assert any(type(e) is ZeroDivisionError for e in chain_of(error))
    assert "During handling" in str(error)


def test_get_inside_raise_from() -> None:
    with pytest.raises(RuntimeError) as info:
        try:
            moray.get(fail.remote(KeyError("k")))
        except KeyError as error:
            raise RuntimeError("outer") from error
    assert isinstance(info.value.__cause__, KeyError)


def test_task_that_raises_from_a_remote_error() -> None:
    @moray.remote
    def translate() -> None:
        try:
            moray.get(fail.remote(KeyError("first")))
        except KeyError as error:
            raise ApplicationError(1, detail="translated") from error

    error = raised_by(translate.remote())
    assert isinstance(error, ApplicationError)
    assert any(isinstance(e, KeyError) for e in chain_of(error))
    assert "first" in str(error)


# --- exception groups -----------------------------------------------------------------------------


def test_exception_group() -> None:
    error = raised_by(grouped.remote())
    assert isinstance(error, ExceptionGroup)
    assert isinstance(error, TaskError)
    assert [type(e) for e in error.exceptions] == [ValueError, ExceptionGroup]


def test_except_star() -> None:
    caught: list[str] = []
    try:
        moray.get(grouped.remote())
    except* ValueError as group:
        caught += [str(e) for e in group.exceptions]
    except* TypeError as group:
        caught += [type(e).__name__ for e in group.exceptions]
    assert caught[0] == "v"
    assert len(caught) == 2


def test_remote_errors_in_a_local_group() -> None:
    errors = [raised_by(fail.remote(kind("x"))) for kind in (ValueError, KeyError)]
    matching, rest = ExceptionGroup("local", errors).split(KeyError)
    assert matching is not None
    assert rest is not None
    assert (len(matching.exceptions), len(rest.exceptions)) == (1, 1)


# --- pickling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_error_pickles(protocol: int) -> None:
    error = raised_by(chained.remote())
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert isinstance(copy, TaskError)
    assert isinstance(copy, ApplicationError)
    assert (copy.code, str(copy)) == (7, str(error))


def test_error_passes_through_tasks_as_a_value() -> None:
    error = raised_by(deep_failure.remote())
    copy = moray.get(identity.remote(error))
    assert isinstance(copy, ValueError)
    assert "inner_step" in str(copy)


def test_error_goes_through_a_process_pool() -> None:
    error = raised_by(fail.remote(ApplicationError(3, detail="d")))
    copy = pickle.loads(pickle.dumps([error, error]))
    assert copy[0] is copy[1]


# --- exceptions that make trouble -----------------------------------------------------------------


def test_exception_that_cannot_be_pickled() -> None:
    @moray.remote
    def raise_locked() -> None:
        raise LockedError

    error = raised_by(raise_locked.remote())
    assert isinstance(error, TaskError)
    assert "LockedError" in str(error)
    assert "holds a file" in str(error)


def test_exception_that_cannot_be_unpickled() -> None:
    @moray.remote
    def raise_unloadable() -> None:
        raise UnpicklableHereError("odd")

    error = raised_by(raise_unloadable.remote())
    assert isinstance(error, TaskError)
    assert "UnpicklableHereError" in str(error)


def test_exception_without_a_text() -> None:
    error = raised_by(fail.options(name="mute").remote(MuteError()))
    assert isinstance(error, TaskError)
    assert "MuteError" in str(error)


def test_exception_with_a_large_value() -> None:
    error = raised_by(fail.remote(ValueError(b"x" * 2_000_000)))
    assert isinstance(error, ValueError)
    assert len(error.args[0]) == 2_000_000


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, BaseException], ids=lambda k: k.__name__)
def test_exceptions_that_are_no_exception(kind: type[BaseException]) -> None:
    """The caller hears of it, and the worker goes on or is replaced."""

    @moray.remote(max_retries=0)
    def raise_base() -> None:
        raise kind("base")

    assert isinstance(raised_by(raise_base.remote()), moray.exceptions.RayError)
    assert moray.get(identity.remote(1), timeout=30) == 1


# --- errors and dependencies ----------------------------------------------------------------------


def test_error_of_an_argument_is_the_error_of_the_task() -> None:
    @moray.remote
    def never_runs(value: Any) -> str:
        return "ran"

    error = raised_by(never_runs.remote(deep_failure.remote()))
    assert isinstance(error, ValueError)
    assert "inner_step" in str(error)


def test_error_at_the_start_of_a_long_chain() -> None:
    ref: Any = fail.remote(KeyError("start"))
    for _ in range(30):
        ref = identity.remote(ref)
    assert isinstance(raised_by(ref), KeyError)


def test_nested_failed_reference_is_no_error_until_it_is_read() -> None:
    assert isinstance(moray.get(identity.remote([fail.remote(ValueError())])), list)


def test_first_error_of_a_list() -> None:
    with pytest.raises(KeyError):
        moray.get([identity.remote(1), fail.remote(KeyError()), identity.remote(2)])


def test_error_that_nobody_reads_does_no_harm() -> None:
    for _ in range(100):
        fail.remote(ValueError("unread"))
    assert moray.get(identity.remote("fine")) == "fine"


def test_same_error_is_raised_by_every_get() -> None:
    ref = fail.remote(ValueError("again"))
    for _ in range(3):
        with pytest.raises(ValueError, match="again"):
            moray.get(ref)


def test_errors_of_gets_share_no_state() -> None:
    ref = fail.remote(ValueError("again"))
    first, second = raised_by(ref), raised_by(ref)
    assert first is not second
