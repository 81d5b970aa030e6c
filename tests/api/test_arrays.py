"""Arrays, tables and tensors: read without a copy, read-only, alive as long as somebody looks at them."""

from __future__ import annotations

import gc
import pickle
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import moray
from moray import serialization
from moray.serialization import loads, serialize

pytestmark = pytest.mark.usefixtures("shared_session")

#: Elements of an array that goes to shared memory (8 MB), and of one that travels inline.
LARGE, SMALL = 1_000_000, 100

ARRAYS: dict[str, npt.NDArray[Any]] = {
    "int64": np.arange(LARGE),
    "uint8": np.arange(LARGE, dtype=np.uint8),
    "two-dimensional": np.arange(LARGE).reshape(1000, 1000),
    "fortran": np.asfortranarray(np.arange(LARGE).reshape(1000, 1000)),
    "transposed": np.arange(LARGE).reshape(500, 2000).T,
    "strided": np.arange(LARGE)[::3],
    "negative strides": np.arange(LARGE)[::-1],
    "broadcast": np.broadcast_to(np.arange(1000), (300, 1000)),
    "empty": np.empty((0, 5)),
    "scalar": np.array(3.5),
    "bool": np.arange(LARGE) % 2 == 0,
    "complex": np.ones(LARGE, dtype=np.complex128),
    "datetime": np.arange(LARGE).astype("datetime64[s]"),
    "text": np.array(["abc", "de"] * 100_000),
    "structured": np.zeros(LARGE, dtype=[("a", "i4"), ("b", "f8")]),
    "objects": np.array([{"a": 1}, None, "x"], dtype=object),
    "big-endian": np.arange(LARGE, dtype=">i4"),
    "masked": np.ma.masked_array(np.arange(1000), mask=np.arange(1000) % 2 == 0),
}


def address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


@moray.remote
def ones(n: int) -> npt.NDArray[np.float64]:
    return np.ones(n)


@moray.remote
def total(array: npt.NDArray[Any]) -> float:
    return float(array.sum())


@moray.remote
def flags(array: npt.NDArray[Any]) -> tuple[bool, bool]:
    return bool(array.flags.writeable), bool(array.flags.owndata)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARRAYS)
def test_array_is_equal(name: str) -> None:
    original = ARRAYS[name]
    copy = moray.get(moray.put(original))
    assert copy.dtype == original.dtype
    assert copy.shape == original.shape
    np.testing.assert_array_equal(copy, original)


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_array_through_a_task(n: int) -> None:
    assert moray.get([total.remote(np.ones(n)), total.remote(ones.remote(n)), total.remote(moray.put(np.ones(n)))]) == [
        n,
        n,
        n,
    ]


def test_many_arrays_in_one_value() -> None:
    value = {i: np.full(50_000, i) for i in range(20)} | {"small": np.arange(3)}
    copy = moray.get(moray.put(value))
    assert all((copy[i] == i).all() for i in range(20))
    assert list(copy["small"]) == [0, 1, 2]


def test_same_array_twice_in_one_value_is_one_array() -> None:
    array = np.arange(LARGE)
    first, second = moray.get(moray.put([array, array]))
    assert np.shares_memory(first, second)


def test_buffers_other_than_arrays() -> None:
    data = bytes(range(256)) * 2000
    for value in (data, bytearray(data), pickle.PickleBuffer(data)):
        assert bytes(moray.get(moray.put(value))) == data


# --- without a copy -------------------------------------------------------------------------------


def test_two_gets_see_the_same_memory() -> None:
    ref = moray.put(np.arange(LARGE))
    assert address(moray.get(ref)) == address(moray.get(ref))


