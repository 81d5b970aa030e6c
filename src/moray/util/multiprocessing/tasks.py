"""What a pool runs: functions, their tasks, the batches in which these are sent, and the places of the processes."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import count, islice
from time import monotonic
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from moray.api import put
from moray.exceptions import TaskError
from moray.util.multiprocessing.worker import APPLY, MOST_FUNCTIONS, PLAIN

if TYPE_CHECKING:
    from moray.util.multiprocessing.lending import Loan, Terms

#: Run time of one batch, in ns: some twenty round trips, so that these cost little; and few enough that results come
#: soon.
BATCH_NS: Final = 3_000_000
#: Run time that is not divided among processes, in ns: another batch costs more than that.
WHOLE_NS: Final = 150_000
#: Tasks of one batch at most: the results of more come too late.
MOST_TASKS: Final = 1000
#: A batch that takes longer, in seconds, gives back the rest of its tasks when a process is idle.
RECALL_AFTER_S: Final = 0.01
#: Elements of chunks that are put, and so pickled once: the size of an argument is known when it is pickled, and one
#: that is too large for a message is then pickled again, for the store.
LONG: Final = 10_000
#: Batches whose longest runs count.
REMEMBERED: Final = 4


class Function:
    """A function that tasks call, and how long it took lately."""

    __slots__ = ("call", "key", "longest", "runs")

    def __init__(self, call: Callable[..., Any], key: int) -> None:
        self.call = call
        #: 0: not remembered by the processes.
        self.key = key
        self.longest: deque[int] = deque(maxlen=REMEMBERED)
        self.runs = 0

    def most(self, tasks: int, processes: int) -> int:
        """How many of so many tasks make a batch. Any thread."""
        try:
            longest = max(self.longest) + 1
        except (ValueError, RuntimeError):  # Nothing was run; another thread notes a run right now.
            return 1
        share = max(-(-tasks // max(1, processes)), WHOLE_NS // longest)
        return max(1, min(BATCH_NS // longest, share, self.runs, MOST_TASKS)) if self.key else 1


class Task(NamedTuple):
    """One call, or one chunk of a map."""

    job: Any
    position: int
    function: Function
    mode: int
    payload: Any


class Batch:
    """Tasks that were sent to a process together."""

    __slots__ = ("awaited", "began", "error", "loan", "number", "recalled", "ref", "tasks")

    def __init__(self, number: int, tasks: list[Task]) -> None:
        self.number = number
        self.tasks = tasks
        self.began = monotonic()
        self.recalled = False
        #: The reference of the answer, once sent; why it could not be sent.
        self.ref: Any = None
        self.error: BaseException | None = None
        #: The loan under which a user's thread has sent it. Who takes it out, by one C call, deals with the answer.
        self.loan: deque[Loan] = deque()
        #: A user's thread waits for the answer.
        self.awaited = False

    def outcomes(self, answer: Any) -> list[tuple[bool, Any]] | None:
        """What a process answered, noting how long it took; None: nothing was run."""
        function = self.tasks[0].function
        if answer is None or isinstance(answer, TaskError):
            return None
        if isinstance(answer, tuple):
            outcomes, longest = answer
        else:
            outcomes, longest = [(True, answer)], int((monotonic() - self.began) * 1e9)
        function.longest.append(longest)
        function.runs += len(outcomes)  # Only a measure: another thread's may get lost.
        return outcomes  # type: ignore[no-any-return]


class Slot:
    """The place of one process."""

    __slots__ = ("batch", "handle", "known", "left", "lent", "used")

    def __init__(self, handle: Any, left: int) -> None:
        self.handle = handle
        self.batch: Batch | None = None
        #: Keys of functions that the process has, the least recently used first.
        self.known: OrderedDict[int, None] = OrderedDict()
        #: Of the loan of it, during which the thread must not use it.
        self.lent: Terms | None = None
        #: Tasks that it may still run; -1: any number.
        self.left = left
        #: It was given a task.
        self.used = False

    def call(self, batch: Batch) -> Any:
        """Have the process run a batch; the reference of its answer. Raises what the sending raises."""
        tasks = batch.tasks
        first = tasks[0]
        function = first.function
        known, key = self.known, function.key
        sent = None if key in known else (function.call,)
        if key:
            known[key] = None
            known.move_to_end(key)
            if len(known) > MOST_FUNCTIONS:
                known.popitem(last=False)
        self.used = True
        try:
            if sent is None and first.mode == APPLY and len(tasks) == 1:
                arguments, keywords = first.payload
                if not keywords and PLAIN.issuperset(map(type, arguments)):
                    return self.handle.call.remote(batch.number, key, *arguments)
            payloads: Any = [task.payload for task in tasks]
            if first.mode != APPLY and sum(map(len, payloads)) >= LONG:
                payloads = put(payloads)
            return self.handle.run.remote(batch.number, key, sent, first.mode, payloads)
        except BaseException:
            known.pop(key, None)
            raise


class Functions:
    """The functions that tasks of one pool call. Any thread.

    Plain functions are sent to each process once. What may change between two calls (objects, methods, closures) is
    pickled for each call anew, as the standard library's pool does.
    """

    def __init__(self) -> None:
        self._numbers = count(1)
        self._known: dict[Callable[..., Any], Function] = {}

    def of(self, call: Callable[..., Any], many: bool) -> Function:
        """The function's; `many`: it is for all chunks of one map."""
        if type(call) is BuiltinFunctionType or (type(call) is FunctionType and call.__closure__ is None):
            found = self._known.get(call)
            if found is None:
                if len(self._known) >= MOST_FUNCTIONS:
                    for old in list(islice(self._known, len(self._known) // 2)):
                        self._known.pop(old, None)
                found = self._known.setdefault(call, Function(call, next(self._numbers)))
            return found
        return Function(call, next(self._numbers) if many else 0)
