"""``@moray.method``: the options of an actor's method, and for checkers its types."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Literal, Unpack, overload

from moray.runtime import actor_meta
from moray.typed_calls import (
    CountedMethodDecorator,
    Generating,
    Item,
    Method,
    MethodDecorator,
    MethodKeywords,
    OpenFunction,
    P,
    R,
    Several,
    StaticMethod,
    Undeclared,
)

if TYPE_CHECKING:
    from moray.object_ref import ObjectRef
    from moray.object_ref_generator import ObjectRefGenerator


@overload
def method(function: StaticMethod, /) -> StaticMethod: ...  # type: ignore[overload-overlap]
@overload
def method(function: OpenFunction, /) -> Any: ...
@overload
def method(function: Callable[Concatenate[Any, P], Undeclared], /) -> Method[P, ObjectRef[Any], Any]: ...
@overload
def method(
    function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
) -> Method[P, ObjectRef[R], Coroutine[Any, Any, R]]: ...
@overload
def method(  # type: ignore[overload-overlap]
    function: Callable[Concatenate[Any, P], Generating[Item]], /
) -> Method[P, ObjectRefGenerator[Item], Generating[Item]]: ...
@overload
def method(function: Callable[Concatenate[Any, P], R], /) -> Method[P, ObjectRef[R], R]: ...
@overload
def method(**options: Unpack[MethodKeywords]) -> MethodDecorator: ...
@overload
def method(*, num_returns: Literal[0], **options: Unpack[MethodKeywords]) -> CountedMethodDecorator[None]: ...
@overload
def method(
    *, num_returns: Several, **options: Unpack[MethodKeywords]
) -> CountedMethodDecorator[list[ObjectRef[Any]]]: ...
@overload
def method(*, num_returns: Literal[1, "streaming"] | None, **options: Unpack[MethodKeywords]) -> MethodDecorator: ...  # type: ignore[overload-overlap]
@overload
def method(*, num_returns: int | str, **options: Unpack[MethodKeywords]) -> CountedMethodDecorator[Any]: ...
def method(*args: Any, **options: Any) -> Any:
    """Give a method of an actor class options: ``@moray.method(num_returns=2)``; without options it changes nothing.

    Args:
        args: the function, when it is used without parentheses.
        options: num_returns, concurrency_group, max_task_retries (how often a call is repeated when the actor's
            process dies; -1: without end), retry_exceptions (True or a list of exception classes: which errors of the
            method are repeated too), ``_generator_backpressure_num_objects``; enable_task_events and tensor_transport
            are accepted.

    Raises:
        ValueError: an unknown option (the nearest valid one is named) or a value out of range.
        TypeError: a value of the wrong type, or something that is no function was decorated.

    Example:
        >>> import moray
        >>> @moray.remote
        ... class Pairs:
        ...     @moray.method(num_returns=2)
        ...     def split(self, pair):
        ...         return pair
        >>> first, second = Pairs.remote().split.remote((1, 2))
        >>> moray.get([first, second])
        [1, 2]
    """
    if len(args) == 1 and not options and (callable(args[0]) or isinstance(args[0], (staticmethod, classmethod))):
        return args[0]
    if args:
        raise TypeError(
            "@moray.method is used on a function, or with keyword options, such as @moray.method(num_returns=2); "
            f"it got {', '.join(map(repr, args))}"
        )
    checked = actor_meta.check_options(options, actor_meta.METHOD_CHECKS, "@moray.method")

    def decorate(function: Any) -> Any:
        if not callable(function) and not isinstance(function, (staticmethod, classmethod)):
            raise TypeError(f"@moray.method decorates methods, not {function!r:.80}")
        setattr(function, actor_meta.METHOD_OPTIONS, checked)
        return function

    return decorate
