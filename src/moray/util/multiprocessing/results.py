"""What a pool's calls return: results that come later, one by one or as an iterator.

The pool's thread delivers outcomes; any thread may wait. A wait is a plain :class:`threading.Event` that is made by
whoever waits first, since most results are ready, or dropped, before anybody does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import TimeoutError as PoolTimeoutError
from time import monotonic
from typing import Any, Final, Self

from moray.exceptions import TaskError

Callback = Callable[[Any], Any]

#: Marks that there is nothing yet.
_NOTHING: Final = object()


def plain_error(error: BaseException) -> BaseException:
    """What the user's function raised, with the remote traceback as its cause, as in the standard library."""
    if not isinstance(error, TaskError):
        return error
    from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]

    cause = error.cause
    cause.__cause__ = RemoteTraceback(f'\n"""\n{error.traceback_str}\n"""')
    return cause


class AsyncResult:
    """The result of ``apply_async``."""

    def __init__(self, pool: Any, callback: Callback | None = None, error_callback: Callback | None = None) -> None:
        #: Keeps the pool until the result is there.
        self._pool = pool
        self._callback = callback
        self._error_callback = error_callback
        self._success = False
        self._value: Any = None
        self._is_ready = False

    def ready(self) -> bool:
        """Whether the result, or the error, is there."""
        return self._is_ready

    def successful(self) -> bool:
        """Whether there was no error. ValueError if it is not ready."""
        if not self._is_ready:
            raise ValueError(f"{self!r} not ready")
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is ready, or `timeout` seconds."""
        if not self._is_ready:
            event: threading.Event = self.__dict__.setdefault("_event", threading.Event())
            if not self._is_ready:
                event.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The result, or raise what the function raised.

        Raises:
            multiprocessing.TimeoutError: it was not ready within `timeout` seconds.
        """
        self.wait(timeout)
        if not self._is_ready:
            raise PoolTimeoutError(f"the result was not ready within {timeout} s")
        if self._success:
            return self._value
        raise self._value

    def _deliver(self, _index: int, success: bool, value: Any) -> Callable[[], Any] | None:
        """The outcome, in the pool's thread; returns the user's callback if one is to be called."""
        return self._settle(success, value)

    def _settle(self, success: bool, value: Any) -> Callable[[], Any] | None:
        self._success = success
        self._value = value if success else plain_error(value)
        self._pool = None
        self._is_ready = True
        event = self.__dict__.get("_event")
        if event is not None:
            event.set()
        callback = self._callback if success else self._error_callback
        self._callback = self._error_callback = None
        return None if callback is None else lambda: callback(self._value)


class MapResult(AsyncResult):
    """The result of ``map_async`` and ``starmap_async``: a list, or the first error that came."""

    def __init__(
        self, pool: Any, chunks: int, callback: Callback | None = None, error_callback: Callback | None = None
    ) -> None:
        super().__init__(pool, callback, error_callback)
        self._parts: list[Any] = [None] * chunks
        self._left = chunks
        self._error: BaseException | None = None

    def _deliver(self, index: int, success: bool, value: Any) -> Callable[[], Any] | None:
        self._left -= 1
        if success:
            self._parts[index] = value
        elif self._error is None:
            self._error = value
        if self._left:
            return None
        parts, self._parts = self._parts, []
        if self._error is not None:
            return self._settle(False, self._error)
        return self._settle(True, [value for part in parts for value in part])


class IMapIterator(Iterator[Any]):
    """The results of ``imap``, in order."""

    def __init__(self, pool: Any, feeder: Feeder) -> None:
        self._pool = pool
        self._feeder = feeder
        self._changed = threading.Condition()
        #: Elements of the chunk that is being taken.
        self._chunk: deque[Any] = deque()
        #: Chunks that have come, by their number. Guarded by the condition, like the numbers below.
        self._arrived: dict[int, tuple[bool, Any]] = {}
        self._taken = 0
        self._fed = 0
        feeder.attach(self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result, or raise what its function raised.

        Raises:
            StopIteration: there are no more.
            multiprocessing.TimeoutError: it was not there within `timeout` seconds.
        """
        try:
            return self._chunk.popleft()
        except IndexError:
            pass
        while True:
            success, value = self._next_chunk(timeout)
            if not success:
                raise plain_error(value)
            self._chunk.extend(value)
            try:
                return self._chunk.popleft()
            except IndexError:  # Another thread took it.
                continue

    def _next_chunk(self, timeout: float | None) -> tuple[bool, Any]:
        deadline = None if timeout is None else monotonic() + timeout
        self._feeder.feed()
        with self._changed:
            while (number := self._ready_number()) is None:
                if self._taken == self._fed and not self._feeder.open:
                    self._pool = None
                    raise StopIteration
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    raise PoolTimeoutError(f"the next result was not ready within {timeout} s")
                self._changed.wait(left)
            self._taken += 1
            outcome = self._arrived.pop(number)
        self._feeder.feed()
        return outcome

    def _ready_number(self) -> int | None:
        """The chunk to take now. Under the condition."""
        return self._taken if self._taken in self._arrived else None

    def _deliver(self, index: int, success: bool, value: Any) -> None:
        with self._changed:
            self._arrived[index] = success, value
            self._changed.notify_all()

    def _look_again(self) -> None:
        """Other threads may wait for a result that will not come."""
        with self._changed:
            self._changed.notify_all()

    def __del__(self) -> None:
        self._feeder.abandon()


class IMapUnorderedIterator(IMapIterator):
    """The results of ``imap_unordered``, as they come."""

    def _ready_number(self) -> int | None:
        return next(iter(self._arrived), None)


class Feeder:
    """Takes chunks from an iterable and submits them, no further ahead of the reader than it may be."""

    def __init__(
        self,
        chunks: Iterator[Any],
        ahead: int | None,
        submit: Callable[[Any, int, Any], None],
        ended: Callable[[], None],
    ) -> None:
        self._chunks = chunks
        #: None: any number.
        self._ahead = ahead
        self._submit = submit
        self._ended = ended
        self._lock = threading.RLock()
        self._reader: Any = None
        #: The iterable may have more.
        self.open = True

    def attach(self, reader: IMapIterator) -> None:
        """Begin to feed for this iterator."""
        import weakref

        self._reader = weakref.ref(reader)
        self.feed()

    def feed(self, everything: bool = False) -> None:
        """Submit what may be submitted now. An error of the iterable becomes the result that stands in its place."""
        if not self.open:
            return
        with self._lock:
            reader = self._reader()
            if reader is None:
                return
            while everything or self._ahead is None or reader._fed - reader._taken < self._ahead:
                try:
                    chunk = next(self._chunks, _NOTHING)
                except Exception as error:  # noqa: BLE001 - the iterable's; the reader raises it.
                    number, reader._fed = reader._fed, reader._fed + 1
                    reader._deliver(number, False, error)
                    chunk = _NOTHING
                if chunk is _NOTHING:
                    self.abandon()
                    reader._look_again()
                    return
                number, reader._fed = reader._fed, reader._fed + 1
                self._submit(reader, number, chunk)

    def abandon(self) -> None:
        """There will be no more. Also from a finalizer."""
        if self.open:
            self.open = False
            self._ended()
