"""Values whose own code fails, at every place where the runtime calls it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest

import moray
from tests.support.procs import run_driver

pytestmark = pytest.mark.usefixtures("shared_session")


class Trouble(Exception):  # noqa: N818 (it is the name of a situation)
    pass


class BadDel:
    def __init__(self, payload: bytes = b"") -> None:
        self.payload = payload
        self.armed = False

    def __del__(self) -> None:
        if self.armed:
            raise Trouble("in __del__")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"armed": True}


class BadReduce:
    def __reduce__(self) -> Any:
        raise Trouble("in __reduce__")


class BadGetState:
    def __getstate__(self) -> Any:
        raise Trouble("in __getstate__")


class BadSetState:
    def __init__(self) -> None:
        self.x = 1

    def __setstate__(self, state: Any) -> None:
        raise Trouble("in __setstate__")


class BadReduceSystemExit:
    def __reduce__(self) -> Any:
        raise SystemExit(5)


class BadEquality:
    def __eq__(self, other: object) -> bool:
        raise Trouble("in __eq__")

    def __hash__(self) -> int:
        raise Trouble("in __hash__")

    def __bool__(self) -> bool:
        raise Trouble("in __bool__")

    def __repr__(self) -> str:
        raise Trouble("in __repr__")

    def __len__(self) -> int:
        raise Trouble("in __len__")


class UsesTheRuntime:
    """Calls back into the runtime while it is pickled and unpickled."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return _rebuild, (moray.get(identity.remote(self.value)),)


def _rebuild(value: int) -> UsesTheRuntime:
    return UsesTheRuntime(moray.get(moray.put(value)))


@moray.remote
def identity(value: Any) -> Any:
    return value


@moray.remote
def make(kind: Callable[[], Any]) -> Any:
    return kind()


@moray.remote
def accept(value: Any) -> str:
    return type(value).__name__


def assert_all_is_well() -> None:
    assert moray.get([identity.remote(i) for i in range(50)], timeout=30) == list(range(50))
    assert moray.get(moray.put(b"x" * 300_000)) == b"x" * 300_000


# --- pickling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BadReduce, BadGetState], ids=lambda k: k.__name__)
@pytest.mark.parametrize("send", [lambda v: moray.put(v), lambda v: identity.remote(v)], ids=["put", "argument"])
def test_pickling_fails_here(kind: Any, send: Any) -> None:
    with pytest.raises(Exception, match=r"__reduce__|__getstate__") as info:
        send([moray.put(1), kind()])
    assert isinstance(info.value, (Trouble, TypeError))
    assert_all_is_well()


@pytest.mark.parametrize("kind", [BadReduce, BadGetState], ids=lambda k: k.__name__)
def test_pickling_fails_in_the_worker(kind: Any) -> None:
    with pytest.raises(moray.exceptions.TaskError, match=r"__reduce__|__getstate__"):
        moray.get(make.remote(kind), timeout=30)
    assert_all_is_well()


def test_pickling_raises_system_exit() -> None:
    with pytest.raises((SystemExit, TypeError)):
        moray.put(BadReduceSystemExit())
    with pytest.raises(moray.exceptions.RayError):
        moray.get(make.options(max_retries=0).remote(BadReduceSystemExit), timeout=30)
    assert_all_is_well()


# --- unpickling -----------------------------------------------------------------------------------


def test_unpickling_fails_here() -> None:
    for ref in (moray.put(BadSetState()), make.remote(BadSetState)):
        for _ in range(2):
            with pytest.raises(Exception, match="__setstate__"):
                moray.get(ref, timeout=30)
    assert_all_is_well()


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: moray.put(v)], ids=["inline", "reference"])
def test_unpickling_fails_in_the_worker(wrap: Any) -> None:
    with pytest.raises(moray.exceptions.RayError, match="__setstate__"):
        moray.get(accept.remote(wrap(BadSetState())), timeout=30)
    assert_all_is_well()


def test_module_that_the_worker_does_not_have() -> None:
    import types

    module = types.ModuleType("only_here")
    sys.modules["only_here"] = module
    exec("class Local: pass", module.__dict__)
    try:
        with pytest.raises(moray.exceptions.RayError, match="only_here"):
            moray.get(accept.remote(module.Local()), timeout=30)
    finally:
        del sys.modules["only_here"]
    assert_all_is_well()


