"""Space granted ahead: the object table's machine with places, recalls and seals on their way, then named scenarios."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from moray.core.object_table import ObjectTable
from moray.core.object_table_types import (
    AwaitRecalls,
    Created,
    Done,
    Extend,
    Failed,
    Granted,
    Pinned,
    Recall,
    State,
)
from tests.core.object_table_ahead_model import AheadMachine, own_name
from tests.core.object_table_model import CAPACITY, LINE
from tests.core.test_object_table import OBJECTS, PROCESSES, ObjectTableMachine
from tests.support.machines import searched, walk_fixed

A, B, C = PROCESSES
X, Y, Z = OBJECTS[:3]
QUARTER = CAPACITY // 4


class AheadObjectTableMachine(ObjectTableMachine):
    """All rules of its base, and those of places."""

    def __init__(self) -> None:
        super().__init__()
        self.m: AheadMachine = AheadMachine()

    @rule(process=st.sampled_from(PROCESSES), count=st.integers(1, 3), lines=st.integers(1, 6))
    def grant(self, process: bytes, count: int, lines: int) -> None:
        self.m.grant(process, count, lines * LINE)

    @precondition(lambda self: self.m.held)
    @rule(number=st.integers(0, 3), size=st.integers(0, 3 * LINE), data=st.data())
    def write_ahead(self, number: int, size: int, data: Any) -> None:
        process = data.draw(st.sampled_from(sorted(self.m.held)))
        self.m.write_ahead(process, own_name(process, number), size)

    @precondition(lambda self: self.m.outbox)
    @rule(data=st.data())
    def deliver(self, data: Any) -> None:
        self.m.deliver(data.draw(st.sampled_from(sorted(self.m.outbox))))

    @precondition(lambda self: any(a.name not in OBJECTS for a in self.m.attempts))
    @rule(process=st.sampled_from(PROCESSES), data=st.data())
    def pin_own(self, process: bytes, data: Any) -> None:
        """Somebody who has a reference to an object, whose seal may still be on its way."""
        known = [a for a in self.m.attempts if a.name not in OBJECTS and not a.freed and (a.told or a.sealed)]
        if known := [a for a in known if a.creator != process or a.sealed]:
            self.m.pin(process, data.draw(st.sampled_from(sorted(known, key=lambda a: a.tag))).name)

    @rule(process=st.sampled_from(PROCESSES), owner=st.sampled_from(PROCESSES))
    def pin_what_never_was(self, process: bytes, owner: bytes) -> None:
        self.m.pin(process, own_name(owner, 99))

    @precondition(lambda self: any(a.name not in OBJECTS and a.told for a in self.m.attempts))
    @rule(data=st.data())
    def free_own(self, data: Any) -> None:
        mine = [a for a in self.m.attempts if a.name not in OBJECTS and a.told]
        self.m.free_own(data.draw(st.sampled_from(sorted(mine, key=lambda a: a.tag))))

    @precondition(lambda self: self.m.recalls)
    @rule(data=st.data())
    def answer_recall(self, data: Any) -> None:
        self.m.answer_recall(data.draw(st.sampled_from(self.m.recalls)))

    @precondition(lambda self: self.m.held)
    @rule(data=st.data())
    def give_back(self, data: Any) -> None:
        self.m.give_back(data.draw(st.sampled_from(sorted(self.m.held))))

    def teardown(self) -> None:
        super().teardown()
        assert self.m.table.stats()["ahead_bytes"] == 0


TestAheadObjectTableMachine = searched(AheadObjectTableMachine)


@pytest.mark.long
def test_fixed_walks_ahead() -> None:
    walk_fixed(AheadObjectTableMachine, 200)


def holding(count: int, size: int = LINE) -> AheadMachine:
    """A machine in which A holds places and all memory is backed."""
    m = AheadMachine()
    m.put(B, X, CAPACITY)
    m.free(X)
    assert m.grant(A, count, size) == count
    return m


def test_an_object_is_sealed_in_a_place_and_what_is_left_of_it_is_free_again() -> None:
    m = holding(1, 5 * LINE)
    assert m.table.stats()["ahead_bytes"] == 5 * LINE
    assert m.write_ahead(A, own_name(A, 1), 100)
    m.deliver_all()
    stats = m.table.stats()
    assert (stats["ahead_bytes"], stats["used_bytes"]) == (0, 2 * LINE)
    m.pin(B, own_name(A, 1))
    m.check()


def test_a_pin_that_is_quicker_than_the_seal_waits_for_it() -> None:
    """STORE-SEAL: the owner's word that it is there counts."""
    m = holding(1)
    m.write_ahead(A, own_name(A, 1))
    early = m.pin(B, own_name(A, 1))
    assert early not in m.answers
    assert m.recalls == [Recall(A, 1, keep=True)]
    m.deliver_all()
    assert isinstance(m.answers[early], Pinned)


