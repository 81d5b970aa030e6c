"""Scenarios of the reference protocol, each the interleaving that breaks a naive version (RULES.md, REF-*)."""

from __future__ import annotations

import pytest

from moray.core.references import DEAD_REMEMBERED, Changes, Entry, Foreign, Output, Owned, References, Registration
from moray.core.references_report import describe, validate
from tests.core.references_world import make_id

A, B, C = b"A" * 12, b"B" * 12, b"C" * 12


class Group:
    """A few processes whose messages a test delivers one by one, or all at once."""

    def __init__(self, *names: bytes) -> None:
        self.refs = {name: References(name) for name in names}
        self.freed: list[Owned] = []

    def __getitem__(self, name: bytes) -> References:
        return self.refs[name]

    def take(self, name: bytes) -> Output:
        """Flush one process and take its output; nothing is delivered."""
        self.refs[name].flush()
        out = self.refs[name].take()
        self.freed += out.freed
        validate(self.refs[name])
        return out

    def carry(self, name: bytes, out: Output) -> None:
        """Deliver what `name` wants sent."""
        for peer, changes in out.sends:
            if peer in self.refs:
                self.refs[peer].receive(name, changes)
        for peer, request, lost in out.acks:
            if peer in self.refs:
                self.refs[peer].acknowledged(name, request, lost)

    def settle(self) -> list[Output]:
        """Deliver everything until nothing moves; the outputs of all."""
        outputs: list[Output] = []
        while True:
            round_ = [(name, self.take(name)) for name in self.refs]
            outputs += [out for _, out in round_]
            if not any(out.sends or out.acks for _, out in round_):
                return outputs
            for name, out in round_:
                self.carry(name, out)

    def kill(self, name: bytes) -> None:
        del self.refs[name]

    def put(self, name: bytes, key: int, *contained: Entry) -> tuple[Owned, bytes]:
        entry = Owned(key)
        self.refs[name].contain(entry, list(contained))
        return entry, make_id(name, key)


def shared(group: Group, owner: bytes, key: int, borrower: bytes) -> tuple[Owned, Foreign]:
    """An object that `owner` made and only `borrower` still holds, registered."""
    entry, object_id = group.put(owner, key)
    group[owner].escape(entry)
    foreign = group[borrower].arrive(object_id, None)
    assert isinstance(foreign, Foreign)
    group.settle()
    group[owner].drop_local([entry])
    assert foreign.registration is Registration.REGISTERED
    return entry, foreign


def test_an_object_that_never_left_is_in_no_table() -> None:
    refs = References(A)
    entries = [Owned(n) for n in range(5)]
    refs.drop_local(entries[:4])
    assert not refs.owned
    assert refs.take().freed == entries[:4]


def test_a_pending_task_keeps_its_arguments() -> None:
    refs = References(A)
    entry = Owned(1)
    refs.lend([entry])
    refs.drop_local([entry])
    assert not refs.take().freed
    refs.unhold([entry])
    assert refs.take().freed == [entry]
    assert not refs.owned


def test_a_chain_of_nested_values_is_freed_without_recursion() -> None:
    refs = References(A)
    inner = Owned(0)
    for key in range(1, 100_001):
        outer = Owned(key)
        refs.contain(outer, [inner])
        refs.drop_local([inner])
        inner = outer
    refs.drop_local([inner])
    assert len(refs.take().freed) == 100_001
    assert not refs.owned
    assert not refs.containers


def test_arguments_dropped_before_the_reply_cost_no_message() -> None:
    group = Group(A, B)
    entry, object_id = group.put(A, 1)
    group[A].lend([entry])
    cover = group[B].begin_task(A, 7)
    foreign = group[B].arrive(object_id, cover)
    assert foreign is not None
    group[B].drop_local([foreign])
    reply = group[B].finish_task(A, [], cover)
    out = group.take(B)
    assert (out.ready, out.sends) == ([reply], [])
    assert group[B].depart(A, [reply]) is None
    assert not group[B].foreign
    assert not group[B].tasks
    assert not group[B].peers


