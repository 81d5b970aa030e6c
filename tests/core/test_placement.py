"""Scenarios of the table of placement groups (PLACEMENT): where bundles go, two steps, waiting, deaths, names."""

from __future__ import annotations

from typing import Any

import pytest

from moray.core.placement import HOLD_FIRST_S, OVERTAKEN_S, PATIENCE_S, GroupTable
from moray.core.placement_types import (
    Commit,
    Gone,
    GroupSpec,
    PlacementAction,
    PlacementNode,
    Prepare,
    RemoveFrom,
    Return,
    TellGroup,
    WarnOwner,
)

UNIT = 10_000
CPU = {"CPU": UNIT}
A, B, C, D = (letter * 28 for letter in (b"a", b"b", b"c", b"d"))
DRIVER = b"driver"


def cpus(count: float) -> dict[str, int]:
    return {"CPU": int(count * UNIT)}


class Head:
    """A table whose nodes answer at once, unless told otherwise."""

    def __init__(self, *, answer: bool = True, **nodes: float) -> None:
        self.table = GroupTable()
        self.now = 100.0
        self.answer = answer
        self.log: list[PlacementAction] = []
        self.made = 0
        for name, count in nodes.items():
            self.node(name.encode() * 28, cpus(count))

    def node(self, name: bytes, total: dict[str, int], available: dict[str, int] | None = None, **more: Any) -> None:
        free = total if available is None else available
        self.do(self.table.node_changed(PlacementNode(name, total, free, **more), self.now))

    def do(self, actions: list[PlacementAction]) -> list[Any]:
        self.table.validate()
        self.log += actions
        for action in actions:
            if self.answer and (isinstance(action, Commit) or (isinstance(action, Prepare) and action.alone)):
                self.do(self.table.committed(action.node, action.group, action.number, self.now))
            elif self.answer and isinstance(action, Prepare):
                self.do(self.table.prepared(action.node, action.group, action.number, "", self.now))
        return actions

    def new_id(self, job: int = 1) -> bytes:
        self.made += 1
        return self.made.to_bytes(14, "big") + job.to_bytes(4, "big")

    def create(
        self, *bundles: dict[str, int], strategy: str = "PACK", job: int = 1, group: bytes = b"", **more: Any
    ) -> bytes:
        group = group or self.new_id(job)
        spec = GroupSpec(group, DRIVER, job, bundles, strategy, **more)
        self.do(self.table.create(spec, 0, self.now))
        return group

    def remove(self, group: bytes) -> list[Any]:
        return self.do(self.table.remove(DRIVER, 1, group, self.now))

    def after(self, seconds: float) -> list[Any]:
        self.now += seconds
        return self.do(self.table.tick(self.now))

    def of(self, kind: type[Any]) -> list[Any]:
        return [action for action in self.log if isinstance(action, kind)]

    def where(self, group: bytes) -> list[bytes]:
        found = next(each for each in self.table.describe() if each["group"] == group.hex())
        return [bytes.fromhex(node)[:1] for node in found["nodes"]]

    def why(self, group: bytes) -> str:
        found = next(each for each in self.table.describe() if each["group"] == group.hex())
        return str(found["reason"])


# --- where bundles go --------------------------------------------------------------------------


def test_pack_takes_as_few_nodes_as_it_can() -> None:
    head = Head(a=2, b=4, c=3)
    assert head.where(head.create(CPU, CPU, CPU, CPU)) == [b"b"] * 4
    head = Head(a=2, b=4, c=3)
    used = head.where(head.create(*[CPU] * 6))
    assert (used.count(b"b"), len(set(used))) == (4, 2)


def test_pack_prefers_the_fuller_of_two_nodes_that_take_all() -> None:
    head = Head()
    head.node(A, cpus(8), cpus(8))
    head.node(B, cpus(8), cpus(3))
    assert head.where(head.create(CPU, CPU)) == [b"b", b"b"]


def test_strict_pack_is_on_one_node_or_nowhere() -> None:
    head = Head(a=2, b=4)
    assert head.where(head.create(CPU, CPU, CPU, strategy="STRICT_PACK")) == [b"b"] * 3
    lost = head.create(*[CPU] * 5, strategy="STRICT_PACK")
    assert head.table.state(lost) == "infeasible"
    assert "need CPU: 5 on one node: the nearest, node 62626262, has CPU: 4" in head.why(lost)


def test_spread_uses_many_nodes_and_still_fits() -> None:
    head = Head(a=2, b=2, c=2)
    assert set(head.where(head.create(CPU, CPU, CPU, strategy="SPREAD"))) == {b"a", b"b", b"c"}
    assert head.table.state(head.create(CPU, CPU, CPU, strategy="SPREAD")) == "created"


