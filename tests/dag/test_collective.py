"""Collective steps: the same results by calls and compiled."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import moray
from moray.dag import CollectiveOutputNode, InputNode, MultiOutputNode
from moray.experimental.collective import ReduceOp, allgather, allreduce, reducescatter


@moray.remote
class Part:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def scale(self, x: Any) -> Any:
        return self.factor * x

    def fail(self, x: Any) -> Any:
        raise KeyError("not here")


DATA = np.arange(60_000.0).reshape(6, 10_000)


def results(collective: Any, op: ReduceOp, value: Any) -> list[Any]:
    """Of three actors, after seeing that calls and the compiled graph agree."""
    parts: list[Any] = [Part.remote(factor) for factor in (1, 2, 3)]
    with InputNode() as x:
        nodes = collective.bind([part.scale.bind(x) for part in parts], op)
        graph = MultiOutputNode([part.scale.bind(node) for part, node in zip(parts, nodes, strict=True)])
    assert all(isinstance(node, CollectiveOutputNode) for node in nodes)
    called: list[Any] = moray.get(graph.execute(moray.put(value)))
    with graph.experimental_compile() as compiled:
        several: list[Any] = [compiled.execute(value) for _ in range(3)]
        for refs in several:
            for ref, expected in zip(refs, called, strict=True):
                np.testing.assert_array_equal(ref.get(), expected)
    return called


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (ReduceOp.SUM, 6 * DATA),
        (ReduceOp.PRODUCT, 6 * DATA**3),
        (ReduceOp.MAX, 3 * DATA),
        (ReduceOp.MIN, DATA),
        (ReduceOp.AVERAGE, 2 * DATA),
    ],
)
def test_allreduce(shared_session: ModuleType, op: ReduceOp, expected: Any) -> None:
    for factor, result in enumerate(results(allreduce, op, DATA), 1):
        np.testing.assert_allclose(result, factor * expected)


def test_numbers(shared_session: ModuleType) -> None:
    assert results(allreduce, ReduceOp.MAX, 5) == [15, 30, 45]
    assert results(allgather, ReduceOp.SUM, 5)[0] == [5, 10, 15]


def test_allgather_and_reducescatter(shared_session: ModuleType) -> None:
    gathered = results(allgather, ReduceOp.SUM, DATA)
    np.testing.assert_array_equal(gathered[1], 2 * np.concatenate([DATA, 2 * DATA, 3 * DATA]))
    scattered = results(reducescatter, ReduceOp.SUM, DATA)
    for rank, share in enumerate(scattered):
        np.testing.assert_array_equal(share, (rank + 1) * 6 * DATA[2 * rank : 2 * rank + 2])


def test_errors(shared_session: ModuleType) -> None:
    first: Any = Part.remote(1)
    second: Any = Part.remote(2)
    with InputNode() as x:
        with pytest.raises(ValueError, match="two of one"):
            allreduce.bind([first.scale.bind(x), first.scale.bind(x)])
        with pytest.raises(ValueError, match="methods of actors"):
            allreduce.bind([x])
    with InputNode() as x:
        graph = MultiOutputNode(reducescatter.bind([first.scale.bind(x), second.scale.bind(x)]))
        failing = MultiOutputNode(allreduce.bind([first.scale.bind(x), second.fail.bind(x)]))
    with graph.experimental_compile() as compiled:
        refs: Any = compiled.execute(np.zeros(3))
        with pytest.raises(ValueError, match="not 3"):
            refs[0].get()
    with failing.experimental_compile() as compiled:
        refs = compiled.execute(1)
        for ref in refs:
            with pytest.raises(KeyError, match="not here"):
                ref.get()
