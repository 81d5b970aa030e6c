"""``@remote`` functions: what ``.remote()`` and ``.options()`` do before the runtime takes over."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from moray.core.leases import Durations
from moray.options import TaskOptions
from moray.protocol import messages as m
from moray.runtime import state
from moray.runtime.arguments import LargeArguments, Prepared, prepare
from moray.runtime.tasks import Function, TaskSettings
from moray.serialization import dumps_code

if TYPE_CHECKING:
    from moray.runtime.runtime import Runtime

_function_numbers = itertools.count(1)


class RemoteFunction:
    """A function that runs in a worker when its ``remote`` method is called.

    Made by :func:`moray.remote`. It can be passed to tasks and put into objects like any value.

    Example:
        >>> import moray
        >>> @moray.remote
        ... def square(x):
        ...     return x * x
        >>> moray.get(square.remote(4))
        16
    """

    def __init__(self, function: Callable[..., Any], options: TaskOptions, exported: _Exported | None = None) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._function_name = getattr(function, "__name__", type(function).__name__)
        self._options = options
        #: Shared by all `.options()` variants of this function.
        self._exported = exported or _Exported(function, self._function_name)
        #: What a call needs, for the current runtime.
        self._settings: tuple[Runtime, TaskSettings] | None = None

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        name = self._function_name
        raise TypeError(
            f"a remote function is called with .remote(): write {name}.remote(...), "
            f"or {name}.__wrapped__(...) to run it right here"
        )

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a call; arguments as for the function itself, ObjectRefs stand for their values.

        Returns:
            An ObjectRef; a list of them if ``num_returns`` is over 1; None if it is 0.

        Raises:
            TypeError: the arguments do not fit the function's signature, or one of them cannot be pickled.
        """
        runtime = state.runtime
        cached = self._settings
        if cached is None or cached[0] is not runtime:
            runtime, settings = self._prepare()
        else:
            settings = cached[1]
        exported = self._exported
        if not args and not kwargs and not exported.needs_arguments:
            return runtime.submitter.submit(exported.function, settings, None)  # type: ignore[arg-type]
        exported.check(args, kwargs)
        prepared: Prepared = prepare(runtime.values, args, kwargs, self._function_name, exported.large)
        return runtime.submitter.submit(exported.function, settings, prepared)  # type: ignore[arg-type]

    def options(self, **overrides: Any) -> RemoteFunction:
        """This function with other options for the calls made through the result.

        Raises:
            ValueError: an unknown option (the nearest valid one is named) or a value out of range.
            TypeError: a value of the wrong type.
        """
        return RemoteFunction(self._function, self._options.merge(**overrides), self._exported)

    def bind(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Lazy task graphs are not there yet."""
        raise NotImplementedError("bind() (lazy task graphs) is not part of this version; call .remote()")

    def _prepare(self) -> tuple[Runtime, TaskSettings]:
        from moray.api import connected

        runtime = connected()
        options = self._options
        num_returns = options.num_returns
        if num_returns is None:
            num_returns = "streaming" if _is_generator(self._function) else 1
        if isinstance(num_returns, str):
            raise NotImplementedError(
                f"{self._function_name}() is a generator or has num_returns={num_returns!r}: streaming results are not "
                "part of this version; return a list, or give num_returns=<number>"
            )
        function = self._exported.export(runtime, options.calls_per_worker())
        resources = options.resources_units()
        environment = dict(options.runtime_env or {})
        pool = runtime.submitter.pool(resources, _environment_key(environment), self._function_name)
        name = options.name or self._function_name
        settings = TaskSettings(
            pool, name, options.max_retries, num_returns, self._extra(options, num_returns, resources, name)
        )
        settings.retries_errors = options.retry_exceptions is not False
        self._exported.function = function
        self._settings = (runtime, settings)
        return runtime, settings

    def _extra(self, options: TaskOptions, num_returns: int, resources: m.Resources, name: str) -> m.TaskExtra | None:
        """What the worker must know beside function and arguments; None for ordinary tasks."""
        retry: bool | bytes | None = None
        if options.retry_exceptions is True:
            retry = True
        elif options.retry_exceptions:
            retry = dumps_code(options.retry_exceptions)[0]
        ordinary = (
            num_returns == 1 and retry is None and name == self._function_name and resources == {"CPU": m.RESOURCE_UNIT}
        )
        if ordinary:
            return None
        return m.TaskExtra(
            num_returns=num_returns,
            retry=retry,
            name=name if name != self._function_name else "",
            resources=resources,
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
        self._signature: inspect.Signature | None = None
        #: How many positional arguments, at least and at most, surely fit.
        self._positional = (1, 0)
        self.needs_arguments = True
        self._inspect()

    def _inspect(self) -> None:
        try:
            self._signature = inspect.signature(self._source)
        except (TypeError, ValueError):
            return
        parameters = self._signature.parameters.values()
        named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = [p for p in parameters if p.default is p.empty and p.kind not in variadic]
        self.needs_arguments = bool(needed)
        if all(p.kind in named for p in needed):
            most = sum(p.kind in named for p in parameters)
            if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
                most = sys.maxsize
            self._positional = (len(needed), most)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise the TypeError that the call itself would raise for arguments that do not fit."""
        if not kwargs and self._positional[0] <= len(args) <= self._positional[1]:
            return
        if self._signature is not None:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{self._name}(): {error}") from None

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
                blob, contained = self._dump(runtime)
            function = Function(next(_function_numbers), self._name, blob, max_calls, Durations(), contained)
            self._by_max_calls[max_calls] = function
        return function

    def _dump(self, runtime: Runtime) -> tuple[bytes, list[Any]]:
        import cloudpickle

        module = sys.modules.get(getattr(self._source, "__module__", "") or "")
        by_value = module is not None and not runtime.can_import(module)
        if by_value:
            cloudpickle.register_pickle_by_value(module)
        try:
            return dumps_code(self._source)
        except RecursionError:
            raise
        except Exception as error:
            from moray.runtime.values import unpicklable

            raise unpicklable(self._source, f"the function {self._name}()", error) from error
        finally:
            if by_value:
                cloudpickle.unregister_pickle_by_value(module)


def _is_generator(function: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _environment_key(environment: dict[str, Any]) -> str:
    """The canonical text of a runtime environment; "" for the job's own."""
    if not environment:
        return ""
    import json

    try:
        return json.dumps(environment, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"option runtime_env must hold plain data (strings, numbers, lists, dicts): {error}") from None
