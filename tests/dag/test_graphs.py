"""Graphs that are executed step by step: tasks, actors, inputs, outputs."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

import moray
from moray.dag import (
    ClassMethodNode,
    ClassNode,
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MultiOutputNode,
)

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote
def add(x: Any, y: Any = 1) -> Any:
    return x + y


@moray.remote
def gather(values: Any) -> Any:
    """Gets what lies inside a container, as references."""
    if isinstance(values, dict):
        return {key: moray.get(ref) for key, ref in values.items()}
    return [moray.get(ref) if isinstance(ref, moray.ObjectRef) else ref for ref in values]


@moray.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, x: int) -> int:
        self.value += x
        return self.value

    def pair(self, x: int) -> tuple[int, int]:
        return self.value, x


def test_a_graph_of_functions() -> None:
    with InputNode() as x:
        graph = add.bind(add.bind(x), y=add.bind(x, 10))
    assert isinstance(graph, FunctionNode)
    assert moray.get(graph.execute(5)) == 6 + 15
    assert moray.get(graph.execute(0)) == 1 + 10
    assert moray.get(graph.execute(moray.put(1))) == 2 + 11


def test_a_step_that_two_need_runs_once() -> None:
    counter = Counter.remote()
    with InputNode() as x:
        step = counter.add.bind(x)
        graph = MultiOutputNode([add.bind(step, 0), add.bind(step, 100), step])
    assert moray.get(graph.execute(3)) == [3, 103, 3]
    assert moray.get(counter.add.remote(0)) == 3


def test_steps_without_input_take_no_arguments() -> None:
    assert moray.get(add.bind(1, 2).execute()) == 3
    with pytest.raises(TypeError, match="takes no arguments"):
        add.bind(1).execute(2)
    with InputNode() as x, pytest.raises(TypeError, match="needs an argument"):
        add.bind(x).execute()


def test_parts_of_the_input() -> None:
    with InputNode() as inp:
        graph = add.bind(inp[0], inp.more)
        keyed = add.bind(inp["a"], inp["b"])
        attributes = add.bind(inp.a, inp.b)
    assert isinstance(graph.get_args()[0], InputAttributeNode)
    assert moray.get(graph.execute(1, more=2)) == 3
    assert moray.get(keyed.execute({"a": 1, "b": 5})) == 6
    assert moray.get(keyed.execute(a=2, b=5)) == 7
    assert moray.get(attributes.execute(SimpleNamespace(a=3, b=5))) == 8
    with pytest.raises(TypeError, match="no 'more'"):
        graph.execute(1, 2)


def test_steps_inside_containers_become_references() -> None:
    with InputNode() as x:
        in_list = gather.bind([add.bind(x), 7, add.bind(x, 2)])
        in_dict = gather.bind({"a": add.bind(x)})
    assert moray.get(in_list.execute(1)) == [2, 7, 3]
    assert moray.get(in_dict.execute(1)) == {"a": 2}


def test_named_tuples_keep_their_type() -> None:
    pair = namedtuple("pair", "left right")  # noqa: PYI024 - the plain kind is the thing under test
    from moray.dag.nodes import filled_in

    node = add.bind(1)
    filled = filled_in(pair(node, 2), {node: "x"})
    assert filled == pair("x", 2)
    assert type(filled) is pair


def test_an_actor_class_makes_an_actor_for_each_execution() -> None:
    node = Counter.bind(10)
    assert isinstance(node, ClassNode)
    with InputNode() as x:
        first = node.add.bind(x)
        second = node.add.bind(first)
    assert isinstance(second, ClassMethodNode)
    assert moray.get(second.execute(1)) == 22
    assert moray.get(second.execute(1)) == 22  # Not 33: another actor.
    handle = node.execute()
    assert moray.get(handle.add.remote(1)) == 11
    with pytest.raises(AttributeError, match="no method 'nothing'"):
        _ = node.nothing


def test_methods_of_a_handle_use_that_actor() -> None:
    counter = Counter.remote(100)
    with InputNode() as x:
        graph = counter.add.bind(counter.add.bind(x))
    assert moray.get(graph.execute(1)) == 202
    assert moray.get(counter.add.remote(0)) == 202


def test_several_values_of_a_method_are_steps_of_their_own() -> None:
    counter = Counter.remote(5)
    with InputNode() as x:
        value, given = counter.pair.options(num_returns=2).bind(x)
        graph = add.bind(value, given)
        of_class = MultiOutputNode(Counter.bind(1).pair.options(num_returns=2).bind(x))
    assert value.is_class_method_output
    assert moray.get(graph.execute(3)) == 8
    assert moray.get(of_class.execute(4)) == [1, 4]


def test_options_of_a_step() -> None:
    graph = add.options(name="renamed", num_cpus=0.5).bind(1, 1)
    assert moray.get(graph.execute()) == 2


def test_a_graph_can_be_pickled() -> None:
    with InputNode() as x:
        graph = add.bind(add.bind(x), 10)
    copy = cloudpickle.loads(cloudpickle.dumps(graph))
    assert copy.get_stable_uuid() == graph.get_stable_uuid()
    assert moray.get(add.bind(copy, 100).execute(1)) == 112


def test_a_long_chain_needs_no_deep_stack() -> None:
    with InputNode() as x:
        graph: DAGNode = add.bind(x, 0)
        for _ in range(3_000):
            graph = MultiOutputNode([graph])
    result = graph.execute(1)
    for _ in range(3_000):
        (result,) = result
    assert moray.get(result) == 1


def test_nodes_are_visited_after_what_they_need() -> None:
    with InputNode() as x:
        first = add.bind(x)
        second = add.bind(first, first)
    seen: list[DAGNode] = []
    second.traverse_and_apply(seen.append)
    assert seen == [x, first, second]


def test_wrong_uses_are_said_at_once() -> None:
    with pytest.raises(TypeError, match="argument"):
        add.bind(1, 2, 3)
    with pytest.raises(TypeError, match="argument"):
        Counter.bind(1, 2)
    counter = Counter.remote()
    with pytest.raises(TypeError, match="argument"):
        counter.add.bind()
    with pytest.raises(TypeError, match="list of nodes"):
        MultiOutputNode([1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one InputNode"):
        add.bind(InputNode(), InputNode()).execute(1)