@pytest.mark.parametrize("end", ["answer", "die"])
def test_a_pin_of_what_is_gone_fails_once_the_owner_has_spoken(end: str) -> None:
    m = holding(1)
    early = m.pin(B, own_name(A, 1))
    assert early not in m.answers
    if end == "die":
        m.die(A)
    else:
        m.answer_recall(m.recalls[0])
        m.deliver_all()
        assert A in m.held, "nothing was asked back"
    assert m.answers[early].code == "lost"


def test_an_earlier_answer_says_nothing_of_later_seals() -> None:
    """STORE-SEAL."""
    m = holding(2)
    m.pin(B, own_name(A, 1))
    m.answer_recall(m.recalls[0])
    m.write_ahead(A, own_name(A, 2))
    early = m.pin(B, own_name(A, 2))
    m.deliver(A)
    assert early not in m.answers
    m.deliver(A)
    assert isinstance(m.answers[early], Pinned)


def test_the_owner_itself_is_not_asked() -> None:
    m = holding(1)
    assert m.answers[m.pin(A, own_name(A, 1))].code == "lost"


def test_places_go_with_their_process() -> None:
    """LIVENESS."""
    m = holding(3)
    m.write_ahead(A, own_name(A, 1))
    m.die(A)
    stats = m.table.stats()
    assert stats["ahead_bytes"] == stats["used_bytes"] == stats["objects"] == 0


def test_places_come_back_before_anything_is_spilled() -> None:
    """STORE-SPACE."""
    m = holding(4, 4 * LINE)
    for name in (X, Y, Z):
        m.put(B, name, QUARTER)
    request = m.create(B, OBJECTS[3], QUARTER)
    assert request not in m.answers
    assert m.spills == 0
    m.answer_recall(m.recalls[0])
    m.deliver_all()
    assert isinstance(m.answers[request], Created)
    assert m.spills == 0


@pytest.mark.parametrize("disk_is_full", [False, True])
def test_a_process_that_does_not_answer_holds_up_nobody(disk_is_full: bool) -> None:
    """STORE-SPACE: the recall's time is over, and room is made without it."""
    m = holding(4, 4 * LINE)
    for name in (X, Y, Z):
        m.put(B, name, QUARTER)
    request = m.create(B, OBJECTS[3], QUARTER)
    assert isinstance(m.work[0], AwaitRecalls)
    m.step()
    assert m.spills == 1
    while request not in m.answers:
        m.step(fails=disk_is_full)
    assert isinstance(m.answers[request], Failed if disk_is_full else Created)
    # The late answer is as good as any.
    m.answer_recall(m.recalls[0])
    m.deliver_all()
    m.finish()
    assert m.table.stats()["ahead_bytes"] == 0
    if disk_is_full:
        again = m.create(B, OBJECTS[4], QUARTER)
        assert isinstance(m.answers[again], Created)


def test_a_full_disk_is_no_error_while_places_come_back() -> None:
    """STORE-SPACE: what is granted ahead never makes an object fail that would have had room."""
    m = holding(4, 4 * LINE)
    for name in (X, Y, Z):
        m.put(B, name, QUARTER)
        m.pin(C, name)
    request = m.create(B, OBJECTS[3], QUARTER)
    assert request not in m.answers
    m.answer_recall(m.recalls[0])
    m.deliver_all()
    assert m.answers[request].file == 0


def test_holders_are_asked_once_for_what_they_were_granted() -> None:
    m = holding(1)
    for name in (X, Y, Z):
        m.put(B, name, QUARTER)
    first, second = m.create(B, OBJECTS[3], QUARTER), m.create(C, OBJECTS[4], QUARTER)
    assert len(m.recalls) == 1
    m.write_ahead(A, own_name(A, 1))
    m.answer_recall(m.recalls[0])
    m.deliver_all()
    m.finish()
    assert not m.recalls
    assert {type(m.answers[first]), type(m.answers[second])} == {Created}


