r"""Values to blobs and back.

A *blob* is one contiguous run of bytes that means one value, wherever it lies (in a message, in the
store, in a file). Its first byte tells its form:

==========  ==============================================================================
``\x80``    a plain pickle (protocol 5), no buffers
``N``       None
``B``       ``<B3xIQ`` + count times ``<QQ`` (offset, length) + pickle + buffers, each at a
            multiple of 64: a pickle whose buffers stay out of band and are read in place
``T``       the same with torch tensors in it: read in memory that only this reader writes to
==========  ==============================================================================

**Pickling** uses the C pickler. When that fails, or when its output names ``__main__`` or
``<locals>`` (a plain pickle of such an instance succeeds here and fails in the worker), cloudpickle
does it again.

**SNAPSHOT.** Buffers are always taken out of band, even small ones, so that arrays come out read-only
at every size; every load makes new objects. Arrays that numpy would write into the pickle itself (strided
ones, dates) are flattened for that; those of Python objects stay in band, new and writable.

**Contained references.** While a value is pickled, ``ObjectRef.__reduce__`` notes the reference in
this thread's :class:`Context`; outside of it (the user's own pickling) the runtime pins the object.
"""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import struct
import sys
import threading
from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from moray.object_ref import ObjectRef, rebuild
from moray.protocol.blobs import OWN_PAGES

ALIGNMENT: Final = 64
NONE_BLOB: Final = b"N"
_IN_PLACE: Final = ord("B")
_HEAD: Final = struct.Struct("<B3xIQ")
#: In every pickle of a tensor that is read in place.
_TENSORS: Final = b"moray.torch_support"
_PART: Final = struct.Struct("<QQ")

_dumps = pickle.dumps
_loads = pickle.loads

#: Types whose pickles have no references, no buffers and no need of cloudpickle.
_PLAIN: Final = frozenset({int, float, str, bool, complex, bytes})


class Context(threading.local):
    """What this thread is (un)pickling."""

    #: References seen while pickling; None outside.
    contained: list[ObjectRef[Any]] | None = None
    #: While unpickling: the entry whose value is read, the *cover* of what comes out of it (REF-COVER).
    cover: Any = None


context = Context()

#: Reducers for types of other libraries (torch tensors) and of the user's `register_serializer`.
reducers: dict[type, Callable[[Any], Any]] = {}

#: The reducer of numpy arrays, once one was met that needs it: not among `reducers`, which cost every value time.
_array_reducers: dict[type, Callable[[Any], Any]] = {}

#: numpy's array type, once an array was met.
_array_type: type | None = None

#: What blobs of contiguous arrays of plain numbers have in common, and their type, whose id no other has meanwhile:
#: (id of the type, shape, writable) → blob without its buffer, type.
_arrays: dict[tuple[int, tuple[int, ...], bool], tuple[Serialized, Any]] = {}
#: Programs with more shapes than this begin anew.
_ARRAYS: Final = 256
#: Types of plain numbers, by numpy's character.
_NUMBERS: Final = frozenset("?bBhHiIlLqQefdgFDG")

#: A pickle with more bytes for each of its references is read in place: copying these costs more than a look-up saves.
_BYTES_EACH: Final = 500

Buffers: TypeAlias = list[pickle.PickleBuffer]


