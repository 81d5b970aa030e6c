"""Nothing leaves the head before what it follows from is stored (DURABLE).

Handlers change the head's memory at once, say what is to be written (:meth:`Commits.write`), and give what they want
to send to :meth:`Commits.after`. All of one turn of the loop is one *batch*: its writes are one transaction, and its
calls are made in the loop when the transaction is committed, in the order in which they were given. Batches follow each
other, also those that write nothing: what one turn learnt of the turn before may not be told earlier than that is
stored. With nothing to store and nothing under way, calls are made at once at the end of the turn.

A transaction that may have to wait for a disk or a network is carried out by the writer's thread. A small one that
need not (:meth:`~moray.head.storage.Storage.commit_now`) is carried out by the loop itself, if none is under way: that
takes less time than two changes of thread.

Several turns that pass during one transaction become one batch, so a slow disk or Redis makes batches larger and not
the head slower. If a transaction fails, nothing that depends on it is ever sent: the head ends, and the next one starts
from what is stored. *Gatherers* are asked for writes when a batch is closed: so what changes often in a turn is
written once, and always with all else of its turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic
from typing import Final, TypeAlias

from moray.head.storage import Storage, StorageError, Write
from moray.node.logs import log
from moray.protocol.reactor import Reactor

Call: TypeAlias = Callable[[], None]

#: A batch that waits takes no further turn when it has so many writes: a transaction holds up all that follow.
_BATCH_WRITES: Final = 10_000
#: So many writes at most, of so many bytes in all, are carried out by the loop itself.
_FEW_WRITES: Final = 32
_FEW_BYTES: Final = 1 << 18
#: If that took longer than this (the disk is slow, or the machine busy), it carries out none for so many times as long.
_MOMENT_S: Final = 0.005
_RESPITE: Final = 10


class _Batch:
    """Writes, and what may be done when they are stored."""

    __slots__ = ("calls", "writes")

    def __init__(self) -> None:
        #: (table, key) → value; None: delete. The last write of a key counts.
        self.writes: dict[tuple[str, bytes], bytes | None] = {}
        self.calls: list[Call] = []

    def rows(self) -> list[Write]:
        return [(table, key, value) for (table, key), value in self.writes.items()]

    def small(self) -> bool:
        """Whether it takes but a moment to write."""
        few = len(self.writes) <= _FEW_WRITES
        return few and sum(len(value) for value in self.writes.values() if value is not None) <= _FEW_BYTES


class Commits:
    """See the module. All but the thread's own function: loop only."""

    def __init__(self, storage: Storage, reactor: Reactor, on_failure: Callable[[StorageError], None]) -> None:
        self._storage = storage
        self._reactor = reactor
        self._on_failure = on_failure
        #: What the loop gathers.
        self._open = _Batch()
        #: Gathered, and waiting for the writer: each turn is in one of them as a whole.
        self._closed: deque[_Batch] = deque()
        #: The one that the writer has, if any; it has none when this is None.
        self._writing: _Batch | None = None
        #: To the writer: batches, and None for its end. From it: why a batch failed, and when it was begun.
        self._work: SimpleQueue[_Batch | None] = SimpleQueue()
        self._finished: deque[tuple[StorageError | None, float]] = deque()
        self.failed = False
        #: Called before a batch is closed.
        self.gatherers: list[Call] = []
        #: When the last transaction that was carried out began (monotonic): then this was still the head.
        self.confirmed_at = monotonic()
        #: Transactions so far.
        self.count = 0
        #: Until then (monotonic), the loop carries out none.
        self._left_until = 0.0
        self._writer = threading.Thread(target=self._run, name="head-writer", daemon=True)
        self._writer.start()
        reactor.hooks.append(self.turn)

    def write(self, table: str, key: bytes, value: bytes | None) -> None:
        """Store a value (None: remove it) with all else of this turn."""
        self._open.writes[table, key] = value

    def after(self, call: Call) -> None:
        """Make a call when all that was written so far is stored."""
        self._open.calls.append(call)

    def check(self) -> None:
        """See whether this head is still the one (HEAD-EPOCH), by a transaction without writes."""
        if self._writing is None and not self.failed and not self._closed:
            self._give(self._close_batch())

    def close(self) -> None:
        """Carry out what is under way, and end the thread."""
        self._work.put(None)
        self._writer.join()

    def end_with(self, table: str, key: bytes, value: bytes) -> None:
        """This head fails: store one last value, and nothing of what it was about to change."""
        self.close()
        self.failed = True
        try:
            self._storage.commit([(table, key, value)])
        except StorageError as error:
            log(f"why the head failed cannot be stored: {error}")

    # --- the loop ------------------------------------------------------------------------------------

    def turn(self) -> None:
        """At the end of a turn, and before the loop sleeps."""
        while self._finished:
            failure, began = self._finished.popleft()
            batch, self._writing = self._writing, None
            assert batch is not None
            if not self._stored(batch, failure, began):
                return
        # Calls may have written more.
        while not self.failed and self._writing is None:
            batch = self._closed.popleft() if self._closed else self._close_batch()
            if batch.writes:
                if not self._write_now(batch):
                    self._give(batch)
            elif batch.calls:
                self._make(batch)
            else:
                return
        if len(self._open.writes) > _BATCH_WRITES:
            self._closed.append(self._close_batch())

    def _close_batch(self) -> _Batch:
        for gather in self.gatherers:
            gather()
        batch, self._open = self._open, _Batch()
        return batch

    def _write_now(self, batch: _Batch) -> bool:
        """Whether the loop has carried out the transaction, or failed to."""
        began, failure = monotonic(), None
        if began < self._left_until or not batch.small():
            return False
        try:
            if not self._storage.commit_now(batch.rows()):
                return False
        except StorageError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the batch is not stored
            failure = StorageError(f"a transaction failed: {error!r}")
        if (took := monotonic() - began) > _MOMENT_S:
            self._left_until = began + _RESPITE * took
        self._stored(batch, failure, began)
        return True

    def _stored(self, batch: _Batch, failure: StorageError | None, began: float) -> bool:
        """A transaction is over: what waited for it may be done, unless it failed."""
        if failure is not None:
            self.failed = True
            self._on_failure(failure)
            return False
        self.count += 1
        self.confirmed_at = began
        self._make(batch)
        return True

    @staticmethod
    def _make(batch: _Batch) -> None:
        for call in batch.calls:
            call()

    def _give(self, batch: _Batch) -> None:
        self._writing = batch
        self._work.put(batch)

    # --- the writer's thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while (batch := self._work.get()) is not None:
            failure, began = None, monotonic()
            try:
                self._storage.commit(batch.rows())
            except StorageError as error:
                failure = error
            except BaseException as error:  # noqa: BLE001 - whatever it is, the batch is not stored
                failure = StorageError(f"a transaction failed: {error!r}")
            self._finished.append((failure, began))
            self._reactor.wake()
