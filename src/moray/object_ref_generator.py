"""What a call of a generator returns: references to its items, as they are made (STREAM).

An :class:`Inbox` holds the references of items that have arrived and that nobody has taken. The loop adds to it;
whoever iterates takes from it, in one C step, so that an interrupted or dropped step loses nothing: the
reference ends like any other, and with it the item.

**How the end of interest is noticed** (DEL). Only the :class:`ObjectRefGenerator` holds its inbox; the
runtime has a weak reference (:class:`Dropped`) whose callback is C code. When the generator goes, the unread
references go with it, and the runtime hears of it and ends the task.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

from moray.object_ref import ObjectRef, Origin

if TYPE_CHECKING:
    from moray.ids import TaskID

T_co = TypeVar("T_co", covariant=True)


class Inbox(deque[ObjectRef[Any]]):
    """Items that have arrived, oldest first. For ``wait`` it is what an entry is for an ObjectRef."""

    __slots__ = ("ended", "on_taken", "origin", "ref", "waiters")

    def __init__(self, origin: Origin, ref: ObjectRef[Any], ended: bool = False) -> None:
        super().__init__()
        self.origin = origin
        #: The task's own object: ready when the task has ended.
        self.ref = ref
        #: Nothing will be added any more. Set by the loop after the last item.
        self.ended = ended
        #: To be called when an item was taken: somebody waits for room.
        self.on_taken: Callable[[], None] | None = None
        #: Called in the loop, once, when there is something to take. Under the runtime's waiter lock.
        self.waiters: list[Callable[[], None]] | None = None

    @property
    def ready(self) -> bool:
        """Whether the next step would not wait."""
        return bool(self) or self.ended


class Dropped(weakref.ref[Inbox]):
    """The runtime's weak reference to an inbox."""

    __slots__ = ("task",)
    #: The generator's task, until one of the two has ended.
    task: Any


class ObjectRefGenerator(Generic[T_co]):
    """References to a generator's items, each as soon as the item is there.

    Iterating waits for the next item and gives its ObjectRef; an exception in the generator is the last item, whose
    ``get`` raises it. ``async for`` does the same in an asyncio loop. When this object is dropped, items that were not
    taken are freed, and the task is cancelled.

    Example:
        >>> import moray
        >>> @moray.remote
        ... def count(n):
        ...     for i in range(n):
        ...         yield i
        >>> [moray.get(ref) for ref in count.remote(3)]
        [0, 1, 2]
    """

    __slots__ = ("__weakref__", "_entry")
    #: What wait() looks at.
    _entry: Inbox

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise TypeError("an ObjectRefGenerator comes from calling a remote generator, it is not made by hand")

    @classmethod
    def _over(cls, inbox: Inbox) -> Self:
        self = cls.__new__(cls)
        self._entry = inbox
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ObjectRef[T_co]:
        inbox = self._entry
        while True:
            ended = inbox.ended  # Before the look into the inbox: the loop sets it after the last item.
            try:
                ref = inbox.popleft()
            except IndexError:
                if ended:
                    raise StopIteration from None
                _wait(inbox)
                continue
            if inbox.on_taken is not None:
                inbox.on_taken()
            return ref

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ObjectRef[T_co]:
        inbox = self._entry
        while True:
            ended = inbox.ended
            try:
                ref = inbox.popleft()
            except IndexError:
                if ended:
                    raise StopAsyncIteration from None
                await _arrival(inbox)
                continue
            if inbox.on_taken is not None:
                inbox.on_taken()
            return ref

    def completed(self) -> ObjectRef[Any]:
        """A reference that is ready when the task has ended; ``get`` of it gives None or raises the task's error."""
        return self._entry.ref

    @property
    def _generator_ref(self) -> ObjectRef[Any]:
        return self._entry.ref

    def next_ready(self) -> bool:
        """Whether an item is there to be taken without waiting."""
        return bool(self._entry)

    def is_finished(self) -> bool:
        """Whether the task has ended and all its items were taken."""
        inbox = self._entry
        return inbox.ended and not inbox

    def task_id(self) -> TaskID:
        """The id of the generator's task."""
        return self._entry.ref.task_id()

    def close(self) -> None:
        """Take no more: unread items are freed, and the task is cancelled if it still runs."""
        inbox = self._entry
        self._entry = Inbox(inbox.origin, inbox.ref, ended=True)

    async def aclose(self) -> None:
        """See :meth:`close`."""
        self.close()

    def send(self, value: object) -> NoReturn:
        """Not possible: the generator runs ahead in another process."""
        _refuse("send", value)

    def throw(self, value: object) -> NoReturn:
        """Not possible: the generator runs ahead in another process."""
        _refuse("throw", value)

    async def asend(self, value: object) -> NoReturn:
        """Not possible: the generator runs ahead in another process."""
        _refuse("asend", value)

    async def athrow(self, value: object) -> NoReturn:
        """Not possible: the generator runs ahead in another process."""
        _refuse("athrow", value)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an ObjectRefGenerator cannot be pickled: items come to the process that called the generator. "
            "Pass the ObjectRefs that it gives, e.g. list(generator), or call the generator where they are needed"
        )

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._entry.ref.hex()})"


class DynamicObjectRefGenerator:
    """The value of a call with ``num_returns="dynamic"``: references to all the items that the generator made."""

    def __init__(self, refs: Iterable[ObjectRef[Any]]) -> None:
        self._refs = tuple(refs)

    def __iter__(self) -> Iterator[ObjectRef[Any]]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __repr__(self) -> str:
        return f"DynamicObjectRefGenerator({len(self)} items)"


def _refuse(name: str, value: object) -> NoReturn:
    raise NotImplementedError(
        f"{name}({value!r:.40}) is not possible with a remote generator: it runs ahead in another process; "
        "use an actor for a conversation"
    )


def _wait(inbox: Inbox) -> None:
    """Block this thread until there is something to take, or the end."""
    runtime: Any = inbox.origin.runtime
    runtime.check_usable()
    if inbox.on_taken is not None:
        inbox.on_taken()  # An interrupt may have come between the last taking and its telling (INTERRUPT).
    values = runtime.values
    waiter = runtime.new_waiter()
    blocked = False
    try:
        while not inbox.ready:
            if values.subscribe(inbox, waiter.notify):
                break
            if not blocked:
                blocked = True
                runtime.blocked()
                values.note_wait(waiter, "next()", (inbox,))
            runtime.block(waiter, None)
            values._unsubscribe((inbox,), waiter.notify)
    finally:
        values.forget_wait(waiter)
        values._unsubscribe((inbox,), waiter.notify)
        if blocked:
            runtime.unblocked()
    if runtime.output.pending:
        runtime.output.drain()


async def _arrival(inbox: Inbox) -> None:
    """Wait in the running asyncio loop until there is something to take, or the end."""
    import asyncio

    runtime: Any = inbox.origin.runtime
    runtime.check_usable()
    if inbox.on_taken is not None:
        inbox.on_taken()
    loop = asyncio.get_running_loop()
    event = asyncio.Event()

    def notify() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(event.set)

    def ready() -> None:
        # Not in our loop's thread: a closed asyncio loop raises, and is nobody's problem.
        runtime.values.callbacks.post(notify)

    try:
        if not runtime.values.subscribe(inbox, ready):
            runtime.values.note_wait(event, "async next", (inbox,))
            await event.wait()
    finally:
        runtime.values.forget_wait(event)
        runtime.values._unsubscribe((inbox,), ready)
    if runtime.output.pending:
        runtime.output.drain()
