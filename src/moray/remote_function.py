"""``@remote`` functions: what ``.remote()`` and ``.options()`` do before the runtime takes over."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from _thread import RLock
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

from moray.config import env_int, env_name
from moray.core.leases import Durations
from moray.options import TaskOptions
from moray.protocol import messages as m
from moray.runtime import state
from moray.runtime.arguments import LargeArguments, Prepared, prepare
from moray.runtime.signatures import Signature, parameters_of
from moray.runtime.strategies import strategy_of
from moray.runtime.tasks import Function, TaskSettings
from moray.serialization import dumps_code
from moray.typed_calls import Called, P, R, Several, TaskKeywords, typed

if TYPE_CHECKING:
    from moray.dag.nodes import FunctionNode
    from moray.object_ref import ObjectRef
    from moray.object_ref_generator import DynamicObjectRefGenerator, ObjectRefGenerator
    from moray.runtime.local_mode import LocalRuntime
    from moray.runtime.runtime import Runtime

_function_numbers = itertools.count(1)


class RemoteFunction(Called[P, R]):
    """A function that runs in a worker when its ``remote`` method is called.

    Made by :func:`moray.remote`. It can be passed to tasks and put into objects like any value. Its types are the
    function's parameters and what a call gives: ``RemoteFunction[[int, str], ObjectRef[bool]]``.

    Example:
        >>> import moray
        >>> @moray.remote
        ... def square(x):
        ...     return x * x
        >>> moray.get(square.remote(4))
        16
    """

    if TYPE_CHECKING:
        __name__: str
        __qualname__: str
        #: The function itself.
        __wrapped__: Callable[P, Any]

    def __init__(self, function: Callable[..., Any], options: TaskOptions, exported: _Exported | None = None) -> None:
        if inspect.iscoroutinefunction(function):
            name = getattr(function, "__qualname__", function)
            raise ValueError(
                f"{name} is an 'async def' function, and tasks have no event loop: "
                "make it a method of an actor, or have an ordinary task call it by asyncio.run()"
            )
        functools.update_wrapper(cast("Any", self), function)
        self._function = function
        self._function_name = getattr(function, "__name__", type(function).__name__)
        self._options = options
        #: Shared by all `.options()` variants of this function.
        self._exported = exported or _Exported(function, self._function_name)
        #: What a call needs, for the current runtime and the placement group that calls inherit.
        self._settings: tuple[Runtime, TaskSettings, m.Placement | None] | None = None

    if not TYPE_CHECKING:  # A checker says so before the program runs.

        def __call__(self, *_args, **_kwargs):
            name = self._function_name
            raise TypeError(
                f"a remote function is called with .remote(): write {name}.remote(...), "
                f"or {name}.__wrapped__(...) to run it right here"
            )

    @typed
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a call; arguments as for the function itself, ObjectRefs stand for their values.

        Returns:
            An ObjectRef; a list of them if ``num_returns`` is over 1; None if it is 0. For a generator function, unless
            ``num_returns`` says otherwise, an :class:`~moray.ObjectRefGenerator`.

        Raises:
            TypeError: the arguments do not fit the function's signature, or one of them cannot be pickled.
        """
        runtime = state.runtime
        cached = self._settings
        if cached is None or cached[0] is not runtime or cached[2] is not runtime.captured:
            runtime, settings = self._prepare()
        else:
            settings = cached[1]
        exported = self._exported
        if not args and not kwargs and not exported.needs_arguments:
            return runtime.submitter.submit(exported.function, settings, None)  # type: ignore[arg-type]
        exported.check(args, kwargs)
        prepared: Prepared = prepare(runtime.values, args, kwargs, self._function_name, exported.large)
        return runtime.submitter.submit(exported.function, settings, prepared)  # type: ignore[arg-type]

    @overload
    def options(self, **overrides: Unpack[TaskKeywords]) -> RemoteFunction[P, R]: ...
    @overload
    def options(self, *, num_returns: Literal[0], **overrides: Unpack[TaskKeywords]) -> RemoteFunction[P, None]: ...
    @overload
    def options(self, *, num_returns: Literal[1] | None, **overrides: Unpack[TaskKeywords]) -> RemoteFunction[P, R]: ...
    @overload
    def options(
        self, *, num_returns: Several, **overrides: Unpack[TaskKeywords]
    ) -> RemoteFunction[P, list[ObjectRef[Any]]]: ...
    @overload
    def options(
        self, *, num_returns: Literal["streaming"], **overrides: Unpack[TaskKeywords]
    ) -> RemoteFunction[P, ObjectRefGenerator[Any]]: ...
    @overload
    def options(
        self, *, num_returns: Literal["dynamic"], **overrides: Unpack[TaskKeywords]
    ) -> RemoteFunction[P, ObjectRef[DynamicObjectRefGenerator]]: ...
    @overload
    def options(self, *, num_returns: int | str, **overrides: Unpack[TaskKeywords]) -> RemoteFunction[P, Any]: ...
    def options(self, **overrides: Any) -> RemoteFunction[P, Any]:
        """This function with other options for the calls made through the result.

        Raises:
            ValueError: an unknown option (the nearest valid one is named), a value out of range, or `max_calls`, which
                belongs to the function itself.
            TypeError: a value of the wrong type.
        """
        if "max_calls" in overrides:
            raise ValueError("max_calls belongs to the function: give it to @moray.remote, not to .options()")
        return RemoteFunction(self._function, self._options.merge(**overrides), self._exported)

    def _remote(self, args: Any = (), kwargs: Any = None, **options: Any) -> Any:
        """A call with options, in one step; not documented by Ray either, but used."""
        return self.options(**options).remote(*args, **(kwargs or {}))

    @property
    def _default_options(self) -> dict[str, Any]:
        return {name: getattr(self._options, name) for name in self._options.given}

    def bind(self, *args: Any, **kwargs: Any) -> FunctionNode:
        """A step of a graph (:mod:`moray.dag`) that calls this function; arguments may be other steps."""
        from moray.dag.nodes import FunctionNode

        self._exported.check(args, kwargs)
        return FunctionNode(self, args, kwargs)

    def _prepare(self) -> tuple[Runtime, TaskSettings]:
        from moray.api import connected

        runtime = connected()
        # Late, so that a program loads them only once it is connected; the runtime has, whole (INTERRUPT).
        from moray.runtime.groups import groups_of, placement_of
        from moray.runtime.packages import environment_key

        options = self._options
        num_returns = options.num_returns
        if num_returns is None:
            num_returns = "streaming" if _is_generator(self._function) else 1
        stream = None
        if isinstance(num_returns, str):
            ahead, dynamic = options._generator_backpressure_num_objects, num_returns == "dynamic"
            # Of a dynamic one, nobody can take an item before all are made: it waits for nobody.
            stream = m.StreamSpec(0, -1 if ahead is None or dynamic else ahead, dynamic)
            num_returns = 1
        function = self._exported.export(runtime, options.calls_per_worker())
        resources = options.resources_units()
        strategy = strategy_of(options, runtime.infeasible)
        key, captured = environment_key(runtime, options.runtime_env or {}), runtime.captured
        group, placement, need = placement_of(runtime, options, resources, f"{self._function_name}()")
        if group is None or placement is None:
            pool: Any = runtime.submitter.pool(resources, key, self._function_name, strategy)
        else:
            pool = groups_of(runtime).pool(group, need, key, self._function_name, strategy, placement.index)
        name = options.name or self._function_name
        extra = self._extra(options, num_returns, resources, name, stream, placement)
        retries = options.max_retries if "max_retries" in options.given else _default_retries()
        settings = TaskSettings(pool, name, retries, num_returns, extra)
        settings.streaming = stream is not None
        settings.retries_errors = options.retry_exceptions is not False
        self._exported.function = function
        self._settings = (runtime, settings, captured)
        return runtime, settings

    def _extra(
        self,
        options: TaskOptions,
        num_returns: int,
        resources: m.Resources,
        name: str,
        stream: m.StreamSpec | None,
        placement: m.Placement | None,
    ) -> m.TaskExtra | None:
        """What the worker must know beside function and arguments; None for ordinary tasks."""
        retry: bool | bytes | None = None
        if options.retry_exceptions is True:
            retry = True
        elif options.retry_exceptions:
            retry = dumps_code(options.retry_exceptions)[0]
        ordinary = (
            num_returns == 1 and retry is None and name == self._function_name and resources == {"CPU": m.RESOURCE_UNIT}
        )
        if ordinary and stream is None and placement is None and not _is_generator(self._function):
            return None
        return m.TaskExtra(
            num_returns=num_returns,
            retry=retry,
            name=name if name != self._function_name else "",
            resources=resources,
            stream=stream,
            placement=placement,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_function": self._function, "_options": self._options}

    def __setstate__(self, own: dict[str, Any]) -> None:
        self.__init__(own["_function"], own["_options"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"RemoteFunction({self.__module__}.{self._function_name})"


class _Exported:
    """A function's pickle for the current runtime, and what checks its calls."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._source = function
        self._name = name
        self._runtime: Runtime | None = None
        self._by_max_calls: dict[int, Function] = {}
        self.function: Function | None = None
        self.large = LargeArguments()
        self._signature = Signature(parameters_of(function))
        self.needs_arguments = self._signature.needs_arguments

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise the TypeError that the call itself would raise for arguments that do not fit."""
        self._signature.check(self._name, args, kwargs)

    def export(self, runtime: Runtime, max_calls: int) -> Function:
        """Pickle the function, once per runtime."""
        if self._runtime is not runtime:
            self._runtime = runtime
            self._by_max_calls = {}
        function = self._by_max_calls.get(max_calls)
        if function is None:
            any_other = next(iter(self._by_max_calls.values()), None)
            if any_other is not None:
                blob, contained = any_other.blob, any_other.contained
            else:
                modules = {getattr(self._source, "__module__", "")}
                blob, contained = dump_code(runtime, self._source, modules, f"the function {self._name}()")
            function = Function(next(_function_numbers), self._name, blob, max_calls, Durations(), contained)
            self._by_max_calls[max_calls] = function
        return function


#: Held while modules are registered with cloudpickle, whose register is the process's.
_registering = RLock()


def dump_code(runtime: Runtime, source: Any, modules: set[str], what: str) -> tuple[bytes, list[Any]]:
    """The pickle of a function or class, and the references that it closes over.

    What belongs to `modules` that workers cannot import is pickled by value. `what` names it in errors.
    """
    if runtime.kind == "local":
        return cast("LocalRuntime", runtime).keep_code(source), []
    import cloudpickle

    with _registering:
        by_value = []
        try:
            for name in modules:
                module = sys.modules.get(name or "")
                registered = name in cloudpickle.list_registry_pickle_by_value()
                if module is not None and not registered and not runtime.can_import(module):
                    cloudpickle.register_pickle_by_value(module)
                    by_value.append(module)
            return dumps_code(source)
        except RecursionError:
            raise
        except Exception as error:
            from moray.runtime.values import unpicklable

            raise unpicklable(source, what, error) from error
        finally:
            for module in by_value:
                cloudpickle.unregister_pickle_by_value(module)


def _default_retries() -> int:
    """`max_retries` of functions that were not given any: the environment may say it for all of a program's."""
    retries = env_int("TASK_MAX_RETRIES", TaskOptions().max_retries)
    if retries < -1:
        raise ValueError(
            f"the environment variable {env_name('TASK_MAX_RETRIES')}={retries} should be 0 or more, or -1 for no limit"
        )
    return retries


def _is_generator(function: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
