"""A worker's side of a task: find the function, take the arguments, call, answer.

Tasks run one after another in the main thread, in the order in which they arrived. Answers are gathered and
sent together: when the queue is empty, when :data:`REPLY_AFTER_NS` have passed since the last sending, and
by the I/O thread when a task turns out to be long. Output that the tasks printed goes first.

**What has started** (LEASE). Before each task its lease and number are written to a small shared page, the
*mark*; when a worker dies its owners read there which of their tasks had begun, so that those which
had not run elsewhere at no cost, and those which had count as tried.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray import config, exceptions
from moray.protocol import messages as m
from moray.runtime.marks import MarkWriter
from moray.runtime.references import TaskToken
from moray.runtime.values import unpicklable
from moray.serialization import NONE_BLOB, Serialized, context, loads, serialize

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Peer
    from moray.runtime.worker import Worker

#: Answers wait at most so long for others to share a message with.
REPLY_AFTER_NS: Final = 300_000

_PLAIN: Final = frozenset({int, float, bool, complex})
_NO_EXTRA: Final = m.TaskExtra()


class Queued(msgspec.Struct, gc=False, eq=False):
    """A task in the worker's queue."""

    connection: Any
    lease: int
    spec: m.TaskSpec


class Loaded(msgspec.Struct, eq=False):
    """A function of an owner, unpickled when it is first called."""

    definition: m.FunctionDef
    call: Callable[..., Any] | None = None
    calls: int = 0


