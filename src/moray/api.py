"""The functions that users call: init, remote, put, get, wait and their kin."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from moray import exceptions
from moray.object_ref import ObjectRef
from moray.object_ref_generator import ObjectRefGenerator
from moray.options import ActorOptions, TaskOptions
from moray.protocol import messages as m
from moray.remote_function import RemoteFunction
from moray.runtime import state
from moray.typed_calls import (
    Class,
    CountedDecorator,
    Generating,
    Item,
    OpenFunction,
    P,
    R,
    RemoteDecorator,
    RemoteKeywords,
    Several,
    T,
    Undeclared,
)

if TYPE_CHECKING:
    from moray.actor import ActorClass, ActorHandle
    from moray.object_ref_generator import DynamicObjectRefGenerator
    from moray.runtime.driver import Context
    from moray.runtime.runtime import Runtime
    from moray.typed_calls import TypedActor

Waitable = TypeVar("Waitable", bound="ObjectRef[Any] | ObjectRefGenerator[Any]")


def connected() -> Runtime:
    """This process's runtime; a local session is started if there is none."""
    runtime = state.runtime
    if runtime is None:
        init()
        runtime = state.runtime
        assert runtime is not None
    elif runtime.ended is not None or runtime.forked:
        runtime.check_usable()
    return runtime


def init(address: str | None = None, **options: Any) -> Context:  # noqa: D417 - each option is described by its name.
    """Start a local session, or connect to a running one.

    Args:
        address: None starts a session that ends with this process (unless MORAY_ADDRESS or RAY_ADDRESS names one);
            "local" always starts one; "auto" connects to the newest session of this user on this machine;
            "HOST:PORT" the cluster whose head is there, and "moray://HOST:PORT" the same through that one port, from
            where nobody can connect to; otherwise the ``address_info["address"]`` of a session.
        num_cpus: logical CPUs of the session. Default: the CPUs that this process may use (affinity, cgroup).
        num_gpus: logical GPUs. Default: those that are there.
        resources: custom resources, name → amount.
        labels: labels of the node, name → value; see ``label_selector`` in the options of tasks.
        infeasible: what becomes of tasks and actors that no node can run: they wait for a node that can ("wait", the
            default), or fail ("error"). The variable MORAY_INFEASIBLE says the same.
        object_store_memory: capacity of the shared-memory store in bytes. Default: 30 % of the memory.
        local_mode: run everything in this process and in the calling thread, one step after another, for debugging:
            breakpoints work, nothing is started, and nothing runs at the same time as anything else.
        ignore_reinit_error: return the present session's context instead of raising if there is one.
        include_dashboard, dashboard_host, dashboard_port: accepted; there is no dashboard in this version.
        job_config: accepted; its ``runtime_env`` and ``ray_namespace`` are used.
        configure_logging: set up the logger "moray" (the default), with logging_level and logging_format.
        logging_config: a :class:`moray.LoggingConfig` for the root logger of the driver and of every worker.
        log_to_driver: print what workers print (the default).
        namespace: the job's namespace.
        runtime_env: for all workers of the job: ``{"env_vars": {...}, "working_dir": path, "py_modules": [...],
            "excludes": [...]}``, each optional.
        enable_resource_isolation, cgroup_path, system_reserved_cpu, system_reserved_memory: accepted; without
            meaning here.
        proxy_server_url: accepted; without meaning here.
        _system_config: internal settings, such as ``object_spilling_directory``.
        _temp_dir: where the session's directory is made. Default: the system's temporary directory.

    Returns:
        A context: ``address_info``, ``dashboard_url``; as a ``with`` block it calls :func:`shutdown` at the end.

    Raises:
        RuntimeError: a session is there already.
        ConnectionError: there is no session at `address`.
        TypeError: an unknown argument; the nearest valid one is named.

    Example:
        >>> import moray
        >>> with moray.init(num_cpus=2, ignore_reinit_error=True):
        ...     pass
    """
    from moray.runtime import driver

    return driver.init(address, **options)


def shutdown(*, wait_for_processes: bool = False, _exiting_interpreter: bool = False) -> None:  # noqa: ARG001 - Ray's
    """End this process's session, or its connection to one. Without one it does nothing.

    Everything of a local session has gone when this returns: processes, shared memory, files.

    Args:
        wait_for_processes: accepted; it is always so.
    """
    if state.runtime is None:
        return
    from moray.runtime import driver

    driver.shutdown()


def is_initialized() -> bool:
    """Whether this process is connected to a session."""
    runtime = state.runtime
    return runtime is not None and runtime.ended is None and not runtime.forked


