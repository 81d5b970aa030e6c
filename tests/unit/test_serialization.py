"""Blobs: their forms, SNAPSHOT (read-only arrays, read in place), what needs cloudpickle, contained references."""

from __future__ import annotations

import collections
import dataclasses
import enum
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from moray import object_ref, serialization
from moray.object_ref import Entry, ObjectRef, Origin, new_ref
from moray.serialization import (
    ALIGNMENT,
    NONE_BLOB,
    Imported,
    Serialized,
    context,
    dumps_code,
    loads,
    loads_covered,
    serialize,
)


def round_trip(value: Any) -> Any:
    return loads(serialize(value).to_bytes())


def in_place(packed: Serialized) -> memoryview:
    """The blob as the store would hold it: in memory that begins at a multiple of the alignment."""
    room = np.zeros(packed.size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    memory = room.data[start : start + packed.size]
    packed.write_into(memory)
    return memory


# --- forms ---------------------------------------------------------------------------------------


def test_none_is_one_byte() -> None:
    packed = serialize(None)
    assert packed.blob == packed.to_bytes() == NONE_BLOB == b"N"
    assert packed.size == 1
    assert loads(packed.to_bytes()) is None


@pytest.mark.parametrize("value", [0, 1 << 100, 1.5, "text", True, 2j, b"bytes", [1], {}, (), [None], {"a": [1]}])
def test_what_has_no_buffers_is_a_plain_pickle(value: Any) -> None:
    packed = serialize(value)
    assert packed.blob is not None
    assert packed.blob[0] == 0x80
    assert pickle.loads(packed.blob) == value
    assert packed.size == len(packed.blob)
    assert not packed.buffers
    assert not packed.contained


def test_buffers_lie_aligned_behind_the_pickle_in_their_order() -> None:
    arrays = [np.arange(n, dtype=np.uint8) for n in (1, 63, 64, 65, 1000)]
    packed = serialize(arrays)
    assert packed.blob is None
    blob = packed.to_bytes()
    assert blob[:1] == b"B"
    assert len(blob) == packed.size
    assert packed.starts == sorted(packed.starts)
    assert packed.starts[0] >= len(packed.head)
    for start, array in zip(packed.starts, arrays, strict=True):
        assert start % ALIGNMENT == 0
        assert blob[start : start + array.nbytes] == array.tobytes()


@pytest.mark.parametrize("value", [None, 7, [1, "a"], np.arange(1000), {"a": np.ones(3), "b": np.zeros((2, 2))}])
def test_all_ways_to_write_a_blob_agree(value: Any) -> None:
    packed = serialize(value)
    copied: list[int] = []

    def copy(target: memoryview, source: memoryview) -> None:
        copied.append(source.nbytes)
        target[:] = source

    plain, by_copy = bytearray(packed.size), bytearray(packed.size)
    packed.write_into(memoryview(plain))
    packed.write_into(memoryview(by_copy), copy)
    assert plain == by_copy == packed.to_bytes()
    assert copied == ([buffer.nbytes for buffer in packed.buffers] or [packed.size])


def test_a_blob_may_lie_in_more_room_than_it_needs() -> None:
    """Places in the store are rounded up."""
    for value in (None, [1, 2], {"a": np.arange(100)}):
        packed = serialize(value)
        memory = bytearray(packed.size + 100)
        packed.write_into(memoryview(memory))
        assert bytes(memory[: packed.size]) == packed.to_bytes()
        assert str(loads(memoryview(memory))) == str(value)


# --- builtins ------------------------------------------------------------------------------------------

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
    | st.text() | st.binary() | st.binary().map(bytearray)
)  # fmt: skip
HASHABLE = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
NESTED = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
        | st.frozensets(HASHABLE, max_size=4)
    ),
    max_leaves=20,
)


def shape_of(value: Any) -> Any:
    """Equal values of unequal types (1, True, 1.0) are told apart."""
    if isinstance(value, (list, tuple)):
        return type(value), [shape_of(each) for each in value]
    if isinstance(value, dict):
        return dict, [(shape_of(key), shape_of(each)) for key, each in value.items()]
    return type(value)


@given(NESTED)
def test_builtins_come_back_equal(value: Any) -> None:
    for back in (round_trip(value), loads(memoryview(serialize(value).to_bytes())), loads(in_place(serialize(value)))):
        assert back == value
        assert shape_of(back) == shape_of(value)


