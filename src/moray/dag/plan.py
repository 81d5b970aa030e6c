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
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MultiOutputNode,
    found_in,
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


class GraphPlan:
    """The parts of all actors, and the channels between them. Raises ValueError for what cannot be compiled."""

    def __init__(self, root: DAGNode, graph: str) -> None:
        self.several = isinstance(root, MultiOutputNode)
        nodes = ordered(root)
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

    def _add(self, node: DAGNode, root: DAGNode) -> None:
        if isinstance(node, InputNode):
            if INPUT_PLACE in self._places.values():
                raise ValueError("a graph has one InputNode, this one has several: bind all its steps to the same one")
            self._places[node] = INPUT_PLACE
        elif isinstance(node, ClassMethodNode):
            self._add_step(node)
        elif isinstance(node, FunctionNode):
            raise ValueError(  # noqa: TRY004 - as for all graphs that cannot be compiled.
                f"{node!r} is a task: only methods of actors can be compiled; use execute(), or an actor"
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
                raise ValueError(
                    f"{label} is bound to no other step: nothing would tell it when to run. Bind it to the InputNode, "
                    "or to a part of it"
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
        if next(found_in(value), None) is not None:
            raise ValueError(
                f"{label} has a step inside one of its arguments: bind each step as an argument of its own"
            )
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
