"""A worker's side of a task: find the function, take the arguments, call, answer.

Tasks run one after another in the main thread, in the order in which they arrived; so do the calls of an ordinary
actor (:mod:`moray.runtime.actor_host` has the other kinds). Answers are gathered and sent together: when the queue is
empty, when :data:`REPLY_AFTER_NS` have passed since the last sending, and by the I/O thread when a task turns out to be
long. Output that the tasks printed goes first.

**What has started** (LEASE). Before each task its lease and number are written to a small shared page, the
*mark*; when a worker dies its owners read there which of their tasks had begun, so that those which
had not run elsewhere at no cost, and those which had count as tried.

**Functions** (FUNCTIONS) come with the first task that uses them on a connection. The least recently used are
forgotten when there are many; a task that names such a one is sent back, and comes again with its function.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray import exceptions
from moray.exceptions.tasks import make_cancelled_error
from moray.protocol import messages as m
from moray.runtime import stream_producer
from moray.runtime.interrupts import TaskInterrupt, base, interruptible
from moray.runtime.marks import MarkWriter
from moray.runtime.references import TaskToken
from moray.runtime.returns import Returns, UnfinishedError, take_returns
from moray.runtime.task_errors import ArgumentLostError
from moray.runtime.timeline import Events
from moray.runtime.work import Called, Construction, Queued, Work
from moray.serialization import NONE_BLOB, context, loads, serialize

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.actor_host import ActorHost
    from moray.runtime.runtime import Peer
    from moray.runtime.worker import Worker

#: Answers wait at most so long for others to share a message with.
REPLY_AFTER_NS: Final = 300_000
#: Functions of one owner that are kept.
FUNCTIONS_KEPT: Final = 1000

#: Cancels that found nothing, and are remembered.
_UNFOUND_KEPT: Final = 100

_PLAIN: Final = frozenset({int, float, bool, complex})
_NO_EXTRA: Final = m.TaskExtra()


class Loaded(msgspec.Struct, eq=False):
    """A function of an owner, unpickled when it is first called."""

    definition: m.FunctionDef
    call: Callable[..., Any] | None = None
    calls: int = 0


class Executor:
    """Runs tasks for whichever owner has the lease, and the calls of an actor in the main thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        #: What to run, oldest first. The loop appends and takes back; the main thread takes.
        self.queue: deque[Any] = deque()
        #: Owner's process → function index → the function, least recently sent first. Loop only, but for reads.
        self._functions: dict[bytes, dict[int, Loaded]] = {}
        #: Blob → function: equal blobs of several owners are loaded once.
        self._loaded: dict[bytes, Callable[..., Any]] = {}
        #: Results not yet sent: (connection, result). Main thread appends; whoever flushes takes.
        self._results: deque[tuple[Connection, m.Result]] = deque()
        self.flush_lock = RLock()
        #: The calling thread is sending results: a signal's handler came in the middle of that.
        self.flushing: Callable[[], bool] = self.flush_lock._is_owned  # type: ignore[attr-defined]
        #: Results that wait in the reference protocol, by identity: unsent. Main thread adds, loop removes.
        self.passing: dict[int, tuple[m.Result, Connection]] = {}
        self._flushed_ns = 0
        #: Leases up to this one are over here: their tasks are bounced.
        self.revoked = 0
        #: What runs now in the main thread.
        self.current: Work | Construction | None = None
        #: Cancelled by their owners and not found here, (owner, seq): finished, or just being begun (CANCEL).
        self.unfound: dict[tuple[bytes, int], None] = {}
        #: The actor that this process is.
        self.host: ActorHost | None = None
        #: The name of the task that runs, or ran last, and of its function.
        self.name = ""
        self.function_name = ""
        #: Where its results go.
        self.owner: Connection | None = None
        #: How many tasks have been begun: tells the I/O thread whether the main thread gets on.
        self.begun = 0
        #: What ran, for the timeline.
        self.events = Events()
        self.mark = MarkWriter(worker.session_dir, worker.process)
        self._begin = self.mark.begin

    # --- the loop's side ------------------------------------------------------------------------------

    def on_tasks(self, connection: Connection, message: m.Tasks) -> None:
        """Tasks arrived. Loop only."""
        peer: Peer = connection.peer
        known = self._functions.setdefault(peer.origin.process, {})
        for definition in message.functions:
            known[definition.index] = Loaded(definition)
        if len(known) > FUNCTIONS_KEPT and message.functions:
            self._forget_functions(known, message)
        lease = message.lease
        if lease <= self.revoked or self._worker.bounces():
            cause = "revoked" if lease <= self.revoked else self._worker.bounces()
            connection.send(m.Recalled(lease, [spec.seq for spec in message.tasks], cause))
            return
        forgotten = []
        for spec in message.tasks:
            if spec.function in known:
                self.queue.append(Queued(connection, lease, spec))
            else:
                forgotten.append(spec.seq)
        if forgotten:
            connection.send(m.Recalled(lease, forgotten, "forgotten"))

    def _forget_functions(self, known: dict[int, Loaded], message: m.Tasks) -> None:
        """Half of an owner's functions go, those that came first; what is queued keeps its own."""
        needed = {spec.function for spec in message.tasks}
        needed |= {each.spec.function for each in list(self.queue) if type(each) is Queued}
        current = self.current
        if type(current) is Queued:
            needed.add(current.spec.function)
        for index in list(known)[: FUNCTIONS_KEPT // 2]:
            if index not in needed:
                self._loaded.pop(known.pop(index).definition.blob, None)

    def on_recall(self, connection: Connection, message: m.Recall) -> None:
        """The owner asks for queued tasks back: the newest go, `keep` stay (the running one counts). Loop only."""
        current = self.current
        running = int(current is not None and current.lease == message.lease)
        taken = self._take_back(lambda queued: queued.lease == message.lease, max(0, message.keep - running))
        connection.send(m.Recalled(message.lease, [queued.spec.seq for queued in taken]))

    def return_queue(self, cause: str, upto_lease: int | None = None) -> None:
        """Give all queued tasks back to their owners (of leases up to `upto_lease`, if given)."""
        taken = self._take_back(
            lambda queued: type(queued) is Queued and (upto_lease is None or queued.lease <= upto_lease), 0
        )
        by_lease: dict[tuple[Connection, int], list[int]] = {}
        for queued in taken:
            by_lease.setdefault((queued.connection, queued.lease), []).append(queued.spec.seq)
        for (connection, lease), seqs in by_lease.items():
            connection.send(m.Recalled(lease, seqs, cause))

    def _take_back(self, wanted: Callable[[Any], bool], keep: int) -> list[Any]:
        """Remove queued tasks from the newest end, but leave `keep`. What the main thread takes first, it has."""
        taken: list[Any] = []
        others: list[Any] = []
        while len(self.queue) > keep:
            try:
                queued = self.queue.pop()
            except IndexError:
                break
            (taken if wanted(queued) else others).append(queued)
        self.queue.extend(reversed(others))
        taken.reverse()
        return taken

    def take_calls(self) -> list[Called]:
        """An actor begins none any more: its queued calls, oldest first. Loop only."""
        return self._take_back(lambda work: type(work) is Called, 0)

    def note_unfound(self, owner: bytes, seq: int) -> None:
        """A cancel came for work that nobody sees. Loop only."""
        self.unfound[owner, seq] = None
        if len(self.unfound) > _UNFOUND_KEPT:
            del self.unfound[next(iter(self.unfound))]

    def look_for(self, work: Any) -> None:
        """Whether a cancel came while `work` was taken from its queue. The thread that begins it, which has made it
        visible before."""
        if isinstance(work, (Queued, Called)):
            key = (work.connection.peer.origin.process, work.spec.seq)
            work.cancelled = work.cancelled or key in self.unfound
        if self.host is None:
            self.unfound.clear()  # Nobody else takes from the queue: the others had finished.

    def has_work_of(self, lease: int) -> bool:
        """Whether a task of a lease up to `lease` runs or waits for its answer to be sent."""
        current = self.current
        if current is not None and current.lease <= lease:
            return True
        if self.passing and not all(connection.closed for _result, connection in list(self.passing.values())):
            return True
        with self.flush_lock:  # Whoever is sending results has sent them then.
            return bool(self._results)

    def forget_owner(self, process: bytes) -> None:
        """An owner died: drop its tasks and functions. Loop only."""
        self._take_back(
            lambda work: isinstance(work, (Queued, Called)) and work.connection.peer.origin.process == process, 0
        )
        self._functions.pop(process, None)
        if self.host is not None:
            self.host.forget_caller(process)

    # --- the main thread: running ---------------------------------------------------------------------------

    def run_queue(self) -> None:
        """Run tasks until the queue is empty."""
        queue = self.queue
        worker = self._worker
        while True:
            try:
                queued = queue.popleft()
            except IndexError:
                break
            self.current = queued
            if self.unfound:
                self.look_for(queued)
            self.begun += 1
            worker.work = queued
            if type(queued) is Queued:
                self.run(queued)
            elif type(queued) is Called and self.host is not None:
                self.host.run_in_main(queued)
            else:
                queued()  # What the loop wants done by this thread, such as becoming an actor.
            self.current = worker.work = None
            if worker.waits:
                worker.end_waits()
            if perf_counter_ns() - self._flushed_ns > REPLY_AFTER_NS or not queue:
                self.flush()
            if worker.revocation:
                worker.answer_revocation()
        self.flush()

    @base
    def run(self, queued: Queued) -> None:
        """One task, to its result."""
        spec = queued.spec
        self._begin(queued.lease)
        functions = self._functions.get(queued.connection.peer.origin.process)
        loaded = functions.get(spec.function) if functions is not None else None
        if loaded is None:
            return  # Its owner has died meanwhile: nobody wants the result.
        self.name = self.function_name = loaded.definition.name
        self.owner = queued.connection
        if spec.extra is not None or loaded.call is None or queued.cancelled:
            self._run_special(queued, loaded, spec.extra or _NO_EXTRA)
            return
        if self._worker.task_extra is not None:
            self._worker.leave_task()
        begin = perf_counter_ns()
        try:
            if spec.payload:
                args, kwargs = loads(spec.payload)
                value = loaded.call(*args, **kwargs)
            else:
                value = loaded.call()
        except BaseException as error:  # noqa: BLE001 - every error of the user's is the task's result.
            self.failed(queued, loaded.definition.name, error, begin, None, _NO_EXTRA, loaded)
            return
        took = perf_counter_ns() - begin
        self.events.append_main((self.name, spec.seq, queued.connection, begin, took))
        if value is None:
            blob = NONE_BLOB
        elif type(value) in _PLAIN:
            blob = serialize(value).blob  # type: ignore[assignment]
        else:
            self.answer(queued, loaded.definition.name, value, took // 1000, None, loaded)
            return
        self._results.append((queued.connection, m.Result(spec.seq, took // 1000, blob)))
        if loaded.definition.max_calls:
            self._count_call(loaded, queued.lease)

    @base
    def _run_special(self, queued: Queued, loaded: Loaded, extra: m.TaskExtra) -> None:
        """A task with references, several returns, devices, retries …, or the first call of a function."""
        spec = queued.spec
        name = loaded.definition.name
        if extra.name:
            self.name = extra.name
        token = context.cover = TaskToken(queued.connection.peer.origin.process, spec.seq)
        begin = perf_counter_ns()
        try:
            self._worker.enter_task(extra)
            self.check_cancelled(queued)
            call = loaded.call or self._load(loaded, token)
            args, kwargs = loads(spec.payload) if spec.payload else ((), {})
            if extra.arguments:
                args, kwargs = self.fill_in(args, kwargs, extra.arguments, token, waits=False)
            begin = perf_counter_ns()
            value = call(*args, **kwargs)
            del args, kwargs, call
            if extra.stream is not None:
                stream_producer.answer(self, queued, name, extra, value, token, begin, loaded)
                return
            made = take_returns(self._worker.values, queued, value, extra.num_returns, name)
            del value
            took = perf_counter_ns() - begin
            self.events.append((self.name, spec.seq, queued.connection, begin, took))
        except BaseException as error:  # noqa: BLE001 - every error of the user's is the task's result.
            self.failed(queued, name, error, begin, token, extra, loaded)
            return
        self.send_returns(queued, made, took // 1000, token, loaded)

    def check_cancelled(self, work: Work) -> None:
        """Raise TaskCancelledError if it must not begin any more."""
        if work.cancelled:
            raise exceptions.TaskCancelledError(_task_id(work), "it had not begun")

    def cancelled(self, work: Work, how: str) -> exceptions.TaskCancelledError:
        """The error of a task that was cancelled after it had begun."""
        name = work.spec.method if isinstance(work, Called) else self.function_name
        return make_cancelled_error(_task_id(work), how, name, os.getpid())

    def fill_in(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        arguments: list[m.Argument],
        token: TaskToken,
        waits: bool = True,
    ) -> tuple[list[Any], dict[str, Any]]:
        """Put the values of top-level references in their places. `waits`: here for those that are lost; a task does
        not, for it may hold what is needed to make them again."""
        filled = list(args)
        for argument in arguments:
            value = self._worker.values.load_argument(argument, token, waits)
            if isinstance(argument.where, int):
                filled[argument.where] = value
            else:
                kwargs[argument.where] = value
        return filled, kwargs

    def _load(self, loaded: Loaded, token: TaskToken) -> Callable[..., Any]:
        """Unpickle a function at its first call. One that closes over references is unpickled for each call: kept here,
        it would keep the objects (REF-FREE)."""
        blob = loaded.definition.blob
        call = self._loaded.get(blob)
        if call is None:
            touched, token.touched = token.touched, False
            fresh: Callable[..., Any] = loads(blob)
            if token.touched:
                return fresh
            token.touched = touched
            call = self._loaded[blob] = interruptible(fresh)
        loaded.call = call
        return call

    # --- answering: the thread that ran it ------------------------------------------------------------------------

    def answer(
        self, work: Work, name: str, value: Any, took_us: int, token: TaskToken | None, loaded: Loaded | None = None
    ) -> None:
        """Serialise the single value of a task, and answer; what does not pickle becomes the task's error."""
        try:
            made = take_returns(self._worker.values, work, value, 1, name)
        except BaseException as error:  # noqa: BLE001 - pickling runs the user's code.
            self.failed(work, name, error, perf_counter_ns(), token, _NO_EXTRA, loaded)
            return
        del value
        self.send_returns(work, made, took_us, token, loaded)

    def send_returns(
        self, work: Work, made: Returns, took_us: int, token: TaskToken | None, loaded: Loaded | None = None
    ) -> None:
        """Answer with all values."""
        contained = made.references()
        if len(made.blobs) == 1 and not made.sizes[0] and not contained:
            result = m.Result(work.spec.seq, took_us, made.blobs[0] or b"")
        else:
            result = m.Result(work.spec.seq, took_us, b"", made.extra())
        del made
        self.respond(work, result, token, contained)
        if loaded is not None and loaded.definition.max_calls:
            self._count_call(loaded, work.lease)

    def respond(self, work: Work, result: m.Result, token: TaskToken | None, contained: list[Any]) -> None:
        """Have a result sent, through the reference protocol if references are concerned."""
        if contained or (token is not None and token.touched):
            owner = work.connection.peer.origin.process
            self.passing[id(result)] = (result, work.connection)
            self._worker.references.finish(work, result, token or TaskToken(owner, work.spec.seq), contained)
        elif type(work) is Queued:
            self._results.append((work.connection, result))
        elif self.host is not None:
            self.host.results.append((work, result))  # type: ignore[arg-type]

    def failed(
        self,
        work: Work,
        name: str,
        error: BaseException,
        begin: int,
        token: TaskToken | None,
        extra: m.TaskExtra,
        loaded: Loaded | None = None,
        items: int = -1,
    ) -> None:
        """The task's result is an error, or all but the first are. `items`: of a stream, those before it."""
        made = None
        if isinstance(error, UnfinishedError):
            made, extra, error = error.made, _NO_EXTRA if error.final else extra, error.error
        if isinstance(error, SystemExit) and type(work) is Queued:
            self._exit(error, name)
        if isinstance(error, TaskInterrupt):
            error = self.cancelled(work, "it was interrupted")
        took = perf_counter_ns() - begin
        self.events.append((extra.name or name, work.spec.seq, work.connection, begin, took))
        cancelled = isinstance(error, exceptions.TaskCancelledError)
        if work.cancelled and not work.spares_children:
            # Also what it has submitted since the cancel came.
            self._worker.call_soon(lambda: self._worker.cancels.cancel_children(work))
        lost = b""
        if isinstance(error, ArgumentLostError):
            lost, error = error.what, error.__cause__ or error
        retriable = not cancelled and _wants_retry(extra.retry, error)
        shown = error if cancelled else self._worker.task_error(extra.name or name, error, work)
        packed = serialize(shown)
        answer, contained = made.extra() if made is not None else m.ResultExtra(), packed.contained
        if made is not None and (answer.contained or contained):
            answer.contained = [[ref.binary() for ref in refs] for refs in made.contained]
            contained = [*made.references(), *contained]
        if contained:
            answer.contained.append([ref.binary() for ref in packed.contained])
        answer.error, answer.retriable, answer.items = True, retriable, items
        answer.cancelled, answer.lost = cancelled, lost
        result = m.Result(work.spec.seq, took // 1000, packed.to_bytes(), answer)
        self.respond(work, result, token, contained)
        if loaded is not None and loaded.definition.max_calls:
            self._count_call(loaded, work.lease)

    def _exit(self, error: SystemExit, name: str) -> None:
        """The user called sys.exit(): the worker ends, and the owner is told by the node."""
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        sys.stderr.write(f"task {name}() called sys.exit({error.code!r})\n")
        self._worker.exit(code)

    def _count_call(self, loaded: Loaded, lease: int) -> None:
        loaded.calls += 1
        if loaded.calls >= loaded.definition.max_calls:
            self._worker.retire(lease)

    def flush(self) -> None:
        """Send the gathered results, output first. Any thread that runs tasks, and the I/O thread."""
        self._flushed_ns = perf_counter_ns()
        host = self.host
        if (not self._results and (host is None or not host.results)) or self.flushing():
            return
        with self.flush_lock:
            # What is added from here on may have printed after the pump: it is for the next flush.
            count = len(self._results)
            calls = len(host.results) if host is not None else 0
            self._worker.output.pump(last=self.current is None)
            batch: list[m.Result] = []
            connection: Connection | None = None
            for _ in range(count):
                target, result = self._results.popleft()
                if target is not connection and batch and connection is not None:
                    connection.send(m.Results(batch))
                    batch = []
                connection = target
                batch.append(result)
            if batch and connection is not None:
                connection.send(m.Results(batch))
            if calls and host is not None:
                host.send_results(calls)


def _task_id(work: Work) -> str:
    task_id: bytes = work.spec.seq.to_bytes(8, "big") + work.connection.peer.origin.tail
    return task_id.hex()


def _wants_retry(retry: bool | bytes | None, error: BaseException) -> bool:
    if retry is None or not isinstance(error, Exception):
        return False
    if isinstance(retry, bytes):
        return isinstance(error, loads(retry))
    return retry
