"""One actor as this process sees it; what happens to it is in :mod:`moray.runtime.actors`."""

from __future__ import annotations

from _thread import RLock
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from moray.core.actor_calls import Outgoing
from moray.runtime.tasks import Call

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Peer

ALIVE: Final = "alive"
DEAD: Final = "dead"


class Callee:
    """An actor that this process may call. `queue` and `idle` are read by user threads; the loop owns the rest."""

    __slots__ = (
        "actor", "address", "answered_timer", "calls", "class_name", "connection", "creator", "error", "hungry", "idle",
        "incarnation", "inside", "killed", "last_told", "lock", "max_pending", "ordered", "peer", "queue", "reason",
        "restarts_left", "retry_timer", "set_aside", "state", "watched",
    )  # fmt: skip

    def __init__(self, actor: bytes, creator: bytes) -> None:
        self.actor = actor
        self.creator = creator
        self.class_name = ""
        #: "pending", "alive", "restarting", "dead": the head's last word.
        self.state = "pending"
        self.incarnation = -1
        self.restarts_left = 0
        #: Why it is not alive, and the pickled error of its constructor.
        self.reason = ""
        self.error = b""
        self.peer: Peer | None = None
        self.connection: Connection | None = None
        self.address = ""
        #: Held while calls are committed to the connection, by user threads and the loop. A signal's handler that comes
        #: here in the middle of it queues its call.
        self.lock = RLock()
        self.inside: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]
        #: Calls that were not sent, oldest first. User threads append; the loop takes.
        self.queue: deque[Call] = deque()
        #: Calls of an unordered actor that wait for arguments.
        self.set_aside: dict[int, Call] = {}
        self.calls = Outgoing()
        #: Nothing of ours is queued or open: a user's thread may send directly.
        self.idle = False
        #: A new call makes a difference now: the loop should be woken for it.
        self.hungry = True
        #: Calls are run one at a time, in order.
        self.ordered = True
        #: How many calls may be open; -1: any number.
        self.max_pending = -1
        self.watched = False
        #: Killed from here: nothing more is sent to it.
        self.killed = False
        #: `calls.answered` when the actor was last told.
        self.last_told = 0
        self.answered_timer: Any = None
        self.retry_timer: Any = None

    def pending(self) -> int:
        """How many calls are not answered. Any thread."""
        return len(self.queue) + len(self.calls.unanswered) + len(self.set_aside)

    def text(self) -> str:
        """The actor, for the user."""
        return f"actor {self.class_name or '?'} ({self.actor.hex()})"
