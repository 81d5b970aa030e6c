"""Wishes divided between nodes: every owner gets what it asked for, whatever crosses on the way."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moray.core.wishes import Ask, Choice, Refusal, Step, Wish, Wishes

NODES = [b"n1", b"n2", b"n3"]
OWNERS = [b"o1", b"o2"]


def detail_of(owner: bytes, key: int) -> str:
    return f"{owner!r} asks {key}"


class Granter:
    """A node: it owes ``count - (granted - seen)``, as the local scheduler does."""

    def __init__(self) -> None:
        self.asked: dict[tuple[bytes, int], tuple[int, int]] = {}
        self.granted: dict[tuple[bytes, int], int] = {}

    def owed(self, key: tuple[bytes, int]) -> int:
        count, seen = self.asked.get(key, (0, 0))
        return count - (self.granted.get(key, 0) - seen)


class WishMachine(RuleBasedStateMachine):
    """Messages to nodes and grants back are queues, delivered in any order between nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.wishes = Wishes(self.choose)
        self.room = dict.fromkeys(NODES, 3)
        self.granters = {node: Granter() for node in NODES}
        self.to_node: dict[bytes, deque[Ask]] = {node: deque() for node in NODES}
        self.from_node: dict[bytes, deque[tuple[bytes, int]]] = {node: deque() for node in NODES}
        #: (owner, key) → (count, seen at that time), grants received.
        self.wanted: dict[tuple[bytes, int], tuple[int, int]] = {}
        self.received: dict[tuple[bytes, int], int] = {}
        self.refused: set[tuple[bytes, int]] = set()
        self.left: set[bytes] = set()

    def choose(self, _wish: Wish, count: int) -> Choice:
        if not count:
            return Choice([], b"")
        living = [node for node in NODES if node in self.granters]
        if not living:
            return Choice([], b"", "no node is left")
        now: list[tuple[bytes, int]] = []
        for node in living:
            part = min(count - sum(some for _node, some in now), self.room[node])
            if part > 0:
                now.append((node, part))
        return Choice(now, living[0])

    def carry_out(self, steps: list[Step]) -> None:
        for step in steps:
            if isinstance(step, Refusal):
                self.refused.add((step.wish.owner, step.wish.key))
                continue
            assert step.detail == detail_of(step.wish.owner, step.wish.key), "what is asked says what it is about"
            if step.node in self.granters:
                # What the wish says now may change before the message is read: it is written down here.
                self.to_node[step.node].append(step)

    @rule(owner=st.sampled_from(OWNERS), key=st.integers(1, 2), count=st.integers(0, 8))
    def request(self, owner: bytes, key: int, count: int) -> None:
        if owner in self.left:
            return
        seen = self.received.get((owner, key), 0)
        self.wanted[owner, key] = (count, seen)
        self.carry_out(self.wishes.request(owner, 1, key, count, seen, {}, detail_of(owner, key)))

    @rule(node=st.sampled_from(NODES), room=st.integers(0, 5))
    def view(self, node: bytes, room: int) -> None:
        self.room[node] = room
        self.carry_out(self.wishes.view_changed())

    @rule(node=st.sampled_from(NODES))
    def deliver(self, node: bytes) -> None:
        if self.to_node[node]:
            step = self.to_node[node].popleft()
            self.granters[node].asked[step.wish.owner, step.wish.key] = (step.more, step.seen)

    @rule(node=st.sampled_from(NODES), data=st.data())
    def grant(self, node: bytes, data: st.DataObject) -> None:
        granter = self.granters.get(node)
        if granter is None:
            return
        owing = sorted(key for key in granter.asked if granter.owed(key) > 0)
        if owing:
            key = data.draw(st.sampled_from(owing))
            granter.granted[key] = granter.granted.get(key, 0) + 1
            self.from_node[node].append(key)

    @rule(node=st.sampled_from(NODES))
    def arrive(self, node: bytes) -> None:
        if self.from_node[node]:
            owner, key = self.from_node[node].popleft()
            if owner not in self.left:
                self.received[owner, key] = self.received.get((owner, key), 0) + 1
                self.carry_out(self.wishes.granted(owner, key, node))

    @precondition(lambda self: len(self.granters) > 1)
    @rule(node=st.sampled_from(NODES))
    def die(self, node: bytes) -> None:
        if node in self.granters and len(self.granters) > 1:
            del self.granters[node]
            self.to_node[node].clear()
            self.from_node[node].clear()
            self.carry_out(self.wishes.node_died(node))

    @rule(owner=st.sampled_from(OWNERS))
    def leave(self, owner: bytes) -> None:
        self.left.add(owner)
        self.carry_out(self.wishes.owner_left(owner))

    @invariant()
    def of_what_nobody_wants_only_numbers_are_kept(self) -> None:
        for wish in self.wishes._wishes.values():
            assert (wish.detail is None) == (wish.count == 0)

    @invariant()
    def nothing_is_asked_twice(self) -> None:
        for wish in list(self.wishes.waiting()):
            assert sum(wish.asked.values()) == wish.owed or wish.refused

    def teardown(self) -> None:
        """When all messages have arrived and every node grants what it owes, every owner has what it wanted."""
        for _ in range(100):
            for node in list(self.granters):
                while self.to_node[node]:
                    self.deliver(node)
                granter = self.granters[node]
                for key in list(granter.asked):
                    while granter.owed(key) > 0:
                        granter.granted[key] = granter.granted.get(key, 0) + 1
                        self.from_node[node].append(key)
                while self.from_node[node]:
                    self.arrive(node)
        for wish, (count, seen) in self.wanted.items():
            if wish[0] not in self.left:
                assert self.received.get(wish, 0) >= seen + count
        for node, granter in self.granters.items():
            for key in granter.asked:
                if key[0] in self.left:
                    assert granter.owed(key) <= 0, f"{node!r} goes on for an owner that left"


TestWishes = WishMachine.TestCase


def asks(steps: list[Any]) -> list[tuple[bytes, int, int]]:
    return [(step.node, step.more, step.seen) for step in steps if isinstance(step, Ask)]


def test_what_does_not_fit_anywhere_waits_at_one_node() -> None:
    wishes = Wishes(lambda _wish, _count: Choice([(b"a", 2), (b"b", 1)], b"a"))
    assert asks(wishes.request(b"o", 1, 7, 5, 0, {"CPU": 1}, None)) == [(b"a", 4, 0), (b"b", 1, 0)]


def test_a_wish_moves_when_there_is_room_elsewhere() -> None:
    room = {b"a": 1}
    wishes = Wishes(lambda _wish, _count: Choice(list(room.items()), b"a"))
    assert asks(wishes.request(b"o", 1, 7, 3, 0, {"CPU": 1}, None)) == [(b"a", 3, 0)]
    wishes.granted(b"o", 7, b"a")
    room = {b"b": 2}
    assert asks(wishes.view_changed()) == [(b"a", 0, 1), (b"b", 2, 0)]


def test_infeasible_is_said_once_and_again_after_it_was_possible() -> None:
    choice = Choice([], b"", "no node has GPUs")
    wishes = Wishes(lambda _wish, _count: choice)
    assert wishes.request(b"o", 1, 7, 1, 0, {"GPU": 1}, None)[0].reason == "no node has GPUs"  # type: ignore[union-attr]
    assert wishes.view_changed() == []
    choice = Choice([(b"a", 1)], b"a")
    assert asks(wishes.view_changed()) == [(b"a", 1, 0)]
    choice = Choice([], b"", "no node has GPUs")
    assert [type(step) for step in wishes.view_changed()] == [Ask, Refusal]
