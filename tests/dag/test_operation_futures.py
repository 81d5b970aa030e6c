"""Names of Ray's that can be imported without a GPU."""

from __future__ import annotations

import pytest

from moray.dag.dag_operation_future import DAGOperationFuture, GPUFuture, ResolvedFuture


def test_resolved() -> None:
    future: DAGOperationFuture[int] = ResolvedFuture(5)
    assert future.wait() == 5


def test_a_gpus_says_that_there_is_none() -> None:
    assert issubclass(GPUFuture, DAGOperationFuture)
    with pytest.raises(RuntimeError, match="no GPU streams"):
        GPUFuture(object(), 1)
