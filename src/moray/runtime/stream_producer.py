"""Streams of a generator's items: the worker's side (STREAM). The owner's is :mod:`moray.runtime.streams`.

The thread that runs the task drives the generator: it serialises each item, writes large ones into the store, and
appends it to :attr:`Producer.out`. Items are sent at once if the last sending is :data:`SEND_AFTER_NS` ago; if they
come quicker they share messages, and a timer of the loop sends what the generator leaves behind when it computes for
long. What it printed before an item goes before it.

An item with references in it waits in `out` until the reference protocol lets it go (REF-SEND), and with it those
behind it: items keep their order, and the result, which ends the stream, is made after all of them were sent.

**Connections.** What an actor sends is kept until its caller has it (:class:`~moray.core.streams.Kept`). When that
one repeats the call on a new connection, what it lacks is sent there, before anything newer and before the result.

**Pauses** (FLOW). The generator is not resumed while its consumer, or those of all the actor's generators together, are
too far behind (:mod:`moray.core.streams`), nor while more than :data:`MOST_FRAMES` frames have not left this process,
nor while an actor's caller has no connection.
"""

from __future__ import annotations

from _thread import RLock
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from itertools import islice
from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from moray import config
from moray.core.streams import Kept, Making, Together
from moray.protocol import messages as m
from moray.protocol.reactor import HEARTBEAT_S
from moray.runtime.interrupts import TaskInterrupt, base
from moray.runtime.references import ItemMade
from moray.runtime.returns import write_result
from moray.runtime.values import unpicklable
from moray.runtime.work import Called
from moray.serialization import NONE_BLOB, Serialized, serialize

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Event

    from moray.protocol.connection import Connection
    from moray.protocol.reactor import Timer
    from moray.runtime.executor import Executor, Loaded
    from moray.runtime.references import TaskToken
    from moray.runtime.work import Caller, Work

#: Items wait at most so long for others to share a message with.
SEND_AFTER_NS: Final = 300_000
#: The same for the loop's timer, whose clock has milliseconds.
TICK_S: Final = 0.001
#: Items are sent when they have so many bytes together.
MESSAGE_BYTES: Final = 1 << 18
#: The generator pauses while so many frames have not been sent, until there are fewer than a quarter of them.
MOST_FRAMES: Final = 32

#: Items that may have been lost with a connection are sent again by so many in a message.
RESENT_ITEMS: Final = 1024

#: … and while so many items in the store are not known to the node.
MOST_UNSEALED: Final = 8

#: What the actor's generators may be ahead together, if that has a limit; one at a time asks.
_together: dict[int, Together] = {}
_together_lock: Final = RLock()

#: (owner's process, seq) → what makes its items here. Threads add, credits look.
_producers: dict[tuple[bytes, int], Producer] = {}


def flush_locks() -> list[Any]:
    """Of all producers: held while their items are sent."""
    return [producer.flush_lock for producer in list(_producers.values())]


class Written:
    """An item in the store, which is not sent before the node knows of it."""

    __slots__ = ("item", "passed")

    def __init__(self, item: m.StreamItem) -> None:
        self.item = item
        self.passed = False


