"""Tasks and calls of local mode: run at once, in the thread that submits them."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import threading
import weakref
from bdb import BdbQuit
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from contextvars import ContextVar
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from moray import exceptions
from moray.exceptions.tasks import make_cancelled_error
from moray.object_ref import Entry, ObjectRef
from moray.object_ref_generator import DynamicObjectRefGenerator, Inbox, ObjectRefGenerator
from moray.protocol import messages as m
from moray.runtime.executor import _wants_retry
from moray.runtime.returns import iterate_returns
from moray.runtime.values import unpicklable
from moray.serialization import NONE_BLOB, Serialized, loads, serialize

if TYPE_CHECKING:
    from moray.runtime.arguments import Prepared
    from moray.runtime.local_actors import LocalActor
    from moray.runtime.local_loop import PrivateLoop
    from moray.runtime.local_mode import LocalRuntime
    from moray.runtime.tasks import TaskSettings

_NO_EXTRA: Final = m.TaskExtra()
#: Meant for whoever debugs, not for the task's owner.
_NOT_CAUGHT: Final = (KeyboardInterrupt, GeneratorExit, BdbQuit)

#: The call that the present thread or coroutine runs.
current_local: ContextVar[LocalCall | None] = ContextVar("moray_current_local", default=None)


class LocalCall:
    """One task or call. While it has not ended it is `Entry.task` of its results: what makes them ready."""

    def __init__(
        self,
        runtime: LocalRuntime,
        settings: TaskSettings,
        prepared: Prepared | None,
        function: Callable[..., Any] | None,
        host: LocalActor | None = None,
        handle: ObjectRef[Any] | None = None,
    ) -> None:
        self.runtime = runtime
        self.settings = settings
        self.extra = settings.extra or _NO_EXTRA
        #: None: the method is looked up when the call begins.
        self.function = function
        self.host = host
        self.incarnation = host.incarnation if host is not None else 0
        #: Keeps the actor alive.
        self.handle = handle
        self.payload = prepared.payload if prepared is not None else b""
        self.arguments = (prepared.arguments if prepared is not None else None) or []
        self.held = prepared.held if prepared is not None else None
        self.seq = runtime.next_number()
        self.retries_left = settings.max_retries
        self.cancelled = False
        self.begin_ns = 0
        #: The coroutine's task, once it has begun.
        self.task: Any = None
        self.entries = [Entry(runtime.origin, self.seq << 32 | index) for index in range(settings.num_returns)]

    @property
    def name(self) -> str:
        """The task's name."""
        return self.settings.name

    @property
    def function_name(self) -> str:
        """The function's, or the method's."""
        return self.settings.method or getattr(self.function, "__name__", self.name)

    @property
    def task_id(self) -> bytes:
        """24 bytes."""
        return self.seq.to_bytes(8, "big") + self.runtime.origin.tail

    def open(self) -> tuple[Any, LocalStream | None]:
        """What the caller gets, and the stream that runs the call if it is a generator's."""
        refs = [self.runtime.make_ref(entry) for entry in self.entries]
        for entry in self.entries:
            entry.task = self
        if self.extra.stream is not None:
            # Entries are not the garbage collector's: the stream must not hold the one that holds it.
            self.entries = []
            stream = LocalStream(self)
            return stream.open(refs[0]), stream
        return (refs[0] if len(refs) == 1 else refs or None), None

    # --- running -----------------------------------------------------------------------------------------

    def missing(self) -> list[Entry]:
        """Arguments that are not ready."""
        return [ref._entry for _where, ref in self.arguments if not ref._entry.ready]

    def take_arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Fresh copies, as in another process. Raises what an argument's reference is an error of."""
        args, kwargs = loads(self.payload) if self.payload else ((), {})
        args = list(args)
        for where, ref in self.arguments:
            entry = ref._entry
            if entry.error:
                entry.seen = True
                raise _FailedArgument(ref)
            value = self.runtime.values.load(entry)
            if isinstance(where, int):
                args[where] = value
            else:
                kwargs[where] = value
        return args, kwargs

    def run(self) -> None:
        """Run it here and now, as often as its retries allow. Its arguments are ready."""
        while True:
            token = current_local.set(self)
            self.begin_ns = perf_counter_ns()
            try:
                args, kwargs = self.take_arguments()
                function = self.function or self.find_method()
                value = function(*args, **kwargs)
            except _NOT_CAUGHT:
                raise
            except BaseException as error:  # noqa: BLE001 - every other error of the user's is the result.
                if self.failed(error):
                    continue
                return
            finally:
                self.note_end()
                current_local.reset(token)
            self.succeeded(value)
            return

    def find_method(self) -> Callable[..., Any]:
        """The bound method of the actor."""
        assert self.host is not None
        return self.host.find(self.settings.method)

    async def run_async(self) -> None:
        """The same in the event loop of an async actor."""
        current_local.set(self)
        while True:
            self.begin_ns = perf_counter_ns()
            try:
                args, kwargs = self.take_arguments()
                value = (self.function or self.find_method())(*args, **kwargs)
                if inspect.isawaitable(value):
                    value = await value
                    if self.cancelled:  # It heard of it as a CancelledError, and has tidied up.
                        raise self.cancel_error("it ended after it had been asked to")
            except _NOT_CAUGHT:
                raise
            except BaseException as error:  # noqa: BLE001 - every other error of the user's is the result.
                if self.failed(error):
                    continue
                return
            finally:
                self.note_end()
            self.succeeded(value)
            return

    def note_end(self) -> None:
        """Remember it for the timeline."""
        took = perf_counter_ns() - self.begin_ns
        self.runtime.events.append((self.name, self.task_id, self.begin_ns, took, threading.get_native_id()))

    # --- the end ------------------------------------------------------------------------------------------

    def succeeded(self, value: Any) -> None:
        """It returned `value`."""
        if self.host is not None and (verdict := self.host.judge(self, None)) is not None:
            self.fail_with(serialize(verdict))
            return
        name = self.name
        entries = iter(self.entries)
        try:
            for each in iterate_returns(value, self.settings.num_returns, name):
                self.runtime.values.publish(next(entries), self._pack(each))
        except _NOT_CAUGHT:
            raise
        except BaseException as error:  # noqa: BLE001 - every other error of the user's is the rest of the results.
            self.fail_with(serialize(self.task_error(error)))
            return
        self.forget()

    def _pack(self, value: Any) -> Serialized:
        try:
            return serialize(value)
        except Exception as error:  # Pickling runs the user's code.
            if isinstance(error, exceptions.MorayError):
                raise
            raise unpicklable(value, f"the result of {self.name}()", error) from None

    def failed(self, error: BaseException) -> bool:
        """It raised `error`: whether it is to be tried again. Otherwise its results are that error now."""
        packed = self.judge(error)
        if packed is None:
            return True
        self.fail_with(packed)
        return False

    def judge(self, error: BaseException) -> Serialized | None:
        """The error that its results become when it raises `error`; None: it is to be tried again."""
        if isinstance(error, _FailedArgument):
            return self.runtime.values.error_of(error.ref._entry)
        if self.host is not None and (verdict := self.host.judge(self, error)) is not None:
            if isinstance(verdict, exceptions.ActorUnavailableError) and self._try_again():
                return None
            return serialize(verdict)
        if self.cancelled and isinstance(error, asyncio.CancelledError):
            error = self.cancel_error("its coroutine was cancelled")
        if self.host is None and isinstance(error, SystemExit):
            error = exceptions.WorkerCrashedError(
                f"task {self.name}() called sys.exit({error.code!r}), which ends the worker of a task",
                exit_code=error.code if isinstance(error.code, int) else int(error.code is not None),
                pid=os.getpid(),
                function_name=self.name,
            )
            return None if self._try_again() else serialize(error)
        if isinstance(error, exceptions.TaskCancelledError):
            return serialize(error)
        if _wants_retry(self.extra.retry, error) and self._try_again():
            return None
        return serialize(self.task_error(error))

    def _try_again(self) -> bool:
        if not self.retries_left:
            return False
        self.retries_left -= self.retries_left > 0
        self.incarnation = self.host.incarnation if self.host is not None else 0
        return True

    def task_error(self, error: BaseException) -> exceptions.MorayError:
        """A TaskError that carries `error`."""
        runtime = self.runtime
        return exceptions.make_task_error(
            self.extra.name or self.name,
            error,
            pid=os.getpid(),
            ip=socket.gethostname(),
            node_id=runtime.welcome.node_id.hex(),
            worker_id=runtime.process.hex(),
            task_id=self.task_id.hex(),
            actor_id=self.host.actor.hex() if self.host is not None else None,
        )

    def fail_with(self, packed: Serialized) -> None:
        """All its results are this error."""
        for entry in self.entries:
            if not entry.ready:
                self.runtime.values.publish(entry, packed, error=True)
        self.forget()

    def forget(self) -> None:
        """It has ended: what it held is free."""
        self.held, self.arguments, self.handle = None, [], None

    # --- while it is not ready -----------------------------------------------------------------------------

    def drive(self, deadline: float | None) -> None:
        """Try to get it ready until the deadline: its arguments first, then, of a coroutine, its loop."""
        if self.task is None and self in self.runtime.deferred:
            for entry in self.missing():
                self.runtime.values.drive(entry, deadline)
            self.runtime.run_deferred()
        elif self.host is not None and not self.entries_ready():
            self.host.drive(self.entries_ready, False, deadline)

    def entries_ready(self) -> bool:
        """Whether it has ended."""
        return all(entry.ready for entry in self.entries)

    def cancel_error(self, how: str) -> exceptions.TaskCancelledError:
        """The error of a task that was cancelled after it had begun."""
        return make_cancelled_error(self.task_id.hex(), f"{self.name}(): {how}", self.name, os.getpid())

    def cancel(self) -> None:
        """End it, if it has not ended."""
        self.cancelled = True
        if self in self.runtime.deferred:
            self.runtime.deferred.remove(self)
            error = exceptions.TaskCancelledError(self.task_id.hex(), f"{self.name}(): it had not begun")
            self.fail_with(serialize(error))
        elif self.task is not None and self.host is not None and self.host.loop is not None:
            self.host.loop.call_soon_threadsafe(self.task.cancel)
            if not self.host.is_driven_here():
                self.host.drive(self.entries_ready, False, None)


