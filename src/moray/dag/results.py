"""What stands for the results of a compiled graph: each can be fetched once, by ``get`` or by ``await``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from time import monotonic
from typing import TYPE_CHECKING, Any

from moray.dag import loop as actor_loop
from moray.dag.nodes import GraphError

if TYPE_CHECKING:
    from moray.dag.compiled import CompiledDAG
    from moray.dag.pipeline import Execution

#: In place of a fetched result, whose memory may be used again.
_FETCHED = (actor_loop.VALUE, b"N")


def _refuses(what: str) -> Callable[..., Any]:
    def refuse(self: _Result, *_args: Any) -> Any:
        raise GraphError(f"{type(self).__name__} cannot be {what}. get() it, and use the value")

    return refuse


class _Result:
    """What stands for one result."""

    __slots__ = ("_dag", "_execution", "_fetched", "_index")

    def __init__(self, dag: CompiledDAG, execution: Execution, index: int) -> None:
        self._dag = dag
        self._execution = execution
        self._index = index
        self._fetched = False

    def _fetch(self, timeout_s: float | None) -> Any:
        if self._fetched:
            raise ValueError(
                f"{self!r} was fetched already, which is possible once: keep the value that get() returned"
            )
        self._dag._pipeline.refuse_passing_over(self._execution.number, self._dag._most_buffered)
        try:
            return self._dag.fetch(self._execution, self._index, timeout_s)
        finally:
            if self._execution.blobs[self._index] is not None:
                self._fetched = True
                self._execution.blobs[self._index] = _FETCHED
                self._dag._pipeline.forget(self._execution)

    __reduce__ = _refuses("pickled")
    __copy__ = _refuses("copied")
    __deepcopy__ = _refuses("deep copied")

    def __repr__(self) -> str:
        index = self._index if self._dag._several else None
        number = self._execution.number - 1
        return f"{type(self).__name__}({self._dag._id}, execution_index={number}, channel_index={index})"


class CompiledDAGRef(_Result):
    """A result of a compiled graph; it can be fetched once."""

    __slots__ = ()

    def get(self, timeout: float | None = None) -> Any:
        """The value.

        Args:
            timeout: seconds; 0 only looks, -1 waits without a limit, None takes ``DAGContext.get_timeout`` (10 s).

        Raises:
            TaskError: a step raised; it is also of the type that was raised.
            ActorDiedError: an actor died before the result was there.
            ChannelTimeoutError: it was not there in time. It can be fetched later.
            GraphCapacityExceededError: more results of earlier executions than may be kept were not fetched.
            ChannelError: the graph was torn down.
            ValueError: it was fetched already.
        """
        return self._fetch(timeout)


def get_all(refs: list[Any] | tuple[Any, ...], timeout: float | None) -> list[Any]:
    """The values of several results. See CompiledDAGRef.get."""
    if not all(isinstance(ref, CompiledDAGRef) for ref in refs):
        raise GraphError(f"get() takes results of compiled graphs only beside others of these: {refs!r:.200}")
    if timeout is None or timeout < 0:
        return [ref.get(timeout) for ref in refs]
    deadline = monotonic() + timeout
    return [ref.get(max(0.0, deadline - monotonic())) for ref in refs]


class CompiledDAGFuture(_Result):
    """A result of a compiled graph for ``await``; it can be awaited once."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, Any]:
        if self._execution.blobs[self._index] is None:
            loop = asyncio.get_running_loop()
            here: asyncio.Future[None] = loop.create_future()

            def done() -> None:
                try:
                    loop.call_soon_threadsafe(_set, here)
                except RuntimeError:
                    pass  # The event loop was closed: nobody waits.

            self._dag.watch(self._execution, self._index, done)
            yield from here.__await__()
        return self._fetch(0)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
