"""Nodes: what ``.bind()`` makes, and how a graph of them is executed step by step.

A node knows what it was bound with; other nodes may stand among the arguments, at top level or inside lists, tuples
and dicts. ``execute`` goes through the nodes that the result needs, each after those that it needs and otherwise in the
order of binding, submits the task or call of each once, and hands on references.
"""

from __future__ import annotations

import heapq
import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from moray.actor import ActorClass, ActorHandle, ActorMethod
    from moray.dag.compiled import CompiledDAG
    from moray.remote_function import RemoteFunction

_numbers: Final = itertools.count(1)


class GraphError(AssertionError, ValueError, TypeError):
    """A graph was put together wrongly. Programs for Ray expect one of its bases, now this one, now that one."""


class Trace:
    """What is remembered of a step by those that it needs, so that steps which a graph leaves out can be found.

    It does not refer to the step: a cycle would keep actors until the next collection of garbage.
    """

    __slots__ = ("step", "used_by")

    def __init__(self) -> None:
        #: What a call of an actor's method is called; "" for other steps.
        self.step = ""
        self.used_by: list[Trace] = []


class DAGNode:
    """A step of a graph. Made by ``.bind()``, not by hand."""

    def __init__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        self._bound_args = args
        self._bound_kwargs = kwargs or {}
        #: Nodes bound earlier have lower numbers.
        self._number = next(_numbers)
        self._stable_uuid = uuid.uuid4().hex
        self._trace = Trace()
        for needed in dict.fromkeys((*found_in(args), *found_in(self._bound_kwargs))):
            needed._trace.used_by.append(self._trace)

    def execute(self, *args: Any, _ray_cache_refs: bool = False, **kwargs: Any) -> Any:
        """Submit the whole graph and return what stands for its result.

        Args:
            args: the value of the graph's InputNode; several, or keyword arguments, are reached as ``inp[0]``,
                ``inp.name``.
            _ray_cache_refs: accepted; without meaning here.
            kwargs: see `args`.

        Returns:
            An ObjectRef if this is a task or call, a handle if it is an actor class, a list if it is a MultiOutputNode.

        Raises:
            TypeError: the graph has an input and got none, or the other way round.
        """
        nodes = ordered(self)
        given = _given(nodes, args, kwargs)
        results: dict[DAGNode, Any] = {}
        for node in nodes:
            results[node] = given if isinstance(node, InputNode) else node._run(results)
        return results[self]

    def experimental_compile(
        self,
        _submit_timeout: float | None = None,
        _buffer_size_bytes: int | None = None,
        enable_asyncio: bool = False,  # noqa: ARG002 - see the docstring.
        _max_inflight_executions: int | None = None,
        _max_buffered_results: int | None = None,
        _overlap_gpu_communication: bool | None = None,
        _default_communicator: Any = None,
    ) -> CompiledDAG:
        """Prepare a graph of actors' methods so that executing it costs no scheduling.

        Each of its actors runs a loop from now on, which takes values from channels in shared memory, calls the
        bound methods and hands the results on. Ordinary calls of these actors wait until :meth:`CompiledDAG.teardown`.
        All actors must live on this machine.

        Args:
            _submit_timeout, _buffer_size_bytes, _max_inflight_executions, _max_buffered_results: see
                :class:`~moray.dag.DAGContext`, whose settings they replace.
            enable_asyncio: accepted; ``execute_async`` can be used in any case.
            _overlap_gpu_communication, _default_communicator: accepted; without meaning here.

        Raises:
            ValueError: the graph has steps that are no methods of living actors, or a step that needs no input.

        Example:
            >>> import moray
            >>> from moray.dag import InputNode
            >>> @moray.remote
            ... class Adder:
            ...     def __init__(self, step):
            ...         self.step = step
            ...     def add(self, x):
            ...         return x + self.step
            >>> first, second = Adder.remote(1), Adder.remote(10)
            >>> with InputNode() as x:
            ...     graph = second.add.bind(first.add.bind(x))
            >>> with graph.experimental_compile() as compiled:
            ...     compiled.execute(5).get()
            16
        """
        from moray.dag.compiled import CompiledDAG

        return CompiledDAG(
            self,
            submit_timeout=_submit_timeout,
            buffer_size_bytes=_buffer_size_bytes,
            max_inflight_executions=_max_inflight_executions,
            max_buffered_results=_max_buffered_results,
        )

    def get_args(self) -> tuple[Any, ...]:
        """What it was bound with."""
        return self._bound_args

    def get_kwargs(self) -> dict[str, Any]:
        """The keyword arguments that it was bound with."""
        return dict(self._bound_kwargs)

    def get_options(self) -> dict[str, Any]:
        """The options given for this step alone."""
        return {}

    def get_other_args_to_resolve(self) -> dict[str, Any]:
        """What else it needs, by name."""
        return {}

    def get_stable_uuid(self) -> str:
        """An id that it keeps when it is pickled."""
        return self._stable_uuid

    def with_tensor_transport(self, transport: Any = "auto", **_options: Any) -> DAGNode:  # noqa: ARG002 - Ray's
        """Accepted; tensors travel as other values do."""
        return self

    def with_type_hint(self, typ: Any) -> DAGNode:  # noqa: ARG002 - Ray's
        """The same, as it was called before."""
        return self

    def traverse_and_apply(self, fn: Callable[[DAGNode], Any]) -> None:
        """Call `fn` with each node that this one needs, and this one, each after those that it needs."""
        for node in ordered(self):
            fn(node)

    def _needs(self) -> Iterator[DAGNode]:
        """The nodes among its arguments, and what else must come first."""
        yield from found_in(self._bound_args)
        yield from found_in(self._bound_kwargs)

    def _run(self, results: dict[DAGNode, Any]) -> Any:
        """Submit this step."""
        raise NotImplementedError

    def _filled_in(self, results: dict[DAGNode, Any]) -> tuple[list[Any], dict[str, Any]]:
        args = [filled_in(value, results) for value in self._bound_args]
        return args, {name: filled_in(value, results) for name, value in self._bound_kwargs.items()}


