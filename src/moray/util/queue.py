"""Queues that tasks, actors and drivers share: an actor holds the items.

A :class:`Queue` can be passed to tasks and actors and put into objects. It lives as long as somebody has it.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import moray

__all__ = ["Empty", "Full", "JoinableQueue", "Queue"]

_T = TypeVar("_T")

#: Calls that may wait in the queue's actor at once. A waiting ``get`` must not keep a ``put`` out, so it is as good as
#: no limit; a waiting coroutine costs some kilobytes.
_MOST_WAITING = 1_000_000


class Empty(queue.Empty):
    """There is no item; also a :class:`queue.Empty`."""


class Full(queue.Full):
    """There is no room; also a :class:`queue.Full`."""


class Queue:
    """A first-in-first-out queue between processes, with the methods of :class:`queue.Queue` and more.

    Items are copied: what is put is pickled, what is got is a new object. An ObjectRef that is put arrives as its
    value; put it into a list to keep it a reference.

    Args:
        maxsize: how many items there may be; 0: any number.
        actor_options: options of the actor that holds the items, such as ``{"name": "jobs", "num_cpus": 0}``.

    Attributes:
        actor: the actor's handle; None after :meth:`shutdown`.
        maxsize: as given.

    Example:
        >>> from moray.util.queue import Queue
        >>> queue = Queue(maxsize=10)
        >>> queue.put("item")
        >>> queue.get(timeout=5)
        'item'
        >>> queue.shutdown()
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        options = {"max_concurrency": _MOST_WAITING, **(actor_options or {})}
        self.actor: Any = moray.remote(_QueueActor).options(**options).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items there are."""
        return self.qsize()

    def qsize(self) -> int:
        """How many items there are."""
        return self._ask(self._actor().qsize)  # type: ignore[no-any-return]

    def empty(self) -> bool:
        """Whether there is no item."""
        return self._ask(self._actor().empty)  # type: ignore[no-any-return]

    def full(self) -> bool:
        """Whether there is no room."""
        return self._ask(self._actor().full)  # type: ignore[no-any-return]

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item; wait for room if there is none.

        Raises:
            Full: there is no room, within `timeout` seconds if given, or now if not `block`.
            ValueError: a negative `timeout`.
        """
        if block:
            self._ask(self._actor().put, item, _checked(timeout))
        else:
            self._ask(self._actor().put_nowait, item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item; wait for one if there is none.

        Raises:
            Empty: there is none, within `timeout` seconds if given, or now if not `block`.
            ValueError: a negative `timeout`.
        """
        if block:
            return self._ask(self._actor().get, _checked(timeout))
        return self._ask(self._actor().get_nowait)

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ASYNC109 - part of the interface.
        """:meth:`put` in an asyncio loop."""
        if block:
            await self._ask_async(self._actor().put, item, _checked(timeout))
        else:
            await self._ask_async(self._actor().put_nowait, item)

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - part of the interface.
        """:meth:`get` in an asyncio loop."""
        if block:
            return await self._ask_async(self._actor().get, _checked(timeout))
        return await self._ask_async(self._actor().get_nowait)

    def put_nowait(self, item: Any) -> None:
        """Add an item. Full if there is no room."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """Take the oldest item. Empty if there is none."""
        return self.get(block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all of `items`, in their order, in one step. Full, and none is added, if there is no room for all."""
        if not isinstance(items, Iterable):
            raise TypeError(f"put_nowait_batch() takes an iterable of items, not {type(items).__name__}")
        self._ask(self._actor().put_nowait_batch, list(items))

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take the oldest `num_items`, in one step. Empty, and none is taken, if there are fewer."""
        if not isinstance(num_items, int):
            raise TypeError(f"get_nowait_batch() takes a number of items, not {type(num_items).__name__}")
        if num_items < 0:
            raise ValueError(f"get_nowait_batch({num_items}): give a number of at least 0")
        return self._ask(self._actor().get_nowait_batch, num_items)  # type: ignore[no-any-return]

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the actor, for everybody; items that are left are lost.

        Args:
            force: at once. Otherwise calls that it has got before are answered first, as far as they need not wait.
            grace_period_s: after so many seconds it is killed.
        """
        actor, self.actor = self.actor, None
        if actor is None:
            return
        if force:
            moray.kill(actor)
            return
        end = actor.__ray_terminate__.remote()
        try:
            moray.get(end, timeout=grace_period_s)
        except moray.exceptions.GetTimeoutError:
            moray.kill(actor)
        except moray.exceptions.ActorError:
            pass  # It has ended.

    def __repr__(self) -> str:
        return f"{type(self).__name__}(maxsize={self.maxsize}, actor={self.actor!r})"

    def _actor(self) -> Any:
        if self.actor is None:
            raise RuntimeError("the queue was shut down")
        return self.actor

    @staticmethod
    def _ask(method: Any, *args: Any) -> Any:
        """The answer; if the wait for it is interrupted, the call is taken back, so that it takes no item."""
        ref = method.remote(*args)
        try:
            return moray.get(ref)
        except (queue.Empty, queue.Full) as error:
            raise _plain(error) from None
        except moray.exceptions.MorayError:
            raise
        except BaseException:
            moray.cancel(ref)
            raise

    @staticmethod
    async def _ask_async(method: Any, *args: Any) -> Any:
        ref = method.remote(*args)
        try:
            return await ref
        except (queue.Empty, queue.Full) as error:
            raise _plain(error) from None
        except moray.exceptions.MorayError:
            raise
        except BaseException:
            moray.cancel(ref)
            raise


class JoinableQueue(Queue):
    """A :class:`Queue` that counts what is done, with the methods of ``multiprocessing.JoinableQueue``.

    It can be passed to tasks and actors.

    Example:
        >>> import moray
        >>> from moray.util.multiprocessing import JoinableQueue
        >>> @moray.remote
        ... def work(queue):
        ...     while queue.get() is not None:
        ...         queue.task_done()
        ...     queue.task_done()
        >>> queue = JoinableQueue()
        >>> worker = work.remote(queue)
        >>> for item in (1, 2, None):
        ...     queue.put(item)
        >>> queue.join()
    """

    def task_done(self) -> None:
        """One item that was got is done. ValueError if that is more than were put."""
        self._ask(self._actor().task_done)

    def join(self) -> None:
        """Wait until all items that were put are done."""
        self._ask(self._actor().join)

    def close(self) -> None:
        """Nothing: the queue ends when nobody has it any more."""

    def join_thread(self) -> None:
        """Nothing: what is put is there when :meth:`put` returns."""

    def cancel_join_thread(self) -> None:
        """Nothing: see :meth:`join_thread`."""


class _QueueActor:
    """Holds the items. Its methods run in one event loop: what has no ``await`` is one step."""

    def __init__(self, maxsize: int) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        return self._queue.qsize()

    async def empty(self) -> bool:
        return self._queue.empty()

    async def full(self) -> bool:
        return self._queue.full()

    async def put(self, item: Any, timeout: float | None = None) -> None:  # noqa: ASYNC109 - part of the interface.
        if not self._queue.full():
            self._queue.put_nowait(item)
            return
        await _within(timeout, lambda: self._queue.put(item), Full)

    async def get(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - part of the interface.
        if not self._queue.empty():
            return self._queue.get_nowait()
        return await _within(timeout, self._queue.get, Empty)

    async def put_nowait(self, item: Any) -> None:
        if self._queue.full():
            raise Full(f"the queue is full: {self._queue.maxsize} items")
        self._queue.put_nowait(item)

    async def get_nowait(self) -> Any:
        if self._queue.empty():
            raise Empty("the queue is empty")
        return self._queue.get_nowait()

    async def put_nowait_batch(self, items: list[Any]) -> None:
        here, most = self._queue.qsize(), self._queue.maxsize
        if 0 < most < here + len(items):
            raise Full(f"cannot add {len(items)} items: the queue has {here}, and room for {most}")
        for item in items:
            self._queue.put_nowait(item)

    async def get_nowait_batch(self, num_items: int) -> list[Any]:
        here = self._queue.qsize()
        if num_items > here:
            raise Empty(f"cannot get {num_items} items: the queue has {here}")
        return [self._queue.get_nowait() for _ in range(num_items)]

    async def task_done(self) -> None:
        self._queue.task_done()

    async def join(self) -> None:
        await self._queue.join()


async def _within(timeout: float | None, step: Callable[[], Awaitable[_T]], error: type[Exception]) -> _T:  # noqa: ASYNC109 - part of the interface.
    """The step's value, or `error` if it takes too long."""
    if timeout == 0:
        raise error("the queue is empty" if error is Empty else "the queue is full")
    try:
        return await asyncio.wait_for(step(), timeout)
    except TimeoutError:
        what = "no item came" if error is Empty else "there was no room"
        raise error(f"{what} within {timeout} s") from None


def _plain(error: Exception) -> Exception:
    """The same as raised in this process."""
    cause: Any = getattr(error, "cause", error)
    return Empty(*cause.args) if isinstance(error, queue.Empty) else Full(*cause.args)


def _checked(timeout: float | None) -> float | None:
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout={timeout}: give seconds of at least 0, or None")
    return timeout
