"""The head's table of nodes: its promises one by one, and a hypothesis machine with nodes that have their own clocks.

Cited rules: FENCE, HEAD-EPOCH, and MEMBER-1 to MEMBER-3 of the core.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moray.core.cluster_view import ClusterView
from moray.core.membership import LEASE_S, LOOK, MARGIN, REJOIN_LEASES, Membership
from moray.core.membership_actions import (
    Delta,
    Died,
    Drain,
    MemberAction,
    Refuse,
    Released,
    Renewed,
    StepDown,
    Welcome,
)
from moray.ids import tag_of
from tests.support.machines import search, walk_fixed

WAIT_S = LEASE_S * (1 + MARGIN)


@dataclass
class Info:
    """What a node says of itself."""

    node_id: bytes
    available: dict[str, int] = field(default_factory=dict)
    demand: list[tuple[dict[str, int], int]] = field(default_factory=list)
    drain_deadline: float = 0.0
    lease_s: float = 0.0
    resources: dict[str, int] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    address: str = ""
    hostname: str = ""


def node_id(tag: int, serial: int = 0) -> bytes:
    return tag.to_bytes(4, "big") + serial.to_bytes(24, "big")


ONE, TWO = node_id(1), node_id(2)


def table(*nodes: bytes, epoch: int = 1, now: float = 0.0) -> Membership[Info]:
    """A table with these members."""
    made: Membership[Info] = Membership(epoch)
    for each in nodes:
        assert made.register(Info(each), 0, now) == [Welcome(each, again=False)]
    made.validate()
    return made


def code(actions: list[MemberAction]) -> str:
    (action,) = actions
    assert isinstance(action, Refuse)
    return action.code


def tick_until(members: Membership[Info], now: float) -> list[MemberAction]:
    """Tick whenever it is asked for; what was to be done at `now`, and nothing before."""
    while (due := members.next_tick()) is not None and due < now:
        assert members.tick(due) == []
    return members.tick(now)


def test_a_lease_that_is_not_renewed_ends_and_is_released_later() -> None:
    members = table(ONE, TWO)
    assert members.renew(TWO, 1, {}, [], 3.0) == [Renewed(TWO, 1)]
    assert tick_until(members, LEASE_S - 0.01) == []
    assert members.next_tick() == LEASE_S
    (died,) = members.tick(LEASE_S)
    assert isinstance(died, Died)
    assert died.node_id == ONE
    assert "5.0 s" in died.reason
    assert [info.node_id for info in members.nodes()] == [TWO]
    assert members.tick(WAIT_S - 0.01) == []
    assert members.tick(WAIT_S) == [Released(ONE)]
    members.validate()


def test_the_dead_stay_dead() -> None:
    members = table(ONE)
    tick_until(members, LEASE_S)
    assert code(members.renew(ONE, 7, {}, [], LEASE_S)) == "fenced"
    assert code(members.register(Info(ONE), 0, LEASE_S)) == "fenced"
    members.tick(WAIT_S)
    assert code(members.register(Info(ONE), 0, 100.0)) == "fenced"
    assert members.register(Info(node_id(9)), 0, 100.0) == [Welcome(node_id(9), again=False)]


def test_a_refused_connection_is_a_death_at_once_but_no_release() -> None:
    members = table(ONE)
    members.renew(ONE, 1, {}, [], 2.0)
    assert members.refused(ONE, "connection refused") == [Died(ONE, "connection refused")]
    assert members.refused(ONE, "again") == []
    assert members.tick(2.0 + WAIT_S - 0.01) == []
    assert members.tick(2.0 + WAIT_S) == [Released(ONE)]


def test_who_leaves_is_released_at_once_only_if_nothing_of_it_runs() -> None:
    members = table(ONE, TWO)
    assert members.leave(ONE, "stopped") == [Died(ONE, "stopped")]
    assert members.leave(TWO, "stopped", all_ended=True) == [Died(TWO, "stopped"), Released(TWO)]
    assert members.tick(WAIT_S) == [Released(ONE)]
    assert members.next_tick() is None or members.tick(1000.0) == []
    members.validate()


@pytest.mark.parametrize("state", ["alive", "dead", "released"])
def test_a_tag_is_given_once(state: str) -> None:
    members = table(ONE)
    if state != "alive":
        members.refused(ONE, "gone")
    if state == "released":
        members.tick(WAIT_S)
    assert code(members.register(Info(node_id(1, 5)), 0, WAIT_S)) == "tag"
    assert members.by_tag(tag_of(ONE)) == (Info(ONE) if state == "alive" else None)


def test_a_lost_connection_is_made_anew() -> None:
    members = table(ONE)
    members.delta()
    assert members.register(Info(ONE, {"CPU": 3}), 1, 4.0) == [Welcome(ONE, again=True)]
    assert members.tick(LEASE_S) == []
    assert members.delta() == Delta(2, [ONE], [])
    assert [each.available for each in members.nodes()] == [{"CPU": 3}]


def test_deltas_gather_changes_and_deaths() -> None:
    members = table(ONE, TWO)
    assert members.delta() == Delta(1, [ONE, TWO], [])
    assert members.delta() is None
    members.renew(ONE, 1, {"CPU": 1}, [], 1.0)
    assert members.unpublished()
    members.renew(ONE, 2, {"CPU": 2}, [({"CPU": 1}, 4)], 1.0)
    members.renew(TWO, 1, {}, [], 1.0)
    members.refused(TWO, "gone")
    assert members.delta() == Delta(2, [ONE], [(TWO, "gone")])
    members.renew(ONE, 3, {"CPU": 2}, [({"CPU": 1}, 4)], 2.0)
    assert not members.unpublished()
    assert members.delta() is None


def test_drains_are_told_once_and_survive_a_new_connection() -> None:
    members = table(ONE)
    members.delta()
    assert members.drain(ONE, "spot", 99.0) == [Drain(ONE, "spot", 99.0)]
    assert members.drain(ONE, "spot", 99.0) == members.drain(TWO, "spot", 99.0) == []
    assert members.delta() == Delta(2, [ONE], [])
    again = members.register(Info(ONE), 1, 1.0)
    assert [type(action) for action in again] == [Welcome, Drain]
    assert members.nodes()[0].drain_deadline == 99.0


def test_an_older_head_steps_down_once() -> None:
    members = table(ONE, epoch=3)
    assert [type(action) for action in members.register(Info(TWO), 4, 0.0)] == [StepDown, Refuse]
    assert members.stepped_over(5) == []
    assert code(members.renew(ONE, 1, {}, [], 0.0)) == "outdated"
    assert table(epoch=3).stepped_over(3) == []
    assert table(epoch=3).stepped_over(4) == [StepDown(4)]


def test_a_new_head_awaits_the_members_of_the_old_one() -> None:
    members: Membership[Info] = Membership(2)
    members.restore([Info(ONE), Info(TWO)], 100.0)
    members.validate()
    assert members.delta() == Delta(1, [ONE, TWO], [])
    assert not members.is_member(ONE)
    assert code(members.renew(ONE, 1, {}, [], 100.0)) == "unknown"
    assert members.register(Info(ONE), 1, 101.0) == [Welcome(ONE, again=True)]
    assert members.is_member(ONE)
    members.renew(ONE, 1, {}, [], 105.9)
    last = 100.0 + REJOIN_LEASES * LEASE_S
    died, released = tick_until(members, last)
    assert isinstance(died, Died)
    assert "10.0 s since the head was started anew" in died.reason
    assert released == Released(TWO)
    # The one that came back has an ordinary lease now.
    assert [type(action) for action in tick_until(members, 105.9 + LEASE_S)] == [Died]
    members.validate()


def test_one_that_came_back_early_is_watched_at_once() -> None:
    members: Membership[Info] = Membership(2)
    members.restore([Info(ONE)], 100.0)
    members.register(Info(ONE), 1, 100.5)
    assert [type(action) for action in tick_until(members, 100.5 + LEASE_S)] == [Died]


def test_a_head_that_was_stopped_gives_everybody_time() -> None:
    members = table(ONE, TWO)
    assert members.tick(60.0) == []
    assert members.renew(ONE, 9, {}, [], 60.1) == [Renewed(ONE, 9)]
    died, released = tick_until(members, 60.0 + LEASE_S / 2)
    assert isinstance(died, Died)
    assert died.node_id == TWO
    assert released == Released(TWO)  # Its lease ended long ago.


def test_a_head_that_was_stopped_just_after_its_start_sees_it() -> None:
    members: Membership[Info] = Membership(2)
    members.restore([Info(ONE)], 0.0)
    late = REJOIN_LEASES * LEASE_S + 1.0
    assert members.tick(late) == []
    assert members.register(Info(ONE), 1, late + 0.1) == [Welcome(ONE, again=True)]
    first = table(ONE)
    first.renew(ONE, 1, {}, [], 1.0)
    assert first.tick(1.0 + LEASE_S + 0.1) == []
    assert first.renew(ONE, 2, {}, [], 6.2) == [Renewed(ONE, 2)]


def test_who_leaves_after_its_time_is_released_at_once() -> None:
    members = table(ONE)
    assert members.tick(60.0) == []  # Nobody knows whether it was silent.
    members.leave(ONE, "moray stop")
    assert (members.next_tick() or 0) <= 60.0
    assert members.tick(60.0) == [Released(ONE)]


def test_a_head_sees_that_it_was_stopped_though_everybody_had_renewed() -> None:
    """It is to tick more often than anybody is due, or nobody would be late."""
    members = table(ONE, TWO)
    for second in range(1, 7):
        members.renew(ONE, second, {}, [], second)
        members.renew(TWO, second, {}, [], second)
        assert tick_until(members, second) == []
    assert members.tick(6.0 + LEASE_S + 0.01) == [], "stopped for a lease: what they say may still be on its way"
    assert members.renew(ONE, 9, {}, [], 12.0) == [Renewed(ONE, 9)]
    (died,) = tick_until(members, 6.0 + LEASE_S * 1.5 + 0.01)[:1]
    assert isinstance(died, Died)
    assert died.node_id == TWO


def test_many_nodes_need_no_more_ticks_than_few() -> None:
    names = [node_id(number) for number in range(1, 101)]
    members = table(*names)
    ticks, now = 0, 0.0
    for step in range(20 * len(names)):  # One after the other, each once a second.
        now += 0.01
        while (due := members.next_tick()) is not None and due <= now:
            assert members.tick(due) == []
            ticks += 1
        members.renew(names[step % len(names)], 1, {}, [], now)
    members.validate()
    assert ticks <= 20 / (LOOK * LEASE_S) + 1


# --- machine -------------------------------------------------------------------------------------------------


@dataclass
class ModelNode:
    """A node, with what it has sent and what it believes."""

    info: Info
    #: When its lease ends by its own book: a lease after it sent what was acknowledged.
    lease_end: float
    #: The latest renewal that the head has had: when.
    heard: float
    connected: bool = True
    ended: bool = False


class MembershipMachine(RuleBasedStateMachine):
    """Nodes whose words take time; the model believes the actions, and has each node's own view."""

    def __init__(self) -> None:
        super().__init__()
        self.members: Membership[Info] = Membership(1)
        self.now = 100.0
        self.serial = 0
        self.nodes: dict[bytes, ModelNode] = {}
        self.views: dict[bytes, ClusterView] = {}
        self.died: Counter[bytes] = Counter()
        self.released: Counter[bytes] = Counter()
        #: Nodes whose end needs no lease to end: they said so, or their address refused.
        self.known_ends: set[bytes] = set()
        self.late = 0.0

    def do(self, actions: list[MemberAction]) -> list[MemberAction]:
        for action in actions:
            if isinstance(action, Welcome):
                view = self.views[action.node_id] = ClusterView()
                view.reset(self.members.view, self.members.nodes())
            elif isinstance(action, Died):
                self.died[action.node_id] += 1
                assert self.died[action.node_id] == 1, "MEMBER-2"
                if action.node_id not in self.known_ends:
                    heard = self.nodes[action.node_id].heard
                    assert self.now >= heard + LEASE_S, "it was declared dead while its lease ran"
                self.views.pop(action.node_id, None)
            elif isinstance(action, Released):
                self.released[action.node_id] += 1
                assert self.died[action.node_id] == self.released[action.node_id] == 1, "MEMBER-2"
                node = self.nodes[action.node_id]
                assert node.ended or self.now >= node.heard + WAIT_S - 1e-6, "MEMBER-3"
                assert node.ended or self.now > node.lease_end, "FENCE: it may still start something"
        return actions

    @rule(tag=st.integers(0, 4), reuse=st.booleans())
    def registers(self, tag: int, reuse: bool) -> None:
        """A new node, maybe with a tag that is or was another's."""
        self.serial += 1
        name = node_id(tag if reuse else 1000 + self.serial, self.serial)
        taken = any(tag_of(name) == tag_of(other) for other in self.nodes)
        actions = self.do(self.members.register(Info(name), 0, self.now))
        if taken:
            assert code(actions) == "tag", "MEMBER-1"
        else:
            assert actions == [Welcome(name, again=False)]
            self.nodes[name] = ModelNode(Info(name), self.now + LEASE_S, self.now)

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), sent_ago=st.sampled_from([0.0, 0.3, 2.0]), cpus=st.integers(0, 2))
    def renews(self, data: st.DataObject, sent_ago: float, cpus: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.nodes)))
        node = self.nodes[name]
        if node.ended:
            return
        actions = self.do(self.members.renew(name, 1, {"CPU": cpus}, [], self.now))
        if self.died[name]:
            assert code(actions) == "fenced"
        elif name in self.views:
            assert actions == [Renewed(name, 1)]
            node.lease_end = max(node.lease_end, self.now - sent_ago + LEASE_S)
            node.heard = self.now
        else:
            assert code(actions) == "unknown"

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def connects_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.nodes)))
        node = self.nodes[name]
        if node.ended:
            return
        actions = self.do(self.members.register(Info(name), 1, self.now))
        if self.died[name]:
            assert code(actions) == "fenced"
        else:
            assert actions[0] == Welcome(name, again=True)
            node.lease_end, node.heard = self.now + LEASE_S, self.now

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), how=st.sampled_from(["refused", "leave", "leave ended", "drain"]))
    def ends(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.nodes)))
        if how == "drain":
            self.do(self.members.drain(name, "away", self.now + 60))
            return
        if not self.died[name]:
            self.known_ends.add(name)
            self.nodes[name].ended = self.nodes[name].ended or how == "leave ended"
        if how == "refused":
            self.do(self.members.refused(name, "refused"))
        else:
            self.do(self.members.leave(name, "left", all_ended=how == "leave ended"))

    @rule()
    def publishes(self) -> None:
        delta = self.members.delta()
        living = self.members.nodes()
        if delta is not None:
            changed = [info for info in living if info.node_id in delta.changed]
            for view in self.views.values():
                assert view.apply(delta.view, changed, delta.dead), "a delta that does not follow"
        for view in self.views.values():
            assert set(view.nodes) == {info.node_id for info in living}
            for info in living:
                known = view.nodes[info.node_id]
                assert known.available == info.available, "a change was not published"
                assert known.draining == bool(info.drain_deadline)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0]), times=st.integers(1, 6))
    def time_passes(self, seconds: float, times: int) -> None:
        for _ in range(times):
            self.now += seconds
            self.do(self.members.tick(self.now))

    @rule()
    def head_is_stopped(self) -> None:
        self.now += 20.0
        due = self.members.next_tick()
        late = due is not None and due < self.now - LEASE_S
        actions = self.do(self.members.tick(self.now))
        if late:
            assert not any(isinstance(action, Died) for action in actions)
            self.late = self.now

    @rule()
    def head_is_started_anew(self) -> None:
        """Its storage knows the members; what was dead and not released is forgotten, which is safe after a pause."""
        infos = self.members.nodes()
        self.now += WAIT_S
        self.members = Membership(self.members.epoch + 1)
        self.members.restore(infos, self.now)
        for name, node in self.nodes.items():
            if self.died[name] or all(info.node_id != name for info in infos):
                self.died[name] = self.released[name] = 1
                node.ended = True
            # The old head may have acknowledged something at its very end.
            node.lease_end = self.now + LEASE_S if not node.ended else node.lease_end
            node.heard = self.now if not node.ended else node.heard
        self.nodes = {name: node for name, node in self.nodes.items() if not node.ended}
        self.views.clear()

    @invariant()
    def books_agree(self) -> None:
        self.members.validate()

    @invariant()
    def silence_is_noticed(self) -> None:
        if self.members.next_tick() is None:
            return
        self.do(self.members.tick(self.now))
        patience = max(LEASE_S * REJOIN_LEASES, LEASE_S * 1.5)
        for name, node in self.nodes.items():
            if not self.died[name]:
                assert self.now <= max(node.heard, self.late) + patience, "a silent node lives on"
            elif not self.released[name]:
                assert self.now <= max(node.heard, self.late) + patience + WAIT_S, "never released"


def test_random_walks() -> None:
    search(MembershipMachine)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(MembershipMachine, 120, steps=40)
