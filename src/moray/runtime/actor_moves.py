"""An actor whose node leaves: it finishes the calls that it has begun, and ends; it lives elsewhere then.

**What has begun** must be known exactly, so that no call is run twice and none is lost (CALL-ORDER). From the moment
that the actor is told to move, the loop begins nothing more: it takes back what is queued, by the same single steps by
which the actor's threads take it, and leaves unheard what comes later. All other calls that were accepted and are not
known to be answered *may* have begun. The head is told which these are, at once, and tells the callers with the word
that the actor is restarted: whatever else they have sent goes to the next incarnation, at no cost and in its order.

Then it waits until those calls are answered and their callers have said that they have the replies, and ends in peace.
Its node ends it at the deadline in any case.

**Objects of its own** that others hold would end with it (OWNER-STAYS). While there are such, and time, it goes on
as if nothing had been said.
"""

from __future__ import annotations

from time import monotonic, time
from typing import TYPE_CHECKING, Final

from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.runtime.actor_host import ActorHost
    from moray.runtime.work import Caller
    from moray.runtime.worker import Worker

#: How often it looks whether it may end.
_LOOK_S: Final = 0.02
#: Callers that have their replies say so within a second; one that is stuck is not waited for.
_HEARD_S: Final = 5.0
#: What an actor with objects that others hold leaves of the time before the deadline, to end; and of a short time.
_LAST_S: Final = 10.0
_LAST_SHARE: Final = 0.25


def on_move(worker: Worker, message: m.MoveActor) -> None:
    """The head has the actor of this process live elsewhere. Loop only."""
    host = worker.executor.host
    if host is not None and (host.actor, host.incarnation) == (message.actor, message.incarnation):
        ActorMove(worker, host, message)


class ActorMove:
    """The move of this process's actor. Loop only."""

    def __init__(self, worker: Worker, host: ActorHost, message: m.MoveActor) -> None:
        self._worker = worker
        self._host = host
        left_s = message.deadline - time()
        self._begins_at = monotonic() + left_s - min(_LAST_S, _LAST_SHARE * left_s)
        #: Caller → its calls that may have begun and are not known to be answered.
        self._begun: dict[Caller, list[int]] = {}
        #: Since when all are answered.
        self._answered_at = 0.0
        self._wait_for_objects()

    def _wait_for_objects(self) -> None:
        if self._worker.is_needed() and monotonic() < self._begins_at:
            self._worker.reactor.call_later(_LOOK_S, self._wait_for_objects)
        else:
            self._begin()

    def _begin(self) -> None:
        host = self._host
        if host.exiting:
            return
        back = {(call.caller.process, call.number) for call in host.stop_beginning()}
        for caller in self._callers():
            numbers = [number for number in caller.unheard() if (caller.process, number) not in back]
            if numbers:
                self._begun[caller] = numbers
        begun = {caller.process: numbers for caller, numbers in self._begun.items()}
        self._worker.node.send(m.ActorMoved(host.actor, host.incarnation, begun))
        self._look()

    def _callers(self) -> list[Caller]:
        return [peer.caller for peer in self._worker.peers.values() if peer.caller is not None and peer.dead is None]

    def _look(self) -> None:
        """End when what has begun is over."""
        living = set(self._callers())
        for caller, numbers in list(self._begun.items()):
            left = [number for number in numbers if number >= caller.forgotten]
            if left and caller in living:
                self._begun[caller] = left
            else:
                del self._begun[caller]
        if not self._begun or self._is_late():
            self._host.end_in_peace()
            return
        self._worker.reactor.call_later(_LOOK_S, self._look)

    def _is_late(self) -> bool:
        """All have their answers, and a caller does not say so."""
        if not all(number in caller.replies for caller, numbers in self._begun.items() for number in numbers):
            self._answered_at = 0.0
            return False
        self._answered_at = self._answered_at or monotonic()
        return monotonic() - self._answered_at > _HEARD_S
