"""The actor that a worker process is: its instance, its callers, and how its calls are run (CALL-ORDER).

Three kinds, by what the class and its options say:

===========  ============================================================================================
ordinary     one call at a time, in the main thread, by the executor's queue
threaded     ``max_concurrency`` threads, or some of its concurrency groups' own; calls begin in order
async        coroutines in an event loop in the main thread: :mod:`moray.runtime.actor_loop`
===========  ============================================================================================

**Replies** are kept until the caller has said that it has them, and sent on the caller's present connection. With each
is kept what it says of references, which ends the caller's holds on the arguments in the same step (REF-COVER).

**In a cluster** nothing starts while others may take this machine for dead: the head may have started the actor
elsewhere by then (FENCE). What is to run waits. It goes on if the head is heard again in time; if this machine is dead
to the cluster, its node ends this process.
"""

from __future__ import annotations

import atexit
import sys
import threading
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic, perf_counter_ns, sleep
from typing import TYPE_CHECKING, Any, Final, NoReturn

from moray.exceptions import TaskCancelledError
from moray.platform import process_control
from moray.platform.lease_page import LeasePage
from moray.protocol import messages as m
from moray.runtime import stream_producer
from moray.runtime.interrupts import TaskInterrupt, base, interruptible
from moray.runtime.references import TaskToken
from moray.runtime.returns import take_returns
from moray.runtime.work import Called, Caller, Construction, current_call
from moray.serialization import NONE_BLOB, context, loads, serialize

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.actor_moves import ActorMove
    from moray.runtime.worker import Worker

_PLAIN: Final = frozenset({int, float, bool, complex})
_NO_EXTRA: Final = m.TaskExtra()
#: An ending actor waits so long for results that are in the reference protocol.
_PASSING_S: Final = 1.0
#: Between looks at a lease that has ended.
FENCE_LOOK_S: Final = 0.02


class ActorExit(SystemExit):
    """Raised by exit_actor(): the actor ends by its own will."""


