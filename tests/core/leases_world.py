"""Workers, a node and their channels around one lease pool, for its hypothesis machine.

Every worker has a FIFO from the owner and one to it, and is as slow as the test wants: tasks, recalls, answers
and bounces lie in them for any number of steps. A worker runs one task after the other, keeps its answers until it
flushes, gives back the newest of its queue when recalled, bounces everything while it is blocked or revoked
(LEASE). What a task has been through is written down by the worker, not believed from the pool.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from moray import config
from moray.core.leases import LONG_US, Durations, Pool, Slot


@dataclass(eq=False)
class Function:
    """One function, its estimate kept by the pool's class and once more, naively."""

    durations: Durations = field(default_factory=Durations)
    runs_us: list[int] = field(default_factory=list)

    def ran(self, duration_us: int) -> None:
        self.runs_us.append(duration_us)
        self.durations.window.append(duration_us)
        self.durations.update()

    @property
    def estimate_us(self) -> int | None:
        """What the pool should believe: the longest of the last sixteen."""
        return max(4, *self.runs_us[-16:]) if self.runs_us else None


@dataclass(eq=False)
class Task:
    """One task, with the attempt at it."""

    seq: int
    function: Function
    durations: Durations
    #: Some worker has begun it, and nobody lost that worker since.
    begun: bool = False


@dataclass(eq=False)
class Worker:
    """One leased worker and its two channels."""

    slot: Slot
    inbox: deque[tuple[str, Any]] = field(default_factory=deque)
    outbox: deque[tuple[str, Any]] = field(default_factory=deque)
    queue: deque[Task] = field(default_factory=deque)
    current: Task | None = None
    #: Finished, not flushed.
    answers: list[tuple[Task, int]] = field(default_factory=list)
    blocked: bool = False
    revoked: bool = False
    #: Sent by a user's thread, not booked by the loop yet.
    unsettled: list[Task] = field(default_factory=list)
    #: What each running task was believed to take when it was sent.
    sent_us: dict[int, int | None] = field(default_factory=dict)
    #: Batches of answers that the owner got, and how many at the last look for recalls.
    progress: int = 0
    looked_at: int | None = None
    #: A recall is on its way, or its answer.
    recalled: bool = False
    #: It gave tasks back and was not empty since: nothing may be put behind what runs there.
    closed: bool = False

    # --- the worker's own steps -----------------------------------------------------------------

    def receive(self) -> None:
        kind, what = self.inbox.popleft()
        if kind == "recall":
            running = int(self.current is not None)
            back = [self.queue.pop() for _ in range(len(self.queue) - max(0, what - running))]
            self._give_back(back[::-1], "recalled")
        elif self.revoked or self.blocked:
            self._give_back(what, "revoked" if self.revoked else "blocked")
        else:
            self.queue.extend(what)

    def begin(self) -> None:
        task = self.queue.popleft()
        assert not task.begun, f"task {task.seq} runs twice"
        task.begun = True
        self.current = task

    def finish(self, duration_us: int) -> None:
        assert self.current is not None
        self.answers.append((self.current, duration_us))
        self.current = None

    def flush(self) -> None:
        if self.answers:
            self.outbox.append(("results", self.answers))
            self.answers = []

    def block(self) -> None:
        self.blocked = True
        self._return_queue("blocked")

    def revoke(self) -> None:
        self.revoked = True
        self._return_queue("revoked")

    def _return_queue(self, cause: str) -> None:
        back = list(self.queue)
        self.queue.clear()
        if back:
            self._give_back(back, cause)

    def _give_back(self, tasks: list[Task], cause: str) -> None:
        self.outbox.append((cause, tasks))

    @property
    def idle(self) -> bool:
        """It would run a task at once, as far as the owner knows."""
        slot = self.slot
        return not (slot.running or slot.draining or slot.blocked or self.unsettled)

    def holds(self) -> list[int]:
        """What is on its way to it, in it, or on the way back."""
        held = [task for kind, what in self.outbox for task in ([t for t, _ in what] if kind == "results" else what)]
        held += [task for task, _ in self.answers]
        held += [self.current] if self.current else []
        held += self.queue
        held += [task for kind, what in self.inbox if kind == "tasks" for task in what]
        return sorted(task.seq for task in held)


