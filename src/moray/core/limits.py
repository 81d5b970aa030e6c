"""How many calls of one concurrency group of an actor run at once.

Whoever begins a call takes a place, or lines up with a *ticket*, which is whatever wakes it. A place that is given back
goes to the first ticket in the line, which has it from that moment on, whether or not its holder knows already. So a
newcomer overtakes nobody, and who is cancelled while it is being woken has a place to give back.

Invariants:

- LIMITS-1: at most `size` places are taken.
- LIMITS-2: a place is free only if nobody waits.
- LIMITS-3: tickets are called in the order in which they lined up, each once, and none that was withdrawn.
"""

from __future__ import annotations

from typing import Any


class Limit:
    """The places of one group. Owned by whichever thread begins the group's calls."""

    __slots__ = ("_waiting", "free")

    def __init__(self, size: int) -> None:
        #: Places that nobody has. An event loop that has looked may count it down itself.
        self.free = size
        #: Tickets, oldest first.
        self._waiting: dict[Any, None] = {}

    def take(self) -> bool:
        """Take a place, if one is free."""
        if not self.free:
            return False
        self.free -= 1
        return True

    def line_up(self, ticket: Any) -> None:
        """None was free: wait for the next."""
        self._waiting[ticket] = None

    def withdraw(self, ticket: Any) -> bool:
        """Its holder waits no longer. False: it has a place already, to be given back."""
        if ticket not in self._waiting:
            return False
        del self._waiting[ticket]
        return True

    def release(self) -> Any:
        """A place is given back: the ticket that has it now, to be woken; None: it is free."""
        if not self._waiting:
            self.free += 1
            return None
        ticket = next(iter(self._waiting))
        del self._waiting[ticket]
        return ticket
