"""What each actor of a compiled graph does, decided once: plain data that travels to the actors.

Each value of an execution has a *place*, a number. The graph's input is place 0. An actor goes through its steps in
the order of binding; before a step it reads from its channels what that step is the first to need. A step whose result
others need writes it to a channel of its own. Within one actor values are handed on as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from moray.actor import ActorHandle
from moray.dag.collective import CollectiveOutputNode
from moray.dag.nodes import (
    ClassMethodNode,
    ClassNode,
    DAGInputData,
    DAGNode,
    FunctionNode,
    GraphError,
    InputAttributeNode,
    InputNode,
    MultiOutputNode,
    found_in,
    input_value,
    ordered,
)

if TYPE_CHECKING:
    from moray.runtime.channels import ChannelSpec

#: Where an argument comes from: ("constant", value), ("place", number) or ("part", key, accessor) of the input.
Argument: TypeAlias = tuple[Any, ...]

#: Instead of an actor: the process that compiles.
DRIVER = None
INPUT_PLACE = 0


@dataclass
class Step:
    """One call of a method, or the choice of one of its values."""

    #: For errors: "Class.method".
    label: str
    method: str
    place: int
    args: list[Argument] = field(default_factory=list)
    kwargs: dict[str, Argument] = field(default_factory=dict)
    #: How many values it gives.
    num_returns: int = 1
    #: Instead of the method.
    function: Callable[..., Any] | None = None
    #: Not a call: (place of the call's values, which of them).
    value_of: tuple[int, int] | None = None
    #: Places to read from channels first.
    reads: list[int] = field(default_factory=list)


@dataclass
class ActorPlan:
    """An actor's part of a graph."""

    #: The graph's id.
    graph: str
    handle: ActorHandle[Any] | None
    steps: list[Step] = field(default_factory=list)
    #: Place → (channel, which of its readers).
    inputs: dict[int, tuple[ChannelSpec, int]] = field(default_factory=dict)
    #: Place → channel.
    outputs: dict[int, ChannelSpec] = field(default_factory=dict)
    places: int = 0
    extent_bytes: int = 0


class TaskInGraphError(GraphError, NotImplementedError):
    """A task stands among the steps of a graph that is to be compiled."""


class GraphPlan:
    """The parts of all actors, and the channels between them. Raises ValueError for what cannot be compiled."""

    def __init__(self, root: DAGNode, graph: str) -> None:
        self.several = isinstance(root, MultiOutputNode)
        nodes = ordered(root)
        #: Keys of the parts of the input that steps take; empty: they take it whole.
        self.parts = _parts(nodes)
        self._places: dict[DAGNode, int] = {}
        #: Actor → its part.
        self.actors: dict[bytes, ActorPlan] = {}
        self._graph = graph
        #: Place → who makes it: an actor or the driver.
        self.makers: dict[int, bytes | None] = {INPUT_PLACE: DRIVER}
        #: Place → who reads it from a channel, in the order of its readers.
        self.readers: dict[int, list[bytes | None]] = {}
        for node in nodes:
            self._add(node, root)
        if not self.makers.keys() - {INPUT_PLACE}:
            raise ValueError("there is nothing to compile: the graph has no call of an actor's method")
        results = list(root._bound_args) if isinstance(root, MultiOutputNode) else [root]
        #: The places that the driver reads, one per result.
        self.results = [self._result_place(node) for node in results]
        for plan in self.actors.values():
            self._find_reads(plan)
        for place in dict.fromkeys(self.results):
            self.readers.setdefault(place, []).append(DRIVER)
        for plan in self.actors.values():
            plan.places = len(self._places) + 1
        _refuse_left_out(nodes)

    def _add(self, node: DAGNode, root: DAGNode) -> None:
        if isinstance(node, InputNode):
            if INPUT_PLACE in self._places.values():
                raise ValueError("a graph has one InputNode, this one has several: bind all its steps to the same one")
            self._places[node] = INPUT_PLACE
        elif isinstance(node, ClassMethodNode):
            self._add_step(node)
        elif isinstance(node, FunctionNode):
            raise TaskInGraphError(
                f"{node!r} is a task, and what is compiled are methods of actors: make it one, or run the graph step "
                "by step, with execute()"
            )
        elif isinstance(node, ClassNode):
            raise ValueError(  # noqa: TRY004
                f"{node!r} would make its actor anew for each execution: make it with .remote() and bind the handle's "
                "methods"
            )
        elif not isinstance(node, InputAttributeNode) and node is not root:
            raise ValueError(f"{node!r} cannot be an argument: MultiOutputNode is the end of a graph")

    def _add_step(self, node: ClassMethodNode) -> None:
        handle = node._actor
        assert isinstance(handle, ActorHandle)  # A ClassNode comes before its methods.
        place = self._places[node] = len(self._places) + 1
        actor = handle._moray_actor
        self.makers[place] = actor
        plan = self.actors.get(actor)
        if plan is None:
            plan = self.actors[actor] = ActorPlan(self._graph, handle)
        label = f"{handle._moray_shared.meta.class_name}.{node._name}"
        step = Step(label, node._name, place, num_returns=node._num_returns)
        if isinstance(node, CollectiveOutputNode):
            step.function = node._function
        if node._output is not None:
            call, index = node._output
            step.value_of = self._places[call], index
        else:
            if step.function is None:
                self._check_call(node, label)
            step.args = [self._argument(value, label) for value in node._bound_args]
            step.kwargs = {name: self._argument(value, label) for name, value in node._bound_kwargs.items()}
            if all(source[0] == "constant" for source in (*step.args, *step.kwargs.values())):
                _refuse_hidden(label, node)
                raise GraphError(
                    f"{label} is bound to no other step: nothing would tell it when to run. Bind the InputNode or "
                    "another step to it"
                )
        plan.steps.append(step)

    def _check_call(self, node: ClassMethodNode, label: str) -> None:
        assert node._method is not None
        settings = node._method._plan.settings
        if settings.streaming:
            raise ValueError(f"{label} is a generator, which cannot be compiled: have it return a list")
        if settings.num_returns == 0:
            raise ValueError(f"{label} has num_returns=0; a step of a compiled graph has a result, which may be None")

    def _argument(self, value: Any, label: str) -> Argument:
        if isinstance(value, InputAttributeNode):
            return "part", value._key, value._accessor
        if isinstance(value, DAGNode):
            return "place", self._places[value]
        count = sum(1 for _ in found_in(value))
        if count:
            raise _hidden(label, value, count)
        return "constant", value

    def _result_place(self, node: DAGNode) -> int:
        if not isinstance(node, ClassMethodNode):
            raise ValueError(  # noqa: TRY004 - as for all graphs that cannot be compiled.
                f"{node!r} cannot be a result of a compiled graph: results come from methods of actors"
            )
        return self._places[node]

    def _find_reads(self, plan: ActorPlan) -> None:
        """Which places the actor gets through channels, and before which step."""
        assert plan.handle is not None
        actor = plan.handle._moray_actor
        seen: set[int] = set()
        for step in plan.steps:
            for source in (*step.args, *step.kwargs.values()):
                place = source[1] if source[0] == "place" else INPUT_PLACE
                if source[0] != "constant" and self.makers[place] != actor and place not in seen:
                    seen.add(place)
                    step.reads.append(place)
                    self.readers.setdefault(place, []).append(actor)


