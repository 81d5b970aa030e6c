"""What a worker runs: tasks and calls, as they wait in its queues."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from moray.core.actor_calls import Incoming
from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.protocol.connection import Connection


class Queued(msgspec.Struct, gc=False, eq=False):
    """A task of some owner."""

    connection: Any
    lease: int
    spec: m.TaskSpec
    #: Not to be run any more (CANCEL).
    cancelled: bool = False
    #: What it has submitted is not cancelled with it.
    spares_children: bool = False


class Caller(Incoming):
    """A process that calls this actor."""

    __slots__ = ("connection", "process", "streams")

    def __init__(self, process: bytes, connection: Connection) -> None:
        super().__init__()
        self.process = process
        #: The present one: replies go there.
        self.connection = connection
        #: Number of a call → what makes, or made, its items, as long as the caller may not have its reply (STREAM).
        self.streams: dict[int, Any] = {}


class Called(msgspec.Struct, gc=False, eq=False):
    """A call of this actor."""

    #: On which it arrived.
    connection: Any
    caller: Caller
    number: int
    spec: m.CallSpec
    cancelled: bool = False
    spares_children: bool = False
    #: Actors have no leases.
    lease: int = 0


class Construction:
    """What the main thread runs while an actor's constructor does: what a cancel may interrupt (CANCEL)."""

    def __init__(self) -> None:
        self.cancelled = False
        self.lease = 0


Work: TypeAlias = Queued | Called

#: The call that the present thread or coroutine runs, in actors that run several at once.
current_call: ContextVar[Called | None] = ContextVar("moray_current_call", default=None)
