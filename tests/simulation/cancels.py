"""Cancelling in one simulated process (the counterpart of moray.runtime.cancels, CANCEL)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from moray.protocol import messages as m
from tests.simulation.objects import Entry, Ref, Value, dump
from tests.simulation.submission import Call, KeyPool, Task, pool_of

if TYPE_CHECKING:
    from tests.simulation.network import End
    from tests.simulation.process import Peer, Process

#: As in moray.runtime.cancels.
FORCE_AFTER_S: Final = 0.3


class Cancels:
    """The owner's side."""

    def __init__(self, process: Process) -> None:
        self._process = process
        #: What user code asked for: (entry, force, recursive).
        self._asked: list[tuple[Entry, bool, bool]] = []
        #: Streams that nobody will read on.
        self._dropped: list[Task] = []
        #: Pools and actors with cancelled tasks in their queues.
        self._swept: dict[Any, None] = {}
        #: Tasks whose workers are to be ended if they do not end themselves.
        self._forced: set[int] = set()

    def cancel(self, ref: Ref, force: bool, recursive: bool) -> None:
        """Ask for the end of the task that makes this object."""
        self._process.oracle.cancelled_object(ref.entry.id)
        self._asked.append((ref.entry, force and not isinstance(ref.entry.task, Call), recursive))
        self._process.wake()

    def drop_stream(self, task: Task) -> None:
        """Nobody reads a generator's items any more."""
        if task.seq in self._process.submitter.pending:
            self._dropped.append(task)
            self._process.wake()

    def run(self) -> None:
        """Once a turn: carry out what was asked."""
        asked, self._asked = self._asked, []
        for entry, force, recursive in asked:
            self._cancel_entry(entry, force, recursive)
        dropped, self._dropped = self._dropped, []
        for task in dropped:
            if not task.cancelled:
                self._cancel(task, False, True)
        self._sweep_all()

    def _cancel_entry(self, entry: Entry, force: bool, recursive: bool) -> None:
        if entry.ready:
            return
        process = self._process
        if entry.owner != process.name:
            process.send(process.peer(entry.owner), m.CancelObject(entry.key, force, recursive))
        elif isinstance(entry.task, Task):
            self._cancel(entry.task, force, recursive)

    def on_cancel_object(self, _connection: End, message: m.CancelObject) -> None:
        process = self._process
        entry = process.entries.get(process.object_id(message.key >> 32, message.key & 0xFFFFFFFF))
        if entry is not None:
            self._cancel_entry(entry, message.force and not isinstance(entry.task, Call), message.recursive)
            self._sweep_all()

    def _cancel(self, task: Task, force: bool, recursive: bool) -> None:
        if task.seq not in self._process.submitter.pending:
            return
        task.cancelled, task.spares_children = True, not recursive
        self._process.oracle.cancelled(self._process, task)
        if isinstance(task, Call):
            self._cancel_call(task)
            return
        submitter = self._process.submitter
        if submitter.stop_waiting(task):
            self.end_unsent(task)
            return
        found = submitter.find_running(task)
        if found is None:
            self._swept[pool_of(task)] = None
            return
        connection, peer, lease = found
        connection.send(m.CancelTask(task.seq, task.attempt, force, recursive))
        if force:
            self._forced.add(task.seq)
            self._process.later(FORCE_AFTER_S, lambda: self._force(task, peer, lease))

    def _force(self, task: Task, peer: Peer, lease: int) -> None:
        if task.seq not in self._forced:
            return
        self._forced.discard(task.seq)
        found = peer.slots.get(lease)
        if not peer.dead and found is not None and task.seq in found[1].running:
            self._process.node.send(m.ReturnLease(lease, True, peer.name))

    def _cancel_call(self, call: Call) -> None:
        callee = call.callee
        if call.seq in callee.calls.unanswered:
            if callee.connection is not None:  # Otherwise it is sent with the call, on the next one.
                self.send_cancel(callee.connection, call)
        elif callee.set_aside.pop(call.seq, None) is not None:
            self.end_unsent(call)
        else:
            self._swept[callee] = None

    @staticmethod
    def send_cancel(connection: End, call: Call) -> None:
        """Have an actor end a call that it was sent."""
        connection.send(m.CancelTask(call.seq, call.attempt, False, not call.spares_children))

    def _sweep_all(self) -> None:
        swept, self._swept = self._swept, {}
        for each in swept:
            self.sweep(each)

    def sweep(self, queued: KeyPool | Any) -> None:
        """End the cancelled tasks in a queue."""
        ended = [task for task in queued.queue if task.cancelled]
        if ended:
            kept = [task for task in queued.queue if not task.cancelled]
            queued.queue.clear()
            queued.queue.extend(kept)
        for task in ended:
            self.end_unsent(task)
        if ended and not isinstance(queued, KeyPool):
            self._process.actors.pump_soon(queued)

    def end_unsent(self, task: Task) -> None:
        """It will never run."""
        self._process.submitter.finish_with(task, "cancelled")

    def on_answer(self, connection: End, message: m.CancelAnswer) -> None:
        """The worker's word."""
        if message.answer != "unstarted":
            return
        self._forced.discard(message.seq)
        task = self._process.submitter.find_sent(connection, message.seq)
        if task is None or task.attempt != message.attempt or not task.cancelled:
            return
        for entry in task.entries:
            if not entry.ready:
                entry.blob, entry.error = dump(Value(0, error="cancelled")), True
                self._process.values.ready(entry)

    def cancel_children(self, work: Any) -> None:
        """End what the work `work` of this worker has submitted."""
        for task in list(self._process.submitter.pending.values()):
            if task.parent is work and not task.cancelled:
                self._cancel(task, False, True)
        self._sweep_all()
