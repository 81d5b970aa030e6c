"""Carrying out what a core has decided: the one loop that its shells share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class Performer:
    """Carries out actions in the order in which they were decided.

    What one of them leads to comes after the others that were decided with it, not between them.
    """

    def __init__(self, performers: Mapping[type[Any], Callable[[Any], None]]) -> None:
        self._performers = performers
        #: Decided and not carried out; whether somebody up the stack is about it.
        self._todo: deque[Any] = deque()
        self._performing = False

    def __call__(self, actions: Iterable[Any]) -> None:
        self._todo.extend(actions)
        if self._performing:
            return
        self._performing = True
        try:
            while self._todo:
                action = self._todo.popleft()
                self._performers[type(action)](action)
        finally:
            self._performing = False
