"""The lease pool: depth by duration, sharing, recalls, wishes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from moray import config
from moray.core.leases import Durations, Pool, Slot, fed_workers


@dataclass
class FakeTask:
    seq: int
    durations: Durations


@dataclass
class Owner:
    """A pool with tasks of one function."""

    pool: Pool = field(default_factory=Pool)
    durations: Durations = field(default_factory=Durations)
    count: int = 0

    def submit(self, number: int = 1, durations: Durations | None = None) -> None:
        for _ in range(number):
            self.count += 1
            self.pool.queue.append(FakeTask(self.count, durations or self.durations))

    def ran(self, *durations_us: int) -> None:
        self.durations.window.extend(durations_us)
        self.durations.update()

    def grant(self, number: int = 1) -> list[Slot]:
        return [self.pool.granted(len(self.pool.slots) + 1, None) for _ in range(number)]


def test_unknown_duration_means_one_task() -> None:
    owner = Owner()
    owner.submit(10)
    (slot,) = owner.grant()
    assert len(owner.pool.take(slot)) == 1
    assert owner.pool.take(slot) == []


def test_short_tasks_fill_the_budget() -> None:
    owner = Owner()
    owner.ran(10, 10)
    owner.submit(1000)
    (slot,) = owner.grant()
    assert len(owner.pool.take(slot)) == config.PIPELINE_BUDGET_US // 10


def test_depth_follows_the_longest_of_the_window() -> None:
    owner = Owner()
    owner.ran(*[5] * 15, 500)
    owner.submit(100)
    (slot,) = owner.grant()
    assert len(owner.pool.take(slot)) == config.PIPELINE_BUDGET_US // 500


def test_one_long_run_closes_the_pipeline_for_sixteen_runs() -> None:
    owner = Owner()
    owner.ran(*[5] * 15, 1_000_000)
    owner.submit(100)
    (slot,) = owner.grant()
    assert len(owner.pool.take(slot)) == 1
    slot.running.clear()
    owner.ran(*[5] * 15)
    assert len(owner.pool.take(slot)) == 1
    slot.running.clear()
    owner.ran(5)
    assert len(owner.pool.take(slot)) > 1


def test_the_last_tasks_spread_over_all_workers() -> None:
    owner = Owner()
    owner.ran(5)
    slots = owner.grant(10)
    owner.submit(10)
    assert [len(owner.pool.take(slot)) for slot in slots] == [1] * 10


def test_nothing_is_put_behind_a_task_of_unknown_duration() -> None:
    owner = Owner()
    (slot,) = owner.grant()
    owner.submit(1)
    owner.pool.take(slot)
    short = Durations()
    short.window.append(5)
    short.update()
    owner.submit(5, short)
    assert owner.pool.take(slot) == []


def test_recalled_tasks_come_first_and_in_order() -> None:
    owner = Owner()
    owner.ran(5)
    (slot,) = owner.grant()
    owner.submit(8)
    batch = owner.pool.take(slot)
    owner.submit(2)
    owner.pool.recalled(slot, [task.seq for task in batch[3:]])
    assert [task.seq for task in owner.pool.queue] == [4, 5, 6, 7, 8, 9, 10]
    owner.pool.validate()


def test_recall_only_from_workers_that_do_not_move() -> None:
    owner = Owner()
    owner.ran(5)
    busy, _idle = owner.grant(2)
    owner.submit(4)
    for _ in range(2):
        owner.pool.take(busy)
    assert len(busy.running) > 1
    owner.pool.queue.clear()
    assert owner.pool.recalls() == []  # The first look only notes how far it is.
    busy.progress += 1
    assert owner.pool.recalls() == []
    assert owner.pool.recalls() == [(busy, 1)]
    assert owner.pool.recalls() == []  # One recall at a time.


def test_a_draining_worker_gets_nothing() -> None:
    owner = Owner()
    (slot,) = owner.grant()
    slot.draining = True
    owner.submit()
    assert owner.pool.take(slot) == []


def test_wishes_count_tasks_when_durations_are_unknown_and_work_when_short() -> None:
    owner = Owner()
    owner.submit(40)
    assert owner.pool.wanted() == 40
    owner.ran(10)
    assert owner.pool.wanted() == 1
    owner.submit(1000)
    assert owner.pool.wanted() == 11


def test_wishes_are_told_when_they_double_halve_or_end() -> None:
    owner = Owner()
    pool = owner.pool
    owner.submit(8)
    assert pool.should_request() == 8
    owner.submit(7)
    assert pool.should_request() is None
    owner.submit(1)
    assert pool.should_request() == 16
    for _ in range(16):
        pool.queue.popleft()
    assert pool.should_request() == 0
    assert pool.should_request() is None


def test_a_lost_worker_gives_its_tasks_oldest_first() -> None:
    owner = Owner()
    owner.ran(5)
    (slot,) = owner.grant()
    owner.submit(5)
    owner.pool.take(slot)
    assert [task.seq for task in owner.pool.lost(slot)] == [1, 2, 3, 4, 5]
    assert not owner.pool.slots


def packing_owner(workers: int = 10, duration_us: int = 4) -> tuple[Owner, list[Slot]]:
    owner = Owner()
    owner.pool = Pool(packs=True)
    owner.ran(*[duration_us] * 16)
    return owner, owner.grant(workers)


def test_short_tasks_go_to_as_many_workers_as_the_owner_can_feed() -> None:
    owner, slots = packing_owner()
    owner.submit(3000)
    pool = owner.pool
    busy = [slot for slot in slots if pool.take(slot)]
    assert len(busy) == fed_workers(owner.durations) == 3
    assert pool.packed()
    assert pool.wanted() == 0
    assert pool.has_backlog(), "the queue waits for them: they are looked at"
    # One is through, and another may take its place.
    busy[0].running.clear()
    assert pool.take(slots[9])
    assert not pool.take(busy[0])


def test_longer_tasks_go_to_more_workers() -> None:
    owner, slots = packing_owner(duration_us=100)
    owner.submit(3000)
    assert all(owner.pool.take(slot) for slot in slots)


def test_users_threads_send_only_to_busy_workers() -> None:
    owner, slots = packing_owner()
    pool = owner.pool
    sent = []
    for slot in slots:
        task = FakeTask(1000 + slot.lease, owner.durations)
        if pool.admits(slot, task):
            pool.sent_directly(slot, task)
            sent.append(slot)
    assert sent == slots[:3]
    assert pool.admits(slots[9], FakeTask(5000, Durations())), "of unknown duration: any worker that is idle"
    for slot in sent:
        slot.running.clear()
    assert pool.admits(slots[1], FakeTask(5001, owner.durations))


@pytest.mark.parametrize("how", ["blocked", "draining", "lost"])
def test_workers_that_take_nothing_leave_their_place_to_others(how: str) -> None:
    owner, slots = packing_owner()
    pool = owner.pool
    owner.submit(3000)
    busy = [slot for slot in slots if pool.take(slot)]
    for slot in busy:
        if how == "lost":
            pool.lost(slot)
        else:
            setattr(slot, how, True)
    assert not pool.packed()
    assert pool.wanted() > 0
    assert len([slot for slot in slots[3:] if pool.take(slot)]) == 3


def test_nothing_waits_for_busy_workers_that_do_not_get_on() -> None:
    """LEASE: short until now says nothing of the next."""
    owner, slots = packing_owner()
    pool = owner.pool
    owner.submit(3000)
    busy = [slot for slot in slots if pool.take(slot)]
    for _ in range(4):
        busy[0].progress += 1
        pool.recalls()
    assert not pool.packed()
    assert all(pool.take(slot) for slot in slots[3:])
    for slot in slots:
        slot.progress += 1
    pool.recalls()
    owner.submit(3000)
    assert pool.packed(), "all get on: it packs again"
