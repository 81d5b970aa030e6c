"""What the owner keeps of functions, tasks and scheduling keys."""

from __future__ import annotations

from _thread import RLock
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from moray import exceptions
from moray.core.leases import Durations, Pool, Slot
from moray.object_ref import Entry, ObjectRef
from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.core.strategies import Strategy
    from moray.runtime.streams import Stream


class Function(msgspec.Struct, gc=False):
    """An exported function or class (FUNCTIONS)."""

    index: int
    name: str
    blob: bytes
    max_calls: int
    durations: Durations
    #: References that it closes over, held as long as this exists.
    contained: list[ObjectRef[Any]]


class Task(msgspec.Struct, gc=False, eq=False):
    """One submitted task. The loop owns it once it is committed."""

    seq: int
    function: Function
    durations: Durations
    #: The blob of (args, kwargs).
    payload: bytes
    #: The entries of its return values; a single one directly.
    entry: Entry | None
    entries: list[Entry] | None
    options: TaskSettings
    retries_left: int
    #: What is not in every message.
    extra: m.TaskExtra | None = None
    #: References among and inside the arguments, held until the task is done.
    held: list[ObjectRef[Any]] | None = None
    #: Top-level references: (where, reference).
    arguments: list[tuple[int | str, ObjectRef[Any]]] | None = None
    #: How many of its arguments are not ready.
    waiting: int = 0
    attempt: int = 0
    #: Being cancelled: not retried.
    cancelled: bool = False
    #: What it has submitted is not cancelled with it.
    spares_children: bool = False
    #: What receives its items, if it is a generator (STREAM).
    stream: Stream | None = None
    #: The task that submitted it, in a worker: cancelled with it (CANCEL).
    parent: Any = None


class Call(Task, gc=False, eq=False):
    """A call of an actor's method, on its way to :class:`~moray.runtime.callee.Callee`."""

    #: Its number in the conversation with the present incarnation; -1: not sent (CALL-ORDER).
    number: int = -1
    callee: Any = None
    #: The reference that keeps the actor alive while the call is open; None for weak handles.
    handle: ObjectRef[Any] | None = None


class Life(msgspec.Struct, gc=False):
    """`Entry.task` of an actor's hidden object: what ends with it."""

    actor: bytes


class TaskSettings(msgspec.Struct, gc=False, eq=False):
    """What all tasks of one function with one set of options share."""

    pool: Any
    name: str
    max_retries: int
    num_returns: int
    #: The extra of tasks that have nothing else special, or None.
    extra: m.TaskExtra | None
    #: Errors may be retried; the worker says which (TaskExtra.retry).
    retries_errors: bool = False
    #: Items travel one by one; the submitter gets an ObjectRefGenerator (STREAM).
    streaming: bool = False
    #: Of calls: the method's name.
    method: str = ""


class CallSettings(TaskSettings, gc=False, eq=False):
    """What all calls of one method with one set of options share. `pool` is not used: calls go to their actor."""


class KeyPool(Pool):
    """The pool of one scheduling key, with what the shell needs beside the decisions."""

    def __init__(
        self,
        key: int,
        resources: m.Resources,
        runtime_env: str,
        label: str,
        useful: int,
        strategy: Strategy | None = None,
    ) -> None:
        super().__init__(packs=True)
        self.key = key
        self.resources = resources
        self.runtime_env = runtime_env
        self.label = label
        self.strategy = strategy
        #: Guards the direct way: held by a user's thread from its look at `idle` to its commit, and by the
        #: loop while it gives work to a slot. A handler that comes here in the middle of it queues its task.
        self.lock = RLock()
        self.inside: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]
        #: Slots that a user's thread may send to directly. The loop adds and removes.
        self.idle: deque[Slot] = deque()
        #: A new task makes a difference now: the loop should be woken for it.
        self.hungry = True
        #: More leases than this the cluster can never give.
        self.useful = useful
        #: Grants received so far.
        self.seen = 0
        #: A look for stuck workers is scheduled.
        self.recall_timer: Any = None
        #: The return of idle leases is scheduled.
        self.linger_timer: Any = None
        #: What the node said of an infeasible request.
        self.refused = ""

    def granted(self, lease: int, worker: Any) -> Slot:
        """See Pool: what was refused before is feasible now."""
        self.refused = ""
        return super().granted(lease, worker)

    def home(self) -> dict[bytes, int]:
        """The tag of the only node where it can be served, if that is known (see `RequestLeases.locality`)."""
        return {}

    def refusal(self, message: m.LeaseRefused) -> exceptions.MorayError | None:
        """The error that the queued tasks end with; None: they go on waiting."""
        if not message.infeasible:
            return exceptions.RuntimeEnvSetupError(message.reason)
        if self.strategy is not None and self.strategy.fails:
            return exceptions.TaskUnschedulableError(f"{self.label}(): {message.reason}")
        return None
