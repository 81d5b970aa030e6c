"""Makes an asyncio event loop of a worker's main thread the leader of its reactor."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

from moray.protocol.reactor import READ

if TYPE_CHECKING:
    from moray.runtime.worker import Worker


class LoopSelector(selectors.EpollSelector):
    """Turns the reactor while the event loop has nothing to do."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker
        #: Some descriptor of asyncio's is ready. Set by whoever turns the reactor.
        self._ready = False
        worker.reactor.register(self.fileno(), READ, self._noted)

    def _noted(self, _events: int) -> None:
        self._ready = True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready for asyncio, after a turn of the reactor."""
        self._worker.turn_for_event_loop(timeout)
        if not self._ready:
            return []
        self._ready = False  # Before the look: it is ready again as long as somebody has something to read.
        return super().select(0)
