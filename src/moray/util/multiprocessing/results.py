"""What a pool's calls return: results that come later, one by one or as an iterator.

The pool's thread delivers outcomes; any thread may wait. A wait is a plain :class:`threading.Event` that is made by
whoever waits first, since most results are ready, or dropped, before anybody does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from multiprocessing import TimeoutError as PoolTimeoutError
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Self

from moray.exceptions import TaskError

if TYPE_CHECKING:
    from moray.util.multiprocessing.lending import Lender
    from moray.util.multiprocessing.tasks import Batch

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
        #: Who lent a process for this, and what was sent there: this call alone.
        self._lent: tuple[Lender, Batch] | None = None

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
        lent = self._lent
        if lent is not None and not self._is_ready:
            begin = monotonic()
            lender, batch = lent
            lender.collect(batch, timeout)
            if timeout is not None:
                timeout = max(0.0, timeout - (monotonic() - begin))
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
        self._pool = self._lent = None
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
        #: None: not here yet; those that failed are empty.
        self._parts: list[Any] = [None] * chunks
        self._left = chunks
        self._error: BaseException | None = None
        if not chunks:
            self._settle(True, [])  # Without a callback, as in the standard library.

    def _deliver(self, index: int, success: bool, value: Any) -> Callable[[], Any] | None:
        if self._is_ready or self._parts[index] is not None:
            return None  # Once more, as whoever delivered it was interrupted.
        self._parts[index] = value if success else ()
        self._left -= 1
        if not success and self._error is None:
            self._error = value
        if self._left:
            return None
        parts, self._parts = self._parts, []
        if self._error is not None:
            return self._settle(False, self._error)
        return self._settle(True, list(chain.from_iterable(parts)))


class Arrivals:
    """What of one imap has come, and is not taken. Tasks hold this, and not the iterator, whose end is noticed so."""

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self.changed = threading.Condition()
        #: Chunks by their number. Guarded by the condition, like the numbers below.
        self._arrived: dict[int, tuple[bool, Any]] = {}
        self.taken = 0
        #: Submitted so far. Under the feeder's lock.
        self.fed = 0

    def take(self) -> tuple[bool, Any] | None:
        """The chunk that is next; None if it is not there. Under the condition."""
        number = self.taken if self._ordered else next(iter(self._arrived), None)
        outcome = self._arrived.pop(number, None) if number is not None else None
        if outcome is not None:
            self.taken += 1
        return outcome

    def _deliver(self, index: int, success: bool, value: Any) -> None:
        with self.changed:
            self._arrived[index] = success, value
            self.changed.notify_all()


class IMapIterator(Iterator[Any]):
    """The results of ``imap``, in order."""

    def __init__(self, pool: Any, arrivals: Arrivals, feeder: Feeder) -> None:
        self._pool = pool
        self._arrivals = arrivals
        self._feeder = feeder
        #: Elements of the chunk that is being taken.
        self._chunk: deque[Any] = deque()
        feeder.feed()

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
        arrivals, feeder = self._arrivals, self._feeder
        feeder.feed()
        with arrivals.changed:
            while (outcome := arrivals.take()) is None:
                if arrivals.taken == arrivals.fed and not feeder.open:
                    self._pool = None
                    raise StopIteration
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    raise PoolTimeoutError(f"the next result was not ready within {timeout} s")
                arrivals.changed.wait(left)
        feeder.feed()
        return outcome

    def __del__(self) -> None:
        self._feeder.abandon()


class IMapUnorderedIterator(IMapIterator):
    """The results of ``imap_unordered``, as they come."""


class Feeder:
    """Takes chunks from an iterable and submits them, no further ahead of the reader than it may be."""

    def __init__(
        self,
        chunks: Iterator[Any],
        ahead: int | None,
        arrivals: Arrivals,
        submit: Callable[[int, Any], None],
        ended: Callable[[], None],
    ) -> None:
        self._chunks = chunks
        #: How many chunks may be there that nobody has taken; None: any number.
        self._ahead = ahead
        self._arrivals = arrivals
        self._submit = submit
        self._ended = ended
        self._lock = threading.RLock()
        #: The iterable may have more.
        self.open = True

    def feed(self, everything: bool = False) -> None:
        """Submit what may be submitted now. An error of the iterable becomes the result that stands in its place."""
        if self.open:
            with self._lock:
                self._feed(everything)

    def _feed(self, everything: bool) -> None:
        arrivals = self._arrivals
        while self.open and (everything or self._ahead is None or arrivals.fed - arrivals.taken < self._ahead):
            number = arrivals.fed
            try:
                chunk = next(self._chunks, _NOTHING)
            except Exception as error:  # noqa: BLE001 - the iterable's; the reader raises it.
                arrivals.fed = number + 1
                arrivals._deliver(number, False, error)
                chunk = _NOTHING
            if chunk is _NOTHING:
                self.abandon()
                with arrivals.changed:
                    arrivals.changed.notify_all()  # Other readers may wait for a result that will not come.
                return
            arrivals.fed = number + 1
            self._submit(number, chunk)

    def abandon(self) -> None:
        """There will be no more. Also from a finalizer."""
        if self.open:
            self.open = False
            self._ended()