def test_strict_spread_moves_a_bundle_off_the_only_node_of_another() -> None:
    head = Head()
    head.node(A, cpus(4), labels={"disk": "fast"})
    head.node(B, cpus(1))
    big_first = head.create(cpus(1), CPU, strategy="STRICT_SPREAD", selectors=({}, {"disk": "fast"}))
    assert head.where(big_first) == [b"b", b"a"]
    three = head.create(CPU, CPU, CPU, strategy="STRICT_SPREAD")
    assert head.why(three) == "its 3 bundles need a node each, and 2 nodes can take them"


def test_what_is_free_now_is_preferred() -> None:
    head = Head()
    head.node(A, cpus(4), cpus(0))
    head.node(B, cpus(4), cpus(4))
    assert head.where(head.create(cpus(2))) == [b"b"]
    assert head.where(head.create(cpus(4))) == [b"a"], "its other work makes room in time"


def test_draining_nodes_and_other_targets_are_avoided() -> None:
    head = Head(b=1)
    head.node(A, cpus(8), draining=True)
    assert head.where(head.create(CPU)) == [b"b"]
    head.node(C, cpus(8))
    head.node(D, cpus(8))
    assert head.where(head.create(CPU, target_node=D)) == [b"d"]
    assert "which is not here" in head.why(head.create(CPU, target_node=b"x" * 28))


def test_fractions_of_devices_are_counted_as_they_will_be_shared() -> None:
    head = Head()
    head.node(A, {"GPU": 2 * UNIT}, devices=frozenset({"GPU"}))
    assert head.table.state(head.create(*[{"GPU": 6000}] * 2)) == "created"
    third = head.create({"GPU": 4000})
    assert head.table.state(third) == "pending", "each of the two has a device, whose rest is nobody's"
    assert "it needs GPU: 0.4; other placement groups have GPU: 2" in head.why(third)


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
def test_nothing_is_given_away_twice(strategy: str) -> None:
    head = Head(a=2, b=2)
    states = [head.table.state(head.create(CPU, CPU, strategy=strategy)) for _ in range(3)]
    assert states == ["created", "created", "pending"]


def test_a_large_group_on_many_nodes_is_placed_quickly() -> None:
    head = Head()
    for number in range(200):
        head.node(number.to_bytes(28, "big"), cpus(8))
    for strategy in ("PACK", "SPREAD"):
        assert head.table.state(head.create(*[CPU] * 800, strategy=strategy)) == "created"


# --- two steps ---------------------------------------------------------------------------------


def test_all_prepare_before_one_commits() -> None:
    head = Head(answer=False, a=1, b=1)
    group = head.create(CPU, CPU)
    first, second = head.of(Prepare)
    assert head.do(head.table.prepared(first.node, group, first.number, "", head.now)) == []
    assert len(head.do(head.table.prepared(second.node, group, second.number, "", head.now))) == 2
    assert head.table.state(group) == "pending"
    head.do(head.table.committed(A, group, first.number, head.now))
    assert head.table.state(group) == "pending"
    head.do(head.table.committed(B, group, first.number, head.now))
    news = head.of(TellGroup)[-1]
    assert (news.state, news.processes, sorted(news.nodes)) == ("created", (DRIVER,), [A, B])


def test_a_refusal_gives_everything_back_and_is_tried_again() -> None:
    head = Head(answer=False, a=1, b=1)
    group = head.create(CPU, CPU)
    one, two = head.of(Prepare)
    head.do(head.table.prepared(one.node, group, one.number, "", head.now))
    head.do(head.table.prepared(two.node, group, two.number, "no room", head.now))
    assert {action.node for action in head.of(Return)} == {A, B}
    assert head.do(head.table.prepared(one.node, group, one.number, "", head.now)) == [], "an old word"
    assert len(head.of(Prepare)) == 2
    head.after(1)
    assert len(head.of(Prepare)) == 4
    assert head.of(Prepare)[2].number > one.number


def test_an_answer_to_an_earlier_attempt_is_not_one_to_this() -> None:
    head = Head(answer=False, a=1, b=1)
    group = head.create(CPU, CPU, strategy="STRICT_SPREAD")
    first = head.of(Prepare)[0].number
    head.do(head.table.prepared(A, group, first, "no room", head.now))
    head.after(1.0)
    second = head.of(Prepare)[-1].number
    head.do(head.table.prepared(A, group, second, "", head.now))
    head.do(head.table.prepared(B, group, first, "", head.now))
    assert not head.of(Commit)
    head.do(head.table.prepared(B, group, first, "no room", head.now))
    assert not [back for back in head.of(Return) if back.number == second]
    head.do(head.table.prepared(B, group, second, "", head.now))
    assert [(commit.node, commit.number) for commit in head.of(Commit)] == [(A, second), (B, second)]