def test_nothing_is_granted_ahead_under_pressure() -> None:
    m = AheadMachine()
    m.put(B, X, CAPACITY)
    m.free(X)
    m.put(B, X, CAPACITY * 7 // 8 - LINE)
    assert m.grant(A, 9, LINE) == 1, "an eighth stays free"
    m.give_back(A)
    m.deliver_all()
    m.free(X)
    m.put(B, X, CAPACITY // 2)
    m.put(B, Y, CAPACITY // 8)
    waiting = m.create(B, Z, CAPACITY)
    m.free(X)
    assert waiting not in m.answers
    assert m.grant(C, 1, LINE) == 0


def test_nothing_is_granted_ahead_of_those_who_wait() -> None:
    table = ObjectTable(64 << 20)
    table.create(B, 1, X, 1 << 20)
    table.extended(1 << 20)
    table.abort(B, X)
    assert table.create(B, 2, Y, 8 << 20) == [Extend(1 << 20, 7 << 20)]
    assert table.grant_ahead(A, 1, 64) == [Granted(A, 64, [])]
    assert table.extended(7 << 20) == [Created(B, 2, 0, 0)]


def test_one_process_and_all_together_hold_no_more_than_their_shares() -> None:
    table = ObjectTable(1 << 20)
    table.create(B, 1, X, 10)
    table.extended(1 << 20)
    held = {}
    for process in (b"process-%04d" % number for number in range(6)):
        (granted,) = table.grant_ahead(process, 1 << 14, 1 << 10)
        assert isinstance(granted, Granted)
        held[process] = len(granted.places) << 10
    assert list(held.values()) == [1 << 15] * 4 + [0] * 2


def test_what_is_not_backed_is_not_granted_but_backed_for_the_next_time() -> None:
    """STORE-SPACE."""
    table = ObjectTable(1 << 30)
    assert table.grant_ahead(A, 2, 1 << 20) == [Extend(0, 2 << 20), Granted(A, 1 << 20, [])]
    table.extended(2 << 20)
    (granted,) = table.grant_ahead(A, 2, 1 << 20)
    assert granted == Granted(A, 1 << 20, [(1, 0), (2, 1 << 20)])


def test_warm_space_is_granted_first() -> None:
    table = ObjectTable(1 << 30)
    table.create(A, 1, X, 1 << 20)
    table.extended(16 << 20)
    table.create(A, 2, Y, 64)
    table.seal(A, 0, X)
    table.free([X])
    (granted,) = table.grant_ahead(A, 2, 1 << 20)
    assert granted == Granted(A, 1 << 20, [(1, 0), (2, (1 << 20) + 64)])


def test_a_machine_that_refuses_pages_ahead_may_still_have_some_for_an_object() -> None:
    """STORE-SPACE: the refusal of a wish is no sign of a full machine."""
    table = ObjectTable(1 << 30)
    table.grant_ahead(A, 8, 1 << 20)
    table.extended(0)
    assert table.create(B, 1, X, 1 << 20) == [Extend(0, 1 << 20)]
    assert table.extended(1 << 20) == [Created(B, 1, 0, 0)]


def test_a_false_seal_is_refused_and_a_second_attempt_keeps_its_place() -> None:
    m = holding(1)
    (number,) = m.held[A]
    table = m.table
    m.put(B, X, 10)
    (refused,) = table.seal_place(B, 1, Y, number, 10)
    assert isinstance(refused, Failed)
    assert refused.code == "lost"
    (refused,) = table.seal_place(A, 2, Y, number, LINE + 1)
    assert isinstance(refused, Failed)
    assert refused.code == "lost"
    (refused,) = table.seal_place(A, 3, X, number, 10)
    assert isinstance(refused, Failed)
    assert refused.code == "exists"
    assert table.seal_place(B, 0, Y, number, 10) == []
    table.free([X])
    assert table.seal_place(A, 4, X, number, 10) == [Done(A, 4)]
    table.give_back(A, [number])
    assert table.state_of(X) is State.SEALED
    table.check()


def test_only_who_was_asked_answers() -> None:
    m = holding(1)
    early = m.pin(B, own_name(A, 1))
    m.run(m.table.give_back(C, [], m.recalls[0].number))
    assert early not in m.answers
