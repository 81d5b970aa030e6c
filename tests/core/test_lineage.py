"""What is remembered, and what is run again (LINEAGE)."""

from __future__ import annotations

from moray.core.lineage import RECIPE_BYTES, Failed, Fate, Lineage, Run, Why


def key(task: int, index: int = 0) -> int:
    return task << 32 | index


def made(core: Lineage, task: int, *inputs: int, attempts: int = 3, held: dict[bytes, int] | None = None) -> int:
    """A task has ended, with one result in a store."""
    core.opened(task, attempts)
    core.stored(key(task))
    core.closed(task, attempts, inputs, held or {}, 0)
    return key(task)


def test_a_lost_result_is_made_again() -> None:
    core = Lineage(1 << 20)
    plan = core.lost([made(core, 1)])
    assert plan.runs == [Run(1)]
    assert core.fate(key(1)) is Fate.LOST
    assert core.attempts(1) == 2


def test_freed_inputs_are_made_first_and_once() -> None:
    core = Lineage(1 << 20)
    a = made(core, 1)
    b = made(core, 2, a)
    c, d = made(core, 3, a, b), made(core, 4, b)
    assert core.freed(a).dropped == core.freed(b).dropped == []
    assert core.fate(a) is Fate.GONE
    assert core.lost([c, d]).runs == [Run(1, True), Run(2, True), Run(3), Run(4)]


def test_an_input_that_somebody_has_is_not_made() -> None:
    core = Lineage(1 << 20)
    a = made(core, 1)
    assert core.lost([made(core, 2, a)]).runs == [Run(2)]


def test_a_task_that_runs_is_joined() -> None:
    core = Lineage(1 << 20)
    core.opened(1, 3)
    core.stored(key(1))
    core.stored(key(1, 1))
    core.closed(1, 3, [], {}, 0)
    assert core.lost([key(1)]).runs == [Run(1)]
    assert core.lost([key(1, 1)]).runs == []
    core.stored(key(1))
    assert core.closed(1, 2, [], {}, 0)[0] == [key(1, 1)]


def test_records_go_with_the_last_that_needs_them() -> None:
    core = Lineage(1 << 20)
    a = made(core, 1)
    b = made(core, 2, a)
    core.freed(a)
    assert core.freed(b).dropped == [2, 1]
    assert core.bytes == 0
    core.check()


def test_a_long_chain() -> None:
    core = Lineage(1 << 30)
    last = made(core, 1)
    for task in range(2, 5_000):
        following = made(core, task, last)
        core.freed(last)
        last = following
    assert len(core.lost([last]).runs) == 4_999


def test_no_attempts() -> None:
    core = Lineage(1 << 20)
    lost = made(core, 1, attempts=0)
    assert core.lost([lost]).failed == [Failed(lost, lost, Why.NO_ATTEMPTS)]
    assert core.lost([key(9)]).failed == [Failed(key(9), key(9), Why.NO_TASK)]


def test_the_oldest_recipes_go_by_the_budget() -> None:
    core = Lineage(2 * RECIPE_BYTES)
    a = made(core, 1)
    b = made(core, 2, a)
    core.freed(a)
    core.opened(3, 3)
    core.stored(key(3))
    gone = core.closed(3, 3, [], {}, 0)[1]
    assert gone.evicted == [1]
    assert core.lost([b]).failed == [Failed(b, a, Why.BUDGET)]
    core.freed(b)
    assert not core.knows(1)
    core.check()


def test_a_value_that_several_recipes_keep_counts_once() -> None:
    core = Lineage(1 << 20)
    made(core, 1, held={b"put": 5000})
    made(core, 2, held={b"put": 5000})
    assert core.bytes == 5000 + 2 * RECIPE_BYTES
    core.freed(key(1))
    assert core.bytes == 5000 + RECIPE_BYTES
    core.freed(key(2))
    assert core.bytes == 0