def test_sharing_and_cycles_inside_a_value_are_kept() -> None:
    shared = [1]
    cycle: list[Any] = [shared, shared]
    cycle.append(cycle)
    back = round_trip(cycle)
    assert back[0] is back[1]
    assert back[2] is back


class Colour(enum.Enum):
    RED = 1


class Odd(int):
    """A subclass of a builtin has a type to keep."""


@pytest.mark.parametrize(
    "value",
    [
        range(5),
        slice(1, 2),
        Ellipsis,
        NotImplemented,
        Colour.RED,
        Odd(3),
        collections.OrderedDict(a=1),
        int,
        len,
        Path("a"),
    ],
    ids=str,
)
def test_other_values_of_the_standard_library(value: Any) -> None:
    back = round_trip(value)
    assert back == value
    assert type(back) is type(value)


def test_snapshot_every_load_makes_new_objects() -> None:
    value = {"list": [1, 2]}
    blob = serialize(value).to_bytes()
    value["list"].append(3)
    first, second = loads(blob), loads(blob)
    first["list"].append(4)
    assert second == {"list": [1, 2]}


# --- arrays --------------------------------------------------------------------------------------------

RECORD = np.dtype([("id", "<i4"), ("position", "<f8", (3,)), ("name", "S5")])
ARRAYS: dict[str, Callable[[], Any]] = {
    "one": lambda: np.array([1.0]),
    "small": lambda: np.arange(3),
    "large": lambda: np.arange(300_000, dtype=np.float64),
    "fortran": lambda: np.asfortranarray(np.arange(600).reshape(20, 30)),
    "three_dimensions": lambda: np.arange(24, dtype=np.int16).reshape(2, 3, 4),
    "transposed": lambda: np.arange(600).reshape(20, 30).T,
    "strided": lambda: np.arange(100)[::3],
    "reversed": lambda: np.arange(100)[::-1],
    "column": lambda: np.arange(600).reshape(20, 30)[:, 3:7],
    "broadcast": lambda: np.broadcast_to(np.arange(3), (4, 3)),
    "no_elements": lambda: np.zeros((3, 0, 2)),
    "no_dimensions": lambda: np.array(7.5),
    "structured": lambda: np.zeros(5, RECORD),
    "structured_strided": lambda: np.zeros((4, 6), RECORD)[::2, 1:3],
    "structured_with_dates": lambda: np.zeros(3, [("day", "M8[D]"), ("n", "i8")]),
    "no_bytes": lambda: np.zeros(3, "S0"),
    "one_date": lambda: np.array("2024-01-01", "datetime64[us]"),
    "durations": lambda: np.arange(6, dtype="m8[s]").reshape(2, 3)[:, ::2],
    "booleans": lambda: np.array([True, False]),
    "unicode": lambda: np.array(["a", "bcd"]),
    "dates": lambda: np.array(["2024-01-01", "NaT"], "datetime64[D]"),
    "big_endian": lambda: np.arange(5, dtype=">i4"),
    "half": lambda: np.arange(5, dtype=np.float16),
    "complex": lambda: np.arange(5) * 1j,
    "masked_values": lambda: np.array([1.0, np.nan, np.inf]),
}
WITH_MEMORY = sorted(ARRAYS.keys() - {"no_elements"})


@pytest.mark.parametrize("name", sorted(ARRAYS))
def test_arrays_come_back_equal_and_read_only(name: str) -> None:
    array = ARRAYS[name]()
    for blob in (serialize(array).to_bytes(), in_place(serialize(array))):
        back = loads(blob)
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        np.testing.assert_array_equal(back, array)
        assert not back.flags.writeable, "SNAPSHOT"
        with pytest.raises(ValueError, match="read-only"):
            back[...] = back


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_arrays_are_read_in_place(name: str) -> None:
    array = ARRAYS[name]()
    memory = in_place(serialize(array))
    back = loads(memory)
    assert np.shares_memory(back, np.frombuffer(memory, np.uint8))
    assert back.ctypes.data % ALIGNMENT == 0
    if array.dtype.kind != "V":
        assert back.flags.f_contiguous == (array.flags.f_contiguous or array.ndim < 2)
    with pytest.raises(ValueError, match="WRITEABLE"):
        back.flags.writeable = True