class ActorHost:
    """The actor of this process."""

    def __init__(self, worker: Worker, start: m.StartActor, connection: Connection | None) -> None:
        self._worker = worker
        self._executor = worker.executor
        self.actor = start.actor
        self.incarnation = start.incarnation
        self.creator = start.creator
        self.creation = start.creation
        self.devices = start.devices
        self._start = start
        self._creator_connection = connection
        #: Its creator as one who gets the constructor's reply, by number 0; None: the node had it made.
        self._creator_caller = Caller(start.creator, connection) if connection is not None else None
        self.instance: Any = None
        #: What its output is marked with.
        self.label = start.creation.class_name
        #: Calls run in several threads or coroutines.
        self.concurrent = False
        #: Results of calls that wait to be sent. Whoever runs calls appends; whoever flushes takes.
        self.results: deque[tuple[Called, m.Result]] = deque()
        #: Method → what to call.
        self._methods: dict[str, Callable[..., Any]] = {}
        #: (caller's process, seq) → what runs it: an asyncio task, or None for threads.
        self.running: dict[tuple[bytes, int], tuple[Called, Any]] = {}
        #: What arrived before the constructor returned. Loop only.
        self._early: deque[Called] | None = deque()
        #: Group → wake-ups of its threads, one per call, and the calls themselves, oldest first.
        self._queues: dict[str, SimpleQueue[None]] = {}
        self._waiting: dict[str, deque[Called]] = {}
        self._threads: dict[str, list[threading.Thread]] = {}
        #: Group → what its threads run now. Each thread adds and removes its own.
        self._busy: dict[str, dict[int, None]] = {}
        self.exiting = False
        #: Taken by the thread that ends the process.
        self._leaving = threading.Lock()
        #: It is to live elsewhere (:mod:`moray.runtime.actor_moves`), and what it was told of that.
        self.move: ActorMove | None = None
        #: Accepted calls that are not to be begun for the time being, oldest first; None: all may. Loop only.
        self.held_back: deque[Called] | None = None
        #: Until the constructor has returned.
        self._construction: Construction | None = Construction()
        #: Until when this machine counts as alive; None: nobody could take it for dead.
        self._lease = LeasePage.open(worker.session_dir) if worker.welcome.credentials else None

    # --- the loop: calls arrive ----------------------------------------------------------------------

    def on_calls(self, connection: Connection, message: m.Calls) -> None:
        """Calls of one caller."""
        caller: Caller | None = connection.peer.caller
        if caller is None:
            connection.close("calls before CallerHello")
            return
        if connection is not caller.connection:
            return  # A rest of a connection that has been replaced: all of it comes again.
        caller.forget(message.answered)
        if caller.streams:
            stream_producer.forget(caller, message.answered)
        again = []
        for spec in message.calls:
            number, fresh = caller.accept()
            if fresh:
                self._dispatch(Called(connection, caller, number, spec))
                continue
            if (producer := caller.streams.get(number)) is not None:
                producer.resume(connection)
            reply = caller.replies.get(number)
            if isinstance(reply, m.CallResults):
                connection.send(reply)
            elif reply is not None:
                again.append(reply)
        if again:
            connection.send(m.CallResults(again))

    def told_again(self, start: m.StartActor, connection: Connection | None) -> None:
        """The creator has lost a connection, and with it perhaps the constructor's reply. Loop only."""
        creator = self._creator_caller
        if creator is None or connection is None or start.told <= self._start.told:
            return  # From the node, or late, from a connection that was replaced.
        self._start.told = start.told
        creator.connection = connection  # Before the look at what is kept: who keeps it looks in the other order.
        reply = creator.replies.get(0)
        if reply is not None:
            connection.send(reply if isinstance(reply, m.CallResults) else m.CallResults([reply]))

    def _dispatch(self, call: Called) -> None:
        if self.held_back is not None:
            self.held_back.append(call)
        elif self._early is not None:
            self._early.append(call)
        else:
            self._begin(call)

    def _begin(self, call: Called) -> None:
        """Into the queue of its group: the main thread's, or threads'. Loop only."""
        group = self._group_of(call) if self._queues else ""
        queue = self._queues.get(group)
        if queue is None:
            self._executor.queue.append(call)
            return
        threads = self._threads[group]
        if len(threads) < self._size_of(group) and self._open_calls(group) >= len(threads):
            thread = threading.Thread(target=self._run_group, args=(group,), name=f"moray-actor-{group}", daemon=True)
            threads.append(thread)
            thread.start()
        self._waiting[group].append(call)
        queue.put(None)

    def _group_of(self, call: Called) -> str:
        extra = call.spec.extra
        if extra is not None and extra.group:
            return extra.group
        method = getattr(type(self.instance), call.spec.method, None)
        group: str = getattr(method, "__moray_group__", "")
        return group if group in self.creation.groups else ""

    def _open_calls(self, group: str) -> int:
        return len(self._waiting[group]) + len(self._busy[group])

    def _size_of(self, group: str) -> int:
        return self.creation.groups.get(group) or self.creation.max_concurrency

    # --- becoming the actor: the main thread ------------------------------------------------------------

    def become(self) -> None:
        """Make the instance, tell the head, and let calls begin. An async actor's main thread stays in here."""
        self._executor.name = self._executor.function_name = f"{self.creation.class_name}.__init__"
        process_control.set_name(f"moray:{self.creation.class_name.rpartition('.')[2]}")
        self._executor.owner = self._creator_connection
        self._live()

    def _live(self) -> None:
        if self._construct():
            self._worker.call_soon(self._open)

    def _open(self) -> None:
        """Calls may begin. Loop only."""
        creation = self.creation
        if creation.max_concurrency > 1:
            self._make_group("")
        for group in creation.groups:
            self._make_group(group)
        self.concurrent = bool(self._queues)
        self._worker.concurrent = self.concurrent
        early, self._early = self._early or deque(), None
        self._worker.node.send(m.ActorStarted(self.actor, self.incarnation))
        for call in early:
            self._dispatch(call)

    def _make_group(self, group: str) -> None:
        self._queues[group] = SimpleQueue()
        self._waiting[group] = deque()
        self._threads[group] = []
        self._busy[group] = {}

    @base
    def _construct(self) -> bool:
        """Run the constructor; the creator and the head are told how it went."""
        creation, worker = self.creation, self._worker
        if self._lease is not None and self._lease.expired():
            self._wait_for_lease()
        token = context.cover = TaskToken(self.creator or worker.process, self._start.seq)
        extra = m.TaskExtra(resources=creation.resources, devices=self.devices, placement=creation.placement)
        begin = perf_counter_ns()
        error: BaseException | None = None
        construction, outer = self._construction, self._executor.current
        self._executor.current = construction  # Before the look at whether it is cancelled, as with calls.
        if not self.concurrent:
            worker.work = construction
        try:
            if construction is not None and construction.cancelled:
                raise self._cancelled("it had not begun")
            worker.enter_task(extra)
            kind = loads(creation.blob)
            args, kwargs = loads(creation.payload) if creation.payload else ((), {})
            if creation.arguments:
                args, kwargs = self._executor.fill_in(args, kwargs, creation.arguments, token)
            self._secure(token)
            self.instance = instance = kind(*args, **kwargs)
            del args, kwargs
            if "__repr__" in {name for kind in type(instance).__mro__[:-1] for name in vars(kind)}:
                self.label = repr(instance)
        except SystemExit as wish:
            self._exit_by(wish, "__init__")
        except TaskInterrupt:
            error = self._cancelled("it was interrupted")
        except BaseException as raised:  # noqa: BLE001 - every error of the user's is the actor's cause of death.
            error = raised
        self._construction, self._executor.current = None, outer
        if not self.concurrent:
            worker.work = outer
        if error is not None and construction is not None and construction.cancelled:
            worker.call_soon(lambda: worker.cancels.cancel_children(construction))
        self._executor.events.append(
            (
                f"{creation.class_name}.__init__",
                self._start.seq,
                self._creator_connection,
                begin,
                perf_counter_ns() - begin,
            )
        )
        self._answer_creation(token, error)
        return error is None

    def _cancelled(self, how: str) -> TaskCancelledError:
        start = self._start
        task = start.seq.to_bytes(8, "big") + start.creator + self._worker.job
        return TaskCancelledError(task.hex(), f"{self.creation.class_name}.__init__: {how}")

    def _answer_creation(self, token: TaskToken, error: BaseException | None) -> None:
        worker, start = self._worker, self._start
        blob = b""
        if error is not None:
            name = f"{self.creation.class_name}.__init__"
            cancelled = isinstance(error, TaskCancelledError)
            packed = serialize(error if cancelled else worker.constructor_error(name, error, start))
            blob = packed.to_bytes()
        worker.output.pump(last=True)
        if self._creator_caller is not None and start.seq:
            result = m.Result(start.seq, 0, NONE_BLOB, m.ResultExtra(error=True) if error is not None else None)
            creation_call = Called(self._creator_connection, self._creator_caller, 0, m.CallSpec(start.seq, "", b""))
            self._executor.respond(creation_call, result, token, [])
            self._executor.flush()
        if error is not None:
            worker.node.send(m.ActorStarted(self.actor, self.incarnation, blob))

    # --- running a call: the main thread or a group's --------------------------------------------------------

    @base
    def run_in_main(self, call: Called) -> None:
        """A call of an ordinary actor."""
        executor = self._executor
        spec = call.spec
        if self._lease is not None and self._lease.expired():
            self._wait_for_lease()
        executor.name = executor.function_name = spec.method
        executor.owner = call.connection
        method = self._methods.get(spec.method)
        if method is None or spec.extra is not None or call.cancelled:
            self._run_special(call)
            return
        begin = perf_counter_ns()
        try:
            if spec.payload:
                args, kwargs = loads(spec.payload)
                value = method(*args, **kwargs)
            else:
                value = method()
        except BaseException as error:  # noqa: BLE001 - every error of the user's is the call's result.
            self._failed(call, error, begin, None, _NO_EXTRA)
            return
        took = perf_counter_ns() - begin
        executor.events.append_main((spec.method, spec.seq, call.connection, begin, took))
        if value is None:
            blob = NONE_BLOB
        elif type(value) in _PLAIN:
            blob = serialize(value).blob  # type: ignore[assignment]
        else:
            executor.answer(call, self._name(call), value, took // 1000, None)
            return
        self.results.append((call, m.Result(spec.seq, took // 1000, blob)))

    @base
    def _run_special(self, call: Called) -> None:
        """A call with references, several returns, a stream …, or the first of its method."""
        spec, executor = call.spec, self._executor
        extra = spec.extra or _NO_EXTRA
        if extra.name:
            executor.name = extra.name
        token = context.cover = TaskToken(call.caller.process, spec.seq)
        begin = perf_counter_ns()
        try:
            executor.check_cancelled(call)
            method = self._find(spec.method)
            args, kwargs = self._arguments(call, extra, token)
            begin = perf_counter_ns()
            value = method(*args, **kwargs)
            del args, kwargs
            if call.cancelled and self.concurrent:
                raise executor.cancelled(call, "it ended after it had been asked to")
            if extra.stream is not None:
                stream_producer.answer(executor, call, self._name(call), extra, value, token, begin)
                return
            made = take_returns(self._worker.values, call, value, extra.num_returns, self._name(call))
            del value
            took = perf_counter_ns() - begin
            executor.events.append((spec.method, spec.seq, call.connection, begin, took))
        except BaseException as error:  # noqa: BLE001 - every error of the user's is the call's result.
            self._failed(call, error, begin, token, extra)
            return
        executor.send_returns(call, made, took // 1000, token)

    def _arguments(self, call: Called, extra: m.TaskExtra, token: TaskToken) -> tuple[Any, dict[str, Any]]:
        args, kwargs = loads(call.spec.payload) if call.spec.payload else ((), {})
        if extra.arguments:
            args, kwargs = self._executor.fill_in(args, kwargs, extra.arguments, token)
        self._secure(token)
        return args, kwargs

    def _secure(self, token: TaskToken) -> None:
        """What came in the arguments and the caller does not own is registered before the method starts (REF-SEND): it
        may outlive the call, and the caller."""
        if token.touched:
            self._worker.references.secure(token)

    def _failed(
        self,
        call: Called,
        error: BaseException,
        begin: int,
        token: TaskToken | None,
        extra: m.TaskExtra,
        items: int = -1,
    ) -> None:
        if isinstance(error, SystemExit):
            self._exit_by(error, call.spec.method)
        self._executor.failed(call, self._name(call), error, begin, token, extra, items=items)

    def _wait_for_lease(self) -> None:
        """Start nothing while others may take this machine for dead (FENCE). Not where coroutines run."""
        assert self._lease is not None
        while self._lease.expired():
            sleep(FENCE_LOOK_S)

    def _name(self, call: Called) -> str:
        return f"{self.creation.class_name}.{call.spec.method}"

    def _find(self, name: str) -> Callable[..., Any]:
        """The bound method; three names mean something in every actor."""
        method = self._methods.get(name)
        if method is None:
            special: Any = {
                "__ray_ready__": _ready, "__ray_call__": self._call_with_self, "__ray_terminate__": self._terminate,
            }.get(name)  # fmt: skip
            method = self._methods[name] = interruptible(special or getattr(self.instance, name))
        return method

    def _call_with_self(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(self.instance, *args, **kwargs)

    def _terminate(self) -> NoReturn:
        raise ActorExit(0)

    # --- threads ----------------------------------------------------------------------------------------------

    def _run_group(self, group: str) -> None:
        queue, waiting = self._queues[group], self._waiting[group]
        while True:
            queue.get()
            call = waiting.popleft()
            key = (call.caller.process, call.spec.seq)
            current_call.set(call)
            self._busy[group][get_ident()] = None
            self.running[key] = (call, None)
            self._executor.look_for(call)
            if self._lease is not None and self._lease.expired():
                self._wait_for_lease()
            try:
                self._executor.owner = call.connection
                self._executor.name = self._executor.function_name = call.spec.method
                self._run_special(call)
            finally:
                self.running.pop(key, None)
                self._busy[group].pop(get_ident(), None)
                current_call.set(None)
            if self._worker.waits:
                self._worker.end_waits()
            self._executor.flush()

    # --- cancels and deaths: the loop --------------------------------------------------------------------------

    def pending(self) -> list[Called]:
        """Calls that are not in the executor's queue: early ones, those of groups, and what runs."""
        calls = [call for call, _task in list(self.running.values())]
        calls += self._early or ()
        calls += self.held_back or ()
        for waiting in self._waiting.values():
            calls += list(waiting)
        return calls

    def cancel_construction(self, creator: bytes, message: m.CancelTask) -> bool:
        """Whether the creator asks for the end of the constructor, which is interrupted if it has begun. Loop only."""
        construction = self._construction
        if construction is None or (creator, message.seq) != (self.creator, self._start.seq):
            return False
        construction.cancelled = True  # Before the look at what runs: who begins it looks in the other order.
        if message.recursive:
            self._worker.cancels.cancel_children(construction)
        if self._executor.current is construction:
            self._worker.interrupts.request(construction)
        return True

    def cancel_running(self, process: bytes, seq: int) -> None:
        """A thread can only ask whether its call is cancelled (``is_canceled()``); a pause of its generator ends."""
        stream_producer.cancelled(process, seq)

    def hold_back(self) -> None:
        """Begin no more calls: what was accepted, and no thread has taken, waits with all that comes. Loop only."""
        self.held_back = deque(self._take_back())

    def hold_no_more(self) -> None:
        """Begin what was held back, and what comes. Loop only."""
        held, self.held_back = self.held_back or (), None
        for call in held:
            self._begin(call)
        self._worker.wake()

    def _take_back(self) -> list[Called]:
        taken = self._executor.take_calls()
        for group, queue in self._queues.items():
            newest: list[Called] = []
            while True:
                try:
                    queue.get_nowait()  # There is one for each call: whoever has it takes one.
                except Empty:
                    break
                newest.append(self._waiting[group].pop())  # A thread that has one already takes the oldest.
            taken += reversed(newest)
        return taken

    def forget_caller(self, process: bytes) -> None:
        """A caller died: what it still wanted is not begun."""
        stream_producer.forget_owner(process)
        for call in self.pending():
            if call.caller.process == process:
                call.cancelled = True

    def warn_blocking(self) -> None:
        """This thread is about to wait in moray."""

    # --- replies --------------------------------------------------------------------------------------------------

    def send_results(self, count: int) -> None:
        """Send the oldest `count` results. Under the executor's flush lock."""
        batch: list[m.Result] = []
        ends: list[tuple[int, m.Result]] = []
        caller: Caller | None = None
        results = self.results
        for _ in range(count):
            call, result = results.popleft()
            if call.caller is not caller:
                if batch and caller is not None:
                    _send_batch(caller, batch, ends)
                    batch, ends = [], []
                caller = call.caller
            caller.keep(call.number, result)
            batch.append(result)
            if result.extra is not None and result.extra.items >= 0:
                ends.append((call.number, result))
        if batch and caller is not None:
            _send_batch(caller, batch, ends)

    def post(self, call: Called, result: m.Result, borrows: Any) -> None:
        """Send a result that has passed the reference protocol. Loop only."""
        caller = call.caller
        message = m.CallResults([result], borrows)
        # Sent again, it must say again what is still held here: another connection's order means nothing (REF-COVER).
        caller.keep(call.number, result if borrows is None else message)
        producer = caller.streams.get(call.number)
        if producer is None or producer.sends_on(caller.connection):
            caller.connection.send(message)
        else:
            producer.end = message  # Its items go first, when the caller has said again that it wants them.

    # --- the end ----------------------------------------------------------------------------------------------------

    def _exit_by(self, wish: SystemExit, method: str) -> NoReturn:
        """exit_actor() or sys.exit() in a method: the process ends; with code 0 by its own will."""
        code = wish.code if isinstance(wish.code, int) else int(wish.code is not None)
        if isinstance(wish, ActorExit) or code == 0:
            how = "exit_actor()" if isinstance(wish, ActorExit) else "sys.exit() with exit code 0"
            if method == "__ray_terminate__":
                self._leave("it was asked to terminate (__ray_terminate__)", 0)
            self._leave(f"{how} was called in {self.creation.class_name}.{method}", 0)
        sys.stderr.write(f"actor {self.creation.class_name}.{method}() called sys.exit({wish.code!r})\n")
        self._leave("", code)

    def leave_after_this(self) -> None:
        """exit_actor() was called: the actor ends with the call that did it, even if the user's code swallows what is
        raised. No call pays for a look at that: where the results of calls go is replaced."""
        call = current_call.get() if self.concurrent else self._executor.current
        last = _LastResults(self, call.spec.method if isinstance(call, Called) else "__init__")
        with self._executor.flush_lock:
            last.extend(self.results)
            self.results = last
        setattr(self._executor, "respond", last.append)

    def _leave(self, reason: str, code: int) -> NoReturn:
        """End the process in peace; with a reason the head does not restart it."""
        self._leaving.acquire()  # A second thread that wants to waits here for the end.
        self.exiting = True
        if reason:
            self._worker.node.send(m.ActorExiting(self.actor, self.incarnation, reason))
        self.farewell()
        deadline = monotonic() + _PASSING_S
        while self._executor.passing and monotonic() < deadline:
            self._worker.block(self._worker.new_waiter(), monotonic() + 0.01)
        self._worker.exit(code)

    def end_in_peace(self) -> None:
        """Nobody refers to the actor any more. Loop only."""
        if self.exiting:
            return
        self.exiting = True
        self._end_soon()

    def _end_soon(self) -> None:
        self._executor.queue.append(_Farewell(self))
        self._worker.wake()

    def farewell(self) -> None:
        """The user's last code: ``__ray_shutdown__`` of the instance, then atexit handlers."""
        at_exit: Any = atexit
        for hook in (getattr(self.instance, "__ray_shutdown__", None), at_exit._run_exitfuncs):
            try:
                if hook is not None:
                    hook()
            except BaseException:  # noqa: BLE001 - the process ends anyway; its stderr says why it was not in peace.
                import traceback

                traceback.print_exc()


class _LastResults(deque[Any]):
    """Results of an actor whose exit_actor() was called: those that are there are sent, the next one ends it."""

    def __init__(self, host: ActorHost, method: str) -> None:
        super().__init__()
        self._host = host
        self._method = method

    def append(self, *_result: Any) -> NoReturn:
        """A call has ended, though exit_actor() had been called in it, or in another one."""
        self._host._exit_by(ActorExit(), self._method)


class _Farewell:
    """In the executor's queue: the end, when the main thread gets to it."""

    def __init__(self, host: ActorHost) -> None:
        self._host = host
        self.lease = 0

    def __call__(self) -> NoReturn:
        self._host._leave("", 0)


def _send_batch(caller: Caller, batch: list[m.Result], ends: list[tuple[int, m.Result]]) -> None:
    """Send results that are kept. `ends` are those of streams: one whose items are still to be sent on this connection
    goes after them, when the caller has repeated the call."""
    connection = caller.connection  # After they are kept: if it is replaced now, they are found for the next one.
    for number, end in ends:
        producer = caller.streams.get(number)
        if producer is not None and not producer.sends_on(connection):
            batch = [result for result in batch if result is not end]
    if batch:
        connection.send(m.CallResults(batch))


def _ready() -> bool:
    return True


def start_now(worker: Worker, start: m.StartActor, connection: Connection | None) -> None:
    """This worker becomes an actor. Loop only."""
    if worker.executor.host is not None:
        worker.executor.host.told_again(start, connection)
        return
    kind = ActorHost
    if start.creation.asynchronous:
        from moray.runtime.actor_loop import AsyncActorHost  # With asyncio, which most workers do not need.

        kind = AsyncActorHost
    host = worker.executor.host = kind(worker, start, connection)
    worker.executor.queue.append(_Become(host))
    worker.wake()


class _Become:
    """In the executor's queue: the construction."""

    def __init__(self, host: ActorHost) -> None:
        self._host = host
        self.lease = 0

    def __call__(self) -> None:
        self._host.become()
