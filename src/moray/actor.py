"""Actor classes, handles and methods: what ``@moray.remote`` on a class makes.

A **handle** is four things: the actor's id, the way to it (:class:`~moray.runtime.actors.Callee`), the reference that
keeps it alive, and its class's :class:`~moray.runtime.actor_meta.ActorMeta`. The latter becomes a Python class of its
own, made once per process, with one descriptor per method; so ``handle.method.remote(x)`` looks nothing up by name. A
method object holds its handle and never the other way round: the last handle's end is noticed at once, by its count.

**Weak** handles have no reference: those of detached actors, of :func:`get_actor`, and an actor's own.
"""

from __future__ import annotations

import os
from inspect import getattr_static
from types import GenericAlias, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, NoReturn, TypeAlias, Unpack, cast, overload
from weakref import WeakValueDictionary

from moray import exceptions
from moray.actor_methods import method
from moray.object_ref import ObjectRef
from moray.options import ActorOptions
from moray.protocol import messages as m
from moray.remote_function import dump_code
from moray.runtime import actor_meta, state
from moray.runtime.actor_meta import ActorMeta, MethodMeta
from moray.runtime.actor_plans import CallPlan, ClassPlans
from moray.runtime.arguments import LargeArguments, prepare
from moray.runtime.detached import make_self_contained
from moray.runtime.groups import placement_of
from moray.runtime.packages import environment_key
from moray.runtime.signatures import Signature, parameters_of
from moray.runtime.strategies import strategy_of
from moray.typed_calls import (
    ActorKeywords,
    Called,
    CallKeywords,
    P,
    Parameters,
    R,
    Several,
    T,
    TypedActor,
    typed,
    typed_creation,
)

if TYPE_CHECKING:
    from moray.dag.nodes import ClassNode
    from moray.ids import ActorID
    from moray.runtime.callee import Callee
    from moray.runtime.runtime import Runtime

__all__ = [
    "ActorClass", "ActorClassInheritanceException", "ActorHandle", "ActorMethod", "ActorProxy", "TypedActor",
    "exit_actor", "get_actor", "kill", "method",
]  # fmt: skip

#: A handle of an actor whose class is a TypedActor, for checkers. When the program runs it is an ActorHandle.
ActorProxy: TypeAlias = type[T]


class ActorClassInheritanceException(TypeError):  # noqa: N818 (Ray's name)
    """An actor class was subclassed. Subclass the plain class, and decorate the child."""


# --- classes -------------------------------------------------------------------------------------