def test_arrays_deep_inside_a_value_are_read_in_place() -> None:
    value = {"a": [np.arange(10), {"b": (np.ones((3, 3)),)}], "c": "text"}
    memory = in_place(serialize(value))
    back = loads(memory)
    for array in (back["a"][0], back["a"][1]["b"][0]):
        assert np.shares_memory(array, np.frombuffer(memory, np.uint8))
    assert back["c"] == "text"


def test_one_array_twice_is_sent_once_and_stays_one() -> None:
    array = np.arange(10_000)
    packed = serialize([array, array])
    assert packed.size < 1.1 * array.nbytes
    first, second = loads(packed.to_bytes())
    assert first is second


class Series(np.ndarray):
    """A subclass pickles as it wants to."""


def test_subclasses_of_arrays_keep_their_type() -> None:
    back = round_trip(np.arange(10)[::2].view(Series))
    assert type(back) is Series
    assert back.tolist() == [0, 2, 4, 6, 8]


def test_strided_arrays_in_local_classes_and_with_references_are_out_of_band_too(session: Session) -> None:
    class Local:
        array = np.arange(100)[::7]

    packed = serialize([Local, np.arange(100)[::3], session.refs[0]])
    assert len(packed.buffers) == 2
    assert packed.contained == session.refs[:1]
    packed = serialize([np.arange(100)[::3], *session.refs])
    assert packed.contained == session.refs


def test_an_array_of_objects_is_copied() -> None:
    back = round_trip(np.array([{"a": 1}, None, "text"], object))
    assert back.tolist() == [{"a": 1}, None, "text"]


def test_numpy_scalars_keep_their_type() -> None:
    for value in (np.float32(1.5), np.int64(3), np.bool_(True)):
        assert type(round_trip(value)) is type(value)


def test_an_array_that_changes_later_does_not_change_the_blob() -> None:
    array = np.zeros(1000)
    blob = serialize(array).to_bytes()
    array[:] = 1
    assert not loads(blob).any()


# --- other buffers ----------------------------------------------------------------------------------------


def test_bytearrays_come_back_as_new_bytearrays() -> None:
    blob = serialize([bytearray(b"abc"), bytearray(100_000)]).to_bytes()
    first, second = loads(blob), loads(blob)
    first[0][0] = 0
    first[1][0] = 9
    assert second == [bytearray(b"abc"), bytearray(100_000)]


def test_a_pickle_buffer_comes_back_as_a_read_only_view() -> None:
    memory = in_place(serialize(pickle.PickleBuffer(bytearray(b"x" * 1000))))
    back = memoryview(loads(memory))
    assert back.readonly
    assert bytes(back) == b"x" * 1000
    assert np.shares_memory(np.frombuffer(back, np.uint8), np.frombuffer(memory, np.uint8))


def test_a_pickle_buffer_that_is_not_contiguous_is_an_error() -> None:
    """Pickle has no form for it; what matters is that it is not taken for something else."""
    with pytest.raises((pickle.PicklingError, BufferError)):
        serialize(pickle.PickleBuffer(memoryview(bytearray(100))[::2]))


def test_an_empty_buffer_among_others() -> None:
    back = round_trip([pickle.PickleBuffer(b""), np.arange(3)])
    assert bytes(back[0]) == b""
    assert back[1].tolist() == [0, 1, 2]


def test_arrow_tables_are_read_in_place() -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"n": np.arange(10_000), "s": [f"row {i}" for i in range(10_000)]})
    packed = serialize(table)
    assert packed.buffers
    memory = in_place(packed)
    back = loads(memory)
    assert back.equals(table)
    start = np.frombuffer(memory, np.uint8).ctypes.data
    addresses = [
        buffer.address for column in back.columns for buffer in column.chunk(0).buffers() if buffer is not None
    ]
    assert addresses
    assert all(start <= address < start + packed.size for address in addresses)


# --- classes and functions -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: int
    y: Any


def test_nested_dataclasses_of_a_module() -> None:
    value = Point(1, [Point(2, np.arange(3)), {"p": Point(3, None)}])
    back = round_trip(value)
    assert isinstance(back, Point)
    assert back.y[0].y.tolist() == [0, 1, 2]
    assert back.y[1] == {"p": Point(3, None)}


def test_instances_of_local_classes() -> None:
    @dataclasses.dataclass
    class Local:
        array: Any

    packed = serialize(Local(np.arange(1000)))
    assert b"cloudpickle" in packed.head
    assert packed.buffers, "arrays stay out of band"
    assert loads(packed.to_bytes()).array.sum() == 499_500


