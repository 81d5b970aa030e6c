"""What user code is to the simulator: a generator that yields *waits*.

A wait is a function that is given a callback and sees to it that it is called once, with the answer. One that is
wrapped in :class:`Open` is the user's own (computing, ``get``): only such a one is ended by an interrupt (CANCEL).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from tests.simulation.process import Process

T = TypeVar("T")

Wait: TypeAlias = Callable[[Callable[[Any], None]], None]


class Open:
    """A wait that an interrupt ends."""

    __slots__ = ("wait",)

    def __init__(self, wait: Wait) -> None:
        self.wait = wait


Code: TypeAlias = Generator[Wait | Open, Any, T]


class InterruptError(BaseException):
    """The running task is being cancelled."""


class Thread:
    """Runs one piece of user code; `then` is called when it is through."""

    def __init__(self, process: Process, code: Code[Any], then: Callable[[], None]) -> None:
        self._process = process
        self._code = code
        self._then = then
        #: Number of the present wait: what belongs to earlier ones comes too late.
        self._wait = 0
        self._open = False
        self.over = False
        self._soon(lambda: self._code.send(None))

    def _soon(self, step: Callable[[], Any]) -> None:
        number = self._wait
        self._process.later(self._process.world.random.random() * 1e-4, lambda: self._go_on(number, step))

    def _go_on(self, number: int, step: Callable[[], Any]) -> None:
        if number != self._wait or self.over:
            return
        self._wait += 1
        try:
            wait = step()
        except StopIteration:
            self.over = True
            self._then()
            return
        self._open = isinstance(wait, Open)
        mine = self._wait

        def resume(answer: Any) -> None:
            if mine == self._wait:
                self._soon(lambda: self._code.send(answer))

        (wait.wait if isinstance(wait, Open) else wait)(resume)

    def cancel(self) -> None:
        """Only coroutines know of cancels: a thread of an actor's asks whether its call is cancelled."""

    def interrupt(self) -> None:
        """Raise InterruptError in the user's code, if it is the user's that runs."""
        if self._open:
            self._soon(lambda: self._code.throw(InterruptError()))


class Coroutine(Thread):
    """Runs a coroutine: each cancel is raised once, where it awaits, or at its next `await`."""

    #: Cancelled, and it does not know yet.
    _cancelled = False

    def cancel(self) -> None:
        """Raise InterruptError in it."""
        self._cancelled = True
        self._wake()

    def _wake(self) -> None:
        if self._cancelled and self._open and not self.over:
            self._soon(lambda: None)

    def _go_on(self, number: int, step: Callable[[], Any]) -> None:
        if number == self._wait and self._cancelled and self._open:
            self._cancelled = False
            step = self._raise
        super()._go_on(number, step)
        if number == self._wait - 1:
            self._wake()

    def _raise(self) -> Any:
        return self._code.throw(InterruptError())
