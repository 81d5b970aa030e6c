"""A node that is to leave (DrainNode): it gets no new work, and ends when nothing runs there, or at the deadline.

That others send it no work is the head's matter, which has told them. Nothing is moved: restartable actors are started
elsewhere, and objects that only this node has are made again, when it has left.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from moray.node.logs import log

if TYPE_CHECKING:
    from moray.node.node import Node
    from moray.protocol import messages as m

_LOOK_S: Final = 0.5


class Draining:
    """Owned by the node's loop."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._deadline = 0.0
        self._reason = ""

    def begin(self, message: m.DrainNode) -> None:
        """The head says so; a later word may set another deadline."""
        first, self._deadline = not self._deadline, message.deadline
        self._reason = f"the node was drained: {message.reason or 'no reason was given'}"
        log(f"{self._reason}; it leaves within {message.deadline - time.time():.0f} s")
        if first:
            self._look()

    def _look(self) -> None:
        scheduler = self._node.leases.scheduler
        idle = scheduler.available == scheduler.total and all(job.driver is None for job in self._node.jobs.values())
        left_s = self._deadline - time.time()
        if idle or left_s <= 0:
            self._node.end_session(self._reason)
        self._node.reactor.call_later(min(_LOOK_S, left_s), self._look)