def test_an_attempt_over_several_nodes_is_given_back_in_time() -> None:
    """Or two groups, or a group and actors, could wait for each other for ever."""
    head = Head(answer=False, a=1, b=1)
    group = head.create(CPU, CPU)
    one = head.of(Prepare)[0]
    head.do(head.table.prepared(one.node, group, one.number, "", head.now))
    assert head.table.next_tick() == head.now + PATIENCE_S
    head.after(PATIENCE_S)
    assert len(head.of(Return)) == 2
    head.after(1)
    assert len(head.of(Prepare)) == 4


def test_on_one_node_it_waits_there() -> None:
    head = Head(answer=False, a=2)
    head.create(CPU, CPU)
    head.after(100)
    assert not head.of(Return)


def test_one_node_alone_needs_one_word() -> None:
    head = Head(answer=False, a=2, b=1)
    group = head.create(CPU, CPU)
    (only,) = head.of(Prepare)
    assert only.alone
    head.do(head.table.committed(A, group, only.number, head.now))
    assert head.table.state(group) == "created"
    assert not head.of(Commit)


def test_one_node_alone_may_refuse() -> None:
    head = Head(answer=False, a=2)
    group = head.create(CPU, CPU)
    head.do(head.table.prepared(A, group, head.of(Prepare)[0].number, "no room", head.now))
    assert head.table.state(group) == "pending"
    head.after(1)
    assert len(head.of(Prepare)) == 2


@pytest.mark.parametrize("draining", [False, True])
def test_one_node_alone_goes_before_it_answers(draining: bool) -> None:
    head = Head(answer=False, a=2)
    group = head.create(CPU, CPU)
    first = head.of(Prepare)[0]
    if draining:
        head.node(A, cpus(2), draining=True)
    else:
        head.do(head.table.node_died(A, head.now))
    head.node(B, cpus(2))
    head.do(head.table.committed(A, group, first.number, head.now))
    assert head.table.state(group) == "pending", "an old word"
    head.do(head.table.committed(B, group, head.of(Prepare)[1].number, head.now))
    assert head.where(group) == [b"b", b"b"]
    head.remove(group)
    assert {action.node for action in head.of(RemoveFrom)} == ({A, B} if draining else {B})


def test_removed_between_prepare_and_commit() -> None:
    head = Head(answer=False, a=1, b=1)
    group = head.create(CPU, CPU)
    one = head.of(Prepare)[0]
    head.do(head.table.prepared(one.node, group, one.number, "", head.now))
    actions = head.remove(group)
    assert [type(action) for action in actions] == [TellGroup, Gone, RemoveFrom, RemoveFrom, TellGroup]
    assert head.do(head.table.prepared(B, group, one.number, "", head.now)) == []
    assert head.table.state(head.create(CPU, CPU)) == "pending"
    assert len(head.of(Prepare)) == 4


# --- waiting -----------------------------------------------------------------------------------


def test_infeasible_groups_say_why_once_and_wait_for_nodes() -> None:
    head = Head(a=2)
    group = head.create(cpus(3), name="big")
    assert head.table.state(group) == "infeasible"
    (warning,) = head.of(WarnOwner)
    assert warning.text == (
        "placement group 'big' cannot be created: bundle 0 (CPU: 3) fits on no node: node 61616161 has CPU: 2. "
        "It waits for nodes that can hold it."
    )
    head.after(100)
    assert len(head.of(WarnOwner)) == 1
    head.node(B, cpus(4))
    assert head.where(group) == [b"b"]


def test_what_waits_for_other_groups_is_placed_when_they_go() -> None:
    head = Head(a=2)
    first, second = head.create(cpus(2)), head.create(cpus(2))
    assert head.table.state(second) == "pending"
    head.after(11)
    (warning,) = head.of(WarnOwner)
    assert "has been waiting 11 s: it needs CPU: 2; other placement groups have CPU: 2" in warning.text
    head.remove(first)
    assert head.table.state(second) == "created"


def test_jobs_take_turns() -> None:
    head = Head(a=1)
    running = head.create(CPU)
    of_one = [head.create(CPU) for _ in range(3)]
    of_two = head.create(CPU, job=2)
    head.remove(running)
    assert head.table.state(of_two) == "created", "its job has none yet"
    head.remove(of_two)
    assert head.table.state(of_one[0]) == "created", "the oldest"