class LocalStream:
    """A generator's items: always one ahead of whoever takes them, so that endless generators can be read.

    It is `Entry.task` of the task's own object, which is ready at the end: getting that makes all items.
    """

    def __init__(self, call: LocalCall) -> None:
        self._call = call
        #: Several threads may iterate; an ordinary actor runs one call at a time.
        self._lock = (call.host.lock if call.host is not None else None) or threading.RLock()
        self._running = False
        self._iterator: Any = None
        #: Of an asynchronous generator: its loop, if it is not its actor's.
        self._loop: PrivateLoop | None = None
        self._asynchronous = False
        #: Items made, and items that an earlier attempt made.
        self._made = self._skip = 0
        self._ended = False
        spec = call.extra.stream
        self._dynamic = spec is not None and spec.dynamic
        self._kept: Inbox | None = None

    def open(self, ref: ObjectRef[Any]) -> Any:
        """What the caller gets; `ref` is that of the task's own object."""
        runtime = self._call.runtime
        ref._entry.task = self
        self._own = weakref.ref(ref)
        inbox = Inbox(runtime.origin, ref)
        # Whoever iterates has it; when nobody does any more, the generator ends.
        self._inbox = weakref.ref(inbox, lambda _inbox: runtime.dropped.append(self))
        if self._dynamic:
            del inbox.ref  # The caller alone has it.
            self._kept = inbox
            return ref
        inbox.on_taken = self.advance
        return ObjectRefGenerator._over(inbox)

    def run(self) -> None:
        """Make the first item; of a dynamic one, all."""
        self.finish() if self._dynamic else self.advance()

    def advance(self) -> None:
        """Make the next item, unless there is one to be taken."""
        with self._lock:
            inbox = self._inbox()
            while inbox is not None and not inbox and not self._ended and not self._running:
                self._step(inbox)

    def finish(self) -> None:
        """Make all items."""
        with self._lock:
            while not self._ended and not self._running:
                inbox = self._inbox()
                if inbox is None:
                    self.cancel()
                else:
                    self._step(inbox)

    def drive(self, _deadline: float | None) -> None:
        """The task's own object is wanted."""
        self.finish()

    def cancel(self) -> None:
        """End the generator, if it has not ended."""
        with self._lock:
            if not self._ended and not self._running:
                self._call.cancelled = True
                self._end(serialize(self._call.cancel_error("its generator was cancelled")))

    def fail(self, error: Serialized) -> None:
        """It cannot begin."""
        self._end(error)

    def _step(self, inbox: Inbox) -> None:
        call = self._call
        token = current_local.set(call)
        self._running = True
        try:
            if self._iterator is None:
                call.begin_ns = perf_counter_ns()
                args, kwargs = call.take_arguments()
                value = (call.function or call.find_method())(*args, **kwargs)
                self._iterator = self._iterate(value)
            item = self._next()
            self._made += 1
            if self._made > self._skip:
                inbox.append(self._make(item))
        except StopIteration:
            self._running = False
            self._end(None)
        except _NOT_CAUGHT:
            raise
        except BaseException as error:  # noqa: BLE001 - every other error of the user's is the last item.
            self._running = False
            self._raised(error)
        finally:
            self._running = False
            current_local.reset(token)

    def _iterate(self, value: Any) -> Any:
        if hasattr(value, "__aiter__"):
            self._asynchronous = True
            host = self._call.host
            if host is None or host.loop is None or host.is_driven_here():
                self._loop = self._call.runtime.borrow_loop()
            return value.__aiter__()
        try:
            return iter(value)
        except TypeError:
            raise TypeError(
                f"{self._call.name}() has num_returns='streaming' or 'dynamic', but returned a "
                f"{type(value).__name__}, which is not iterable"
            ) from None

    def _next(self) -> Any:
        if not self._asynchronous:
            return next(self._iterator)
        found, item = self._await(_advance(self._iterator))
        if not found:
            raise StopIteration
        return item

    def _await(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        host = self._call.host
        if self._loop is not None:
            return self._loop.run_through(coroutine)
        assert host is not None
        return host.run_through(coroutine)

    def _make(self, item: Any) -> ObjectRef[Any]:
        call = self._call
        try:
            packed = serialize(item)
        except Exception as error:
            if isinstance(error, exceptions.MorayError):
                raise
            raise unpicklable(item, f"item {self._made - 1} of {call.name}()", error) from error
        return self._item(packed, is_error=False)

    def _item(self, packed: Serialized, is_error: bool) -> ObjectRef[Any]:
        runtime = self._call.runtime
        index = self._made + is_error
        entry = Entry(runtime.origin, self._call.seq << 32 | index)
        ref = runtime.make_ref(entry)
        runtime.values.publish(entry, packed, error=is_error)
        return ref

    def _raised(self, error: BaseException) -> None:
        packed = self._call.judge(error)
        if packed is not None:
            self._end(packed)
            return
        self._close()
        self._skip, self._made = max(self._made, self._skip), 0

    def _close(self) -> None:
        iterator, self._iterator = self._iterator, None
        if self._asynchronous:
            if isinstance(iterator, AsyncGenerator):
                self._await(iterator.aclose())
            loop, self._loop = self._loop, None
            if loop is not None:
                self._call.runtime.return_loop(loop)
        elif isinstance(iterator, Generator):
            iterator.close()

    def _end(self, error: Serialized | None) -> None:
        """No more items; `error` is why, if it was not the generator's own end."""
        call = self._call
        values = call.runtime.values
        self._ended = True
        begun = self._iterator is not None
        self._close()
        call.note_end()
        inbox = self._inbox()
        packed = Serialized(NONE_BLOB, [], [])
        if error is not None:
            packed = error
            if inbox is not None and (begun or not self._dynamic):
                inbox.append(self._item(error, is_error=True))
                error = None if self._dynamic else error
        if self._dynamic and inbox is not None and error is None:
            packed = serialize(DynamicObjectRefGenerator(inbox))
        self._kept = None
        if inbox is not None:
            inbox.ended = True
        own = self._own()
        if own is not None:
            values.publish(own._entry, packed, error=error is not None)
        call.forget()


async def _advance(iterator: AsyncIterator[Any]) -> tuple[bool, Any]:
    try:
        return True, await anext(iterator)
    except StopAsyncIteration:
        return False, None


class _FailedArgument(Exception):  # noqa: N818 - it never leaves this module.
    """A reference among the arguments is an error, which the call's results share."""

    def __init__(self, ref: ObjectRef[Any]) -> None:
        super().__init__()
        self.ref = ref