def _parts(nodes: list[DAGNode]) -> list[int | str]:
    """The keys of the parts of the input that the steps take, in the order in which they were asked for."""
    whole = any(
        isinstance(needed, InputNode)
        for node in nodes
        if not isinstance(node, InputAttributeNode)
        for needed in found_in([node._bound_args, node._bound_kwargs])
    )
    taken = {node._key: None for node in nodes if isinstance(node, InputAttributeNode)}
    if whole and taken:
        raise GraphError(
            f"the graph takes its input whole and the parts {', '.join(map(repr, taken))} of it: bind either the whole "
            "input to every step that needs some of it, or parts of it"
        )
    asked = next((node._keys for node in nodes if isinstance(node, InputNode)), {})
    unused = [key for key in asked if key not in taken]
    if taken and unused:
        raise GraphError(
            f"of the parts of the input that were asked for ({', '.join(map(repr, asked))}), no step of the graph uses "
            f"{', '.join(map(repr, unused))}: bind it to a step that leads to a result, or do not ask for it"
        )
    return list(taken)


def _refuse_hidden(label: str, node: ClassMethodNode) -> None:
    """Look for steps in attributes of a step's arguments."""
    for value in (*node._bound_args, *node._bound_kwargs.values()):
        count = sum(isinstance(each, DAGNode) for each in getattr(value, "__dict__", {}).values())
        if count:
            raise _hidden(label, value, count)


def _hidden(label: str, value: Any, count: int) -> GraphError:
    return GraphError(
        f"{label} has a step inside one of its arguments ({value!r:.80} holds {count} DAGNodes): bind each step as an "
        "argument of its own"
    )


def _refuse_left_out(nodes: list[DAGNode]) -> None:
    """Whoever binds a call and forgets its result would wonder that it never runs."""
    seen = {id(node._trace) for node in nodes}
    left_out = []
    new = [node._trace for node in nodes]
    while new:
        for trace in new.pop().used_by:
            if id(trace) not in seen:
                seen.add(id(trace))
                new.append(trace)
                if trace.step and not trace.used_by:
                    left_out.append(trace.step)
    if left_out:
        raise GraphError(
            f"nobody takes the results of {', '.join(left_out)} (leaf nodes: {len(left_out)}), so they would never "
            "run: bind them to a later step, or make them part of the MultiOutputNode"
        )


def input_of(parts: list[int | str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value of a compiled graph's InputNode. Parts of it are arguments, also of a single one."""
    if not parts:
        if not args and not kwargs:
            raise GraphError("execute() of a compiled graph needs an argument: the value of its InputNode")
        return input_value(args, kwargs)
    called = "the graph takes parts of its input, which are arguments of execute() and execute_async():"
    wanted = max((key for key in parts if isinstance(key, int)), default=-1) + 1
    if len(args) != wanted:
        raise GraphError(f"{called} it needs {wanted} positional ones, and got {len(args)}")
    for key in parts:
        if isinstance(key, str) and key not in kwargs:
            raise GraphError(f"{called} it needs the keyword {key!r}, and got {', '.join(map(repr, kwargs)) or 'none'}")
    return DAGInputData(*args, **kwargs)
