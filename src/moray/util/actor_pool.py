"""``ActorPool``: work for a fixed set of actors, each with one call at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import moray

__all__ = ["ActorPool"]

V = TypeVar("V")


class ActorPool(Generic[V]):
    """Gives calls to actors that are idle, and their results back in order or as they come.

    Args:
        actors: handles; none of them should belong to another pool.

    Example:
        >>> import moray
        >>> from moray.util import ActorPool
        >>> @moray.remote
        ... class Doubler:
        ...     def double(self, x):
        ...         return 2 * x
        >>> pool = ActorPool([Doubler.remote(), Doubler.remote()])
        >>> list(pool.map(lambda actor, x: actor.double.remote(x), [1, 2, 3]))
        [2, 4, 6]
    """

    def __init__(self, actors: list[Any]) -> None:
        #: Actors without a call.
        self._idle_actors: list[Any] = list(actors)
        #: What a call returned → (its number, its actor). A call with several results: the tuple of its references.
        self._future_to_actor: dict[Any, tuple[int, Any]] = {}
        #: Number of a call → what it returned.
        self._index_to_future: dict[int, Any] = {}
        self._next_task_index = 0
        self._next_return_index = 0
        #: (function, value) of calls that wait for an actor, oldest first.
        self._pending_submits: list[tuple[Callable[[Any, V], Any], V]] = []

    def map(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """Results of ``fn(actor, value)`` for each of `values`, in their order.

        Args:
            fn: makes the call: ``lambda actor, value: actor.method.remote(value)``.
            values: all are submitted at once; results of earlier submits that nobody took are dropped.
        """
        self._submit_all(fn, values)
        return self._drain(self.get_next)

    def map_unordered(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """:meth:`map` in the order in which results come."""
        self._submit_all(fn, values)
        return self._drain(self.get_next_unordered)

    def submit(self, fn: Callable[[Any, V], Any], value: V) -> None:
        """Have ``fn(actor, value)`` called with the next idle actor."""
        if not self._idle_actors:
            self._pending_submits.append((fn, value))
            return
        actor = self._idle_actors.pop()
        try:
            future = fn(actor, value)
        except BaseException:
            self._idle_actors.append(actor)
            raise
        index = self._next_task_index
        self._future_to_actor[_key(future)] = index, actor
        self._index_to_future[index] = future
        self._next_task_index = index + 1

    def has_next(self) -> bool:
        """Whether there are results that nobody has taken, or will be."""
        return bool(self._future_to_actor)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submits.

        Args:
            timeout: seconds to wait. None: without a limit.
            ignore_if_timedout: a call that was too slow is given up: its actor is taken as idle, its result is dropped.

        Raises:
            StopIteration: there are no more results.
            TimeoutError: it was not there in time.
            ValueError: after :meth:`get_next_unordered` had taken a later one.
        """
        if not self.has_next():
            raise StopIteration("No more results to get")
        future = self._index_to_future.get(self._next_return_index)
        if future is None:
            raise ValueError(
                f"get_next(): result {self._next_return_index} was taken by get_next_unordered(); use only one of "
                "the two until has_next() is False"
            )
        is_there = self._is_ready([future], timeout)
        if not is_there and not ignore_if_timedout:
            raise TimeoutError(f"result {self._next_return_index} was not ready within {timeout} s")
        return self._take(future, is_there, timeout)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result that comes; of several calls that are too slow, the oldest is given up.

        Arguments and errors are those of :meth:`get_next`.
        """
        if not self.has_next():
            raise StopIteration("No more results to get")
        futures = [self._index_to_future[index] for index in sorted(self._index_to_future)]
        future = self._is_ready(futures, timeout)
        if future is None and not ignore_if_timedout:
            raise TimeoutError(f"none of {len(futures)} results was ready within {timeout} s")
        return self._take(futures[0] if future is None else future, future is not None, timeout)

    def has_free(self) -> bool:
        """Whether an actor is idle and nothing waits for one."""
        return bool(self._idle_actors) and not self._pending_submits

    def pop_idle(self) -> Any:
        """Take an idle actor out of the pool; None if there is none."""
        return self._idle_actors.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Add an actor. ValueError if it is in the pool."""
        if actor in self._idle_actors or any(actor == busy for _index, busy in self._future_to_actor.values()):
            raise ValueError(f"{actor!r} already belongs to this ActorPool")
        self._return_actor(actor)

    def _submit_all(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> None:
        while self.has_next():
            try:
                self.get_next_unordered(timeout=0, ignore_if_timedout=True)
            except Exception:  # noqa: BLE001, S110 - an error of a call that nobody asked for any more.
                pass
        for value in values:
            self.submit(fn, value)

    def _drain(self, get: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield get()

    @staticmethod
    def _is_ready(futures: list[Any], timeout: float | None) -> Any:
        """The first of the calls that is ready; None if none is within `timeout`. A list is ready when its first is."""
        by_ref = {_key(future)[0] if isinstance(future, (list, tuple)) else future: future for future in futures}
        ready, _rest = moray.wait(list(by_ref), num_returns=1, timeout=timeout)
        return by_ref[ready[0]] if ready else None

    def _take(self, future: Any, is_there: Any, timeout: float | None) -> Any:
        """End the call's bookkeeping in an order that an interrupt cannot spoil, then read its result."""
        index, actor = self._future_to_actor.pop(_key(future))
        del self._index_to_future[index]
        self._next_return_index = max(self._next_return_index, index + 1)
        self._return_actor(actor)
        if not is_there:
            raise TimeoutError(f"result {index} was not ready within {timeout} s, and is given up")
        return moray.get(future)

    def _return_actor(self, actor: Any) -> None:
        self._idle_actors.append(actor)
        if self._pending_submits:
            self.submit(*self._pending_submits.pop(0))


def _key(future: Any) -> Any:
    return tuple(future) if isinstance(future, list) else future
