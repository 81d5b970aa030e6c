"""Which queued task goes to which leased worker, and how many at once (DESIGN section 5, rule LEASE).

One :class:`Pool` per *scheduling key* (resources, strategy, runtime environment) of an owner. It is a
plain state machine on the hot path: methods with plain arguments, batches in and out, no clock.

**Depth.** A worker whose tasks' duration is unknown, or has lately been a millisecond or more, holds
one task. Otherwise it holds as many as make :data:`~moray.config.PIPELINE_BUDGET_US` of work, counted with
the *longest* of the last sixteen runs of that function: ten one-second tasks after ten thousand empty
ones still start at once on ten workers, because the first long run closes the pipeline, and what sits
behind it is recalled.

**Share.** A batch is never more than the queue divided by the workers, so the last tasks spread out.

**Packing.** An owner needs some microseconds for each task, so tasks of d µs keep no more workers busy than it feeds
meanwhile (:func:`fed_workers`). Spread over all the others they would only cost a wake-up each: empty tasks
over 32 workers of two cores cost twice what they cost over two. So a pool that `packs` gives short tasks to that
many *busy* slots and leaves the others idle. As soon as a busy one makes no progress, it stops packing until all do.

**Recall.** While one worker is idle and nothing is queued, tasks waiting in another worker's pipeline
that made no progress since the last look are asked back. The worker decides what has started.

Invariants (the first is checked by `validate`; the others hold when a batch is taken):

- LEASE-1: a task is in exactly one place: the queue, or the `running` of one slot.
- LEASE-2: a slot holds more than one task only if the estimate of each was known and under the limit.
- LEASE-3: a slot that drains, is blocked or is asked for its tasks back gets nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Protocol

from moray import config

#: A run this long or longer closes the pipeline of its function.
LONG_US: Final = 1000
#: No estimate below this: the worker's own work per task.
LEAST_US: Final = 4
#: What a task costs its owner, at the least: submission, booking of the result.
_OWNER_US: Final = 4
#: Looks without progress after which a running slot counts as still, and packing ends.
_STILL_LOOKS: Final = 3


class Durations:
    """Run times of one function: the estimate is the maximum of the last sixteen."""

    __slots__ = ("estimate_us", "window")

    def __init__(self) -> None:
        self.window: deque[int] = deque(maxlen=config.PIPELINE_WINDOW)
        #: None: never run.
        self.estimate_us: int | None = None

    def update(self) -> None:
        """Call after adding to `window`."""
        self.estimate_us = max(*self.window, LEAST_US)


def fed_workers(durations: Durations) -> int:
    """How many workers one owner keeps busy with tasks of a function: by their mean, as one slow run does not make many
    workers useful; one for the worker's own work per task, one to spare."""
    window = durations.window
    return 2 + sum(window) // (_OWNER_US * len(window))


class Queued(Protocol):
    """What the pool needs to know of a task."""

    seq: int
    durations: Durations


class Slot:
    """One leased worker."""

    __slots__ = (
        "answered",
        "blocked",
        "discard",
        "draining",
        "estimate_us",
        "lease",
        "lingered",
        "progress",
        "recalling",
        "running",
        "seen_progress",
        "still",
        "worker",
    )

    def __init__(self, lease: int, worker: Any) -> None:
        self.lease = lease
        #: The shell's handle of the worker.
        self.worker = worker
        #: Sent and unanswered, oldest first.
        self.running: dict[int, Any] = {}
        #: Largest estimate among `running`, or LONG_US once it gave tasks back; meaningless when that is empty.
        self.estimate_us = 0
        #: Gets nothing more; it ends when `running` is empty.
        self.draining = False
        #: How many of its tasks have been answered.
        self.answered = 0
        #: Its task waits in moray: it bounces what it gets, until it answers something.
        self.blocked = False
        #: The worker shall not be used again when the lease ends.
        self.discard = False
        #: Answers so far, and how many there were at the last look for recalls.
        self.progress = 0
        self.seen_progress = -1
        #: Looks in a row at which it ran something and had made no progress.
        self.still = 0
        #: Answers there were at the last look for idle leases.
        self.lingered = -1
        #: A recall is under way.
        self.recalling = False


