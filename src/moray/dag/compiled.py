"""Compiled graphs: the side of the process that compiled one.

A :class:`~moray.dag.pipeline.Pipeline` carries inputs and results, :mod:`moray.dag.results` stands for the latter. Here
are the loops of the actors, and what begins and ends with them.

**The end.** When the loop of an actor ends, because the actor died, all channels are closed, in this process's I/O
thread. That wakes whoever waits here, who finds the error among the loops' results, and ends the loops of the other
actors.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from queue import Empty, SimpleQueue
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from moray import exceptions
from moray.dag import loop as actor_loop, pictures
from moray.dag.context import DAGContext
from moray.dag.nodes import DAGNode
from moray.dag.pipeline import Execution, Pipeline
from moray.dag.plan import GraphPlan, input_of
from moray.dag.results import CompiledDAGFuture, CompiledDAGRef, get_all
from moray.runtime import state
from moray.runtime.channels import Channel, ChannelClosed, check_supported
from moray.runtime.values import load_error
from moray.serialization import loads_covered

if TYPE_CHECKING:
    from moray.actor import ActorHandle
    from moray.object_ref import ObjectRef

__all__ = ["CompiledDAG", "CompiledDAGFuture", "CompiledDAGRef", "get_all"]

#: Actors that run a loop for this process → the graph's id.
_busy: dict[bytes, str] = {}

_TORN_DOWN = "the compiled graph was torn down; what was under way has no result. Channel closed."

#: Something to call when an execution has got a result, or can get none: in the waiting thread.
Watched: TypeAlias = "tuple[Execution, int, Callable[[], None]]"


class CompiledDAG:
    """A graph whose actors run loops: made by :meth:`DAGNode.experimental_compile`.

    It ends with :meth:`teardown`, with a ``with`` block, or when nobody refers to it, or to its results, any more.
    """

    def __init__(
        self,
        root: DAGNode,
        *,
        submit_timeout: float | None = None,
        buffer_size_bytes: int | None = None,
        max_inflight_executions: int | None = None,
        max_buffered_results: int | None = None,
    ) -> None:
        from moray.api import connected

        context = DAGContext.get_current()
        self._runtime = runtime = connected()
        if runtime.kind == "local":
            raise ValueError("local mode has no processes to join by channels: use execute() there")
        check_supported()
        self._id = uuid.uuid4().hex
        self._submit_timeout_s = context.submit_timeout if submit_timeout is None else submit_timeout
        self._most = _positive("_max_inflight_executions", max_inflight_executions, context.max_inflight_executions)
        self._most_buffered = _positive("_max_buffered_results", max_buffered_results, context.max_buffered_results)
        extent_bytes = _positive("_buffer_size_bytes", buffer_size_bytes, context.buffer_size_bytes)
        plan = GraphPlan(root, self._id)
        self._root = root
        self._several = plan.several
        self._parts = plan.parts
        self._results = len(plan.results)
        self._pipeline = Pipeline(runtime, plan, self._most, extent_bytes)
        self._handles = [part.handle for part in plan.actors.values() if part.handle is not None]
        #: Each actor's loop.
        self._loops: list[ObjectRef[Any]] = []
        self._watched: SimpleQueue[Watched | None] = SimpleQueue()
        self._watcher: threading.Thread | None = None
        self._lock = threading.RLock()
        self._torn_down = False
        channels = list(self._pipeline.channels.values())
        self._finalizer = weakref.finalize(self, _abandon, channels, self._watched, os.getpid())
        self._start(plan, extent_bytes, channels)

    # --- the loops -------------------------------------------------------------------------------------

    def _start(self, plan: GraphPlan, extent_bytes: int, channels: list[Channel]) -> None:
        actors = list(plan.actors)
        self._claim(actors, self._handles)
        try:
            for actor, part in plan.actors.items():
                part.extent_bytes = extent_bytes
                for place, readers in plan.readers.items():
                    if actor in readers:
                        part.inputs[place] = self._pipeline.channels[place].spec, readers.index(actor)
                    if plan.makers[place] == actor:
                        part.outputs[place] = self._pipeline.channels[place].spec
            self._attach(plan)
            for handle in self._handles:
                asynchronous = handle._moray_shared.meta.asynchronous
                function = actor_loop.run_async if asynchronous else actor_loop.run
                self._loops.append(_call_with(handle, function, self._id))
        except BaseException:
            self._release(actors, self._id)
            for channel in channels:
                channel.close()
            raise

        def loop_ended() -> None:
            for channel in channels:
                channel.close()

        for ref in self._loops:
            if self._runtime.values.subscribe(ref._entry, loop_ended):
                loop_ended()
        weakref.finalize(self, CompiledDAG._release, actors, self._id).atexit = False

    def _attach(self, plan: GraphPlan) -> None:
        """Have all actors open their channels, which need this process's descriptors, or none."""
        attached = [
            _call_with(handle, actor_loop.attach, replace(part, handle=None))
            for handle, part in zip(self._handles, plan.actors.values(), strict=True)
        ]
        try:
            self._runtime.values.get_many(attached, None)
        except BaseException:
            for handle in self._handles:
                _call_with(handle, actor_loop.detach, self._id)
            raise

    def _claim(self, actors: list[bytes], handles: list[ActorHandle[Any]]) -> None:
        for actor, handle in zip(actors, handles, strict=True):
            other = _busy.setdefault(actor, self._id)
            if other != self._id and not handle._moray_shared.meta.asynchronous:
                self._release(actors, self._id)
                raise ValueError(
                    f"{handle!r} runs the loop of another compiled graph: call teardown() of that one first, or let go "
                    "of it and of its results"
                )

    @staticmethod
    def _release(actors: list[bytes], graph: str) -> None:
        for actor in actors:
            if _busy.get(actor) == graph:
                _busy.pop(actor, None)

    # --- executing -----------------------------------------------------------------------------------------

    def execute(self, *args: Any, **kwargs: Any) -> CompiledDAGRef | list[CompiledDAGRef]:
        """Begin an execution; arguments as for :meth:`DAGNode.execute`.

        It waits for room if as many are under way as there may be, and somebody waits for their results or nobody wants
        them.

        Returns:
            What stands for the result; a list of them if the graph ends in a MultiOutputNode.

        Raises:
            GraphCapacityExceededError: the caller has begun as many as there may be, and asked for no result of them.
            ChannelTimeoutError: no execution ended in time for this one to begin.
            ChannelError: the graph was torn down.
            ActorDiedError: an actor of the graph is dead.
        """
        execution = self._submit(args, kwargs)
        if not self._several:
            return CompiledDAGRef(self, execution, 0)
        return [CompiledDAGRef(self, execution, index) for index in range(self._results)]

    async def execute_async(self, *args: Any, **kwargs: Any) -> CompiledDAGFuture | list[CompiledDAGFuture]:
        """:meth:`execute` for asyncio: what it returns can be awaited, once."""
        if self._pipeline.submitted - self._pipeline.completed >= self._most:
            self._pipeline.refuse_too_many(self._most)
            await asyncio.to_thread(self._wait_for_room)
        execution = self._submit(args, kwargs)
        futures = [CompiledDAGFuture(self, execution, index) for index in range(self._results)]
        return futures if self._several else futures[0]

    def _wait_for_room(self) -> None:
        """Until one more execution may begin, most likely: `_submit` says so if it took too long."""
        try:
            self._pipeline.wait_for_room(self._most, monotonic() + self._submit_timeout_s)
        except ChannelClosed:
            pass  # `_submit` finds out why.

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Execution:
        self._check_usable()
        if any(handle._moray_callee.killed for handle in self._handles):
            self._refuse_killed()
        value = input_of(self._parts, args, kwargs)
        most = self._most_buffered + self._most
        if self._pipeline.unfetched(most) >= most:
            raise exceptions.GraphCapacityExceededError(
                f"{self._most_buffered} executions have results that were not fetched: get() some of them, drop what "
                "is not needed, or give experimental_compile() a larger _max_buffered_results"
            )
        try:
            return self._pipeline.submit(value, self._most, self._submit_timeout_s)
        except ChannelClosed:
            raise self._why_ended() from None

    def _refuse_killed(self) -> None:
        """Raise the death of an actor that this process has killed. It may still read its channel, but what is begun
        after the kill is not answered, however slow the way is."""
        timeout_s = self._submit_timeout_s if self._submit_timeout_s >= 0 else None
        for handle, ref in zip(self._handles, self._loops, strict=True):
            if handle._moray_callee.killed and not self._torn_down:
                try:
                    self._runtime.values.get_one(ref, timeout_s)
                except exceptions.GetTimeoutError:
                    raise exceptions.ChannelTimeoutError(
                        f"no execution of the compiled graph can begin: {handle!r} was killed, and its death was not "
                        f"heard of within {timeout_s:g} s"
                    ) from None

    def fetch(self, execution: Execution, index: int, timeout_s: float | None) -> Any:
        """A result, made from its bytes; or raise its error. See CompiledDAGRef.get."""
        self._pipeline.ask(execution.number)
        if execution.blobs[index] is None:
            if timeout_s is None:
                timeout_s = DAGContext.get_current().get_timeout
            self._check_usable()
            try:
                here = self._pipeline.wait_for(execution, index, None if timeout_s < 0 else monotonic() + timeout_s)
            except ChannelClosed:
                raise self._why_ended() from None
            if not here:
                raise exceptions.ChannelTimeoutError(
                    f"execution {execution.number} of the compiled graph had no result within {timeout_s:g} s; "
                    "get(timeout=-1) waits without a limit, DAGContext.get_current().get_timeout is the default"
                )
        message = execution.blobs[index]
        assert message is not None
        kind, blob = message
        if kind == actor_loop.ERROR:
            raise load_error(blob, None)
        return loads_covered(blob, None)

    def _check_usable(self) -> None:
        if state.runtime is not self._runtime:
            if state.runtime is not None:
                state.runtime.check_usable()
            raise exceptions.ChannelError("the session of this compiled graph has ended")
        self._runtime.check_usable()

    def _why_ended(self) -> BaseException:
        """Why the channels are closed."""
        self._check_usable()
        if self._torn_down:
            return exceptions.ChannelError(_TORN_DOWN)
        for ref in self._loops:
            if ref._entry.ready and ref._entry.error:
                try:
                    self._runtime.values.get_one(ref, 0)
                except Exception as error:  # noqa: BLE001 - it is what is asked for.
                    return error
        return exceptions.ChannelError("the compiled graph has ended: the loop of one of its actors was stopped")

    # --- the watcher --------------------------------------------------------------------------------------------

    def watch(self, execution: Execution, index: int, done: Callable[[], None]) -> None:
        """Have a thread call `done` when the result is there, or the graph has ended."""
        self._pipeline.ask(execution.number)
        self._watched.put((execution, index, done))
        with self._lock:
            if self._torn_down:
                _let_go(self._watched)  # The thread may have gone before it saw this one.
            elif self._watcher is None:
                self._watcher = threading.Thread(
                    target=_watch, args=(self._pipeline, self._watched), name="moray-dag-watcher", daemon=True
                )
                self._watcher.start()

    # --- the end ------------------------------------------------------------------------------------------------

    def teardown(self, kill_actors: bool = False) -> None:
        """End the loops: the actors take ordinary calls again. What is under way has no result. Again: nothing.

        It waits for the steps that run now, ``DAGContext.teardown_timeout`` seconds at most, after which it warns.

        Args:
            kill_actors: end the actors themselves.
        """
        with self._lock:
            again, self._torn_down = self._torn_down, True
        if again:
            return
        usable = state.runtime is self._runtime and self._runtime.ended is None
        if usable:
            self._pipeline.collect()
        if kill_actors and usable:
            from moray.actor import kill

            for handle in self._handles:
                kill(handle)
        self._finalizer()
        watcher = self._watcher
        if watcher is not None and watcher is not threading.current_thread():
            watcher.join()
        try:
            if usable:
                self._join(DAGContext.get_current().teardown_timeout)
        finally:
            self._release([handle._moray_actor for handle in self._handles], self._id)

    def _join(self, timeout_s: float) -> None:
        """Wait for the loops' ends."""
        deadline = monotonic() + timeout_s
        for ref, handle in zip(self._loops, self._handles, strict=True):
            try:
                self._runtime.values.get_one(ref, max(0.0, deadline - monotonic()))
            except exceptions.ActorError:
                pass  # It is dead: whoever wanted a result was told.
            except exceptions.GetTimeoutError:
                warnings.warn(
                    f"a step of {handle!r} still runs {timeout_s:g} s after teardown(): the actor takes ordinary calls "
                    "when the step has ended; teardown(kill_actors=True) does not wait",
                    RuntimeWarning,
                    stacklevel=3,
                )
            except exceptions.TaskError as error:  # Its own code raised outside of a step: in a signal handler.
                warnings.warn(f"the loop of {handle!r} had ended by an error: {error}", RuntimeWarning, stacklevel=3)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.teardown()

    def get_id(self) -> str:
        """The graph's id."""
        return self._id

    @property
    def is_teardown(self) -> bool:
        """Whether it was torn down."""
        return self._torn_down

    def visualize(
        self,
        filename: str = "compiled_graph",
        format: str = "png",
        view: bool = False,  # noqa: ARG002 - see the docstring.
        channel_details: bool = False,
    ) -> str:
        """Draw the graph.

        Args:
            filename: where to, without the ending.
            format: "ascii" for plain text, which is only returned; otherwise as for :func:`~moray.dag.plot`.
            view: accepted; open the file with what shows such files.
            channel_details: say of each value whether it goes through a channel or stays in its process.

        Returns:
            The plain text, or the graph in Graphviz's language.

        Raises:
            RuntimeError: see :func:`~moray.dag.plot`.
        """
        if format == "ascii":
            return pictures.text_of(self._root, channel_details)
        text = pictures.dot_of(self._root, channel_details)
        pictures.draw(text, f"{filename}.{format}")
        return text

    def __repr__(self) -> str:
        return f"CompiledDAG({self._id}, {len(self._handles)} actors)"