@pytest.mark.parametrize("number", [0, 7])
def test_lambdas_and_closures(number: int) -> None:
    def inner(x: int) -> int:
        return x + number

    double, add = round_trip([lambda x: 2 * x, inner])
    assert double(4) == 8
    assert add(1) == number + 1


def test_text_that_looks_like_a_main_class_survives() -> None:
    """The look for such names in the pickle may be wrong on the safe side only."""
    value = {"__main__": b"<locals>", "a": ["__main__", np.arange(3)]}
    back = round_trip(value)
    assert back["__main__"] == b"<locals>"
    assert back["a"][1].tolist() == [0, 1, 2]


def test_classes_of_main_are_readable_in_another_process(tmp_path: Path) -> None:
    writer = textwrap.dedent("""
        import sys, dataclasses
        from moray.serialization import serialize
        @dataclasses.dataclass
        class Mine:
            value: object
        def triple(x):
            return 3 * x
        open(sys.argv[1], "wb").write(serialize([Mine(5), Mine, triple]).to_bytes())
    """)
    reader = textwrap.dedent("""
        import sys
        from moray.serialization import loads
        instance, kind, triple = loads(open(sys.argv[1], "rb").read())
        assert isinstance(instance, kind) and instance.value == 5 and triple(3) == 9
    """)
    for program in (writer, reader):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "blob")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_code_of_this_module_goes_by_name_and_local_code_by_value() -> None:
    blob, contained = dumps_code(round_trip)
    assert loads(blob) is round_trip
    assert not contained
    blob, _ = dumps_code(lambda: Point(1, 2))
    assert loads(blob)() == Point(1, 2)


# --- what does not pickle -----------------------------------------------------------------------------------------


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_too_deep_a_value_is_a_recursion_error() -> None:
    with pytest.raises(RecursionError):
        serialize(nested(100_000))
    assert context.contained is None
    assert round_trip(nested(50)) == nested(50)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("not this one")


def test_errors_of_the_value_are_raised_and_leave_nothing_behind() -> None:
    with pytest.raises(ValueError, match="not this one"):
        serialize([1, Unpicklable()])
    assert context.contained is None
    with pytest.raises(TypeError):
        serialize(iter_forever())
    with pytest.raises(ValueError, match="not this one"):
        dumps_code(Unpicklable())
    assert context.contained is None


def iter_forever() -> Iterator[int]:
    while True:
        yield 1


# --- references -------------------------------------------------------------------------------------


class FakeRuntime:
    """Does with escaping references what a runtime does: contained, or the user's own pickling."""

    def __init__(self) -> None:
        self.pinned: list[Entry] = []

    def escape(self, entry: Entry, ref: ObjectRef[Any]) -> None:
        if context.contained is None:
            self.pinned.append(entry)
        else:
            context.contained.append(ref)

    def future(self, ref: ObjectRef[Any]) -> Any:
        raise NotImplementedError

    def await_ref(self, ref: ObjectRef[Any]) -> Any:
        raise NotImplementedError

    def task_id_of(self, entry: Entry) -> bytes:
        raise NotImplementedError


@dataclasses.dataclass
class Session:
    runtime: FakeRuntime
    refs: list[ObjectRef[Any]]
    #: The covers under which references were unpickled.
    covers: list[Any]


@pytest.fixture(name="session")
def _session(monkeypatch: pytest.MonkeyPatch) -> Session:
    runtime = FakeRuntime()
    origin = Origin(b"p" * 12, b"jobs", runtime)
    refs = []
    for number in range(5):
        ref: ObjectRef[Any] = new_ref(ObjectRef)
        ref._entry = Entry(origin, (number + 1) << 32)
        refs.append(ref)
    session = Session(runtime, refs, [])
    by_id = {ref.binary(): ref for ref in refs}

    def importer(binary: bytes) -> ObjectRef[Any]:
        session.covers.append(context.cover)
        return by_id[binary]

    monkeypatch.setattr(object_ref, "importer", importer)
    return session


def test_contained_references_are_recorded_in_order(session: Session) -> None:
    one, two, three, *_ = session.refs
    packed = serialize({"a": [two, {one: 1}], "b": Point(0, three), "c": np.arange(3)})
    assert packed.contained == [two, one, three]
    assert not session.runtime.pinned
    back = loads_covered(packed.to_bytes(), "cover")
    assert back["a"] == [two, {one: 1}]
    assert session.covers == ["cover"] * 3
    assert context.cover is None