class Executor:
    """Runs tasks for whichever owner has the lease."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        #: Tasks to run, oldest first. The loop appends and takes back; the main thread takes.
        self.queue: deque[Queued] = deque()
        #: (owner's process, function index) → the function.
        self._functions: dict[tuple[bytes, int], Loaded] = {}
        #: Blob → function: equal blobs of several owners are loaded once.
        self._loaded: dict[bytes, Callable[..., Any]] = {}
        #: Results not yet sent: (connection, result). Main thread appends; whoever flushes takes.
        self._results: deque[tuple[Connection, m.Result]] = deque()
        self._flush_lock = allocate_lock()
        #: Results that wait in the reference protocol, by identity: unsent. Main thread adds, loop removes.
        self.passing: dict[int, tuple[m.Result, Connection]] = {}
        self._flushed_ns = 0
        #: Leases up to this one are over here: their tasks are bounced.
        self.revoked = 0
        #: What runs now.
        self.current: Queued | None = None
        #: The name of the task that runs, or ran last, and of its function.
        self.name = ""
        self.function_name = ""
        #: Where its results go.
        self.owner: Connection | None = None
        #: How many tasks have been begun: tells the I/O thread whether the main thread gets on.
        self.begun = 0
        self.mark = MarkWriter(worker.session_dir, worker.process)
        self._begin = self.mark.begin

    # --- the loop's side ------------------------------------------------------------------------------

    def on_tasks(self, connection: Connection, message: m.Tasks) -> None:
        """Tasks arrived. Loop only."""
        peer: Peer = connection.peer
        owner = peer.origin.process
        for definition in message.functions:
            self._functions[owner, definition.index] = Loaded(definition)
        lease = message.lease
        if lease <= self.revoked or self._worker.bounces():
            cause = "revoked" if lease <= self.revoked else self._worker.bounces()
            connection.send(m.Recalled(lease, [spec.seq for spec in message.tasks], cause))
            return
        for spec in message.tasks:
            self.queue.append(Queued(connection, lease, spec))

    def on_recall(self, connection: Connection, message: m.Recall) -> None:
        """The owner asks for queued tasks back: the newest go, `keep` stay (the running one counts). Loop only."""
        current = self.current
        running = int(current is not None and current.lease == message.lease)
        taken = self._take_back(lambda queued: queued.lease == message.lease, max(0, message.keep - running))
        connection.send(m.Recalled(message.lease, [queued.spec.seq for queued in taken]))

    def return_queue(self, cause: str, upto_lease: int | None = None) -> None:
        """Give all queued tasks back to their owners (of leases up to `upto_lease`, if given)."""
        taken = self._take_back(lambda queued: upto_lease is None or queued.lease <= upto_lease, 0)
        by_lease: dict[tuple[Connection, int], list[int]] = {}
        for queued in taken:
            by_lease.setdefault((queued.connection, queued.lease), []).append(queued.spec.seq)
        for (connection, lease), seqs in by_lease.items():
            connection.send(m.Recalled(lease, seqs, cause))

    def _take_back(self, wanted: Callable[[Queued], bool], keep: int) -> list[Queued]:
        """Remove queued tasks from the newest end, but leave `keep`. What the main thread takes first, it has."""
        taken: list[Queued] = []
        others: list[Queued] = []
        while len(self.queue) > keep:
            try:
                queued = self.queue.pop()
            except IndexError:
                break
            (taken if wanted(queued) else others).append(queued)
        self.queue.extend(reversed(others))
        taken.reverse()
        return taken

    def has_work_of(self, lease: int) -> bool:
        """Whether a task of a lease up to `lease` runs or waits for its answer to be sent."""
        current = self.current
        if current is not None and current.lease <= lease:
            return True
        if self.passing and not all(connection.closed for _result, connection in list(self.passing.values())):
            return True
        with self._flush_lock:  # Whoever is sending results has sent them then.
            return bool(self._results)

    def forget_owner(self, process: bytes) -> None:
        """An owner died: drop its tasks and functions. Loop only."""
        self._take_back(lambda queued: queued.connection.peer.origin.process == process, 0)
        for key in [key for key in self._functions if key[0] == process]:
            del self._functions[key]

    # --- the main thread: running ---------------------------------------------------------------------------

    def run_queue(self) -> None:
        """Run tasks until the queue is empty."""
        queue = self.queue
        while True:
            try:
                queued = queue.popleft()
            except IndexError:
                break
            self.current = queued
            self.begun += 1
            self.run(queued)
            self.current = None
            if self._worker.waits:
                self._worker.end_waits()
            if perf_counter_ns() - self._flushed_ns > REPLY_AFTER_NS or not queue:
                self.flush()
            if self._worker.revocation:
                self._worker.answer_revocation()
        self.flush()

    def run(self, queued: Queued) -> None:
        """One task, to its result."""
        spec = queued.spec
        seq = spec.seq
        self._begin(queued.lease)
        loaded = self._functions.get((queued.connection.peer.origin.process, spec.function))
        if loaded is None:
            return  # Its owner has died meanwhile: nobody wants the result.
        call = loaded.call
        self.name = self.function_name = loaded.definition.name
        self.owner = queued.connection
        if spec.extra is not None or call is None:
            self._run_special(queued, loaded, spec.extra or _NO_EXTRA)
            return
        if self._worker.task_extra is not None:
            self._worker.leave_task()
        begin = perf_counter_ns()
        try:
            if spec.payload:
                args, kwargs = loads(spec.payload)
                value = call(*args, **kwargs)
            else:
                value = call()
        except BaseException as error:  # noqa: BLE001 - every error of the user's is the task's result.
            self._failed(queued, loaded, error, begin, None, _NO_EXTRA)
            return
        took = (perf_counter_ns() - begin) // 1000
        if value is None:
            blob = NONE_BLOB
        elif type(value) in _PLAIN:
            blob = serialize(value).blob  # type: ignore[assignment]
        else:
            self._answer(queued, loaded, [value], took, None)
            return
        self._results.append((queued.connection, m.Result(seq, took, blob)))
        if loaded.definition.max_calls:
            self._count_call(loaded, queued.lease)

    def _run_special(self, queued: Queued, loaded: Loaded, extra: m.TaskExtra) -> None:
        """A task with references, several returns, devices, retries …, or the first call of a function."""
        spec = queued.spec
        if extra.name:
            self.name = extra.name
        token = context.cover = TaskToken(queued.connection.peer.origin.process, spec.seq)
        begin = perf_counter_ns()
        try:
            self._worker.enter_task(extra)
            call = loaded.call or self._load(loaded, token)
            args, kwargs = loads(spec.payload) if spec.payload else ((), {})
            if extra.arguments:
                args, kwargs = self._fill_in(args, kwargs, extra.arguments, token)
            begin = perf_counter_ns()
            value = call(*args, **kwargs)
            took = (perf_counter_ns() - begin) // 1000
            del args, kwargs, call
            values = _split_returns(value, extra.num_returns, loaded.definition.name)
            del value
        except BaseException as error:  # noqa: BLE001 - every error of the user's is the task's result.
            self._failed(queued, loaded, error, begin, token, extra)
            return
        self._answer(queued, loaded, values, took, token)

    def _fill_in(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], arguments: list[m.Argument], token: TaskToken
    ) -> tuple[list[Any], dict[str, Any]]:
        """Put the values of top-level references in their places."""
        filled = list(args)
        for argument in arguments:
            value = self._worker.values.load_argument(argument, token)
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
            call = self._loaded[blob] = fresh
        loaded.call = call
        return call

    # --- the main thread: answering -----------------------------------------------------------------------------

    def _answer(self, queued: Queued, loaded: Loaded, values: list[Any], took_us: int, token: TaskToken | None) -> None:
        """Serialise and answer; what does not pickle becomes the task's error."""
        seq = queued.spec.seq
        try:
            packed = [serialize(value) for value in values]
            blobs, stored = self._place(queued, packed)
        except BaseException as error:  # noqa: BLE001 - pickling runs the user's code.
            if isinstance(error, Exception) and not isinstance(error, exceptions.MorayError):
                whole = values[0] if len(values) == 1 else values
                error = unpicklable(whole, f"the result of {loaded.definition.name}()", error)
            self._failed(queued, loaded, error, perf_counter_ns(), token, _NO_EXTRA)
            return
        contained = [ref for each in packed for ref in each.contained]
        if len(values) == 1 and not stored and not contained:
            result = m.Result(seq, took_us, blobs[0] or b"")
        else:
            ids = [[ref.binary() for ref in each.contained] for each in packed] if contained else []
            result = m.Result(seq, took_us, b"", m.ResultExtra(blobs, stored, ids))
        del values, packed
        if contained or (token is not None and token.touched):
            owner = queued.connection.peer.origin.process
            self.passing[id(result)] = (result, queued.connection)
            self._worker.references.finish(queued.connection, result, token or TaskToken(owner, seq), contained)
        else:
            self._results.append((queued.connection, result))
        if loaded.definition.max_calls:
            self._count_call(loaded, queued.lease)

    def _place(self, queued: Queued, packed: list[Serialized]) -> tuple[list[bytes | None], list[int]]:
        """Where each value goes: (inline blobs, sizes in the store or [] if all are inline)."""
        if all(each.size <= config.INLINE_MAX_BYTES for each in packed):
            return [each.to_bytes() for each in packed], []
        blobs: list[bytes | None] = []
        sizes: list[int] = []
        prefix = queued.spec.seq.to_bytes(8, "big") + queued.connection.peer.origin.tail
        for index, each in enumerate(packed):
            if each.size <= config.INLINE_MAX_BYTES:
                blobs.append(each.to_bytes())
                sizes.append(0)
            else:
                self._worker.values.write(prefix + index.to_bytes(4, "big"), each, acknowledged=True)
                blobs.append(None)
                sizes.append(each.size)
        return blobs, sizes

    def _failed(
        self,
        queued: Queued,
        loaded: Loaded,
        error: BaseException,
        begin: int,
        token: TaskToken | None,
        extra: m.TaskExtra,
    ) -> None:
        """The task's result is an error."""
        if isinstance(error, SystemExit):
            self._exit(error, loaded)
        name = extra.name or loaded.definition.name
        retriable = _wants_retry(extra.retry, error)
        packed = serialize(self._worker.task_error(name, error, queued))
        took = (perf_counter_ns() - begin) // 1000
        contained = packed.contained
        ids = [[ref.binary() for ref in contained]] if contained else []
        answer = m.ResultExtra(contained=ids, error=True, retriable=retriable)
        result = m.Result(queued.spec.seq, took, packed.to_bytes(), answer)
        if contained or (token is not None and token.touched):
            token = token or TaskToken(queued.connection.peer.origin.process, queued.spec.seq)
            self.passing[id(result)] = (result, queued.connection)
            self._worker.references.finish(queued.connection, result, token, contained)
        else:
            self._results.append((queued.connection, result))
        if loaded.definition.max_calls:
            self._count_call(loaded, queued.lease)

    def _exit(self, error: SystemExit, loaded: Loaded) -> None:
        """The user called sys.exit(): the worker ends, and the owner is told by the node."""
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        sys.stderr.write(f"task {loaded.definition.name}() called sys.exit({error.code!r})\n")
        self._worker.exit(code)

    def _count_call(self, loaded: Loaded, lease: int) -> None:
        loaded.calls += 1
        if loaded.calls >= loaded.definition.max_calls:
            self._worker.retire(lease)

    def flush(self) -> None:
        """Send the gathered results, output first. Main and I/O thread."""
        self._flushed_ns = perf_counter_ns()
        if not self._results:
            return
        with self._flush_lock:
            # What is added from here on may have printed after the pump: it is for the next flush.
            count = len(self._results)
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


def _split_returns(value: Any, num_returns: int, name: str) -> list[Any]:
    """The values of a task with several returns. ValueError on a mismatch."""
    if num_returns == 1:
        return [value]
    if num_returns == 0:
        return []
    try:
        values = list(value)
    except TypeError:
        raise ValueError(
            f"task {name}() has num_returns={num_returns}, but returned a {type(value).__name__}, which is not iterable"
        ) from None
    if len(values) != num_returns:
        raise ValueError(f"task {name}() has num_returns={num_returns}, but returned {len(values)} values")
    return values


def _wants_retry(retry: bool | bytes | None, error: BaseException) -> bool:
    if retry is None or not isinstance(error, Exception):
        return False
    if isinstance(retry, bytes):
        return isinstance(error, loads(retry))
    return retry
