"""The lease pool: depth by duration, sharing, recalls, wishes."""

from __future__ import annotations

from dataclasses import dataclass, field

from moray import config
from moray.core.leases import Durations, Pool, Slot


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
