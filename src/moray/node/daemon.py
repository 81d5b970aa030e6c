"""A daemon that is a child of its node: started, watched by its pidfd, reaped, and how long to wait before the next.

The head (:mod:`moray.node.head_process`) and the relay (:mod:`moray.node.relay_process`) are such. What one that has
died means is theirs to say. One that dies at once, again and again, is started with growing pauses.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from moray.platform import process_control
from moray.platform.memory_files import create_memory_file
from moray.protocol.reactor import READ, Timer

if TYPE_CHECKING:
    from moray.protocol.reactor import Reactor

#: The pause before the next one is started after one that died; it doubles while they die young.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
#: One that has lived so long did not die of its start.
_HEALTHY_S: Final = 10.0


class Daemon(ABC):
    """At most one process at a time, which runs `main`. Loop only.

    Args:
        reactor: the node's.
        main: the module whose function ``main`` it runs.
        title: what stands in the list of processes before `name`.
        name: of the session.
        log_path: the file that its output is added to.
    """

    def __init__(self, reactor: Reactor, main: str, title: str, name: str, log_path: str) -> None:
        self._reactor = reactor
        self._main = main
        self._title = title
        self._name = name
        self._log_path = log_path
        #: 0: none runs.
        self.pid = 0
        self._pidfd = -1
        #: When the last start began, whether or not it came to a process.
        self._began = 0.0
        self._pause_s = _FIRST_PAUSE_S
        #: The longest pause between two.
        self.longest_pause_s = _LONGEST_PAUSE_S
        #: Ends the pause that is going on; None: none is.
        self._timer: Timer | None = None

    def close(self) -> None:
        """Kill it, and start no other. Its end is waited for: SIGKILL takes no time."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pidfd >= 0:
            process_control.kill_pidfd(self._pidfd)
            process_control.wait_pidfd(self._pidfd, None)
            self._forget()

    @abstractmethod
    def _died(self) -> None:
        """It has ended by itself. To be followed by :meth:`_forget`."""

    def _spawn(self, config: msgspec.Struct, *descriptors: int) -> None:
        """Start it: its descriptor 0 holds `config`, 1 is the first of `descriptors`, 2 its log, from 3 on the rest.

        They stay the caller's to close. Raises OSError; then nothing runs.
        """
        held: list[int] = []
        try:
            held.append(create_memory_file(f"{self._title}-config", msgspec.msgpack.encode(config)))
            held.append(os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
            code = process_control.daemon_code(self._main, list(sys.modules["moray"].__path__), sys.path)
            settings, log_file = held
            first, *others = descriptors
            self.pid = process_control.spawn_daemon(
                [sys.executable, "-c", code, self._title, self._name],
                os.environ,
                [settings, first, log_file, *others],
            )
        finally:
            for fd in held:
                os.close(fd)
        # It is our child, and nobody has reaped it yet: the number is its own.
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            process_control.kill(self.pid)
            self._reap()
            raise
        self._reactor.register(self._pidfd, READ, lambda _events: self._died())

    def _pause(self, then: Callable[[], None]) -> float:
        """Call `then` after the pause that is due, whose length is returned."""
        if monotonic() - self._began > _HEALTHY_S:
            self._pause_s = _FIRST_PAUSE_S
        pause_s = self._pause_s
        self._timer = self._reactor.call_later(pause_s, then)
        self._pause_s = min(2 * pause_s, self.longest_pause_s)
        return pause_s

    def _forget(self) -> None:
        """It has ended: let go what was held for it."""
        self._reactor.unregister(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._reap()

    def _reap(self) -> None:
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # The node's own look at its dead children has found it.
        self.pid = 0