class World:
    """The owner's shell around a pool: carries out what the pool says and checks it on the way."""

    def __init__(self, functions: int) -> None:
        self.pool = Pool()
        self.functions = [Function() for _ in range(functions)]
        self.workers: dict[int, Worker] = {}
        self.alive: set[int] = set()
        self.seqs = 0
        self.leases = 0
        #: Tasks behind stuck workers at the last look that could not have them recalled.
        self.stuck = 0
        #: The node's side of the wish: what was said last, grants made and arrived.
        self.count = self.seen = self.made = self.arrived = 0

    # --- submitting --------------------------------------------------------------------------------

    def task(self, function: int) -> Task:
        self.seqs += 1
        self.alive.add(self.seqs)
        return Task(self.seqs, self.functions[function], self.functions[function].durations)

    def submit(self, function: int, number: int) -> None:
        for _ in range(number):
            self.pool.queue.append(self.task(function))

    def submit_directly(self, function: int, worker: Worker) -> None:
        """A user's thread sends to a slot that it found idle; the loop books it later."""
        task = self.task(function)
        worker.inbox.append(("tasks", [task]))
        worker.unsettled.append(task)

    def settle(self, worker: Worker) -> None:
        for task in worker.unsettled:
            worker.sent_us[task.seq] = task.function.estimate_us
            self.pool.sent_directly(worker.slot, task)
        worker.unsettled.clear()

    # --- the node --------------------------------------------------------------------------------------

    @property
    def owed(self) -> int:
        """Grants that the node has yet to make."""
        return self.count - (self.made - self.seen)

    def tell_wish(self) -> None:
        pool, before = self.pool, self.pool.requested
        needed = self._needed()
        told = pool.should_request()
        if told is not None:
            assert told != before, "a wish repeated for nothing"
            self.count, self.seen = told, self.arrived
        assert (pool.requested > 0) == (needed > 0), f"wished for {pool.requested}, needs {needed}"
        assert needed / 2 <= pool.requested <= 2 * needed, f"wished for {pool.requested}, needs {needed}"

    def _needed(self) -> int:
        """One worker per task, or per budget of work when tasks are short; one for each task behind stuck ones."""
        queue = self.pool.queue
        estimate = queue[0].function.estimate_us if queue else None
        if estimate is None or estimate >= LONG_US:
            return len(queue) + self.stuck
        worth: int = -(-len(queue) * estimate // config.PIPELINE_BUDGET_US)
        return min(len(queue), worth) + self.stuck

    def grant(self) -> Worker:
        self.leases += 1
        self.arrived += 1
        self.made = max(self.made, self.arrived)
        worker = self.workers[self.leases] = Worker(self.pool.granted(self.leases, None))
        return worker

    # --- dispatching --------------------------------------------------------------------------------------

    def fill(self) -> None:
        for worker in list(self.workers.values()):
            self.settle(worker)
            self.give(worker)

    def give(self, worker: Worker) -> None:
        """One `take`, and all that must be true of it (LEASE-1 to LEASE-3, Share)."""
        queue, slot = self.pool.queue, worker.slot
        waiting, running = list(queue), list(slot.running.values())
        if not running:
            worker.closed = False
            worker.sent_us.clear()
        batch = self.pool.take(slot)
        assert batch == waiting[: len(batch)], "not the oldest"
        assert list(queue) == waiting[len(batch) :], "LEASE-1"
        assert list(slot.running.values()) == running + batch, "LEASE-1"
        if slot.draining or slot.blocked or worker.recalled:
            assert not batch, "LEASE-3"
        elif waiting and not running:
            assert batch, "an idle worker beside a queue"
        if not batch:
            return
        share = -(-len(waiting) // len(self.pool.slots))
        assert len(batch) <= share, f"{len(batch)} of {len(waiting)} for one of {len(self.pool.slots)} workers"
        worker.sent_us |= {task.seq: task.function.estimate_us for task in batch}
        if len(slot.running) > 1:
            self._check_depth(worker, running)
        worker.inbox.append(("tasks", batch))

    def _check_depth(self, worker: Worker, running: list[Task]) -> None:
        """LEASE-2: nothing behind what is long or unknown; together no more than the budget."""
        assert not worker.closed, "put behind a task that had its followers taken back"
        believed = [worker.sent_us[seq] for seq in worker.slot.running]
        known = [us for us in believed if us is not None and us < LONG_US]
        assert len(known) == len(believed), "LEASE-2: something waits with a long or unknown task"
        assert sum(known) <= config.PIPELINE_BUDGET_US, "LEASE-2: more than the budget"
        assert len(known) <= config.PIPELINE_MAX_DEPTH
        if running:
            now_us = running[0].function.estimate_us
            assert now_us is not None
            assert now_us < LONG_US, "put behind a task that is known to be long by now"

    # --- the owner hears ----------------------------------------------------------------------------------------

    def hear(self, worker: Worker) -> None:
        self.settle(worker)
        kind, what = worker.outbox.popleft()
        if kind == "results":
            self._on_results(worker, what)
        else:
            self._on_recalled(worker, what, kind)

    def _on_results(self, worker: Worker, results: list[tuple[Task, int]]) -> None:
        for task, duration_us in results:
            assert worker.slot.running.pop(task.seq) is task
            self.alive.remove(task.seq)
            task.function.ran(duration_us)
            assert task.durations.estimate_us == task.function.estimate_us
        worker.slot.progress += 1
        worker.slot.blocked = False
        worker.progress += 1
        self._emptied(worker)

    def _on_recalled(self, worker: Worker, tasks: list[Task], cause: str) -> None:
        waiting = list(self.pool.queue)
        assert self.pool.recalled(worker.slot, [task.seq for task in tasks]) == tasks
        oldest_first = sorted(tasks, key=lambda task: task.seq)
        assert list(self.pool.queue) == [*oldest_first, *waiting], "given back out of order"
        worker.recalled = False
        worker.closed |= bool(tasks)
        worker.slot.blocked = cause == "blocked"
        worker.slot.draining |= cause == "revoked"
        self._emptied(worker)

    def _emptied(self, worker: Worker) -> None:
        if worker.slot.running or worker.slot.lease not in self.workers:
            return  # (The lease may have ended before a last, empty answer to a recall.)
        worker.closed = False
        if worker.slot.draining and not worker.unsettled:
            del self.pool.slots[worker.slot.lease], self.workers[worker.slot.lease]

    def look_for_recalls(self) -> None:
        """The timer's look: who is asked is exactly who is stuck."""
        for worker in self.workers.values():
            self.settle(worker)
        idle = any(worker.idle for worker in self.workers.values())
        asked = {slot.lease: keep for slot, keep in self.pool.recalls()}
        helps = idle and not self.pool.queue
        self.stuck = 0
        for lease, worker in self.workers.items():
            stuck = worker.looked_at == worker.progress and len(worker.slot.running) > 1 and not worker.recalled
            assert (lease in asked) == (stuck and helps), "recalled from one that moves, or not from one that is stuck"
            worker.looked_at = worker.progress
            if lease in asked:
                assert asked[lease] >= 1, "what runs stays"
                worker.recalled = True
                worker.inbox.append(("recall", asked[lease]))
            elif stuck:
                self.stuck += len(worker.slot.running) - 1

    # --- ends --------------------------------------------------------------------------------------------------------

    def revoked(self, worker: Worker) -> None:
        """The node has the lease back: what is still counted there never ran."""
        while worker.outbox:
            self.hear(worker)
            if worker.slot.lease not in self.workers:
                return
        self.settle(worker)
        self._end(worker)

    def dies(self, worker: Worker) -> None:
        self.settle(worker)
        for task in worker.slot.running.values():
            task.begun = False
        self._end(worker)

    def _end(self, worker: Worker) -> None:
        worker.slot.draining = True
        held = list(worker.slot.running.values())
        tasks = self.pool.lost(worker.slot)
        assert tasks == held, "what a worker held, oldest first"
        self.pool.queue.extendleft(reversed(tasks))
        del self.workers[worker.slot.lease]

    # --- always --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """LEASE-1, by what the workers hold rather than by what the pool says."""
        self.pool.validate()
        placed = [task.seq for task in self.pool.queue]
        for lease, worker in self.workers.items():
            assert self.pool.slots[lease] is worker.slot
            sent = [*worker.slot.running, *(task.seq for task in worker.unsettled)]
            assert sorted(sent) == worker.holds(), "the books are not what the worker has"
            placed += sent
        assert self.pool.slots.keys() == self.workers.keys()
        assert sorted(placed) == sorted(self.alive), "LEASE-1: lost, or in two places"
        assert self.pool.requested == max(0, self.count - (self.arrived - self.seen))
