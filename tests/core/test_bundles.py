"""Bundles of placement groups on one machine: names, device indices, and the scheduler's reservations (BUNDLES)."""

from __future__ import annotations

from typing import Any

import pytest

from moray.core.bundles import BUNDLE_SHARE, bundle_need, deal_out, fits_in, group_of, plain_need, split_name, total_of
from moray.core.lease_bundles import EVICT_AFTER_S
from moray.core.resources import Ledger, show_amounts
from moray.core.scheduler_actions import BundlesReady, Refuse, Revoke, StopWorker, Warn
from tests.core.test_local_scheduler import CPU, UNIT, Node

G = "ab" * 18
H = "cd" * 18


# --- names -------------------------------------------------------------------------------------


def test_a_need_in_a_bundle_names_the_group_and_the_bundle() -> None:
    need = bundle_need({"CPU": UNIT}, G, 2)
    assert need == {
        f"CPU_group_{G}": UNIT,
        f"CPU_group_2_{G}": UNIT,
        f"bundle_group_{G}": BUNDLE_SHARE,
        f"bundle_group_2_{G}": BUNDLE_SHARE,
    }
    assert group_of(need) == G
    assert plain_need(need) == ({"CPU": UNIT}, 2)
    assert plain_need(bundle_need({}, G, -1)) == ({}, -1)
    assert show_amounts(need) == "CPU of bundle 2 of placement group abababab: 1"


@pytest.mark.parametrize("name", ["CPU", "my_group_x", f"x_group_y_{G}", "CPU_group_", f"CPU_group_{G[:-1]}"])
def test_other_resources_are_no_groups(name: str) -> None:
    assert split_name(name) == (name, "", -1)
    assert group_of({name: 1}) == ""