class FunctionNode(DAGNode):
    """A call of a remote function."""

    def __init__(self, function: RemoteFunction[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(args, kwargs)
        self._function = function

    def get_options(self) -> dict[str, Any]:
        """See DAGNode.get_options."""
        return _given_options(self._function._options)

    def __getattr__(self, name: str) -> Any:
        raise _no_attribute(self, name, "FunctionNode")

    def _run(self, results: dict[DAGNode, Any]) -> Any:
        args, kwargs = self._filled_in(results)
        return self._function.remote(*args, **kwargs)

    def __repr__(self) -> str:
        return f"FunctionNode({self._function._function_name})"


class ClassNode(DAGNode):
    """An actor that is made when the graph is executed, each time anew: ``node.method.bind(...)`` calls it."""

    def __init__(self, kind: ActorClass[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(args, kwargs)
        self._class = kind
        #: The step that the next one bound to it comes after.
        self._last_call: ClassMethodNode | None = None
        if any(isinstance(node, (InputNode, InputAttributeNode)) for node in self._needs()):
            raise GraphError(
                f"{self!r}: InputNode cannot be an argument of a class's constructor, as the actor is made before "
                "execute() gets its input: bind it to a method"
            )

    def get_options(self) -> dict[str, Any]:
        """See DAGNode.get_options."""
        return _given_options(self._class._options)

    def __getattr__(self, name: str) -> UnboundMethod:
        kind = self.__dict__.get("_class")
        if kind is None or name.startswith("__") or not callable(getattr(kind._kind, name, None)):
            called = "it" if kind is None else kind.__name__
            if name == "bind":
                problem = f"actor class {called} is bound already: a second .bind() has no meaning, bind its methods"
            else:
                problem = f"actor class {called!r} has no attribute {name!r}, and no method {name!r} to bind"
            raise AttributeError(problem, name=name, obj=self)
        return UnboundMethod(self, name, {})

    def _run(self, results: dict[DAGNode, Any]) -> Any:
        args, kwargs = self._filled_in(results)
        return self._class.remote(*args, **kwargs)

    def __repr__(self) -> str:
        return f"ClassNode({self._class.__name__})"


class UnboundMethod:
    """``node.method`` of a ClassNode."""

    def __init__(self, parent: ClassNode, name: str, options: dict[str, Any]) -> None:
        self._parent = parent
        self._name = name
        self._options = options

    def options(self, **options: Any) -> UnboundMethod:
        """The method with options for this step, as those of :meth:`ActorMethod.options`."""
        return UnboundMethod(self._parent, self._name, {**self._options, **options})

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A step that calls the method; a tuple of them, one per value, if it was given num_returns over 1.

        The actor runs its steps in the order in which they were bound, also those whose results nobody needs.
        """
        parent = self._parent
        node = ClassMethodNode(parent, self._name, None, args, kwargs, self._options, previous=parent._last_call)
        parent._last_call = node
        return outputs_of(node, self._options.get("num_returns"))

    def __getattr__(self, name: str) -> Any:
        raise _no_attribute(self, name, "ClassMethodNodes")


class ClassMethodNode(DAGNode):
    """A call of an actor's method, or one of the several values of such a call.

    Args:
        actor: a handle, or the node that makes the actor.
        name: the method's.
        method: the method, if there is a handle.
        options: of the step, if there is none.
        output: (the step, which of its values), if it is not a call itself.
        previous: the step of the same new actor that was bound before.
    """

    def __init__(
        self,
        actor: ActorHandle[Any] | ClassNode,
        name: str,
        method: ActorMethod[..., Any] | None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        output: tuple[ClassMethodNode, int] | None = None,
        previous: ClassMethodNode | None = None,
    ) -> None:
        super().__init__(args, kwargs)
        self._actor = actor
        self._previous = previous
        self._name = name
        self._method = method
        self._options = options or {}
        self._output = output
        #: How many values the method gives.
        self._num_returns = 1
        self._trace.step = f"{_class_name(actor)}.{name}"
        if output is not None:
            output[0]._trace.used_by.append(self._trace)

    @property
    def is_class_method_output(self) -> bool:
        """Whether it is one of several values of a call."""
        return self._output is not None

    def get_method_name(self) -> str:
        """The method's name."""
        return self._name

    def get_options(self) -> dict[str, Any]:
        """See DAGNode.get_options."""
        return dict(self._options)

    def get_other_args_to_resolve(self) -> dict[str, Any]:
        """See DAGNode.get_other_args_to_resolve."""
        return {
            "parent_class_node": self._actor,
            "prev_class_method_call": self._previous,
            "bind_index": self._number,
            "is_class_method_output": self.is_class_method_output,
        }

    def _needs(self) -> Iterator[DAGNode]:
        if isinstance(self._actor, ClassNode):
            yield self._actor
        if self._output is not None:
            yield self._output[0]
        if self._previous is not None:
            yield self._previous
        yield from super()._needs()

    def _run(self, results: dict[DAGNode, Any]) -> Any:
        if self._output is not None:
            step, index = self._output
            return results[step][index]
        method = self._method
        if method is None:
            handle = results[self._actor]  # type: ignore[index]
            method = getattr(handle, self._name)
            if self._options:
                method = method.options(**self._options)
        args, kwargs = self._filled_in(results)
        return method.remote(*args, **kwargs)

    def __repr__(self) -> str:
        which = "" if self._output is None else f"[{self._output[1]}]"
        return f"ClassMethodNode({_class_name(self._actor)}.{self._name}{which})"


def bind_method(
    handle: ActorHandle[Any], method: ActorMethod[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The step, or steps, that ``handle.method.bind(...)`` makes."""
    plan = method._plan
    plan.signature.check(plan.label, args, kwargs)
    node = ClassMethodNode(handle, plan.method.name, method, args, kwargs)
    return outputs_of(node, plan.settings.num_returns)


def _class_name(actor: ActorHandle[Any] | ClassNode) -> str:
    return actor._class.__name__ if isinstance(actor, ClassNode) else str(actor._moray_shared.meta.class_name)


def outputs_of(node: ClassMethodNode, num_returns: Any) -> Any:
    """The step itself, or a tuple of its values if there are several."""
    if not isinstance(num_returns, int) or num_returns < 2:
        return node
    node._num_returns = num_returns
    return tuple(ClassMethodNode(node._actor, node._name, None, output=(node, index)) for index in range(num_returns))


# --- input and output --------------------------------------------------------------------------------


class DAGInputData:
    """What ``execute`` was given, if it was not one positional argument."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._args = args
        self._kwargs = kwargs

    def __getitem__(self, key: int | str) -> Any:
        source: Any = self._args if isinstance(key, int) else self._kwargs
        try:
            return source[key]
        except LookupError:
            raise TypeError(
                f"the graph's input has no {key!r}: execute() got {len(self._args)} positional arguments and "
                f"{', '.join(self._kwargs) or 'no'} keywords"
            ) from None


class InputNode(DAGNode):
    """Stands for what ``execute`` will be given.

    ``inp[0]``, ``inp["key"]`` and ``inp.name`` stand for parts: of several arguments by position or keyword, otherwise
    of the one argument, by index or attribute.

    Example:
        >>> import moray
        >>> from moray.dag import InputNode
        >>> @moray.remote
        ... def add(x, y):
        ...     return x + y
        >>> with InputNode() as inp:
        ...     graph = add.bind(inp[0], inp.more)
        >>> moray.get(graph.execute(1, more=2))
        3
    """

    def __init__(self, *args: Any, input_type: Any = None, **kwargs: Any) -> None:
        if args or kwargs:
            raise GraphError(
                f"InputNode() has no arguments, and got {[*args, *kwargs]!r:.80}: the values of a graph go to execute()"
            )
        super().__init__()
        self._input_type = input_type
        #: Whether it stood in a `with` statement.
        self._entered = False
        #: Keys of the parts that were asked for.
        self._keys: dict[Any, None] = {}

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __getitem__(self, key: Any) -> InputAttributeNode:
        if not isinstance(key, (int, str)):
            raise GraphError(f"a part of an input is named by a number or a string, not by {key!r:.80}")
        self._keys[key] = None
        return InputAttributeNode(self, key, "__getitem__")

    def __getattr__(self, name: str) -> InputAttributeNode:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}", name=name, obj=self)
        self._keys[name] = None
        return InputAttributeNode(self, name, "__getattr__")

    def __repr__(self) -> str:
        return "InputNode()"


class InputAttributeNode(DAGNode):
    """A part of the graph's input."""

    def __init__(self, source: InputNode, key: Any, accessor: str) -> None:
        super().__init__()
        source._trace.used_by.append(self._trace)
        self._source = source
        self._key = key
        self._accessor = accessor

    def _needs(self) -> Iterator[DAGNode]:
        yield self._source

    def _run(self, results: dict[DAGNode, Any]) -> Any:
        return part_of(results[self._source], self._key, self._accessor)

    def __repr__(self) -> str:
        return f"InputAttributeNode({self._key!r})"


def part_of(given: Any, key: Any, accessor: str) -> Any:
    """The part of an input that an InputAttributeNode stands for."""
    if isinstance(given, DAGInputData) or accessor == "__getitem__":
        return given[key]
    return getattr(given, key)


class MultiOutputNode(DAGNode):
    """Several results: ``execute`` returns a list.

    Args:
        args: the nodes.
    """

    def __init__(self, args: Sequence[DAGNode]) -> None:
        if not isinstance(args, (list, tuple)):
            raise GraphError(f"MultiOutputNode takes a list of nodes, not {args!r:.80}")
        wrong: list[Any] = [each for each in list[Any](args) if not isinstance(each, DAGNode)]
        if wrong:
            raise GraphError(f"MultiOutputNode takes a list of nodes; {wrong[0]!r:.80} is none")
        super().__init__(tuple(args))

    def _run(self, results: dict[DAGNode, Any]) -> Any:
        return [results[node] for node in self._bound_args]

    def __repr__(self) -> str:
        return f"MultiOutputNode({', '.join(map(repr, self._bound_args))})"


def _given_options(options: Any) -> dict[str, Any]:
    """The options that a task or actor class was given, without the defaults of the others."""
    return {name: getattr(options, name) for name in sorted(options.given)}


def _no_attribute(owner: Any, name: str, kind: str) -> AttributeError:
    problem = (
        f".{name}() cannot be used on {kind}, which are run by execute()"
        if name == "remote"
        else (f"{type(owner).__name__!r} object has no attribute {name!r}")
    )
    return AttributeError(problem, name=name, obj=owner)


# --- walking ------------------------------------------------------------------------------------------


def found_in(value: Any) -> Iterator[DAGNode]:
    """The nodes in a value: itself, or inside lists, tuples and dicts."""
    if isinstance(value, DAGNode):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from found_in(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from found_in(each)


def filled_in(value: Any, results: dict[DAGNode, Any]) -> Any:
    """The value with results in place of nodes; itself if it contains none."""
    if isinstance(value, DAGNode):
        return results[value]
    if next(found_in(value), None) is None:
        return value
    if isinstance(value, dict):
        return {key: filled_in(each, results) for key, each in value.items()}
    items = [filled_in(each, results) for each in value]
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def ordered(root: DAGNode) -> list[DAGNode]:
    """All nodes that `root` needs, and `root`: each after those that it needs, otherwise in the order of binding."""
    needed_by: dict[DAGNode, list[DAGNode]] = {}
    missing: dict[DAGNode, int] = {}
    new = [root]
    while new:
        node = new.pop()
        if node in missing:
            continue
        needs = dict.fromkeys(node._needs())
        missing[node] = len(needs)
        for other in needs:
            needed_by.setdefault(other, []).append(node)
            new.append(other)
    ready = [(node._number, node._stable_uuid, node) for node, count in missing.items() if not count]
    heapq.heapify(ready)
    result = []
    while ready:
        node = heapq.heappop(ready)[2]
        result.append(node)
        for other in needed_by.get(node, ()):
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(ready, (other._number, other._stable_uuid, other))
    return result


def _given(nodes: list[DAGNode], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value of the InputNode among `nodes`."""
    inputs = [node for node in nodes if isinstance(node, InputNode)]
    if len(inputs) > 1:
        raise GraphError(f"a graph has one InputNode, this one has {len(inputs)}: bind all its steps to the same one")
    if inputs and not args and not kwargs:
        hint = "; an InputNode is made by `with InputNode() as x:` (a context manager), and x is what is bound"
        raise GraphError(
            "the graph has an InputNode, so execute() needs an argument for it" + ("" if inputs[0]._entered else hint)
        )
    if not inputs and (args or kwargs):
        raise TypeError("the graph has no InputNode, so execute() takes no arguments")
    return input_value(args, kwargs)


def input_value(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an InputNode stands for: the one positional argument, or all of them."""
    return args[0] if len(args) == 1 and not kwargs else DAGInputData(*args, **kwargs)
