"""The owner's side of tasks in one simulated process (the counterpart of moray.runtime.submission).

Where a task is: waiting (for arguments) → ``pool.queue`` → ``slot.running`` → done. The core,
:mod:`moray.core.leases`, decides what goes where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray import config
from moray.core.leases import Durations, Pool, Slot
from moray.protocol import messages as m
from tests.simulation.objects import Entry, Ref, Value, dump, load

if TYPE_CHECKING:
    from tests.simulation.network import End
    from tests.simulation.process import Peer, Process
    from tests.simulation.streams import Stream
    from tests.simulation.world import Timer

#: As in moray.runtime.submission.
RECALL_AFTER_S: Final = 0.005
#: After the loss of a connection, how long the node's word about the worker's death may take.
DEATH_NEWS_S: Final = 1.0
#: Tells the worker that references are inside the arguments.
_REFERENCES: Final = m.TaskExtra()


class Function(msgspec.Struct):
    """An exported function."""

    index: int
    max_calls: int
    durations: Durations


class KeyPool(Pool):
    """The pool of one scheduling key."""

    def __init__(self, key: int, resources: m.Resources, runtime_env: str) -> None:
        super().__init__(packs=True)
        self.key = key
        self.resources = resources
        self.runtime_env = runtime_env
        #: Slots that user code may send to directly.
        self.idle: list[Slot] = []
        self.seen = 0
        self.recall_timer: Timer | None = None
        self.linger_timer: Timer | None = None


class Task(msgspec.Struct, eq=False):
    """One submitted task."""

    seq: int
    function: Function
    durations: Durations
    pool: KeyPool | None
    payload: bytes
    entries: list[Entry]
    extra: m.TaskExtra | None
    retries_left: int
    retries_errors: bool
    #: References among and inside the arguments, held until the task is done.
    held: list[Ref]
    #: Top-level references.
    arguments: list[Ref]
    waiting: int = 0
    attempt: int = 0
    #: Being cancelled: not retried.
    cancelled: bool = False
    #: What it has submitted is not cancelled with it.
    spares_children: bool = False
    #: What receives its items, if it is a generator.
    stream: Stream | None = None
    #: The work that submitted it: cancelled with it.
    parent: Any = None


class Call(Task, eq=False):
    """One call of an actor's method."""

    number: int = -1
    callee: Any = None
    method: str = ""
    #: The reference that keeps the actor alive while this is open.
    handle: Ref | None = None


