"""What an actor of a compiled graph runs, instead of calls, until the graph is torn down.

It is started by two ordinary calls (``__ray_call__``): :func:`attach` opens the channels, and what goes wrong is the
caller's error; :func:`run` ends when a channel is closed. An ordinary actor runs the loop where it runs its calls, in
the main thread; an async actor in a thread beside its event loop, in which the methods run.

A step that raises hands its error on in place of a result, and so does each step that needs it. Only the end of the
process ends the loop otherwise: ``exit_actor()`` does that too.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pickle import dumps
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

from moray.dag.nodes import part_of
from moray.dag.plan import INPUT_PLACE
from moray.exceptions import ChannelError
from moray.object_ref import ObjectRef
from moray.platform.process_control import has_ended, open_pidfd
from moray.runtime import state
from moray.runtime.channels import SLOT_BYTES, Channel, ChannelClosed, Reader, Writer
from moray.runtime.task_errors import make
from moray.runtime.values import dump_error, unpicklable
from moray.serialization import Serialized, loads, serialize

if TYPE_CHECKING:
    from moray.dag.plan import ActorPlan, Argument, Step
    from moray.runtime.worker import Worker

#: Kinds of messages.
VALUE, ERROR = 0, 1

#: Graph → the loop that is about to begin.
_attached: dict[str, Loop] = {}

#: Types whose pickles have no references, no buffers and no need of cloudpickle.
PLAIN: Final = frozenset({int, float, str, bool, complex, bytes, type(None)})

#: A method of the actor, and what makes of it something that returns its result to this thread.
Method: TypeAlias = Callable[..., Any]
Wrapper: TypeAlias = Callable[[Method], Method]


class Failed:
    """In place of a value: the pickled error of the step that should have made it."""

    __slots__ = ("blob",)

    def __init__(self, blob: bytes) -> None:
        self.blob = blob


class _DriverEnded(Exception):  # noqa: N818 - not an error of this process.
    """The process that compiled the graph is gone."""


def attach(instance: Any, plan: ActorPlan) -> None:
    """Open the channels of this actor's part."""
    for graph, left in list(_attached.items()):
        if has_ended(left._driver.fd):  # Before it could start what it had attached.
            del _attached[graph]
    _attached[plan.graph] = Loop(instance, plan)


def detach(_instance: Any, graph: str) -> None:
    """Undo :func:`attach`: another actor could not."""
    _attached.pop(graph, None)


def run(_instance: Any, graph: str) -> None:
    """Run this actor's part until the graph is torn down, or the process that compiled it has ended."""
    _attached.pop(graph).run(_as_it_is)


