"""The actor that is one process of a pool.

Calls run in the process's main thread, one batch of tasks after another. Next to it, in a thread of a concurrency group
of its own, :meth:`PoolWorker.give_back` can take what a batch has not begun. Both take tasks from the same deque by
single C calls, so that each task is taken exactly once.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from time import perf_counter_ns
from typing import Any, Final

from moray.actor import method
from moray.exceptions import TaskError, make_task_error

#: How a task calls its function: with arguments, or for each element of a chunk.
APPLY: Final = 0
MAP: Final = 1
STARMAP: Final = 2

#: Functions that a process remembers, so that they are sent once.
MOST_FUNCTIONS: Final = 64

#: The concurrency group of :meth:`PoolWorker.give_back`.
CONTROL: Final = "moray_pool_control"

#: What is small work to pickle, and travels as it is in a call of :meth:`PoolWorker.call`.
PLAIN: Final = frozenset({int, float, complex, bool, str, bytes})
#: What every reader can unpickle, and every writer pickle.
_SAFE: Final = PLAIN | {bytearray, type(None)}

Outcome = tuple[bool, Any]


class PoolWorker:
    """Runs tasks; the initializer has run in its process before."""

    def __init__(self, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]) -> None:
        self._functions: OrderedDict[int, Callable[..., Any]] = OrderedDict()
        #: Number of the running batch, and what it has not begun.
        self._current: tuple[int, deque[Any]] = (0, deque())
        #: Number of the last batch, and its outcomes if it is not certain that they can be pickled.
        self._last: tuple[int, list[Outcome]] = (0, [])
        self._broken: TaskError | None = None
        if initializer is not None:
            try:
                initializer(*initargs)
            except Exception as error:  # noqa: BLE001 - every task of the pool will raise it.
                self._broken = _describe(initializer, error)

    def run(
        self, number: int, key: int, function: tuple[Callable[..., Any]] | None, mode: int, tasks: list[Any]
    ) -> tuple[list[Outcome], int] | TaskError | None:
        """Run the tasks that are not given back; returns their outcomes and the longest run time in ns.

        `function` is a tuple of it when it comes for the first time; key 0: it is not to be remembered.
        None: the function is not known any more, nothing was run. A TaskError: so failed the initializer.
        """
        self._last = (0, [])
        if self._broken is not None:
            return self._broken
        call = self._function(key, function)
        if call is None:
            return None
        waiting = deque(tasks)
        del tasks
        self._current = (number, waiting)
        outcomes: list[Outcome] = []
        longest = 0
        certain = True
        while waiting:
            try:
                task = waiting.popleft()
            except IndexError:  # Given back since the look.
                break
            begin = perf_counter_ns()
            try:
                if mode == APPLY:
                    value = call(*task[0], **task[1])
                else:
                    value = list(map(call, task)) if mode == MAP else [call(*arguments) for arguments in task]
            except Exception as error:  # noqa: BLE001 - it is the task's result.
                outcomes.append((False, _describe(call, error)))
            else:
                outcomes.append((True, value))
                certain = certain and type(value) in _SAFE
            longest = max(longest, perf_counter_ns() - begin)
        self._current = (0, deque())
        if not certain:
            self._last = (number, outcomes)
        return outcomes, longest

    def call(self, number: int, key: int, *arguments: Any) -> Any:
        """:meth:`run` for one task, of a function that is known, with plain arguments; so is a plain result."""
        self._last = (0, [])
        call = None if self._broken is not None else self._function(key, None)
        if call is None:
            return self._broken
        begin = perf_counter_ns()
        try:
            value = call(*arguments)
        except Exception as error:  # noqa: BLE001 - it is the task's result.
            return [(False, _describe(call, error))], perf_counter_ns() - begin
        if type(value) in PLAIN:
            return value
        if value is not None:
            self._last = (number, [(True, value)])
        return [(True, value)], perf_counter_ns() - begin

    def _function(self, key: int, function: tuple[Callable[..., Any]] | None) -> Callable[..., Any] | None:
        if key == 0:
            assert function is not None
            return function[0]
        functions = self._functions
        if function is not None:
            functions[key] = function[0]
            functions.move_to_end(key)
            if len(functions) > MOST_FUNCTIONS:
                functions.popitem(last=False)
        elif key in functions:
            functions.move_to_end(key)
        return functions.get(key)

    @method(concurrency_group=CONTROL)
    def give_back(self, number: int) -> int:
        """Begin no more tasks of this batch; returns how many there were, all of them at its end."""
        current, waiting = self._current
        count = 0
        while current == number and waiting:
            try:
                waiting.pop()
            except IndexError:
                break
            count += 1
        return count

    def outcomes(self, number: int) -> list[bytes] | None:
        """Each outcome of the last batch by itself, pickled, when all of them together could not be sent.

        None: that batch was not run.
        """
        import cloudpickle

        last, outcomes = self._last
        self._last = (0, [])
        if last != number:
            return None
        found = []
        for success, value in outcomes:
            try:
                found.append(cloudpickle.dumps((success, value)))
            except Exception as error:  # noqa: BLE001 - whatever pickling of the user's value raises.
                found.append(
                    cloudpickle.dumps((False, _describe("the pickling of a result", _unsendable(value, error))))
                )
        return found


def _unsendable(value: Any, error: BaseException) -> Exception:
    from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]

    made: Exception = MaybeEncodingError(error, value)
    return made


def _describe(what: Any, error: BaseException) -> TaskError:
    name = what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)
    return make_task_error(name, error, os.getpid())


def chunks_of(iterable: Iterable[Any], size: int) -> Iterable[list[Any]]:
    """Lists of `size` elements; the last may be shorter."""
    from itertools import islice

    iterator = iter(iterable)
    while chunk := list(islice(iterator, size)):
        yield chunk