def test_a_reference_of_the_submitter_that_stays_is_reported_with_the_reply() -> None:
    group = Group(A, B)
    entry, object_id = group.put(A, 1)
    group[A].lend([entry])
    group[A].drop_local([entry])
    cover = group[B].begin_task(A, 7)
    group[B].arrive(object_id, cover)
    reply = group[B].finish_task(A, [], cover)
    borrows = group[B].depart(A, [reply])
    assert borrows is not None
    group[A].receive(B, borrows)
    group[A].unhold([entry])
    group.settle()
    assert not group.freed
    assert group[A].has_borrowers()
    group[B].drop_local([group[B].foreign[object_id]])
    group.settle()
    assert group.freed == [entry]


def test_a_third_owners_reference_that_stays_delays_the_reply() -> None:
    group = Group(A, B, C)
    entry, foreign = shared(group, A, 1, B)
    group[B].lend([foreign])
    cover = group[C].begin_task(B, 7)
    group[C].arrive(foreign.id, cover)
    reply = group[C].finish_task(B, [], cover)
    out = group.take(C)
    assert out.ready == []
    group.carry(C, out)
    group.carry(A, group.take(A))
    assert group.take(C).ready == [reply]
    assert entry.holds == 2


def test_arrived_and_dropped_within_a_turn_sends_nothing() -> None:
    group = Group(A, B)
    outer, outer_at_b = shared(group, A, 1, B)
    inner, inner_id = group.put(A, 2)
    group[A].contain(outer, [inner])
    foreign = group[B].arrive(inner_id, outer_at_b)
    assert foreign is not None
    group[B].drop_local([foreign])
    assert group.take(B).sends == []


def test_a_container_is_kept_until_its_contents_are_registered() -> None:
    """REF-COVER's own story: O's release reaches P before G's registration."""
    p, o, g = A, B, C
    group = Group(p, o, g)
    _, r_at_o = shared(group, p, 1, o)
    outer, outer_id = group.put(o, 1, r_at_o)
    group[o].escape(outer)
    outer_at_g = group[g].arrive(outer_id, None)
    assert outer_at_g is not None
    group.settle()
    group[o].drop_local([r_at_o, outer])
    # G gets the value of outer and drops its reference to outer.
    group[g].arrive(r_at_o.id, outer_at_g)
    group[g].drop_local([outer_at_g])
    slow = group.take(g)
    assert [peer for peer, _ in slow.sends] == [p], "outer is not released before P answered"
    group.carry(o, group.take(o))
    group.carry(p, group.take(p))
    assert not group.freed
    group.carry(g, slow)
    group.settle()
    assert group.freed == [outer], "now G itself keeps r"


def hand_over(group: Group, foreign: Foreign, sender: bytes, receiver: bytes) -> tuple[Owned, int]:
    """`sender` returns a third process's reference to `receiver` and drops it; up to the departure."""
    result = Owned(99)
    reply = group[sender].finish_task(receiver, [foreign])
    group[sender].drop_local([foreign])
    ready = [gate for out in group.settle() for gate in out.ready]
    assert ready == [reply]
    assert group[sender].depart(receiver, [reply]) is None
    return result, reply.handover


def test_the_middle_process_dies_after_the_value_left() -> None:
    """REF-SEND: what it registered for the receiver outlives it."""
    group = Group(A, B, C)
    entry, foreign = shared(group, A, 1, B)
    result, number = hand_over(group, foreign, B, C)
    group.kill(B)
    group[A].process_died(B)
    group.settle()
    assert not entry.freed, "C has not said that nothing came"
    group[C].accept(B, number, [(result, [foreign.id])])
    group[C].process_died(B)
    group.settle()
    assert not entry.freed
    group[C].drop_local([result])
    group.settle()
    assert group.freed == [result, entry]
    assert not group[A].peers[C].provisional


def test_the_middle_process_dies_before_the_value_left() -> None:
    group = Group(A, B, C)
    entry, foreign = shared(group, A, 1, B)
    hand_over(group, foreign, B, C)
    group.kill(B)
    group[A].process_died(B)
    group.settle()
    assert not entry.freed
    group[C].process_died(B)
    group.settle()
    assert group.freed == [entry]


