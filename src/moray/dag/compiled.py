"""Compiled graphs: the side of the process that compiled one.

It writes each execution's input to one channel, and reads the results from others, in order. Who waits for a result
takes out of the channels whatever is there, for everybody: so ``get`` in any order, from any thread, never blocks
another. At most ``max_inflight_executions`` may be under way, which is also the length of all rings, so that no step
ever waits for room.

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
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pickle import dumps
from queue import Empty, SimpleQueue
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from moray import exceptions
from moray.dag import loop as actor_loop, pictures
from moray.dag.context import DAGContext
from moray.dag.nodes import DAGNode, GraphError
from moray.dag.plan import DRIVER, INPUT_PLACE, GraphPlan, input_of
from moray.runtime import state
from moray.runtime.channels import SLOT_BYTES, Channel, ChannelClosed, Reader, Writer, check_supported, refuse_inside
from moray.runtime.interrupts import TaskInterrupt
from moray.runtime.values import load_error
from moray.serialization import Serialized, loads_covered, serialize

if TYPE_CHECKING:
    from moray.actor import ActorHandle
    from moray.object_ref import ObjectRef
    from moray.runtime.runtime import Runtime

#: Actors that run a loop for this process → the graph's id.
_busy: dict[bytes, str] = {}

#: Something to call when an execution has got a result, or can get none: in the waiting thread.
Watched: TypeAlias = "tuple[Execution, int, Callable[[], None]]"


class Execution:
    """One execution, as long as somebody may ask for its results."""

    __slots__ = ("__weakref__", "blobs", "number")

    def __init__(self, number: int, results: int) -> None:
        self.number = number
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

        It waits if as many are under way as there may be.

        Returns:
            What stands for the result; a list of them if the graph ends in a MultiOutputNode.

        Raises:
            ChannelTimeoutError: no execution ended in time for this one to begin.
            ChannelError: the graph was torn down, or too many results were not fetched.
            ActorDiedError: an actor of the graph is dead.
        """
        execution = self._submit(args, kwargs)
        if not self._several:
            return CompiledDAGRef(self, execution, 0)
        return [CompiledDAGRef(self, execution, index) for index in range(self._results)]

    async def execute_async(self, *args: Any, **kwargs: Any) -> CompiledDAGFuture | list[CompiledDAGFuture]:
        """:meth:`execute` for asyncio: what it returns can be awaited, once."""
        if self._pipeline.submitted - self._pipeline.completed >= self._most:
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

    def fetch(self, execution: Execution, index: int, timeout_s: float | None) -> Any:
        """A result, made from its bytes; or raise its error. See CompiledDAGRef.get."""
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


_TORN_DOWN = "the compiled graph was torn down; what was under way has no result. Channel closed."
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
                f"{self!r} was fetched already: ray.get() can only be called once on a CompiledDAGRef, and it was "
                "already called."
            )
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
            ChannelError: the graph was torn down.
            ValueError: it was fetched already.
        """
        return self._fetch(timeout)


def get_all(refs: list[Any] | tuple[Any, ...], timeout: float | None) -> list[Any]:
    """The values of several results. See CompiledDAGRef.get."""
    if not all(isinstance(ref, CompiledDAGRef) for ref in refs):
        raise GraphError(f"{refs!r:.200} must be a list of CompiledDAGRefs if there is any CompiledDAGRef within it")
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
