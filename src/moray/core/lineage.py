"""What an owner remembers of finished tasks, so that lost results can be made again (LINEAGE).

Theory of operation. A task whose results lie in a store leaves a :class:`Record`: which of its results are still
needed, and which results of other such tasks it takes (its *inputs*). An input's value may be freed while the record
stays; then it is :attr:`Fate.GONE`, and the record of the task that made it stays with it. A record goes when no result
of its task is referenced, no other record takes one, and the task does not run.

When results are lost, :meth:`Lineage.lost` says what is to run, inputs first:

- a task whose results are lost runs *again*, once however many of them are asked for, and makes them under their ids;
- a task of which only GONE results are needed runs as a *stand-in*, under new ids: nobody knows the old ones, and
  a word that frees them may still be under way.

Each run takes one of the task's attempts. What is lost while its task runs (for the first time, or again) is seen to
when that has ended: :meth:`Lineage.closed` names it.

The *cost* of a record is the bytes of its recipe and of the values that are kept only for it (each counted once). Above
the budget the oldest recipes go; the records of those stay while they are needed, to say why nothing can be done.

Keys are ``task << 32 | index``. The shell is :mod:`moray.runtime.recovery`.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

#: Bytes that a recipe costs beside its arguments.
RECIPE_BYTES: Final = 1000


class Fate(enum.Enum):
    """What has become of a result."""

    #: Somebody refers to it, and it lies in a store.
    HERE = "here"
    #: Somebody refers to it, and all copies are lost.
    LOST = "lost"
    #: Nobody refers to it, but a record takes it.
    GONE = "gone"


class Why(enum.Enum):
    """Why a result cannot be made again."""

    #: No task has made it: it was put, or its task is not remembered.
    NO_TASK = "no_task"
    #: Its task may not run (again): max_retries.
    NO_ATTEMPTS = "no_attempts"
    #: Its recipe went, by the budget.
    BUDGET = "budget"


class Run(msgspec.Struct, frozen=True, gc=False):
    """Run this task: again, or as a stand-in."""

    task: int
    stand_in: bool = False


class Failed(msgspec.Struct, frozen=True, gc=False):
    """This result is lost for good, because `culprit` (itself, or what its making needs) cannot be made."""

    key: int
    culprit: int
    why: Why


class Plan(msgspec.Struct):
    """Carry it out in order."""

    runs: list[Run] = []
    failed: list[Failed] = []


class Gone(msgspec.Struct):
    """Recipes that are not needed any more, and those that had to go while they were."""

    dropped: list[int] = []
    evicted: list[int] = []


class Record:
    """One task. `attempts`: how often it may run again; -1: any number."""

    __slots__ = ("attempts", "cost", "evicted", "held", "inputs", "running", "takers", "task", "wanted")

    def __init__(self, task: int, attempts: int) -> None:
        self.task = task
        self.attempts = attempts
        #: Its needed results; those that nobody refers to are in `takers` only.
        self.wanted: dict[int, Fate] = {}
        #: Result → how many records take it.
        self.takers: dict[int, int] = {}
        self.inputs: list[int] = []
        #: Values that are kept for it: name → bytes.
        self.held: dict[bytes, int] = {}
        self.cost = 0
        self.running = True
        self.evicted = False

    def needed(self) -> bool:
        """Whether anything is to be remembered."""
        return self.running or bool(self.wanted) or bool(self.takers)

    def may_run(self) -> bool:
        """Whether its task can be run."""
        return not self.evicted and self.attempts != 0

    def why_not(self) -> Why:
        """Why it can not."""
        return Why.BUDGET if self.evicted else Why.NO_ATTEMPTS


class Lineage:
    """The records of one owner, with recipes of at most `budget` bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        #: The oldest first.
        self._records: dict[int, Record] = {}
        #: Those with a recipe that costs something, the oldest first.
        self._costly: dict[int, Record] = {}
        #: Values kept for records: name → (bytes, for how many).
        self._held: dict[bytes, tuple[int, int]] = {}
        self.bytes = 0

    # --- events ---------------------------------------------------------------------------------------

    def opened(self, task: int, attempts: int) -> None:
        """A task runs that will have a result in a store."""
        if task not in self._records:
            self._records[task] = Record(task, attempts)

    def stored(self, key: int) -> None:
        """A result of an open task lies in a store."""
        self._records[key >> 32].wanted[key] = Fate.HERE

    def closed(
        self, task: int, attempts: int, inputs: Sequence[int], held: dict[bytes, int], cost: int
    ) -> tuple[list[int], Gone]:
        """The task has ended: the results that were lost meanwhile (for :meth:`lost`), and the recipes that go.

        `inputs` are results that :meth:`remembers` is true of; `held`: values that the recipe keeps."""
        record = self._records[task]
        record.running = False
        record.attempts = attempts
        gone = Gone()
        if not record.evicted and record.cost == 0:
            for key in inputs:
                takers = self._records[key >> 32].takers
                takers[key] = takers.get(key, 0) + 1
            record.inputs = list(inputs)
            record.held = held
            record.cost = cost + RECIPE_BYTES
            self._hold(record)
            self._costly[task] = record
        lost = [key for key, fate in record.wanted.items() if fate is Fate.LOST]
        self._drop_unneeded([record], gone)
        self._keep_budget(gone)
        return lost, gone

    def failed(self, task: int) -> Gone:
        """The task has ended with an error, which its lost results are now."""
        record = self._records.get(task)
        gone = Gone()
        if record is not None:
            record.running = False
            for key in [key for key, fate in record.wanted.items() if fate is Fate.LOST]:
                del record.wanted[key]
            self._drop_unneeded([record], gone)
        return gone

    def freed(self, key: int) -> Gone:
        """Nobody refers to a result any more, or it is no stored value any more."""
        record = self._records.get(key >> 32)
        gone = Gone()
        if record is not None and record.wanted.pop(key, None) is not None:
            self._drop_unneeded([record], gone)
        return gone

    def lost(self, keys: Iterable[int]) -> Plan:
        """All copies of these results, which somebody refers to, are lost."""
        plan = Plan()
        tasks: dict[int, Record] = {}
        for key in keys:
            record = self._records.get(key >> 32)
            if record is None or key not in record.wanted:
                plan.failed.append(Failed(key, key, Why.NO_TASK))
            else:
                record.wanted[key] = Fate.LOST
                tasks[record.task] = record
        for record in tasks.values():
            if not record.running:
                self._plan(record, plan)
        return plan

    def stand_in(self, task: int) -> Plan:
        """A GONE result of this task is needed."""
        plan = Plan()
        record = self._records.get(task)
        if record is not None:
            self._plan(record, plan, stand_in=True)
        return plan

    # --- questions ------------------------------------------------------------------------------------

    def remembers(self, key: int) -> bool:
        """Whether this result, as an argument, need not be kept: it can be made again."""
        record = self._records.get(key >> 32)
        return record is not None and key in record.wanted and record.may_run() and not record.running

    def knows(self, task: int) -> bool:
        """Whether there is a record."""
        return task in self._records

    def attempts(self, task: int) -> int:
        """How often it may run again."""
        return self._records[task].attempts

    def fate(self, key: int) -> Fate | None:
        """What has become of a result; None: it is not known."""
        record = self._records.get(key >> 32)
        if record is None:
            return None
        fate = record.wanted.get(key)
        return fate if fate is not None else Fate.GONE if key in record.takers else None

    def lost_of(self, task: int) -> list[int]:
        """Its lost results."""
        record = self._records.get(task)
        return [key for key, fate in record.wanted.items() if fate is Fate.LOST] if record is not None else []

    def why_not(self, key: int) -> Why | None:
        """Why this result could not be made again; None: it could, as far as its own task goes."""
        record = self._records.get(key >> 32)
        if record is None or self.fate(key) is None:
            return Why.NO_TASK
        return None if record.may_run() else record.why_not()

    # --- planning ---------------------------------------------------------------------------------------

    def _plan(self, record: Record, plan: Plan, stand_in: bool = False) -> None:
        """Add what makes this task's results, its inputs first; or why that cannot be."""
        first = Run(record.task, stand_in)
        order: list[Run] = []
        planned = {run.task for run in plan.runs if run.stand_in}
        seen: set[int] = set()
        # Depth first, without recursion: chains are long.
        stack: list[tuple[Run, bool]] = [(first, False)]
        while stack:
            run, inputs_done = stack.pop()
            if inputs_done:
                order.append(run)
                continue
            if run is not first and (run.task in seen or run.task in planned):
                continue
            seen.add(run.task)
            made_by = self._records[run.task]
            if not made_by.may_run():
                self._fail(record, run.task, made_by.why_not(), plan)
                return
            stack.append((run, True))
            stack += [(Run(key >> 32, True), False) for key in made_by.inputs if self.fate(key) is Fate.GONE]
        for run in order:
            chosen = self._records[run.task]
            if chosen.attempts > 0:
                chosen.attempts -= 1
            chosen.running = chosen.running or not run.stand_in
        plan.runs += order

    def _fail(self, record: Record, task: int, why: Why, plan: Plan) -> None:
        """All lost results of `record` fail, because of another task's, or its own."""
        for key in [key for key, fate in record.wanted.items() if fate is Fate.LOST]:
            culprit = key
            if task != record.task:
                takers = self._records[task].takers
                culprit = min(takers) if takers else key
            plan.failed.append(Failed(key, culprit, why))

    # --- forgetting -------------------------------------------------------------------------------------

    def _hold(self, record: Record) -> None:
        self.bytes += record.cost
        for name, size in record.held.items():
            known, count = self._held.get(name, (size, 0))
            self._held[name] = (known, count + 1)
            if not count:
                self.bytes += known

    def _let_go(self, record: Record) -> list[Record]:
        """Its recipe goes: the records of its inputs, which may not be needed any more."""
        self._costly.pop(record.task, None)
        self.bytes -= record.cost
        record.cost = 0
        for name in record.held:
            size, count = self._held[name]
            if count == 1:
                del self._held[name]
                self.bytes -= size
            else:
                self._held[name] = (size, count - 1)
        record.held = {}
        inputs, record.inputs = record.inputs, []
        changed = []
        for key in inputs:
            other = self._records[key >> 32]
            other.takers[key] -= 1
            if not other.takers[key]:
                del other.takers[key]
            changed.append(other)
        return changed

    def _drop_unneeded(self, records: list[Record], gone: Gone) -> None:
        pending = deque(records)
        while pending:
            record = pending.popleft()
            if not record.needed() and self._records.pop(record.task, None) is not None:
                gone.dropped.append(record.task)
                pending += self._let_go(record)

    def _keep_budget(self, gone: Gone) -> None:
        if self.bytes <= self.budget:
            return
        for record in list(self._costly.values()):
            if self.bytes <= self.budget:
                break
            if record.running or self._costly.get(record.task) is not record:
                continue
            record.evicted = True
            gone.evicted.append(record.task)
            self._drop_unneeded(self._let_go(record), gone)

    def check(self) -> None:
        """Raise AssertionError unless the books agree with each other."""
        takers: dict[int, int] = {}
        held: dict[bytes, int] = {}
        for record in self._records.values():
            assert record.needed(), f"task {record.task} is remembered in vain"
            assert not record.evicted or not (record.inputs or record.held or record.cost)
            for key in record.inputs:
                takers[key] = takers.get(key, 0) + 1
            for name in record.held:
                held[name] = held.get(name, 0) + 1
        assert takers == {key: count for each in self._records.values() for key, count in each.takers.items()}
        assert held == {name: count for name, (_, count) in self._held.items()}
        sizes = sum(size for size, _ in self._held.values())
        assert self.bytes == sizes + sum(record.cost for record in self._records.values())
        assert set(self._costly) == {task for task, record in self._records.items() if record.cost}