def test_the_receiver_does_not_deny_what_it_is_still_registering() -> None:
    group = Group(A, B, C)
    entry, foreign = shared(group, A, 1, B)
    result, number = hand_over(group, foreign, B, C)
    group[C].accept(B, number, [(result, [foreign.id])])
    slow = group.take(C)
    group.kill(B)
    group[C].process_died(B)
    group[A].process_died(B)
    group.carry(A, group.take(A))
    answer = group.take(C)
    group.carry(C, answer)
    group.carry(A, group.take(A))
    assert not entry.freed
    group.carry(C, slow)
    group.settle()
    assert not entry.freed


def test_the_receiver_dies() -> None:
    group = Group(A, B, C)
    entry, foreign = shared(group, A, 1, B)
    hand_over(group, foreign, B, C)
    group.kill(C)
    group[A].process_died(C)
    group[B].process_died(C)
    group.settle()
    assert group.freed == [entry]


def test_an_old_release_does_not_end_a_promise() -> None:
    """The receiver drops an older reference to the same object while a new one is on its way to it."""
    group = Group(A, B)
    entry, foreign = shared(group, A, 1, B)
    reply = group[A].finish_task(B, [entry])
    group[B].drop_local([foreign])
    group.settle()
    assert not entry.freed
    result = Owned(5)
    group[B].accept(A, reply.handover, [(result, [foreign.id])])
    group.settle()
    assert not entry.freed
    assert group[B].foreign[foreign.id].epoch > foreign.epoch
    group[B].drop_local([result])
    group.settle()
    assert entry.freed


def test_a_result_that_nobody_wants_any_more_ends_the_promise() -> None:
    group = Group(A, B)
    entry, object_id = group.put(A, 1)
    reply = group[A].finish_task(B, [entry])
    group[A].drop_local([entry])
    assert group[A].has_borrowers()
    group[B].accept(A, reply.handover, [(None, [object_id])])
    group.settle()
    assert group.freed == [entry]
    assert not group[A].has_borrowers()


def test_consuming_a_promise_registers_what_is_held() -> None:
    """C has the object only under a task of B, which dies; B's last value promised it again, but is unwanted."""
    group = Group(A, B, C)
    entry, foreign = shared(group, A, 1, B)
    cover = group[C].begin_task(B, 1)
    group[C].arrive(foreign.id, cover)
    _, number = hand_over(group, foreign, B, C)
    group.kill(B)
    group[A].process_died(B)
    group[C].accept(B, number, [(None, [foreign.id])])
    group[C].process_died(B)
    group.settle()
    assert not entry.freed


def test_a_submitters_own_reference_is_held_until_it_is_accepted() -> None:
    group = Group(A, B)
    entry, foreign = shared(group, A, 1, B)
    reply = group[B].finish_task(A, [foreign])
    group[B].drop_local([foreign])
    group.settle()
    assert not entry.freed
    result = Owned(9)
    group[A].accept(B, reply.handover, [(result, [foreign.id])])
    group.settle()
    assert not group[B].foreign
    assert entry.holds == 1
    group[A].drop_local([result])
    group.settle()
    assert group.freed == [result, entry]


def test_a_submitters_own_reference_that_another_task_covers_is_registered_first() -> None:
    """A's object is at B under a task of C; B returns it to A and dies, and C hears of that before A read the value."""
    group = Group(A, B, C)
    entry, at_c = shared(group, A, 1, C)
    group[C].lend([at_c])
    group[C].drop_local([at_c])
    group[B].arrive(at_c.id, group[B].begin_task(C, 1))
    reply = group[B].finish_task(A, [group[B].foreign[at_c.id]])
    assert reply in [gate for out in group.settle() for gate in out.ready]
    group[C].unhold([at_c])
    group.settle()
    assert not entry.freed


def register(request: int, epoch: int) -> Changes:
    return Changes(request, register=[(1, epoch)])


def release(request: int, epoch: int) -> Changes:
    return Changes(request, release=[(1, epoch)])


