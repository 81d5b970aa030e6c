"""Which part of a value cannot be pickled, and why.

The value is tried as a whole; if that fails, its parts are tried, and the parts of those that fail, down to the
smallest ones: closure variables, globals and defaults of functions, attributes of objects (as their
``__reduce_ex__`` gives them), items of containers. A part none of whose own parts fails is the
culprit. Long containers are tried by halves, so that one bad item among a million costs some twenty tries
and not a million.

Trying has no effect on references inside the value (see :mod:`moray.error_transport`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence, Set as AbstractSet
from functools import partial
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, Final, NamedTuple, TextIO

from moray.error_text import describe
from moray.error_transport import dumps

#: Culprits that are reported at most; more of them are nearly always the same mistake.
MAX_FAILURES: Final = 20

#: How deep :func:`explain_unpicklable` looks. Deeper than anybody nests by hand.
_EXPLAIN_DEPTH: Final = 12

_ADVICE: Final = (
    "Make it where it is used (inside the task, or lazily), leave it out by __getstate__, "
    "or pass what is needed to make it"
)


_TOO_DEEP: Final = "it is nested too deeply for Python's recursion limit"


class FailureTuple:
    """Something that cannot be pickled.

    Attributes:
        obj: it.
        name: what its parent calls it.
        parent: what it was found in; itself if it is what was given.
        path: the names that lead from the value that was given to it.
        reason: the error that pickling it raises.
    """

    __slots__ = ("name", "obj", "parent", "path", "reason")

    def __init__(self, obj: Any, name: str, parent: Any, path: tuple[str, ...] = (), reason: str = "") -> None:
        self.obj = obj
        self.name = name
        self.parent = parent
        self.path = path
        self.reason = reason

    def __repr__(self) -> str:
        return f"FailureTuple(obj={_shown(self.obj)}, name={self.name!r}, parent={_shown(self.parent)})"


class _Part(NamedTuple):
    #: What the parent calls it: ``lock``.
    name: str
    #: How a person would: ``closure variable 'lock'``.
    title: str
    value: Any


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Say whether `base_obj` can be pickled, and if not, which parts of it cannot.

    A report is printed as well.

    Args:
        base_obj: what to look at.
        name: what to call it; its own name by default.
        depth: how many levels of parts to look into.
        print_file: where the report goes; standard output by default.

    Returns:
        Whether it can be pickled, and the innermost parts found that cannot.

    Example:
        >>> import threading
        >>> lock = threading.Lock()
        >>> def f(): return lock
        >>> ok, failures = inspect_serializability(f)  # doctest: +SKIP
        >>> ok, {failure.name for failure in failures}  # doctest: +SKIP
        (False, {'lock'})
    """
    name = name or _own_name(base_obj)
    search = _Search(base_obj, name, depth)
    print(search.report(), file=print_file or sys.stdout)
    return not search.failures, set(search.failures)


def explain_unpicklable(obj: Any, name: str) -> str:
    """One paragraph: what in `obj` cannot be pickled, why, and what to do. `name` is what the user calls it."""
    search = _Search(obj, name, _EXPLAIN_DEPTH, limit=1)
    if not search.failures:
        return f"{name} can be pickled"
    failure = search.failures[0]
    titles = search.titles[id(failure)]
    if not titles:
        return f"{name} ({_type_of(obj)}) cannot be pickled: {failure.reason}. {_ADVICE}."
    where = ", ".join(titles)
    return f"{name} cannot be pickled because of its {where} ({_type_of(failure.obj)}): {failure.reason}. {_ADVICE}."


class _Search:
    """One walk from a value down to what fails in it."""

    def __init__(self, obj: Any, name: str, depth: int, limit: int = MAX_FAILURES) -> None:
        self._name = name
        self._limit = limit
        #: Culprits, in order of discovery.
        self.failures: list[FailureTuple] = []
        #: By id of the failure: the titles on the way to it, outermost first.
        self.titles: dict[int, tuple[str, ...]] = {}
        #: What was looked into, by id, and whether that is over: values may be shared or contain themselves.
        self._seen: dict[int, tuple[Any, bool]] = {}
        reason = _reason(obj)
        if reason is not None:
            self._descend(_Part(name, name, obj), obj, reason, depth, (name,), ())

    def report(self) -> str:
        if not self.failures:
            return f"{self._name} can be pickled"
        lines = [f"{self._name} cannot be pickled:"]
        for failure in self.failures:
            titles = self.titles[id(failure)] or ("the value itself",)
            lines += [f"{'  ' * level}- {title}" for level, title in enumerate(titles, 1)]
            lines.append(f"{'  ' * len(titles)}  {_shown(failure.obj)}: {failure.reason}")
        if len(self.failures) >= self._limit:
            lines.append(f"(only the first {self._limit} are shown)")
        lines.append(f"{_ADVICE}.")
        return "\n".join(lines)

    def _descend(
        self, part: _Part, parent: Any, reason: str, depth: int, path: tuple[str, ...], titles: tuple[str, ...]
    ) -> bool:
        """`part` fails: find which of its parts do, or blame it. False if it is being looked into already."""
        value = part.value
        if id(value) in self._seen:
            return self._seen[id(value)][1]
        self._seen[id(value)] = value, False
        explained = False
        if depth > 0 and reason != _TOO_DEEP:
            for child, why in self._failing(_parts(value)):
                explained |= self._descend(child, value, why, depth - 1, (*path, child.name), (*titles, child.title))
        if not explained:
            failure = FailureTuple(value, part.name, parent, path, reason)
            self.failures.append(failure)
            self.titles[id(failure)] = titles
        self._seen[id(value)] = value, True
        return True

    def _failing(self, parts: Sequence[_Part]) -> Iterator[tuple[_Part, str]]:
        """Those of `parts` that cannot be pickled, each with the reason, found by halving."""
        if not parts or len(self.failures) >= self._limit:
            return
        reason = _reason(parts[0].value if len(parts) == 1 else [part.value for part in parts])
        if reason is None:
            return
        if len(parts) == 1:
            yield parts[0], reason
            return
        middle = len(parts) // 2
        yield from self._failing(parts[:middle])
        yield from self._failing(parts[middle:])