async def run_async(_instance: Any, graph: str) -> None:
    """:func:`run` for an async actor, whose event loop must go on."""
    loop = asyncio.get_running_loop()
    part = _attached.pop(graph)
    done: asyncio.Future[None] = loop.create_future()

    async def call(method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = method(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    def in_event_loop(method: Method) -> Method:
        def call_there(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(call(method, args, kwargs), loop).result()

        return call_there

    def body() -> None:
        try:
            part.run(in_event_loop)
        except BaseException as error:  # noqa: BLE001 - raised in the event loop.
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=body, name="moray-dag-loop", daemon=True).start()
    await done


def _as_it_is(method: Method) -> Method:
    return method


class _Ready(NamedTuple):
    """A step, ready to be run: what can be decided once is decided."""

    step: Step
    #: What to read first.
    reads: list[tuple[int, Reader]]
    #: None if it chooses one of the values of another.
    method: Method | None
    #: Takes the positional arguments out of the values, if all arguments are that and whole.
    pick: Callable[[list[Any]], Any] | None
    sources: list[Argument]
    writer: Writer | None


class Loop:
    """One actor's part of one graph."""

    def __init__(self, instance: Any, plan: ActorPlan) -> None:
        self._worker = cast("Worker", state.runtime)
        self._plan = plan
        self._driver = _driver_pidfd(plan)
        # Without a way back to this object: a cycle would keep the memory until the next collection of garbage.
        check = partial(_check, self._driver)
        self._readers = {
            place: Reader(Channel.open(spec), index, check, to_the_end=False)
            for place, (spec, index) in plan.inputs.items()
        }
        self._writers = {
            place: Writer(Channel.open(spec), plan.extent_bytes, check) for place, spec in plan.outputs.items()
        }
        self._methods = [
            None if each.value_of is not None else each.function or getattr(instance, each.method)
            for each in plan.steps
        ]
        #: The values of an execution by place, and behind them the constants.
        self._blank: list[Any] = [None] * plan.places
        self._sources = [self._sources_of(step) for step in plan.steps]
        #: Whether a value of this execution is Failed.
        self._failed_one = False

    def _sources_of(self, step: Step) -> list[Argument]:
        """The arguments: constants get places of their own, with values for references, as in any call."""
        sources = [*step.args, *step.kwargs.values()]
        for index, source in enumerate(sources):
            if source[0] == "constant":
                value = source[1]
                sources[index] = "place", len(self._blank)
                self._blank.append(self._worker.values.get_one(value, None) if type(value) is ObjectRef else value)
        return sources

    def _ready(self, wrap: Wrapper) -> list[_Ready]:
        return [
            _Ready(
                step,
                [(place, self._readers[place]) for place in step.reads],
                None if method is None else wrap(method),
                _picker(step, sources),
                sources,
                self._writers.get(step.place),
            )
            for step, method, sources in zip(self._plan.steps, self._methods, self._sources, strict=True)
        ]

    def run(self, wrap: Wrapper) -> None:
        """Go through the steps again and again.

        The channels are closed by the driver alone, also if an error ends this: it learns of it first, and can say why.
        """
        steps = self._ready(wrap)
        try:
            while True:
                self._once(steps)
        except (ChannelClosed, _DriverEnded):
            pass  # How it is meant to end.
        finally:
            self._driver.close()

    def _once(self, steps: list[_Ready]) -> None:
        """One execution."""
        values = self._blank.copy()
        self._failed_one = False
        for ready in steps:
            step, reads, method, pick, _sources, writer = ready
            for place, reader in reads:
                values[place] = self._read(reader)
            if pick is None or method is None or self._failed_one:
                value = self._result(ready, values)
            else:
                try:
                    value = method(*pick(values))
                except (SystemExit, GeneratorExit):
                    raise  # The actor is to end.
                except BaseException as error:  # noqa: BLE001 - every error of the user's is the step's result.
                    value = self._failed(step.label, error)
            values[step.place] = value
            if writer is not None:
                if type(value) not in PLAIN:
                    self._write(writer, step, value)
                elif len(blob := dumps(value, 5)) <= SLOT_BYTES:
                    writer.write_small(blob, VALUE)
                else:
                    self._send(writer, step, Serialized(blob, [], []))
            del value

    def _read(self, reader: Reader) -> Any:
        kind, blob = reader.take()
        if kind == ERROR:
            self._failed_one = True
            return Failed(bytes(blob))
        try:
            return loads(blob)
        except Exception as error:  # noqa: BLE001 - whatever the unpickling of the user's classes raises.
            return self._failed("the unpickling of an argument", error)

    def _result(self, ready: _Ready, values: list[Any]) -> Any:
        """The step's value, of any kind of step; Failed if it, or what it needs, failed."""
        step, _reads, method, _pick, sources, _writer = ready
        if step.value_of is not None:
            place, index = step.value_of
            made = values[place]
            return made if type(made) is Failed else made[index]
        assert method is not None
        try:
            args = []
            for source in sources:
                kind = source[0]
                value = values[INPUT_PLACE if kind == "part" else source[1]]
                if type(value) is Failed:
                    return value
                args.append(part_of(value, source[1], source[2]) if kind == "part" else value)
            count = len(step.args)
            kwargs = dict(zip(step.kwargs, args[count:], strict=True)) if step.kwargs else {}
            result = method(*args[:count], **kwargs)
            return _split(result, step) if step.num_returns > 1 else result
        except (SystemExit, GeneratorExit):
            raise  # The actor is to end.
        except BaseException as error:  # noqa: BLE001 - every error of the user's is the step's result.
            return self._failed(step.label, error)

    def _write(self, writer: Writer, step: Step, value: Any) -> None:
        if type(value) is Failed:
            writer.write(Serialized(value.blob, [], []), ERROR)
            return
        try:
            serialized = serialize(value)
        except Exception as error:  # noqa: BLE001 - whatever the pickling of the user's classes raises.
            reason = unpicklable(value, f"the result of {step.label}()", error)
            writer.write(Serialized(self._failed(step.label, reason).blob, [], []), ERROR)
            return
        if serialized.contained:
            pin_contained(serialized)
        self._send(writer, step, serialized)

    def _send(self, writer: Writer, step: Step, serialized: Serialized) -> None:
        try:
            writer.write(serialized, VALUE)
        except ChannelError as error:  # No memory for so much: the error itself is small.
            writer.write(Serialized(self._failed(step.label, error).blob, [], []), ERROR)

    def _failed(self, label: str, error: BaseException) -> Failed:
        self._failed_one = True
        return Failed(dump_error(make(self._worker, label, error, self._worker.current_task_id() or b"")))


def _picker(step: Step, sources: list[Argument]) -> Callable[[list[Any]], Any] | None:
    """What takes a step's arguments out of the values; None if it needs more than that."""
    if not sources or step.kwargs or step.num_returns > 1 or any(kind != "place" for kind, *_ in sources):
        return None
    places = [source[1] for source in sources]
    return itemgetter(slice(places[0], places[0] + 1)) if len(places) == 1 else itemgetter(*places)


def _check(driver: _Pidfd) -> None:
    """Now and then while the loop waits."""
    if has_ended(driver.fd):
        raise _DriverEnded


def _split(result: Any, step: Step) -> tuple[Any, ...]:
    values = tuple(result)
    if len(values) != step.num_returns:
        raise ValueError(f"{step.label}() has num_returns={step.num_returns} and returned {len(values)} values")
    return values


def pin_contained(serialized: Serialized) -> None:
    """References inside a message: nobody counts who has them, so they are kept until the job ends."""
    for reference in serialized.contained:
        reference.__reduce__()  # Outside of any pickling of ours: pinned.


class _Pidfd:
    """The process that compiled the graph."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Let go of it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _driver_pidfd(plan: ActorPlan) -> _Pidfd:
    specs = [spec for spec, _index in plan.inputs.values()] or list(plan.outputs.values())
    fd = open_pidfd(specs[0].pid)
    if fd is None:
        raise _gone(specs[0].pid)
    return _Pidfd(fd)  # The channels are opened after this: their owner is this very process, not a later one.


def _gone(pid: int) -> Exception:
    return ChannelError(f"process {pid}, which compiles the graph, has ended")
