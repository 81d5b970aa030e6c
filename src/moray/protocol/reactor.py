"""One epoll set per process, and the rule of who may turn it.

**Owner.** Everything that a callback of the reactor touches belongs to the *loop*: whichever thread
holds :attr:`Reactor.lead` while it calls :meth:`Reactor.turn`. In a driver and in a daemon that is
always one thread. A worker's main thread leads while it is idle, so that a task costs no change of
thread, and its I/O thread leads while the main thread computes (:mod:`moray.runtime.worker`).

**Other threads** speak to the loop only by appending to a deque that a hook drains, and then
:meth:`Reactor.wake`, which costs one ``eventfd_write`` if the loop sleeps and nothing otherwise (DEL).

*Why a wake-up cannot be lost:* the loop sets ``sleeping`` before it runs the hooks one last time and
then polls. A producer appends first and reads ``sleeping`` second. Either the hooks see the item, or
the producer sees ``sleeping`` and writes the eventfd, which stays readable until the loop reads it.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
from _thread import allocate_lock
from collections.abc import Callable
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from time import monotonic
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
#: The loop turns at least this often, so that a thread interrupted between its append and its wake
#: delays its message and never loses it (INTERRUPT).
HEARTBEAT_S: Final = 1.0
#: Bytes read at a time. One buffer serves all connections: a fresh one would be mapped and unmapped each time.
RECEIVE_BYTES: Final = 1 << 18

Handler = Callable[[int], None]


class Timer:
    """A call that is due; `cancel` makes it a no-op."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Alarm:
    """Calls back when a table wants to be called next, as it says each time that :meth:`arm` is called. Loop only."""

    def __init__(
        self, reactor: Reactor, due: Callable[[], float | None], ring: Callable[[], None], least_s: float = 0.0
    ) -> None:
        self._reactor = reactor
        self._due_next = due
        self._ring = ring
        #: No sooner than after so many seconds, however much is due.
        self._least_s = least_s
        self._due: float | None = None
        self._timer: Timer | None = None

    def arm(self) -> None:
        due = self._due_next()
        if due == self._due:
            return
        self._due = due
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if due is not None:
            self._timer = self._reactor.call_later(max(self._least_s, due - monotonic()), self._on_time)

    def _on_time(self) -> None:
        self._timer = self._due = None
        self._ring()


class Reactor:
    """epoll, timers, a wake-up, and hooks that run once a turn."""

    def __init__(self) -> None:
        #: Held by the thread that turns the loop.
        self.lead = allocate_lock()
        #: Whether the loop is about to sleep, or sleeps, in epoll_wait.
        self.sleeping = False
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        #: Run before each poll: they drain the deques that other threads fill.
        self.hooks: list[Callable[[], None]] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._tiebreak = itertools.count()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.closed = False
        #: Where connections read into, and cut frames from, before they return to the loop.
        # Not a bytearray, whose every page is written to at once: most processes never receive so much.
        self.scratch = memoryview(mmap(-1, RECEIVE_BYTES, MAP_PRIVATE | MAP_ANONYMOUS))
        self.register(self._eventfd, READ, self._drain_wake)

    def register(self, fd: int, events: int, handler: Handler) -> None:
        """Call ``handler(events)`` in the loop whenever `fd` is ready. Loop only."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """Change what `fd` is watched for. Any thread (one system call, no state)."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Forget `fd`; call it before closing the fd. Loop only."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` in the loop after `delay_s` seconds. Loop only."""
        timer = Timer(monotonic() + delay_s, callback)
        heapq.heappush(self._timers, (timer.due, next(self._tiebreak), timer))
        return timer

    def wake(self) -> None:
        """Make a sleeping loop turn. Any thread, finalizers included."""
        if self.sleeping:
            self.sleeping = False
            os.eventfd_write(self._eventfd, 1)

    def interrupt(self) -> None:
        """Make the loop turn even if it does not look asleep (to hand leadership over)."""
        os.eventfd_write(self._eventfd, 1)

    def turn(self, timeout_s: float = HEARTBEAT_S) -> int:
        """Wait for events once and handle them; return how many. The caller holds `lead`."""
        self.sleeping = True
        for hook in self.hooks:
            hook()
        if self._timers:
            timeout_s = min(timeout_s, max(0.0, self._timers[0][0] - monotonic()))
        ready = self._epoll.poll(timeout_s if self.sleeping else 0)
        self.sleeping = False
        handlers = self._handlers
        if len(ready) == 1:
            fd, events = ready[0]
            handler = handlers.get(fd)
            if handler is not None:
                handler(events)
        else:
            for fd, handler, events in [(fd, handlers.get(fd), events) for fd, events in ready]:
                # An earlier handler of this turn may have closed it, and its number may be that of another one now.
                if handler is not None and handlers.get(fd) is handler:
                    handler(events)
        if self._timers:
            self._run_timers()
        return len(ready)

    def _run_timers(self) -> None:
        now = monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()

    def _drain_wake(self, _events: int) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            pass

    def descriptors(self) -> list[int]:
        """The descriptors of the reactor itself."""
        return [self._epoll.fileno(), self._eventfd]

    def close(self) -> None:
        """Close the epoll set and the eventfd; registered fds stay the callers'."""
        self.closed = True
        self._handlers.clear()
        self._epoll.close()
        os.close(self._eventfd)