class Submitter:
    """All tasks of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pools: dict[tuple[Any, ...], KeyPool] = {}
        self._by_key: dict[int, KeyPool] = {}
        self._functions: dict[tuple[str, int], Function] = {}
        #: Tasks with references among their arguments, on their way to the loop.
        self._intake: list[Task] = []
        #: Tasks and calls that are not done.
        self.pending: dict[int, Task] = {}
        #: Those that wait for arguments.
        self._waiting: dict[int, Task] = {}

    # --- user code ---------------------------------------------------------------------------------

    def pool(self, resources: m.Resources, runtime_env: str) -> KeyPool:
        key = (*sorted(resources.items()), runtime_env)
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = KeyPool(len(self.pools) + 1, resources, runtime_env)
            self._by_key[pool.key] = pool
        return pool

    def function(self, name: str, max_calls: int) -> Function:
        key = (name, max_calls)
        if key not in self._functions:
            self._functions[key] = Function(len(self._functions) + 1, max_calls, Durations())
        return self._functions[key]

    def submit(self, task: Task) -> None:
        """Commit a new task."""
        self.register(task)
        pool = pool_of(task)
        if task.arguments:
            self._intake.append(task)
            self._process.wake()
            return
        if pool.idle and not pool.queue and self._send_directly(pool, task):
            return
        pool.queue.append(task)
        self._process.wake()

    def register(self, task: Task) -> None:
        """A new task or call."""
        self.pending[task.seq] = task
        if task.held and task.extra is None:
            task.extra = _REFERENCES
        for entry in task.entries:
            entry.task = task

    def _send_directly(self, pool: KeyPool, task: Task) -> bool:
        for slot in list(pool.idle):
            connection, peer, devices = slot.worker
            if devices or task.function.index not in peer.functions:
                continue
            connection.send(m.Tasks(slot.lease, [m.TaskSpec(task.seq, task.function.index, task.payload, task.extra)]))
            pool.sent_directly(slot, task)
            pool.idle.remove(slot)
            return True
        return False

    # --- the loop: filling workers --------------------------------------------------------------------

    def dispatch(self) -> None:
        """Once a turn."""
        intake, self._intake = self._intake, []
        for task in intake:
            self._admit(task)
        for pool in self._by_key.values():
            if pool.queue:
                self._fill(pool)

    def _admit(self, task: Task) -> None:
        if task.cancelled:  # Before it came here.
            self._process.cancels.end_unsent(task)
            return
        missing = [ref.entry for ref in task.arguments if not ref.entry.ready]
        task.waiting = len(missing)
        if not missing:
            self._enqueue(task)
            return
        self._waiting[task.seq] = task

        def arrived() -> None:
            task.waiting -= 1
            if not task.waiting and self._waiting.pop(task.seq, None) is not None:
                self._enqueue(task)

        for entry in missing:
            self._process.values.subscribe(entry, arrived)

    def _enqueue(self, task: Task) -> None:
        """All arguments are ready: pass their values on, or their error."""
        arguments = resolve(task)
        if arguments is None:
            self.finish_with(task, "argument failed")
            return
        extra = task.extra or m.TaskExtra()
        task.extra = msgspec.structs.replace(extra, arguments=arguments, attempt=task.attempt)
        pool_of(task).queue.append(task)
        self._fill(pool_of(task))

    def _fill(self, pool: KeyPool) -> None:
        for slot in list(pool.slots.values()):
            if not pool.queue:
                break
            if not slot.draining:
                self._give(pool, slot)
        wanted = pool.should_request()
        if wanted is not None:
            label = f"key{pool.key}"
            wish = m.RequestLeases(pool.key, wanted, pool.seen, pool.resources, pool.runtime_env, label)
            self._process.node.send(wish)
        if pool.recall_timer is None and pool.has_backlog():
            pool.recall_timer = self._process.later(RECALL_AFTER_S, lambda: self._recall(pool))

    def _give(self, pool: KeyPool, slot: Slot) -> None:
        batch = pool.take(slot)
        if not batch:
            return
        if slot in pool.idle:
            pool.idle.remove(slot)
        connection, peer, devices = slot.worker
        functions, specs = [], []
        for task in batch:
            function = task.function
            if function.index not in peer.functions:
                peer.functions.add(function.index)
                functions.append(m.FunctionDef(function.index, "f", b"", function.max_calls))
            extra = msgspec.structs.replace(task.extra or m.TaskExtra(), devices=devices) if devices else task.extra
            specs.append(m.TaskSpec(task.seq, function.index, task.payload, extra))
        connection.send(m.Tasks(slot.lease, specs, functions))

    # --- the loop: results ------------------------------------------------------------------------------

    def on_results(self, connection: End, message: m.Results) -> None:
        process = self._process
        peer: Peer = connection.peer
        if message.borrows is not None:
            process.references.borrowed(peer, message.borrows)
        for result in message.results:
            found = self._slot_of(peer, result.seq)
            if found is None:
                process.references.unwanted(peer, result)
                continue  # Ended by other means: recalled, or its worker given up.
            pool, slot = found
            task = slot.running.pop(result.seq)
            slot.answered += 1
            task.durations.window.append(result.duration_us)
            task.durations.update()
            self.take_result(peer, task, result)
            slot.progress += 1
            slot.blocked = False
            if not slot.running:
                self._became_idle(pool, slot)
            if pool.queue:
                self._fill(pool)

    def _slot_of(self, peer: Peer, seq: int) -> tuple[KeyPool, Slot] | None:
        return next(((pool, slot) for pool, slot in peer.slots.values() if seq in slot.running), None)

    def take_result(self, peer: Peer, task: Task, result: m.Result) -> None:
        """The answer to a task or a call."""
        extra = result.extra or m.ResultExtra()
        process = self._process
        entries: list[Entry | None] = list(task.entries)
        if task.cancelled and all(entry is None or entry.ready for entry in entries):
            entries = [None for _ in entries]  # Their waiters have been told (CANCEL).
        if extra.handover:
            process.references.drain()
            process.references.result_arrived(peer, extra.handover, list(zip(entries, extra.contained, strict=True)))
        if extra.error:
            self.finish_with(task, load(result.blob).error, extra.retriable)
            return
        if task.stream is not None:
            failure = task.stream.finish(task, extra.items)
            if failure:
                self.finish_with(task, failure)
            else:
                self._done(task, "stream")
            return
        blobs = extra.blobs or [result.blob]
        for index, entry in enumerate(entries):
            if entry is None:
                continue
            entry.size = extra.stored[index] if extra.stored else 0
            entry.blob = None if entry.size else blobs[index]
            if not entry.size and task.attempt:
                process.values.forget_stored(entry.id)  # An attempt that died may have left a large value.
            process.oracle.made(process, entry, extra.contained[index] if extra.contained else [])
            self.publish(entry)
        self._done(task, "result")

    def publish(self, entry: Entry) -> None:
        """The value is set. If its last reference went while it was pending, it goes now."""
        entry.task = None
        self._process.values.ready(entry)
        if entry.alive is None and (entry.book is None or getattr(entry.book, "freed", False)):
            self._process.values.release(entry)

    def finish_with(self, task: Task, error: str, retriable: bool = False) -> None:
        """The task raised, or cannot run."""
        if retriable and task.retries_errors and task.retries_left and not task.cancelled:
            self._process.oracle.retried(self._process, task)
            self._retry(task)
            return
        for entry in task.entries:
            if task.attempt:
                self._process.values.forget_stored(entry.id)  # An attempt that died may have left its result.
            if not entry.ready:
                entry.blob, entry.error = dump(Value(0, error=error)), True
                self.publish(entry)
        if task.stream is not None:
            task.stream.fail(task, error)
        self._done(task, error)

    def _done(self, task: Task, how: str) -> None:
        del self.pending[task.seq]
        self._process.oracle.ended(self._process, task, how)
        held, task.held, task.arguments = task.held, [], []
        if isinstance(task, Call) and task.handle is not None:
            held, task.handle = [*held, task.handle], None
        for ref in held:
            ref.drop()

    def _retry(self, task: Task) -> None:
        task.retries_left -= 1
        self.again(task)
        if isinstance(task, Call):
            self._process.actors.retry(task)
            return
        pool = pool_of(task)
        pool.queue.append(task)
        self._fill(pool)

    def again(self, task: Task) -> None:
        """The next attempt of a task or call."""
        task.attempt += 1
        task.extra = msgspec.structs.replace(task.extra or m.TaskExtra(), attempt=task.attempt)
        if task.stream is not None:
            task.stream.replay(task)

    # --- the loop: what cancels need to know ------------------------------------------------------------

    def stop_waiting(self, task: Task) -> bool:
        """Whether the task waited for arguments; it does not any more."""
        return self._waiting.pop(task.seq, None) is not None

    def find_running(self, task: Task) -> tuple[End, Peer, int] | None:
        """Where the task was sent, if it was."""
        for slot in pool_of(task).slots.values():
            if task.seq in slot.running:
                return slot.worker[0], slot.worker[1], slot.lease
        return None

    def find_sent(self, connection: End, seq: int) -> Task | None:
        """The task that was sent on this connection and is not answered."""
        peer: Peer = connection.peer
        if peer.callee is not None:
            call: Task | None = peer.callee.calls.unanswered.get(seq)
            return call
        found = self._slot_of(peer, seq)
        return found[1].running[seq] if found is not None else None

    def _became_idle(self, pool: KeyPool, slot: Slot) -> None:
        if slot.draining:
            self._return(pool, slot)
            return
        if slot not in pool.idle and not slot.blocked:
            pool.idle.append(slot)
        if pool.linger_timer is None:
            pool.linger_timer = self._process.later(config.LEASE_LINGER_S, lambda: self._linger(pool))

    def _recall(self, pool: KeyPool) -> None:
        pool.recall_timer = None
        for slot, keep in pool.recalls():
            slot.worker[0].send(m.Recall(slot.lease, keep))
        self._fill(pool)

    def on_recalled(self, connection: End, message: m.Recalled) -> None:
        found = connection.peer.slots.get(message.lease)
        if found is None:
            return
        pool, slot = found
        pool.recalled(slot, message.seqs)
        self._process.cancels.sweep(pool)
        slot.blocked = message.cause == "blocked"
        if message.cause != "recalled":
            slot.draining = message.cause in ("revoked", "retired")
            slot.discard = message.cause == "retired"
        if not slot.running:
            self._became_idle(pool, slot)
        self._fill(pool)

    # --- the loop: leases -----------------------------------------------------------------------------------

    def on_granted(self, _connection: End, message: m.LeaseGranted) -> None:
        process = self._process
        pool = self._by_key[message.key]
        pool.seen += 1
        peer = process.peer(message.worker)
        connection = process.connect(peer)
        if connection is None:
            pool.requested = max(0, pool.requested - 1)
            process.node.send(m.ReturnLease(message.lease, True))
            self._fill(pool)
            return
        slot = pool.granted(message.lease, (connection, peer, message.devices))
        peer.slots[message.lease] = (pool, slot)
        self._fill(pool)
        if not slot.running:
            self._became_idle(pool, slot)

    def on_refused(self, _connection: End, message: m.LeaseRefused) -> None:
        if message.infeasible:
            return
        pool = self._by_key[message.key]
        pool.requested = 0
        while pool.queue:
            self.finish_with(pool.queue.popleft(), "environment")

    def on_revoked(self, _connection: End, message: m.LeaseRevoked) -> None:
        """The node has the lease back: whatever we still count there was bounced or will never run."""
        peer = next((each for each in self._process.peers.values() if message.lease in each.slots), None)
        if peer is None:
            return
        pool, slot = peer.slots[message.lease]
        # Answers on their way must still find their slot.
        self._forget(pool, slot)
        slot.worker[0].drain()
        if slot.worker[0].ended():  # Its death is about to be told; or it lives, and its answers are lost.
            self._process.later(DEATH_NEWS_S, lambda: self._give_up(peer, message.lease))
            return
        peer.slots.pop(message.lease, None)
        pool.queue.extendleft(reversed(pool.lost(slot)))
        self._process.cancels.sweep(pool)
        self._fill(pool)

    def _forget(self, pool: KeyPool, slot: Slot) -> None:
        slot.draining = True
        if slot in pool.idle:
            pool.idle.remove(slot)

    def _return(self, pool: KeyPool, slot: Slot) -> None:
        self._forget(pool, slot)
        pool.slots.pop(slot.lease, None)
        slot.worker[1].slots.pop(slot.lease, None)
        self._process.node.send(m.ReturnLease(slot.lease, slot.discard))

    def _linger(self, pool: KeyPool) -> None:
        """Return the leases that have been idle since the last look."""
        pool.linger_timer = None
        keep = False
        for slot in list(pool.slots.values()):
            if slot.running or slot.draining:
                continue
            if slot.lingered == slot.progress:
                self._return(pool, slot)
            else:
                slot.lingered = slot.progress
                keep = True
        if keep:
            pool.linger_timer = self._process.later(config.LEASE_LINGER_S, lambda: self._linger(pool))

    # --- the loop: deaths -------------------------------------------------------------------------------------

    def connection_closed(self, peer: Peer) -> None:
        """A worker's connection is gone. Its death, if it is that, comes from the node (LIVENESS)."""
        if peer.callee is not None:
            return
        for pool, slot in list(peer.slots.values()):
            self._forget(pool, slot)
        if peer.slots:
            self._process.later(DEATH_NEWS_S, lambda: self._give_up(peer))

    def _give_up(self, peer: Peer, over: int = 0) -> None:
        """A worker without a connection lives on: the node ends it; if our lease is `over`, tasks count as tried."""
        if not peer.dead and over in peer.slots:
            pool, slot = peer.slots.pop(over)
            for task in pool.lost(slot):
                self._process.oracle.out_of_reach(self._process, task)
                self._survive(task)
        elif not peer.dead:
            for lease in peer.slots:
                self._process.node.send(m.ReturnLease(lease, True, peer.name))

    def worker_died(self, peer: Peer, mark: tuple[int, int]) -> None:
        """Retry or fail what the dead worker held; `mark`: the lease of its last task, how many of that had begun."""
        for pool, slot in list(peer.slots.values()):
            self._forget(pool, slot)
            tasks = pool.lost(slot)
            begun = max(0, mark[1] - slot.answered) if mark[0] == slot.lease else 0
            if mark[0] > slot.lease:
                begun = len(tasks)  # It was revoked, and others have the worker: any of them may have begun.
            for task in tasks[:begun]:
                self._survive(task)
            pool.queue.extendleft(reversed(tasks[begun:]))
            self._process.cancels.sweep(pool)
            self._fill(pool)
        peer.slots.clear()

    def _survive(self, task: Task) -> None:
        """A task that had begun when its worker died: try again, or fail it."""
        if task.retries_left and not task.cancelled:
            self._retry(task)
            return
        for entry in task.entries:
            self._process.values.forget_stored(entry.id)
        self.finish_with(task, "cancelled" if task.cancelled else "crashed")

    def validate(self) -> None:
        for pool in self._by_key.values():
            pool.validate()


def pool_of(task: Task) -> KeyPool:
    assert task.pool is not None
    return task.pool


def resolve(task: Any) -> list[m.Argument] | None:
    """The wire form of ready arguments; None if one of them is an error."""
    arguments = []
    for where, ref in enumerate(task.arguments):
        entry = ref.entry
        if entry.error:
            return None
        arguments.append(m.Argument(where, entry.id, entry.blob, entry.blob is None))
    return arguments
