"""How an exception travels from the process that raised it to the one that reads it.

Pickle alone is not enough: it drops ``__cause__`` and ``__context__``, one unpicklable exception in a
chain spoils all of it, and a class that the reader cannot import makes the whole error unreadable.
So an exception is *packed*: the graph of exceptions that can be reached through causes, contexts and
group members is pickled as a list with the links beside it, in a pickle of its own that is carried as
bytes. The writer proves by loading them that the bytes can be read; whatever fails is replaced by a stand-in that
keeps its type's name, its text and the reason. A reader that still cannot load the bytes (the module
is not installed there) makes a stand-in too, and hands the untouched bytes on if it passes the error on.

References inside exceptions must not disappear into those bytes, where the reference protocol could not see them
(REF-FREE, REF-COVER). Types named to :func:`carry_outside` therefore stay out of the inner pickle: they
are collected in a list that the surrounding pickle carries, with its usual accounting. For the same
reason proving that something can be pickled registers nothing and pins nothing.

Exceptions are rebuilt from their fields without calling ``__init__``: most user exceptions whose ``__init__``
takes several arguments pass only a message on to ``Exception``, and pickle's way of calling it with ``args``
fails for them. A class with its own ``__reduce__`` or ``__setstate__`` is left to do as it likes.

Everything heavy is imported on first use,
since every process imports this module and most never see an error.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copyreg import dispatch_table
from functools import cache
from io import BytesIO
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

from moray.error_text import describe

#: Exceptions of one graph that are kept. A loop that retries in an ``except`` block builds context chains
#: of any length; the newest links are the ones that explain.
MAX_EXCEPTIONS: Final = 64

#: ``Py_TPFLAGS_HEAPTYPE``: set on classes that Python code (or an extension, at run time) made.
_HEAP_TYPE: Final = 1 << 9

#: Descriptors of values that live in an exception's C struct or in its slots.
_FIELD_TYPES: Final = (MemberDescriptorType, GetSetDescriptorType)
_NOT_FIELDS: Final = frozenset({"__dict__", "__weakref__"})
_UNSET: Final = object()

#: Sets a field past the class's own ``__setattr__``, which may refuse.
_set: Final = BaseException.__setattr__

#: Types whose instances are carried beside the inner pickle; see :func:`carry_outside`.
_carried_types: tuple[type, ...] = ()

#: What to make of an exception that cannot travel: (it, why).
StandIn: TypeAlias = Callable[[BaseException, str], BaseException]


class Packed(NamedTuple):
    """An exception graph as bytes, and the objects that those bytes refer to by index."""

    blob: bytes
    carried: list[Any]


class _Graph(NamedTuple):
    """Exceptions in order of discovery (the root first), and per exception its links as indices or -1."""

    exceptions: list[BaseException]
    links: list[_Link]


class _Link(NamedTuple):
    cause: int
    context: int
    suppress_context: bool


class _Pickler(Protocol):
    def dump(self, obj: object, /) -> None: ...


# --- pickling with references kept apart ---------------------------------------------------------


def carry_outside(*types: type) -> None:
    """Declare types (references, handles) that the surrounding pickle must see and count itself."""
    global _carried_types
    _carried_types = tuple(dict.fromkeys((*_carried_types, *types)))


def dumps(value: object) -> Packed:
    """Pickle `value` with cloudpickle; carried objects are returned beside the bytes, not in them."""
    file = BytesIO()
    carried: list[Any] = []
    _pickler_type()(file, carried).dump(value)
    return Packed(file.getvalue(), carried)


def loads(packed: Packed) -> Any:
    """Undo :func:`dumps`."""
    import pickle

    unpickler = pickle.Unpickler(BytesIO(packed.blob))
    # Unpickler takes the method from the instance as well as from a subclass.
    unpickler.persistent_load = packed.carried.__getitem__  # type: ignore[method-assign]
    return unpickler.load()


@cache
def _pickler_type() -> Callable[[BytesIO, list[Any]], _Pickler]:
    """Made on first use: importing cloudpickle takes longer than everything else in the base layer."""
    import cloudpickle

    class CarryingPickler(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, file: BytesIO, carried: list[Any]) -> None:
            super().__init__(file, protocol=5)
            self._carried = carried

        def persistent_id(self, obj: object) -> int | None:
            if not isinstance(obj, _carried_types):
                return None
            self._carried.append(obj)
            return len(self._carried) - 1

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, BaseException) and _is_reduced_by_default(type(obj)):
                return reduce_exception(obj)
            return super().reducer_override(obj)

    return cast("Callable[[BytesIO, list[Any]], _Pickler]", CarryingPickler)


# --- exceptions without their __init__ ------------------------------------------------------------


def reduce_exception(exc: BaseException) -> tuple[Any, ...]:
    """For ``__reduce__``: all fields are state, so that cycles through them are no trouble."""
    state = (exc.args, fields_of(exc), exc.__dict__)
    return blank, (type(exc), _group_parts(exc)), state, None, None, restore


def blank(kind: type[BaseException], group_parts: tuple[Any, ...] = ()) -> BaseException:
    """An instance of `kind` on which no Python ``__new__`` or ``__init__`` has run.

    Only exception groups take arguments, (message, exceptions), because theirs cannot be set later.
    """
    builtin = next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE)
    try:
        return builtin.__new__(kind, *group_parts)
    except TypeError:
        # MemoryError has an allocator of its own, which refuses types that were not laid out for it first.
        return BaseException.__new__(kind)


def restore(exc: BaseException, state: tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]) -> None:
    """Give a blank exception its `args`, C-level fields and slots, and ``__dict__``."""
    args, fields, attributes = state
    for name, value in fields.items():
        with suppress(AttributeError, TypeError):  # Some fields are read-only: those of groups.
            _set(exc, name, value)
    exc.__dict__.update(attributes)
    _set(exc, "args", args)


def fields_of(exc: BaseException) -> dict[str, Any]:
    """What `exc` holds outside its ``__dict__`` and `args`: ``errno``, ``value``, slots and the like."""
    fields: dict[str, Any] = {}
    for kind in type(exc).__mro__:
        if kind is BaseException:
            break
        is_builtin = not kind.__flags__ & _HEAP_TYPE
        for name, member in vars(kind).items():
            if isinstance(member, _FIELD_TYPES) and name not in _NOT_FIELDS:
                value = _field(member, exc)
                # An unset C field reads as None; setting it to None would show (``[Errno None]``).
                if value is not _UNSET and not (is_builtin and value is None):
                    fields.setdefault(name, value)
    return fields


def _field(member: MemberDescriptorType | GetSetDescriptorType, exc: BaseException) -> Any:
    try:
        return member.__get__(exc)
    except AttributeError:
        return _UNSET


def _group_parts(exc: BaseException) -> tuple[Any, ...]:
    return (exc.message, exc.exceptions) if isinstance(exc, BaseExceptionGroup) else ()


def _is_reduced_by_default(kind: type[BaseException]) -> bool:
    """Whether nobody but the builtin types says how `kind` is pickled."""
    definer = next(base for base in kind.__mro__ if "__reduce__" in vars(base))
    return (
        not definer.__flags__ & _HEAP_TYPE
        and kind.__reduce_ex__ is object.__reduce_ex__
        and getattr(kind, "__setstate__", None) is BaseException.__setstate__
        and kind not in dispatch_table
    )


# --- packing a graph of exceptions ------------------------------------------------------------------


def pack(exc: BaseException, stand_in: StandIn) -> tuple[Packed, BaseException]:
    """Pack `exc` with all it is linked to; return the bytes and the copy that a reader will see.

    The copy holds no tracebacks, so no frames and none of their locals are kept alive by it.
    """
    graph = _collect(exc)
    try:
        return _prove(graph)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 (user code runs in pickling)
        replaced = [_portable(node, stand_in) for node in graph.exceptions]
    try:
        return _prove(_Graph(replaced, graph.links))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (user code runs in pickling)
        return _prove(_Graph([stand_in(exc, describe(error))], [_Link(-1, -1, False)]))


def unpack(packed: Packed) -> BaseException:
    """The exception that :func:`pack` was given, linked as it was; raises what unpickling raises."""
    exceptions, links = loads(packed)
    for exc, (cause, context, suppressed) in zip(exceptions, links, strict=True):
        if not isinstance(exc, BaseException):
            raise TypeError(f"an exception came out of its pickle as {type(exc).__name__}")
        _set(exc, "__cause__", exceptions[cause] if cause >= 0 else None)
        _set(exc, "__context__", exceptions[context] if context >= 0 else None)
        _set(exc, "__suppress_context__", suppressed)
    return cast(BaseException, exceptions[0])


def _prove(graph: _Graph) -> tuple[Packed, BaseException]:
    packed = dumps((graph.exceptions, [tuple(link) for link in graph.links]))
    return packed, unpack(packed)


def _collect(root: BaseException) -> _Graph:
    """Breadth first, so that what is nearest to the root is kept when there is too much."""
    exceptions = [root]
    index = {id(root): 0}
    for exc in exceptions:
        for neighbour in _neighbours(exc):
            if id(neighbour) not in index and len(exceptions) < MAX_EXCEPTIONS:
                index[id(neighbour)] = len(exceptions)
                exceptions.append(neighbour)
    links = [
        _Link(index.get(id(exc.__cause__), -1), index.get(id(exc.__context__), -1), exc.__suppress_context__)
        for exc in exceptions
    ]
    return _Graph(exceptions, links)


def _neighbours(exc: BaseException) -> list[BaseException]:
    members = exc.exceptions if isinstance(exc, BaseExceptionGroup) else ()
    return [linked for linked in (exc.__cause__, exc.__context__, *members) if linked is not None]


def _portable(exc: BaseException, stand_in: StandIn) -> BaseException:
    """`exc` itself if it can travel; a group with portable members; otherwise a stand-in."""
    try:
        unpack(dumps(([exc], [_Link(-1, -1, False)])))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (user code runs in pickling)
        if isinstance(exc, BaseExceptionGroup):
            return _portable_group(exc, stand_in)
        return stand_in(exc, describe(error))
    return exc


def _portable_group(group: BaseExceptionGroup[BaseException], stand_in: StandIn) -> BaseException:
    """A plain group with the same text and portable members: its own type may be what cannot travel."""
    copy = BaseExceptionGroup(group.message, [_portable(member, stand_in) for member in group.exceptions])
    for note in getattr(group, "__notes__", ()):
        copy.add_note(str(note))
    return copy
