"""Who of a pool's processes runs what: one thread per pool, which alone touches the state below.

Users' threads and the callbacks of results only put events into a queue, by one C call each (INTERRUPT).

**Batches.** A process has at most one batch of tasks, of one function. A batch is a single task until the last runs of
that function have been short; then it is as many as fit into :data:`BATCH_NS`, at most an even share of what waits, and
never more than have been run before. A process that is still at it when another one has nothing to do is asked to give
back what it has not begun, so that a task never waits behind a long one while a process is idle.

**Loans.** A process that has nothing to do is lent to whoever calls :meth:`Pool.apply` or :meth:`Pool.apply_async` next
(:mod:`~moray.util.multiprocessing.lending`), once somebody has.

**Deaths.** When a process dies, its batch's tasks fail with the reason, and a new process takes its place.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import moray
from moray.api import connected
from moray.exceptions import ActorError, GetTimeoutError, MorayError
from moray.runtime import state
from moray.util.multiprocessing.lending import Lender, Loan, Terms
from moray.util.multiprocessing.tasks import RECALL_AFTER_S, Batch, Function, Slot, Task

if TYPE_CHECKING:
    from moray.object_ref import ObjectRef

logger = logging.getLogger(__name__)

#: How long processes that are asked to end may take (atexit handlers), in seconds.
END_GRACE_S: Final = 10.0


class Dispatcher:
    """The state of a pool and its thread. The pool may be dropped: nothing here refers to it but open results."""

    def __init__(self, make_worker: Callable[[], Any], processes: int, tasks_per_process: int | None) -> None:
        self._make_worker = make_worker
        #: The pool's session, which may end, and be followed by another one.
        self._runtime = connected()
        self._tasks_per_process = tasks_per_process or -1
        #: (method, arguments), for the thread; the terms of loans that were lost.
        self.events: SimpleQueue[tuple[Any, ...] | Terms] = SimpleQueue()
        self._pending: deque[Task] = deque()
        self._slots = [Slot(make_worker(), self._tasks_per_process) for _ in range(processes)]
        self._numbers = count(1)
        self._callbacks: deque[Callable[[], Any]] = deque()
        self._lender = Lender(
            self._runtime.values,
            self._numbers,
            lambda batch: self.events.put((self._take_over, batch)),
            lambda batch: self.events.put((self._look_again, batch)),
            self._catch_up,
        )
        #: Loans that nobody has.
        self._spare = self._lender.spare
        #: Open imaps whose iterables may have more.
        self._feeders = 0
        self._closed = False
        #: Nothing is run any more.
        self._ended = False
        #: The thread looks at no more events.
        self._left = False
        self._thread = threading.Thread(target=self._run, name="moray-pool", daemon=True)
        self._thread.start()

    # --- any thread ------------------------------------------------------------------------------------

    def submit(self, tasks: list[Task]) -> None:
        """Have tasks run."""
        self.events.put((self._on_submit, tasks))
        self._catch_up()

    def _catch_up(self) -> None:
        """Do what the thread was told since it has ended."""
        if self._left:
            self._drain()

    def apply(self, tasks: list[Task]) -> None:
        """Have tasks of one function run, and wait for that if it is one batch, and a process is idle."""
        several = len(tasks) > 1 and tasks[0].function.most(len(tasks), len(self._slots)) < len(tasks)
        if self._tasks_per_process > 0 or several or not self._lender.apply(tasks):
            self.submit(tasks)

    def begin(self, task: Task) -> None:
        """Have the task run, beginning at once if a process is idle."""
        if self._tasks_per_process > 0 or not self._lender.begin(task):
            self.submit([task])

    def open_feeder(self) -> None:
        """More tasks will come, even after :meth:`close`."""
        self.events.put((self._on_feeder, 1))

    def close_feeder(self) -> None:
        """Those are all."""
        self.events.put((self._on_feeder, -1))

    def close(self) -> None:
        """End when all is done."""
        self.events.put((self._on_close,))

    def terminate(self) -> None:
        """End now."""
        self.events.put((self._on_terminate,))

    def join(self) -> None:
        """Wait until the thread has ended."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def handles(self) -> list[Any]:
        """The processes' actors, as far as they are there."""
        return [handle for slot in list(self._slots) if (handle := slot.handle) is not None]

    # --- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended:
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody must wait for ever.
                self._end_at_once(error)
            self._call_back()
        self._left = True
        self._drain()

    def _step(self) -> None:
        try:
            # A loan may have been put back without a word, by a thread that was interrupted in between.
            looks = self._overdue_possible() or (self._lender.wants and any(slot.lent for slot in self._slots))
            self._handle(self.events.get(timeout=RECALL_AFTER_S if looks else None))
            while not self._ended:
                self._handle(self.events.get_nowait())
        except Empty:
            pass
        self._dispatch()
        self._recall()
        if self._closed and not self._ended and not self._pending and not self._feeders and self._is_idle():
            self._call_back()
            self._end_in_peace()

    def _drain(self) -> None:
        """What was submitted while the pool ended fails. Any thread: each event is taken once."""
        while not self.events.empty():
            try:
                event = self.events.get_nowait()
            except Empty:
                break
            self._handle(event)
        self._call_back()

    def _handle(self, event: tuple[Any, ...] | Terms) -> None:
        if isinstance(event, Terms):
            self._on_lost(event)
        else:
            event[0](*event[1:])

    def _session_lives(self) -> bool:
        return state.runtime is self._runtime and self._runtime.ended is None

    def _is_idle(self) -> bool:
        return all(slot.batch is None and not slot.lent for slot in self._slots)

    def _call_back(self) -> None:
        """Call what the user wanted to be called."""
        while self._callbacks:
            try:
                self._callbacks.popleft()()
            except Exception:
                logger.exception("a callback of a pool's result raised; the result itself is not touched by that")

    def _on_submit(self, tasks: list[Task]) -> None:
        if self._ended:
            self._fail(tasks, RuntimeError("the pool was closed or terminated before this call"))
        else:
            self._pending.extend(tasks)

    def _on_feeder(self, change: int) -> None:
        self._feeders += change

    def _on_close(self) -> None:
        self._closed = True

    def _on_terminate(self) -> None:
        self._end_at_once(_terminated())

    def _end_at_once(self, error: BaseException) -> None:
        self._ended = self._lender.wants = True
        self._take_back()
        tasks = [task for slot in self._slots if slot.batch is not None for task in slot.batch.tasks]
        tasks += self._pending
        self._pending.clear()
        self._fail(tasks, error)
        slots, self._slots = self._slots, []
        for slot in slots:
            slot.batch = None  # Its end may be told before this thread's; that must not fail the tasks once more.
            self._kill(slot.handle)

    def _end_in_peace(self) -> None:
        """Processes run their atexit handlers; those that take too long are killed."""
        self._ended = self._lender.wants = True
        slots, self._slots = self._slots, []
        used = [slot.handle for slot in slots if slot.used]
        del slots  # Those that never ran a task, and may never have started, end by this.
        if not self._session_lives():
            return
        deadline = monotonic() + END_GRACE_S
        try:
            ends = [(handle, handle.__ray_terminate__.remote()) for handle in used]
        except MorayError:
            return  # The session has ended, and they with it.
        for handle, end in ends:
            try:
                moray.get(end, timeout=max(0.0, deadline - monotonic()))
            except GetTimeoutError:
                self._kill(handle)
            except MorayError:
                pass  # It has ended.

    # --- sending ------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self._ended:
            return
        lender = self._lender
        lender.wants = bool(self._pending) or self._closed
        if lender.wants:
            self._take_back()
        for slot in self._slots:
            if not self._pending:
                break
            if slot.batch is None and not slot.lent:
                self._send(slot, self._next_batch(slot))
        lender.wants = bool(self._pending) or self._closed
        if lender.lends and not lender.wants:
            for slot in self._slots:
                if slot.batch is None and not slot.lent:
                    self._spare.append(Loan(slot, self.events))

    def _take_back(self) -> None:
        """All loans that nobody has, and the calls under way for whose answers nobody is taking one out."""
        while self._spare:
            try:
                loan = self._spare.popleft()
            except IndexError:
                break
            loan.terms.slot.lent = None
        for slot in self._slots:
            batch = slot.lent.batch if slot.lent else None
            if batch is not None:
                self._take_over(batch)

    def _take_over(self, batch: Batch) -> None:
        """A user's thread has begun this. It goes on as one of ours, unless somebody has the loan."""
        try:
            loan = batch.loan.pop()
        except IndexError:
            return
        slot = loan.terms.slot
        slot.lent = None
        self._go_on(slot, batch)

    def _on_lost(self, terms: Terms) -> None:
        """Nobody has the loan, and nobody will put it back. What was begun goes on."""
        slot, batch = terms.slot, terms.batch
        if slot.lent is not terms:
            return  # It was taken back.
        slot.lent = None
        if batch is not None:
            self._go_on(slot, batch)

    def _go_on(self, slot: Slot, batch: Batch) -> None:
        if self._ended:
            self._fail(batch.tasks, _terminated())
        elif batch.error is not None:
            slot.batch = batch
            self._replace(slot, batch.error)
        elif batch.ref is not None:
            slot.batch = batch
            self._when_ready(batch.ref, self._on_done, slot, batch)

    def _look_again(self, batch: Batch) -> None:
        """The thread looks for loans after each event; nobody does when it has ended."""
        if self._ended:
            self._take_over(batch)

    def _next_batch(self, slot: Slot) -> Batch:
        pending = self._pending
        first = pending.popleft()
        tasks = [first]
        function = first.function
        if pending:
            most = function.most(1 + len(pending), len(self._slots))
            if slot.left >= 0:
                most = min(most, slot.left)
            while len(tasks) < most and pending and pending[0].function is function and pending[0].mode == first.mode:
                tasks.append(pending.popleft())
        return Batch(next(self._numbers), tasks)

    def _send(self, slot: Slot, batch: Batch) -> None:
        slot.batch = batch
        try:
            batch.ref = slot.call(batch)
            self._when_ready(batch.ref, self._on_done, slot, batch)
        except ActorError as error:
            self._replace(slot, error)
        except Exception as error:  # noqa: BLE001 - whatever pickling of the user's values raises.
            slot.batch = None
            self._send_failed(batch, error)

    def _when_ready(self, ref: ObjectRef[Any], handler: Callable[..., None], *arguments: Any) -> None:
        """Call the handler with the arguments and the reference in this thread, once that is ready."""
        entry = ref._entry
        tell = partial(self.events.put, (handler, *arguments, ref))
        runtime: Any = entry.origin.runtime
        if not entry.ready:
            runtime.check_usable()
        if entry.ready or runtime.values.subscribe(entry, tell):
            tell()

    def _send_failed(self, batch: Batch, error: BaseException) -> None:
        """One of the arguments cannot be pickled, or the session has ended. Nothing was run."""
        if len(batch.tasks) == 1:
            self._fail(batch.tasks, error)
            return
        for task in batch.tasks:
            # A function of its own for each: no batches, and only the culprit fails.
            self._pending.appendleft(task._replace(function=Function(task.function.call, 0)))

    # --- results ---------------------------------------------------------------------------------------------

    def _on_done(self, slot: Slot, batch: Batch, ref: ObjectRef[Any]) -> None:
        if slot.batch is not batch:
            return  # The pool was terminated.
        try:
            answer = self._runtime.values.get_one(ref, None)
        except ActorError as error:
            self._replace(slot, error)
        except Exception as error:  # noqa: BLE001 - whatever unpickling of the user's values raises.
            self._ask_each(slot, batch, error)
        else:
            self._settle(slot, batch, answer)

    def _settle(self, slot: Slot, batch: Batch, answer: Any) -> None:
        outcomes = batch.outcomes(answer)
        if outcomes is not None:
            self._deliver(slot, batch, outcomes)
        elif answer is None:  # The function is not known there any more.
            slot.known.clear()
            slot.batch = None
            self._pending.extendleft(reversed(batch.tasks))
        else:
            self._fail(batch.tasks, answer)
            self._free(slot, len(batch.tasks))

    def _deliver(self, slot: Slot, batch: Batch, outcomes: list[tuple[bool, Any]]) -> None:
        """What is behind the outcomes was given back."""
        for task, (success, value) in zip(batch.tasks, outcomes, strict=False):
            self._tell(task, success, value)
        self._pending.extendleft(reversed(batch.tasks[len(outcomes) :]))
        self._free(slot, len(outcomes))

    def _free(self, slot: Slot, ran: int) -> None:
        slot.batch = None
        if slot.left >= 0:
            slot.left -= ran
            if slot.left <= 0:
                self._renew(slot)

    def _renew(self, slot: Slot) -> None:
        """A new process in the place of one that has gone, or has run as many tasks as it may."""
        slot.batch = None
        slot.known.clear()
        slot.left = self._tasks_per_process
        slot.used = False
        slot.handle = None  # The old one ends by this.
        if not self._session_lives():
            raise RuntimeError("the pool's session has ended, and its processes with it: make a new Pool")
        slot.handle = self._make_worker()

    def _replace(self, slot: Slot, error: BaseException) -> None:
        if slot.batch is not None:
            self._fail(slot.batch.tasks, error)
        self._renew(slot)

    def _ask_each(self, slot: Slot, batch: Batch, error: BaseException) -> None:
        """The batch's answer could not be sent or read: a result does not pickle, or an argument does not load."""
        try:
            ref = slot.handle.outcomes.remote(batch.number)
        except MorayError as ended:
            self._replace(slot, ended)
            return
        self._when_ready(ref, self._on_each, error, slot, batch)

    def _on_each(self, first: BaseException, slot: Slot, batch: Batch, ref: ObjectRef[list[bytes] | None]) -> None:
        if slot.batch is not batch:
            return
        try:
            blobs = self._runtime.values.get_one(ref, None)
        except MorayError as error:
            self._replace(slot, error)
            return
        if blobs is None:
            slot.known.clear()
            slot.batch = None
            self._send_failed(batch, first)
            return
        import pickle

        outcomes: list[tuple[bool, Any]] = []
        for blob in blobs:
            try:
                outcomes.append(pickle.loads(blob))
            except Exception as unreadable:  # noqa: BLE001 - whatever unpickling of the user's value raises.
                outcomes.append((False, unreadable))
        self._deliver(slot, batch, outcomes)

    def _kill(self, handle: Any) -> None:
        if handle is not None and self._session_lives():
            try:
                moray.kill(handle)
            except MorayError:
                pass  # The session has ended since, and it with it.

    def _fail(self, tasks: list[Task], error: BaseException) -> None:
        for task in tasks:
            self._tell(task, False, error)

    def _tell(self, task: Task, success: bool, value: Any) -> None:
        callback = task.job._deliver(task.position, success, value)
        if callback is not None:
            self._callbacks.append(callback)

    # --- recalls ------------------------------------------------------------------------------------------------

    def _overdue_possible(self) -> bool:
        """Whether a process is idle while another one has tasks that it may not have begun."""
        busy = [slot.batch for slot in self._slots if slot.batch is not None]
        return (
            len(busy) < len(self._slots)
            and not self._pending
            and any(len(batch.tasks) > 1 and not batch.recalled for batch in busy)
        )

    def _recall(self) -> None:
        if self._ended or not self._overdue_possible():
            return
        now = monotonic()
        for slot in self._slots:
            batch = slot.batch
            if batch is None or batch.recalled or len(batch.tasks) == 1 or now - batch.began < RECALL_AFTER_S:
                continue
            batch.recalled = True
            try:
                ref = slot.handle.give_back.remote(batch.number)
            except MorayError:
                continue  # It has died: the batch's own answer says so.
            self._when_ready(ref, self._on_given_back, slot, batch)

    def _on_given_back(self, slot: Slot, batch: Batch, ref: ObjectRef[int]) -> None:
        try:
            given = self._runtime.values.get_one(ref, None)
        except MorayError:
            return  # The batch's own answer will say why.
        if slot.batch is not batch:
            return  # That came first, and said what was not run.
        if given:
            rest = batch.tasks[-given:]
            del batch.tasks[-given:]
            self._pending.extendleft(reversed(rest))


def _terminated() -> RuntimeError:
    return RuntimeError("the pool was terminated before this result was there")