@overload
def remote(kind: Class[P, T], /) -> ActorClass[T, P]: ...  # type: ignore[overload-overlap]
@overload
def remote(kind: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
@overload
def remote(function: OpenFunction, /) -> Any: ...
@overload
def remote(function: Callable[P, Undeclared], /) -> RemoteFunction[P, ObjectRef[Any]]: ...
@overload
def remote(function: Callable[P, Generating[Item]], /) -> RemoteFunction[P, ObjectRefGenerator[Item]]: ...  # type: ignore[overload-overlap]
@overload
def remote(function: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...
@overload
def remote(**options: Unpack[RemoteKeywords]) -> RemoteDecorator: ...
@overload
def remote(*, num_returns: Literal[0], **options: Unpack[RemoteKeywords]) -> CountedDecorator[None]: ...
@overload
def remote(*, num_returns: Several, **options: Unpack[RemoteKeywords]) -> CountedDecorator[list[ObjectRef[Any]]]: ...
@overload
def remote(*, num_returns: Literal[1, "streaming"] | None, **options: Unpack[RemoteKeywords]) -> RemoteDecorator: ...
@overload
def remote(
    *, num_returns: Literal["dynamic"], **options: Unpack[RemoteKeywords]
) -> CountedDecorator[ObjectRef[DynamicObjectRefGenerator]]: ...
@overload
def remote(*, num_returns: int | str, **options: Unpack[RemoteKeywords]) -> CountedDecorator[Any]: ...
def remote(*args: Any, **options: Any) -> Any:
    """Make a function or class remote: ``@remote``, or ``@remote(num_cpus=2, …)`` with options.

    Calls of the function run in workers (:class:`~moray.remote_function.RemoteFunction`); instances of the class are
    actors, each in a worker of its own (:class:`~moray.actor.ActorClass`).

    Raises:
        ValueError: an unknown option (the nearest valid one is named) or a value out of range.
        TypeError: something other than a function or class was decorated.

    Example:
        >>> import moray
        >>> @moray.remote(num_cpus=0.5)
        ... def add(a, b=1):
        ...     return a + b
        >>> moray.get(add.remote(2))
        3
    """
    if len(args) == 1 and not options and callable(args[0]):
        return _make_remote(args[0], {})
    if args or not options:
        raise TypeError(
            "@remote is used as @remote, or with keyword options only, such as @remote(num_cpus=2); "
            f"it got {', '.join(map(repr, args)) or 'empty parentheses'}"
        )

    def decorate(target: Callable[..., Any]) -> Any:
        return _make_remote(target, options)

    return decorate


def _make_remote(target: Any, options: dict[str, Any]) -> Any:
    if inspect.isclass(target):
        from moray.actor import ActorClass

        return ActorClass(target, ActorOptions.make(options))
    if isinstance(target, RemoteFunction) or hasattr(type(target), "__ray_actor_class__") or not callable(target):
        raise TypeError(f"@remote makes functions and classes remote, not {target!r}")
    return RemoteFunction(target, TaskOptions.make(options))


def put(value: T, *, _owner: Any = None, _tensor_transport: str | None = None) -> ObjectRef[T]:
    """Store a value and return a reference to it. Later changes of `value` do not change the object.

    Args:
        value: anything that pickles; arrays are stored without a second copy and read without any.
        _owner: accepted; the owner is always this process.
        _tensor_transport: accepted; without meaning here.

    Raises:
        TypeError: `value` is an ObjectRef, or cannot be pickled; the message names the part.
        ObjectStoreFullError: neither memory nor disk has room.

    Example:
        >>> import moray
        >>> moray.get(moray.put("hello"))
        'hello'
    """
    return connected().values.put(value)


@overload
def get(object_refs: ObjectRef[T], *, timeout: float | None = None, _use_object_store: bool = False) -> T: ...
@overload
def get(
    object_refs: Sequence[ObjectRef[T]], *, timeout: float | None = None, _use_object_store: bool = False
) -> list[T]: ...
def get(object_refs: Any, *, timeout: float | None = None, _use_object_store: bool = False) -> Any:
    """The value of a reference, or the list of values of a list of references, in its order.

    Args:
        object_refs: an ObjectRef, or a sequence of them.
        timeout: seconds to wait at most; 0 only looks. None waits as long as it takes.
        _use_object_store: accepted; without meaning here.

    Raises:
        TaskError: the task raised; it is also of the type that was raised. Of several the first known is raised.
        GetTimeoutError: a value was not ready in time (it is also a TimeoutError).
        ObjectLostError, WorkerCrashedError: see there.
        TypeError: something else than a reference was given (it is also a ValueError).

    Example:
        >>> import moray
        >>> moray.get([moray.put(1), moray.put(2)])
        [1, 2]
    """
    runtime = state.runtime
    if runtime is None or runtime.ended is not None or runtime.forked:
        runtime = connected()
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout={timeout}: give seconds ≥ 0, or None to wait without a limit")
    if type(object_refs) is ObjectRef:
        return runtime.values.get_one(object_refs, timeout)
    compiled = sys.modules.get("moray.dag.compiled")  # Whoever has a result of a compiled graph has imported it.
    if compiled is not None:
        if isinstance(object_refs, compiled.CompiledDAGRef):
            return object_refs.get(timeout)
        if isinstance(object_refs, (list, tuple)) and any(isinstance(r, compiled.CompiledDAGRef) for r in object_refs):
            return compiled.get_all(object_refs, timeout)
    if isinstance(object_refs, (list, tuple)):
        for ref in object_refs:
            if type(ref) is not ObjectRef:
                raise exceptions.NotAReferenceError(f"get() takes ObjectRefs; the list contains {_shown(ref)}")
        return runtime.values.get_many(object_refs, timeout)
    if type(object_refs) is ObjectRefGenerator:
        return object_refs  # As in Ray: what holds the items is the generator itself.
    raise exceptions.NotAReferenceError(f"get() takes an ObjectRef or a list of ObjectRefs, not {_shown(object_refs)}")


@overload
def wait(
    ray_waitables: list[Waitable],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Waitable], list[Waitable]]: ...
@overload
def wait(  # type: ignore[overload-cannot-match]
    ray_waitables: list[ObjectRef[Any] | ObjectRefGenerator[Any]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef[Any] | ObjectRefGenerator[Any]], list[ObjectRef[Any] | ObjectRefGenerator[Any]]]: ...
def wait(
    ray_waitables: list[Any],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,  # noqa: ARG001 - Ray's; see the docstring.
) -> tuple[list[Any], list[Any]]:
    """Wait until `num_returns` of the references are ready, or `timeout` seconds have passed.

    Args:
        ray_waitables: distinct references. A generator's ObjectRefGenerator may stand among them: it is ready when its
            next item is there, or its end.
        num_returns: how many to wait for, 1 to ``len(ray_waitables)``.
        timeout: seconds; 0 only looks. None waits as long as it takes.
        fetch_local: accepted; on one machine values are always local.

    Returns:
        (ready, not ready), both in the order given; `ready` has at most `num_returns`.

    Raises:
        ValueError: duplicates, or a number out of range.
        TypeError: something else than a list of references was given (it is also a ValueError).
    """
    runtime = connected()
    if type(ray_waitables) is not list:
        raise exceptions.NotAReferenceError(f"wait() takes a list of ObjectRefs, not {_shown(ray_waitables)}")
    count = len(ray_waitables)
    if len(set(ray_waitables)) != count:
        raise ValueError("wait() takes distinct ObjectRefs; the list contains one twice")
    # The checks are most of what taking one out of many costs; this one takes half the time that a set of types does.
    if list(map(type, ray_waitables)).count(ObjectRef) != count and not _REF_TYPES.issuperset(map(type, ray_waitables)):
        wrong = next(ref for ref in ray_waitables if type(ref) not in _REF_TYPES)
        raise exceptions.NotAReferenceError(f"wait() takes ObjectRefs; the list contains {_shown(wrong)}")
    if not ray_waitables:
        return [], []
    if not 0 < num_returns <= count:
        raise ValueError(f"num_returns={num_returns}: give 1 to {count}, the number of references")
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout={timeout}: give seconds ≥ 0, or None to wait without a limit")
    return runtime.values.wait(ray_waitables, num_returns, timeout)


def cancel(
    ray_waitable: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True
) -> None:
    """Ask for the end of the task, call or generator that makes an object. It returns at once.

    A task that has not begun never will. One that runs gets an exception of a private type at the next Python
    instruction of its own code, also inside ``time.sleep`` or a read; inside C code when that returns. A coroutine of
    an async actor gets ``asyncio.CancelledError``. Methods of threaded actors go on and may look at
    ``get_runtime_context().is_canceled()``. ``get`` then raises TaskCancelledError; what has finished stays finished.

    Args:
        ray_waitable: an ObjectRef or an ObjectRefGenerator.
        force: end the worker process of a task that has begun. Not for calls of actors.
        recursive: also what the task has submitted itself.

    Raises:
        TypeError: something else was given.
        ValueError: force=True for a call of an actor.

    Example:
        >>> import moray, time
        >>> ref = moray.remote(time.sleep).remote(60)
        >>> moray.cancel(ref)
    """
    ref = ray_waitable.completed() if type(ray_waitable) is ObjectRefGenerator else ray_waitable
    if type(ref) is not ObjectRef:
        raise TypeError(f"cancel() takes an ObjectRef or an ObjectRefGenerator, not {_shown(ray_waitable)}")
    connected().cancels.cancel(ref, force, recursive)


def explain(waitable: ObjectRef[Any] | ObjectRefGenerator[Any] | ActorHandle[Any] | type[TypedActor]) -> str:
    """What an object, a generator or an actor waits for, and what that waits for in turn: one line for each step.

    The story goes through all processes on the way: arguments that are not ready, the queue and who has the resources,
    what the worker does now and for how long, the actor and its restarts. A circle of waits is named as a deadlock. It
    takes some milliseconds; longer, four seconds at most, if a process on the way does not answer.

    Args:
        waitable: an ObjectRef, an ObjectRefGenerator, or an actor's handle.

    Raises:
        TypeError: something else was given.
        ObjectLostError: the reference belongs to a session that has ended.

    Example:
        >>> import moray
        >>> moray.explain(moray.put(1))
        'The object is ready (5 bytes).'
    """
    runtime = connected()
    explainer = getattr(runtime, "explainer", None)
    ref = waitable.completed() if type(waitable) is ObjectRefGenerator else waitable
    if type(ref) is ObjectRef:
        if explainer is None:
            return "The object is ready." if ref._entry.ready else "Local mode: it is made when somebody waits for it."
        return str(explainer.explain_entry(ref._entry))
    from moray.actor import ActorHandle

    if not isinstance(ref, ActorHandle):
        raise TypeError(f"explain() takes an ObjectRef, ObjectRefGenerator or ActorHandle, not {_shown(waitable)}")
    if explainer is None:
        return "Local mode: the actor lives in this process, and is made and called at once."
    return str(explainer.explain_actor(ref._moray_actor, ref._moray_creator))


_REF_TYPES = {ObjectRef, ObjectRefGenerator}


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def cluster_resources() -> dict[str, float]:
    """The session's total resources, name → amount; memory in bytes."""
    current = _state()
    return _amounts(current["total"]) | {"object_store_memory": float(current["store"]["capacity_bytes"])}


def available_resources() -> dict[str, float]:
    """What is not leased at the moment; resources of which nothing is left are missing."""
    current = _state()
    store = current["store"]
    free = float(store["capacity_bytes"] - store["used_bytes"])
    return _amounts(current["available"]) | {"object_store_memory": free}


def nodes() -> list[dict[str, Any]]:
    """One dict per machine of the session."""
    found: list[dict[str, Any]] = _state()["nodes"]
    return found


def _state() -> dict[str, Any]:
    runtime = connected()

    def book() -> None:
        # What was put or dropped before counts.
        runtime.values.book_drops()

    answer = runtime.ask(m.ClusterInfo, lambda _answer: None, book)
    state_of: dict[str, Any] = answer.state
    return state_of


def _amounts(units: dict[str, int]) -> dict[str, float]:
    return {name: amount / m.RESOURCE_UNIT for name, amount in units.items() if amount > 0}


def get_gpu_ids() -> list[Any]:
    """Ids of the GPUs that the running task may use: indices, or what the session's CUDA_VISIBLE_DEVICES calls them."""
    runtime = connected()
    extra = getattr(runtime, "task_extra", None)
    if extra is None:
        return []
    from moray.platform.machine import gpu_ids

    names = gpu_ids(extra.devices.get("GPU", []), runtime.welcome.gpus)
    return [int(name) for name in names] if all(name.isdecimal() for name in names) else names


def timeline(filename: str | None = None) -> list[dict[str, Any]] | None:
    """What ran in this job's workers: a trace for chrome://tracing or ui.perfetto.dev.

    Each worker remembers its last 10 000 finished tasks and calls. One that does not answer within a second is left
    out, and named in the trace.

    Args:
        filename: where the trace is written, as JSON.

    Returns:
        The list of trace events (times in µs of the machine's monotonic clock), or None if it was written to a file.

    Example:
        >>> import moray
        >>> moray.get(moray.remote(abs).remote(-1))
        1
        >>> any(event["name"] == "abs" for event in moray.timeline())
        True
    """
    from moray.runtime.timeline import trace

    events = trace(connected())
    if filename is None:
        return events
    import json

    with open(filename, "w", encoding="utf-8") as file:
        json.dump(events, file)
    return None
