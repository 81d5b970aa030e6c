"""The event loops of local mode: each runs in whichever thread wants something of it, also inside another loop.

A loop is run until what was wanted has happened, or until it is *idle*: nothing is left to do or to wait for, but
what other threads or later calls may bring. So a coroutine that waits for another call does not block its caller.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any


class PrivateLoop(asyncio.SelectorEventLoop):
    """An event loop that stops when it is idle."""

    def __init__(self, on_wake: Callable[[], None] | None = None) -> None:
        #: Called, in any thread, when another thread has given the loop something to do.
        self._on_wake = on_wake
        selector = _Selector()
        super().__init__(selector)
        selector.loop = self
        #: Calls that run in its executor's threads.
        self.in_threads = 0
        #: When idle, wait for other threads instead of stopping.
        self.patient = False
        self._idle = False
        #: When to stop at the latest, by the monotonic clock.
        self.deadline: float | None = None

    def _write_to_self(self) -> None:
        super()._write_to_self()  # type: ignore[misc]
        if self._on_wake is not None:
            self._on_wake()

    def run_in_executor(  # type: ignore[override]  # Its variadic generics say no more than this.
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """See :meth:`asyncio.loop.run_in_executor`: what runs there is waited for."""
        future = super().run_in_executor(executor, func, *args)
        self.in_threads += 1
        future.add_done_callback(self._left_thread)
        return future

    def _left_thread(self, _future: asyncio.Future[Any]) -> None:
        self.in_threads -= 1

    def found_idle(self) -> None:
        """There is nothing to do or to wait for."""
        self._idle = True
        self.stop()

    def run(self, done: Callable[[], bool], patient: bool = False, deadline: float | None = None) -> None:
        """Turn in this thread until `done()`, the deadline (monotonic), or, unless `patient`, until idle.

        Whatever makes `done()` true must call :meth:`stop`. The thread may be running another loop.
        """
        outer = asyncio._get_running_loop()
        task = asyncio.current_task(outer) if outer is not None else None
        try:
            if outer is not None:
                if task is not None:
                    asyncio.tasks._leave_task(outer, task)
                asyncio._set_running_loop(None)
            self.patient, self.deadline, self._idle = patient, deadline, False
            while not done() and not self._idle:
                self.run_forever()
                if deadline is not None and monotonic() >= deadline:
                    break
        finally:
            if outer is not None:
                asyncio._set_running_loop(outer)
                if task is not None:
                    asyncio.tasks._enter_task(outer, task)

    def run_through(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end: its value, or raise its error."""
        task = self.create_task(coroutine)
        task.add_done_callback(lambda _task: self.stop())
        try:
            self.run(task.done, patient=True)
        except BaseException:
            task.cancel()
            raise
        return task.result()

    def end(self) -> None:
        """Cancel what is left, and close, unless it is code in the loop that ends the session."""
        if self.is_closed() or self.is_running():
            return
        for task in asyncio.all_tasks(self):
            task.cancel()
        self.run(lambda: not asyncio.all_tasks(self))
        self.run_through(self.shutdown_asyncgens())
        self.run_through(self.shutdown_default_executor())
        # What refuses to be cancelled goes without a word, as with a process.
        self.set_exception_handler(lambda _loop, _context: None)
        self.close()


class _Selector(selectors.DefaultSelector):
    loop: PrivateLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; tells the loop when it would wait for nothing."""
        loop = self.loop
        # One file is the loop's own, by which threads wake it.
        if timeout is None and not loop.patient and not loop.in_threads and len(self.get_map()) <= 1:
            events = super().select(0)
            if not events:
                loop.found_idle()
            return events
        if loop.deadline is not None:
            left = max(0.0, loop.deadline - monotonic())
            if timeout is None or left < timeout:
                loop.stop()  # After this wait, whatever it brings; the loop is run again if there is time left.
                timeout = left
        return super().select(timeout)