def test_fractions_of_devices_share_whole_ones() -> None:
    half = {"GPU": UNIT // 2}
    assert total_of([half], {"GPU"}) == half
    assert total_of([half, half], {"GPU"}) == {"GPU": UNIT}
    assert total_of([half, half, half], {"GPU"}) == {"GPU": 2 * UNIT}
    assert total_of([{"GPU": 6000}, {"GPU": 6000}], {"GPU"}) == {"GPU": 2 * UNIT}
    assert total_of([{"disk": 6000}, {"disk": 6000}], {"GPU"}) == {"disk": 12_000}
    assert deal_out([UNIT, 2 * UNIT, 0], [4, 5, 7]) == [[7], [4, 5], []]
    assert deal_out([5000, 5000, 5000], [1, 3]) == [[1], [1], [3]]


def test_what_fits_in_a_bundle() -> None:
    assert fits_in({"CPU": UNIT}, {"CPU": UNIT, "GPU": UNIT})
    assert not fits_in({"CPU": UNIT + 1}, {"CPU": UNIT})
    assert not fits_in({"GPU": 1}, {"CPU": UNIT})


# --- the ledger --------------------------------------------------------------------------------


def test_devices_of_a_group_are_those_of_its_reservation() -> None:
    book = Ledger({"CPU": 4 * UNIT}, {"GPU": 4})
    book.take({"GPU": UNIT})
    bundles = {0: {"GPU": UNIT}, 1: {"GPU": 2 * UNIT}}
    taken = book.take(total_of(bundles.values(), book.devices))
    assert taken == {"GPU": [1, 2, 3]}
    book.add_bundles(G, bundles, taken)
    in_one = bundle_need({"GPU": 2 * UNIT}, G, 1)
    devices = book.take(in_one)
    assert devices == {"GPU": [1, 2]}
    anywhere = bundle_need({"GPU": UNIT}, G, -1)
    assert book.take(anywhere) == {"GPU": [3]}
    assert not book.fits(bundle_need({"GPU": UNIT}, G, 0)), "its device is taken by name of the group"
    book.validate()
    book.give(in_one, devices)
    book.give(anywhere, {"GPU": [3]})
    book.validate()
    book.remove_bundles(G, bundles)
    assert not any(split_name(name)[1] for name in book.total)


def test_bundles_that_share_a_device_have_their_part_of_it() -> None:
    book = Ledger({}, {"GPU": 1})
    bundles = {0: {"GPU": 7000}, 1: {"GPU": 3000}}
    taken = book.take(total_of(bundles.values(), book.devices))
    book.add_bundles(G, bundles, taken)
    assert book.take(bundle_need({"GPU": 3000}, G, 1)) == {"GPU": [0]}
    assert not book.fits(bundle_need({"GPU": 1}, G, 1))
    assert book.take(bundle_need({"GPU": 7000}, G, 0)) == {"GPU": [0]}
    book.validate()


# --- the scheduler -----------------------------------------------------------------------------


def reserve(node: Node, group: str = G, *bundles: dict[str, int], number: int = 1) -> list[Any]:
    return node.do(
        node.core.prepare_bundles(group, number, dict(enumerate(bundles)), 1, "placement group 'x'", node.now)
    )


def created(node: Node, group: str = G, *bundles: dict[str, int]) -> None:
    assert BundlesReady(group, 1, "") in reserve(node, group, *bundles)
    node.do(node.core.commit_bundles(group, 1, node.now))


def test_a_reservation_leaves_what_is_free_and_comes_back() -> None:
    node = Node(4)
    assert reserve(node, G, CPU, CPU) == [BundlesReady(G, 1, "")]
    assert node.core.available == {"CPU": 2 * UNIT}
    assert reserve(node, G, CPU, CPU) == [BundlesReady(G, 1, "")], "a repeat is answered again"
    assert node.core.available == {"CPU": 2 * UNIT}
    node.do(node.core.return_bundles(G, 1, node.now))
    assert node.core.available == {"CPU": 4 * UNIT}


def test_what_never_fits_is_refused() -> None:
    (ready,) = reserve(Node(1), G, CPU, CPU)
    assert "CPU: 2 wanted, the machine has 1" in ready.reason


def test_nothing_runs_in_a_group_before_the_commit() -> None:
    node = Node(2)
    node.want(b"d", 1, bundle_need(CPU, G, 0))
    assert not node.of(Refuse), "it may come"
    reserve(node, G, CPU)
    assert not node.grants
    (story,) = node.core.explain(node.now)
    assert (story["cause"], story["label"]) == ("group", "f1")
    node.do(node.core.commit_bundles(G, 1, node.now))
    assert len(node.grants) == 1
    assert node.core.available == {"CPU": UNIT}


def test_a_request_between_the_two_steps_waits() -> None:
    node = Node(2)
    reserve(node, G, CPU)
    node.want(b"d", 1, bundle_need(CPU, G, 0))
    assert not node.of(Refuse)
    node.do(node.core.commit_bundles(G, 1, node.now))
    assert len(node.grants) == 1


def test_what_groups_have_does_not_put_later_groups_behind_everybody() -> None:
    node = Node(4)
    created(node, G, CPU, CPU)
    node.want(b"d", 2)
    reserve(node, H, {"CPU": 2 * UNIT})
    for _ in range(4):
        node.after(0.06)
    assert BundlesReady(H, 1, "") in node.log


def test_bundles_have_their_own_and_no_more() -> None:
    node = Node(4)
    created(node, G, CPU, CPU)
    node.want(b"d", 3, bundle_need(CPU, G, 0))
    node.want(b"d", 3, bundle_need(CPU, G, -1), key=2)
    assert [grant.key for grant in node.grants] == [1, 2]
    node.want(b"e", 9, CPU)
    assert len(node.grants) == 4, "the rest of the machine is not the group's"
    node.want(b"d", 5, bundle_need({}, G, 1), key=3)
    assert len(node.grants) == 9, "what needs nothing can be bound to a bundle"


def test_a_reservation_takes_back_what_lies_idle() -> None:
    """Standing leases of one owner are revoked for it, one after another, and nobody takes the first of them."""
    node = Node(2)
    node.want(b"d", 2)
    assert not reserve(node, G, {"CPU": 2 * UNIT})
    assert not node.of(Revoke), "a lease lasts a while before it goes round"
    node.after(0.06)
    node.after(0.06)
    assert BundlesReady(G, 1, "") in node.log
    assert node.core.available == {"CPU": 0}
    assert len(node.grants) == 2, "the other owner's standing wish waits"


def test_a_reservation_gets_its_turn_among_many_small_tasks() -> None:
    node = Node(2)
    node.want(b"d", 2)
    reserve(node, G, {"CPU": 2 * UNIT})
    for _ in range(200):
        node.after(0.01)
        if BundlesReady(G, 1, "") in node.log:
            return
        node.give_back(node.grants[-1])
    raise AssertionError(node.core.explain(node.now))


def test_a_reservation_takes_what_blocked_workers_lend() -> None:
    node = Node(1)
    node.want(b"d", 1)
    node.do(node.core.blocked(node.grants[0].worker, node.now))
    assert reserve(node, G, CPU) == [BundlesReady(G, 1, "")]
    node.do(node.core.unblocked(node.grants[0].worker, node.now))
    assert node.core.available == {"CPU": -UNIT}


def test_a_blocked_worker_in_a_group_lends_the_groups_cpus() -> None:
    node = Node(2)
    created(node, G, CPU)
    need = bundle_need(CPU, G, 0)
    node.want(b"d", 1, need)
    node.want(b"e", 1, need)
    assert len(node.grants) == 1
    node.do(node.core.blocked(node.grants[0].worker, node.now))
    assert node.owners() == [b"d", b"e"]
    node.do(node.core.unblocked(node.grants[0].worker, node.now))
    node.want(b"f", 1, need)
    node.give_back(node.grants[0])
    assert len(node.grants) == 2, "the account was negative"


def test_waiting_for_bundles_is_explained_and_warned_of_once() -> None:
    node = Node(1)
    node.do(node.core.request(b"a" * 16, 1, 0, 1, 0, CPU, "", "A", node.now, permanent=True))
    reserve(node, G, CPU)
    (story,) = node.core.explain(node.now)
    assert story["label"] == "placement group 'x'"
    assert "held by A of job 1 (CPU: 1)" in story["reason"]
    node.after(11)
    node.after(11)
    (warning,) = node.of(Warn)
    assert warning.job == 1
    assert warning.text.startswith("placement group 'x' has been waiting 11 s for the resources of its bundles, CPU: 1")


def test_others_read_that_a_group_has_the_resources() -> None:
    node = Node(1)
    created(node, G, CPU)
    node.want(b"d", 1)
    (story,) = node.core.explain(node.now)
    assert "held by placement group 'x' of job 1 (CPU: 1)" in story["reason"]


# --- the end -----------------------------------------------------------------------------------


def test_a_removed_group_gives_back_at_once_what_nobody_uses() -> None:
    node = Node(2)
    created(node, G, CPU)
    node.do(node.core.remove_group(G, "removed", node.now))
    assert node.core.available == {"CPU": 2 * UNIT}
    assert not any(split_name(name)[1] for name in node.core._ledger.total)


def test_an_idle_worker_of_a_removed_group_survives() -> None:
    node = Node(2)
    created(node, G, CPU)
    node.want(b"d", 1, bundle_need(CPU, G, 0))
    node.do(node.core.remove_group(G, "removed", node.now))
    assert [action.lease for action in node.of(Revoke)] == [1], "which is acknowledged at once"
    assert node.core.available == {"CPU": 2 * UNIT}
    node.after(1)
    assert not node.of(StopWorker)


def test_what_runs_in_a_removed_group_is_ended_and_only_then_is_it_free() -> None:
    node = Node(2, answer=False)
    created(node, G, CPU)
    node.want(b"d", 2, bundle_need(CPU, G, 0))
    worker = node.start()
    node.do(node.core.remove_group(G, "it was removed", node.now))
    node.after(EVICT_AFTER_S / 2)
    assert not node.of(StopWorker)
    assert node.core.next_tick() is not None
    node.after(EVICT_AFTER_S)
    assert node.of(StopWorker) == [StopWorker(worker, "it was removed")]
    assert node.core.available == {"CPU": UNIT}
    assert reserve(node, H, CPU, CPU) == [], "another group waits for it"
    assert BundlesReady(H, 1, "") in node.do(node.core.worker_died(worker, node.now))


def test_requests_for_a_removed_group_are_refused_now_and_later() -> None:
    node = Node(2, answer=False)
    created(node, G, CPU)
    need = bundle_need(CPU, G, 0)
    node.do(node.core.request(b"a" * 16, 1, 0, 1, 0, need, "", "A", node.now, permanent=True))
    node.start()
    node.do(node.core.request(b"b" * 16, 1, 0, 1, 0, need, "", "A", node.now, permanent=True))
    node.do(node.core.remove_group(G, "it was removed", node.now))
    node.do(node.core.request(b"c" * 16, 1, 0, 1, 0, need, "", "A", node.now, permanent=True))
    assert [(r.owner[:1], r.group, r.reason) for r in node.of(Refuse)] == [
        (b"b", G, "it was removed"),
        (b"c", G, "it was removed"),
    ]
    assert len(node.of(StopWorker)) == 1, "an actor's lease is not revoked: its process ends"


def test_a_group_that_is_removed_while_it_waits_or_is_prepared_leaves_nothing() -> None:
    node = Node(1)
    reserve(node, G, CPU)
    reserve(node, H, CPU)
    node.do(node.core.remove_group(H, "removed", node.now))
    node.do(node.core.remove_group(G, "removed", node.now))
    assert node.core.available == {"CPU": UNIT}
    assert node.core.explain(node.now) == []
    (late,) = reserve(node, G, CPU, number=2)
    assert late.reason == "removed"


def test_names_of_groups_do_not_stay() -> None:
    node = Node(2)
    for number in range(20):
        group = f"{number:036x}"
        created(node, group, CPU)
        node.want(b"d", 1, bundle_need(CPU, group, 0), key=number)
        node.seen[b"d", number] = 1
        node.want(b"d", 0, bundle_need(CPU, group, 0), key=number)
        node.do(node.core.remove_group(group, "removed", node.now))
    assert set(node.core._ledger.total) == {"CPU"}
    assert all(not split_name(name)[1] for name in node.core._jobs[1].richest)
    assert not node.core._bundles.users
    assert not node.core._queue.shapes
