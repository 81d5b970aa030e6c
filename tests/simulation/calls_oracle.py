"""Judges actors and their calls, from what is run where and from how calls end (ACTORS-1, CALL-ORDER).

One process at a time is an actor, and each is a later incarnation than the one before. An incarnation runs a call
once, unless that asked to be tried again; an ordered actor begins the calls of each caller in the order in which it
made them, but for those. A call ends once, with a result, or with an error that has its cause.

Of a group of calls no more run at once than it allows, and none waits while a place is free (LIMITS). A coroutine
sees a cancel once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.world import ViolationError

if TYPE_CHECKING:
    from tests.simulation.oracle import Record
    from tests.simulation.process import Process
    from tests.simulation.universe import Universe


class CallsOracle:
    """The judge of calls."""

    def __init__(self, universe: Universe) -> None:
        self._universe = universe
        #: Actor → (incarnation, process) that began last; how many of its processes have died.
        self._latest: dict[bytes, tuple[int, Process]] = {}
        self._deaths: dict[bytes, int] = {}
        #: (caller, actor, incarnation) → the last seq that was begun in order.
        self._begun: dict[tuple[bytes, bytes, int], int] = {}
        #: (process, group) → the calls that run there, and those that wait.
        self._inside: dict[tuple[bytes, str], set[tuple[bytes, int]]] = {}
        self._outside: dict[tuple[bytes, str], dict[tuple[bytes, int], None]] = {}
        #: (process, caller, seq) → cancels that its coroutine has not seen.
        self._unseen: dict[tuple[bytes, bytes, int], int] = {}

    def began(self, worker: Process, actor: bytes, incarnation: int) -> None:
        """A worker becomes an actor."""
        latest = self._latest.get(actor)
        if latest is not None and (not latest[1].dead or incarnation <= latest[0]):
            raise ViolationError(
                f"{worker.title} becomes incarnation {incarnation} of {actor!r}, but {latest[1].title} is "
                f"{latest[0]} (ACTORS-1)"
            )
        self._latest[actor] = incarnation, worker

    def host_of(self, worker: Any, record: Record, story: str) -> Any:
        """The actor at which a call begins."""
        host = worker.host
        if host is None or host.actor != record.actor:
            raise ViolationError(f"{story}: that is not its actor")
        for run in record.runs:
            if run.incarnation == host.incarnation and not run.retried:
                raise ViolationError(f"{story}: this incarnation has run it already (CALLS-1)")
        return host

    def check_order(self, host: Any, caller: bytes, seq: int, record: Record, story: str) -> None:
        if host.concurrent or record.reordered:
            return
        key = caller, host.actor, host.incarnation
        before = self._begun.get(key, 0)
        if seq <= before:
            raise ViolationError(f"{story}: it was made before call {before}, which has begun (CALL-ORDER)")
        self._begun[key] = seq

    def check_end(self, record: Record, how: str, story: str) -> None:
        """The error of a call has a cause."""
        living = self._universe.node.actors.table._actors.get(record.actor)
        if how == "actor unavailable" and not self._deaths.get(record.actor):
            raise ViolationError(f"{story}: no process of its actor has died")
        if (how == "actor dead" or how.startswith("constructor: ")) and living is not None:
            raise ViolationError(f"{story}: {how}, but the actor is {living.state}, incarnation {living.incarnation}")

    def ending(self, worker: Any) -> None:
        """A worker that is an actor was asked to end."""
        living = self._universe.node.actors.table._actors.get(worker.host.actor)
        if living is not None and living.site.process == worker.name and not living.ending:
            raise ViolationError(f"{worker.title} shall end, but the actor that it is shall not")

    def died(self, process: Any) -> None:
        host = getattr(process, "host", None)
        if host is not None:
            self._deaths[host.actor] = self._deaths.get(host.actor, 0) + 1

    # --- groups, coroutines ----------------------------------------------------------------------------

    def waits(self, worker: Process, group: str, call: tuple[bytes, int]) -> None:
        """A call waits for a place in its group."""
        self._outside.setdefault((worker.name, group), {})[call] = None

    def enters(self, worker: Process, group: str, size: int, call: tuple[bytes, int]) -> None:
        """A call has a place in its group."""
        where = worker.name, group
        waiting = self._outside.setdefault(where, {})
        if waiting and next(iter(waiting)) != call:
            raise ViolationError(
                f"call {call} of group {group!r} at {worker.title} has overtaken {list(waiting)} (LIMITS)"
            )
        waiting.pop(call, None)
        inside = self._inside.setdefault(where, set())
        inside.add(call)
        if len(inside) > size:
            raise ViolationError(f"{len(inside)} calls of group {group!r} run at {worker.title}, which allows {size}")

    def leaves(self, worker: Process, group: str, call: tuple[bytes, int]) -> None:
        """A call has ended, or waits no longer."""
        self._outside.get((worker.name, group), {}).pop(call, None)
        self._inside.get((worker.name, group), set()).discard(call)

    def check_places(self, worker: Process, group: str, size: int) -> None:
        """Places that were given back have been given to those that wait."""
        waiting, inside = self._outside.get((worker.name, group)), self._inside.get((worker.name, group), set())
        if waiting and len(inside) < size and not worker.dead:
            raise ViolationError(
                f"calls {list(waiting)} of group {group!r} wait at {worker.title}, and {len(inside)} of {size} run"
            )

    def cancelled(self, worker: Process, caller: bytes, seq: int) -> None:
        """A worker says that it interrupts a call."""
        key = worker.name, caller, seq
        self._unseen[key] = self._unseen.get(key, 0) + 1

    def interrupted(self, worker: Any, caller: bytes, seq: int) -> None:
        """User code has been interrupted."""
        if worker.host is None or not worker.host.asynchronous or self._universe.processes[caller].dead:
            return  # A generator whose reader has died ends by itself.
        key = worker.name, caller, seq
        if not self._unseen.get(key):
            raise ViolationError(
                f"call {seq} of {caller!r} at {worker.title} was interrupted more often than cancelled"
            )
        self._unseen[key] -= 1