def test_a_large_group_is_not_overtaken_for_ever() -> None:
    head = Head(a=2)
    small = [head.create(CPU), head.create(CPU)]
    large = head.create(cpus(2))
    for step in range(100):
        head.after(OVERTAKEN_S / 4)
        head.remove(small.pop(0))
        small.append(head.create(CPU))
        if head.table.state(large) == "created":
            assert step > 3, "it is overtaken at first"
            return
    raise AssertionError("starved")


def test_who_holds_does_not_hold_for_ever() -> None:
    """What it waits for may depend on the group that it holds up."""
    head = Head(a=2)
    head.create(CPU)
    head.create(cpus(2))
    head.after(OVERTAKEN_S + 0.1)
    first = head.create(CPU)
    assert head.table.state(first) == "created", "nobody had overtaken it, so it did not hold"
    head.remove(first)
    small = head.create(CPU)
    assert head.table.state(small) == "pending"
    assert "comes first" in head.why(small)
    head.after(HOLD_FIRST_S + 0.1)
    assert head.table.state(small) == "created"


def test_who_holds_lets_go_when_no_node_can_ever_hold_it() -> None:
    head = Head(a=1, b=3)
    on_a, on_b = head.create(CPU), head.create(CPU)
    large = head.create(cpus(3))
    younger = head.create(CPU)
    assert [head.where(group) for group in (on_a, on_b, younger)] == [[b"a"], [b"b"], [b"b"]]
    head.after(OVERTAKEN_S)
    assert head.table.state(large) == "pending"
    late = head.create(CPU, job=2)
    assert "comes first" in head.why(late)
    head.remove(younger)
    head.remove(on_a)
    head.do(head.table.node_died(B, head.now))
    assert head.table.state(large) == "infeasible"
    # Both were passed over when the large one was not looked at yet; job 2 has had nothing so far.
    assert (head.where(late), head.where(on_b)) == ([b"a"], [b""])
    assert "comes first" not in head.why(on_b)
    head.remove(late)
    assert head.where(on_b) == [b"a"]


# --- deaths ------------------------------------------------------------------------------------


def test_bundles_of_a_dead_node_move_and_the_others_stay() -> None:
    head = Head(a=1, b=1, c=1)
    group = head.create(CPU, CPU, strategy="SPREAD")
    before = head.where(group)
    head.do(head.table.node_died({b"a": A, b"b": B, b"c": C}[before[0]], head.now))
    after = head.where(group)
    assert after[1] == before[1]
    assert after[0] not in before
    assert [news.state for news in head.of(TellGroup)][-3:] == ["created", "rescheduling", "created"]


def test_without_room_it_is_rescheduling() -> None:
    head = Head(a=1, b=1)
    group = head.create(CPU, CPU)
    head.do(head.table.node_died(A, head.now))
    assert head.table.state(group) == "rescheduling"
    head.node(C, cpus(1))
    assert sorted(head.where(group)) == [b"b", b"c"]


def test_a_death_before_the_commit_gives_the_others_back() -> None:
    head = Head(answer=False, a=1, b=1, c=1)
    group = head.create(CPU, CPU)
    one, two = head.of(Prepare)
    head.do(head.table.prepared(one.node, group, one.number, "", head.now))
    head.do(head.table.node_died(two.node, head.now))
    assert [action.node for action in head.of(Return)] == [one.node]
    assert len(head.of(Prepare)) == 4


def test_a_death_during_the_commit_moves_only_what_was_there() -> None:
    head = Head(answer=False, a=1, b=1, c=1)
    group = head.create(CPU, CPU)
    one, two = head.of(Prepare)
    for action in (one, two):
        head.do(head.table.prepared(action.node, group, action.number, "", head.now))
    head.do(head.table.node_died(two.node, head.now))
    head.answer = True
    head.do(head.table.committed(one.node, group, one.number, head.now))
    assert head.table.state(group) == "created"
    assert not head.of(Return)


def test_a_removed_group_leaves_the_nodes_that_live() -> None:
    head = Head(a=1, b=1)
    group = head.create(CPU, CPU)
    head.do(head.table.node_died(A, head.now))
    assert [action.node for action in head.remove(group) if isinstance(action, RemoveFrom)] == [B]


# --- names, jobs, words that cross ---------------------------------------------------------------


def test_names_are_unique_in_their_namespace_and_free_after_the_end() -> None:
    head = Head(a=4)
    first = head.create(CPU, name="x", namespace="n")
    head.create(CPU, name="x", namespace="n")
    refused = head.of(TellGroup)[-1]
    assert refused.state == "refused"
    assert f"belongs to placement group {first.hex()}" in refused.reason
    head.create(CPU, name="x", namespace="m")
    head.remove(first)
    assert head.table.state(head.create(CPU, name="x", namespace="n")) == "created"


