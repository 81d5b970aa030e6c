"""Calls between callers and an actor: unit tests, and a machine of any interleaving (CALLS-1, CALLS-2, CALLS-3)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moray.core.actor_calls import Incoming, Outgoing
from tests.support.machines import searched, walk_fixed


@dataclass
class Call:
    seq: int
    number: int = -1
    retries: int = 0


def sent(count: int) -> tuple[Outgoing, list[Call]]:
    outgoing = Outgoing()
    calls = [Call(10 + i) for i in range(count)]
    for call in calls:
        outgoing.sent(call)
    return outgoing, calls


def shape(runs: list[tuple[int, list[Any]]]) -> list[tuple[int, list[int]]]:
    return [(number, [call.number for call in calls]) for number, calls in runs]


# --- the caller ---------------------------------------------------------------------------------------


def test_numbers_are_counted_from_zero() -> None:
    outgoing, calls = sent(3)
    assert [call.number for call in calls] == [0, 1, 2]
    assert outgoing.next == 3


def test_a_reply_completes_its_call_once() -> None:
    outgoing, calls = sent(2)
    assert outgoing.complete(11) is calls[1]
    assert outgoing.complete(11) is None
    assert outgoing.complete(99) is None


def test_answered_waits_for_the_lowest() -> None:
    outgoing, _calls = sent(4)
    told = []
    for seq in (12, 11, 10, 13):
        outgoing.complete(seq)
        outgoing.validate()
        told.append(outgoing.answered)
    assert told == [0, 0, 3, 4]


def test_what_is_open_is_sent_again_in_runs() -> None:
    outgoing, _calls = sent(6)
    for seq in (11, 12, 15):
        outgoing.complete(seq)
    assert shape(outgoing.resend()) == [(0, [0]), (3, [3, 4]), (6, [])]


def test_nothing_open_only_says_where_it_goes_on() -> None:
    outgoing, _calls = sent(1)
    outgoing.complete(10)
    assert shape(outgoing.resend()) == [(1, [])]
    assert shape(Outgoing().resend()) == [(0, [])]


def test_the_last_run_goes_on_by_itself() -> None:
    outgoing, _calls = sent(2)
    outgoing.complete(10)
    assert shape(outgoing.resend()) == [(1, [1])]


def test_a_new_incarnation_begins_at_zero() -> None:
    outgoing, calls = sent(3)
    outgoing.complete(11)
    assert outgoing.restart() == [calls[0], calls[2]]
    outgoing.validate()
    outgoing.sent(calls[2])
    assert calls[2].number == 0
    outgoing.complete(12)
    assert outgoing.answered == 1


# --- the actor -------------------------------------------------------------------------------------------


def test_a_call_that_comes_again_is_not_run() -> None:
    incoming = Incoming()
    incoming.hello(0)
    assert [incoming.accept() for _ in range(3)] == [(0, True), (1, True), (2, True)]
    incoming.hello(1)
    assert [incoming.accept() for _ in range(3)] == [(1, False), (2, False), (3, True)]


def test_replies_are_kept_until_they_are_answered() -> None:
    incoming = Incoming()
    for number in range(4):
        incoming.keep(number, f"reply {number}")
    incoming.forget(2)
    assert list(incoming.replies) == [2, 3]
    incoming.forget(1)
    incoming.forget(4)
    assert not incoming.replies


def test_an_older_connection_is_not_listened_to() -> None:
    incoming = Incoming()
    assert incoming.hello(3, 2)
    assert not incoming.hello(0, 1)
    assert incoming.accept() == (3, True)
    assert incoming.hello(5, 2), "the same one goes on elsewhere"
    assert incoming.accept() == (5, True)


# --- the machine --------------------------------------------------------------------------------------------


@dataclass
class Connection:
    """Frames both ways. After a cut the caller has a new one; what the actor had not read yet may still come."""

    caller: int
    incarnation: int
    up: deque[Any] = field(default_factory=deque)
    down: deque[Any] = field(default_factory=deque)


class Caller:
    def __init__(self) -> None:
        self.calls = Outgoing()
        self.queue: deque[Call] = deque()
        self.connection: Connection | None = None
        #: The incarnation that it knows of.
        self.incarnation = 0
        #: seq → how it ended.
        self.ended: dict[int, str] = {}


class Side:
    """An actor's side of one caller."""

    def __init__(self) -> None:
        self.calls = Incoming()
        self.connection: Connection | None = None
        #: Accepted and not begun, begun and not answered: (number, seq).
        self.waiting: deque[tuple[int, int]] = deque()
        self.running: list[tuple[int, int]] = []
        self.begun: list[int] = []


