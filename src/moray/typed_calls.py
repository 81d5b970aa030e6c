"""What type checkers know of ``.remote()``: parameters and result of the function behind it.

Nothing here does anything when a program runs. :func:`typed` gives its argument back, so that ``remote`` stays one
plain method; for a checker it is an attribute whose call is :class:`RemoteCall`.

Python's types cannot say "these parameters, each as itself or as a reference to it". What comes nearest is a list of
overloads, one for each way to put references into the first three positions (the last reference decides which; what
follows is checked as the function says). A reference in positions four to eight is accepted with the rest unchecked.
``A | ObjectRef[A]`` would be shorter, but mypy infers Never for A as soon as a reference follows.

docs/typing.md says what is checked and what is not.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    final,
    overload,
)

if TYPE_CHECKING:
    import typing_extensions

    from moray.actor import ActorClass, ActorHandle, ActorMethod
    from moray.object_ref import ObjectRef
    from moray.object_ref_generator import ObjectRefGenerator
    from moray.remote_function import RemoteFunction

#: True for mypy, by its convention; pyright sees the alternatives that stand last.
MYPY = False

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
Item = TypeVar("Item")
Plain = TypeVar("Plain")
StaticMethod = TypeVar("StaticMethod", bound="staticmethod[Any, Any] | classmethod[Any, Any, Any]")
if TYPE_CHECKING:
    #: A constructor's parameters; `ActorClass[T]` leaves them open.
    Parameters = typing_extensions.ParamSpec("Parameters", default=...)
else:
    Parameters = ParamSpec("Parameters")


# --- calls ---------------------------------------------------------------------------------------


class Called(Generic[P, R]):
    """What has a ``.remote(...)`` with parameters P that gives R."""

    __slots__ = ()


class RemoteCall(Generic[P, R]):
    """The call of ``.remote`` for checkers; no object is of this type."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(
        self: RemoteCall[Concatenate[A, Q], R], a: ObjectRef[A], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> R: ...
    @overload
    def __call__(
        self: RemoteCall[Concatenate[A, B, Q], R], a: A, b: ObjectRef[B], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> R: ...
    @overload
    def __call__(
        self: RemoteCall[Concatenate[A, B, Q], R],
        a: ObjectRef[A],
        b: ObjectRef[B],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def __call__(
        self: RemoteCall[Concatenate[A, B, C, Q], R], a: A, b: B, c: ObjectRef[C], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> R: ...
    @overload
    def __call__(
        self: RemoteCall[Concatenate[A, B, C, Q], R],
        a: A,
        b: ObjectRef[B],
        c: ObjectRef[C],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def __call__(
        self: RemoteCall[Concatenate[A, B, C, Q], R],
        a: ObjectRef[A],
        b: B,
        c: ObjectRef[C],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def __call__(
        self: RemoteCall[Concatenate[A, B, C, Q], R],
        a: ObjectRef[A],
        b: ObjectRef[B],
        c: ObjectRef[C],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> R: ...
    @overload
    def __call__(self, a: Any, b: Any, c: Any, d: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> R: ...
    @overload
    def __call__(self, a: Any, b: Any, c: Any, d: Any, e: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> R: ...
    @overload
    def __call__(
        self, a: Any, b: Any, c: Any, d: Any, e: Any, f: ObjectRef[Any], /, *args: Any, **kwargs: Any
    ) -> R: ...
    @overload
    def __call__(
        self, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: ObjectRef[Any], /, *args: Any, **kwargs: Any
    ) -> R: ...
    @overload
    def __call__(
        self, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: ObjectRef[Any], /, *args: Any, **kwargs: Any
    ) -> R: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
        """See the overloads."""
        raise NotImplementedError


class TypedRemote:
    """``remote`` as an attribute, for checkers."""

    @overload
    def __get__(self, instance: None, owner: object) -> Callable[..., Any]: ...
    @overload  # Only what mypy has made of an ambiguous function, Called[Any, Any], fits here.
    def __get__(self, instance: Called[[Undeclared], Undeclared], owner: object) -> Any: ...
    @overload
    def __get__(self, instance: Called[P, R], owner: object) -> RemoteCall[P, R]: ...
    def __get__(self, instance: Any, owner: object) -> Any:
        """See the overloads."""
        raise NotImplementedError


def typed(function: Callable[..., Any]) -> TypedRemote:
    """`function` itself, which checkers take for a :class:`TypedRemote`."""
    return function  # type: ignore[return-value]


# --- functions and classes that are made remote --------------------------------------------------


@final
class Undeclared:
    """No function returns this: only a result that is not declared (Any) fits it, and so has an overload to itself."""


Generating: TypeAlias = Generator[Item, Any, Any] | Iterator[Item] | AsyncGenerator[Item, Any] | AsyncIterator[Item]


class Constructor(Protocol[P, R_co]):
    """A class, by its constructor. pyright converts a ``type[T]`` to it, mypy does not."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


if MYPY:

    class OpenFunction(Protocol):
        """A function whose result may be anything. mypy finds all overloads fit if it is Any, and joins them to a type
        that takes no call; it loses T of ``T -> T``. So for mypy such functions become Any as a whole.
        """

        def __call__(self, *args: Any, **kwargs: Any) -> Undeclared: ...

    class Class(Protocol[P, R_co]):
        """A class, and no function, with its constructor's parameters, as only mypy can infer them."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
        def mro(self) -> list[type]: ...

else:

    class OpenFunction(Protocol):
        """Nothing: pyright keeps generic functions."""

        def _never(self) -> None: ...

    class Class(Protocol[P, R_co]):
        """Nothing: pyright infers a constructor's parameters from the class, see :class:`TypedCreation`."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
        def _never(self) -> None: ...


class RemoteDecorator(Protocol):
    """``@remote(...)`` with options that leave the result as it is."""

    @overload
    def __call__(self, kind: Class[P, T], /) -> ActorClass[T, P]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, kind: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: OpenFunction, /) -> Any: ...
    @overload
    def __call__(self, function: Callable[P, Undeclared], /) -> RemoteFunction[P, ObjectRef[Any]]: ...
    @overload
    def __call__(self, function: Callable[P, Generating[Item]], /) -> RemoteFunction[P, ObjectRefGenerator[Item]]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...


class CountedDecorator(Protocol[R]):
    """``@remote(num_returns=…)``: the option decides what a call gives."""

    def __call__(self, function: Callable[P, Any], /) -> RemoteFunction[P, R]: ...


#: Numbers for which a call gives a list; of others a checker knows nothing.
Several: TypeAlias = Literal[2, 3, 4, 5, 6, 7, 8, 9, 10]


# --- actors --------------------------------------------------------------------------------------


class TypedActor:
    """Base of actor classes whose methods all have ``@moray.method``: checkers then check the calls through handles.

    It has no contents. A handle of such a class is an ``ActorProxy`` for checkers, otherwise an ``ActorHandle``, on
    which every method is accepted with any arguments.

    Example:
        >>> import moray
        >>> @moray.remote
        ... class Counter(moray.actor.TypedActor):
        ...     def __init__(self, start: int) -> None:
        ...         self.value = start
        ...     @moray.method
        ...     def add(self, x: int) -> int:
        ...         self.value += x
        ...         return self.value
        >>> counter = Counter.remote(1)
        >>> moray.get(counter.add.remote(2))
        3
    """

    __slots__ = ()


TA = TypeVar("TA", bound=TypedActor)


class HasClass(Protocol[R_co]):
    """An :class:`ActorClass`, by the class that it has."""

    @property
    def __ray_actor_class__(self) -> R_co: ...


class TypedCreation:
    """``ActorClass.remote`` as an attribute, for checkers: pyright takes the first two, mypy the others."""

    @overload
    def __get__(self, instance: None, owner: object) -> Callable[..., Any]: ...
    @overload
    def __get__(self, instance: HasClass[Constructor[P, TA]], owner: object) -> RemoteCall[P, type[TA]]: ...
    @overload
    def __get__(self, instance: HasClass[Constructor[P, T]], owner: object) -> RemoteCall[P, ActorHandle[T]]: ...
    @overload
    def __get__(self, instance: ActorClass[TA, P], owner: object) -> RemoteCall[P, type[TA]]: ...
    @overload
    def __get__(self, instance: ActorClass[T, P], owner: object) -> RemoteCall[P, ActorHandle[T]]: ...
    def __get__(self, instance: Any, owner: object) -> Any:
        """See the overloads."""
        raise NotImplementedError


def typed_creation(function: Callable[..., Any]) -> TypedCreation:
    """`function` itself, which checkers take for a :class:`TypedCreation`."""
    return function  # type: ignore[return-value]


class Method(Generic[P, R, Plain]):
    """A function under ``@moray.method``, for checkers: remote through a handle, an ordinary method in the actor."""

    @overload
    def __get__(self, instance: None, owner: object) -> ActorMethod[P, R]: ...
    @overload
    def __get__(self, instance: object, owner: object) -> Callable[P, Plain]: ...
    def __get__(self, instance: object, owner: object) -> Any:
        """See the overloads."""
        raise NotImplementedError


class MethodDecorator(Protocol):
    """``@moray.method(...)`` with options that leave the result as it is."""

    @overload
    def __call__(self, function: StaticMethod, /) -> StaticMethod: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: OpenFunction, /) -> Any: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Undeclared], /) -> Method[P, ObjectRef[Any], Any]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> Method[P, ObjectRef[R], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Any, P], Generating[Item]], /
    ) -> Method[P, ObjectRefGenerator[Item], Generating[Item]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Method[P, ObjectRef[R], R]: ...


class CountedMethodDecorator(Protocol[R]):
    """``@moray.method(num_returns=…)``: the option decides what a call gives."""

    @overload
    def __call__(self, function: StaticMethod, /) -> StaticMethod: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Plain], /) -> Method[P, R, Plain]: ...


# --- options -------------------------------------------------------------------------------------


class CommonOptions(TypedDict, total=False):
    """What tasks and actors have in common; :mod:`moray.options` checks names and values when the program runs."""

    label_selector: Mapping[str, str] | None
    fallback_strategy: list[dict[str, Any]] | None
    infeasible: Literal["wait", "error"] | None
    accelerator_type: str | None
    memory: float | None
    name: str | None
    num_cpus: float | None
    num_gpus: float | None
    placement_group: Any
    placement_group_bundle_index: int | None
    placement_group_capture_child_tasks: bool | None
    resources: Mapping[str, float] | None
    runtime_env: Mapping[str, Any] | None
    scheduling_strategy: Any
    enable_task_events: bool | None
    _labels: Mapping[str, str] | None
    _metadata: Mapping[str, Any] | None


class OnlyTaskOptions(TypedDict, total=False):
    """Options of remote functions alone, but for num_returns, which overloads look at."""

    max_calls: int | None
    max_retries: int | None
    retry_exceptions: bool | Sequence[type[BaseException]] | None
    _generator_backpressure_num_objects: int | None
    _num_objects_per_yield: int | None


class TaskKeywords(CommonOptions, OnlyTaskOptions, total=False):
    """Keywords of ``function.options()``."""


class ActorKeywords(CommonOptions, total=False):
    """Keywords of ``ActorClass.options()``."""

    object_store_memory: int | None
    concurrency_groups: Mapping[str, int] | Sequence[Mapping[str, Any]] | None
    enable_tensor_transport: bool | None
    lifetime: Literal["detached", "non_detached"] | None
    max_concurrency: int | None
    max_restarts: int | None
    max_task_retries: int | None
    max_pending_calls: int | None
    namespace: str | None
    get_if_exists: bool | None
    allow_out_of_order_execution: bool | None
    _actor_generator_backpressure_num_objects: int | None


class RemoteKeywords(ActorKeywords, OnlyTaskOptions, total=False):
    """Keywords of ``@remote``, which may stand on either."""


class MethodKeywords(TypedDict, total=False):
    """Keywords of ``@moray.method``, but for num_returns."""

    concurrency_group: str | None
    max_task_retries: int | None
    retry_exceptions: bool | Sequence[type[BaseException]] | None
    enable_task_events: bool | None
    tensor_transport: str | None
    _generator_backpressure_num_objects: int | None
    _num_objects_per_yield: int | None


class CallKeywords(MethodKeywords, total=False):
    """Keywords of ``handle.method.options()``."""

    name: str | None