class Producer:
    """One generator that runs here."""

    def __init__(self, executor: Executor, work: Work, extra: m.TaskExtra, name: str) -> None:
        spec = extra.stream or m.StreamSpec()
        self._executor = executor
        self._worker = executor._worker
        self._work = work
        self._name = name
        self._attempt = extra.attempt
        self.making = Making(spec.skip, spec.ahead)
        self._together = _together.setdefault(spec.together, Together(spec.together)) if spec.together >= 0 else None
        #: (index, item) not yet sent, oldest first. The generator's thread appends; whoever flushes takes.
        self.out: deque[tuple[int, m.StreamItem | ItemMade | Written]] = deque()
        self._out_bytes = 0
        #: Items in the store: how many were written (by the generator's thread), and sealed (the loop says).
        self._written = 0
        self._sealed = 0
        #: Why an item could not be kept.
        self._failure: BaseException | None = None
        self.flush_lock = RLock()
        self.flushing: Callable[[], bool] = self.flush_lock._is_owned  # type: ignore[attr-defined]
        self._flushed_ns = 0
        #: The loop will look after `out` within :data:`TICK_S`.
        self._armed = False
        #: Loop only.
        self._timer: Timer | None = None
        #: Ends the pause of the generator's thread or coroutine. Any thread may call it.
        self._resume: Callable[[], None] = lambda: None
        #: The generator waits for the socket, or for the reference protocol.
        self._waits_for_sending = False
        self._worker.handlers.setdefault(m.StreamCredit, _on_credit)
        self._key = (work.connection.peer.origin.process, work.spec.seq)
        #: Of an actor's call: its result, if it passed the reference protocol before items were sent again. Loop only.
        self.end: m.CallResults | None = None
        #: Of an actor's call: items that the caller may not have.
        self._kept = Kept() if type(work) is Called else None
        #: Where to send.
        self._target: Connection = work.connection
        _producers[self._key] = self
        if type(work) is Called:
            work.caller.streams[work.number] = self
            with self.flush_lock:
                # After it can be found there: whoever replaces the connection from here on moves this one, too.
                self._target = work.caller.connection

    # --- the generator's thread ------------------------------------------------------------------------

    @base
    def run(self, iterator: Iterator[Any]) -> None:
        """Send all items. Raises what the generator raises, or what a cancel makes of it."""
        waiter = self._worker.new_waiter()
        self._resume = waiter.notify
        if self._together is not None and not self._may_go_on(waiter):
            return
        for item in iterator:
            self._put(item)
            del item
            if not self._may_go_on(waiter):
                break

    def _may_go_on(self, waiter: Any) -> bool:
        """Wait until another item may be made. False: nobody wants it. Raises what a cancel makes of it."""
        work = self._work
        if self._must_pause() or self._is_congested():
            self._pause(waiter)
        if self._worker.interrupts.target is work:
            raise TaskInterrupt  # The signal finds code of ours here most of the time, and leaves it alone.
        if work.cancelled:
            raise self._executor.cancelled(work, "it was interrupted")
        return not self._is_orphan() and self._failure is None

    @base
    async def run_async(self, iterator: AsyncIterator[Any]) -> None:
        """As :meth:`run`, in the event loop of an async actor."""
        import asyncio

        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        self._resume = lambda: _set_soon(loop, event)
        if self._together is not None and not await self._may_go_on_async(event):
            return
        async for item in iterator:
            self._put(item)
            del item
            if (self._must_pause() or self._is_congested()) and not await self._may_go_on_async(event):
                return

    async def _may_go_on_async(self, event: Any) -> bool:
        """Wait until another item may be made. False: nobody wants it."""
        while self._must_pause() or self._is_congested():
            event.clear()
            self._announce()
            if self._is_congested():
                self._waits_for_sending = True
                self._worker.call_soon(self._arm)
            if self._failure is None and (self._waits_for_sending or self._must_pause()):
                await event.wait()
            self._waits_for_sending = False
            if self._is_orphan() or self._failure is not None:
                return False
        return True

    def _put(self, item: Any) -> None:
        """Serialise an item and have it sent, unless the owner has it from an earlier attempt."""
        making = self.making
        index = making.made
        if not making.wanted():
            making.made += 1
            return
        try:
            packed = serialize(item)
        except Exception as error:  # Pickling runs the user's code.
            raise unpicklable(item, f"item {index} of {self._name}()", error) from error
        if packed.size <= config.INLINE_MAX_BYTES:
            made = m.StreamItem(packed.to_bytes())
            self._out_bytes += packed.size
        else:
            made = m.StreamItem(b"", packed.size)
            self._out_bytes += MESSAGE_BYTES  # It is not to be left behind when this process dies.
            if not packed.contained:
                self._put_large(index, made, packed)
                return
            write_result(self._worker.values, self._work, index + 1, packed)
        if packed.contained:
            made.contained = [ref.binary() for ref in packed.contained]
            gated = ItemMade(self._key[0], made, packed.contained, self._passed)
            self.out.append((index, gated))
            self._worker.references.finish_item(gated)
        else:
            self.out.append((index, made))
        making.made = index + 1
        if self._out_bytes >= MESSAGE_BYTES or perf_counter_ns() - self._flushed_ns > SEND_AFTER_NS:
            self.flush()
        elif not self._armed:
            self._armed = True
            self._worker.call_soon(self._arm)

    def _put_large(self, index: int, made: m.StreamItem, packed: Serialized) -> None:
        """An item for the store: the generator goes on while the node takes note of it (STORE-SEAL)."""
        if self._failure is not None:
            raise self._failure
        written = Written(made)
        work = self._work
        key = work.spec.seq.to_bytes(8, "big") + work.connection.peer.origin.tail + (index + 1).to_bytes(4, "big")
        self.out.append((index, written))
        self._written += 1
        try:
            self._worker.values.write_soon(key, packed, lambda error: self._on_sealed(written, error))
        except BaseException:
            self.out.pop()  # It is the last, and not passed: nobody has taken it.
            self._written -= 1
            raise
        self.making.made = index + 1

    def _on_sealed(self, written: Written, error: BaseException | None) -> None:
        """The node has taken note of an item, or could not. Loop only."""
        self._sealed += 1
        if error is not None:
            self._failure = error
        else:
            written.passed = True
            self.flush()
        self._resume()

    def _must_pause(self) -> bool:
        """Whether the generator may not be resumed now, because of what is unread."""
        if self.making.must_pause():
            return True
        if self._together is None:
            return False
        with _together_lock:
            return not self._together.admit(self.making)

    def _leave_together(self) -> None:
        """The generator has ended: others may go on."""
        if self._together is not None:
            with _together_lock:
                self._together.leave(self.making)
            _resume_waiting(self._together)

    def _must_keep(self) -> bool:
        """Its caller is there and will connect anew, or has not said for long what it has."""
        return self._kept is not None and (self._target.closed or self._kept.is_full())

    def _is_congested(self) -> bool:
        many = len(self._target.out) >= MOST_FRAMES or self._written - self._sealed >= MOST_UNSEALED
        return many or self._must_keep()

    def _is_orphan(self) -> bool:
        """Nobody is there any more who could want the items."""
        return self._work.connection.peer.dead is not None

    def _is_over(self) -> bool:
        """Nobody is there any more who could want the items, or nobody wants them. (No signal ends the wait of a
        threaded actor's call.)"""
        return self._work.cancelled or self._is_orphan()

    def _pause(self, waiter: Any) -> None:
        """Wait until the generator may be resumed; a cancel ends that, too."""
        worker = self._worker
        if self._is_congested():
            self._waits_for_sending = True
            worker.call_soon(self._arm)
            while self._is_congested() and not self._is_over():
                worker.block(waiter, monotonic() + HEARTBEAT_S)
            self._waits_for_sending = False
        if not self._must_pause():
            return
        self._announce()
        worker.blocked()
        try:
            # What could not be kept is not sent, and so never taken.
            while self._must_pause() and self._failure is None and not self._is_over():
                worker.block(waiter, monotonic() + HEARTBEAT_S)
        finally:
            worker.unblocked()

    def _announce(self) -> None:
        """Before a pause: send what is there; if there is nothing, at least how far the generator is."""
        if not self.flush() and self._must_pause():
            work = self._work
            self._target.send(m.StreamItems(work.spec.seq, self._attempt, self.making.made, []))

    def finish(self) -> None:
        """Return when all items were sent. Not in an event loop."""
        self._leave_together()
        waiter = self._worker.new_waiter()
        self._resume = waiter.notify
        self._waits_for_sending = True
        self.flush()
        while self.out and not self._is_orphan() and self._failure is None:
            # Not `block`: what is done already cannot be cancelled.
            self._worker.wake()
            waiter.wait(HEARTBEAT_S)
        self.close()

    async def finish_async(self) -> None:
        """Return when all items were sent."""
        import asyncio

        self._leave_together()

        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        self._resume = lambda: _set_soon(loop, event)
        self._waits_for_sending = True
        self.flush()
        while self.out and not self._is_orphan() and self._failure is None:
            event.clear()
            if self.out:
                await event.wait()
        self.close()

    def items(self) -> int:
        """How many items the owner gets."""
        return self.making.made - len(self.out) if self._failure is not None else self.making.made

    # --- any thread --------------------------------------------------------------------------------------

    def flush(self) -> bool:
        """Send the items that may go, output first; whether there were any."""
        out = self.out
        if not out or self.flushing():  # A signal's handler came in the middle of this.
            return False
        with self.flush_lock:
            # What is added from here on may have printed after the pump: it is for the next flush.
            count = len(out)
            self._worker.output.pump()
            ready: list[m.StreamItem] = []
            first = out[0][0] if out else 0
            for _index, item in islice(out, count):
                if isinstance(item, m.StreamItem):
                    ready.append(item)
                elif item.passed:
                    ready.append(item.item)
                else:
                    break
            if ready:
                if self._kept is not None:
                    self._kept.add(first, ready)
                # Sent before taken: an interrupt in between leads to a repetition, which the owner knows by the index.
                self._target.send(m.StreamItems(self._work.spec.seq, self._attempt, first, ready))
                for _ in ready:
                    out.popleft()
            self._out_bytes = 0
            self._flushed_ns = perf_counter_ns()
        return bool(ready)

    # --- the loop -----------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._worker.reactor.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        """Look after what the generator has left behind, until there is nothing."""
        self._timer = None
        if perf_counter_ns() - self._flushed_ns > SEND_AFTER_NS:
            self.flush()
        waits = self._waits_for_sending
        few_unsealed = self._written - self._sealed < MOST_UNSEALED
        room = few_unsealed and len(self._target.out) < MOST_FRAMES // 4 and not self._must_keep()
        if waits and (room or self._is_orphan()):
            waits = False
            self._resume()
        self._armed = False
        # Looked at after that: an item that was added before it was added by a thread that relied on us.
        if waits or (self.out and type(self.out[0][1]) is m.StreamItem):
            self._armed = True
            self._arm()

    def _passed(self) -> None:
        """An item has passed the reference protocol."""
        self.flush()
        if not self.out:
            self._resume()

    def credit(self, message: m.StreamCredit) -> None:
        """The owner tells how much its consumer has taken, and what it has."""
        if message.attempt == self._attempt:
            if self._kept is not None:
                self._kept.acknowledge(message.received)
            self.making.credit(message.consumed)
            if self._together is not None:
                _resume_waiting(self._together)  # What was taken may be what another one waits for.
            self._resume()

    def resume(self, connection: Connection) -> None:
        """The caller has repeated the call on a new connection, and told before what it has."""
        kept = self._kept
        if kept is None or self._target is connection:
            return
        with self.flush_lock:
            self._target = connection
            first, items = kept.again()
            part: list[m.StreamItem] = []
            size = 0
            for item in [*items, None]:
                if part and (item is None or size >= MESSAGE_BYTES or len(part) >= RESENT_ITEMS):
                    connection.send(m.StreamItems(self._work.spec.seq, self._attempt, first, part))
                    first, part, size = first + len(part), [], 0
                    if connection.broken:
                        break  # It is an old one already: the newest must not wait for what is in vain.
                if item is not None:
                    part.append(item)
                    size += len(item.blob)
        if self.end is not None:
            connection.send(self.end)
            self.end = None
        self._resume()

    def sends_on(self, connection: Connection) -> bool:
        """Whether all items went, or go, by this connection, so that the end may follow."""
        return self._target is connection

    def close(self) -> None:
        """All items were sent: the owner has nothing more to say, unless they may have to be sent again."""
        if self._kept is None or self._is_orphan():
            self.forget()

    def forget(self) -> None:
        """The owner has everything. An attempt that followed may have taken the place in the table."""
        if _producers.get(self._key) is self:
            _producers.pop(self._key, None)