@pytest.mark.parametrize(
    "order",
    [
        [register(1, 1), release(2, 1), register(3, 2), release(4, 2)],
        [release(2, 1), register(1, 1), release(4, 2), register(3, 2)],
        [release(4, 2), register(3, 2), release(2, 1), register(1, 1)],
        [register(3, 2), release(2, 1), register(1, 1), release(4, 2)],
    ],
)
def test_registrations_and_releases_in_any_order_and_repeated(order: list[Changes]) -> None:
    """REF-EPOCH: after all of them nothing is held, and no tombstone is left."""
    refs = References(A)
    entry = Owned(1)
    refs.escape(entry)
    for changes in order:
        refs.receive(B, changes)
        refs.receive(B, changes)
        validate(refs)
    assert entry.holds == 0
    peer = refs.peers[B]
    assert not any([peer.registered, peer.tombstones, peer.done])


def test_an_old_release_does_not_end_a_newer_registration() -> None:
    refs = References(A)
    entry = Owned(1)
    refs.escape(entry)
    for changes in (register(1, 1), register(3, 2), release(2, 1)):
        refs.receive(B, changes)
    refs.drop_local([entry])
    assert not entry.freed


def test_requests_are_repeated_until_acknowledged() -> None:
    group = Group(A, B)
    entry, foreign = shared(group, A, 1, B)
    group[B].drop_local([foreign])
    lost = group.take(B)
    assert lost.sends
    group[B].reconnected(A)
    group.settle()
    assert group.freed == [entry]
    group[B].reconnected(A)
    assert group.take(B).sends == []


def test_borrowers_end_with_their_process() -> None:
    group = Group(A, B)
    entry, _ = shared(group, A, 1, B)
    group.kill(B)
    group[A].process_died(B)
    assert group.take(A).freed == [entry]
    group[A].receive(B, register(9, 9))
    assert not group[A].peers, "late traffic of the dead is nothing"


def test_entries_are_lost_with_their_owner() -> None:
    group = Group(A, B)
    _, foreign = shared(group, A, 1, B)
    group.kill(A)
    group[B].process_died(A)
    assert group.take(B).lost == [foreign]
    assert foreign.registration is Registration.LOST
    group[B].drop_local([foreign])
    assert not group[B].foreign
    assert not group[B].peers


def test_a_registration_that_comes_too_late_is_told() -> None:
    group = Group(A, B)
    foreign = group[B].arrive(make_id(A, 5), None)
    lost = [entry for out in group.settle() for entry in out.lost]
    assert lost == [foreign]


def test_an_actor_waits_until_its_arguments_are_registered() -> None:
    group = Group(A, B, C)
    entry, foreign = shared(group, A, 1, B)
    group[B].lend([foreign])
    cover = group[C].begin_task(B, 1)
    group[C].arrive(foreign.id, cover)
    group[C].secure(cover)
    out = group.take(C)
    assert not out.ready
    group.carry(C, out)
    group.carry(A, group.take(A))
    assert group.take(C).ready == [cover]
    group.kill(B)
    group[A].process_died(B)
    group[C].process_died(B)
    group.settle()
    assert not entry.freed


def test_a_pinned_reference_stays() -> None:
    refs = References(A)
    entry = Owned(1)
    refs.pin_forever(entry)
    refs.drop_local([entry])
    assert not refs.take().freed
    assert describe(refs, entry) == {
        "key": 1, "local": 0, "holds": 1, "pinned": 1, "tasks": 0, "freed": False, "borrowed_by": [],
    }  # fmt: skip


def test_describe_says_who_keeps_an_object() -> None:
    group = Group(A, B)
    entry, foreign = shared(group, A, 1, B)
    group.put(A, 2, entry)
    group[A].lend([entry])
    report = describe(group[A], entry)
    assert (report["borrowers"], report["containers"], report["tasks"]) == (1, 1, 1)
    assert report["borrowed_by"] == [B]
    assert describe(group[B], foreign)["registration"] == "registered"


def test_deaths_long_ago_are_forgotten() -> None:
    """Each takes about a hundred bytes, and short-lived workers die without end."""
    core = References(bytes(12), Foreign)
    for number in range(DEAD_REMEMBERED + 10):
        core.process_died(number.to_bytes(12, "big"))
    assert len(core.dead) == DEAD_REMEMBERED
    assert (9).to_bytes(12, "big") not in core.dead
    assert (10).to_bytes(12, "big") in core.dead
    core.process_died((10).to_bytes(12, "big"))
    assert len(core.dead) == DEAD_REMEMBERED
