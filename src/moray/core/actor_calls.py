"""Calls of an actor's methods between one caller and one incarnation: order, and no call twice (CALL-ORDER).

The two sides of a conversation. **Numbers are not written into calls**: the caller says once per connection, with
:class:`~moray.protocol.actor_messages.CallerHello`, which number comes next, and both sides count. So a thread of
the user's commits a call by one append to the connection's queue, and no interrupt can leave a gap or use a number
twice (INTERRUPT).

- :class:`Outgoing`, at the caller: which calls were sent and not answered. When the connection to a living actor is
  replaced, all of them are sent again, from the lowest number. When the actor has a new incarnation, the shell decides
  which of them are tried again; numbers start at 0.
- :class:`Incoming`, at the actor, one per caller: which numbers were accepted, and the replies that the caller may
  not have. A call that comes again is not run again: its reply is sent again, if it is there; if not, the call
  is still running and its reply will go to the new connection.

Nothing that comes on a replaced connection may be counted: its bytes may be read after those of the new one, which
already has all that was open. So connections are numbered (`conversation`), and the shell listens to the newest only.

Invariants:

- CALLS-1: at the actor each number is run at most once, and in ascending order if the actor is ordered.
- CALLS-2: a reply is kept until the caller has said that it is answered.
- CALLS-3: the caller completes each call exactly once.
"""

from __future__ import annotations

from typing import Any, Protocol


class Sent(Protocol):
    """What the caller's side needs to know of a call."""

    seq: int
    number: int


class Outgoing:
    """The caller's side. Owned by the caller's loop."""

    __slots__ = ("_done", "answered", "conversation", "next", "unanswered")

    def __init__(self) -> None:
        #: How many connections there were: the actor may hear of an old one after the new one.
        self.conversation = 0
        #: The number of the next call.
        self.next = 0
        #: Calls with lower numbers are all answered: what the actor is told with each message.
        self.answered = 0
        #: Answered numbers above that.
        self._done: set[int] = set()
        #: Sent and not answered, by seq, in the order of their numbers.
        self.unanswered: dict[int, Any] = {}

    def sent(self, call: Sent) -> None:
        """The call was committed to the connection, after all that were before it."""
        call.number = self.next
        self.next += 1
        self.unanswered[call.seq] = call

    def complete(self, seq: int) -> Any:
        """A reply arrived: the call, or None if it was complete already."""
        call = self.unanswered.pop(seq, None)
        if call is None:
            return None
        number = call.number
        if number != self.answered:
            self._done.add(number)
            return call
        number += 1
        done = self._done
        while done and number in done:
            done.remove(number)
            number += 1
        self.answered = number
        return call

    def resend(self) -> list[tuple[int, list[Any]]]:
        """The connection was replaced: runs of (number, calls numbered from there), each to be begun by a CallerHello.
        The last run begins or ends at `next`, so that the count is right afterwards."""
        self.conversation += 1
        runs: list[tuple[int, list[Any]]] = []
        due = -1
        for call in self.unanswered.values():
            if call.number != due:
                runs.append((call.number, []))
            runs[-1][1].append(call)
            due = call.number + 1
        if due != self.next:
            runs.append((self.next, []))
        return runs

    def restart(self) -> list[Any]:
        """The actor has a new incarnation (or none): the calls that the old one did not answer, in order."""
        calls = list(self.unanswered.values())
        self.unanswered = {}
        self._done = set()
        self.next = self.answered = 0
        return calls

    def validate(self) -> None:
        """Raise AssertionError if the books do not agree."""
        numbers = [call.number for call in self.unanswered.values()]
        assert numbers == sorted(set(numbers)), "in order, each once"
        assert set(numbers) | self._done == set(range(self.answered, self.next)), "each number is open or done"
        assert not set(numbers) & self._done


class Incoming:
    """The actor's side of one caller. Owned by the actor's loop; replies may be added by any thread."""

    __slots__ = ("_conversation", "_cursor", "_forgotten", "accepted", "replies")

    def __init__(self) -> None:
        #: The lowest number that was never accepted.
        self.accepted = 0
        #: The number of the next call on the present connection.
        self._cursor = 0
        #: The caller's number of the present connection.
        self._conversation = 0
        #: Replies below this number have been dropped: the caller has them.
        self._forgotten = 0
        #: Number → reply, kept until the caller has said that it has it.
        self.replies: dict[int, Any] = {}

    def hello(self, number: int, conversation: int | None = None) -> bool:
        """The caller has a new connection, and begins it (or goes on) with this number. False: the connection is older
        than the present one, and calls on it are not to be heard: they come on the new one, or came."""
        if conversation is not None:
            if conversation < self._conversation:
                return False
            self._conversation = conversation
        self._cursor = number
        return True

    def accept(self) -> tuple[int, bool]:
        """A call arrived: its number, and whether it is to be run (False: it came before)."""
        number = self._cursor
        self._cursor = number + 1
        if number < self.accepted:
            return number, False
        self.accepted = number + 1
        return number, True

    def forget(self, answered: int) -> None:
        """The caller has the replies below this number."""
        replies = self.replies
        for number in range(self._forgotten, answered):
            replies.pop(number, None)
        self._forgotten = max(self._forgotten, answered)

    @property
    def forgotten(self) -> int:
        """The caller has the replies of all calls with lower numbers."""
        return self._forgotten

    def unheard(self) -> range:
        """The numbers of the calls that were accepted and whose replies the caller may not have."""
        return range(self._forgotten, self.accepted)

    def keep(self, number: int, reply: Any) -> None:
        """The reply of a call, to be sent now and perhaps again. Any thread."""
        self.replies[number] = reply
