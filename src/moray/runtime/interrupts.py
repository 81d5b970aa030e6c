"""Ending what a worker's main thread runs, without ending the worker (CANCEL).

The loop, led by the I/O thread, sends the main thread a signal, again and again until the task is over. Python runs
the handler in the main thread between two bytecodes, and it interrupts blocking system calls. The handler raises
:class:`TaskInterrupt` only if

- what runs now is what is to be ended,
- the user's code is not already dealing with it: what its ``finally`` blocks do is done to the end, and
- the interrupted code is the user's: no frame of ours lies between it and the executor's, so that no state of ours
  is left half changed. A wait of ours (``get``) is ended by waking it: it looks at :meth:`Interrupts.due` and raises
  itself.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import CellType, CodeType, FrameType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

from moray.runtime.work import Construction, Work

if TYPE_CHECKING:
    from moray.runtime.runtime import Waiter
    from moray.runtime.worker import Worker

#: Nobody else's, most likely: SIGINT and SIGUSR1/2 are the user's.
SIGNAL: Final = signal.SIGRTMIN + 7
#: A signal is swallowed inside a finalizer, and left alone while code of ours runs: so it is sent again.
REPEAT_S: Final = 0.1
#: So many errors that came while others were handled are looked through.
_DEEPEST_CONTEXT: Final = 20

#: The code of ours that calls the user's functions: what is above it on the stack is the user's.
bases: set[CodeType] = set()
#: Packages of ours that are libraries: their frames are like the user's.
_LIBRARIES: Final = ("moray.util", "moray.data", "moray.train", "moray.tune", "moray.serve", "moray.rl")


class TaskInterrupt(KeyboardInterrupt):
    """The running task is being cancelled. Not an Exception: ordinary handlers let it pass."""


def base(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate what calls the user's functions."""
    bases.add(function.__code__)
    return function


class Interrupts:
    """Of one worker. `target` is set by the loop and read by the main thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._main = threading.main_thread().ident or 0
        #: What is to be ended.
        self.target: Work | Construction | None = None
        #: What the main thread waits for in moray, if it does.
        self.waiting: Waiter | None = None

    def install(self) -> None:
        """Take the signal. Main thread."""
        signal.signal(SIGNAL, self._on_signal)

    def request(self, work: Work | Construction) -> None:
        """End `work`, which the main thread runs. Loop only."""
        self.target = work
        self._repeat(work)

    def _repeat(self, work: Work | Construction) -> None:
        worker = self._worker
        if self.target is not work or worker.executor.current is not work:
            return
        signal.pthread_kill(self._main, SIGNAL)
        waiting = self.waiting
        if waiting is not None:
            waiting.notify()
        worker.reactor.call_later(REPEAT_S, lambda: self._repeat(work))

    def due(self) -> bool:
        """Whether what the main thread runs is to be ended, and does not know it. Main thread."""
        target = self.target
        return target is not None and target is self._worker.executor.current and not _is_handled()

    def _on_signal(self, _number: int, frame: FrameType | None) -> None:
        if not self.due():
            return
        at: FrameType | None = frame
        while at is not None:
            if at.f_code in bases:
                if at is frame:
                    return  # Before or after the user's part.
                raise TaskInterrupt
            if _is_ours(at):
                return
            at = at.f_back


def _is_handled() -> bool:
    """Whether this thread is in a handler or a ``finally`` block of an interrupt, or in one of an error in there."""
    error = sys.exc_info()[1]
    for _ in range(_DEEPEST_CONTEXT):
        if error is None:
            return False
        if isinstance(error, TaskInterrupt):
            return True
        error = error.__context__
    return False


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return isinstance(name, str) and name.startswith("moray.") and not name.startswith(_LIBRARIES)


def interruptible(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, or one that calls it from a frame that is not ours: a C function has no frame of its own."""
    if isinstance(function, (FunctionType, MethodType)):
        return function
    return FunctionType(_CALL, {"__name__": "__moray_user__"}, closure=(CellType(function),))


def _wrap(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: call(*args, **kwargs)  # noqa: PLW0108 - its frame is what it is for.


#: The code of the wrapper, to be run with globals that are not ours.
_CALL: Final[CodeType] = _wrap(print).__code__