def _watch(pipeline: Pipeline, watched: SimpleQueue[Watched | None]) -> None:
    """Until None comes: wait for results one after the other; they come in order."""
    while (item := watched.get()) is not None:
        execution, index, done = item
        try:
            pipeline.wait_for(execution, index, None)
        except (ChannelClosed, exceptions.MorayError):
            pass  # Whoever waits finds out why.
        done()
        del item, execution, done
    _let_go(watched)


def _let_go(watched: SimpleQueue[Watched | None]) -> None:
    """The graph has ended: whoever waits finds out."""
    while True:
        try:
            item = watched.get_nowait()
        except Empty:
            return
        if item is not None:
            item[2]()


def _abandon(channels: list[Channel], watched: SimpleQueue[Watched | None], pid: int) -> None:
    """The graph's end, however it came about."""
    if os.getpid() == pid:
        for channel in channels:
            channel.close()
        watched.put(None)


def _call_with(handle: ActorHandle[Any], function: Callable[..., Any], argument: Any) -> ObjectRef[Any]:
    """Call a function of ours in the actor; never again in a later incarnation, which knows nothing of the graph."""
    method = handle.__getattr__("__ray_call__").options(max_task_retries=0)
    ref: ObjectRef[Any] = method.remote(function, argument)
    return ref


def _positive(name: str, value: int | None, default: int) -> int:
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
    return value
