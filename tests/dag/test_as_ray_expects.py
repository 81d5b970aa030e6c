"""What programs for Ray rely on in graphs: order of a new actor's steps, parts of inputs, kinds of errors."""

from __future__ import annotations

import copy
import pickle
from types import ModuleType
from typing import Any, cast

import pytest

import moray
from moray.dag import InputNode, MultiOutputNode


@moray.remote(num_cpus=0)
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, x: int) -> int:
        self.value += x
        return self.value

    def add_two(self, x: int, y: int) -> int:
        self.value += x + y
        return self.value

    def get(self) -> int:
        return self.value

    @moray.method(num_returns=2)
    def pair(self, x: int) -> tuple[int, int]:
        return x, x + 1


@moray.remote(num_cpus=0)
def total(*parts: int) -> int:
    return sum(parts)


def test_a_new_actor_runs_all_steps_that_were_bound_before(shared_session: ModuleType) -> None:
    first, second = Counter.bind(10), Counter.bind(100)
    first.add.bind(1)  # Nobody takes these results.
    first.add.options(name="plus two").bind(2)
    second.add.bind(5)
    graph = total.bind(first.get.bind(), second.get.bind())
    assert moray.get(graph.execute()) == 118
    step = graph.get_args()[0].get_other_args_to_resolve()["prev_class_method_call"]
    assert step.get_options() == {"name": "plus two"}
    assert step.get_other_args_to_resolve()["prev_class_method_call"].get_args() == (1,)


def test_options_of_steps() -> None:
    assert Counter.options(name="it", max_pending_calls=3).bind().get_options() == {
        "name": "it", "max_pending_calls": 3, "num_cpus": 0,
    }  # fmt: skip
    assert total.options(max_retries=1).bind(1).get_options() == {"max_retries": 1, "num_cpus": 0}


def test_parts_of_a_compiled_graphs_input_are_arguments(shared_session: ModuleType) -> None:
    counter: Any = Counter.remote()
    with InputNode() as x:
        graph = MultiOutputNode([counter.add.bind(x[0]), counter.add.bind(x[0])])
    with graph.experimental_compile() as compiled:
        refs: Any = compiled.execute(3)
        assert moray.get(refs) == [3, 6]
        for wrong in ((), (1, 2)):
            with pytest.raises(ValueError, match=rf"it needs 1 positional ones, and got {len(wrong)}"):
                compiled.execute(*wrong)
    with InputNode() as x:
        named = counter.add_two.bind(x.left, x["right"])
    with named.experimental_compile() as compiled:
        refs = compiled.execute(left=1, right=2)
        assert moray.get(refs) == 9
        with pytest.raises(ValueError, match="it needs the keyword 'right', and got 'left'"):
            compiled.execute(left=1)


def test_steps_that_would_never_run_are_refused(shared_session: ModuleType) -> None:
    counter: Any = Counter.remote()
    with InputNode() as x:
        counter.add.bind(x)
        graph = counter.add.bind(x)
    with pytest.raises(ValueError, match=r"results of Counter.add .*leaf nodes: 1"):
        graph.experimental_compile()
    with InputNode() as x:
        first, _second = counter.pair.bind(x)
    with pytest.raises(ValueError, match="leaf nodes: 1"):
        first.experimental_compile()
    with InputNode() as x:
        parts = x[0], x[1]
        graph = counter.add.bind(parts[0])
    with pytest.raises(ValueError, match=r"asked for \(0, 1\), no step of the graph uses 1: "):
        graph.experimental_compile()
    with InputNode() as x:
        graph = counter.add_two.bind(x, x[0])
    with pytest.raises(ValueError, match="input whole and the parts 0 of it"):
        graph.experimental_compile()


def test_kinds_of_errors(shared_session: ModuleType) -> None:
    counter: Any = Counter.remote()
    with pytest.raises(ValueError, match="has no arguments"):
        InputNode(1)
    with InputNode() as x:
        with pytest.raises(AssertionError, match="by a number or a string"):
            x[1.5]
        with pytest.raises(ValueError, match="constructor"):
            Counter.bind(x)
        with pytest.raises(ValueError, match="list of nodes"):
            MultiOutputNode(counter.add.bind(x))
    with pytest.raises(AssertionError, match="context manager"):
        total.bind(InputNode()).execute()
    with pytest.raises(AssertionError, match="has one InputNode, this one has 2"):
        total.bind(InputNode(), InputNode()).execute(1)
    wrongs: list[tuple[Any, str]] = [
        (lambda: cast("Any", Counter.bind()).bind(), "is bound already"),
        (lambda: cast("Any", Counter.bind()).remote(), "'Counter' has no attribute 'remote'"),
        (lambda: Counter.bind().get.remote(), r"\.remote\(\) cannot be used on ClassMethodNodes"),
        (lambda: total.bind().remote(), r"\.remote\(\) cannot be used on"),
    ]
    for wrong, problem in wrongs:
        with pytest.raises(AttributeError, match=problem):
            wrong()
    with InputNode() as x:
        graph = total.bind(x)
    with pytest.raises(NotImplementedError, match="methods of actors"):
        graph.experimental_compile()


def test_results_of_compiled_graphs(shared_session: ModuleType) -> None:
    counter: Any = Counter.remote()
    with InputNode() as x:
        graph = MultiOutputNode([counter.add.bind(x), counter.add.bind(x)])
    with graph.experimental_compile() as compiled:
        refs: Any = compiled.execute(1)
        assert repr(refs[1]) == f"CompiledDAGRef({compiled.get_id()}, execution_index=0, channel_index=1)"
        ways: list[tuple[Any, str]] = [(copy.copy, "copied"), (copy.deepcopy, "deep copied"), (pickle.dumps, "pickled")]
        for way, what in ways:
            with pytest.raises(ValueError, match=f"cannot be {what}"):
                way(refs[0])
        with pytest.raises(ValueError, match="results of compiled graphs only beside"):
            moray.get([*refs, cast("Any", None)])
        assert moray.get(refs) == [1, 2]
        with pytest.raises(ValueError, match="fetched already"):
            moray.get(refs[0])
