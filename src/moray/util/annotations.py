"""Decorators that say how stable an API is: ``PublicAPI``, ``DeveloperAPI``, ``Deprecated``.

They note it on the function or class, and in its docstring, and change nothing else; only what is ``Deprecated`` with
``warning=True`` warns when it is called.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_STABILITIES: Final = ("stable", "beta", "alpha")


class AnnotationType(Enum):
    """What an API was declared to be."""

    PUBLIC_API = "PublicAPI"
    DEVELOPER_API = "DeveloperAPI"
    DEPRECATED = "Deprecated"
    UNKNOWN = "Unknown"


class RayDeprecationWarning(DeprecationWarning):
    """Something deprecated was used; shown by default, unlike other DeprecationWarnings."""


def PublicAPI(*args: Any, stability: str = "stable", api_group: str = "Others") -> Any:  # noqa: N802 (Ray's name)
    """For users: ``@PublicAPI``, or ``@PublicAPI(stability="beta")``.

    Args:
        args: what is decorated, when it is used without parentheses.
        stability: "stable", "beta" or "alpha".
        api_group: under which heading it is listed.

    Example:
        >>> from moray.util.annotations import PublicAPI
        >>> @PublicAPI(stability="beta")
        ... def area(width, height):
        ...     return width * height
        >>> area(2, 3)
        6
    """
    if stability not in _STABILITIES:
        raise ValueError(f"stability={stability!r}: give one of {', '.join(_STABILITIES)}")

    def decorate(target: F) -> F:
        if stability != "stable":
            _append(target, f"**PublicAPI ({stability}):** this API may change before it becomes stable.")
        _mark(target, AnnotationType.PUBLIC_API, api_group)
        target._annotated_stability = stability  # type: ignore[attr-defined]
        return target

    return _apply("PublicAPI", decorate, args)


def DeveloperAPI(*args: Any, api_group: str = "Others") -> Any:  # noqa: N802 (Ray's name)
    """For advanced users and for developers of libraries; it may change between minor versions."""

    def decorate(target: F) -> F:
        _append(target, "**DeveloperAPI:** for libraries; a minor version may change it.")
        _mark(target, AnnotationType.DEVELOPER_API, api_group)
        return target

    return _apply("DeveloperAPI", decorate, args)


def Deprecated(*args: Any, message: str = "", warning: bool = False) -> Any:  # noqa: N802 (Ray's name)
    """It will be removed.

    Args:
        args: what is decorated, when it is used without parentheses.
        message: what to use instead.
        warning: warn at each call (of a class: when it is instantiated).
    """
    text = message or "a later version will not have it"

    def decorate(target: Any) -> Any:
        _append(target, f"**DEPRECATED:** {text}")
        name = getattr(target, "__qualname__", repr(target))
        if warning and inspect.isclass(target):
            setattr(target, "__init__", _warning(target.__init__, name, text))
        elif warning:
            target = _warning(target, name, text)
        _mark(target, AnnotationType.DEPRECATED, "Others")
        return target

    return _apply("Deprecated", decorate, args)


def _apply(name: str, decorate: Callable[[Any], Any], args: tuple[Any, ...]) -> Any:
    if not args:
        return decorate
    if len(args) == 1 and callable(args[0]):
        return decorate(args[0])
    raise TypeError(f"@{name} is used as @{name}, or with keyword arguments only; it got {', '.join(map(repr, args))}")


def _warning(function: Callable[..., Any], name: str, text: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def warn(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"{name} is deprecated: {text}", RayDeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    return warn


def _append(target: Any, text: str) -> None:
    target.__doc__ = f"{inspect.cleandoc(target.__doc__ or '').rstrip()}\n\n{text}\n".lstrip("\n")


def _mark(target: Any, kind: AnnotationType, api_group: str) -> None:
    # The name tells what was decorated from a subclass, which inherits the attributes.
    target._annotated = target.__name__
    target._annotated_type = kind
    target._annotated_api_group = api_group
