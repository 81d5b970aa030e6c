"""An actor whose node leaves: it finishes the calls that it has begun, and ends; it lives elsewhere then.

**What has begun** must be known exactly, so that no call is run twice and none is lost (CALL-ORDER). To move, the loop
begins nothing more: it holds back what is queued, which it takes by the same single steps as the actor's threads, and
what comes later. All other calls that were accepted and are not known to be answered *may* have begun. When those are
answered, and their callers have said that they have the replies, the process ends in peace. Before that, the head is
told that nothing is open here, and tells the callers with the word that the actor is restarted: whatever else they have
sent goes to the next incarnation, at no cost and in its order.

Until the head is told, all this can be taken back:

- **Objects of its own** that others hold would end with it (OWNER-STAYS). While there are such, and time, it goes on as
  if nothing had been said; also if it is a call in progress that gives them away.
- **A call in progress may wait for another one of this actor**: through a task or other actors, or for what that one is
  to set. If what has begun does not end while others wait, it goes on for as long, and then tries again, for longer.
  (An actor that runs one call at a time could not serve such calls at any time.)

Shortly before the deadline the head is told which calls may have begun, and nothing else is begun after that: the node
ends the process at the deadline, and what has begun is lost with it, nothing else.
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
#: Calls in progress that last longer than this may wait for what is held back. Doubled each time: most do not, and
#: where there are always some, it moves only if it holds others back for as long as they last.
_PATIENCE_S: Final = 0.5
_MOST_PATIENCE_S: Final = 30.0
#: Borrowers that are about to let go do so within this time.
_LET_GO_S: Final = 0.5
#: How long before the deadline the head is told in any case; and the share of a short time.
_LAST_S: Final = 10.0
_LAST_SHARE: Final = 0.25


def on_move(worker: Worker, message: m.MoveActor) -> None:
    """The head has the actor of this process live elsewhere; said again, the deadline is another. Loop only."""
    host = worker.executor.host
    if host is None or (host.actor, host.incarnation) != (message.actor, message.incarnation):
        return
    if host.move is None:
        host.move = ActorMove(worker, host)
        host.move.set_deadline(message.deadline)
        host.move.look()
    else:
        host.move.set_deadline(message.deadline)


class ActorMove:
    """The move of this process's actor. Loop only."""

    def __init__(self, worker: Worker, host: ActorHost) -> None:
        self._worker = worker
        self._host = host
        #: When the head is told in any case.
        self._last_at = 0.0
        #: The head was told: nothing is begun any more.
        self._told = False
        #: Since when nothing was begun; until when it goes on before it tries that again.
        self._held_at = 0.0
        self._again_at = 0.0
        self._patience_s = _PATIENCE_S
        #: Caller → its calls that may have begun and are not known to be answered.
        self._begun: dict[Caller, list[int]] = {}
        #: Since when all are answered, and since when nothing waits for them to be heard; 0.0: that is not so.
        self._answered_at = 0.0
        self._over_at = 0.0

    def set_deadline(self, deadline: float) -> None:
        """When the node ends this process, in seconds of the epoch."""
        left_s = deadline - time()
        self._last_at = monotonic() + left_s - min(_LAST_S, _LAST_SHARE * left_s)

    def look(self) -> None:
        """Go on, again and again until the end."""
        host, now = self._host, monotonic()
        if host.exiting:
            return
        last = self._told or now >= self._last_at
        if host.held_back is None and (last or (now >= self._again_at and not self._worker.is_needed())):
            host.hold_back()
            self._note_begun(now)
        if host.held_back is not None and self._is_over(now, last):
            host.end_in_peace()
        else:
            self._worker.reactor.call_later(_LOOK_S, self.look)

    def _is_over(self, now: float, last: bool) -> bool:
        """Whether what has begun is over, and nothing else keeps the actor here."""
        host = self._host
        self._forget_heard()
        answered = self._is_answered(now)
        over = not self._begun or (answered and now - self._answered_at > _HEARD_S)
        self._over_at = (self._over_at or now) if over else 0.0
        if over and not last and self._worker.is_needed():
            if now - self._over_at > _LET_GO_S:
                host.hold_no_more()
            return False
        if host.concurrent and host.held_back and not (answered or last) and now - self._held_at > self._patience_s:
            host.hold_no_more()
            self._again_at = now + self._patience_s
            self._patience_s = min(2 * self._patience_s, _MOST_PATIENCE_S)
            return False
        if (over or last) and not self._told:
            self._told = True
            begun = {caller.process: numbers for caller, numbers in self._begun.items()}
            self._worker.node.send(m.ActorMoved(host.actor, host.incarnation, begun))
        return over

    def _note_begun(self, now: float) -> None:
        """All that was accepted and is not held back may have begun by now."""
        self._held_at, self._answered_at, self._over_at = now, 0.0, 0.0
        held = {(call.caller.process, call.number) for call in self._host.held_back or ()}
        self._begun = {}
        for caller in self._callers():
            numbers = [number for number in caller.unheard() if (caller.process, number) not in held]
            if numbers:
                self._begun[caller] = numbers

    def _callers(self) -> list[Caller]:
        return [peer.caller for peer in self._worker.peers.values() if peer.caller is not None and peer.dead is None]

    def _forget_heard(self) -> None:
        """Callers have said that they have replies, or are dead."""
        living = set(self._callers())
        for caller, numbers in list(self._begun.items()):
            left = [number for number in numbers if number >= caller.forgotten]
            if left and caller in living:
                self._begun[caller] = left
            else:
                del self._begun[caller]

    def _is_answered(self, now: float) -> bool:
        """Whether all that has begun has its reply."""
        if not all(number in caller.replies for caller, numbers in self._begun.items() for number in numbers):
            self._answered_at = 0.0
            return False
        self._answered_at = self._answered_at or now
        return True
