"""Secondary copies in the object table: dropped, not spilled; and promoted."""

from __future__ import annotations

from typing import Any

from moray.core.object_table import ObjectTable
from moray.core.object_table_types import (
    AwaitRecalls,
    Created,
    Dropped,
    Extend,
    Failed,
    MakeFile,
    Pinned,
    Recall,
    Spill,
)

NODE, P, Q = b"node--------", b"process-p---", b"process-q---"
SIZE = 1 << 20


def name(number: int) -> bytes:
    return bytes([number]) * 28


class Table:
    """A table of four places, whose machine backs memory at once and whose disk is slow."""

    def __init__(self) -> None:
        self.table = ObjectTable(4 * SIZE)
        self.done: list[Any] = []
        self.requests = 0

    def do(self, actions: list[Any]) -> list[Any]:
        fresh = []
        for action in actions:
            if isinstance(action, Extend):
                fresh += self.do(self.table.extended(action.size))
            elif not isinstance(action, (Recall, AwaitRecalls)):
                fresh.append(action)
        self.done += fresh
        self.table.check()
        return fresh

    def make(self, number: int, process: bytes = P, secondary: bool = False) -> list[Any]:
        self.requests += 1
        return self.do(self.table.create(process, self.requests, name(number), SIZE, secondary))

    def put(self, number: int, process: bytes = P, secondary: bool = False) -> None:
        actions = self.make(number, process, secondary)
        assert any(isinstance(action, Created) for action in actions), actions
        self.do(self.table.seal(process, 0, name(number)))

    def pin(self, number: int, process: bytes = Q) -> list[Any]:
        self.requests += 1
        return self.do(self.table.pin(process, self.requests, name(number)))

    def of(self, kind: type) -> list[Any]:
        return [action for action in self.done if isinstance(action, kind)]


def test_copies_go_before_anything_is_spilled() -> None:
    t = Table()
    t.put(1)
    t.put(2, NODE, secondary=True)
    t.put(3)
    t.put(4, NODE, secondary=True)
    t.put(5)
    t.put(6)
    assert [action.object for action in t.of(Dropped)] == [name(2), name(4)]
    assert not t.of(Spill)
    t.make(7)
    assert t.of(Spill)


def test_a_copy_that_is_read_stays() -> None:
    t = Table()
    t.put(1, NODE, secondary=True)
    t.pin(1)
    for number in (2, 3, 4):
        t.put(number)
    t.make(5)
    assert not t.of(Dropped)
    assert t.of(Spill)


def test_a_pin_of_a_copy_on_its_way_waits() -> None:
    t = Table()
    t.make(1, NODE, secondary=True)
    assert not [action for action in t.pin(1) if isinstance(action, (Pinned, Failed))]
    actions = t.do(t.table.seal(NODE, 0, name(1)))
    assert [type(action) for action in actions] == [Pinned]


def test_a_promoted_copy_is_spilled_not_dropped() -> None:
    t = Table()
    t.put(1, NODE, secondary=True)
    t.pin(1)
    t.do(t.table.promote(name(1)))
    t.do(t.table.unpin(Q, [name(1)]))
    t.put(2, NODE, secondary=True)
    t.do(t.table.promote(name(2)))
    for number in (3, 4):
        t.put(number)
    t.make(5)
    assert not t.of(Dropped)
    assert t.of(Spill)


def test_a_copy_in_a_file_of_its_own_goes_with_its_last_pin() -> None:
    t = Table()
    for number in range(1, 5):
        t.put(number)
        t.pin(number)
    t.make(5, NODE, secondary=True)
    [made] = t.of(MakeFile)
    t.do(t.table.file_made(made.file))
    t.pin(5, P)
    t.pin(5, Q)
    t.do(t.table.seal(NODE, 0, name(5)))
    t.do(t.table.unpin(P, [name(5)]))
    assert not t.of(Dropped)
    t.do(t.table.unpin(Q, [name(5)]))
    assert [action.object for action in t.of(Dropped)] == [name(5)]
    assert t.table.state_of(name(5)) is None


def test_there_are_never_two_of_one_object() -> None:
    t = Table()
    t.put(1)
    [failed] = t.make(1, NODE, secondary=True)
    assert failed.code == "exists"


def test_a_freed_copy_stays_under_its_reader_and_is_not_told_as_dropped() -> None:
    t = Table()
    t.put(1, NODE, secondary=True)
    t.pin(1)
    t.do(t.table.free([name(1)]))
    t.do(t.table.unpin(Q, [name(1)]))
    assert t.table.stats()["used_bytes"] == 0
    assert not t.of(Dropped)
