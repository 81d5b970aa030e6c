"""Descendants that lost their parents.

The node is a child subreaper: whatever a dead worker, or a dead template, had started becomes the node's own child. A
worker's end takes along what is in its process group, in its session, or carries its tag in its environment (which
forks inherit too, see :func:`~moray.platform.process_control.retag`). What a *living* worker detached on purpose
is left alone until that worker ends. At the end of the session everything goes.

Killing an orphan may make orphans of its own children, so dead workers are remembered until a look finds nothing of
theirs. A child in the middle of an exec has no environment: exec gives it its new memory, which is also when whoever
started it goes on, some time before it says where the environment is in there. A zombie has none either. So they are
looked at again.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from moray.launch.config import WORKER_VARIABLE
from moray.platform import process_control, process_table
from moray.platform.process_table import ProcessStat
from moray.protocol.reactor import Reactor, Timer

#: How long the remains of a dead worker are looked for, if they go on appearing.
_REMEMBER_S: Final = 10.0

#: When a child whose environment could not be read is looked at again.
_LOOK_AGAIN_S: Final = 0.05


class Orphans:
    """The children of the node that it did not ask for."""

    def __init__(self, template: int, reactor: Reactor) -> None:
        #: The node's only wanted child.
        self._template = template
        self._reactor = reactor
        #: Dead worker (pid, process id in hex) → when it is forgotten.
        self._ended: dict[tuple[int, str], float] = {}
        #: The next look at children whose environment could not be read.
        self._again: Timer | None = None

    def worker_ended(self, pid: int, process: bytes) -> None:
        """Kill what a dead worker left."""
        process_control.kill_group(pid)
        self._ended[pid, process.hex()] = monotonic() + _REMEMBER_S
        self._kill_remains()

    def reap(self) -> list[tuple[int, int]]:
        """Collect dead children: (pid, exit code or minus the signal) each."""
        dead = []
        try:
            while (found := process_control.reap()) is not None:
                dead.append(found)
        except ChildProcessError:
            pass
        if dead and self._ended:
            self._kill_remains()
        return dead

    def _kill_remains(self) -> None:
        now = monotonic()
        found: set[tuple[int, str]] = set()
        unclear = False
        for child in process_table.children():
            stat = process_table.read_stat(child)
            if child == self._template or stat is None:
                continue
            environment = process_table.environment(child)
            if (worker := self._worker_of(stat, environment)) is not None:
                process_control.kill(child)
                found.add(worker)
            unclear |= not environment
        for worker, until in list(self._ended.items()):
            if now > until or not (unclear or worker in found):
                del self._ended[worker]
        if unclear and self._ended and self._again is None:
            self._again = self._reactor.call_later(_LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._again = None
        self._kill_remains()

    def _worker_of(self, child: ProcessStat, environment: frozenset[bytes]) -> tuple[int, str] | None:
        """The dead worker that `child` comes from; None: not from one that has just died."""
        for pid, process in self._ended:
            if pid in {child.session, child.group} or f"{WORKER_VARIABLE}={process}".encode() in environment:
                return pid, process
        return None


def kill_all_descendants(timeout_s: float) -> int:
    """Kill and reap every child until there is none; orphans become children, so this reaches all descendants.

    Returns how many are left when `timeout_s` has passed: 0, unless the kernel cannot end one.
    """
    deadline = monotonic() + timeout_s
    while monotonic() < deadline:
        for child in process_table.children():
            process_control.kill(child)
        try:
            while process_control.reap() is not None:
                pass
        except ChildProcessError:
            return 0
        process_control.wait_for_child(0.05)
    return len(process_table.children())