def test_a_name_that_nobody_has() -> None:
    head = Head(a=4)
    head.create(CPU, name="workers", namespace="n")
    (answer,) = head.do(head.table.watch(b"p", 7, b"", True, "worker", "n"))
    assert (answer.state, answer.request) == ("unknown", 7)
    assert "did you mean 'workers'" in answer.reason
    (answer,) = head.do(head.table.watch(b"p", 8, b"", True, "workers", "m"))
    assert "there is one in 'n'" in answer.reason
    (answer,) = head.do(head.table.watch(b"p", 9, b"", True, "workers", "n"))
    assert (answer.state, answer.bundles) == ("created", (CPU,))


def test_groups_end_with_their_job_unless_they_are_detached() -> None:
    head = Head(a=4)
    mortal, detached = head.create(CPU), head.create(CPU, detached=True, name="d")
    other = head.create(CPU, job=2)
    head.do(head.table.job_ended(1, head.now))
    assert [head.table.state(group) for group in (mortal, detached, other)] == ["removed", "created", "created"]
    assert head.of(Gone)[0].reason.endswith("was removed: its job 1 has ended")


def test_a_watch_may_come_before_the_creation() -> None:
    head = Head(a=4)
    group = (1).to_bytes(14, "big") + (1).to_bytes(4, "big")
    (early,) = head.do(head.table.watch(b"p", 1, group, True))
    assert early.state == "pending"
    assert head.create(CPU) == group
    assert set(head.of(TellGroup)[-1].processes) == {b"p", DRIVER}
    (unknown,) = head.do(head.table.watch(b"p", 2, b"x" * 18, False))
    assert unknown.state == "unknown"


def test_who_waits_for_a_creation_that_never_comes_hears_of_the_jobs_end() -> None:
    head = Head(a=4)
    group = b"g" * 14 + (1).to_bytes(4, "big")
    head.do(head.table.watch(b"p", 1, group, True))
    (gone,) = head.do(head.table.job_ended(1, head.now))
    assert (gone.state, gone.processes) == ("removed", (b"p",))


def test_a_removal_may_come_before_the_creation() -> None:
    head = Head(a=4)
    group = (1).to_bytes(14, "big") + (1).to_bytes(4, "big")
    head.do(head.table.remove(b"p", 5, group, head.now))
    assert head.create(CPU) == group
    assert head.table.state(group) == "removed"
    assert not head.of(Prepare)
    assert head.of(TellGroup)[-1].state == "removed"


def test_the_dead_are_told_nothing() -> None:
    head = Head(a=1)
    first = head.create(CPU)
    second = head.create(CPU)
    head.do(head.table.watch(b"p", 1, second, True))
    head.do(head.table.process_died(b"p"))
    head.do(head.table.process_died(DRIVER))
    before = len(head.of(TellGroup))
    head.do(head.table.remove(b"q", 0, first, head.now))
    assert not head.of(TellGroup)[before:]


def test_who_does_something_is_not_told_what_it_knows() -> None:
    head = Head(answer=False, a=2)
    group = head.create(CPU)
    assert not head.of(TellGroup), "its creator takes it for pending"
    head.do(head.table.committed(A, group, head.of(Prepare)[0].number, head.now))
    assert [(news.processes, news.state) for news in head.of(TellGroup)] == [((DRIVER,), "created")]
    head.do(head.table.watch(b"p", 1, group, True))
    head.do(head.table.remove(DRIVER, 0, group, head.now))
    assert [(news.processes, news.state) for news in head.of(TellGroup)[2:]] == [((b"p",), "removed")]
    head.table.validate()
    early = head.new_id()
    head.do(head.table.watch(b"p", 2, early, True))
    head.create(CPU, group=early)
    assert head.of(TellGroup)[-1].processes == (b"p", DRIVER), "others have heard of nothing but its id"
    full = head.create(CPU, CPU)
    (news,) = head.of(TellGroup)[5:]
    assert (news.processes, news.group, news.state) == ((DRIVER,), full, "pending")
    assert "CPU" in news.reason, "it hears why it has to wait"
    named = GroupSpec(head.new_id(), DRIVER, 1, (CPU,), "PACK", name="named")
    (answer,) = [each for each in head.do(head.table.create(named, 3, head.now)) if isinstance(each, TellGroup)]
    assert (answer.request, answer.state, answer.reason) == (3, "pending", "its bundles are being reserved")