def answer(
    executor: Executor,
    work: Work,
    name: str,
    extra: m.TaskExtra,
    value: Any,
    token: TaskToken | None,
    begin_ns: int,
    loaded: Loaded | None = None,
) -> None:
    """Drive what a generator function returned, and answer the task. The thread that runs it."""
    producer = Producer(executor, work, extra, name)
    try:
        if hasattr(value, "__aiter__"):
            _run_event_loop(producer, value)
        else:
            iterator = _iterator(value, name)
            try:
                producer.run(iterator)
            finally:
                if isinstance(iterator, Generator):
                    iterator.close()  # It may stand at an item; its `finally` blocks belong to the task.
    except BaseException as error:  # noqa: BLE001 - every error of the user's is the task's result.
        producer.finish()
        executor.failed(work, name, error, begin_ns, token, extra, loaded, items=producer.items())
        return
    producer.finish()
    if producer._failure is not None:
        executor.failed(work, name, producer._failure, begin_ns, token, extra, loaded, items=producer.items())
        return
    _respond(executor, work, name, begin_ns, token, producer.making.made, loaded)


@base
def _run_event_loop(producer: Producer, value: AsyncIterator[Any]) -> None:
    """For an async generator that is a task: it has an event loop of its own, whose waits count as the user's."""
    import asyncio

    asyncio.run(producer.run_async(value))


