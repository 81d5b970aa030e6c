"""What the jobs of the demo have in common: run one way or the other, tell progress, be comparable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import moray

T = TypeVar("T")

#: Called once for each piece of work that is finished.
Advance = Callable[[], None]


class Job(ABC, Generic[T]):
    """A piece of real work whose serial and parallel runs must have equal results."""

    #: One word, for tables.
    name: str
    #: What it does and how much of it, one line.
    detail: str
    #: How often a run calls `advance`.
    steps: int

    @abstractmethod
    def serial(self, advance: Advance) -> T:
        """Does the work in this process."""

    @abstractmethod
    def parallel(self, advance: Advance) -> T:
        """Does the same work in tasks."""

    @abstractmethod
    def equal(self, one: T, other: T) -> bool:
        """Whether two results are the same, exactly."""

    @abstractmethod
    def summary(self, result: T) -> str:
        """What came out, one line."""


def advance_as_ready(refs: Iterable[Any], advance: Advance) -> None:
    """Waits for all `refs`, advancing as each becomes ready, whatever the order."""
    waiting = list(refs)
    while waiting:
        ready, waiting = moray.wait(waiting, num_returns=1)
        for _ in ready:
            advance()
