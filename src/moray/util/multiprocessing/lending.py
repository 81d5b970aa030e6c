"""Processes of a pool that are lent to the threads that call :meth:`Pool.apply` and :meth:`Pool.apply_async`.

Whoever waits for one call need not go through the pool's thread, which would cost two changes of thread each way: it
takes the loan of an idle process, calls its actor, reads the answer, and puts the loan back.

A :class:`Loan` stands for the right to use a process, and there is one at most for each. It lies in the deque of spare
ones, in the batch that was sent under it, or with whoever took it out of these, by one C call; the pool's thread takes
it back in the same way when it has tasks for the process. Whoever loses it, because an interrupt came at any moment,
returns it by losing it: its weak reference, the :class:`Terms`, is put into the pool's queue by C code (DEL), and a
call that is still under way goes on as one of the pool's thread.

``apply`` keeps the loan in its frame. ``apply_async`` leaves it in the batch: who waits for the result takes it out
when the answer is here; if nobody waits then, the loop tells the pool's thread, which does so.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from moray.exceptions import ActorError
from moray.util.multiprocessing.tasks import RECALL_AFTER_S, Batch

if TYPE_CHECKING:
    from moray.object_ref import ObjectRef
    from moray.util.multiprocessing.tasks import Slot, Task


class Terms(weakref.ref["Loan"]):
    """What is known of a loan, also when it is lost. The slot has it for as long as it is lent."""

    slot: Slot
    #: The call that is under way.
    batch: Batch | None = None


class Loan:
    """The right to use an idle process."""

    __slots__ = ("__weakref__", "terms")

    def __init__(self, slot: Slot, events: SimpleQueue[Any]) -> None:
        self.terms = Terms(self, events.put)
        self.terms.slot = slot
        slot.lent = self.terms


class Lender:
    """The users' side of a pool's loans. Any thread.

    Args:
        values: of the pool's session.
        numbers: of batches.
        answered: tells the pool's thread that a batch is answered, or that nobody waits for that any more.
        look_again: tells it that a loan was put where it can be taken out.
        catch_up: does what that thread was told, if it has ended.
    """

    def __init__(
        self,
        values: Any,
        numbers: Iterator[int],
        answered: Callable[[Batch], None],
        look_again: Callable[[Batch], None],
        catch_up: Callable[[], None],
    ) -> None:
        self._values = values
        self._numbers = numbers
        self._answered = answered
        self._look_again = look_again
        self._catch_up = catch_up
        #: Loans that nobody has.
        self.spare: deque[Loan] = deque()
        #: Somebody has asked for a loan.
        self.lends = False
        #: The pool's thread wants loans back: it says so first, and looks for them second. Whoever puts one where it
        #: can be taken out does that first, and looks here second.
        self.wants = False

    def apply(self, tasks: list[Task]) -> bool:
        """Have an idle process run tasks of one function, and wait for that, unless it does not go smoothly.

        Returns whether they are, or will be, settled; False: no process is idle.
        """
        self.lends = True
        try:
            loan = self.spare.pop()
        except IndexError:
            return False
        try:
            batch = self._send(loan, tasks)
            # Several that take longer than expected are left to the thread, which may recall some.
            timeout_s = None if len(tasks) == 1 else RECALL_AFTER_S
            if batch is not None and (answer := self._read(batch.ref, timeout_s)):
                self._settle(loan, batch, *answer)
        finally:
            del loan  # An error's traceback may keep this frame.
        self._catch_up()
        return True

    def begin(self, task: Task) -> bool:
        """Have an idle process begin the task: see `collect`. False: none is idle."""
        self.lends = True
        try:
            loan = self.spare.pop()
        except IndexError:
            return False
        try:
            batch = self._send(loan, [task])
            if batch is not None:
                task.job._lent = self, batch
                self._leave(loan, batch)
        finally:
            del loan
        self._catch_up()
        return True

    def _send(self, loan: Loan, tasks: list[Task]) -> Batch | None:
        """Send the tasks; None: that failed, and was dealt with."""
        try:
            terms = loan.terms
            batch = terms.batch = Batch(next(self._numbers), tasks)
            try:
                batch.ref = terms.slot.call(batch)
            except ActorError as error:
                batch.error = error  # The loan is lost, and the thread makes a new process.
                return None
            except Exception as error:  # noqa: BLE001 - whatever pickling of the user's values raises.
                # A handler's error may have come after the sending: nothing is tried again.
                for task in tasks:
                    task.job._deliver(task.position, False, error)
                self._put_back(loan)
                return None
            return batch
        finally:
            del loan

    def _leave(self, loan: Loan, batch: Batch) -> None:
        """The loan lies in the batch until somebody has the answer."""
        entry = batch.ref._entry
        runtime: Any = entry.origin.runtime

        def ready() -> None:
            if not batch.awaited:
                self._answered(batch)

        try:
            batch.loan.append(loan)
            if runtime.values.subscribe(entry, ready):
                ready()
        except BaseException:
            self._answered(batch)
            raise
        finally:
            del loan
        if self.wants:
            self._look_again(batch)

    def collect(self, batch: Batch, timeout_s: float | None) -> None:
        """Wait for the answer of a task that was begun, at most so long. It is left to the thread if that is to have
        the process, or if it is no ordinary one."""
        settled = False
        batch.awaited = True
        try:
            if answer := self._read(batch.ref, timeout_s):
                settled = self._collect(batch, *answer)
        finally:
            if not settled:
                batch.awaited = False
                if batch.ref._entry.ready:
                    self._answered(batch)
        self._catch_up()

    def _collect(self, batch: Batch, answer: Any) -> bool:
        try:
            loan = batch.loan.pop()
        except IndexError:
            return False
        try:
            self._settle(loan, batch, answer)
        finally:
            del loan
        return True

    def _settle(self, loan: Loan, batch: Batch, answer: Any) -> None:
        """An ordinary answer counts, and the process is idle. All else is left to the thread: the loan is lost."""
        try:
            outcomes = batch.outcomes(answer)
            if outcomes:
                for task, (success, value) in zip(batch.tasks, outcomes, strict=True):
                    task.job._deliver(task.position, success, value)
                self._put_back(loan)
        finally:
            del loan

    def _put_back(self, loan: Loan) -> None:
        batch, loan.terms.batch = loan.terms.batch, None
        self.spare.append(loan)
        del loan
        if self.wants and batch is not None:
            self._look_again(batch)

    def _read(self, ref: ObjectRef[Any], timeout_s: float | None) -> tuple[Any] | None:
        """The value, when it is there; None: it is not by then, or is an error, or cannot be read."""
        try:
            if timeout_s is not None and not self._values.wait([ref], 1, timeout_s)[0]:
                return None
            return (self._values.get_one(ref, None),)
        except Exception:
            if not ref._entry.ready:
                raise  # A handler of a signal has raised it, or the session has ended.
            try:
                self._values.get_one(ref, None)
            except Exception:  # noqa: BLE001 - the answer's own; the pool's thread gets it, too.
                return None
            raise
