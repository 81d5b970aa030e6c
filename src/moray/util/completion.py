"""Results as they come: ``as_completed`` and ``map_unordered``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import moray
from moray.object_ref import ObjectRef

#: How many are taken with the first that is ready.
_MORE: Final = 9


def as_completed(
    refs: Sequence[ObjectRef[Any]], *, chunk_size: int | None = None, yield_obj_refs: bool = False, **kwargs: Any
) -> Iterator[Any]:
    """The values of `refs`, each as soon as it is there.

    Args:
        refs: distinct references.
        chunk_size: how many to wait for at a time; those of one chunk come in the order of `refs`. None: whatever is
            ready is taken, and the first is never kept waiting for others.
        yield_obj_refs: give the references, not the values.
        kwargs: for :func:`moray.wait`: `timeout` is how long, in seconds, to wait for the next one at most.

    Raises:
        ValueError: a `chunk_size` under 1, or `num_returns` among `kwargs`.
        GetTimeoutError: nothing came within `timeout`.

    Example:
        >>> import moray
        >>> from moray.util import as_completed
        >>> square = moray.remote(lambda x: x * x)
        >>> sorted(as_completed([square.remote(i) for i in range(4)]))
        [0, 1, 4, 9]
    """
    _check(chunk_size, kwargs)
    return _completed(list(refs), iter(()), chunk_size, yield_obj_refs, kwargs)


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int | None = None,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """The values of ``fn.remote(item)`` for all of `items`, each as soon as it is there.

    Args:
        fn: a remote function, or a method of an actor.
        items: read as results are taken, so it may be endless.
        backpressure_size: calls that may be there at once, done or not. None: all.
        chunk_size: as for :func:`as_completed`.
        yield_obj_refs: the same.
        kwargs: the same.

    Raises:
        ValueError: see :func:`as_completed`; or `backpressure_size` is smaller than `chunk_size`.

    Example:
        >>> import moray
        >>> from moray.util import map_unordered
        >>> sorted(map_unordered(moray.remote(abs), [-2, 1, -3]))
        [1, 2, 3]
    """
    _check(chunk_size, kwargs)
    chunk = chunk_size or 1 + _MORE
    if backpressure_size is not None and backpressure_size < chunk:
        raise ValueError(
            f"backpressure_size={backpressure_size} must be at least chunk_size={chunk}, or None for no limit"
        )
    calls = (fn.remote(item) for item in items)
    return _completed(list(islice(calls, backpressure_size)), calls, chunk_size, yield_obj_refs, kwargs)


def _check(chunk_size: int | None, kwargs: dict[str, Any]) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: give at least 1")
    if "num_returns" in kwargs:
        raise ValueError("num_returns is chunk_size here: give that")


def _completed(
    waiting: list[ObjectRef[Any]],
    more: Iterator[ObjectRef[Any]],
    chunk_size: int | None,
    yield_obj_refs: bool,
    kwargs: dict[str, Any],
) -> Iterator[Any]:
    """Each that is taken is replaced by one of `more`."""
    while waiting:
        ready, waiting = moray.wait(waiting, num_returns=min(chunk_size or 1, len(waiting)), **kwargs)
        if not ready:
            raise moray.exceptions.GetTimeoutError(
                f"none of {len(waiting)} results came within {kwargs.get('timeout')} s"
            )
        if waiting and chunk_size is None:
            others, waiting = moray.wait(waiting, num_returns=min(_MORE, len(waiting)), timeout=0)
            ready += others
        while ready:
            ref = ready.pop(0)
            yield ref if yield_obj_refs else moray.get(ref)
            waiting += islice(more, 1)
