"""A generator's items between worker and owner: unit tests, and a machine of any interleaving (STREAM-1 … STREAM-6)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moray.core.streams import (
    ACKNOWLEDGED_BYTES,
    ACKNOWLEDGED_ITEMS,
    KEPT_BYTES,
    KEPT_ITEMS,
    Arriving,
    End,
    Kept,
    Making,
    Together,
)
from tests.support.machines import searched, walk_fixed

# --- the owner ---------------------------------------------------------------------------------------


def test_items_count_once() -> None:
    stream = Arriving()
    assert stream.accept(0, 0, 3) == range(3)
    assert stream.accept(0, 0, 3) == range(0)
    assert stream.accept(0, 2, 3) == range(3, 5)
    assert stream.received == 5


def test_a_gap_is_not_filled_with_what_comes_after() -> None:
    stream = Arriving()
    assert stream.accept(0, 1, 2) == range(0)
    assert stream.received == 0
    assert stream.finish(0, 3) is End.LOST


def test_an_earlier_attempt_is_not_heard_any_more() -> None:
    stream = Arriving()
    stream.accept(0, 0, 2)
    assert stream.replay(1) == 2
    assert stream.accept(0, 2, 1) == range(0)
    assert stream.finish(0, 2) is End.STALE
    assert stream.accept(1, 2, 1) == range(2, 3)
    assert stream.finish(1, 3) is End.COMPLETE


@pytest.mark.parametrize(
    ("items", "end"), [(3, End.COMPLETE), (2, End.INCONSISTENT), (0, End.INCONSISTENT), (4, End.LOST)]
)
def test_the_end_agrees_with_the_items(items: int, end: End) -> None:
    stream = Arriving()
    stream.accept(0, 0, 3)
    stream.replay(1)
    assert stream.finish(1, items) is end


def test_the_end_is_final() -> None:
    stream = Arriving()
    stream.accept(0, 0, 1)
    assert stream.finish(0, 1) is End.COMPLETE
    assert stream.finish(0, 1) is End.STALE
    assert stream.finish(0, 2) is End.INCONSISTENT
    assert not stream.fail()
    assert stream.accept(0, 1, 1) == range(0)


def test_a_failure_is_final_too() -> None:
    stream = Arriving()
    stream.accept(0, 0, 1)
    assert stream.fail()
    assert stream.length == 1
    assert not stream.fail()
    assert stream.accept(0, 1, 1) == range(0)


def test_credit_is_told_once_and_only_with_a_limit() -> None:
    free = Arriving()
    free.accept(0, 0, 9)
    assert not free.credit(9)
    limited = Arriving(1)
    limited.accept(0, 0, 1)
    assert not limited.credit(0)
    assert limited.credit(1)
    assert not limited.credit(1)


def test_credit_is_gathered() -> None:
    stream = Arriving(10)
    stream.accept(0, 0, 9)
    assert [stream.credit(taken) for taken in range(1, 10)] == [False] * 4 + [True] + [False] * 4


# --- the worker ----------------------------------------------------------------------------------------


def test_only_new_items_are_sent() -> None:
    making = Making(skip=2)
    sent = []
    for made in range(4):
        making.made = made
        sent.append(making.wanted())
    assert sent == [False, False, True, True]


def test_pauses_at_the_limit() -> None:
    making = Making(ahead=2)
    making.made = 1
    assert not making.must_pause()
    making.made = 2
    assert making.must_pause()
    making.credit(1)
    assert not making.must_pause()
    making.credit(0)
    assert not making.must_pause(), "late news is no news"


def test_without_a_limit_it_never_pauses() -> None:
    making = Making()
    making.made = 10**6
    assert not making.must_pause()


# --- an actor's connections ----------------------------------------------------------------------------------


@dataclass
class Item:
    index: int
    blob: bytes = b"12345678"


def items(first: int, end: int) -> list[Item]:
    return [Item(index) for index in range(first, end)]


def test_what_was_not_acknowledged_is_sent_again_in_order() -> None:
    kept = Kept()
    assert kept.again() == (0, [])
    kept.add(3, items(3, 6))
    kept.add(6, items(6, 8))
    assert kept.again() == (3, items(3, 8))
    kept.acknowledge(5)
    kept.acknowledge(4)
    assert kept.again() == (5, items(5, 8))
    kept.acknowledge(8)
    assert len(kept) == 0


def test_what_an_interrupted_sender_adds_twice_is_sent_once() -> None:
    kept = Kept()
    kept.add(0, items(0, 3))
    kept.add(0, items(0, 5))
    assert kept.again() == (0, items(0, 5))
    kept.acknowledge(5)
    assert not kept.is_full()


def test_a_generator_pauses_when_much_is_kept() -> None:
    many = Kept()
    many.add(0, items(0, KEPT_ITEMS - 1))
    assert not many.is_full()
    many.add(KEPT_ITEMS - 1, items(KEPT_ITEMS - 1, KEPT_ITEMS))
    assert many.is_full()
    many.acknowledge(1)
    assert not many.is_full()
    large = Kept()
    large.add(0, [Item(0, bytes(KEPT_BYTES))])
    assert large.is_full()
    large.acknowledge(1)
    assert not large.is_full()


def test_an_owner_tells_an_actor_now_and_then_what_it_has() -> None:
    few = Arriving()
    few.accept(0, 0, ACKNOWLEDGED_ITEMS - 1)
    assert not few.acknowledge(0)
    few.accept(0, ACKNOWLEDGED_ITEMS - 1, 1)
    assert few.acknowledge(0)
    few.said()
    assert not few.acknowledge(0)
    assert not few.acknowledge(ACKNOWLEDGED_BYTES - 1)
    assert few.acknowledge(1)
    assert few.owes_last_word()
    few.said()
    assert not few.owes_last_word()
    few.finish(0, ACKNOWLEDGED_ITEMS)
    assert not few.acknowledge(ACKNOWLEDGED_BYTES), "the end says it"
    assert ACKNOWLEDGED_BYTES < KEPT_BYTES, "or a paused generator waits for ever"
    assert ACKNOWLEDGED_ITEMS < KEPT_ITEMS


# --- the generators of one actor -----------------------------------------------------------------------


def test_generators_share_a_limit() -> None:
    together, one, other = Together(3), Making(), Making()
    assert together.admit(one)
    assert together.admit(one), "it may ask again"
    assert together.admit(other)
    one.made = 1
    assert together.admit(one)
    one.made = 2
    assert not together.admit(one), "two are made, and one is being made"
    other.made = 1
    assert not together.admit(other)
    other.credit(1)
    assert together.admit(one), "one was taken, of either"
    one.made = 3
    assert not together.admit(other)
    together.leave(one)
    assert together.admit(other), "who has ended holds up nobody"


def test_who_waited_longest_goes_on_first() -> None:
    together, one, two, three = Together(1), Making(), Making(), Making()
    assert together.admit(one)
    assert not together.admit(two)
    assert not together.admit(three)
    assert not together.admit(two), "it keeps its place"
    assert together.admit_waiting() == []
    one.made = one.consumed = 1
    assert together.admit_waiting() == [two]
    assert together.admit(two), "it was admitted"
    assert together.admit_waiting() == []
    together.leave(two)
    assert together.admit_waiting() == [three]
    assert not together.admit(one)
    together.leave(one)
    together.leave(three)
    assert together.admit_waiting() == [], "who has ended waits no more"


def test_what_is_made_to_be_skipped_counts_for_nothing() -> None:
    together, again, other = Together(1), Making(skip=2), Making()
    assert together.admit(other)
    assert together.admit(again)
    again.made = 2
    assert not together.admit(again)
    other.made = 1
    other.credit(1)
    again.credit(2)
    assert together.admit(again)


# --- the machine -------------------------------------------------------------------------------------------


@dataclass
class Items:
    attempt: int
    first: int
    values: list[int]


@dataclass
class Finish:
    attempt: int
    items: int


class Attempt:
    """A worker with one attempt of the generator."""

    def __init__(self, number: int, skip: int, ahead: int, length: int) -> None:
        self.number = number
        self.making = Making(skip, ahead)
        self.length = length
        self.pending: list[int] = []
        self.announced = False
        self.over = False
        #: To the owner, oldest first, and from it.
        self.wire: deque[Items | Finish] = deque()
        self.credits: deque[tuple[int, int]] = deque()
        self.kept = Kept()
        #: Something was lost on the way.
        self.cut = False

    def step(self) -> None:
        """Make one item, or pause, or end."""
        making = self.making
        if self.over:
            return
        if making.must_pause():
            self.send()
            if not self.announced:
                self.announced = True
                self.wire.append(Items(self.number, making.made, []))
            return
        if making.made == self.length:
            self.send()
            self.over = True
            self.wire.append(Finish(self.number, making.made))
            return
        if making.wanted():
            self.pending.append(making.made)
        making.made += 1

    def send(self, again: int = 0) -> None:
        """`again`: so many that were sent before are sent once more, as by an interrupted sender."""
        if self.pending:
            self.announced = True
            first = max(self.making.skip, self.pending[0] - again)
            self.kept.add(first, items(first, self.making.made))
            self.wire.append(Items(self.number, first, list(range(first, self.making.made))))
            self.pending = []

    def hear(self) -> None:
        consumed, received = self.credits.popleft()
        self.making.credit(consumed)
        self.kept.acknowledge(received)
        self.announced = False

    def reconnect(self, consumed: int, received: int) -> None:
        """On its way is nothing any more: what is missing is sent again, and the end after it."""
        self.credits.append((consumed, received))
        self.hear()
        first, again = self.kept.again()
        if again:
            self.wire.append(Items(self.number, first, [item.index for item in again]))
        if self.over:
            self.wire.append(Finish(self.number, self.making.made))


class StreamsMachine(RuleBasedStateMachine):
    """One stream: its owner, its consumer, its attempts."""

    @initialize(ahead=st.sampled_from([-1, 1, 2, 3, 7]), length=st.integers(0, 12))
    def start(self, ahead: int, length: int) -> None:
        self.ahead = ahead
        self.length = length
        self.owner = Arriving(ahead)
        self.worker = Attempt(0, 0, ahead, length)
        #: What the consumer can see, and how much of it was taken.
        self.seen: list[int] = []
        self.taken = 0
        self.unread_before = 0
        self.stale: list[Items | Finish] = []
        self.end: End | None = None

    # --- the worker -----------------------------------------------------------------------------------

    @rule(times=st.integers(1, 6))
    def produce(self, times: int) -> None:
        for _ in range(times):
            self.worker.step()

    @rule(again=st.integers(0, 3))
    def send(self, again: int) -> None:
        self.worker.send(again)

    @precondition(lambda self: self.worker.credits)
    @rule()
    def hear_credit(self) -> None:
        self.worker.hear()

    # --- the owner --------------------------------------------------------------------------------------

    @precondition(lambda self: self.worker.wire)
    @rule(times=st.integers(1, 3), again=st.booleans())
    def deliver(self, times: int, again: bool) -> None:
        for _ in range(times):
            if self.worker.wire:
                message = self.worker.wire.popleft()
                self.take(message)
                if again and isinstance(message, Items):
                    self.take(message)

    def take(self, message: Items | Finish) -> None:
        if isinstance(message, Finish):
            self.finished(message)
            return
        before = self.owner.received
        new = self.owner.accept(message.attempt, message.first, len(message.values))
        assert not new or (new.start == before and self.end is None), "STREAM-1: the next one, and none after the end"
        assert not new or message.attempt == self.worker.number
        for index in new:
            assert message.values[index - message.first] == index
            self.seen.append(index)
        if self.owner.acknowledge(ACKNOWLEDGED_BYTES // 2) and message.attempt == self.worker.number:
            self.owner.said()
            self.worker.credits.append((self.owner.told, self.owner.received))
        self.tell()

    def finished(self, message: Finish) -> None:
        over = self.end is not None
        end = self.owner.finish(message.attempt, message.items)
        if over or message.attempt != self.worker.number:
            assert end in {End.STALE, End.INCONSISTENT}
            return
        assert (end is End.COMPLETE) == (message.items == len(self.seen)), "STREAM-3"
        assert end is not End.LOST or self.worker.cut
        self.end = end
        if end is not End.COMPLETE:
            assert self.owner.fail()

    def tell(self) -> None:
        if self.owner.credit(self.taken):
            self.owner.said()
            self.worker.credits.append((self.taken, self.owner.received))

    @precondition(lambda self: self.taken < len(self.seen))
    @rule(times=st.integers(1, 5))
    def consume(self, times: int) -> None:
        self.taken = min(self.taken + times, len(self.seen))
        self.tell()

    # --- what goes wrong -----------------------------------------------------------------------------------

    @precondition(lambda self: self.end is None)
    @rule(arrived=st.integers(0, 4), length=st.integers(0, 12), same=st.integers(0, 3))
    def die(self, arrived: int, length: int, same: int) -> None:
        """The worker dies; the last that it had sent may be lost. The task is run again, mostly alike."""
        old = self.worker
        for _ in range(min(arrived, len(old.wire))):
            self.take(old.wire.popleft())
        if self.end is not None:
            return
        self.stale += old.wire
        number = old.number + 1
        self.unread_before = len(self.seen) - self.taken
        self.worker = Attempt(number, self.owner.replay(number), self.ahead, self.length if same else length)

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def stale_arrives(self, data: st.DataObject) -> None:
        self.take(self.stale.pop(data.draw(st.integers(0, len(self.stale) - 1))))

    @precondition(lambda self: not self.worker.cut and self.end is None)
    @rule(arrived=st.integers(0, 4))
    def reconnect(self, arrived: int) -> None:
        """An actor's connection is replaced: the last that was on it, both ways, is lost, and nothing else."""
        worker = self.worker
        for _ in range(min(arrived, len(worker.wire))):
            self.take(worker.wire.popleft())
        worker.wire.clear()
        worker.credits.clear()
        if self.end is None:
            self.owner.resume(self.taken)
            self.owner.said()
            worker.reconnect(self.owner.told, self.owner.received)

    @precondition(lambda self: self.worker.wire)
    @rule(sure=st.integers(0, 4))
    def lose(self, sure: int) -> None:
        """A connection goes, and the items on it."""
        if not sure:
            self.worker.cut = True
            self.worker.wire = deque(each for each in self.worker.wire if isinstance(each, Finish))

    # --- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def in_order_and_within_the_limit(self) -> None:
        assert self.seen == list(range(len(self.seen)))
        worker = self.worker
        sent = worker.making.made - len(worker.pending)
        missing = range(max(self.owner.received, worker.making.skip), sent)
        first, kept = worker.kept.again()
        assert set(missing) <= set(range(first, first + len(kept))), "STREAM-5"
        if self.ahead >= 0:
            assert len(self.seen) - self.taken <= max(self.ahead, self.unread_before), "STREAM-2"

    def teardown(self) -> None:
        """Everything goes on by itself to its end, if nothing was lost (STREAM-4)."""
        if not hasattr(self, "owner") or self.worker.cut:
            return
        for _ in range(200):
            if self.end is not None:
                break
            self.worker.step()
            while self.worker.wire:
                self.take(self.worker.wire.popleft())
            self.taken = len(self.seen)
            self.tell()
            while self.worker.credits:
                self.worker.hear()
        expected = End.COMPLETE if self.worker.length == len(self.seen) else End.INCONSISTENT
        assert self.end is expected
        assert len(self.seen) >= self.worker.length


TestStreamsMachine = searched(StreamsMachine, steps=40)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(StreamsMachine, 400, steps=40)
