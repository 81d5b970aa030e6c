"""Tasks that hold the workers until they are told to go on.

To measure a queue, nothing may leave it while it is filled. Each blocker reads from its own FIFO: opening
the writing end returns once the blocker runs, and closing it wakes the blocker at once, so
neither side polls and the release costs microseconds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.workloads.base import Api


class Gate:
    """Holds `count` workers from its creation to :meth:`open`."""

    def __init__(self, api: Api, count: int, directory: str) -> None:
        @api.remote
        def hold(path: str) -> bool:
            with open(path, "rb") as fifo:
                return fifo.read() == b""

        self._api = api
        self._refs = []
        #: Writing ends; all are open once every blocker runs.
        self._ends: list[int] = []
        paths = [os.path.join(directory, str(number)) for number in range(count)]
        for path in paths:
            os.mkfifo(path)
            self._refs.append(hold.remote(path))
        for path in paths:
            self._ends.append(os.open(path, os.O_WRONLY))

    def open(self) -> None:
        while self._ends:
            os.close(self._ends.pop())

    def finished(self) -> bool:
        return all(self._api.get(self._refs))


@contextmanager
def gate(api: Api, count: int) -> Iterator[Gate]:
    with tempfile.TemporaryDirectory() as directory:
        held = Gate(api, count, directory)
        try:
            yield held
        finally:
            held.open()
