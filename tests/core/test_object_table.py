"""The object table: a state machine against a model with bytes, then named scenarios of the rules it carries."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moray.core.object_table import ObjectTable
from moray.core.object_table_types import TRANSITIONS, Created, Done, Extend, Failed, Pinned, Restore, Spill, State
from tests.core.object_table_model import CAPACITY, LINE, Machine
from tests.support.machines import searched, walk_fixed

PROCESSES = [b"process-%04d" % i for i in range(3)]
OBJECTS = [b"object-%021d" % i for i in range(7)]
#: How the next pieces of disk work go: whether each fails.
DISK = st.lists(st.sampled_from([False, False, False, True]), max_size=3)
#: Up to a third of the arena, and now and then more than the whole of it.
SIZES = st.one_of(st.integers(0, CAPACITY // 3), st.integers(CAPACITY // 4, CAPACITY // 3), st.just(CAPACITY + 1))
A, B, C = PROCESSES
X, Y, Z = OBJECTS[:3]


class ObjectTableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.m = Machine()

    @rule(process=st.sampled_from(PROCESSES), name=st.sampled_from(OBJECTS), size=SIZES)
    def create(self, process: bytes, name: bytes, size: int) -> None:
        self.m.create(process, name, size)

    @initialize(objects=st.integers(0, 4))
    def fill(self, objects: int) -> None:
        for name in OBJECTS[:objects]:
            self.m.put(A, name, CAPACITY // 4)

    @rule(process=st.sampled_from(PROCESSES), size=SIZES, disk=DISK)
    def put_what_is_not_there(self, process: bytes, size: int, disk: list[bool]) -> None:
        for name in OBJECTS:
            if self.m.current(name) is None:
                self.m.put(process, name, size, disk)
                break

    @rule(processes=st.lists(st.sampled_from(PROCESSES), min_size=1, max_size=2), disk=DISK, data=st.data())
    def read(self, processes: list[bytes], disk: list[bool], data: Any) -> None:
        """Pins of something that is there; then perhaps the disk does something."""
        if names := sorted(a.name for a in self.m.attempts if a.sealed):
            name = data.draw(st.sampled_from(names))
            for process in processes:
                self.m.pin(process, name)
            for fails in disk[: len(self.m.work)]:
                self.m.step(fails)

    @precondition(lambda self: any(a.place for a in self.m.unsealed()))
    @rule(data=st.data())
    def seal(self, data: Any) -> None:
        self.m.seal(data.draw(st.sampled_from([a for a in self.m.unsealed() if a.place])))

    @precondition(lambda self: self.m.requests % 3 == 1 and self.m.unsealed())
    @rule(data=st.data())
    def abort(self, data: Any) -> None:
        self.m.abort(data.draw(st.sampled_from(self.m.unsealed())))

    @rule(process=st.sampled_from(PROCESSES), name=st.sampled_from(OBJECTS))
    def pin(self, process: bytes, name: bytes) -> None:
        self.m.pin(process, name)

    @precondition(lambda self: self.m.reads)
    @rule(data=st.data())
    def unpin(self, data: Any) -> None:
        process, tag = data.draw(st.sampled_from(sorted(self.m.reads)))
        self.m.unpin(process, self.m.known[tag].name)

    @precondition(lambda self: self.m.requests % 3 == 0)
    @rule(name=st.sampled_from(OBJECTS))
    def free(self, name: bytes) -> None:
        self.m.free(name)

    @precondition(lambda self: self.m.requests % 4 == 0)
    @rule(process=st.sampled_from(PROCESSES))
    def die(self, process: bytes) -> None:
        self.m.die(process)

    @precondition(lambda self: self.m.work)
    @rule(fails=st.sampled_from([False, False, False, True]))
    def disk(self, fails: bool) -> None:
        self.m.step(fails)

    @invariant()
    def holds(self) -> None:
        self.m.check()

    def teardown(self) -> None:
        for process in PROCESSES:
            self.m.die(process)
        for name in OBJECTS:
            self.m.free(name)
        self.m.finish()
        self.m.table.check()
        stats = self.m.table.stats()
        assert not self.m.files, "files are left"
        for total in ("used_bytes", "objects", "pinned_objects", "spilled_objects", "fallback_objects", "queued"):
            assert stats[total] == 0, f"{total} is {stats[total]} in the end"


TestObjectTableMachine = searched(ObjectTableMachine)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(ObjectTableMachine, 200)


def filled(objects: int = 4) -> Machine:
    """A machine whose arena is full of sealed objects of equal size, made by A."""
    m = Machine()
    for name in OBJECTS[:objects]:
        m.put(A, name, CAPACITY // objects)
    assert m.table.stats()["used_bytes"] == CAPACITY
    return m


def test_every_transition_is_reachable() -> None:
    """Every arrow of the diagram is gone along by a random walk of the machine, so none is untested."""
    seen = set()

    class Watched(ObjectTable):
        def _move(self, entry: Any, state: State) -> None:
            seen.add((entry.state, state))
            super()._move(entry, state)

    dice = random.Random(3)
    for _ in range(60):
        m = Machine()
        m.table = Watched(CAPACITY, 24 * LINE)
        for _ in range(150):
            random_event(m, dice)
            m.check()
    assert seen == {(source, target) for source, targets in TRANSITIONS.items() for target in targets}


def random_event(m: Machine, dice: random.Random) -> None:
    process, name, what = dice.choice(PROCESSES), dice.choice(OBJECTS), dice.random()
    unsealed = [a for a in m.attempts if not a.sealed]
    if what < 0.3:
        m.create(process, name, dice.choice((0, 100, CAPACITY // 4, CAPACITY // 3)))
    elif what < 0.55:
        for attempt in [a for a in unsealed if a.place][:1]:
            m.seal(attempt)
    elif what < 0.7:
        m.pin(process, name)
    elif what < 0.8 and m.reads:
        reader, tag = dice.choice(sorted(m.reads))
        m.unpin(reader, m.known[tag].name)
    elif what < 0.83:
        m.free(name)
    elif what < 0.84:
        m.die(process)
    elif what < 0.85 and unsealed:
        m.abort(dice.choice(unsealed))
    elif m.work:
        m.step(dice.random() < 0.2)


def test_a_pin_waits_for_the_seal() -> None:
    """STORE-SEAL."""
    m = Machine()
    m.create(A, X, 100)
    m.finish()
    early = m.pin(B, X)
    assert early not in m.answers
    m.seal(m.attempts[0])
    assert isinstance(m.answers[early], Pinned)


@pytest.mark.parametrize("end", ["die", "abort", "free"])
def test_a_pin_fails_when_the_creator_is_gone(end: str) -> None:
    """STORE-SEAL: and only then."""
    m = Machine()
    m.create(A, X, 100)
    m.finish()
    early = m.pin(B, X)
    if end == "die":
        m.die(A)
    elif end == "abort":
        m.abort(m.attempts[0])
    else:
        m.free(X)
    assert m.answers[early].code == "lost"


def test_a_freed_object_stays_under_its_readers() -> None:
    """STORE-PIN: and its id is free at once."""
    m = Machine()
    m.put(A, X, 100)
    m.pin(B, X)
    m.free(X)
    m.put(A, X, 200)
    m.check()
    assert m.table.stats()["used_bytes"] == 128 + 256
    m.unpin(B, X)
    assert m.table.stats()["used_bytes"] == 256


def test_two_attempts_under_one_id_stay_until_the_last_unpin() -> None:
    """STORE-PIN: keys are (object, attempt), but an unpin only names the object."""
    m = Machine()
    m.put(A, X, 100)
    m.pin(B, X)
    m.free(X)
    m.put(A, X, 200)
    m.pin(B, X)
    m.free(X)
    m.table.unpin(B, [X])
    assert m.table.stats()["used_bytes"] == 128 + 256
    m.table.unpin(B, [X])
    assert m.table.stats()["used_bytes"] == 0


def test_the_dead_hold_nothing() -> None:
    """LIVENESS: pins, regions being written, and requests that wait."""
    m = filled()
    for name in OBJECTS[:4]:
        m.pin(B, name)
    m.die(B)
    assert m.table.pins() == {}
    m.free(X)
    m.create(B, X, CAPACITY // 4)
    assert m.table.unsealed() == {B: (1, CAPACITY // 4)}
    m.die(B)
    m.create(B, X, CAPACITY // 4)
    m.create(B, OBJECTS[5], CAPACITY)
    m.die(B)
    m.finish()
    assert m.table.stats()["queued"] == 0
    assert m.table.unsealed() == {}


def test_a_dead_process_gets_no_pin_that_it_waited_for() -> None:
    """LIVENESS."""
    m = Machine()
    m.create(A, X, 100)
    m.finish()
    m.pin(B, X)
    m.pin(C, X)
    m.die(B)
    m.seal(m.attempts[0])
    assert m.table.pins() == {C: (1, 100)}


def test_the_least_recently_used_is_spilled() -> None:
    m = filled()
    m.pin(B, X)
    m.unpin(B, X)
    m.put(A, OBJECTS[5], CAPACITY // 4)
    assert m.table.state_of(Y) is State.SPILLED
    assert m.table.state_of(X) is State.SEALED


def test_a_spilled_object_comes_back_and_leaves_again_without_a_write() -> None:
    """Sealed bytes never change, so the copy on disk stays good."""
    m = filled()
    m.put(A, OBJECTS[5], CAPACITY // 4)
    written = m.spills
    restored = m.pin(B, X)
    m.finish()
    assert m.answers[restored].file == 0
    m.unpin(B, X)
    for name in (OBJECTS[5], Y, Z, OBJECTS[3]):
        m.pin(A, name)
        m.finish()
        m.check()
    assert m.table.state_of(X) is State.SPILLED
    assert m.spills - written <= 3
    assert sum(m.known[tag].name == X for file in m.files.values() for tag in set(file.values())) == 1


def test_a_pin_during_the_spill_keeps_the_region() -> None:
    """STORE-PIN: the spiller frees in the turn in which it sees no other pin."""
    m = filled()
    m.create(A, OBJECTS[5], CAPACITY // 4)
    assert m.table.state_of(X) is State.SPILLING
    reader = m.pin(B, X)
    assert m.answers[reader].file == 0
    m.finish()
    m.check()
    assert m.table.state_of(X) is State.SEALED


def test_when_everything_is_pinned_the_object_gets_a_file_and_one_warning() -> None:
    """STORE-SPACE."""
    m = filled()
    for name in OBJECTS[:4]:
        m.pin(B, name)
    for name in OBJECTS[4:6]:
        m.put(A, name, 1000)
        reader = m.pin(C, name)
        assert m.answers[reader].file != 0
    assert len(m.warnings) == 1
    assert f"process {B.hex()} reads 4 objects of {CAPACITY} bytes" in m.warnings[0]
    assert m.table.stats()["fallback_bytes"] == 2000


def test_a_spilled_object_is_served_from_disk_when_everything_else_is_pinned() -> None:
    m = filled()
    m.put(A, OBJECTS[5], CAPACITY // 4)
    for name in (Y, Z, OBJECTS[3], OBJECTS[5]):
        m.pin(B, name)
        m.finish()
    reader = m.pin(C, X)
    m.finish()
    assert m.answers[reader].file != 0
    m.check()


def test_a_full_disk_is_an_error_that_says_who_holds_what_and_passes() -> None:
    """STORE-SPACE: nothing is lost by the failed spill, and when the disk has room it works again."""
    m = filled()
    m.pin(B, X)
    request = m.create(A, OBJECTS[5], CAPACITY // 4)
    while request not in m.answers:
        m.step(fails=True)
    failed = m.answers[request]
    assert isinstance(failed, Failed)
    assert failed.code == "full"
    assert f"process {B.hex()} reads 1 objects of {CAPACITY // 4} bytes" in failed.detail
    assert "the disk is full" in failed.detail
    m.check()
    assert not m.files
    again = m.create(A, OBJECTS[5], CAPACITY // 4)
    m.finish()
    assert isinstance(m.answers[again], Created)


def test_who_may_have_dropped_something_is_asked_before_a_creation_is_refused() -> None:
    """STORE-SPACE: once for each creation; it waits for the answers, or until they are overdue."""
    m = filled()
    for name in OBJECTS[:4]:
        m.pin(B, name)
    m.table.node = C
    m.pin(C, X)
    request = m.create(A, OBJECTS[5], CAPACITY // 4)
    m.step(fails=True)  # A file of its own.
    assert request not in m.answers
    assert [(recall.process, recall.keep) for recall in m.recalls] == [(A, True), (B, True)]
    m.check()
    m.unpin(C, X)
    m.unpin(B, X)
    m.free(X)
    created = m.answers[request]
    assert isinstance(created, Created)
    assert created.file == 0
    assert not m.warnings

    request = m.create(A, OBJECTS[6], CAPACITY // 4)
    first, second = (recall.number for recall in m.recalls)
    m.run(m.table.give_back(A, [], first))
    m.run(m.table.give_back(B, [], second))
    m.step()  # That nobody is waited for any longer: all have answered.
    m.step(fails=True)
    for recall in m.recalls[2:]:
        m.run(m.table.give_back(recall.process, [], recall.number))
    while request not in m.answers:
        m.step(fails=True)
    assert isinstance(m.answers[request], Failed)
    assert len(m.recalls) == 4
    m.check()


def test_memory_that_the_machine_refuses_is_asked_for_again_later() -> None:
    """STORE-SPACE: "full" is what fallocate says."""
    m = Machine()
    first = m.create(A, X, 1000)
    m.step(fails=True)
    m.step(fails=True)
    m.finish()
    assert m.answers[first].file != 0
    for number in range(20):
        m.create(A, b"%028d" % number, 1000)
        m.finish()
    assert m.backed > 0


def test_creations_are_granted_in_their_order() -> None:
    m = filled()
    large = m.create(B, OBJECTS[5], CAPACITY // 2)
    small = m.create(B, OBJECTS[6], 64)
    assert large not in m.answers
    assert small not in m.answers
    m.finish()
    assert list(m.answers)[-2:] == [large, small]


def test_what_could_not_make_room_is_not_spilled() -> None:
    """Moving all that can be moved for an object that will not fit either way only slows others down."""
    m = filled()
    for name in OBJECTS[:3]:
        m.pin(B, name)
    m.put(A, OBJECTS[5], CAPACITY // 2)
    assert m.spills == 0
    assert m.table.state_of(OBJECTS[3]) is State.SEALED


def test_a_seal_is_acknowledged_and_a_false_one_refused() -> None:
    table = ObjectTable(CAPACITY)
    table.create(A, 1, X, 10)
    table.extended(CAPACITY)
    assert table.seal(B, 2, X) == [Failed(B, 2, "lost", f"object {X.hex()} is not being written by this process")]
    assert table.seal(A, 3, X) == [Done(A, 3)]
    assert table.seal(A, 0, X) == []


def test_space_is_extended_before_it_is_granted() -> None:
    """STORE-SPACE."""
    table = ObjectTable(1 << 30)
    assert table.create(A, 1, X, 10) == [Extend(0, 1 << 20)]
    assert table.extended(1 << 20) == [Created(A, 1, 0, 0)]
    assert table.create(A, 2, Y, 10) == [Created(A, 2, 64, 0)]


def test_many_small_objects_share_a_file() -> None:
    table = ObjectTable(1 << 20)
    table.create(A, 0, b"0", 0)
    table.extended(1 << 20)
    for number in range(1, 1 << 14):
        table.create(A, number, b"%d" % number, 64)
        table.seal(A, 0, b"%d" % number)
    (spill,) = table.create(A, 1 << 14, b"last", 64)
    assert isinstance(spill, Spill)
    assert len(spill.parts) == 1024


def test_an_unreadable_disk_fails_the_pin_and_keeps_the_object() -> None:
    m = filled()
    m.put(A, OBJECTS[5], CAPACITY // 4)
    request = m.pin(B, X)
    while request not in m.answers:
        m.step(fails=isinstance(m.work[0], Restore))
    assert m.answers[request].code == "disk"
    again = m.pin(B, X)
    m.finish()
    assert isinstance(m.answers[again], Pinned)


def microseconds_per_object(live: int) -> float:
    table = ObjectTable(1 << 40)
    table.create(A, 0, b"first", 64)
    table.extended(1 << 40)
    names = [b"%028d" % number for number in range(live)]
    for name in names:
        table.create(A, 1, name, 100)
        table.seal(A, 0, name)
    best = float("inf")
    for _ in range(5):
        sample = random.Random(live).sample(names, 1000)
        begin = time.perf_counter()
        for name in sample:
            table.pin(B, 1, name)
            table.unpin(B, [name])
            table.free([name])
            table.create(A, 1, name, 100)
            table.seal(A, 0, name)
        best = min(best, time.perf_counter() - begin)
    return best * 1e3


@pytest.mark.slow
def test_cost_does_not_grow_with_live_objects() -> None:
    """One pin, unpin, free, create and seal; memory caches make the large one about 2 times dearer."""
    few, many = microseconds_per_object(1_000), microseconds_per_object(200_000)
    assert many < 4 * few, f"{few:.1f} us with 1 000 objects, {many:.1f} us with 200 000"
