"""Tasks from ``.remote()`` to their results: the owner's side.

**The submitting thread** builds a :class:`Task` nobody else knows, and commits it in one step:

* the usual way, ``pool.queue.append(task)``; the loop sends it in a batch;
* if a leased worker is idle and nothing is queued, ``connection.send_frame(frame, task)``: the task goes
  out without a change of thread, and the loop books it when it finds the entry in ``settled``;
* if it has references among its arguments, ``intake.append(task)``: the loop waits for those first.

**The loop** owns everything else: it fills workers (:mod:`moray.core.leases` decides), takes results,
retries, asks the node for leases, lets them linger, and recalls what is stuck.

Where a task is: waiting (for arguments) → ``pool.queue`` → ``slot.running`` → done. A task that was sent is
ended only by its worker's answer or its worker's death (CANCEL, LEASE).
"""

from __future__ import annotations

from _thread import RLock
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec

from moray import config, exceptions
from moray.core.leases import Durations, Slot
from moray.ids import tag_of
from moray.object_ref import Alive, Entry, ObjectRef, new_ref
from moray.protocol import messages as m
from moray.protocol.connection import encode_frame
from moray.runtime.arguments import Prepared, resolve
from moray.runtime.marks import read_mark
from moray.runtime.rerun import runs_again, shares, take_values
from moray.runtime.strategies import locality_of
from moray.runtime.streams import Streams, make_stream
from moray.runtime.task_errors import crashed, inherited
from moray.runtime.tasks import Call, Function, KeyPool, Task, TaskSettings
from moray.runtime.values import dump_error

if TYPE_CHECKING:
    from moray.core.strategies import Strategy
    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Peer, Runtime

#: After the loss of a connection, how long the node's word about the worker's death may take.
DEATH_NEWS_S = 1.0
#: Tells the worker that references are among or inside the arguments.
_REFERENCES = m.TaskExtra()
#: A worker without an answer for so long is looked at for recalls.
RECALL_AFTER_S = 0.005


