"""What the shows of the demo have in common: one thing that moray does, run once, checked and timed."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Wrong(Exception):  # noqa: N818 - what the demo says, not what went wrong in it
    """What came out is not what must come out."""


class Show(ABC):
    """One thing to be shown, in the running session."""

    #: One or two words, for tables.
    name: str
    #: What it does, one line.
    detail: str

    @abstractmethod
    def run(self) -> str:
        """Do it, check it, and say in one line what came out. Raises Wrong."""


def check(right: bool, what: str) -> None:
    """Raise Wrong unless it is right."""
    if not right:
        raise Wrong(what)