def test_pickling_calls_the_runtime() -> None:
    assert moray.get(moray.put(UsesTheRuntime(3))).value == 3
    assert moray.get(identity.remote(UsesTheRuntime(4)), timeout=30).value == 4


# --- other methods --------------------------------------------------------------------------------


def test_comparisons_and_texts_are_never_asked_for() -> None:
    bad = BadEquality()
    copies = moray.get([moray.put(bad), identity.remote(bad)], timeout=30)
    assert [type(copy) for copy in copies] == [BadEquality, BadEquality]
    assert moray.get(accept.remote(bad), timeout=30) == "BadEquality"


def test_error_that_holds_such_a_value() -> None:
    @moray.remote
    def fail(value: Any) -> None:
        raise ValueError(value)

    with pytest.raises(moray.exceptions.TaskError):
        moray.get(fail.remote(BadEquality()), timeout=30)
    assert_all_is_well()


def test_exceptions_in_del_of_the_worker() -> None:
    for payload in (b"", b"x" * 300_000):
        refs = [moray.put(BadDel(payload)) for _ in range(20)]
        assert moray.get([accept.remote(ref) for ref in refs], timeout=30) == ["BadDel"] * 20
    assert_all_is_well()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_exceptions_in_del_here() -> None:
    for payload in (b"", b"x" * 300_000):
        for ref in (moray.put(BadDel(payload)), identity.remote(BadDel(payload))):
            value = moray.get(ref)
            del value
            gc.collect()
    assert_all_is_well()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_del_that_calls_the_runtime() -> None:
    """DEL: a finalizer runs between any two bytecodes, also inside the runtime; it must not wait for itself."""
    results: list[Any] = []

    class Collector:
        def __del__(self) -> None:
            results.append(moray.get(identity.remote(len(results)), timeout=30))

    for _ in range(20):
        cycle: list[Any] = [Collector()]
        cycle.append(cycle)
        del cycle
        moray.get([identity.remote(i) for i in range(20)], timeout=30)
    gc.collect()
    assert sorted(results) == list(range(20))


# --- depth and size -------------------------------------------------------------------------------


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("send", [lambda v: moray.put(v), lambda v: identity.remote(v)], ids=["put", "argument"])
def test_deep_recursion_is_an_error_not_a_crash(send: Any) -> None:
    value = nested(100_000)
    with pytest.raises((RecursionError, TypeError, ValueError)):
        moray.get(send(value), timeout=30)
    assert_all_is_well()


def test_moderate_depth_works() -> None:
    value = moray.get(identity.remote(nested(150)), timeout=30)
    depth = 0
    while value:
        value, depth = value[0], depth + 1
    assert depth == 150


def test_deep_recursion_in_a_result() -> None:
    @moray.remote
    def deep() -> list[Any]:
        return nested(100_000)

    with pytest.raises((RecursionError, moray.exceptions.RayError)):
        moray.get(deep.remote(), timeout=30)
    assert_all_is_well()


def test_endless_recursion_in_a_task() -> None:
    @moray.remote
    def endless(n: int) -> int:
        return int(endless_step(n))

    def endless_step(n: int) -> int:
        return endless_step(n + 1)

    with pytest.raises(RecursionError):
        moray.get(endless.remote(0), timeout=30)
    assert_all_is_well()


def test_recursion_limit_of_the_caller_is_nearly_reached() -> None:
    def call_at_depth(depth: int) -> int:
        if depth == 0:
            return int(moray.get(identity.remote(1)))
        return call_at_depth(depth - 1)

    for depth in range(0, sys.getrecursionlimit(), 20):
        try:
            call_at_depth(depth)
        except RecursionError:
            break
    assert_all_is_well()


def test_failing_finalizers_at_exit() -> None:
    """A driver that holds such values ends as it should."""
    finished = run_driver(
        """
        import moray

        class BadDel:
            def __del__(self):
                raise ValueError("at exit")

        moray.init(num_cpus=1)
        identity = moray.remote(lambda value: value)
        kept = [moray.get(identity.remote(BadDel())), moray.put(BadDel())]
        """
    )
    assert finished.returncode == 0
