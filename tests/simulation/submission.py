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
from tests.simulation.objects import Entry, Ref, Value, dump

if TYPE_CHECKING:
    from tests.simulation.network import End
    from tests.simulation.process import Peer, Process
    from tests.simulation.world import Timer

#: As in moray.runtime.submission.
RECALL_AFTER_S: Final = 0.005
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
        super().__init__()
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
    pool: KeyPool
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


class Submitter:
    """All tasks of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pools: dict[tuple[Any, ...], KeyPool] = {}
        self._by_key: dict[int, KeyPool] = {}
        self._functions: dict[tuple[str, int], Function] = {}
        #: Tasks with references among their arguments, on their way to the loop.
        self._intake: list[Task] = []
        #: Tasks that are not done.
        self.pending: dict[int, Task] = {}

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
        self.pending[task.seq] = task
        if task.held and task.extra is None:
            task.extra = _REFERENCES
        if task.arguments:
            self._intake.append(task)
            self._process.wake()
            return
        if task.pool.idle and not task.pool.queue and self._send_directly(task.pool, task):
            return
        task.pool.queue.append(task)
        self._process.wake()

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
        missing = [ref.entry for ref in task.arguments if not ref.entry.ready]
        task.waiting = len(missing)
        if not missing:
            self._enqueue(task)

        def arrived() -> None:
            task.waiting -= 1
            if not task.waiting:
                self._enqueue(task)

        for entry in missing:
            self._process.values.subscribe(entry, arrived)

    def _enqueue(self, task: Task) -> None:
        """All arguments are ready: pass their values on, or their error."""
        arguments = []
        for where, ref in enumerate(task.arguments):
            entry = ref.entry
            if entry.error:
                self._finish_with(task, dump(Value(0, error="argument failed")), False)
                return
            arguments.append(m.Argument(where, entry.id, entry.blob, entry.blob is None))
        extra = task.extra or m.TaskExtra()
        task.extra = msgspec.structs.replace(extra, arguments=arguments, attempt=task.attempt)
        task.pool.queue.append(task)
        self._fill(task.pool)

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
            found = next(((p, s) for p, s in peer.slots.values() if result.seq in s.running), None)
            if found is None:
                continue  # Ended by other means: recalled, or its worker given up.
            pool, slot = found
            task = slot.running.pop(result.seq)
            task.durations.window.append(result.duration_us)
            task.durations.update()
            self._take_result(peer, task, result)
            slot.progress += 1
            slot.blocked = False
            if not slot.running:
                self._became_idle(pool, slot)
            if pool.queue:
                self._fill(pool)

    def _take_result(self, peer: Peer, task: Task, result: m.Result) -> None:
        extra = result.extra or m.ResultExtra()
        if extra.error:
            self._finish_with(task, result.blob, extra.retriable)
            return
        process = self._process
        blobs = extra.blobs or [result.blob]
        if extra.handover:
            process.references.drain()
            pairs = list(zip(task.entries, extra.contained, strict=True))
            process.references.result_arrived(peer, extra.handover, pairs)
        for index, entry in enumerate(task.entries):
            entry.size = extra.stored[index] if extra.stored else 0
            entry.blob = None if entry.size else blobs[index]
            process.oracle.made(process, entry, extra.contained[index] if extra.contained else [])
            self._publish(entry)
        self._done(task, "result")

    def _publish(self, entry: Entry) -> None:
        """The value is set. If its last reference went while it was pending, it goes now."""
        self._process.values.ready(entry)
        if entry.alive is None and (entry.book is None or getattr(entry.book, "freed", False)):
            self._process.values.release(entry)

    def _finish_with(self, task: Task, error: bytes, retriable: bool) -> None:
        if retriable and task.retries_errors and task.retries_left:
            self._process.oracle.retried(self._process, task.seq)
            self._retry(task)
            return
        for entry in task.entries:
            entry.blob, entry.error = error, True
            self._publish(entry)
        self._done(task, "error")

    def _done(self, task: Task, how: str) -> None:
        del self.pending[task.seq]
        self._process.oracle.ended(self._process, task.seq, how)
        held, task.held, task.arguments = task.held, [], []
        for ref in held:
            ref.drop()

    def _retry(self, task: Task) -> None:
        task.retries_left -= 1
        task.attempt += 1
        task.extra = msgspec.structs.replace(task.extra or m.TaskExtra(), attempt=task.attempt)
        task.pool.queue.append(task)
        self._fill(task.pool)

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
            self._finish_with(pool.queue.popleft(), dump(Value(0, error="environment")), False)

    def on_revoked(self, _connection: End, message: m.LeaseRevoked) -> None:
        """The node has the lease back: whatever we still count there was bounced or will never run."""
        for peer in self._process.peers.values():
            found = peer.slots.get(message.lease)
            if found is not None:
                pool, slot = found
                # Answers on their way must still find their slot.
                slot.worker[0].drain()
                peer.slots.pop(message.lease, None)
                self._forget(pool, slot)
                pool.queue.extendleft(reversed(pool.lost(slot)))
                self._fill(pool)
                return

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
        """A worker's connection is gone; without it its answers are lost: the node ends it, and tells how."""
        for pool, slot in list(peer.slots.values()):
            self._forget(pool, slot)
            if not peer.dead:
                self._process.node.send(m.ReturnLease(slot.lease, True))

    def worker_died(self, peer: Peer, mark: tuple[int, int]) -> None:
        """Retry or fail what the dead worker held; `mark`: lease and seq of the task that it began last."""
        for pool, slot in list(peer.slots.values()):
            self._forget(pool, slot)
            tasks = pool.lost(slot)
            ran = [i for i, task in enumerate(tasks) if task.seq == mark[1]] if mark[0] == slot.lease else []
            begun = ran[0] + 1 if ran else 0
            for task in tasks[:begun]:
                self._survive(task)
            pool.queue.extendleft(reversed(tasks[begun:]))
            self._fill(pool)
        peer.slots.clear()

    def _survive(self, task: Task) -> None:
        """A task that had begun when its worker died: try again, or fail it."""
        if task.retries_left:
            self._retry(task)
        else:
            self._finish_with(task, dump(Value(0, error="crashed")), False)

    def validate(self) -> None:
        for pool in self._by_key.values():
            pool.validate()
