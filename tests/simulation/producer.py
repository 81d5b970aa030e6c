"""Streams of a generator's items: the worker's side (the counterpart of moray.runtime.stream_producer, STREAM)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from moray.core.streams import Making
from moray.protocol import messages as m
from moray.runtime.work import Called, Queued
from tests.simulation import programs
from tests.simulation.context import Context
from tests.simulation.network import End
from tests.simulation.objects import ItemMade
from tests.simulation.user_code import Code, InterruptError, Open

if TYPE_CHECKING:
    from tests.simulation.worker import Worker

#: As in moray.runtime.stream_producer.
_SEND_AFTER_S: Final = 0.0003
_TICK_S: Final = 0.001
#: How often a generator that waits looks whether its owner lives.
_HEARTBEAT_S: Final = 0.25


class Producer:
    """One generator that runs here."""

    def __init__(self, worker: Worker, work: Queued | Called, extra: m.TaskExtra) -> None:
        spec = extra.stream or m.StreamSpec()
        self._worker = worker
        self._work = work
        self._attempt = extra.attempt
        self.making = Making(spec.skip, spec.ahead)
        #: (index, item) not yet sent, oldest first.
        self.out: deque[tuple[int, m.StreamItem | ItemMade]] = deque()
        self._flushed = 0.0
        self._armed = False
        self._resume: Callable[[], None] = lambda: None
        self._key = work.connection.peer.name, work.spec.seq
        worker.producers[self._key] = self

    def unsent(self) -> list[Any]:
        return [item.item if isinstance(item, ItemMade) else item for _index, item in self.out]

    def _connection(self) -> End:
        connection: Any = self._work.connection
        if isinstance(self._work, Called):
            connection = self._work.caller.connection
        assert isinstance(connection, End)
        return connection

    def _is_orphan(self) -> bool:
        return bool(self._work.connection.peer.dead)

    # --- the generator's thread -----------------------------------------------------------------------

    def run(self, context: Context) -> Code[None]:
        """Send all items."""
        for index in range(programs.item_count(context)):
            size, refs = yield from programs.make_item(context, index)
            yield from self._put(size, refs)
            if self.making.must_pause():
                yield from self._pause()
            if self._work.cancelled:
                raise InterruptError
            if self._is_orphan():
                break

    def _put(self, size: int, refs: list[Any]) -> Code[None]:
        making, worker = self.making, self._worker
        index = making.made
        if not making.wanted():
            making.made += 1
            return
        content = worker.pickle(refs)
        item = m.StreamItem(b"" if size else content, size)
        if size:
            object_id = worker.id_of(self._key[0], self._key[1] << 32 | (index + 1))
            yield from worker.values.write(object_id, size, content, acknowledged=True)
        if refs:
            item.contained = [ref.entry.id for ref in refs]
            gated = ItemMade(self._key[0], item, [ref.hold() for ref in refs], self._passed)
            self.out.append((index, gated))
            worker.references.finish_item(gated)
        else:
            self.out.append((index, item))
        making.made = index + 1
        if size or worker.world.now - self._flushed > _SEND_AFTER_S:
            self.flush()
        elif not self._armed:
            self._arm()

    def _pause(self) -> Code[None]:
        """Wait until the generator may be resumed; a cancel ends that, too."""
        worker = self._worker
        if not self.flush():
            self._announce()
        worker.blocked()
        try:
            while self.making.must_pause() and not (self._work.cancelled or self._is_orphan()):
                yield Open(self._wait)
        finally:
            worker.unblocked()

    def _announce(self) -> None:
        """Say how far the generator is."""
        if self.making.must_pause():
            self._connection().send(m.StreamItems(self._key[1], self._attempt, self.making.made, []))

    def _wait(self, resume: Callable[[Any], None]) -> None:
        self._resume = lambda: resume(None)
        self._worker.later(_HEARTBEAT_S, lambda: resume(None))

    def finish(self) -> Code[None]:
        """Return when all items were sent."""
        self.flush()
        while self.out and not self._is_orphan():
            yield self._wait
        self._worker.producers.pop(self._key, None)

    # --- the loop ---------------------------------------------------------------------------------------

    def flush(self) -> bool:
        """Send the items that may go; whether there were any."""
        ready: list[m.StreamItem] = []
        first = self.out[0][0] if self.out else 0
        for _index, item in islice(self.out, len(self.out)):
            if isinstance(item, m.StreamItem):
                ready.append(item)
            elif item.passed:
                ready.append(item.item)
            else:
                break
        if ready:
            self._connection().send(m.StreamItems(self._key[1], self._attempt, first, ready))
            for _ in ready:
                self.out.popleft()
        self._flushed = self._worker.world.now
        return bool(ready)

    def _arm(self) -> None:
        self._armed = True
        self._worker.later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._armed = False
        if self._worker.world.now - self._flushed > _SEND_AFTER_S:
            self.flush()
        if self.out and isinstance(self.out[0][1], m.StreamItem):
            self._arm()

    def _passed(self) -> None:
        """An item has passed the reference protocol."""
        self.flush()
        if not self.out:
            self._resume()

    def credit(self, attempt: int, consumed: int) -> None:
        """The owner tells how much its consumer has taken."""
        if attempt == self._attempt:
            self.making.credit(consumed)
            self._resume()
