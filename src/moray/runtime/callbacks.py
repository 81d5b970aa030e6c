"""The thread that completes futures and callbacks (CALLBACKS): started at the first one, ended at shutdown."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Callbacks:
    """Runs posted calls one after another in a thread of its own."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        #: Guarded by the lock.
        self._thread: threading.Thread | None = None

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` made soon. Any thread."""
        self._queue.put(call)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="moray-callbacks", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            try:
                call()
            except Exception:  # noqa: BLE001 - the user's callback; the thread serves the others too.
                import traceback

                traceback.print_exc()

    def close(self) -> None:
        """End the thread after what is queued."""
        thread = self._thread
        if thread is not None:
            self._queue.put(None)
            if thread is not threading.current_thread():
                thread.join(timeout=5)
