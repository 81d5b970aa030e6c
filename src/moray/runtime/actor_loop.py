"""Actors with coroutines: their calls run in an event loop in the worker's main thread, as many at once as
``max_concurrency`` allows.

Each concurrency group has an event loop of its own in a thread of its own, for coroutines and ordinary methods alike:
what blocks in one group does not hold up the others. It starts with the group's first call.

The main thread's loop *is* the reactor's leader: its selector turns the reactor while it has nothing else to do
(:class:`~moray.runtime.loop_selector.LoopSelector`), so that a call costs no change of thread. The I/O thread steps in
as with tasks when the main thread is busy.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import warnings
from _thread import get_ident
from collections import deque
from time import perf_counter_ns
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from moray.core.limits import Limit
from moray.protocol import messages as m
from moray.runtime import stream_producer
from moray.runtime.actor_host import _NO_EXTRA, _PLAIN, FENCE_LOOK_S, ActorHost
from moray.runtime.loop_selector import LoopSelector
from moray.runtime.output import void
from moray.runtime.references import TaskToken
from moray.runtime.returns import take_returns
from moray.runtime.work import Called, current_call
from moray.serialization import NONE_BLOB, context, loads, serialize

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.worker import Worker


class AsyncActorHost(ActorHost):
    """The actor of this process, whose class has coroutines."""

    def __init__(self, worker: Worker, start: m.StartActor, connection: Connection | None) -> None:
        super().__init__(worker, start, connection)
        self._loop = asyncio.SelectorEventLoop(LoopSelector(worker))
        #: Group → how many of its coroutines may begin. Each is its event loop's.
        self._limits: dict[str, _Limit] = {}
        #: Concurrency group → its event loop. Loop only.
        self._group_loops: dict[str, asyncio.AbstractEventLoop] = {}
        self._flush_due = False
        self._warned = False

    # --- the main thread ------------------------------------------------------------------------------

    def _live(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        self.concurrent = self._worker.concurrent = True
        loop.create_task(self._construct_async())
        try:
            loop.run_forever()
        finally:
            # Only the process's end leads here.
            self._leave("its event loop was stopped", 1)

    async def _construct_async(self) -> None:
        """The constructor runs where asyncio.get_running_loop() works."""
        if not self._construct():
            return
        creation = self.creation
        self._limits = {group: _Limit(self._size_of(group)) for group in ["", *creation.groups]}
        self._worker.call_soon(self._open_async)

    def _open_async(self) -> None:
        """Calls may begin. Loop only."""
        early, self._early = self._early or deque(), None
        self._worker.node.send(m.ActorStarted(self.actor, self.incarnation))
        for call in early:
            self._begin(call)

    def _begin(self, call: Called) -> None:
        """Have the event loop run a call. Loop only: in the main thread, or the I/O thread."""
        loop: asyncio.AbstractEventLoop = self._loop
        self.running[call.caller.process, call.spec.seq] = (call, None)
        if self.creation.groups and (group := self._group_of(call)):
            loop = self._group_loop(group)
        elif get_ident() == self._worker.main_ident:
            self._start_task(call, loop)
            return
        loop.call_soon_threadsafe(self._start_task, call, loop)

    def _start_task(self, call: Called, loop: asyncio.AbstractEventLoop) -> None:
        task = _CallTask(self._run_async(call), loop=loop)
        self.running[call.caller.process, call.spec.seq] = (call, task)

    def _group_loop(self, group: str) -> asyncio.AbstractEventLoop:
        """The event loop of a concurrency group. Loop only."""
        loop = self._group_loops.get(group)
        if loop is None:
            loop = self._group_loops[group] = asyncio.SelectorEventLoop()
            threading.Thread(target=self._run_loop, args=(loop,), name=f"moray-actor-{group}", daemon=True).start()
        return loop

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread of a concurrency group, for as long as the actor lives."""
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        except SystemExit as wish:  # Of a task that the user's code has made.
            self._exit_by(wish, "a task of its own")
        finally:
            self._leave("the event loop of one of its concurrency groups was stopped", 1)

    async def _run_async(self, call: Called) -> None:
        current_call.set(call)
        begin = perf_counter_ns()
        token: TaskToken | None = None
        extra = call.spec.extra or _NO_EXTRA
        executor = self._executor
        limit = self._limits[self._group_of(call) if self.creation.groups else ""]
        if limit.free:
            limit.free -= 1
        else:
            try:
                await limit.wait()
            except BaseException as error:  # noqa: BLE001 - cancelled before it began.
                self.running.pop((call.caller.process, call.spec.seq), None)
                self._failed_async(call, error, begin, token, extra)
                return
        try:
            while self._lease is not None and self._lease.expired():  # noqa: ASYNC110 - a page of memory has no events.
                await asyncio.sleep(FENCE_LOOK_S)
            executor.check_cancelled(call)
            executor.owner = call.connection
            executor.name = executor.function_name = extra.name or call.spec.method
            method = self._methods.get(call.spec.method) or self._find(call.spec.method)
            if call.spec.extra is None:
                args, kwargs = loads(call.spec.payload) if call.spec.payload else ((), {})
            else:
                token = TaskToken(call.caller.process, call.spec.seq)
                args, kwargs = await self._arguments_async(call, extra, token)
            begin = perf_counter_ns()
            value = method(*args, **kwargs)
            del args, kwargs
            if extra.stream is not None:
                items = value if hasattr(value, "__aiter__") else _as_async(value)
                await stream_producer.answer_async(executor, call, self._name(call), extra, items, token, begin)
                self._flush_soon()
                return
            if type(value) is CoroutineType or inspect.isawaitable(value):
                value = await value
                if call.cancelled:  # It heard of it as a CancelledError, and has tidied up.
                    raise executor.cancelled(call, "it ended after it had been asked to")
        except BaseException as error:  # noqa: BLE001 - every error of the user's is the call's result.
            self._failed_async(call, error, begin, token, extra)
            return
        finally:
            self.running.pop((call.caller.process, call.spec.seq), None)
            limit.end()
        took = perf_counter_ns() - begin
        record = executor.events.append if self._group_loops else executor.events.append_main
        record((call.spec.method, call.spec.seq, call.connection, begin, took))
        self._answer_async(call, value, took // 1000, token, extra)
        self._flush_soon()

    def _answer_async(
        self, call: Called, value: Any, took_us: int, token: TaskToken | None, extra: m.TaskExtra
    ) -> None:
        if token is None and value is None:
            self.results.append((call, m.Result(call.spec.seq, took_us, NONE_BLOB)))
            return
        if token is None and type(value) in _PLAIN:
            self.results.append((call, m.Result(call.spec.seq, took_us, serialize(value).blob or b"")))
            return
        try:
            made = take_returns(self._worker.values, call, value, extra.num_returns, self._name(call))
        except BaseException as error:  # noqa: BLE001 - every error of the user's is the call's result.
            self._failed_async(call, error, perf_counter_ns(), token, extra)
            return
        self._executor.send_returns(call, made, took_us, token)

    def _flush_soon(self) -> None:
        """Send what has ended: now if nothing else is about to run here, otherwise once for all of that."""
        loop: Any = self._loop
        if not loop._ready or (self._group_loops and get_ident() != self._worker.main_ident):
            self._executor.flush()
        elif not self._flush_due:
            self._flush_due = True
            loop.call_soon(self._flush_async)

    def _failed_async(
        self, call: Called, error: BaseException, begin: int, token: TaskToken | None, extra: m.TaskExtra
    ) -> None:
        if isinstance(error, asyncio.CancelledError) and call.cancelled:
            error = self._executor.cancelled(call, "its coroutine was cancelled")
        self._failed(call, error, begin, token, extra)
        self._flush_soon()

    async def _arguments_async(self, call: Called, extra: m.TaskExtra, token: TaskToken) -> tuple[Any, dict[str, Any]]:
        """Like `_arguments`, for a thread that must not wait for long: large ones are pinned quickly."""
        outer, context.cover = context.cover, token
        try:
            args, kwargs = loads(call.spec.payload) if call.spec.payload else ((), {})
            if extra.arguments:
                args, kwargs = self._executor.fill_in(args, kwargs, extra.arguments, token)
        finally:
            context.cover = outer
        if token.touched:
            secured = asyncio.Event()
            loop = asyncio.get_running_loop()
            self._worker.references.secure_soon(token, lambda: void(loop.call_soon_threadsafe(secured.set)))
            await secured.wait()
        return args, kwargs

    def _flush_async(self) -> None:
        """Once for all calls that ended in this round of the event loop."""
        self._flush_due = False
        self._executor.flush()

    # --- the loop, and any thread ---------------------------------------------------------------------------

    def cancel_running(self, process: bytes, seq: int) -> None:
        """The call's coroutine sees asyncio.CancelledError. Loop only."""
        _call, task = self.running.get((process, seq), (None, None))
        if task is not None:
            task.get_loop().call_soon_threadsafe(task.cancel)

    def _take_back(self) -> list[Called]:
        """All that came is a coroutine by now, and ends as such. Loop only."""
        return []

    def _end_soon(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self._leave("", 0))

    def warn_blocking(self) -> None:
        """The main thread of an async actor is about to wait."""
        if not self._warned and get_ident() == self._worker.main_ident:
            self._warned = True
            warnings.warn(
                f"a blocking moray.get() or wait() in the async actor {self.creation.class_name} stops its event loop, "
                "and all its other calls, until it returns: write `await ref` instead",
                RuntimeWarning,
                stacklevel=5,
            )


class _CallTask(asyncio.Task[None]):
    """A call. User code may cancel it (``asyncio.all_tasks()``) before its first step, which has to answer it: it takes
    that step first."""

    def cancel(self, msg: Any = None) -> bool:
        """See asyncio.Task.cancel."""
        coroutine = self.get_coro()
        if type(coroutine) is not CoroutineType or inspect.getcoroutinestate(coroutine) != inspect.CORO_CREATED:
            return super().cancel(msg)
        self.get_loop().call_soon(super().cancel, msg)  # The step is in that queue already.
        return True


async def _as_async(items: Any) -> Any:
    """The items of an ordinary generator, in an event loop that others use too."""
    for item in items:
        yield item
        await asyncio.sleep(0)


class _Limit(Limit):
    """How many coroutines of a group may run. Its event loop's."""

    __slots__ = ()

    async def wait(self) -> None:
        """Wait for one of those that run to end; its place is the caller's then."""
        ticket = asyncio.get_running_loop().create_future()
        self.line_up(ticket)
        try:
            await ticket
        except asyncio.CancelledError:
            if not self.withdraw(ticket):
                self.end()
            raise

    def end(self) -> None:
        """One has ended: the next that waits takes its place."""
        ticket = self.release()
        # One that is cancelled knows of it only in its turn: then it hands on what it is given here.
        if ticket is not None and not ticket.done():
            ticket.set_result(None)
