"""Futures of the operations of a compiled graph, under the names that programs for Ray import.

moray's compiled graphs run each operation to its end before they hand its value on, so that the only future there is
has its value already. Those of a GPU's stream can be imported, and say when they are made that there are none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, NoReturn, TypeVar

__all__ = ["DAGOperationFuture", "GPUFuture", "ResolvedFuture"]

T = TypeVar("T")


class DAGOperationFuture(ABC, Generic[T]):
    """The value of an operation that may not be there yet."""

    @abstractmethod
    def wait(self) -> T:
        """The value, when it is there."""


class ResolvedFuture(DAGOperationFuture[T]):
    """A value that is there.

    Example:
        >>> from moray.dag.dag_operation_future import ResolvedFuture
        >>> ResolvedFuture(5).wait()
        5
    """

    def __init__(self, result: T) -> None:
        self._result = result

    def wait(self) -> T:
        """The value."""
        return self._result


class GPUFuture(DAGOperationFuture[Any]):
    """What a GPU's stream will have written. There is none here."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.wait()

    def wait(self) -> NoReturn:
        """Raises RuntimeError."""
        raise RuntimeError(
            "GPUFuture stands for what a GPU's stream will have written, and compiled graphs of moray use no GPU "
            "streams: the values of their steps are complete when they are handed on (ResolvedFuture)"
        )