async def answer_async(
    executor: Executor,
    work: Work,
    name: str,
    extra: m.TaskExtra,
    value: AsyncIterator[Any],
    token: TaskToken | None,
    begin_ns: int,
) -> None:
    """As :func:`answer`, for an async generator in the event loop of its actor."""
    import asyncio

    producer = Producer(executor, work, extra, name)
    try:
        try:
            await producer.run_async(value)
        finally:
            if isinstance(value, AsyncGenerator):
                await value.aclose()
    except BaseException as error:  # noqa: BLE001 - every error of the user's is the call's result.
        cancelled = isinstance(error, asyncio.CancelledError)
        await producer.finish_async()
        shown = executor.cancelled(work, "it was interrupted") if cancelled else error
        executor.failed(work, name, shown, begin_ns, token, extra, items=producer.items())
        return
    await producer.finish_async()
    if producer._failure is not None:
        executor.failed(work, name, producer._failure, begin_ns, token, extra, items=producer.items())
        return
    _respond(executor, work, name, begin_ns, token, producer.making.made, None)


def _respond(
    executor: Executor,
    work: Work,
    name: str,
    begin_ns: int,
    token: TaskToken | None,
    items: int,
    loaded: Loaded | None,
) -> None:
    took_ns = perf_counter_ns() - begin_ns
    executor.events.append((name, work.spec.seq, work.connection, begin_ns, took_ns))
    result = m.Result(work.spec.seq, took_ns // 1000, NONE_BLOB, m.ResultExtra(items=items))
    executor.respond(work, result, token, [])
    if loaded is not None and loaded.definition.max_calls:
        executor._count_call(loaded, work.lease)


def _iterator(value: Any, name: str) -> Iterator[Any]:
    try:
        return iter(value)
    except TypeError:
        raise TypeError(
            f"{name}() has num_returns='streaming' or 'dynamic', but returned a {type(value).__name__}, "
            "which is not iterable"
        ) from None


def forget(caller: Caller, answered: int) -> None:
    """The caller has the replies below this number, and so the items that came before them. Loop only."""
    for number in [number for number in list(caller.streams) if number < answered]:
        caller.streams.pop(number).forget()


def forget_owner(process: bytes) -> None:
    """An owner died: what was kept for it is nobody's, and no word of it will end a pause. Loop only."""
    for key in [key for key in list(_producers) if key[0] == process]:
        producer = _producers.pop(key, None)
        if producer is not None:
            producer._resume()


def cancelled(process: bytes, seq: int) -> None:
    """A call in a thread is cancelled, which no signal tells it: a pause ends. Loop only."""
    producer = _producers.get((process, seq))
    if producer is not None:
        producer._resume()


def _resume_waiting(together: Together) -> None:
    """Have those go on that share a limit and may make more. Any thread."""
    with _together_lock:
        admitted = together.admit_waiting()
    if admitted:
        for producer in list(_producers.values()):
            if producer.making in admitted:
                producer._resume()


def _set_soon(loop: AbstractEventLoop, event: Event) -> None:
    """Wake a coroutine. Any thread; its loop may be closed by now."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)


def _on_credit(connection: Connection, message: m.StreamCredit) -> None:
    producer = _producers.get((connection.peer.origin.process, message.seq))
    if producer is not None:
        producer.credit(message)
