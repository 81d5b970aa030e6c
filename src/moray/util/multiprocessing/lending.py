"""Processes of a pool that are lent to the threads that call :meth:`Pool.apply`.

A thread that waits for its one call anyway need not go through the pool's thread, which would cost two changes of
thread each way: it takes the loan of an idle process, calls its actor, and puts the loan back.

A :class:`Loan` stands for the right to use a process, and there is one at most for each. It lies in the dispatcher's
deque, or with whoever took it out, by one C call; the dispatcher takes it back in the same way when it has tasks for
the process. Whoever loses it, because an interrupt came at any moment, returns it by losing it: its weak reference, the
:class:`Terms`, is put into the dispatcher's queue by C code (DEL), and a call that is still under way goes on as one of
the dispatcher's own.
"""

from __future__ import annotations

import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moray.util.multiprocessing.dispatcher import Batch, Slot


class Terms(weakref.ref["Loan"]):
    """What is known of a loan, also when it is lost. The slot has it for as long as it is lent."""

    slot: Slot
    #: The call that is under way, and the reference of its answer.
    batch: Batch | None = None
    ref: Any = None
    #: Why it could not be sent.
    error: BaseException | None = None


class Loan:
    """The right to use an idle process."""

    __slots__ = ("__weakref__", "terms")

    def __init__(self, slot: Slot, events: SimpleQueue[Any]) -> None:
        self.terms = Terms(self, events.put)
        self.terms.slot = slot
        slot.lent = self.terms