class ActorClass(Generic[T, Parameters]):
    """A class whose instances live in workers of their own: made by :func:`moray.remote`.

    It can be passed to tasks and actors and put into objects like any value.

    Example:
        >>> import moray
        >>> @moray.remote
        ... class Counter:
        ...     def __init__(self, start=0):
        ...         self.value = start
        ...     def add(self, x):
        ...         self.value += x
        ...         return self.value
        >>> counter = Counter.remote(10)
        >>> moray.get(counter.add.remote(5))
        15
    """

    def __init__(self, kind: type[T], options: ActorOptions, exported: _ExportedClass | None = None) -> None:
        self.__name__ = kind.__name__
        self.__qualname__ = kind.__qualname__
        self.__module__ = kind.__module__
        self.__doc__ = kind.__doc__
        self._kind = kind
        self._options = options
        #: Shared by all `.options()` variants of this class.
        self._exported = exported or _ExportedClass(kind)
        #: What handles share, encoded; made at the first use, when a class that is being unpickled is complete.
        self._meta: bytes | None = None

    @property
    def __ray_actor_class__(self) -> type[T]:
        """The plain class."""
        return self._kind

    @property
    def __ray_metadata__(self) -> SimpleNamespace:
        """The plain class, under the names by which programs for Ray look for it."""
        return SimpleNamespace(modified_class=self._kind, class_name=self.__name__)

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> NoReturn:
        raise ActorClassInheritanceException(
            f"{self.__name__} is an actor class, which cannot be a base class: leave the base undecorated, inherit "
            "from that, and decorate the child with @moray.remote"
        )

    if not TYPE_CHECKING:  # A checker says so before the program runs; and `ActorClass[T]` leaves Parameters open.
        __class_getitem__ = classmethod(GenericAlias)

        def __call__(self, *_args, **_kwargs):
            name = self.__name__
            raise TypeError(
                f"{name}(...) makes no actor: write {name}.remote(...), or {name}.__ray_actor_class__(...) for an "
                "ordinary instance in this process (an actor class cannot be instantiated directly)"
            )

    def __getattr__(self, name: str) -> Any:
        # Methods are not found here: cloudpickle would take them for the module's own and pickle them by name.
        kind = self.__dict__.get("_kind")
        if kind is not None and not name.startswith("__") and hasattr(kind, name):
            value = getattr(kind, name)
            if not callable(value) or isinstance(getattr_static(kind, name), (staticmethod, classmethod)):
                return value
            raise AttributeError(
                f"{kind.__name__} is an actor class: make an actor with .remote(), then call handle.{name}.remote(...)"
            )
        raise AttributeError(f"actor class {'' if kind is None else kind.__name__} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *dir(self._kind)})

    @typed_creation
    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Make an actor; arguments as for the class itself, ObjectRefs stand for their values.

        It returns at once, or, for a named actor, when the name is known to be free. Errors of ``__init__`` come with
        the calls.

        Raises:
            TypeError: the arguments do not fit, or one of them (or the class) cannot be pickled.
            ActorAlreadyExistsError: the name is taken.
        """
        from moray.api import connected

        runtime = connected()
        exported = self._exported
        blob, contained = exported.export(runtime)
        exported.signature().check(self.__name__, args, kwargs)
        spec, creation = self._describe(runtime, blob)
        if spec.detached:
            make_self_contained(runtime, spec, creation, contained, args, kwargs)
            made = runtime.actors.create(spec, creation, None, [])
        else:
            prepared = prepare(runtime.values, args, kwargs, self.__name__, exported.large) if args or kwargs else None
            made = runtime.actors.create(spec, creation, prepared, contained)
        actor, meta, creator, reference = made
        return _make_handle(runtime, actor, creator, reference, meta)

    def options(self, **overrides: Unpack[ActorKeywords]) -> ActorClass[T, Parameters]:
        """This class with other options for the actors made through the result.

        Raises:
            ValueError: an unknown option (the nearest valid one is named), a value out of range, or
                `concurrency_groups`, which belong to the class itself.
            TypeError: a value of the wrong type.
        """
        if "concurrency_groups" in overrides:
            raise ValueError(
                "concurrency_groups belong to the class, not to an actor: give them to @moray.remote, not to .options()"
            )
        return ActorClass(self._kind, self._options.merge(**cast("dict[str, Any]", overrides)), self._exported)

    def _remote(self, args: Any = (), kwargs: Any = None, **options: Any) -> ActorHandle[T]:
        """An actor with options, in one step; not documented by Ray either, but used."""
        return self.options(**options).remote(*args, **(kwargs or {}))

    def bind(self, *args: Any, **kwargs: Any) -> ClassNode:
        """A step of a graph (:mod:`moray.dag`) that makes an actor; arguments may be other steps."""
        from moray.dag.nodes import ClassNode

        self._exported.signature().check(self.__name__, args, kwargs)
        return ClassNode(self, args, kwargs)

    def _describe(self, runtime: Runtime, blob: bytes) -> tuple[m.ActorSpec, m.Creation]:
        """A new actor, for the head and for its worker."""
        options = self._options
        if self._meta is None:
            self._meta = actor_meta.encode(self._make_meta())
        meta = actor_meta.decode(self._meta)
        resources = options.resources_units()
        _group, placement, need = placement_of(runtime, options, resources, self.__name__)
        whole = resources if options.num_cpus is not None else {**resources, "CPU": m.RESOURCE_UNIT}
        detached = options.lifetime == "detached"
        name = options.name or ""
        namespace = options.namespace or runtime.welcome.namespace
        spec = m.ActorSpec(
            os.urandom(12) + runtime.job,
            self.__name__,
            need,
            whole if placement is None else need,
            name=name,
            namespace=namespace,
            detached=detached,
            max_restarts=options.max_restarts,
            get_if_exists=options.get_if_exists,
            runtime_env=environment_key(runtime, options.runtime_env or {}),
            meta=self._meta,
            strategy=strategy_of(options, runtime.infeasible),
        )
        creation = m.Creation(
            self.__name__,
            blob,
            b"",
            name=name,
            namespace=namespace,
            asynchronous=meta.asynchronous,
            max_concurrency=meta.max_concurrency,
            groups=dict(options.concurrency_groups or {}),
            unordered=not meta.ordered,
            resources=resources,
            meta=self._meta,
            placement=placement,
        )
        return spec, creation

    def _make_meta(self) -> ActorMeta:
        options = self._options
        methods, others = self._exported.describe()
        groups = list(options.concurrency_groups or {})
        for meta in methods:
            _check_group(meta.group, groups, f"{self.__name__}.{meta.name}")
        asynchronous = any(meta.asynchronous for meta in methods)
        concurrency = options.max_concurrency or (actor_meta.ASYNC_CONCURRENCY if asynchronous else 1)
        unordered = options.allow_out_of_order_execution
        if unordered is None:
            unordered = asynchronous or concurrency > 1 or bool(groups)
        ahead = options._actor_generator_backpressure_num_objects
        return ActorMeta(
            self.__name__,
            self.__module__,
            methods,
            others,
            options.max_task_retries,
            options.max_pending_calls,
            not unordered,
            asynchronous,
            concurrency,
            groups,
            -1 if ahead is None else ahead,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_kind": self._kind, "_options": self._options}

    def __setstate__(self, own: dict[str, Any]) -> None:
        self.__init__(own["_kind"], own["_options"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"ActorClass({self.__module__}.{self.__qualname__})"


class _ExportedClass:
    """A class's pickle for the current runtime, and what checks its calls. All is made at the first use."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._pickled: tuple[Runtime, bytes, list[ObjectRef[Any]]] | None = None
        self._signature: Signature | None = None
        self._described: tuple[list[MethodMeta], dict[str, str]] | None = None
        self.large = LargeArguments()

    def export(self, runtime: Runtime) -> tuple[bytes, list[ObjectRef[Any]]]:
        """The class's pickle, made once per runtime, and the references that it closes over."""
        pickled = self._pickled
        if pickled is None or pickled[0] is not runtime:
            self.describe()  # What is wrong with the class is said before what is wrong with pickling it.
            modules = {kind.__module__ for kind in self._kind.__mro__}
            blob, contained = dump_code(runtime, self._kind, modules, f"the class {self._kind.__name__}")
            pickled = self._pickled = (runtime, blob, contained)
        return pickled[1], pickled[2]

    def signature(self) -> Signature:
        """The constructor's."""
        signature = self._signature
        if signature is None:
            signature = self._signature = Signature(parameters_of(self._kind))
        return signature

    def describe(self) -> tuple[list[MethodMeta], dict[str, str]]:
        """Its methods and its other attributes."""
        described = self._described
        if described is None:
            described = actor_meta.describe_class(self._kind)
            for method in described[0]:
                if method.name in _HANDLES_OWN:
                    raise TypeError(
                        f"{self._kind.__name__}.{method.name}: handles of actors have an attribute of this name; "
                        "give the method another one"
                    )
            self._described = described
        return described


def _check_group(group: str, groups: list[str], where: str) -> None:
    if group and group not in groups:
        there = f"there are {', '.join(groups)}" if groups else "the class has none: give it concurrency_groups={…}"
        raise ValueError(f"{where}: no concurrency group {group!r}; {there}")


# --- handles -------------------------------------------------------------------------------------


class ActorHandle(Generic[T]):
    """An actor, as its callers have it: ``handle.method.remote(...)``.

    Pass it to tasks and actors, or put it into objects. The actor ends when the last handle, and the last unanswered
    call, is gone, unless it is detached. Handles of one actor are equal.
    """

    __slots__ = ("__weakref__", "_actor_ref", "_moray_actor", "_moray_callee", "_moray_creator", "_moray_runtime")

    #: The reference that keeps the actor alive; None: a weak handle.
    _actor_ref: ObjectRef[Any] | None
    _moray_actor: bytes
    _moray_creator: bytes
    _moray_callee: Callee
    _moray_runtime: Runtime
    #: What all handles of a class share.
    _moray_shared: ClassVar[ClassPlans]

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise TypeError("an ActorHandle comes from Class.remote() or moray.get_actor(), it is not made by hand")

    @property
    def _actor_id(self) -> ActorID:
        from moray.ids import ActorID

        return ActorID(self._moray_actor)

    @property
    def _ray_actor_id(self) -> ActorID:
        return self._actor_id

    def __getattr__(self, name: str) -> ActorMethod[..., Any]:
        shared = self._moray_shared
        plan = shared.special.get(name)
        if plan is not None:
            return ActorMethod(self, plan)
        raise AttributeError(shared.no_method(name), name=name, obj=self)

    def __dir__(self) -> list[str]:
        return ["__init__", *self._moray_shared.plans, *self._moray_shared.special]

    def __eq__(self, other: object) -> bool:
        return self._moray_actor == other._moray_actor if isinstance(other, ActorHandle) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._moray_actor)

    def __copy__(self) -> ActorHandle[T]:
        return self

    def __deepcopy__(self, _memo: object) -> ActorHandle[T]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_handle, (self._moray_actor, self._moray_creator, self._actor_ref, self._moray_shared.blob)

    def __del__(self) -> None:
        # C code notes the end of the reference; the loop, which may sleep, is to look at once (DEL).
        try:
            if self._actor_ref is not None:
                self._actor_ref = None
                self._moray_runtime.wake()
        except Exception:  # noqa: BLE001, S110 - half made, or the session has ended: there is nobody to tell.
            pass

    def __repr__(self) -> str:
        return f"Actor({self._moray_shared.meta.class_name}, {self._moray_actor.hex()})"

    def _moray_unusable(self) -> NoReturn:
        """Raise: this handle's runtime is not the process's any more."""
        if state.runtime is not None:
            state.runtime.check_usable()
        raise exceptions.ActorHandleNotFoundError(
            f"{self!r} belongs to a session that has ended; handles do not outlive moray.shutdown()"
        )