class Submitter:
    """The owner's side of all its tasks."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: Tasks with references among their arguments, on their way to the loop.
        self.intake: deque[Task] = deque()
        self.pools: dict[tuple[Any, ...], KeyPool] = {}
        self._by_key: dict[int, KeyPool] = {}
        self._keys = count(1)
        self._pools_lock = RLock()
        #: seq → task of those that wait for arguments.
        self._waiting_tasks: dict[int, Task] = {}
        self.streams = Streams(runtime)
        runtime.handlers |= {
            m.Results: self._on_results,
            m.Recalled: self._on_recalled,
            m.LeaseGranted: self._on_granted,
            m.LeaseRefused: self._on_refused,
            m.LeaseRevoked: self._on_revoked,
        }

    # --- submitting: any thread ------------------------------------------------------------------------

    def pool(self, resources: m.Resources, runtime_env: str, label: str, strategy: Strategy | None = None) -> KeyPool:
        """The pool of a scheduling key."""
        key = (tuple(sorted(resources.items())), runtime_env, strategy)
        with self._pools_lock:
            pool = self.pools.get(key)
            if pool is None:
                made = KeyPool(next(self._keys), resources, runtime_env, label, self._useful(resources), strategy)
                self._by_key[made.key] = made  # First: what can be found in `pools`, interrupted or not, is served.
                pool = self.pools.setdefault(key, made)
        return pool

    def _useful(self, resources: m.Resources) -> int:
        """How many leases of these resources the session could give at once."""
        if self._runtime.remote is not None:
            return 1000  # Other machines have what this one has not, and may come later.
        total = self._runtime.welcome.resources
        amounts = [total.get(name, 0) // amount for name, amount in resources.items() if amount]
        return max(1, min(amounts, default=1000))

    def submit(  # noqa: C901, PLR0912 - the hottest path there is: calls cost more than branches.
        self, function: Function, settings: TaskSettings, prepared: Prepared | None
    ) -> Any:
        """Submit a task; returns its ObjectRef, a list of them, None, or an ObjectRefGenerator."""
        runtime = self._runtime
        seq = next(runtime.sequence)
        entries: list[Entry] | None = None
        entry: Entry | None = None
        if settings.num_returns == 1:
            entry = Entry(runtime.origin, seq << 32)
            # make_ref(), spelled out: this is the hottest path there is.
            returned: Any = new_ref(ObjectRef)
            returned._entry = entry
            entry.alive = alive = Alive(returned, runtime.note_event)
            alive.entry = entry
            alive.counted = False
        else:
            entries = [Entry(runtime.origin, seq << 32 | index) for index in range(settings.num_returns)]
            returned = [runtime.make_ref(each) for each in entries] or None
        task = Task(
            seq, function, function.durations, b"", entry, entries, settings, settings.max_retries, settings.extra
        )
        if runtime.kind == "worker":
            task.parent = runtime.current_work() if runtime.concurrent else runtime.work
        if prepared is not None:
            task.payload = prepared.payload
            if prepared.held is not None:
                task.held = prepared.held
                task.arguments = prepared.arguments
                if task.extra is None:
                    task.extra = _REFERENCES
        if settings.streaming:
            returned = make_stream(runtime, task, returned)
        if entry is not None:
            entry.task = task
        else:
            for each in entries or ():
                each.task = task
        if task.arguments is not None:
            self.intake.append(task)
            runtime.wake()
            return returned
        pool = settings.pool
        if pool.idle and not pool.queue and not pool.inside():
            with pool.lock:
                if self._send_directly(pool, task):
                    return returned
        pool.queue.append(task)
        if pool.hungry:
            runtime.wake()
        return returned

    def _send_directly(self, pool: KeyPool, task: Task) -> bool:
        """Send `task` to an idle worker that knows its function. The caller holds the pool's lock."""
        # The one that ran last first: its caches are warm.
        for slot in reversed(tuple(pool.idle)):
            connection, peer, devices = slot.worker
            if devices or connection.out or connection.settled or task.function.index not in peer.functions:
                continue
            if not pool.admits(slot, task):
                return False
            spec = m.TaskSpec(task.seq, task.function.index, task.payload, task.extra)
            if connection.send_frame(encode_frame(m.Tasks(slot.lease, [spec])), (slot, task)):
                return True
        return False

    # --- the loop: filling workers -----------------------------------------------------------------------

    def dispatch(self) -> None:
        """Once a turn: admit, fill, and tell the node what is wanted."""
        while self.intake:
            self._admit(self.intake.popleft())
        if self._runtime.ended is not None and any(pool.queue for pool in self._by_key.values()):
            self.session_ended(self._runtime.ended)  # Submitted while the session ended.
        for pool in list(self._by_key.values()):
            pool.hungry = True
            if pool.queue:
                self._fill(pool)

    def _admit(self, task: Task) -> None:
        """Wait for what is missing among a task's arguments, then queue it."""
        if task.cancelled:  # Before it came here.
            self._runtime.cancels.end_unsent(task)
            return
        missing = 0
        for _where, ref in task.arguments or ():
            if not ref._entry.ready:
                missing += 1
        if not missing:
            self._enqueue(task)
            return
        task.waiting = missing
        self._waiting_tasks[task.seq] = task

        def arrived() -> None:
            task.waiting -= 1
            if task.waiting == 0 and self._waiting_tasks.pop(task.seq, None) is not None:
                self._enqueue(task)

        for _where, ref in task.arguments or ():
            if not ref._entry.ready:
                self._runtime.values.subscribe(ref._entry, arrived)

    def _enqueue(self, task: Task) -> None:
        """All arguments are ready: pass their values on, or their error."""
        arguments, failed = resolve(task.arguments or [], self._runtime.values.places)
        if failed is not None:
            for entry in task.entries if task.entries is not None else [task.entry]:
                if entry is not None:
                    self._runtime.references.inherit(entry, failed)
            failed._entry.seen = True
            self.finish_with(task, inherited(task.options.name, failed._entry.blob or b""), False)
            return
        extra = task.options.extra or m.TaskExtra()
        task.extra = msgspec.structs.replace(extra, arguments=arguments, attempt=task.attempt)
        pool = task.options.pool
        pool.queue.append(task)
        self._fill(pool)

    def _fill(self, pool: KeyPool, only: Slot | None = None) -> None:
        """Give the pool's workers (or `only` this one) what they shall have; ask for more if that is worth it."""
        with pool.lock:
            for slot in list(pool.slots.values()) if only is None else (only,):
                if not pool.queue:
                    break
                self.settle(slot.worker[0])
                if not slot.draining:
                    self._give(pool, slot)
            wanted = pool.should_request()
        if wanted is not None:
            self._request(pool, wanted)
        if pool.recall_timer is None and pool.has_backlog():
            pool.recall_timer = self._runtime.reactor.call_later(RECALL_AFTER_S, lambda: self._recall(pool))
        # An idle slot counts too: a task that came after the look at the queue would wait for the heartbeat.
        with pool.lock:
            more = (bool(pool.idle) or len(pool.slots) + pool.requested < pool.useful) and not pool.packed()
            pool.hungry = more or not pool.queue

    def _give(self, pool: KeyPool, slot: Slot) -> None:
        """Send `slot` what the core takes from the queue for it. Under the pool's lock."""
        batch = pool.take(slot)
        if not batch:
            return
        if slot in pool.idle:
            pool.idle.remove(slot)
        connection, peer, devices = slot.worker
        known = peer.functions
        functions = []
        specs = []
        for task in batch:
            function = task.function
            if function.index not in known:
                known.add(function.index)
                functions.append(m.FunctionDef(function.index, function.name, function.blob, function.max_calls))
            extra = task.extra
            if devices:
                extra = msgspec.structs.replace(extra or m.TaskExtra(), devices=devices)
            specs.append(m.TaskSpec(task.seq, function.index, task.payload, extra))
        connection.send(m.Tasks(slot.lease, specs, functions))

    def settle(self, connection: Connection) -> None:
        """Book tasks that user threads sent directly. Loop only, before anything is decided about the slot."""
        if connection.out:
            # An answer can be here before the thread that sent the task has moved its entry: wait for it.
            connection.flush()
        settled = connection.settled
        while settled:
            slot, task = record = settled.popleft()[2]
            if type(slot) is not Slot:
                self._runtime.actors.settle(record)
                continue
            pool = task.options.pool
            pool.sent_directly(slot, task)
            if slot in pool.idle:
                pool.idle.remove(slot)

    def _request(self, pool: KeyPool, count: int) -> None:
        wish = m.RequestLeases(pool.key, count, pool.seen, pool.resources, pool.runtime_env, pool.label, pool.strategy)
        if count and self._runtime.welcome.credentials:  # There are other machines.
            wish.locality = pool.home() or locality_of(pool.queue, tag_of(self._runtime.process))
        self._runtime.node.send(wish)

    # --- the loop: results ------------------------------------------------------------------------------------

    def _on_results(self, connection: Connection, message: m.Results) -> None:
        self.settle(connection)
        peer: Peer = connection.peer
        if message.borrows is not None:
            self._runtime.references.drain()
            self._runtime.references.borrowed(peer, message.borrows)
        values = self._runtime.values
        touched = None
        slot: Slot | None = None
        running: dict[int, Task] = {}
        durations: Durations | None = None
        for result in message.results:
            task = running.pop(result.seq, None)
            if task is None:
                found = self._slot_of(peer, result.seq)
                if found is None:
                    # The task was ended by other means: recalled, or its worker given up.
                    self._runtime.references.unwanted(peer, result)
                    continue
                if slot is not None and touched is not None:
                    self._answered(touched, slot)
                slot = found
                running = slot.running
                task = running.pop(result.seq)
                touched = task.options.pool
            if slot is not None:
                slot.answered += 1
            entry = task.entry
            if task.durations is not durations:
                if durations is not None:
                    durations.update()
                durations = task.durations
            durations.window.append(result.duration_us)
            if result.extra is None and entry is not None:
                entry.task = None
                entry.blob = result.blob
                entry.ready = True
                if entry.waiters is not None:
                    values.notify(entry)
            else:
                durations.update()
                self.take_special(peer, task, result)
        if slot is None or touched is None or durations is None:
            return
        durations.update()
        self._answered(touched, slot)

    def _answered(self, pool: KeyPool, slot: Slot) -> None:
        """A worker has sent results: it may be idle now, and gets more."""
        slot.progress += 1
        slot.blocked = False
        if not slot.running:
            self._became_idle(pool, slot)
        if pool.queue:
            # The others have what they shall have: they were filled when the queue grew, or answered themselves.
            self._fill(pool, slot)

    # --- the loop: what cancels need to know -------------------------------------------------------------------

    def stop_waiting(self, task: Task) -> bool:
        """Whether the task waited for arguments; it does not any more."""
        return self._waiting_tasks.pop(task.seq, None) is not None

    def find_running(self, pool: KeyPool, task: Task) -> tuple[Connection, Peer, int] | None:
        """Where the task was sent, if it was: (connection, peer, lease)."""
        for slot in pool.slots.values():
            self.settle(slot.worker[0])
            if task.seq in slot.running:
                return slot.worker[0], slot.worker[1], slot.lease
        return None

    def find_sent(self, connection: Connection, seq: int) -> Task | None:
        """The task that was sent on this connection and is not answered."""
        self.settle(connection)
        peer: Peer = connection.peer
        if peer.callee is not None:
            call: Task | None = peer.callee.calls.unanswered.get(seq)
            return call
        slot = self._slot_of(peer, seq)
        return slot.running[seq] if slot is not None else None

    def pending_tasks(self) -> list[Task]:
        """All that are not answered."""
        tasks = [*self.intake, *self._waiting_tasks.values()]
        for pool in list(self._by_key.values()):  # Any thread adds to it.
            tasks += list(pool.queue)
            for slot in pool.slots.values():
                self.settle(slot.worker[0])
                tasks += slot.running.values()
        return tasks

    def _slot_of(self, peer: Peer, seq: int) -> Slot | None:
        for _pool, slot in peer.slots.values():
            if seq in slot.running:
                found: Slot = slot
                return found
        return None

    def _became_idle(self, pool: KeyPool, slot: Slot) -> None:
        """A worker has nothing left: offer it to user threads, give it back if it drains, look for stuck others."""
        if slot.draining:
            self._return(pool, slot, slot.discard)
            return
        if slot not in pool.idle and not slot.blocked:
            pool.idle.append(slot)
        if pool.linger_timer is None:
            pool.linger_timer = self._runtime.reactor.call_later(config.LEASE_LINGER_S, lambda: self._linger(pool))

    def _recall(self, pool: KeyPool) -> None:
        """Ask back what waits behind a worker that makes no progress while another is idle."""
        pool.recall_timer = None
        for slot, keep in pool.recalls():
            slot.worker[0].send(m.Recall(slot.lease, keep))
        self._fill(pool)

    def _on_recalled(self, connection: Connection, message: m.Recalled) -> None:
        self.settle(connection)
        found = connection.peer.slots.get(message.lease)
        if found is None:
            return
        pool, slot = found
        for task in (tasks := pool.recalled(slot, message.seqs)):
            task.waiting = 0
        self._runtime.cancels.given_back(pool, tasks)
        slot.blocked = message.cause == "blocked"
        if message.cause == "forgotten":
            connection.peer.functions.clear()  # They travel again with their next tasks.
        if message.cause in ("revoked", "retired"):
            slot.draining = True
            slot.discard = slot.discard or message.cause == "retired"
        if not slot.running:
            self._became_idle(pool, slot)
        self._fill(pool)

    def take_special(self, peer: Peer, task: Task, result: m.Result) -> None:
        """A result that is an error, has several values, is in the store, or contains references."""
        extra = result.extra or m.ResultExtra()
        runtime = self._runtime
        entries: list[Entry | None] = list(task.entries) if task.entries is not None else [task.entry]
        if task.cancelled and all(entry is None or entry.ready for entry in entries):
            entries = [None for _ in entries]  # Their waiters have been told (CANCEL).
        if extra.handover:
            runtime.references.drain()
            pairs = list(zip(entries, shares(extra, len(entries)), strict=True)) or [(None, extra.contained[0])]
            runtime.references.result_arrived(peer, extra.handover, pairs)
        if extra.error and (not extra.blobs or runs_again(task, extra.retriable)):
            if not extra.lost or not runtime.recovery.argument_lost(task, extra.lost):
                if task.stream is not None:
                    task.stream.raised = extra.items >= 0
                if extra.stored:
                    runtime.values.note_stray(task, tag_of(peer.origin.process))
                self.finish_with(task, result.blob, extra.retriable)
            return
        if task.stream is not None:
            task.stream.finish(task, extra.items)
            runtime.recovery.ended(task)
            return
        take_values(runtime, task, entries, result.blob, extra, tag_of(peer.origin.process))

    def publish(self, entry: Entry) -> None:
        """The entry's value is set. If its last reference went while it was pending, it goes now."""
        entry.task = None
        self._runtime.values.ready(entry)
        if entry.alive is None and (entry.book is None or entry.book.freed):
            self._runtime.values.release(entry)

    def finish_with(self, task: Task, error: bytes, retriable: bool) -> None:
        """The task raised (or its arguments did): retry it if it asked for that, or publish the error."""
        if runs_again(task, retriable):
            self._retry(task)
            return
        self._runtime.recovery.about_to_fail(task)
        if task.entries:
            self._runtime.unfetched.share(list(filter(None, task.entries)))
        elif task.entries is not None and not task.cancelled:
            self._runtime.unfetched.show(error)
        if task.stream is not None:
            task.stream.keep_what_came(task, error)
        # A stream's error is its last item.
        given = task.cancelled or (task.stream is not None and not task.stream.dynamic)
        for entry in task.entries if task.entries is not None else [task.entry]:
            if entry is not None and task.attempt:
                self._runtime.values.forget_stored(entry)  # An attempt that died may have left its result.
            if entry is not None and not entry.ready:
                entry.error = True  # Before the blob: a thread may be reading what was lost (LINEAGE).
                entry.blob = error
                entry.seen = entry.seen or given
                self.publish(entry)
        if task.stream is not None:
            task.stream.fail(task, error)
        self._runtime.recovery.failed(task)

    def _retry(self, task: Task) -> None:
        if task.retries_left > 0:
            task.retries_left -= 1
        task.attempt += 1
        extra = task.extra or m.TaskExtra()
        task.extra = msgspec.structs.replace(extra, attempt=task.attempt)
        if task.stream is not None:
            task.stream.replay(task)
        if isinstance(task, Call):
            self._runtime.actors.retry(task)
            return
        pool = task.options.pool
        pool.queue.append(task)
        self._fill(pool)

    # --- the loop: leases -------------------------------------------------------------------------------------

    def _on_granted(self, _connection: Connection, message: m.LeaseGranted) -> None:
        runtime = self._runtime
        pool = self._by_key[message.key]
        pool.seen += 1
        peer = runtime.peer(message.worker, message.address, message.worker_pid)
        connection = runtime.connect(peer)
        if connection is None:
            # The worker has died since: the node gives another one.
            pool.requested = max(0, pool.requested - 1)
            runtime.node.send(m.ReturnLease(message.lease, True))
            self._fill(pool)
            return
        slot = pool.granted(message.lease, (connection, peer, message.devices))
        peer.slots[message.lease] = (pool, slot)
        self._fill(pool)
        if not slot.running:
            self._became_idle(pool, slot)

    def _on_refused(self, _connection: Connection, message: m.LeaseRefused) -> None:
        pool = self._by_key[message.key]
        pool.refused = message.reason
        error = pool.refusal(message)
        if error is None:
            self._runtime.output.warn(f"task {pool.label}() waits: {message.reason}")
            return
        blob = dump_error(error)
        pool.requested = 0
        self._request(pool, 0)  # The next task asks anew.
        while pool.queue:
            self.finish_with(pool.queue.popleft(), blob, False)

    def _on_revoked(self, _connection: Connection, message: m.LeaseRevoked) -> None:
        """The node has the lease back: whatever we still count there was bounced or will never run."""
        peer = next((each for each in self._runtime.peers.values() if message.lease in each.slots), None)
        if peer is None:
            return
        pool, slot = peer.slots[message.lease]
        # In this order: no thread sends there any more; what was sent is booked; answers count; what is left moves.
        self._forget(pool, slot)
        self._runtime.drain_connection(slot.worker[0])
        self.settle(slot.worker[0])
        if slot.worker[0].ended():  # Its death is about to be told; or it lives, and its answers are lost.
            self._runtime.reactor.call_later(DEATH_NEWS_S, lambda: self._give_up(peer, message.lease))
            return
        peer.slots.pop(message.lease, None)
        self._runtime.cancels.requeue(pool, pool.lost(slot))
        self._fill(pool)

    def _forget(self, pool: KeyPool, slot: Slot) -> None:
        with pool.lock:
            slot.draining = True
            if slot in pool.idle:
                pool.idle.remove(slot)

    def _return(self, pool: KeyPool, slot: Slot, discard: bool = False) -> None:
        """Give a lease back to the node."""
        self._forget(pool, slot)
        connection, peer, _devices = slot.worker
        self.settle(connection)
        if slot.running or connection.out:
            return  # A user's thread was quicker; it drains when that task is done.
        pool.slots.pop(slot.lease, None)
        peer.slots.pop(slot.lease, None)
        self._runtime.node.send(m.ReturnLease(slot.lease, discard))

    def _linger(self, pool: KeyPool) -> None:
        """Return the leases that have been idle since the last look."""
        pool.linger_timer = None
        keep = False
        for slot in list(pool.slots.values()):
            self.settle(slot.worker[0])
            if slot.running:
                continue
            if slot.draining or slot.lingered == slot.progress:
                self._return(pool, slot, slot.discard)
                keep = keep or slot.lease in pool.slots  # Its connection was full.
            else:
                slot.lingered = slot.progress
                keep = True
        if keep:
            pool.linger_timer = self._runtime.reactor.call_later(config.LEASE_LINGER_S, lambda: self._linger(pool))

    # --- the loop: deaths ---------------------------------------------------------------------------------------

    def connection_closed(self, connection: Connection, peer: Peer) -> None:
        """A worker's connection is gone. Its death, if it is that, comes from the node (LIVENESS)."""
        if peer.callee is not None:
            return
        for pool, slot in list(peer.slots.values()):
            self.settle(connection)
            # What user threads committed and nobody sent runs elsewhere.
            while connection.out:
                record = connection.out.popleft()[2]
                if record is not None:
                    pool.sent_directly(slot, record[1])
            self._forget(pool, slot)
        if peer.slots and not self._runtime.closing:
            self._runtime.reactor.call_later(DEATH_NEWS_S, lambda: self._give_up(peer))

    def _give_up(self, peer: Peer, over: int = 0) -> None:
        """A worker without a connection lives on: the node ends it; if our lease is `over`, tasks count as tried."""
        if peer.dead is None and over in peer.slots:
            pool, slot = peer.slots.pop(over)
            death = m.ProcessDied(peer.origin.process, peer.pid, 0, "its answers came no more")
            for task in pool.lost(slot):
                self._survive(task, death, "is out of reach")
        elif peer.dead is None:
            for lease in peer.slots:
                self._runtime.node.send(m.ReturnLease(lease, True, peer.origin.process))

    def worker_died(self, peer: Peer, death: m.ProcessDied) -> None:
        """Retry or fail what the dead worker held."""
        for pool, slot in list(peer.slots.values()):
            self.settle(slot.worker[0])
            self._forget(pool, slot)
            tasks = pool.lost(slot)
            # They were begun in the order in which they were sent; some of those may have been answered.
            lease, count = death.mark or read_mark(self._runtime.session_dir, peer.origin.process)[:2]
            begun = max(0, count - slot.answered) if lease == slot.lease else 0
            if count < 0 or lease > slot.lease:
                begun = len(tasks)  # Its machine is gone, and what it knew; or it has gone on: any may have begun.
            for task in tasks[:begun]:
                self._survive(task, death)
            self._runtime.cancels.requeue(pool, tasks[begun:])
            self._fill(pool)
        peer.slots.clear()

    def _survive(self, task: Task, death: m.ProcessDied, fate: str = "has died") -> None:
        """A task that had begun (or whose result was not sent) when its worker died: try again, or fail it."""
        self._runtime.values.note_stray(task, tag_of(death.process))
        if task.retries_left and not task.cancelled:
            if task.entries is None and task.entry is not None and task.stream is None:
                task.entries, task.entry = [task.entry], None  # Its result is not taken by the short way.
            self._retry(task)
            return
        for entry in task.entries if task.entries is not None else [task.entry]:
            if entry is not None:
                self._runtime.values.forget_stored(entry)
        if task.cancelled:
            self.finish_with(task, self._runtime.cancels.error_blob(task, "its worker was ended"), False)
            return
        error = crashed(task, death, fate)
        self.finish_with(task, dump_error(error), False)

    def session_ended(self, reason: str) -> None:
        """Nothing will run any more."""
        blob = dump_error(exceptions.LocalNodeDiedError(reason))
        tasks = list(self._waiting_tasks.values())
        self._waiting_tasks.clear()
        while self.intake:
            tasks.append(self.intake.popleft())
        for pool in self._by_key.values():
            for slot in list(pool.slots.values()):
                self._forget(pool, slot)
                self.settle(slot.worker[0])
                tasks += pool.lost(slot)
            while pool.queue:
                tasks.append(pool.queue.popleft())
        for task in tasks:
            self.finish_with(task, blob, False)