class Serialized:
    """A value ready to be written: small ones as `blob`, others piece by piece into the store."""

    __slots__ = ("blob", "buffers", "contained", "head", "size", "starts")

    def __init__(
        self, body: bytes, buffers: list[memoryview], contained: list[ObjectRef[Any]], form: int = _IN_PLACE
    ) -> None:
        self.contained = contained
        self.buffers = buffers
        #: The whole blob if there are no buffers.
        self.blob: bytes | None = body
        self.head = body
        self.starts: list[int] = []
        self.size = len(body)
        if buffers:
            self.blob = None
            self._lay_out(body, buffers, form)

    def _lay_out(self, body: bytes, buffers: list[memoryview], form: int) -> None:
        position = _HEAD.size + _PART.size * len(buffers) + len(body)
        table = []
        for buffer in buffers:
            position = -(-position // ALIGNMENT) * ALIGNMENT
            self.starts.append(position)
            table.append(_PART.pack(position, buffer.nbytes))
            position += buffer.nbytes
        self.head = b"".join((_HEAD.pack(form, len(buffers), len(body)), *table, body))
        self.size = position

    def with_buffers(self, buffers: list[memoryview]) -> Serialized:
        """A value that differs from this one in nothing but the bytes of its buffers."""
        other = Serialized.__new__(Serialized)
        other.contained = []
        other.buffers = buffers
        other.blob = None
        other.head = self.head
        other.starts = self.starts
        other.size = self.size
        return other

    def sample(self) -> int:
        """A checksum of a few kilobytes: differs for most different values."""
        pieces: list[bytes | memoryview] = [self.head[-4096:]]
        for buffer in self.buffers:
            middle = buffer.nbytes // 2
            pieces += [buffer[:1024], buffer[middle : middle + 1024], buffer[-1024:]]
        return hash(b"".join(pieces))

    def to_bytes(self) -> bytes:
        """The blob as bytes."""
        if self.blob is None:
            target = bytearray(self.size)
            self.write_into(memoryview(target))
            self.blob = bytes(target)
        return self.blob

    def write_into(self, target: memoryview, copy: Callable[[memoryview, memoryview], None] | None = None) -> None:
        """Write the blob to `target` (`size` bytes); `copy(target, source)` moves the buffers."""
        if not self.buffers:
            body = memoryview(self.head)
            copy(target[: self.size], body) if copy else target.__setitem__(slice(0, self.size), body)
            return
        target[: len(self.head)] = self.head
        for start, buffer in zip(self.starts, self.buffers, strict=True):
            place = target[start : start + buffer.nbytes]
            if copy:
                copy(place, buffer)
            else:
                place[:] = buffer


def serialize(value: Any) -> Serialized:
    """The value's bytes. Raises what its pickling raises."""
    if type(value) in _PLAIN:
        return Serialized(_dumps(value, 5), [], [])
    if value is None:
        return Serialized(NONE_BLOB, [], [])
    if type(value) is _array_type and (array := _serialize_array(value)) is not None:
        return array
    contained: list[ObjectRef[Any]] = []
    outer, context.contained = context.contained, contained
    buffers: Buffers = []
    try:
        body = _pickle(value, buffers, contained)
        raw = _raw(buffers) if buffers else []
        if raw and _array_type is None and "numpy" in sys.modules:
            _meet_arrays()
        if raw is None:
            contained.clear()
            body, raw = _cloudpickle_dumps(value, None), []
    finally:
        context.contained = outer
    if raw and "torch" in sys.modules and _TENSORS in body:
        return Serialized(body, raw, contained, OWN_PAGES)
    return Serialized(body, raw, contained)


def _serialize_array(array: Any) -> Serialized | None:
    """An array of plain numbers, without its pickling: that depends on nothing but type and shape. None: not one."""
    kind, flags = array.dtype, array.flags
    if not flags.c_contiguous or _array_type in reducers or _array_type in copyreg.dispatch_table:
        return None
    known = _arrays.get((id(kind), array.shape, flags.writeable)) or _meet_array(array, kind)
    return known[0].with_buffers([pickle.PickleBuffer(array).raw()]) if known is not None else None


def _meet_array(array: Any, kind: Any) -> tuple[Serialized, Any] | None:
    """Note a contiguous array's type and shape, unless they are not plain."""
    if kind.char not in _NUMBERS or not kind.isnative or kind.metadata or not array.nbytes:
        return None
    # An unpickled type is an object of its own, and so are the types of all arrays computed from its arrays.
    plain = sys.modules["numpy"].dtype(kind.char)
    if kind != plain:
        return None
    key = id(plain), array.shape, array.flags.writeable
    if (known := _arrays.get(key)) is not None:
        return known
    buffers: Buffers = []
    body = _dumps(array, 5, buffer_callback=buffers.append)
    if len(buffers) != 1:
        return None
    if len(_arrays) >= _ARRAYS:
        _arrays.clear()
    pattern = Serialized(body, [buffers[0].raw()], [])
    pattern.buffers = []  # Not kept.
    known = _arrays[key] = pattern, plain
    return known


def _pickle(value: Any, buffers: Buffers, contained: list[ObjectRef[Any]]) -> bytes:
    """Pickle by C, or again by cloudpickle where that would not be readable elsewhere."""
    try:
        if reducers or "torch" in sys.modules:
            body = _dump_with_reducers(value, buffers)
        else:
            body = _dumps(value, 5, buffer_callback=buffers.append)
        if b"__main__" not in body and b"<locals>" not in body:
            if b"_reconstruct" not in body or not _install_array_reducer():
                return body
            # An array in band, most likely.
            buffers.clear()
            contained.clear()
            return _dump_with_reducers(value, buffers)
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001, S110 - cloudpickle takes more, and its error is the one to show.
        pass
    buffers.clear()
    contained.clear()
    return _cloudpickle_dumps(value, buffers.append)


def _raw(buffers: Buffers) -> list[memoryview] | None:
    """The flat bytes of each buffer; None if one of them is not contiguous."""
    try:
        return [buffer.raw() for buffer in buffers]
    except BufferError:
        return None


def _dump_with_reducers(value: Any, buffers: Buffers) -> bytes:
    if "torch" in sys.modules:
        from moray import torch_support

        torch_support.install(reducers)
    out = io.BytesIO()
    pickler = pickle.Pickler(out, 5, buffer_callback=buffers.append)
    # A table of the pickler's own replaces copyreg's.
    pickler.dispatch_table = {**copyreg.dispatch_table, **_array_reducers, **reducers}
    pickler.dump(value)
    return out.getvalue()


def _meet_arrays() -> None:
    global _array_type
    _array_type = getattr(sys.modules["numpy"], "ndarray", None)


def _install_array_reducer() -> bool:
    """False if there is no numpy, hence no array."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    _array_reducers[numpy.ndarray] = _reduce_array
    return True


def _reduce_array(array: Any) -> Any:
    """Like numpy, but out of band whatever the layout, unless it holds Python objects."""
    kind, flags = array.dtype, array.flags
    if kind.hasobject or not kind.itemsize or (kind.kind not in "mMV" and (flags.c_contiguous or flags.f_contiguous)):
        return array.__reduce_ex__(5)
    flat = array.reshape(-1) if flags.c_contiguous else array.flatten()
    return _rebuild_array, (flat.view("u1"), kind, array.shape)


def _rebuild_array(flat: Any, kind: Any, shape: tuple[int, ...]) -> Any:
    return flat.view(kind).reshape(shape)


def _cloudpickle_dumps(value: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None) -> bytes:
    _install_array_reducer()
    out = io.BytesIO()
    _cloud_pickler()(out, protocol=5, buffer_callback=buffer_callback).dump(value)
    return out.getvalue()


@functools.cache
def _cloud_pickler() -> Any:
    """The pickler of cloudpickle with our reducers: they must be the class's, an instance's own are not looked at."""
    import cloudpickle

    table = ChainMap(reducers, _array_reducers, cloudpickle.Pickler.dispatch_table)
    return type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": table})


def dumps_code(value: Any) -> tuple[bytes, list[ObjectRef[Any]]]:
    """A function's or class's blob, by cloudpickle, and the references that it closes over."""
    contained: list[ObjectRef[Any]] = []
    outer, context.contained = context.contained, contained
    try:
        return _cloudpickle_dumps(value, None), contained
    finally:
        context.contained = outer


def loads(blob: bytes | memoryview, unpickle: Callable[..., Any] = _loads) -> Any:
    """The value of a blob. `memoryview` blobs are read in place: arrays in the value share their memory, and
    tensors write to it; so where there are tensors, a view is writable if its memory is the caller's alone."""
    tag = blob[0]
    if tag == 0x80:
        return unpickle(blob)
    if tag == ord("N"):
        return None
    if tag == OWN_PAGES and memoryview(blob).readonly:
        blob = memoryview(bytearray(blob))
    view = memoryview(blob).toreadonly()
    _tag, count, length = _HEAD.unpack_from(view)
    position = _HEAD.size
    buffers = []
    for _ in range(count):
        start, size = _PART.unpack_from(view, position)
        buffers.append(view[start : start + size])
        position += _PART.size
    return unpickle(view[position : position + length], buffers=buffers)


def loads_covered(blob: bytes | memoryview, cover: Any, imported: Imported | None = None) -> Any:
    """:func:`loads` for a value with references inside; `cover` keeps them alive on arrival (REF-COVER). `imported`:
    those that were imported ahead, all at once."""
    outer, context.cover = context.cover, cover
    try:
        return loads(blob) if imported is None else loads(blob, imported.unpickle)
    finally:
        context.cover = outer


class Imported(dict[bytes, ObjectRef[Any]]):
    """References by their ids. A pickle that names many is read much faster when each is a look-up in C."""

    def __missing__(self, binary: bytes) -> ObjectRef[Any]:
        return rebuild(binary)

    def unpickle(self, body: bytes | memoryview, buffers: Sequence[memoryview] = ()) -> Any:
        """The value of a pickle, with these references."""
        if len(body) > _BYTES_EACH * len(self):
            return _loads(body, buffers=buffers)
        unpickler = _Unpickler(io.BytesIO(body), buffers=buffers)
        unpickler.take = self.__getitem__
        return unpickler.load()


class _Unpickler(pickle.Unpickler):
    """Makes references by `take`."""

    take: Callable[[bytes], ObjectRef[Any]]

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return self.take if found is rebuild else found
