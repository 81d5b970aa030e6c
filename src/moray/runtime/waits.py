"""What threads and coroutines of this process wait for now, noted so that it can be told.

A wait is noted as a plain tuple in a dict, by one C step, because the synchronous ``get`` is a hot path; whoever
explains reads it as a :class:`Wait`. Entries may also be the inboxes of generators.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from moray import config

if TYPE_CHECKING:
    from moray.object_ref import Entry
    from moray.runtime.runtime import Runtime, Waiter


class Wait(NamedTuple):
    """One wait."""

    #: How the user wrote it: "get()", "wait()", "await", "next()".
    how: str
    #: What for.
    entries: Sequence[Any]
    #: How many of them must be ready; 0: all.
    needed: int
    #: When it began, monotonic.
    since: float
    #: The task or call that waits; None in a driver, and in threads that belong to none.
    work: Any
    #: The thread; 0: a coroutine.
    thread: int
    #: It ends by itself after so long; None: it does not.
    timeout_s: float | None

    def missing(self) -> list[Any]:
        """What is not ready, as entries: a generator's is that of its task."""
        return [own_entry(entry) for entry in self.entries if not entry.ready]

    def lacks(self) -> int:
        """How many more must get ready."""
        missing = sum(not entry.ready for entry in self.entries)
        return missing if not self.needed else self.needed - (len(self.entries) - missing)


def answered(runtime: Runtime, entry: Entry, waiter: Waiter, deadline: float | None) -> bool:
    """Whether another process's object is here in a moment: then it was finished, and this was no wait (LEASE)."""
    soon = monotonic() + config.ANSWER_S
    if entry.origin is not runtime.origin:
        runtime.block(waiter, soon if deadline is None else min(soon, deadline))
    return entry.ready


def own_entry(entry: Any) -> Any:
    """The entry behind an inbox: that of its task's own object."""
    ref = getattr(entry, "ref", None)
    return entry if ref is None else ref._entry
