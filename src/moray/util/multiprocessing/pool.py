"""``Pool``: the interface of :class:`multiprocessing.pool.Pool` over a session's workers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, Self, TypeVar

import moray
from moray.config import env_name
from moray.util.multiprocessing.dispatcher import Dispatcher
from moray.util.multiprocessing.results import (
    Arrivals,
    AsyncResult,
    Callback,
    Feeder,
    IMapIterator,
    IMapUnorderedIterator,
    MapResult,
)
from moray.util.multiprocessing.tasks import Functions, Task
from moray.util.multiprocessing.worker import APPLY, CONTROL, MAP, STARMAP, PoolWorker, chunks_of

_I = TypeVar("_I", bound=IMapIterator)

#: Chunks that ``imap`` takes ahead of its reader from an iterable without a length.
READ_AHEAD: Final = 512


class Pool:
    """A pool of processes, each an actor, with the methods of the standard library's.

    What differs from the standard library: lambdas, closures and what ``__main__`` defines can be sent; a task whose
    process dies fails with an error that says why, instead of hanging; an error of the initializer is raised by all
    results; results that a terminated pool did not get raise RuntimeError instead of hanging; ``imap`` over an iterable
    without a length reads at most 512 chunks ahead of whoever takes its results.

    Short tasks are sent to a process several at a time; those that it has not begun go to another one that is idle, so
    tasks may wait for each other as long as there are processes for all of them.

    Args:
        processes: how many. Default: the session's CPUs. A session of so many CPUs is started if there is none.
        initializer: called with `initargs` in each process before its first task.
        initargs: see `initializer`.
        maxtasksperchild: a process is replaced after so many tasks (a chunk is one task). Default: never.
        context: accepted; without meaning here.
        ray_address: the session to connect to if this process is not connected, as for :func:`moray.init`.
        ray_remote_args: options of the actors, such as ``{"num_cpus": 1}``.

    Raises:
        ValueError, TypeError: an argument out of range, or of the wrong type.

    Example:
        >>> from moray.util.multiprocessing import Pool
        >>> with Pool(2) as pool:
        ...     pool.map(abs, [-1, 2, -3])
        [1, 2, 3]
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] | None = None,
        maxtasksperchild: Any = None,
        context: Any = None,  # noqa: ARG002 - the standard library's; see the docstring.
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError(f"processes={processes}: a pool needs at least 1, or None for the session's CPUs")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {initializer!r:.80}")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild < 1):
            raise ValueError(f"maxtasksperchild={maxtasksperchild!r}: give a whole number of at least 1, or None")
        _connect(ray_address, processes)
        if processes is None:
            processes = max(1, int(moray.cluster_resources().get("CPU", 1)))
        options = dict(ray_remote_args or {})
        groups = {CONTROL: 1, **(options.pop("concurrency_groups", None) or {})}
        kind = moray.remote(concurrency_groups=groups)(PoolWorker).options(**options)
        arguments = initializer, tuple(initargs or ())
        self._processes = processes
        self._functions = Functions()
        self._dispatcher = Dispatcher(lambda: kind.remote(*arguments), processes, maxtasksperchild)
        self._closed = False
        #: Of imaps whose iterables may have more.
        self._feeders: weakref.WeakSet[Feeder] = weakref.WeakSet()
        self._finalizer = weakref.finalize(self, self._dispatcher.terminate)
        # The session's end ends the processes; the thread is a daemon.
        self._finalizer.atexit = False

    # --- one call ------------------------------------------------------------------------------------

    def apply(self, func: Callable[..., Any], args: Any = None, kwargs: dict[str, Any] | None = None) -> Any:
        """``func(*args, **kwargs)`` in one of the processes."""
        result = AsyncResult(self)
        self._dispatcher.apply([self._task(result, func, args, kwargs)])
        return result.get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Any = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """:meth:`apply` without waiting; the callbacks are called in the pool's thread with the result or the error."""
        result = AsyncResult(self, callback, error_callback)
        task = self._task(result, func, args, kwargs)
        if callback is None and error_callback is None:
            self._dispatcher.begin(task)
        else:
            self._dispatcher.submit([task])
        return result

    def _task(self, result: AsyncResult, func: Callable[..., Any], args: Any, kwargs: dict[str, Any] | None) -> Task:
        self._check_open()
        return Task(result, 0, self._functions.of(func, many=False), APPLY, (tuple(args or ()), kwargs or {}))

    # --- all of them ----------------------------------------------------------------------------------------

    def map(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """``[func(x) for x in iterable]``, in chunks of `chunksize` (default: four chunks for each process)."""
        return self._map(func, iterable, MAP, chunksize, waits=True).get()  # type: ignore[no-any-return]

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """:meth:`map` without waiting; the callbacks get the list, or the first error."""
        return self._map(func, iterable, MAP, chunksize, callback, error_callback)

    def starmap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """``[func(*x) for x in iterable]``."""
        return self._map(func, iterable, STARMAP, chunksize, waits=True).get()  # type: ignore[no-any-return]

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: Any = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """:meth:`starmap` without waiting. As in Ray, `callback` and `error_callback` may take `chunksize`'s place."""
        if callable(chunksize):
            chunksize, callback, error_callback = None, chunksize, callback or error_callback
        return self._map(func, iterable, STARMAP, chunksize, callback, error_callback)

    def _map(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        mode: int,
        chunksize: int | None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
        waits: bool = False,
    ) -> AsyncResult:
        self._check_open()
        elements = list(iterable)
        if chunksize is None:
            chunksize = max(1, -(-len(elements) // (self._processes * 4)))
        _check_chunksize(chunksize)
        chunks = [elements[start : start + chunksize] for start in range(0, len(elements), chunksize)]
        result = MapResult(self, len(chunks), callback, error_callback)
        if chunks:
            function = self._functions.of(func, many=True)
            tasks = [Task(result, number, function, mode, chunk) for number, chunk in enumerate(chunks)]
            if waits:
                self._dispatcher.apply(tasks)
            else:
                self._dispatcher.submit(tasks)
        return result

    def imap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1) -> IMapIterator:
        """An iterator over ``func(x)`` for x in `iterable`, in order, each as soon as it is there."""
        return self._imap(IMapIterator, func, iterable, chunksize)

    def imap_unordered(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> IMapUnorderedIterator:
        """:meth:`imap` in the order in which the results come."""
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize)

    def _imap(self, kind: type[_I], func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None) -> _I:
        self._check_open()
        size = 1 if chunksize is None else chunksize
        _check_chunksize(size)
        function = self._functions.of(func, many=True)
        dispatcher = self._dispatcher
        arrivals = Arrivals(ordered=kind is IMapIterator)

        def submit(number: int, chunk: Any) -> None:
            dispatcher.submit([Task(arrivals, number, function, MAP, chunk)])

        ahead = None if hasattr(iterable, "__len__") else READ_AHEAD
        dispatcher.open_feeder()
        feeder = Feeder(iter(chunks_of(iterable, size)), ahead, arrivals, submit, dispatcher.close_feeder)
        self._feeders.add(feeder)
        return kind(self, arrivals, feeder)

    # --- the end -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more work; the processes end when all is done."""
        if not self._closed:
            self._closed = True
            self._dispatcher.close()

    def terminate(self) -> None:
        """End the processes now; results that are not there raise RuntimeError."""
        self._closed = True
        self._dispatcher.terminate()
        self._dispatcher.join()

    def join(self) -> None:
        """Wait until all is done and the processes have ended. ValueError before close() or terminate()."""
        if not self._closed:
            raise ValueError("Pool is still running: call close() or terminate() before join()")
        for feeder in list(self._feeders):
            feeder.feed(everything=True)
        self._dispatcher.join()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.terminate()

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        return f"<Pool of {self._processes} processes{', closed' if self._closed else ''}>"

    @property
    def _actor_pool(self) -> list[Any]:
        """The processes' actors."""
        return self._dispatcher.handles()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("Pool not running")


def _connect(address: str | None, processes: int | None) -> None:
    """Be connected; a session that is started for the pool has its CPUs."""
    if moray.is_initialized():
        return
    if address is not None or processes is None or env_name("ADDRESS") is not None:
        moray.init(address)
    else:
        moray.init(num_cpus=processes)


def _check_chunksize(size: int) -> None:
    if size < 1:
        raise ValueError(f"Chunksize must be 1+, not {size}")