class _Method:
    """Makes ``handle.method``."""

    __slots__ = ("_plan",)

    def __init__(self, plan: CallPlan) -> None:
        self._plan = plan

    def __get__(self, handle: ActorHandle[Any] | None, _owner: type) -> Any:
        return self if handle is None else ActorMethod(handle, self._plan)


#: Encoded meta → the class of its handles, as long as there are any.
_handle_types: WeakValueDictionary[bytes, type[ActorHandle[Any]]] = WeakValueDictionary()


def _handle_type(blob: bytes) -> type[ActorHandle[Any]]:
    kind = _handle_types.get(blob)
    if kind is None:
        shared = ClassPlans(blob)
        namespace: dict[str, Any] = {name: _Method(plan) for name, plan in shared.plans.items()}
        namespace |= {"__slots__": (), "__module__": __name__, "_moray_shared": shared}
        kind = type("ActorHandle", (ActorHandle,), namespace)
        _handle_types[blob] = kind
    return kind


def _make_handle(
    runtime: Runtime, actor: bytes, creator: bytes, reference: ObjectRef[Any] | None, meta_blob: bytes
) -> ActorHandle[Any]:
    """The handle of an actor; `reference` None: a weak one."""
    kind = _handle_type(meta_blob)
    meta = kind._moray_shared.meta
    handle = object.__new__(kind)
    handle._actor_ref = reference
    handle._moray_actor = actor
    handle._moray_creator = creator
    handle._moray_runtime = runtime
    handle._moray_callee = callee = runtime.actors.callee(actor, creator)
    callee.class_name = meta.class_name
    callee.max_pending = meta.max_pending_calls
    callee.ordered = meta.ordered
    return handle


