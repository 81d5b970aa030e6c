"""The pipeline of a compiled graph: the channels to and from its actors, and the executions that are under way.

Each execution's input is written to one channel, and the results are read from others, in order. Who waits for a
result takes out of the channels whatever is there, for everybody: so ``get`` in any order, from any thread, never
blocks another. At most ``max_inflight_executions`` may be under way, which is also the length of all rings, so that no
step ever waits for room. Who begins one more waits for room if somebody waits for those results, or nobody wants
them; if they are the caller's own, and nobody has asked for any of them, it is refused.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from functools import partial
from pickle import dumps
from time import monotonic
from typing import TYPE_CHECKING, Any

from moray import exceptions
from moray.dag import loop as actor_loop
from moray.dag.plan import DRIVER, INPUT_PLACE, GraphPlan
from moray.runtime import state
from moray.runtime.channels import SLOT_BYTES, Channel, ChannelClosed, Reader, Writer, refuse_inside
from moray.runtime.interrupts import TaskInterrupt
from moray.serialization import Serialized, serialize

if TYPE_CHECKING:
    from moray.runtime.runtime import Runtime


class Execution:
    """One execution, as long as somebody may ask for its results."""

    __slots__ = ("__weakref__", "blobs", "number", "thread")

    def __init__(self, number: int, results: int) -> None:
        self.number = number
        #: Who began it. Not its number, which the next thread gets when this one has ended.
        self.thread = threading.current_thread()
        #: One per result, None as long as it is not here: its kind and its blob.
        self.blobs: list[tuple[int, bytes | memoryview] | None] = [None] * results


class Pipeline:
    """The channels to and from the actors. `readers`: one per distinct place that the driver reads."""

    def __init__(self, runtime: Runtime, plan: GraphPlan, slots: int, extent_bytes: int) -> None:
        # Without a way back to this object: a cycle would keep the memory until the next collection of garbage.
        check = partial(_check, runtime)
        self.channels = {place: Channel.create(slots, len(readers)) for place, readers in plan.readers.items()}
        self._writer = Writer(self.channels[INPUT_PLACE], extent_bytes, check)
        places = list(dict.fromkeys(plan.results))
        self._readers = [Reader(self.channels[place], plan.readers[place].index(DRIVER), check) for place in places]
        #: Per reader: which results it brings.
        self._brings = [[i for i, each in enumerate(plan.results) if each == place] for place in places]
        self._results = len(plan.results)
        #: Which reader brings a result.
        self._reader_of = [self._readers[places.index(place)] for place in plan.results]
        #: Held by who writes; by who takes out results.
        self._write_lock, self._read_lock = threading.RLock(), threading.RLock()
        #: Executions that somebody may ask for, by number; and some more, until there are many.
        self._open: dict[int, weakref.ref[Execution]] = {}
        #: Executions whose results somebody asked for, by `ask`; those before them count as asked for.
        self._asked: deque[int] = deque()
        #: The highest that was in `_asked`. With `_write_lock`.
        self._asked_to = 0

    @property
    def completed(self) -> int:
        """All executions up to this one have brought all results."""
        readers = self._readers
        return readers[0].taken if len(readers) == 1 else min(reader.taken for reader in readers)

    @property
    def submitted(self) -> int:
        """How many executions there have been."""
        return self._writer.channel.published

    def submit(self, value: Any, most: int, timeout_s: float) -> Execution:
        """Begin an execution, once fewer than `most` are under way."""
        blob = dumps(value, 5) if type(value) in actor_loop.PLAIN else None
        if blob is None or len(blob) > SLOT_BYTES:
            serialized = serialize_input(value) if blob is None else Serialized(blob, [], [])
        deadline = None if timeout_s < 0 else monotonic() + timeout_s
        refuse_inside(self._write_lock)
        with self._write_lock:
            number = self._writer.channel.published + 1
            self._refuse_unasked(number - most, most)
            if number - self.completed > most and not self.wait_for_room(most, deadline):
                raise exceptions.ChannelTimeoutError(
                    f"{most} executions are under way, the most that there may be, and none of them ended within "
                    f"{timeout_s:g} s: a step takes long, or hangs. _max_inflight_executions and _submit_timeout of "
                    "experimental_compile() change these limits"
                )
            execution = Execution(number, self._results)
            self._open[number] = weakref.ref(execution)
            if blob is not None and len(blob) <= SLOT_BYTES:
                self._writer.write_small(blob, actor_loop.VALUE, deadline)
            else:
                self._writer.write(serialized, actor_loop.VALUE, deadline)
        return execution

    def refuse_too_many(self, most: int) -> None:
        """Raise GraphCapacityExceededError if this thread may not begin one more before it asks for results."""
        refuse_inside(self._write_lock)
        with self._write_lock:
            self._refuse_unasked(self.submitted + 1 - most, most)

    def _refuse_unasked(self, oldest: int, most: int) -> None:
        # An entry is taken out when it was counted: a thread that is interrupted here leaves it for the next one.
        while self._asked:
            self._asked_to = max(self._asked_to, self._asked[0])
            self._asked.popleft()
        known = self._open.get(oldest)
        if known is None or oldest <= self._asked_to:
            return
        execution = known()
        mine = execution is not None and execution.thread is threading.current_thread()
        del execution  # The error's traceback would keep it.
        if mine:
            raise exceptions.GraphCapacityExceededError(
                f"{most} executions of this graph were begun whose results nobody has asked for, the most "
                "that there may be: get() some of them, drop what is not needed, or give experimental_compile() a "
                "larger _max_inflight_executions"
            )

    def ask(self, number: int) -> None:
        """Somebody asks for a result of this execution. Any thread."""
        if number <= self._asked_to:
            return
        try:
            if self._asked[-1] >= number:
                return  # Who asks again and again leaves no more than once.
        except IndexError:
            pass
        self._asked.append(number)

    def refuse_passing_over(self, number: int, most: int) -> None:
        """Raise GraphCapacityExceededError if a result of this execution may not be taken before earlier ones."""
        if len(self._open) <= most or number <= max([*self._asked, self._asked_to]):
            return
        earlier = sum(each < number and known() is not None for each, known in list(self._open.items()))
        if earlier >= most:
            raise exceptions.GraphCapacityExceededError(
                f"{earlier} executions before number {number} have results that were not fetched, and {most} may be "
                "kept: get() some of them, drop what is not needed, or give experimental_compile() a larger "
                "_max_buffered_results"
            )

    def wait_for_room(self, most: int, deadline: float | None) -> bool:
        """Whether fewer than `most` executions are under way by the deadline. Raises ChannelClosed."""
        while True:
            self.collect()
            behind = min(self._readers, key=lambda reader: reader.taken)
            if self.submitted - behind.taken < most:
                return True
            if not behind.wait(behind.taken + 1, deadline):
                return False

    def collect(self) -> None:
        """Take out all results that are there."""
        refuse_inside(self._read_lock)
        with self._read_lock:
            for reader, brings in zip(self._readers, self._brings, strict=True):
                while (message := reader.peek()) is not None:
                    known = self._open.get(reader.taken + 1)
                    execution = known() if known is not None else None
                    if execution is not None:
                        for index in brings:
                            execution.blobs[index] = message
                    del execution, message  # A large one nobody wants is released when it is done with.
                    reader.advance()

    def forget(self, execution: Execution) -> None:
        """A result of it was fetched. Any thread."""
        if execution.number <= self.completed:
            self._open.pop(execution.number, None)

    def unfetched(self, most: int) -> int:
        """How many executions may still be asked for; exact if it is `most` or more."""
        if len(self._open) >= most:
            for number in [number for number, known in list(self._open.items()) if known() is None]:
                self._open.pop(number, None)
        return len(self._open)

    def wait_for(self, execution: Execution, index: int, deadline: float | None) -> bool:
        """Whether the result is here by the deadline. Raises ChannelClosed."""
        while True:
            self.collect()
            if execution.blobs[index] is not None:
                return True
            # A result that another thread is putting in its place is published already: no wait, another look.
            if not self._reader_of[index].wait(execution.number, deadline):
                return False

    def close(self) -> None:
        """End it. Any thread."""
        for channel in self.channels.values():
            channel.close()


def _check(runtime: Runtime) -> None:
    """Now and then while a thread waits: whether it should."""
    if state.runtime is not runtime:
        raise ChannelClosed
    runtime.check_usable()
    interrupts = getattr(runtime, "interrupts", None)
    if interrupts is not None and threading.current_thread() is threading.main_thread() and interrupts.due():
        raise TaskInterrupt


def serialize_input(value: Any) -> Any:
    """The message of an input. Raises TypeError naming what cannot be pickled."""
    try:
        serialized = serialize(value)
    except RecursionError:
        raise
    except Exception as error:
        from moray.runtime.values import unpicklable

        raise unpicklable(value, "the input of a compiled graph", error) from error
    actor_loop.pin_contained(serialized)
    return serialized
