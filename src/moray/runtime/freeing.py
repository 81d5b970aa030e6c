"""Objects that the user frees by hand, while references to them exist.

The owner gives the value up, everywhere, and the object becomes an error: whoever gets it, or asks for it from then on,
is told that it was freed. Another process that has fetched a small value keeps that until its references go. What the
owner does not have yet it leaves alone; whoever asked it to free the object counts it as freed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moray import exceptions
from moray.protocol import messages as m
from moray.runtime.values import dump_error

if TYPE_CHECKING:
    from moray.object_ref import Entry, ObjectRef
    from moray.runtime.runtime import Runtime


def free(runtime: Runtime, refs: list[ObjectRef[Any]]) -> None:
    """Free these objects, this process's and others'. Those of this process are freed when this returns."""
    entries = [ref._entry for ref in refs]
    if runtime.kind == "local":
        for entry in entries:
            if entry.ready and not entry.error:
                entry.error, entry.blob = True, dump_error(_error(entry))
        return

    def book() -> None:
        by_owner: dict[bytes, list[int]] = {}
        for entry in entries:
            if entry.origin is runtime.origin:
                free_own(runtime, entry)
            else:
                by_owner.setdefault(entry.origin.process, []).append(entry.key)
                _give_up(runtime, entry)
        for process, keys in by_owner.items():
            runtime.send(runtime.peer(process), m.Fetch([], free=keys))

    # The question is of no interest: `book` runs in the loop before it is asked.
    runtime.ask(m.ClusterInfo, lambda _answer: None, book)


def free_own(runtime: Runtime, entry: Entry) -> None:
    """Give up the value of an object of this process. Loop only."""
    if entry.ready and not entry.error:
        _give_up(runtime, entry)


def _give_up(runtime: Runtime, entry: Entry) -> None:
    runtime.values.give_up(entry)
    entry.seen = True
    runtime.values.fail(entry, _error(entry))
    entry.size = 0


def _error(entry: Entry) -> exceptions.ObjectFreedError:
    return exceptions.ObjectFreedError(entry.id.hex())
