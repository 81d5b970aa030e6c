"""What a handle must know of an actor's class: its methods, how they are called, and what calls are refused.

:class:`ActorMeta` is made once where the class is, and travels as bytes: in the actor's registration, in every pickled
handle. So a handle works in processes that have never seen the class, or cannot import it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final, TypeAlias

import msgspec

from moray.options import (
    _COUNT_OR_ENDLESS,
    _POSITIVE,
    _backpressure,
    _bool,
    _filled_str,
    _int,
    _num_returns,
    _retry_exceptions,
    _str,
)
from moray.runtime.signatures import Parameter, parameters_of
from moray.serialization import dumps_code

#: The attribute of a function that ``@moray.method`` leaves: its options, checked.
METHOD_OPTIONS: Final = "__moray_method_options__"

#: Coroutines of async actors that run at once, unless max_concurrency says otherwise.
ASYNC_CONCURRENCY: Final = 1000

_Check: TypeAlias = Callable[[str, Any], Any]

#: Options of ``@moray.method``.
METHOD_CHECKS: Final[dict[str, _Check]] = {
    "num_returns": _num_returns,
    "concurrency_group": _filled_str,
    "max_task_retries": _int(-1, _COUNT_OR_ENDLESS),
    "retry_exceptions": _retry_exceptions,
    "enable_task_events": _bool,
    "tensor_transport": _str,
    "_generator_backpressure_num_objects": _backpressure("limit how far it may be ahead"),
    "_num_objects_per_yield": _int(1, _POSITIVE),
}
#: Options of ``handle.method.options()``.
CALL_CHECKS: Final[dict[str, _Check]] = {**METHOD_CHECKS, "name": _str}


def check_options(options: Mapping[str, Any], checks: Mapping[str, _Check], where: str) -> dict[str, Any]:
    """The options with their values checked; None stands for the default.

    Raises:
        ValueError: an unknown option (the nearest valid one is named) or a value out of range.
        TypeError: a value of the wrong type.
    """
    checked = {}
    for name, value in options.items():
        check = checks.get(name)
        if check is None:
            from difflib import get_close_matches

            near = get_close_matches(name, checks, n=1, cutoff=0.6)
            public = ", ".join(sorted(known for known in checks if not known.startswith("_")))
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {public}"
            raise ValueError(f"unknown option {name!r} of {where}: {hint}")
        checked[name] = None if value is None else check(name, value)
    return checked


class MethodMeta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One method as callers see it; changed options make another."""

    name: str
    #: None: not known, so the actor itself finds out.
    parameters: list[Parameter] | None = None
    generator: bool = False
    #: A coroutine function or asynchronous generator.
    asynchronous: bool = False
    #: None: 1, or "streaming" for generators.
    num_returns: int | str | None = None
    #: Its concurrency group; "": the default one.
    group: str = ""
    #: None: the actor's.
    max_task_retries: int | None = None
    #: As in :class:`~moray.protocol.task_messages.TaskExtra`.
    retry: bool | bytes | None = None
    #: How many items of a generator may be unread; None: any number, as far as the actor allows it.
    ahead: int | None = None
    #: The name that its calls have as tasks; "": the class's and its own.
    task_name: str = ""

    def with_options(self, checked: Mapping[str, Any]) -> MethodMeta:
        """This method with what :func:`check_options` let pass."""
        changes = {field: checked[option] for option, field in _FIELDS.items() if option in checked}
        for field in ("group", "task_name"):
            if field in changes:
                changes[field] = changes[field] or ""
        if "retry_exceptions" in checked:
            kinds = checked["retry_exceptions"]
            changes["retry"] = True if kinds is True else dumps_code(kinds)[0] if kinds else None
        return msgspec.structs.replace(self, **changes) if changes else self


_FIELDS: Final = {
    "num_returns": "num_returns",
    "concurrency_group": "group",
    "max_task_retries": "max_task_retries",
    "_generator_backpressure_num_objects": "ahead",
    "name": "task_name",
}

#: What every actor has beside the methods of its class.
BUILT_IN: Final = (
    MethodMeta("__ray_ready__", []),
    MethodMeta("__ray_terminate__", []),
    MethodMeta(
        "__ray_call__",
        [
            ("fn", int(inspect.Parameter.POSITIONAL_ONLY), False),
            ("args", int(inspect.Parameter.VAR_POSITIONAL), False),
            ("kwargs", int(inspect.Parameter.VAR_KEYWORD), False),
        ],
    ),
)


class ActorMeta(msgspec.Struct, array_like=True, frozen=True):
    """What handles of one class with one set of options share."""

    class_name: str
    module: str
    methods: list[MethodMeta]
    #: Attributes of the class that cannot be called: name → what they are.
    others: dict[str, str] = {}
    max_task_retries: int = 0
    #: -1: no limit.
    max_pending_calls: int = -1
    #: Calls of one caller begin in their order.
    ordered: bool = True
    #: Some method is a coroutine function: the actor has an event loop.
    asynchronous: bool = False
    max_concurrency: int = 1
    #: Names of its concurrency groups.
    groups: list[str] = []
    #: How many items of all its generators together may be unread; -1: no limit.
    ahead: int = -1


encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(ActorMeta).decode


def describe_class(kind: type) -> tuple[list[MethodMeta], dict[str, str]]:
    """The methods of a class, inherited ones too, and its attributes that are none."""
    methods: list[MethodMeta] = []
    others: dict[str, str] = {}
    for name in dir(kind):
        special = name.startswith("__") and name.endswith("__")
        if special and (name in _NOT_METHODS or name.startswith("__ray_")):
            continue
        what = _what(kind, name)
        if what == "method":
            methods.append(_describe_method(kind, name))
        elif not special:
            others[name] = what
    return methods, others


#: Special names that are not calls of the instance.
_NOT_METHODS: Final = frozenset(dir(object)) | {
    "__class_getitem__", "__del__", "__get__", "__getattr__", "__set__", "__set_name__",
}  # fmt: skip
_PROPERTIES: Final = (property, functools.cached_property, MemberDescriptorType, GetSetDescriptorType)


def _what(kind: type, name: str) -> str:
    if isinstance(inspect.getattr_static(kind, name), _PROPERTIES):
        return "property"
    value = getattr(kind, name, None)
    if isinstance(value, type):
        return "class"
    return "method" if callable(value) else "class attribute"


def _describe_method(kind: type, name: str) -> MethodMeta:
    stored = inspect.getattr_static(kind, name)
    function = getattr(kind, name)
    bound = not isinstance(stored, (staticmethod, classmethod)) and hasattr(type(stored), "__get__")
    is_async_generator = inspect.isasyncgenfunction(function)
    method = MethodMeta(
        name,
        parameters_of(function, bound=bound),
        generator=is_async_generator or inspect.isgeneratorfunction(function),
        asynchronous=is_async_generator or inspect.iscoroutinefunction(function),
    )
    options = getattr(function, METHOD_OPTIONS, None) or getattr(stored, METHOD_OPTIONS, None)
    return method.with_options(options) if options else method