def test_a_reference_twice_in_a_value_is_one_after_reading(session: Session) -> None:
    one = session.refs[0]
    packed = serialize([one, one])
    assert packed.contained == [one]
    back = loads(packed.to_bytes())
    assert back[0] is back[1] is one


def test_references_imported_ahead(session: Session) -> None:
    """Those are taken from a table, others imported one by one, whichever pickler wrote them."""
    one, two, three, *_ = session.refs
    ahead = Imported({ref.binary(): ref for ref in (one, two)})
    for value in ([one, two, three], [one, two, three, np.arange(3)], [one, two, three, lambda: None]):
        packed = serialize(value)
        back = loads_covered(packed.to_bytes(), "cover", ahead)
        assert [ref is other for ref, other in zip(back, session.refs[:3], strict=False)] == [True] * 3
    assert session.covers == ["cover"] * 3
    assert context.cover is None


def test_a_large_pickle_with_few_references_is_read_in_place(session: Session) -> None:
    """To copy it would take longer than the look-ups save."""
    ahead = Imported({ref.binary(): ref for ref in session.refs})
    for text, looked_up in (("", 0), ("x" * 100_000, 5)):
        blob = serialize([session.refs, text]).to_bytes()
        assert loads_covered(memoryview(blob), "cover", ahead) == [session.refs, text]
        assert len(session.covers) == looked_up


def test_what_cloudpickle_does_again_is_recorded_once(session: Session) -> None:
    class Local:
        pass

    value = Local()
    value.refs = session.refs[:2]  # type: ignore[attr-defined]
    assert serialize(value).contained == session.refs[:2]
    assert serialize([session.refs[0], lambda: 1]).contained == session.refs[:1]
    assert not session.runtime.pinned


def test_references_in_closures_belong_to_the_code(session: Session) -> None:
    one, two, *_ = session.refs
    blob, contained = dumps_code(lambda: (one, two))
    assert set(contained) == {one, two}
    assert loads(blob)() == (one, two)


def test_pickling_of_the_users_own_pins(session: Session) -> None:
    one = session.refs[0]
    assert pickle.loads(pickle.dumps(one)) is one
    assert session.runtime.pinned == [one._entry]


class Nested:
    """Its pickling pickles another value, as a user's cache might."""

    def __init__(self, outer: Any, inner: Any) -> None:
        self.outer, self.inner = outer, inner

    def __reduce__(self) -> Any:
        blob = serialize(self.inner).to_bytes()
        return Nested, (self.outer, blob)


def test_each_serialization_records_its_own(session: Session) -> None:
    one, two, *_ = session.refs
    assert serialize(Nested(one, two)).contained == [one]
    assert context.contained is None


def test_an_error_ends_the_record(session: Session) -> None:
    with pytest.raises(ValueError, match="not this one"):
        serialize([session.refs[0], Unpicklable()])
    pickle.dumps(session.refs[1])
    assert session.runtime.pinned == [session.refs[1]._entry]


def test_without_a_session_a_reference_says_what_to_do(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = serialize([session.refs[0]]).to_bytes()
    monkeypatch.setattr(object_ref, "importer", None)
    with pytest.raises(RuntimeError, match=r"moray\.init"):
        loads_covered(blob, "cover")
    assert context.cover is None


# --- reducers ----------------------------------------------------------------------------------------


class Foreign:
    """A type of a library that pickles badly."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        raise TypeError("no pickling of this")


@pytest.fixture
def _foreign_reducer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(serialization.reducers, Foreign, lambda foreign: (Foreign, (foreign.value,)))


@pytest.mark.usefixtures("_foreign_reducer")
def test_reducers_are_used_by_both_picklers(session: Session) -> None:
    packed = serialize([Foreign(np.arange(3)), session.refs[0]])
    assert packed.buffers
    assert packed.contained == session.refs[:1]
    assert loads(packed.to_bytes())[0].value.tolist() == [0, 1, 2]
    assert round_trip([Foreign(4), re.compile("a.c")])[1].match("abc"), "what copyreg knows is not lost"
    packed = serialize([Foreign(4), lambda: 1, session.refs[0]])
    assert packed.contained == session.refs[:1]
    assert loads(packed.to_bytes())[0].value == 4