def _rebuild_handle(
    actor: bytes, creator: bytes, reference: ObjectRef[Any] | None, meta_blob: bytes
) -> ActorHandle[Any]:
    """Unpickle a handle."""
    runtime = state.runtime
    if runtime is None:
        raise RuntimeError("an actor handle was unpickled in a process that is not connected: call moray.init() first")
    runtime.check_usable()
    return _make_handle(runtime, actor, creator, reference, meta_blob)


def current_handle(runtime: Runtime) -> ActorHandle[Any]:
    """The weak handle of the actor that this process is."""
    host: Any = running_actor(runtime)
    if host is None:
        raise RuntimeError("current_actor: this code does not run in an actor")
    return _make_handle(runtime, host.actor, host.creator, None, host.creation.meta)


def running_actor(runtime: Runtime) -> Any:
    """The actor that this process is (:class:`~moray.runtime.actor_host.ActorHost`); None if it is none."""
    executor = getattr(runtime, "executor", None)
    return executor.host if executor is not None else None


# --- methods -------------------------------------------------------------------------------------


class ActorMethod(Called[P, R]):
    """A method of an actor: ``handle.method``. Its types are its parameters and what a call gives."""

    __slots__ = ("_handle", "_plan")

    def __init__(self, handle: ActorHandle[Any], plan: CallPlan) -> None:
        self._handle = handle
        self._plan = plan

    @typed
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a call; arguments as for the method itself, ObjectRefs stand for their values.

        Returns:
            An ObjectRef; a list of them if ``num_returns`` is over 1; None if it is 0; an ObjectRefGenerator if the
            method is a generator.

        Raises:
            TypeError: the arguments do not fit the method's signature, or one of them cannot be pickled.
            PendingCallsLimitExceeded: the actor was made with max_pending_calls, and so many are not answered.
        """
        handle = self._handle
        plan = self._plan
        runtime = handle._moray_runtime
        if runtime is not state.runtime:
            handle._moray_unusable()
        prepared = None
        if args or kwargs or plan.signature.needs_arguments:
            plan.signature.check(plan.label, args, kwargs)
            prepared = prepare(runtime.values, args, kwargs, plan.label, plan.large)
        return runtime.actors.submit(handle._moray_callee, plan.settings, prepared, handle._actor_ref)

    @overload
    def options(self, **overrides: Unpack[CallKeywords]) -> ActorMethod[P, R]: ...
    @overload
    def options(self, *, num_returns: Literal[0], **overrides: Unpack[CallKeywords]) -> ActorMethod[P, None]: ...
    @overload
    def options(self, *, num_returns: Literal[1] | None, **overrides: Unpack[CallKeywords]) -> ActorMethod[P, R]: ...
    @overload
    def options(
        self, *, num_returns: Several, **overrides: Unpack[CallKeywords]
    ) -> ActorMethod[P, list[ObjectRef[Any]]]: ...
    @overload
    def options(self, *, num_returns: int | str, **overrides: Unpack[CallKeywords]) -> ActorMethod[P, Any]: ...
    def options(self, **overrides: Any) -> ActorMethod[P, Any]:
        """This method with other options for the calls made through the result.

        Raises:
            ValueError: an unknown option (the nearest valid one is named) or a value out of range.
            TypeError: a value of the wrong type.
        """
        plan = self._plan
        method = plan.method.with_options(
            actor_meta.check_options(overrides, actor_meta.CALL_CHECKS, f"calls of {plan.label}()")
        )
        _check_group(method.group, plan.shared.meta.groups, plan.label)
        return ActorMethod(self._handle, CallPlan(plan.shared, method))

    def _remote(self, args: Any = (), kwargs: Any = None, **options: Any) -> Any:
        """A call with options, in one step; not documented by Ray either, but used."""
        return self.options(**options).remote(*args, **(kwargs or {}))

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A step of a graph (:mod:`moray.dag`) that calls this method; a tuple of them if it has several results."""
        from moray.dag.nodes import bind_method

        return bind_method(self._handle, self, args, kwargs)

    if not TYPE_CHECKING:

        def __call__(self, *_args, **_kwargs):
            name = self._plan.method.name
            raise TypeError(f"a method of an actor is called with .remote(): write handle.{name}.remote(...)")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_method, (self._handle, self._plan.method)

    def __repr__(self) -> str:
        return f"ActorMethod({self._plan.label} of {self._handle!r})"


