"""SIGCHLD and SIGTERM as events of the loop.

The interpreter's own handler writes the signal's number to a pipe; the handlers set here exist only so that it does.
SIGINT is ignored: a Ctrl-C is the driver's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

from moray.protocol.reactor import READ, Reactor


class Signals:
    """Calls `handlers` in the loop, once however often the signal came since."""

    def __init__(self, reactor: Reactor, handlers: dict[int, Callable[[], None]]) -> None:
        self._handlers = handlers
        self._pipe, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in handlers:
            signal.signal(number, _note)
        reactor.register(self._pipe, READ, self._on_events)

    def _on_events(self, _events: int) -> None:
        try:
            numbers = os.read(self._pipe, 4096)
        except BlockingIOError:
            return
        for number in dict.fromkeys(numbers):
            if number in self._handlers:
                self._handlers[number]()


def _note(_number: int, _frame: FrameType | None) -> None:
    """The number is in the pipe already."""
