"""One actor as the table of actors sees it, and what is told of it."""

from __future__ import annotations

from enum import Enum
from typing import Any

from moray.core.actor_actions import NOWHERE, Registration, Tell
from moray.core.actor_tombstones import Tombstone


class Phase(Enum):
    """How far the present incarnation has come."""

    HELD = "held"
    WAITING = "waiting"
    PLACED = "placed"
    ALIVE = "alive"


class Actor:
    """One actor that is not dead."""

    __slots__ = (
        "ending", "failures", "incarnation", "killed", "made", "moved", "moving", "orphaned", "phase", "refused",
        "restarts", "site", "stopped", "watchers", "why",
    )  # fmt: skip

    def __init__(self, made: Registration) -> None:
        self.made = made
        self.phase = Phase.HELD
        self.incarnation = 0
        #: How often it was restarted.
        self.restarts = 0
        self.site = NOWHERE
        #: How many processes in a row died before it lived in them.
        self.failures = 0
        #: Why it is to die; "": it is not.
        self.ending = ""
        #: Its process is being killed for another incarnation.
        self.killed = False
        #: 0: its process was not told to end; 1: asked; 2: killed.
        self.stopped = 0
        #: Why it is to live elsewhere, which is no restart that counts; "": it is not.
        self.moving = ""
        #: Its process begins no more calls. Of each caller, the numbers of those that it may have begun.
        self.moved: dict[bytes, list[int]] | None = None
        #: What became of the last incarnation.
        self.why = ""
        #: Why it gets no worker.
        self.refused = ""
        #: Its creator is dead: nobody can ask for it late.
        self.orphaned = False
        #: Who wants to know, beside the creator.
        self.watchers: dict[bytes, None] = {}

    @property
    def state(self) -> str:
        """As others see it."""
        if self.phase is Phase.ALIVE:
            return "alive"
        return "restarting" if self.incarnation else "pending"

    @property
    def restarts_left(self) -> int:
        """-1: without end."""
        most = self.made.max_restarts
        return most if most < 0 else most - self.restarts


def audience(actor: Actor) -> tuple[bytes, ...]:
    """The creator and the watchers, each once."""
    return tuple({actor.made.creator: None, **actor.watchers})


def news(actor: Actor, processes: tuple[bytes, ...]) -> Tell:
    """How it is."""
    alive = actor.phase is Phase.ALIVE
    return Tell(
        processes,
        actor.made.actor,
        actor.state,
        actor.incarnation,
        actor.site if alive else NOWHERE,
        "" if alive else actor.refused or actor.why,
        b"",
        actor.restarts_left,
        actor.moved,
    )


def last_word(stone: Tombstone, processes: tuple[bytes, ...]) -> Tell:
    """That it is dead (ACTORS-2)."""
    return Tell(processes, stone.actor, "dead", stone.incarnation, NOWHERE, stone.reason, stone.error, 0)


def describe(actor: Actor) -> dict[str, Any]:
    """For lists of actors; JSON-like."""
    return {
        **_identity(actor.made),
        "state": actor.state,
        "process": actor.site.process.hex(),
        "pid": actor.site.pid,
        "incarnation": actor.incarnation,
        "restarts": actor.restarts,
        "reason": actor.ending or actor.refused or actor.why or _waits_for(actor),
    }


def describe_dead(stone: Tombstone) -> dict[str, Any]:
    """The same of a dead one."""
    return {
        **_identity(stone),
        "state": "dead",
        "process": "",
        "pid": 0,
        "incarnation": stone.incarnation,
        "restarts": stone.restarts,
        "reason": stone.reason,
    }


def no_restart(actor: Actor) -> str:
    """Ends the reason of one that has no restart left."""
    most = actor.made.max_restarts
    return f"; all {most} restarts are used" if most else "; it is not restarted, because max_restarts is 0"


def _waits_for(actor: Actor) -> str:
    return {
        Phase.HELD: "its constructor's arguments are not ready",
        Phase.WAITING: "it waits for a worker",
        Phase.PLACED: "its constructor has not returned yet",
        Phase.ALIVE: "",
    }[actor.phase]


def _identity(who: Registration | Tombstone) -> dict[str, Any]:
    return {
        "actor": who.actor.hex(),
        "class_name": who.class_name,
        "name": who.name,
        "namespace": who.namespace,
        "job": who.job,
        "creator": who.creator.hex(),
        "detached": who.detached,
    }