class Pool:
    """The queue and the leased workers of one scheduling key."""

    def __init__(self, packs: bool = False) -> None:
        #: Short tasks go to few workers.
        self.packs = packs
        #: … namely these, by lease. Some may have become idle, blocked or lost since.
        self.busy: dict[int, Slot] = {}
        #: One of them is still: tasks go to all workers for now.
        self.spread = False
        #: Ready to run, oldest first. Other threads append; only the loop takes.
        self.queue: deque[Any] = deque()
        self.slots: dict[int, Slot] = {}
        #: How many leases the node was asked for, beyond those granted.
        self.requested = 0
        #: Tasks behind workers that made no progress between the last two looks, with no worker idle.
        self.stuck = 0

    # --- events ---------------------------------------------------------------------------

    def granted(self, lease: int, worker: Any) -> Slot:
        """The node granted a lease."""
        slot = self.slots[lease] = Slot(lease, worker)
        self.requested = max(0, self.requested - 1)
        return slot

    def take(self, slot: Slot) -> list[Any]:
        """The tasks that `slot` shall get now; they count as sent to it."""
        queue = self.queue
        running = slot.running
        if slot.draining or slot.recalling or slot.blocked or not queue:
            return []
        head = queue[0].durations
        estimate = head.estimate_us
        if running:
            if estimate is None or estimate >= LONG_US or slot.estimate_us >= LONG_US:
                return []
            # What runs there may be of a function that has turned out long since it was sent.
            if next(iter(running.values())).durations.estimate_us >= LONG_US:
                return []
            estimate = max(estimate, slot.estimate_us)
        elif estimate is None or estimate >= LONG_US:
            task = queue.popleft()
            running[task.seq] = task
            slot.estimate_us = LONG_US if estimate is None else estimate
            return [task]
        return self._take_short(slot, head, estimate)

    def _take_short(self, slot: Slot, head: Durations, estimate: int) -> list[Any]:
        """A batch of the queue's head: tasks of known and short duration."""
        queue, running = self.queue, slot.running
        workers = len(self.slots) or 1
        if self.packs and not self.spread:
            limit = fed_workers(head)
            if not running and not self._admit(slot, limit):
                return []
            workers = min(workers, limit)
        depth = min(config.PIPELINE_BUDGET_US // estimate, config.PIPELINE_MAX_DEPTH)
        share = -(-(len(queue) + len(running)) // workers)
        room = min(depth, share) - len(running)
        if room <= 0 or (running and room < depth >> 2 and len(queue) > room):
            return []  # A worker that is nearly full waits for a batch worth sending.
        batch: list[Any] = []
        try:
            while room > 0:
                task = queue.popleft()
                if task.durations is not head:
                    # Another function: the budget is counted with the longest of them.
                    head = task.durations
                    longest = LONG_US if head.estimate_us is None else max(estimate, head.estimate_us)
                    if longest >= LONG_US or len(running) >= config.PIPELINE_BUDGET_US // longest:
                        queue.appendleft(task)
                        break
                    estimate = longest
                    room = min(room, config.PIPELINE_BUDGET_US // longest - len(running))
                running[task.seq] = task
                batch.append(task)
                room -= 1
        except IndexError:
            pass
        slot.estimate_us = estimate
        return batch

    def _admit(self, slot: Slot, limit: int) -> bool:
        """Whether an idle slot shall be one of the busy ones; if so it is from now on."""
        busy = self.busy
        if len(busy) <= limit and slot.lease in busy:
            return True
        if self._room(limit) <= 0:
            return False
        busy[slot.lease] = slot
        return True

    def _room(self, limit: int) -> int:
        """How many slots more may be busy. Forgets those that are not any more, if that matters."""
        if len(self.busy) >= limit:
            for lease, slot in list(self.busy.items()):
                gone = slot.blocked or slot.draining or slot.recalling or lease not in self.slots
                if gone or not slot.running or slot.estimate_us >= LONG_US:
                    del self.busy[lease]
        return limit - len(self.busy)

    def admits(self, slot: Slot, task: Any) -> bool:
        """Whether a user's thread may send `task` to this idle slot rather than queue it."""
        estimate = task.durations.estimate_us
        if not self.packs or self.spread or estimate is None or estimate >= LONG_US:
            return True
        return self._admit(slot, fed_workers(task.durations))

    def packed(self) -> bool:
        """Whether the queue's first tasks wait for a busy slot although others are idle."""
        if not self.packs or self.spread or not self.queue:
            return False
        durations = self.queue[0].durations
        estimate = durations.estimate_us
        return estimate is not None and estimate < LONG_US and self._room(fed_workers(durations)) <= 0

    def sent_directly(self, slot: Slot, task: Any) -> None:
        """A user's thread sent `task` to this idle slot."""
        estimate = task.durations.estimate_us
        slot.estimate_us = max(slot.estimate_us if slot.running else 0, LONG_US if estimate is None else estimate)
        slot.running[task.seq] = task

    def recalled(self, slot: Slot, seqs: list[int]) -> list[Any]:
        """The worker gave these back: they are first in the queue again. Returns the tasks. What runs there has
        lasted, so nothing is put behind it again, however short its function used to be."""
        slot.recalling = False
        tasks = [task for seq in seqs if (task := slot.running.pop(seq, None)) is not None]
        if tasks:
            slot.estimate_us = LONG_US
        self.queue.extendleft(sorted(tasks, key=_by_seq, reverse=True))
        return tasks

    def lost(self, slot: Slot) -> list[Any]:
        """The worker is gone: the tasks that it held, oldest first."""
        self.slots.pop(slot.lease, None)
        tasks = list(slot.running.values())
        slot.running = {}
        return tasks

    # --- decisions --------------------------------------------------------------------------

    def wanted(self) -> int:
        """How many more leases the queue is worth: one per task of unknown or long duration, one per
        budget of work for short ones (a single worker is through with less before a second one starts)."""
        count = len(self.queue)
        if not count:
            return self.stuck
        try:
            durations = self.queue[0].durations
        except IndexError:
            return self.stuck
        estimate = durations.estimate_us
        if estimate is None or estimate >= LONG_US:
            return count + self.stuck
        worth: int = min(count, -(-count * estimate // config.PIPELINE_BUDGET_US))
        if self.packs and not self.spread:
            worth = min(worth, max(0, self._room(fed_workers(durations))))
        return worth + self.stuck

    def should_request(self) -> int | None:
        """The new wish to tell the node, or None if the old one is near enough."""
        wanted = self.wanted()
        if wanted == self.requested or (0 < self.requested <= wanted < 2 * self.requested):
            return None
        if 0 < wanted < self.requested and wanted > self.requested // 2:
            return None
        self.requested = wanted
        return wanted

    def recalls(self) -> list[tuple[Slot, int]]:
        """(slot, how many to keep) to recall from. Call it at intervals while there is a backlog: slots without
        an answer since the last call are stuck. If no other worker is idle, their backlog counts as wanting more
        workers."""
        idle = any(not (slot.running or slot.draining or slot.blocked) for slot in self.slots.values())
        chosen: list[tuple[Slot, int]] = []
        self.stuck = 0
        self.spread = False
        for slot in self.slots.values():
            stuck = slot.progress == slot.seen_progress
            slot.seen_progress = slot.progress
            slot.still = slot.still + 1 if stuck and slot.running else 0
            self.spread = self.spread or slot.still >= _STILL_LOOKS
            if not stuck or len(slot.running) < 2 or slot.recalling:
                continue
            if idle and not self.queue:
                slot.recalling = True
                chosen.append((slot, 1))
            else:
                self.stuck += len(slot.running) - 1
        return chosen

    def has_backlog(self) -> bool:
        """Whether some slot holds tasks behind the one that runs, or the queue waits for busy slots."""
        return self.packed() or any(len(slot.running) > 1 for slot in self.slots.values())

    def validate(self) -> None:
        """Raise AssertionError if an invariant does not hold."""
        seen = [task.seq for task in self.queue]
        for slot in self.slots.values():
            seen += slot.running
        assert len(seen) == len(set(seen)), "LEASE-1"


def _by_seq(task: Any) -> int:
    seq: int = task.seq
    return seq
