"""A hypothesis machine of lineage against a model that recomputes everything from what has happened (LINEAGE)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moray.core.lineage import RECIPE_BYTES, Gone, Lineage, Plan, Why
from tests.support.machines import search, walk_fixed

BUDGET = 12 * RECIPE_BYTES
#: Values that were put: name → bytes.
PUTS = {bytes([number]): RECIPE_BYTES * number for number in range(1, 4)}


class Task:
    """What the model knows of a task."""

    def __init__(self, inputs: list[int], held: dict[bytes, int], attempts: int) -> None:
        self.inputs = inputs
        self.held = held
        #: How often it may run again; -1: any number.
        self.attempts = attempts
        self.running = True
        #: It has ended, and there is a recipe.
        self.recipe = False
        self.evicted = False
        #: Its results that somebody refers to, and whether they are lost.
        self.results: dict[int, bool] = {}


class LineageMachine(RuleBasedStateMachine):
    """Random life of an owner."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Lineage(BUDGET)
        self.tasks: dict[int, Task] = {}
        self.last = 0

    # --- the model ------------------------------------------------------------------------------------

    def needed(self) -> set[int]:
        """Tasks that must be remembered."""
        found = {seq for seq, task in self.tasks.items() if task.running or task.results}
        pending = list(found)
        while pending:
            task = self.tasks[pending.pop()]
            for key in task.inputs if task.recipe else []:
                if key >> 32 not in found:
                    found.add(key >> 32)
                    pending.append(key >> 32)
        return found

    def can_run(self, seq: int) -> Why | None:
        task = self.tasks[seq]
        return Why.BUDGET if task.evicted else Why.NO_ATTEMPTS if task.attempts == 0 else None

    def obstacles(self, seq: int) -> set[tuple[int, Why]]:
        """Why a task cannot run now: (task, why) of all that it needs."""
        why = self.can_run(seq)
        if why is not None:
            return {(seq, why)}
        found: set[tuple[int, Why]] = set()
        for key in self.tasks[seq].inputs:
            if key not in self.tasks[key >> 32].results:
                found |= self.obstacles(key >> 32)
        return found

    def remembered(self, key: int) -> bool:
        task = self.tasks[key >> 32]
        return not task.running and not task.evicted and task.attempts != 0

    def clean(self, gone: Gone) -> None:
        """The core says what goes: nothing that is needed, and by the budget only what has a recipe."""
        for seq in gone.evicted:
            assert self.tasks[seq].recipe
            assert not self.tasks[seq].running
            self.tasks[seq].evicted = True
            self.tasks[seq].recipe = False
        needed = self.needed()
        for seq in gone.dropped:
            assert seq not in needed, f"task {seq} is needed"
        self.tasks = {seq: task for seq, task in self.tasks.items() if seq in needed}

    def carry_out(self, plan: Plan, lost: list[int]) -> None:
        known = [key for key in lost if key >> 32 in self.tasks and key in self.tasks[key >> 32].results]
        expected = {key: self.obstacles(key >> 32) for key in known if not self.tasks[key >> 32].running}
        failed = {each.key: each for each in plan.failed}
        assert len(failed) == len(plan.failed)
        attempts, again = self.look_at_runs(plan)
        for key, reasons in expected.items():
            if key in failed:
                culprit = failed[key].culprit
                ran_out = self.tasks[culprit >> 32].attempts > 0 and attempts[culprit >> 32] == 0
                assert (culprit >> 32, failed[key].why) in reasons or (ran_out and failed[key].why is Why.NO_ATTEMPTS)
            else:
                assert not reasons
                assert key >> 32 in again, f"{key:x} is forgotten"
        assert all(failed[key].why is Why.NO_TASK for key in lost if key not in known)
        for seq, left in attempts.items():
            self.tasks[seq].attempts = left
        for seq in again:
            self.tasks[seq].running = True
        for each in plan.failed:
            if each.why is not Why.NO_TASK:
                del self.tasks[each.key >> 32].results[each.key]
                self.clean(self.core.freed(each.key))

    def look_at_runs(self, plan: Plan) -> tuple[dict[int, int], set[int]]:
        """What each task's attempts are then, and which tasks make their lost results again."""
        stood_in: set[int] = set()
        again: set[int] = set()
        attempts = {seq: task.attempts for seq, task in self.tasks.items()}
        for run in plan.runs:
            task = self.tasks[run.task]
            assert not task.evicted
            assert attempts[run.task] != 0, f"task {run.task} has no attempts left"
            if attempts[run.task] > 0:
                attempts[run.task] -= 1
            for key in task.inputs:
                there = key in self.tasks[key >> 32].results or key >> 32 in stood_in
                assert there, f"{key:x} is not made before task {run.task} runs"
            if run.stand_in:
                assert run.task not in stood_in, "made twice"
                stood_in.add(run.task)
            else:
                assert not task.running
                assert run.task not in again, "runs twice"
                again.add(run.task)
        return attempts, again

    def keys(self) -> list[int]:
        return [key for task in self.tasks.values() for key in task.results]

    def running_again(self) -> list[int]:
        return [seq for seq, task in self.tasks.items() if task.running and task.recipe]

    # --- events ---------------------------------------------------------------------------------------

    @rule(data=st.data(), results=st.integers(1, 3), attempts=st.sampled_from([-1, 0, 1, 2, 2]))
    def submit(self, data: Any, results: int, attempts: int) -> None:
        usable = [key for key in self.keys() if self.remembered(key)]
        for key in self.keys():
            assert self.core.remembers(key) == self.remembered(key)
        inputs = data.draw(st.lists(st.sampled_from(usable), max_size=3, unique=True)) if usable and attempts else []
        held = dict.fromkeys(data.draw(st.lists(st.sampled_from(sorted(PUTS)), max_size=2)), 0) if attempts else {}
        self.last += 1
        task = self.tasks[self.last] = Task(inputs, {name: PUTS[name] for name in held}, attempts)
        self.core.opened(self.last, attempts)
        for index in range(results):
            key = self.last << 32 | index
            self.core.stored(key)
            task.results[key] = False
        if data.draw(st.booleans()):
            self.end(self.last)

    @precondition(lambda self: any(task.running for task in self.tasks.values()))
    @rule(data=st.data())
    def task_ends(self, data: Any) -> None:
        self.end(data.draw(st.sampled_from([seq for seq, task in self.tasks.items() if task.running])))

    def end(self, seq: int) -> None:
        task = self.tasks[seq]
        if task.recipe or task.evicted:  # It ran again: its lost results are back, or are lost again.
            for key in [key for key, lost in task.results.items() if lost]:
                self.core.stored(key)
                task.results[key] = False
        else:  # What it takes may have been freed, and lost its recipe, while it ran: then its values were kept.
            task.inputs = [key for key in task.inputs if key in self.keys() and self.core.remembers(key)]
        task.running = False
        task.recipe = not task.evicted
        inputs = task.inputs
        lost, gone = self.core.closed(seq, task.attempts, inputs, task.held, 0)
        assert sorted(lost) == sorted(key for key, is_lost in task.results.items() if is_lost)
        self.clean(gone)
        if lost:
            self.carry_out(self.core.lost(lost), lost)

    @precondition(lambda self: self.running_again())
    @rule(data=st.data())
    def task_fails(self, data: Any) -> None:
        seq = data.draw(st.sampled_from(self.running_again()))
        task = self.tasks[seq]
        task.running = False
        task.results = {key: lost for key, lost in task.results.items() if not lost}
        self.clean(self.core.failed(seq))

    @precondition(lambda self: self.keys())
    @rule(data=st.data())
    def reference_ends(self, data: Any) -> None:
        key = data.draw(st.sampled_from(self.keys()))
        del self.tasks[key >> 32].results[key]
        self.clean(self.core.freed(key))

    @precondition(lambda self: self.keys())
    @rule(data=st.data())
    def node_dies(self, data: Any) -> None:
        lost = data.draw(st.lists(st.sampled_from(self.keys()), min_size=1, max_size=5, unique=True))
        lost = [key for key in lost if not self.tasks[key >> 32].results[key]]
        for key in lost:
            self.tasks[key >> 32].results[key] = True
        self.carry_out(self.core.lost(lost), lost)

    @rule()
    def put_is_lost(self) -> None:
        self.carry_out(self.core.lost([(1 << 50) << 32]), [(1 << 50) << 32])

    # --- what always holds ----------------------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        self.core.check()
        needed = self.needed()
        assert set(self.tasks) == needed
        for seq in range(self.last + 1):
            assert self.core.knows(seq) == (seq in needed), seq

    @invariant()
    def within_the_budget(self) -> None:
        recipes = [task for task in self.tasks.values() if task.recipe]
        held = {name: size for task in recipes for name, size in task.held.items()}
        assert self.core.bytes <= sum(held.values()) + RECIPE_BYTES * len(recipes)
        if not any(task.running for task in recipes):
            assert self.core.bytes <= BUDGET or not recipes

    @invariant()
    def nothing_lost_waits_in_vain(self) -> None:
        for task in self.tasks.values():
            assert task.running or not any(task.results.values())


def test_random_lives() -> None:
    search(LineageMachine, steps=40)


@pytest.mark.long
def test_random_lives_fixed() -> None:
    walk_fixed(LineageMachine, 150, steps=40)
