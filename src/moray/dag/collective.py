"""Collective steps of a graph: ``allreduce.bind([a, b, …])`` gives a step for each of the actors of the nodes.

Each actor gets the values of all the others, and makes its result of them itself: by calls that pass references, or, in
a compiled graph, through channels, in which large arrays are read where they lie. So the results are the same on all
of them, bit for bit: the order of the additions is that of the nodes.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial, reduce
from typing import Any, Final

from moray.dag.nodes import ClassMethodNode, DAGNode


class ReduceOp(Enum):
    """How values become one."""

    SUM = 0
    PRODUCT = 1
    MAX = 2
    MIN = 3
    AVERAGE = 4


class CollectiveOutputNode(ClassMethodNode):
    """One actor's part of a collective step."""

    def __init__(self, node: ClassMethodNode, name: str, function: Callable[..., Any], args: list[DAGNode]) -> None:
        handle: Any = node._actor
        super().__init__(handle, name, None, tuple(args))
        self._function = function

    @property
    def collective_op(self) -> str:
        """What it does: "allreduce", "allgather" or "reducescatter"."""
        return self._name

    def _run(self, results: dict[DAGNode, Any]) -> Any:
        from moray.actor import ActorHandle

        actor: Any = self._actor
        handle: Any = actor if isinstance(actor, ActorHandle) else results[actor]
        args, _ = self._filled_in(results)
        return handle.__getattr__("__ray_call__").remote(_call, self._function, *args)


def _call(_instance: Any, function: Callable[..., Any], *values: Any) -> Any:
    """In the actor."""
    return function(*values)


class Collective:
    """``bind`` makes the steps."""

    def __init__(self, name: str, function: Callable[..., Any], reduces: bool) -> None:
        self._name = name
        self._function = function
        self._reduces = reduces

    def bind(
        self,
        input_nodes: Sequence[DAGNode],
        op: ReduceOp = ReduceOp.SUM,
        transport: Any = None,  # noqa: ARG002 - see the docstring.
    ) -> list[CollectiveOutputNode]:
        """A step for each of the nodes, in its actor.

        Args:
            input_nodes: steps of different actors; their values are numbers, or arrays or tensors of equal shape.
            op: how values become one.
            transport: accepted; values travel as others do.

        Raises:
            ValueError: no nodes, or some that are no methods of actors, or two of the same actor.

        Example:
            >>> import moray
            >>> from moray.dag import InputNode, MultiOutputNode
            >>> from moray.experimental.collective import allreduce
            >>> @moray.remote
            ... class Part:
            ...     def __init__(self, factor):
            ...         self.factor = factor
            ...     def scale(self, x):
            ...         return self.factor * x
            >>> parts = [Part.remote(1), Part.remote(10)]
            >>> with InputNode() as x:
            ...     graph = MultiOutputNode(allreduce.bind([part.scale.bind(x) for part in parts]))
            >>> with graph.experimental_compile() as compiled:
            ...     [ref.get() for ref in compiled.execute(3)]
            [33, 33]
        """
        nodes = list(input_nodes)
        wrong = next((node for node in nodes if not isinstance(node, ClassMethodNode)), None)
        if not nodes or wrong is not None:
            raise ValueError(f"{self._name}.bind() takes steps that are methods of actors, not {wrong or nodes!r:.80}")
        actors = [node._actor for node in nodes if isinstance(node, ClassMethodNode)]
        if any(actor == other for index, actor in enumerate(actors) for other in actors[:index]):
            raise ValueError(f"{self._name}.bind() takes one step of each actor, and has two of one: {nodes!r:.200}")
        return [
            CollectiveOutputNode(node, self._name, self._part(rank, len(nodes), op), list(nodes))
            for rank, node in enumerate(nodes)
            if isinstance(node, ClassMethodNode)
        ]

    def _part(self, rank: int, size: int, op: ReduceOp) -> Callable[..., Any]:
        return partial(self._function, rank, size, op) if self._reduces else self._function


def _reduced(_rank: int, size: int, op: ReduceOp, *values: Any) -> Any:
    if op is ReduceOp.SUM:
        return reduce(operator.add, values)
    if op is ReduceOp.AVERAGE:
        return reduce(operator.add, values) / size
    if op is ReduceOp.PRODUCT:
        return reduce(operator.mul, values)
    library = _library_of(values[0])
    if library is None:
        return max(values) if op is ReduceOp.MAX else min(values)
    return reduce(library.maximum if op is ReduceOp.MAX else library.minimum, values)


def _scattered(rank: int, size: int, op: ReduceOp, *values: Any) -> Any:
    rows = len(values[0])
    if rows % size:
        raise ValueError(f"reducescatter over {size} actors needs a number of rows that they can share, not {rows}")
    part = rows // size
    return _reduced(rank, size, op, *(value[rank * part : (rank + 1) * part] for value in values))


def _gathered(*values: Any) -> Any:
    library = _library_of(values[0])
    if library is None:
        return list(values)
    return library.cat(values) if hasattr(library, "cat") else library.concatenate(values)


def _library_of(value: Any) -> Any:
    """The library of arrays, numpy or torch, that the value is one of."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        return torch
    return numpy if numpy is not None and isinstance(value, numpy.ndarray) else None


#: All values as one, in each actor.
allreduce: Final = Collective("allreduce", _reduced, reduces=True)
#: All values one behind the other (numbers: a list of them), in each actor.
allgather: Final = Collective("allgather", _gathered, reduces=False)
#: All values as one, of which each actor has its share of the rows.
reducescatter: Final = Collective("reducescatter", _scattered, reduces=True)