class ActorCallsMachine(RuleBasedStateMachine):
    """Two callers, and an actor in several incarnations."""

    @initialize(ordered=st.booleans())
    def start(self, ordered: bool) -> None:
        self.ordered = ordered
        self.seq = 0
        self.callers = [Caller(), Caller()]
        self.connections: list[Connection] = []
        self.restart_actor(0)

    def restart_actor(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.sides = [Side() for _ in self.callers]

    # --- callers -------------------------------------------------------------------------------------------

    who = st.integers(0, 1)

    @rule(who=who, count=st.integers(1, 4), retries=st.integers(0, 2))
    def submit(self, who: int, count: int, retries: int) -> None:
        caller = self.callers[who]
        for _ in range(count):
            self.seq += 1
            caller.queue.append(Call(self.seq, retries=retries))
        self.pump(caller)

    def pump(self, caller: Caller) -> None:
        connection = caller.connection
        while connection is not None and caller.queue:
            call = caller.queue.popleft()
            caller.calls.sent(call)
            connection.up.append(("calls", caller.calls.answered, [(call.number, call.seq)]))

    @rule(who=who)
    def connect(self, who: int) -> None:
        caller = self.callers[who]
        if caller.connection is not None or caller.incarnation != self.incarnation:
            return
        connection = caller.connection = Connection(who, self.incarnation)
        self.connections.append(connection)
        for number, calls in caller.calls.resend():
            connection.up.append(("hello", number, caller.calls.conversation))
            if calls:
                connection.up.append(("calls", caller.calls.answered, [(call.number, call.seq) for call in calls]))
        self.pump(caller)

    @rule(who=who, arrives=st.integers(0, 6))
    def cut(self, who: int, arrives: int) -> None:
        """The connection is gone. So much of what the caller had sent on it can still be read by the actor."""
        caller = self.callers[who]
        connection = caller.connection
        if connection is not None:
            caller.connection = None
            connection.down.clear()
            while len(connection.up) > arrives:
                connection.up.pop()

    @rule(who=who, arrives=st.integers(1, 6), first=st.booleans())
    def replace(self, who: int, arrives: int, first: bool) -> None:
        """A new connection at once, of which the actor may read the beginning before the rest of the old one."""
        self.cut(who, arrives)
        self.connect(who)
        new = self.callers[who].connection
        if first and new is not None:
            while new.up:
                self.take(new, new.up.popleft())

    @rule(who=who, count=st.integers(1, 3))
    def hear_replies(self, who: int, count: int) -> None:
        caller = self.callers[who]
        for _ in range(count):
            if caller.connection is not None and caller.connection.down:
                self.complete(caller, caller.connection.down.popleft())

    def complete(self, caller: Caller, seqs: list[int]) -> None:
        for seq in seqs:
            call = caller.calls.complete(seq)
            if call is not None:
                assert call.seq == seq
                self.end(caller, seq, "answered")
            else:
                assert seq in caller.ended, "a reply that nobody waits for is a repeated one"

    def end(self, caller: Caller, seq: int, how: str) -> None:
        assert seq not in caller.ended, "CALLS-3"
        caller.ended[seq] = how

    @rule(who=who, drained=st.booleans())
    def hear_of_restart(self, who: int, drained: bool) -> None:
        """The head says that there is a new incarnation; the caller has read what the old one had sent, if it could."""
        caller = self.callers[who]
        if caller.incarnation == self.incarnation:
            return
        while drained and caller.connection is not None and caller.connection.down:
            self.complete(caller, caller.connection.down.popleft())
        caller.connection = None
        caller.incarnation = self.incarnation
        again = []
        for call in caller.calls.restart():
            if call.retries:
                call.retries -= 1
                again.append(call)
            else:
                self.end(caller, call.seq, "failed")
        caller.queue.extendleft(reversed(again))

    # --- the actor ---------------------------------------------------------------------------------------------

    @precondition(lambda self: any(each.up for each in self.connections))
    @rule(data=st.data(), count=st.integers(1, 4))
    def read(self, data: st.DataObject, count: int) -> None:
        """The actor reads some connection, maybe a replaced one."""
        readable = [each for each in self.connections if each.up]
        connection = readable[data.draw(st.integers(0, len(readable) - 1))]
        for _ in range(count):
            if connection.up:
                self.take(connection, connection.up.popleft())

    def take(self, connection: Connection, frame: Any) -> None:
        side = self.sides[connection.caller]
        if connection.incarnation != self.incarnation:
            return
        if frame[0] == "hello":
            if side.calls.hello(frame[1], frame[2]):
                side.connection = connection
            return
        if connection is not side.connection:
            return
        _kind, answered, calls = frame
        side.calls.forget(answered)
        again = []
        for number, seq in calls:
            counted, fresh = side.calls.accept()
            assert counted == number, "both sides count alike"
            if fresh:
                side.waiting.append((number, seq))
            elif number in side.calls.replies:
                again.append(side.calls.replies[number])
        if again:
            connection.down.append(again)

    @precondition(lambda self: any(side.waiting for side in self.sides))
    @rule(who=who, data=st.data())
    def begin(self, who: int, data: st.DataObject) -> None:
        side = self.sides[who]
        if side.waiting and not (self.ordered and side.running):
            position = 0 if self.ordered else data.draw(st.integers(0, len(side.waiting) - 1))
            number, seq = side.waiting[position]
            del side.waiting[position]
            assert number not in side.begun, "CALLS-1"
            assert not self.ordered or not side.begun or number > side.begun[-1], "CALLS-1"
            side.begun.append(number)
            side.running.append((number, seq))

    @precondition(lambda self: any(side.running for side in self.sides))
    @rule(who=who, data=st.data())
    def reply(self, who: int, data: st.DataObject) -> None:
        side = self.sides[who]
        if side.running:
            number, seq = side.running.pop(data.draw(st.integers(0, len(side.running) - 1)))
            side.calls.keep(number, seq)
            self.send_reply(side, seq)

    def send_reply(self, side: Side, seq: int) -> None:
        connection = side.connection
        assert connection is not None
        if connection is self.callers[connection.caller].connection:
            connection.down.append([seq])

    @rule(sure=st.integers(0, 5))
    def die(self, sure: int) -> None:
        if not sure:
            self.restart_actor(self.incarnation + 1)

    # --- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        for caller, side in zip(self.callers, self.sides, strict=True):
            caller.calls.validate()
            if caller.incarnation == self.incarnation:
                begun = set(side.begun) - {number for number, _seq in side.running}
                for call in caller.calls.unanswered.values():
                    assert call.number not in begun or call.number in side.calls.replies, "CALLS-2"

    def teardown(self) -> None:
        """Whatever happened, every call ends."""
        for _ in range(3):
            for who in range(len(self.callers)):
                self.hear_of_restart(who, True)
                self.connect(who)
                side = self.sides[who]
                for connection in self.connections:
                    while connection.up:
                        self.take(connection, connection.up.popleft())
                while side.waiting or side.running:
                    while side.running:
                        number, seq = side.running.pop()
                        side.calls.keep(number, seq)
                        self.send_reply(side, seq)
                    if side.waiting:
                        number, seq = side.waiting.popleft()
                        assert number not in side.begun, "CALLS-1"
                        side.begun.append(number)
                        side.running.append((number, seq))
                self.hear_replies(who, 1000)
        assert sum(len(caller.ended) for caller in self.callers) == self.seq, "every call has ended"
        for caller, side in zip(self.callers, self.sides, strict=True):
            side.calls.forget(caller.calls.answered)
            assert not side.calls.replies, "what was answered is forgotten"


TestActorCallsMachine = searched(ActorCallsMachine)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(ActorCallsMachine, 250)
