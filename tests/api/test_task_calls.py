"""Calling a task: its arguments, its values, its dependencies, and who may call it."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import moray
from moray import ObjectRef

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote
def add(x: int, y: int = 10) -> int:
    return x + y


@moray.remote
def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


@moray.remote
def fibonacci(n: int) -> int:
    if n < 2:
        return n
    return int(sum(moray.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)])))


@moray.remote
def descend(depth: int) -> int:
    return 0 if depth == 0 else 1 + int(moray.get(descend.remote(depth - 1)))


# --- arguments ------------------------------------------------------------------------------------


def test_positional_keyword_and_default_arguments() -> None:
    assert moray.get([add.remote(1, 2), add.remote(1), add.remote(1, y=5), add.remote(y=1, x=2)]) == [3, 11, 6, 3]


def test_variadic_arguments() -> None:
    assert moray.get(echo.remote(1, "b", c=None, d=[4])) == ((1, "b"), {"c": None, "d": [4]})


def test_no_arguments() -> None:
    assert moray.get(echo.remote()) == ((), {})


def test_keyword_only_and_positional_only_arguments() -> None:
    @moray.remote
    def pick(a: int, /, *, b: int = 2) -> list[int]:
        return [a, b]

    assert moray.get([pick.remote(1), pick.remote(1, b=3)]) == [[1, 2], [1, 3]]


def test_argument_named_self_or_like_an_option() -> None:
    assert moray.get(echo.remote(num_cpus=3, name="x", function=1)) == (
        (),
        {"num_cpus": 3, "name": "x", "function": 1},
    )


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1,), {"x": 1})],
    ids=["missing", "too many", "unknown", "twice"],
)
def test_wrong_arguments_are_refused_by_the_caller(args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    call: Any = add.remote
    with pytest.raises(TypeError):
        call(*args, **kwargs)


def test_mutable_default_is_the_workers_own() -> None:
    @moray.remote
    def append(item: int, items: list[int] | None = None) -> list[int]:
        return [*(items or []), item]

    assert moray.get([append.remote(i) for i in range(3)]) == [[0], [1], [2]]


def test_many_arguments() -> None:
    args, _ = moray.get(echo.remote(*range(1000)))
    assert args == tuple(range(1000))


def test_large_argument() -> None:
    @moray.remote
    def size(data: bytes) -> int:
        return len(data)

    sizes = [0, 99_999, 100_001, 5_000_000]
    assert moray.get([size.remote(bytes(n)) for n in sizes]) == sizes


def test_large_result() -> None:
    @moray.remote
    def make(n: int) -> bytes:
        return b"x" * n

    sizes = [0, 99_999, 100_001, 5_000_000]
    assert [len(data) for data in moray.get([make.remote(n) for n in sizes])] == sizes


def test_arguments_are_a_snapshot() -> None:
    """SNAPSHOT: what happens to an argument after the call is not seen by the task."""
    items = [1, 2, 3]
    ref = echo.remote(items)
    items.append(4)
    assert moray.get(ref) == (([1, 2, 3],), {})


def test_none_is_a_result() -> None:
    @moray.remote
    def nothing() -> None:
        return None

    assert moray.get(nothing.remote()) is None


# --- dependencies ---------------------------------------------------------------------------------


def test_top_level_reference_arrives_as_its_value() -> None:
    assert moray.get(add.remote(add.remote(1, 1), y=moray.put(5))) == 7  # type: ignore[call-overload]


def test_nested_reference_arrives_as_reference() -> None:
    @moray.remote
    def inspect(items: list[ObjectRef[int]], by_name: dict[str, ObjectRef[int]]) -> tuple[bool, int]:
        refs = [*items, *by_name.values()]
        return all(isinstance(r, ObjectRef) for r in refs), sum(moray.get(refs))

    assert moray.get(inspect.remote([moray.put(1)], by_name={"a": add.remote(1, 1)})) == (True, 3)


def test_same_reference_twice() -> None:
    ref = add.remote(1, 2)
    assert moray.get(echo.remote(ref, ref, again=ref)) == ((3, 3), {"again": 3})


def test_diamond() -> None:
    root = add.remote(0, 1)
    assert moray.get(add.remote(add.remote(root, 1), add.remote(root, 2))) == 5


def test_long_chain() -> None:
    ref: Any = moray.put(0)
    for _ in range(500):
        ref = add.remote(ref, 1)
    assert moray.get(ref) == 500


def test_tree_reduction() -> None:
    level: list[Any] = [moray.put(i) for i in range(256)]
    while len(level) > 1:
        level = [add.remote(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
    assert moray.get(level[0]) == sum(range(256))


def test_wide_fan_in() -> None:
    @moray.remote
    def total(*numbers: int) -> int:
        return sum(numbers)

    assert moray.get(total.remote(*[add.remote(i, 0) for i in range(300)])) == sum(range(300))


def test_dependency_on_a_large_result() -> None:
    @moray.remote
    def make() -> bytes:
        return b"y" * 3_000_000

    @moray.remote
    def size(data: bytes) -> int:
        return len(data)

    assert moray.get(size.remote(make.remote())) == 3_000_000


def test_dependants_do_not_hold_workers() -> None:
    """A task whose arguments are unfinished takes no CPU from the tasks that it waits for."""

    @moray.remote
    def gate(path_made: int) -> int:
        return path_made

    first = add.remote(1, 1)
    waiting = [gate.remote(add.remote(first, i)) for i in range(50)]
    assert moray.get(waiting, timeout=20) == [2 + i for i in range(50)]


# --- nesting --------------------------------------------------------------------------------------


def test_task_calls_itself() -> None:
    assert moray.get(fibonacci.remote(8), timeout=60) == 21


def test_nesting_far_deeper_than_cpus() -> None:
    assert moray.get(descend.remote(20), timeout=60) == 20


def test_reference_made_in_a_task_is_returned() -> None:
    @moray.remote
    def delegate() -> ObjectRef[int]:
        ref: ObjectRef[int] = add.remote(20, 1)
        return ref

    inner = moray.get(delegate.remote())
    assert isinstance(inner, ObjectRef)
    assert moray.get(inner) == 21


def test_references_made_in_a_task_are_returned_in_containers() -> None:
    @moray.remote
    def scatter(n: int) -> list[ObjectRef[int]]:
        return [moray.put(i) for i in range(n)]

    assert moray.get(moray.get(scatter.remote(20))) == list(range(20))


def test_many_blocked_tasks_do_not_deadlock() -> None:
    @moray.remote
    def outer(i: int) -> int:
        return int(moray.get(add.remote(i, 1)))

    assert moray.get([outer.remote(i) for i in range(30)], timeout=60) == [i + 1 for i in range(30)]


# --- functions as values --------------------------------------------------------------------------


def test_remote_function_as_argument() -> None:
    @moray.remote
    def apply(function: Any, *args: int) -> int:
        return int(moray.get(function.remote(*args)))

    assert moray.get(apply.remote(add, 3, 4)) == 7


def test_remote_function_as_result_and_in_put() -> None:
    @moray.remote
    def give() -> Any:
        return add

    assert moray.get(moray.get(give.remote()).remote(1, 1)) == 2
    assert moray.get(moray.get(moray.put(add)).remote(2, 2)) == 4


def test_remote_function_in_a_closure() -> None:
    @moray.remote
    def inner(x: int) -> int:
        return x * x

    @moray.remote
    def outer(x: int) -> int:
        return int(moray.get(inner.remote(x)))

    assert moray.get(outer.remote(5)) == 25


def test_mutually_recursive_functions() -> None:
    @moray.remote
    def parity(n: int, functions: dict[str, Any], name: str) -> str:
        if n == 0:
            return name
        other = "odd" if name == "even" else "even"
        return str(moray.get(functions["parity"].remote(n - 1, functions, other)))

    assert moray.get(parity.remote(5, {"parity": parity}, "even")) == "odd"


def test_plain_function_is_an_argument_like_any_other() -> None:
    @moray.remote
    def apply(function: Callable[[int], int], x: int) -> int:
        return function(x)

    assert moray.get(apply.remote(lambda x: x + 1, 1)) == 2


# --- many and from anywhere -----------------------------------------------------------------------


def test_ten_thousand_tasks() -> None:
    assert moray.get([add.remote(i) for i in range(10_000)]) == [i + 10 for i in range(10_000)]


def test_tasks_from_threads() -> None:
    def work(base: int) -> list[int]:
        return list(moray.get([add.remote(base, i) for i in range(100)]))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [[base + i for i in range(100)] for base in range(8)]


def test_reference_is_read_from_another_thread() -> None:
    ref, got = add.remote(1, 2), []
    thread = threading.Thread(target=lambda: got.append(moray.get(ref)))
    thread.start()
    thread.join(20)
    assert got == [3]


def test_tasks_from_threads_of_a_task() -> None:
    @moray.remote
    def fan_out() -> list[int]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda i: int(moray.get(add.remote(i, 0))), range(20)))

    assert moray.get(fan_out.remote(), timeout=60) == list(range(20))


def test_tasks_run_in_other_processes_at_the_same_time() -> None:
    @moray.remote
    def meet(directory: str, me: int) -> int:
        open(os.path.join(directory, str(me)), "w").close()
        while not os.path.exists(os.path.join(directory, str(1 - me))):
            pass
        return os.getpid()

    with tempfile.TemporaryDirectory() as directory:
        pids = moray.get([meet.remote(directory, me) for me in (0, 1)], timeout=30)
    assert len({*pids, os.getpid()}) == 3


def test_local_call_of_the_plain_function() -> None:
    plain: Any = add
    assert plain._function(1, 2) == 3


def test_remote_function_keeps_name_and_docstring() -> None:
    @moray.remote
    def documented() -> None:
        """Says what it does."""

    assert documented.__name__ == "documented"
    assert documented.__doc__ == "Says what it does."
