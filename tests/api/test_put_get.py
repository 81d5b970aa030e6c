"""``put`` and ``get``: values of every kind, order, timeouts, snapshots."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import pathlib
import re
import threading
import time
import uuid
from typing import Any, NamedTuple

import pytest

import moray
from moray.exceptions import GetTimeoutError

pytestmark = pytest.mark.usefixtures("shared_session")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Record:
    name: str
    tags: list[str] = dataclasses.field(default_factory=list)


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: int, b: int) -> None:
        self.a, self.b = a, b

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and (self.a, self.b) == (other.a, other.b)

    __hash__ = None  # type: ignore[assignment]


class Pair(NamedTuple):
    left: int
    right: list[int]


VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**200,
    1.5,
    float("inf"),
    1j,
    "",
    "text",
    "ünïcödé \N{SNOWMAN} \0",
    b"",
    b"bytes",
    bytearray(b"mutable"),
    [],
    [1, [2, [3]]],
    (),
    (1, ("a",)),
    {},
    {"a": {"b": [1]}, 2: None, (1, 2): "tuple key"},
    {1, 2},
    frozenset({"a"}),
    range(3, 9, 2),
    slice(1, None, 2),
    ...,
    NotImplemented,
    int,
    len,
    ValueError("as a value"),
    Colour.RED,
    Record("r", ["x"]),
    Slotted(1, 2),
    Pair(1, [2]),
    dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC),
    dt.timedelta(days=-3),
    decimal.Decimal("0.10"),
    fractions.Fraction(1, 3),
    uuid.UUID(int=7),
    pathlib.PurePosixPath("/a/b"),
    re.compile("a+"),
    collections.OrderedDict(b=1, a=2),
    collections.Counter("hello"),
    collections.deque([1, 2], maxlen=3),
    collections.defaultdict(list, {"a": [1]}),
    array.array("d", [1.0, 2.0]),
    "long " * 50_000,
    b"\x00" * 300_000,
    list(range(50_000)),
    {str(i): i for i in range(10_000)},
]


def ids(value: Any) -> str:
    return f"{type(value).__name__}-{repr(value)[:20]}"


@moray.remote
def identity(value: Any) -> Any:
    return value


@moray.remote
def sleep(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", VALUES, ids=ids)
def test_value_survives_put_and_task(value: Any) -> None:
    for copy in moray.get([moray.put(value), identity.remote(value), identity.remote(moray.put(value))]):
        assert type(copy) is type(value)
        if isinstance(value, Exception):
            assert copy.args == value.args
        else:
            assert copy == value


def test_exception_that_is_put_is_a_value() -> None:
    error = moray.get(moray.put(KeyError("k")))
    assert isinstance(error, KeyError)


def test_exception_that_is_returned_is_a_value() -> None:
    assert isinstance(moray.get(identity.remote(KeyError("k"))), KeyError)


def test_shared_parts_stay_shared_within_one_value() -> None:
    part = [1]
    first, second = moray.get(moray.put((part, part)))
    assert first is second


def test_cyclic_value() -> None:
    cycle: list[Any] = [1]
    cycle.append(cycle)
    copy = moray.get(identity.remote(cycle))
    assert copy[1] is copy


@pytest.mark.parametrize("size", [0, 1, 102_399, 102_400, 102_401, 1_000_000])
def test_sizes_around_the_inline_limit(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert moray.get([moray.put(data), identity.remote(data)]) == [data, data]


def test_lambda_and_local_class_are_values() -> None:
    class Local:
        def answer(self) -> int:
            return 42

    assert moray.get(moray.put(lambda: 41))() == 41
    assert moray.get(identity.remote(Local())).answer() == 42
    assert moray.get(moray.put(Local))().answer() == 42


def test_many_small_objects() -> None:
    refs = [moray.put(i) for i in range(10_000)]
    assert moray.get(refs) == list(range(10_000))


def test_many_large_objects() -> None:
    for i in range(100):
        data = bytes([i]) * 1_000_000
        assert moray.get(moray.put(data)) == data


# --- snapshots ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 100_000])
def test_put_takes_a_snapshot(size: int) -> None:
    """SNAPSHOT."""
    original = list(range(size))
    ref = moray.put(original)
    original[0] = "changed"  # type: ignore[call-overload]
    assert moray.get(ref)[0] == 0


@pytest.mark.parametrize("size", [3, 100_000])
def test_every_get_is_a_new_value(size: int) -> None:
    """SNAPSHOT."""
    ref = moray.put(list(range(size)))
    first = moray.get(ref)
    first[0] = "changed"  # type: ignore[call-overload]
    assert moray.get(ref)[0] == 0
    assert moray.get(ref) is not first


def test_change_of_an_argument_in_a_task_is_not_seen() -> None:
    @moray.remote
    def change(items: list[int]) -> list[int]:
        items.append(4)
        return items

    ref = moray.put([1, 2, 3])
    assert moray.get([change.remote(ref), change.remote(ref)]) == [[1, 2, 3, 4]] * 2
    assert moray.get(ref) == [1, 2, 3]


def test_bytearray_of_a_get_may_be_changed() -> None:
    ref = moray.put(bytearray(b"x" * 300_000))
    first = moray.get(ref)
    first[0] = 0
    assert moray.get(ref)[0] == ord("x")


# --- get ------------------------------------------------------------------------------------------


def test_get_keeps_order_and_duplicates() -> None:
    refs = [sleep.remote(0.1 - 0.02 * i, i) for i in range(5)]
    assert moray.get([*refs, refs[0], *reversed(refs)]) == [0, 1, 2, 3, 4, 0, 4, 3, 2, 1, 0]


def test_get_of_nothing() -> None:
    assert moray.get([]) == []


def test_get_of_a_mixture_of_kinds() -> None:
    assert moray.get([moray.put(1), identity.remote(2), moray.put(b"x" * 200_000)]) == [1, 2, b"x" * 200_000]


def test_get_again_and_again() -> None:
    ref = identity.remote("same")
    assert [moray.get(ref) for _ in range(100)] == ["same"] * 100


def test_timeout_runs_out() -> None:
    ref = sleep.remote(1.0, "late")
    started = time.monotonic()
    with pytest.raises(GetTimeoutError):
        moray.get(ref, timeout=0.1)
    assert time.monotonic() - started < 0.9
    assert moray.get(ref, timeout=30) == "late"


def test_timeout_is_a_builtin_timeout_error() -> None:
    with pytest.raises(TimeoutError):
        moray.get(sleep.remote(0.3), timeout=0.01)


def test_timeout_of_one_in_a_list() -> None:
    with pytest.raises(GetTimeoutError):
        moray.get([moray.put(1), sleep.remote(0.5)], timeout=0.05)


def test_timeout_zero_returns_what_is_there() -> None:
    ref = identity.remote(5)
    assert moray.get(ref) == 5
    assert moray.get(ref, timeout=0) == 5
    assert moray.get(moray.put(b"x" * 200_000), timeout=0) == b"x" * 200_000


def test_timeout_zero_does_not_wait() -> None:
    ref = sleep.remote(0.5)
    started = time.monotonic()
    with pytest.raises(GetTimeoutError):
        moray.get(ref, timeout=0)
    assert time.monotonic() - started < 0.2


def test_timeout_in_a_task() -> None:
    @moray.remote
    def impatient() -> str:
        try:
            moray.get(sleep.remote(1.0), timeout=0.05)
        except GetTimeoutError:
            return "timed out"
        return "waited"

    assert moray.get(impatient.remote()) == "timed out"


def test_get_of_one_object_by_many_threads() -> None:
    ref, got = sleep.remote(0.1, "shared"), []
    threads = [threading.Thread(target=lambda: got.append(moray.get(ref, timeout=20))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got == ["shared"] * 16


def test_get_of_ten_thousand_references_in_one_object() -> None:
    ref = moray.put([moray.put(i) for i in range(10_000)])
    assert sum(moray.get(moray.get(ref))) == sum(range(10_000))
