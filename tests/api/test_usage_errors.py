"""Mistakes in using the API: refused at once, in words that say what to do."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest

import moray
from moray.exceptions import TaskError
from moray.util import inspect_serializability

pytestmark = pytest.mark.usefixtures("shared_session")


class Engine:
    """Looks harmless and has a lock three levels down."""

    def __init__(self) -> None:
        self.parts = {"gearbox": {"mutex": threading.Lock()}}


@moray.remote
def one() -> int:
    return 1


@moray.remote
def identity(value: Any) -> Any:
    return value


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("num_cpu", "num_cpus"),
        ("num_gpu", "num_gpus"),
        ("max_retry", "max_retries"),
        ("num_return", "num_returns"),
        ("resource", "resources"),
    ],
)
def test_option_typo_is_refused_with_a_suggestion(typo: str, meant: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{typo}.*{meant}"):
        one.options(**{typo: 1})  # type: ignore[call-overload]
    with pytest.raises((TypeError, ValueError), match=f"{typo}.*{meant}"):
        moray.remote(**{typo: 1})(lambda: None)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": -1},
        {"num_cpus": "2"},
        {"num_cpus": float("nan")},
        {"num_gpus": -0.5},
        {"memory": -1},
        {"resources": {"CPU": 1}},
        {"resources": {"GPU": 1}},
        {"resources": {"x": -1}},
        {"resources": {"x": "1"}},
        {"resources": ["x"]},
        {"num_returns": -1},
        {"num_returns": 1.5},
        {"max_retries": -2},
        {"max_retries": "3"},
        {"retry_exceptions": [1]},
        {"retry_exceptions": "ValueError"},
        {"scheduling_strategy": "FASTEST"},
        {"name": 5},
        {"runtime_env": "pip"},
    ],
    ids=str,
)
def test_bad_option_value_is_refused_by_name(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises((TypeError, ValueError), match=name):
        one.options(**options).remote()


@pytest.mark.parametrize(
    "options",
    [{"name": ["a"]}, {"scheduling_strategy": ["SPREAD"]}, {"resources": {"x": []}}, {"num_cpus": {}}],
    ids=str,
)
def test_unhashable_option_is_refused_clearly(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises((TypeError, ValueError), match=name) as info:
        one.options(**options).remote()
    assert "unhashable" not in str(info.value)


def test_bad_option_does_no_harm() -> None:
    with pytest.raises((TypeError, ValueError)):
        one.options(num_cpus=-1).remote()
    assert moray.get(one.remote()) == 1


def test_remote_with_empty_parentheses_is_refused() -> None:
    with pytest.raises(TypeError, match="parentheses"):
        moray.remote()


@pytest.mark.parametrize("thing", [5, "text", None, [1]], ids=repr)
def test_only_functions_and_classes_can_be_remote(thing: Any) -> None:
    decorate: Any = moray.remote
    with pytest.raises(TypeError):
        decorate(thing)


# --- calls ----------------------------------------------------------------------------------------


def test_call_without_remote_is_refused() -> None:
    call: Any = one
    with pytest.raises(TypeError, match=r"one.*\.remote"):
        call()


@pytest.mark.parametrize("thing", [1, "text", None, {"a": 1}, one, object()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("caught", [TypeError, ValueError])
def test_get_of_something_else_is_refused(thing: Any, caught: type[Exception]) -> None:
    with pytest.raises(caught, match=type(thing).__name__):
        moray.get(thing)


@pytest.mark.parametrize("caught", [TypeError, ValueError])
def test_a_list_with_something_else_is_refused(caught: type[Exception]) -> None:
    get: Any = moray.get
    wait: Any = moray.wait
    for function in (get, wait):
        with pytest.raises(caught, match="int"):
            function([moray.put(1), 2])
    with pytest.raises(caught, match="takes a list"):
        wait(moray.put(1))


def test_the_refusal_of_a_task_is_of_both_types_too() -> None:
    @moray.remote
    def wrong(value: Any) -> Any:
        return moray.get(value)

    for caught in (TypeError, ValueError, TaskError):
        with pytest.raises(caught, match="not 1"):
            moray.get(wrong.remote(moray.put(1)))


def test_result_of_remote_is_no_value() -> None:
    """A forgotten ``get``: the error comes where the mistake is."""
    ref: Any = one.remote()
    with pytest.raises(TypeError):
        _ = ref + 1
    with pytest.raises(TypeError):
        len(ref)


def test_reference_made_by_hand_is_refused() -> None:
    make: Any = moray.ObjectRef
    with pytest.raises((TypeError, ValueError)):
        make()


# --- what cannot be pickled -----------------------------------------------------------------------


@pytest.mark.parametrize("send", [lambda v: identity.remote(v), lambda v: moray.put(v)], ids=["argument", "put"])
def test_unpicklable_value_says_which_attribute(send: Any) -> None:
    with pytest.raises(TypeError) as info:
        send(Engine())
    text = str(info.value)
    assert "lock" in text
    assert "mutex" in text or "parts" in text


def test_unpicklable_argument_names_function_and_argument() -> None:
    with pytest.raises(TypeError, match="identity"):
        identity.remote(threading.Lock())


def test_unpicklable_closure_names_the_variable() -> None:
    mutex = threading.Lock()

    @moray.remote
    def locked() -> bool:
        return mutex.locked()

    with pytest.raises(TypeError, match="mutex"):
        locked.remote()


def test_unpicklable_result_says_which_attribute() -> None:
    @moray.remote
    def build() -> Engine:
        return Engine()

    with pytest.raises(TypeError) as info:
        moray.get(build.remote())
    assert isinstance(info.value, TaskError)
    assert "lock" in str(info.value)
    assert "build" in str(info.value)


def test_one_unpicklable_result_of_several() -> None:
    @moray.remote(num_returns=2)
    def mixed() -> tuple[int, Any]:
        return 1, threading.Lock()

    _, second = mixed.remote()
    with pytest.raises(TypeError):
        moray.get(second)


def test_unpicklable_argument_does_no_harm() -> None:
    for _ in range(20):
        with pytest.raises(TypeError):
            identity.remote([moray.put(1), threading.Lock()])
    assert moray.get(identity.remote(2)) == 2


# --- inspect_serializability ----------------------------------------------------------------------


def test_inspect_finds_nothing_wrong() -> None:
    assert inspect_serializability({"a": [1]}, print_file=io.StringIO()) == (True, set())


def test_inspect_finds_the_attribute() -> None:
    printed = io.StringIO()
    serializable, failures = inspect_serializability(Engine(), name="engine", print_file=printed)
    assert not serializable
    assert failures
    assert "engine" in printed.getvalue()
    assert any(isinstance(f.obj, (type(threading.Lock()), dict)) for f in failures)


def test_inspect_finds_the_closure_variable() -> None:
    mutex = threading.Lock()

    def function() -> bool:
        return mutex.locked()

    serializable, failures = inspect_serializability(function, print_file=io.StringIO())
    assert not serializable
    [failure] = failures
    assert (failure.name, failure.obj) == ("mutex", mutex)