def _reason(obj: Any) -> str | None:
    """Why `obj` cannot be pickled; None if it can."""
    try:
        dumps(obj)
    except Exception as error:  # noqa: BLE001 (pickling runs code of the user's classes)
        # cloudpickle puts an error of its own around a RecursionError.
        too_deep = isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)
        return _TOO_DEEP if too_deep else describe(error).rstrip(".")
    return None


# --- the parts of things ---------------------------------------------------------------------------


def _parts(obj: Any) -> list[_Part]:
    if isinstance(obj, FunctionType):
        return list(_function_parts(obj))
    if isinstance(obj, MethodType):
        return [_Part("__self__", "object", obj.__self__), _Part("__func__", "function", obj.__func__)]
    if isinstance(obj, partial):
        return [_Part("func", "function", obj.func), *_items(obj.args, "argument"), *_entries(obj.keywords)]
    if isinstance(obj, type):
        return list(_class_parts(obj))
    if isinstance(obj, ModuleType):
        return []
    if type(obj) is dict:
        return _entries(obj)
    if type(obj) in (list, tuple, set, frozenset):
        return _items(obj, "item")
    return list(_reduced_parts(obj))


def _function_parts(function: FunctionType) -> Iterator[_Part]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    for name, cell in cells:
        try:
            yield _Part(name, f"closure variable {name!r}", cell.cell_contents)
        except ValueError:  # The cell is still empty: the name is assigned later.
            continue
    for name in sorted(_names(function.__code__) & function.__globals__.keys()):
        yield _Part(name, f"global variable {name!r}", function.__globals__[name])
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield _Part("default", "default value of a parameter", default)
    for name, value in vars(function).items():
        yield _Part(name, f"attribute {name!r}", value)


def _names(code: CodeType) -> set[str]:
    """Names that a function and the functions inside it look up."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _class_parts(kind: type) -> Iterator[_Part]:
    for name, value in vars(kind).items():
        # Descriptors of the instances' own storage are made anew with the class.
        if not isinstance(value, (GetSetDescriptorType, MemberDescriptorType)):
            yield _Part(name, f"class attribute {name!r}", _unwrapped(value))


def _unwrapped(value: Any) -> Any:
    """The function inside a static or class method or a property, which pickle only with their class."""
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    return value.fget if isinstance(value, property) else value


def _items(values: Sequence[Any] | AbstractSet[Any], word: str) -> list[_Part]:
    return [_Part(f"[{index}]", f"{word} {index}", value) for index, value in enumerate(values)]


def _entries(mapping: Mapping[Any, Any]) -> list[_Part]:
    keys = [_Part("key", f"key {_shown(key)}", key) for key in mapping]
    return keys + [_Part(_key_name(key), f"entry {_shown(key)}", value) for key, value in mapping.items()]


def _key_name(key: Any) -> str:
    return key if isinstance(key, str) else f"[{_shown(key)}]"


def _reduced_parts(obj: Any) -> Iterator[_Part]:
    """What an object gives to pickle; nothing if it refuses: then it is itself the culprit."""
    try:
        reduced = obj.__reduce_ex__(5)
        if isinstance(reduced, str):
            return
        _make, arguments, state, items, entries = (*reduced[:5], None, None, None, None)[:5]
        attributes, slots = state if _is_slot_state(state) else (state, None)
        values, mapping = list(items or ()), dict(entries or ())
    except Exception:  # noqa: BLE001 (code of the user's classes)
        return
    for part in (attributes, slots):
        yield from _state_parts(part)
    yield from _items(values, "item")
    yield from _entries(mapping)
    yield _Part("__class__", f"class {type(obj).__name__!r}", type(obj))
    yield from _items([value for value in arguments or () if not isinstance(value, type)], "constructor argument")


def _is_slot_state(state: Any) -> bool:
    """Objects with ``__slots__`` have the state (attributes or None, slots)."""
    return isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict)


def _state_parts(state: Any) -> list[_Part]:
    if isinstance(state, dict):
        return [_Part(str(name), f"attribute {name!r}", value) for name, value in state.items()]
    return [] if state is None else [_Part("state", "state", state)]


# --- names -----------------------------------------------------------------------------------------


def _own_name(obj: Any) -> str:
    name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    return name if isinstance(name, str) else type(obj).__qualname__


def _type_of(obj: Any) -> str:
    kind = type(obj)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _shown(obj: Any) -> str:
    """A short repr that cannot fail."""
    try:
        text = repr(obj)
    except Exception:  # noqa: BLE001 (the user's repr)
        return f"<{_type_of(obj)}>"
    return text if len(text) <= 60 else f"{text[:57]}..."
