"""Finding out what cannot be pickled."""

from __future__ import annotations

import functools
import io
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from moray import error_transport
from moray.check_serialize import MAX_FAILURES, FailureTuple, explain_unpicklable
from moray.util import inspect_serializability

lock = threading.Lock()


def names(obj: Any, **kwargs: Any) -> set[str]:
    ok, failures = inspect_serializability(obj, print_file=io.StringIO(), **kwargs)
    assert ok == (not failures)
    return {failure.name for failure in failures}


class Attribute:
    def __init__(self) -> None:
        self.fine = 3
        self.bad = lock


class Slots:
    __slots__ = ("bad", "fine")

    def __init__(self) -> None:
        self.fine, self.bad = 1, lock


class Refuses:
    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("never")


class BadState:
    def __getstate__(self) -> Any:
        raise OSError("no state")


class BadRepr(Refuses):
    def __repr__(self) -> str:
        raise ValueError("no repr")


@dataclass
class Data:
    parts: list[Any] = field(default_factory=list)


def closure() -> Callable[[], Any]:
    inner = threading.Lock()

    def function() -> Any:
        return inner

    return function


def by_value(function: Any) -> Any:
    """As a function of a notebook or script: pickled with its globals, which this module's are not."""
    import types

    made = types.FunctionType(function.__code__, {"lock": lock, "__name__": "__main__"}, function.__name__)
    made.__module__ = "__main__"
    return made


def uses_global() -> Any:
    return [lock for _ in range(3)]


def test_what_can_be_pickled() -> None:
    for value in (3, "x", [1, {2: (3,)}], Data([1]), closure, len):
        assert names(value) == set()


def test_a_closure_variable() -> None:
    assert names(closure()) == {"inner"}


def test_a_global_also_in_inner_code() -> None:
    assert names(by_value(uses_global)) == {"lock"}


def test_a_default_value() -> None:
    def function(x: Any = lock) -> Any:
        return x

    assert names(function) == {"default"}


@pytest.mark.parametrize("made", [Attribute(), Slots()])
def test_an_attribute(made: Any) -> None:
    ok, failures = inspect_serializability(made, print_file=io.StringIO())
    (failure,) = failures
    assert not ok
    assert (failure.name, failure.obj, failure.parent) == ("bad", lock, made)
    assert failure.path == (type(made).__qualname__, "bad")


def test_items_and_entries() -> None:
    assert names([1, lock]) == {"[1]"}
    assert names({"a": 1, "b": lock}) == {"b"}
    assert names({1: (lock,)}) == {"[0]"}
    assert names({(lock,): 1}) == {"[0]"}
    assert names({1, lock}) <= {"[0]", "[1]"}
    assert names(deque([1, lock])) == {"[1]"}
    assert names(OrderedDict(x=lock)) == {"x"}
    assert names(defaultdict(list, x=lock)) == {"x"}


def test_methods_and_partials() -> None:
    class Local:
        def __init__(self) -> None:
            self.bad = lock

        def method(self) -> None: ...

    assert names(Local().method, depth=5) == {"bad"}
    assert names(functools.partial(print, lock, end=lock)) <= {"[0]", "end"}


def test_a_class() -> None:
    class Local:
        shared = lock

        def method(self) -> None: ...

    assert names(Local) == {"shared"}
    assert names(Local()) == {"shared"}


def test_depth_ends_the_search() -> None:
    deep = Data([Data([Data([lock])])])
    assert names(deep, depth=10) == {"[0]"}
    _, failures = inspect_serializability(deep, depth=1, print_file=io.StringIO())
    assert {failure.name for failure in failures} == {"parts"}
    assert names(deep, depth=0) == {"Data"}


@pytest.mark.parametrize(("made", "why"), [(Refuses(), "never"), (BadState(), "no state"), (BadRepr(), "never")])
def test_what_refuses_is_itself_the_culprit(made: Any, why: str) -> None:
    _, failures = inspect_serializability([made], print_file=io.StringIO())
    (failure,) = failures
    assert failure.obj is made
    assert why in failure.reason
    assert "FailureTuple" in repr(failure)


def test_cycles_end() -> None:
    cycle: list[Any] = [lock]
    cycle.append(cycle)
    assert names(cycle, depth=50) == {"[0]"}


def test_few_tries_find_one_bad_item_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    dumps = error_transport.dumps

    def counted(value: object) -> Any:
        tries.append(1)
        return dumps(value)

    monkeypatch.setattr("moray.check_serialize.dumps", counted)
    assert names([*range(5000), lock, *range(5000)]) == {"[5000]"}
    assert len(tries) < 40


def test_many_bad_items_are_cut_short() -> None:
    _, failures = inspect_serializability([threading.Lock() for _ in range(500)], print_file=io.StringIO())
    assert len(failures) == MAX_FAILURES


def test_the_report_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    inspect_serializability(Attribute(), name="thing")
    out = capsys.readouterr().out
    assert "thing cannot be pickled" in out
    assert "attribute 'bad'" in out
    assert "_thread.lock" in out
    inspect_serializability(3, name="thing")
    assert "thing can be pickled" in capsys.readouterr().out


def test_an_explanation_is_one_paragraph() -> None:
    text = explain_unpicklable({"a": Attribute()}, "argument 'x' of f()")
    assert text.startswith("argument 'x' of f() cannot be pickled because of its entry 'a', attribute 'bad'")
    assert "_thread.lock" in text
    assert "\n" not in text
    assert explain_unpicklable(3, "x") == "x can be pickled"
    assert "x (tests" in explain_unpicklable(Refuses(), "x") or "Refuses) cannot" in explain_unpicklable(Refuses(), "x")


def test_a_deep_value_is_not_dug_through() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in explain_unpicklable(deep, "the value")


def test_failures_are_hashable_whatever_they_hold() -> None:
    assert len({FailureTuple([], "a", {}), FailureTuple([], "a", {})}) == 2