def _rebuild_method(handle: ActorHandle[Any], method: MethodMeta) -> ActorMethod[..., Any]:
    """Unpickle a method."""
    return ActorMethod(handle, CallPlan(handle._moray_shared, method))


#: Attributes of handles that no method may take.
_HANDLES_OWN: Final = frozenset(name for name in dir(ActorHandle) if not name.startswith("__"))


# --- functions -----------------------------------------------------------------------------------


def exit_actor() -> NoReturn:
    """End the actor that this code runs in, after the calls that it has answered; it is not restarted.

    Raises:
        TypeError: this is no actor.
    """
    runtime = state.runtime
    host = running_actor(runtime) if runtime is not None else None
    if host is None:
        raise TypeError(
            "exit_actor() ends the actor whose method calls it, and this code does not run in an actor; "
            "moray.kill(handle) ends one from outside"
        )
    from moray.runtime.actor_host import ActorExit

    host.leave_after_this()
    raise ActorExit


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """The living actor with this name. The handle is weak: it does not keep the actor alive.

    Args:
        name: as given by ``.options(name=...)``.
        namespace: None is the job's.

    Raises:
        ActorHandleNotFoundError: there is none (also a ValueError).
        TypeError, ValueError: the name is no string; or None, or empty.

    Example:
        >>> import moray
        >>> @moray.remote
        ... class Greeter:
        ...     def greet(self):
        ...         return "hello"
        >>> greeter = Greeter.options(name="doc_greeter").remote()
        >>> moray.get(moray.get_actor("doc_greeter").greet.remote())
        'hello'
    """
    from moray.api import connected

    _check_text("name", name)
    if namespace is not None:
        _check_text("namespace", namespace)
    runtime = connected()
    actor, meta, creator = runtime.actors.find(name, namespace or runtime.welcome.namespace)
    return _make_handle(runtime, actor, creator, None, meta)