def test_arrays_computed_from_arrays_that_were_read_are_not_pickled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was unpickled has a type of its own each time, and so has what is computed from it."""
    monkeypatch.setattr(serialization, "_arrays", {})
    serialize([np.arange(1)])  # From here on arrays are known.
    packed = serialize(np.arange(10.0)).to_bytes()
    for _ in range(10):
        array = loads(packed) + 0
        assert serialize(array).to_bytes() == packed
    assert len(serialization._arrays) == 1


def test_arrays_are_aligned() -> None:
    for value in ([np.arange(LARGE)], {"odd": b"x" * 13, "array": np.arange(LARGE), "more": [np.ones(LARGE)]}):
        copy = moray.get(moray.put(value))
        arrays = [copy[0]] if isinstance(copy, list) else [copy["array"], copy["more"][0]]  # type: ignore[index]
        assert all(address(array) % 64 == 0 for array in arrays)


def test_large_get_takes_no_time() -> None:
    ref = moray.put(np.zeros(12_500_000))
    moray.get(ref)
    started = time.perf_counter()
    for _ in range(10):
        moray.get(ref)
    assert time.perf_counter() - started < 0.1


def test_views_of_one_get_do_not_copy() -> None:
    array = moray.get(moray.put(np.arange(LARGE)))
    assert np.shares_memory(array, array[10:20])


# --- read-only ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, SMALL, 10_000, LARGE])
def test_arrays_are_read_only_at_every_size(n: int) -> None:
    """SNAPSHOT: nobody can change what others read; small arrays are no exception."""
    for array in moray.get([moray.put(np.ones(n)), ones.remote(n)]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2
    assert moray.get([flags.remote(np.ones(n)), flags.remote(moray.put(np.ones(n)))]) == [(False, False)] * 2


def test_writeable_flag_cannot_be_switched_on() -> None:
    array = moray.get(moray.put(np.ones(LARGE)))
    with pytest.raises(ValueError):
        array.flags.writeable = True


def test_copy_may_be_changed() -> None:
    ref = moray.put(np.zeros(LARGE))
    copy = moray.get(ref).copy()
    copy[0] = 1
    assert moray.get(ref)[0] == 0


def test_original_may_be_changed_after_put() -> None:
    """SNAPSHOT."""
    array = np.zeros(LARGE)
    ref = moray.put(array)
    array[:] = 1
    assert moray.get(ref).sum() == 0
    array[:] = 2
    result = total.remote(array)
    array[:] = 3
    assert moray.get(result) == 2 * LARGE


# --- lifetimes ------------------------------------------------------------------------------------


def test_view_outlives_the_reference() -> None:
    """STORE-PIN: the memory stays until the last array over it is gone."""
    ref = moray.put(np.arange(LARGE))
    array = moray.get(ref)
    del ref
    gc.collect()
    for i in range(20):
        moray.get(moray.put(np.full(LARGE, i)))
    assert (array == np.arange(LARGE)).all()


def test_slice_outlives_array_and_reference() -> None:
    part = moray.get(moray.put(np.arange(LARGE)))[5:10]
    gc.collect()
    for i in range(20):
        moray.get(moray.put(np.full(LARGE, i)))
    assert list(part) == [5, 6, 7, 8, 9]


def test_one_array_of_several_keeps_the_value() -> None:
    kept = moray.get(moray.put({i: np.full(LARGE, i) for i in range(3)}))[2]
    gc.collect()
    for i in range(10):
        moray.get(moray.put(np.full(LARGE, -i)))
    assert (kept == 2).all()


def test_view_in_a_worker_outlives_its_task() -> None:
    @moray.remote(num_cpus=2)
    def keep(array: npt.NDArray[Any]) -> None:
        import builtins

        builtins.kept_array = array  # type: ignore[attr-defined]

    @moray.remote(num_cpus=2)
    def look() -> float | None:
        import builtins

        kept = getattr(builtins, "kept_array", None)
        return None if kept is None else float(kept.sum())

    moray.get(keep.remote(np.full(LARGE, 3)))
    for i in range(20):
        moray.get(moray.put(np.full(LARGE, i)))
    assert {3.0 * LARGE} == {s for s in moray.get([look.remote() for _ in range(10)]) if s is not None}


def test_views_outlive_the_session() -> None:
    """LIVENESS: memory under views that the user holds stays valid after ``shutdown``."""
    from tests.support.procs import run_driver

    run_driver(
        """
        import numpy as np
        import moray
        moray.init(num_cpus=1)
        array = moray.get(moray.put(np.arange(1_000_000)))
        from_task = moray.get(moray.remote(lambda: np.ones(1_000_000)).remote())
        moray.shutdown()
        assert (array == np.arange(1_000_000)).all() and from_task.sum() == 1_000_000
        moray.init(num_cpus=1)
        moray.get(moray.put(np.zeros(1_000_000)))
        assert (array == np.arange(1_000_000)).all() and from_task.sum() == 1_000_000
        """
    )


# --- arrow ------------------------------------------------------------------------------


def test_arrow_table() -> None:
    table = pa.table({"n": np.arange(LARGE), "text": ["x"] * LARGE})
    ref = moray.put(table)
    first, second = moray.get([ref, ref])
    assert first.equals(table)
    buffers = [t.column("n").chunk(0).buffers()[1].address for t in (first, second)]
    assert buffers[0] == buffers[1]


def test_arrow_through_a_task() -> None:
    @moray.remote
    def double(table: Any) -> Any:
        return table.append_column("again", table.column("n"))

    table = pa.table({"n": np.arange(LARGE)})
    assert moray.get(double.remote(table)).column_names == ["n", "again"]


def test_slice_of_an_arrow_table_is_a_slice() -> None:
    part = pa.table({"n": np.arange(LARGE)}).slice(10, 5)
    assert moray.get(moray.put(part)).column("n").to_pylist() == [10, 11, 12, 13, 14]
