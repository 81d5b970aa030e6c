"""A task's arguments on their way: values are snapshotted, references replaced by what they refer to.

* values of a few builtin types are pickled directly;
* an :class:`ObjectRef` at top level travels beside the payload and is replaced by its value in the worker:
  inline if the value is small, read from the store if not;
* a reference inside a value travels inside it and stays a reference;
* what is larger than :data:`~moray.config.INLINE_MAX_BYTES` is put into the store first.
"""

from __future__ import annotations

import pickle
import warnings
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray import config
from moray.object_ref import ObjectRef
from moray.protocol import messages as m
from moray.runtime.unusable import Unusable, of_ended_session
from moray.serialization import _PLAIN, Serialized, serialize

if TYPE_CHECKING:
    from moray.runtime.places import Places
    from moray.runtime.values import Values


class Prepared(msgspec.Struct, gc=False):
    """Arguments ready to travel."""

    payload: bytes
    #: References to hold until the task is done.
    held: list[ObjectRef[Any]] | None = None
    #: Top-level references: (position or keyword, reference).
    arguments: list[tuple[int | str, ObjectRef[Any]]] | None = None


#: Whose pickle has at least a byte for each of what `len` counts.
_SIZED: Final = frozenset((bytes, bytearray, str, list, tuple, dict, set, frozenset))


class LargeArguments:
    """Notices a large value that is passed again and again to one function, and says `put` once."""

    __slots__ = ("_last", "_repeats", "_warned")

    def __init__(self) -> None:
        #: Position → what the last large value there looked like: identity, size, and a sample of its bytes,
        #: as another value may have come to lie at the same address.
        self._last: dict[int | str, tuple[int, int, int]] = {}
        self._repeats = 0
        self._warned = False

    def passed(self, where: int | str, value: Any, serialized: Serialized, function: str) -> None:
        """A large value was serialised for argument `where`."""
        look = (id(value), serialized.size, serialized.sample())
        if self._last.get(where) != look:
            self._last[where] = look
            self._repeats = 0
            return
        self._repeats += 1
        if self._repeats > 1 and not self._warned:
            self._warned = True
            warnings.warn(
                f"{function}() got the same {serialized.size / 1e6:.1f} MB value as argument {where!r} three times; "
                "each call copies it. Call ref = moray.put(value) once and pass ref instead.",
                UserWarning,
                stacklevel=6,
            )


def prepare(
    values: Values, args: tuple[Any, ...], kwargs: dict[str, Any], function: str, large: LargeArguments
) -> Prepared:
    """Serialise a call's arguments. Raises TypeError that names what does not pickle."""
    for value in args:
        if type(value) not in _PLAIN:
            break
    else:
        if not kwargs:
            payload = pickle.dumps((args, kwargs), 5)
            if len(payload) <= config.INLINE_MAX_BYTES:
                return Prepared(payload)
    return _prepare_any(values, args, kwargs, function, large)


def _prepare_any(
    values: Values, args: tuple[Any, ...], kwargs: dict[str, Any], function: str, large: LargeArguments
) -> Prepared:
    references: list[tuple[int | str, ObjectRef[Any]]] = []
    plain_args = list(args)
    plain_kwargs = dict(kwargs)
    for position, value in enumerate(args):
        if isinstance(value, ObjectRef):
            _check_session(value)
            references.append((position, value))
            plain_args[position] = None
    for name, value in kwargs.items():
        if isinstance(value, ObjectRef):
            _check_session(value)
            references.append((name, value))
            plain_kwargs[name] = None
    serialized = None
    if not any(_is_surely_large(value) for _where, value in _named(plain_args, plain_kwargs)):
        serialized = _serialize_arguments(plain_args, plain_kwargs, function)
    if serialized is None or serialized.size > config.INLINE_MAX_BYTES:
        references += _put_large(values, plain_args, plain_kwargs, function, large)
        serialized = _serialize_arguments(plain_args, plain_kwargs, function)
    held = serialized.contained + [ref for _where, ref in references]
    return Prepared(serialized.to_bytes(), held or None, references or None)


def _check_session(ref: ObjectRef[Any]) -> None:
    """Raise if it is of a session that has ended: what is here would travel, what is in a store be awaited."""
    if isinstance(ref._entry.origin.runtime, Unusable):
        raise of_ended_session(ref._entry)


def _serialize_arguments(args: list[Any], kwargs: dict[str, Any], function: str) -> Any:
    try:
        return serialize((tuple(args), kwargs))
    except Exception as error:
        from moray.runtime.values import unpicklable

        for where, value in _named(args, kwargs):
            _serialize_argument(where, value, function)
        raise unpicklable((args, kwargs), f"the arguments of {function}()", error) from error


def _serialize_argument(where: int | str, value: Any, function: str) -> Serialized:
    try:
        return serialize(value)
    except Exception as reason:  # Whatever its pickling raises.
        from moray.runtime.values import unpicklable

        raise unpicklable(value, f"argument {where!r} of {function}()", reason) from reason


def _is_surely_large(value: Any) -> bool:
    """Its pickle needs more than a call may carry: that is not worth pickling just to see how much. (Of a container,
    each element takes a byte at least, and arrays are not copied to see their size.)"""
    return type(value) in _SIZED and len(value) > config.INLINE_MAX_BYTES


def _named(args: list[Any], kwargs: dict[str, Any]) -> list[tuple[int | str, Any]]:
    """All arguments with their positions or names."""
    return [*enumerate(args), *kwargs.items()]


def _put_large(
    values: Values, args: list[Any], kwargs: dict[str, Any], function: str, large: LargeArguments
) -> list[tuple[int | str, ObjectRef[Any]]]:
    """Move the large arguments into the store; their places in `args` and `kwargs` become None. If the call is
    large by many small arguments, all of them go."""
    sizes: dict[int | str, Serialized] = {}
    for where, value in _named(args, kwargs):
        if value is not None:
            sizes[where] = _serialize_argument(where, value, function)
    threshold = config.INLINE_MAX_BYTES
    if all(serialized.size <= threshold for serialized in sizes.values()):
        threshold = config.INLINE_MAX_BYTES // max(len(sizes), 1)
    moved: list[tuple[int | str, ObjectRef[Any]]] = []
    for where, serialized in sizes.items():
        if serialized.size <= threshold:
            continue
        target: Any = args if isinstance(where, int) else kwargs
        large.passed(where, target[where], serialized, function)
        moved.append((where, values.put_serialized(serialized)))
        target[where] = None
    return moved


def resolve(
    arguments: list[tuple[int | str, ObjectRef[Any]]], places: Places
) -> tuple[list[m.Argument], ObjectRef[Any] | None]:
    """The wire form of ready references; or the first among them that is an error."""
    resolved = []
    for where, ref in arguments:
        entry = ref._entry
        if entry.error:
            return [], ref
        if entry.blob is not None:
            resolved.append(m.Argument(where, entry.id, entry.blob))
        else:
            resolved.append(m.Argument(where, entry.id, None, True, places.named(entry), entry.size))
    return resolved, None