def _check_text(what: str, value: Any) -> None:
    if not isinstance(value, str) and value is not None:
        raise TypeError(f"get_actor(): the {what} must be a string, not {value!r:.80} ({type(value).__name__})")
    if not value:
        raise ValueError(f"get_actor(): the {what} is {value!r}; anonymous actors are reached by their handles only")


def kill(actor: ActorHandle[Any] | type[TypedActor], *, no_restart: bool = True) -> None:
    """End an actor's process now; calls that it has not answered fail.

    Args:
        actor: its handle.
        no_restart: False: it is restarted if it has restarts left, as after a crash.

    Raises:
        ValueError: something else than a handle was given.
    """
    from moray.api import connected

    runtime = connected()
    if not isinstance(actor, ActorHandle):
        raise _no_handle(actor)
    if actor._moray_runtime is not runtime:
        actor._moray_unusable()
    runtime.actors.kill(actor._moray_actor, actor._moray_creator, no_restart)


def _no_handle(value: Any) -> ValueError:
    hint = ""
    if isinstance(value, ObjectRef):
        hint = "; moray.cancel() ends tasks"
    elif isinstance(value, ActorClass):
        hint = "; this is a class, kill its actors"
    return ValueError(f"kill() takes an actor handle, not {value!r:.80} ({type(value).__name__}){hint}")
