"""Cancelling tasks and calls: the owner's side (CANCEL).

A cancel is a request. What was not sent ends here and now. What was sent is ended by the worker alone: it answers
"unstarted" (then waiters are told at once, while the holds on the arguments last until its result comes),
"interrupting" or "finished". With `force` the worker ends its process; if it cannot even do that, because C code
holds the interpreter, the node does after :data:`FORCE_AFTER_S`.

Only the owner knows the task: other holders of a reference ask it
(:class:`~moray.protocol.task_messages.CancelObject`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from moray import exceptions
from moray.object_ref import Entry, ObjectRef
from moray.protocol import messages as m
from moray.runtime.tasks import Call, KeyPool, Task
from moray.runtime.values import dump_error

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.callee import Callee
    from moray.runtime.runtime import Peer, Runtime

#: How long a worker may take to end itself before the node is asked to end it.
FORCE_AFTER_S: Final = 0.3


class Cancels:
    """Of one process. `Runtime.cancels`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: What user threads asked for: (entry, force, recursive).
        self._asked: deque[tuple[Entry, bool, bool]] = deque()
        #: Streams that nobody will read on.
        self._dropped: deque[Task] = deque()
        #: Pools and actors with cancelled tasks in their queues.
        self._swept: dict[Any, None] = {}
        #: By their numbers: tasks whose workers are to be ended if they do not end themselves.
        self._forced: set[int] = set()
        runtime.handlers |= {m.CancelAnswer: self._on_answer, m.CancelObject: self._on_cancel_object}

    # --- any thread -----------------------------------------------------------------------------------

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> None:
        """Ask for the end of the task that makes this object."""
        self._runtime.check_usable()
        entry = ref._entry
        if force and isinstance(entry.task, Call):
            raise ValueError(
                "cancel(): force=True would end the whole actor for the sake of one call: use force=False, or "
                "moray.kill(actor)"
            )
        self._asked.append((entry, force, recursive))
        self._runtime.wake()

    def drop_stream(self, task: Task) -> None:
        """Nobody reads a generator's items any more: its task is to end."""
        self._dropped.append(task)
        self._runtime.wake()

    # --- the loop ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Once a turn: carry out what was asked."""
        if not self._asked and not self._dropped:
            return
        while self._asked:
            entry, force, recursive = self._asked.popleft()
            self._cancel_entry(entry, force, recursive)
        while self._dropped:
            task = self._dropped.popleft()
            if not task.cancelled:
                self._cancel(task, False, True)
        self._sweep()

    def _cancel_entry(self, entry: Entry, force: bool, recursive: bool) -> None:
        if entry.ready:
            return
        runtime = self._runtime
        if entry.origin is not runtime.origin:
            runtime.send(runtime.peer(entry.origin.process), m.CancelObject(entry.key, force, recursive))
        elif isinstance(entry.task, Task):
            self._cancel(entry.task, force, recursive)

    def _on_cancel_object(self, _connection: Connection, message: m.CancelObject) -> None:
        entry = self._runtime.origin.entries.get(message.key)
        if entry is not None:
            force = message.force and not isinstance(entry.task, Call)
            self._cancel_entry(entry, force, message.recursive)
            self._sweep()

    def _cancel(self, task: Task, force: bool, recursive: bool) -> None:
        task.cancelled = True
        task.spares_children = not recursive
        if isinstance(task, Call):
            self._cancel_call(task)
            return
        submitter = self._runtime.submitter
        if submitter.stop_waiting(task):
            self.end_unsent(task)
            return
        pool: KeyPool = task.options.pool
        found = submitter.find_running(pool, task)
        if found is None:
            self._swept[pool] = None
            return
        connection, peer, lease = found
        connection.send(m.CancelTask(task.seq, task.attempt, force, recursive))
        if force:
            self._forced.add(task.seq)
            self._runtime.reactor.call_later(FORCE_AFTER_S, lambda: self._force(task, peer, lease))

    def _force(self, task: Task, peer: Peer, lease: int) -> None:
        """The worker should be gone by now, unless it has said that the task had not begun: then another one runs."""
        if task.seq not in self._forced:
            return
        self._forced.discard(task.seq)
        found = peer.slots.get(lease)
        if peer.dead is None and found is not None and task.seq in found[1].running:
            self._runtime.node.send(m.ReturnLease(lease, True, peer.origin.process))

    def _cancel_call(self, call: Call) -> None:
        callee: Callee = call.callee
        connection = callee.connection
        if connection is not None:
            self._runtime.submitter.settle(connection)
        if call.seq in callee.calls.unanswered:
            if connection is not None:  # Otherwise it is sent with the call, on the next one.
                self.send_cancel(connection, call)
            return
        if callee.set_aside.pop(call.seq, None) is not None:
            self.end_unsent(call)
        else:
            self._swept[callee] = None

    def send_cancel(self, connection: Connection, call: Call) -> None:
        """Have an actor end a call that it was sent. Loop only."""
        connection.send(m.CancelTask(call.seq, call.attempt, False, not call.spares_children))

    def given_back(self, pool: KeyPool, tasks: Sequence[Task]) -> None:
        """A worker did not begin these, which are queued again: what was cancelled meanwhile ends here. Loop only."""
        if any(task.cancelled for task in tasks):
            self._swept[pool] = None
            self._sweep()

    def requeue(self, pool: KeyPool, tasks: Sequence[Task]) -> None:
        """The worker that had these is gone, and did not begin them: they are first again. Loop only."""
        pool.queue.extendleft(reversed(tasks))
        self.given_back(pool, tasks)

    def _sweep(self) -> None:
        """Take cancelled tasks out of queues: once a turn, however many they are."""
        swept, self._swept = self._swept, {}
        for each in swept:
            queue: deque[Any] = each.queue
            with each.lock:
                ended: list[Any] = []
                kept: list[Any] = []
                for _ in range(len(queue)):
                    task = queue.popleft()
                    (ended if task.cancelled else kept).append(task)
                # What other threads append meanwhile stays behind: calls keep their order (CALL-ORDER).
                queue.extendleft(reversed(kept))
            for task in ended:
                self.end_unsent(task)
            if not isinstance(each, KeyPool):
                self._runtime.actors.pump_soon(each)  # What was behind may go now.

    def end_unsent(self, task: Task) -> None:
        """It will never run. Loop only."""
        self._runtime.submitter.finish_with(task, self.error_blob(task, "it had not begun"), False)

    def error_blob(self, task: Task, how: str) -> bytes:
        """The error of a cancelled task."""
        task_id = task.seq.to_bytes(8, "big") + self._runtime.origin.tail
        return dump_error(exceptions.TaskCancelledError(task_id.hex(), f"{task.options.name}(): {how}"))

    def _on_answer(self, connection: Connection, message: m.CancelAnswer) -> None:
        """The worker's word; "finished" and "interrupting" need nothing: the result is on its way."""
        if message.answer != "unstarted":
            return
        self._forced.discard(message.seq)
        task = self._runtime.submitter.find_sent(connection, message.seq)
        if task is None or task.attempt != message.attempt or not task.cancelled:
            return
        blob = self.error_blob(task, "it had not begun")
        for entry in task.entries if task.entries is not None else [task.entry]:
            if entry is not None and not entry.ready:
                entry.blob, entry.error = blob, True
                self._runtime.values.ready(entry)

    def cancel_children(self, work: Any) -> None:
        """End what the work `work` of this worker has submitted. Loop only."""
        for task in self._runtime.submitter.pending_tasks():
            if task.parent is work and not task.cancelled:
                self._cancel(task, False, True)
        for task in self._runtime.actors.pending_calls():
            if task.parent is work and not task.cancelled:
                self._cancel(task, False, True)
        self._runtime.actors.creations.cancel_children(work)
        self._sweep()
