"""A simulated worker: runs tasks one after another (the counterpart of moray.runtime.executor and .worker)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from moray.protocol import messages as m
from tests.simulation import programs
from tests.simulation.network import End
from tests.simulation.objects import Finished, Ref, Token, Value, dump, load
from tests.simulation.process import Process
from tests.simulation.programs import Context, CrashError, Outcome, TaskFailedError
from tests.simulation.user_code import Code
from tests.simulation.world import RefusedError

if TYPE_CHECKING:
    from tests.simulation.universe import Universe

#: Answers wait at most so long for others to share a message with.
_REPLY_AFTER_S = 0.0003


class Queued(msgspec.Struct, eq=False):
    """A task in the worker's queue."""

    connection: Any
    lease: int
    spec: m.TaskSpec


class Worker(Process):
    """One worker process."""

    kind = "worker"

    def __init__(self, universe: Universe, name: bytes, job: int, runtime_env: str) -> None:
        super().__init__(universe, name, job)
        self.runtime_env = runtime_env
        self.queue: list[Queued] = []
        self.current: Queued | None = None
        #: (owner, function) → most calls, calls so far.
        self._functions: dict[tuple[bytes, int], list[int]] = {}
        self._results: list[tuple[End, m.Result]] = []
        self._flushed = 0.0
        self._revoked = 0
        self._revocation = 0
        self._waiting = False
        self._retiring = False
        self._owns = False
        self.handlers |= {
            m.Tasks: self._on_tasks,
            m.Recall: self._on_recall,
            m.RevokeLease: self._on_revoke,
            m.Shutdown: lambda _connection, _message: self.universe.die(self, 0),
        }

    def unsent(self) -> list[Any]:
        tasks = [*self.queue, *([self.current] if self.current is not None else [])]
        return [*(queued.spec for queued in tasks), *(result for _, result in self._results)]

    # --- the loop --------------------------------------------------------------------------------

    def _turn(self) -> None:
        super()._turn()
        owns = self.references.core.has_borrowers()
        if owns != self._owns:
            self._owns = owns
            self.node.send(m.WorkerBusy(owns))
        if self.current is not None:
            self._flush_results()
        self._answer_revocation()
        self._run_next()

    def _bounces(self) -> str:
        if self._retiring:
            return "retired"
        return "blocked" if self._waiting else ""

    def _on_tasks(self, connection: End, message: m.Tasks) -> None:
        for definition in message.functions:
            self._functions[connection.peer.name, definition.index] = [definition.max_calls, 0]
        cause = "revoked" if message.lease <= self._revoked else self._bounces()
        if cause:
            connection.send(m.Recalled(message.lease, [spec.seq for spec in message.tasks], cause))
            return
        self.queue += [Queued(connection, message.lease, spec) for spec in message.tasks]

    def _on_recall(self, connection: End, message: m.Recall) -> None:
        running = int(self.current is not None and self.current.lease == message.lease)
        taken = self._take_back(lambda queued: queued.lease == message.lease, max(0, message.keep - running))
        connection.send(m.Recalled(message.lease, [queued.spec.seq for queued in taken]))

    def _on_revoke(self, _connection: End, message: m.RevokeLease) -> None:
        self._revoked = max(self._revoked, message.lease)
        self._return_queue("revoked", message.lease)
        self._revocation = message.lease
        self._answer_revocation()

    def _answer_revocation(self) -> None:
        lease = self._revocation
        running = self.current is not None and self.current.lease <= lease
        if lease and not running and not self._owes_answers():
            self._revocation = 0
            self.node.send(m.RevokedLease(lease))

    def _owes_answers(self) -> bool:
        """Whether answers are still here: gathered, or waiting for the reference protocol."""
        gated = bool(self.references.gated) or any(isinstance(event, Finished) for event in self.events)
        return gated or bool(self._results)

    def _return_queue(self, cause: str, upto_lease: int | None = None) -> None:
        taken = self._take_back(lambda queued: upto_lease is None or queued.lease <= upto_lease, 0)
        by_lease: dict[tuple[End, int], list[int]] = {}
        for queued in taken:
            by_lease.setdefault((queued.connection, queued.lease), []).append(queued.spec.seq)
        for (connection, lease), seqs in by_lease.items():
            connection.send(m.Recalled(lease, seqs, cause))

    def _take_back(self, wanted: Callable[[Queued], bool], keep: int) -> list[Queued]:
        newest = self.queue[keep:]
        taken = [queued for queued in newest if wanted(queued)]
        self.queue = self.queue[:keep] + [queued for queued in newest if not wanted(queued)]
        return taken

    def blocked(self) -> None:
        self._waiting = True
        self._return_queue("blocked")
        self._flush_results()
        self.node.send(m.Blocked())

    def unblocked(self) -> None:
        self._waiting = False
        self.node.send(m.Unblocked())

    # --- the main thread ------------------------------------------------------------------------------

    def _run_next(self) -> None:
        if self.busy or not self.queue:
            return
        self.busy = True
        queued = self.current = self.queue.pop(0)
        self.universe.marks[self.name] = queued.lease, queued.spec.seq
        self.oracle.started(self, queued.connection.peer.name, queued.lease, queued.spec)
        self.start(self._run(queued), self._task_over)

    def _task_over(self) -> None:
        self.current = None
        self.busy = False
        if self.world.now - self._flushed > _REPLY_AFTER_S or not self.queue:
            self._flush_results()
        self._answer_revocation()
        self._run_next()

    def _run(self, queued: Queued) -> Code[None]:
        """One task, to its result."""
        spec = queued.spec
        extra = spec.extra or m.TaskExtra()
        token = Token(queued.connection.peer.name, spec.seq)
        begin = self.world.now
        plan, inside = load_payload(spec.payload)
        context = Context(self, plan, extra.attempt)
        failure = ""
        outcome = Outcome()
        try:
            context.hold([self.references.import_ref(each, token).hold() for each in inside])
            for argument in extra.arguments:
                value = yield from self._argument(argument)
                if value.error:
                    raise TaskFailedError(f"argument {value.error}")
                context.hold([self.references.import_ref(each, token).hold() for each in value.contained])
            outcome = yield from programs.run(context)
        except (TaskFailedError, RefusedError) as error:
            failure = str(error)
        except CrashError:
            self.universe.die(self, 1)
            return
        took = int((self.world.now - begin) * 1e6)
        if not failure:
            failure = yield from self._answer(queued, token, outcome, took)
        if failure:
            self._answer_error(queued, token, failure, took)
        context.close()
        self._count_call(queued)

    def _argument(self, argument: m.Argument) -> Code[Value]:
        """The value of a top-level reference."""
        content = argument.blob
        if content is None:
            content = yield from self.values.map(argument.object)
        value = load(content)
        self.oracle.got(self, argument.object, value)
        return value

    def _answer(self, queued: Queued, token: Token, outcome: Outcome, took: int) -> Code[str]:
        """Place the values and answer; what goes wrong is returned."""
        seq, owner = queued.spec.seq, queued.connection.peer.name
        blobs: list[bytes | None] = []
        contained: list[Ref] = []
        for index, (size, refs) in enumerate(outcome.values):
            content = self.pickle(refs)
            if size:
                try:
                    yield from self.values.write(self.id_of(owner, seq << 32 | index), size, content, acknowledged=True)
                except RefusedError as error:
                    return str(error)
            blobs.append(None if size else content)
            contained += refs
        sizes = [size for size, _ in outcome.values] if any(size for size, _ in outcome.values) else []
        ids = [[ref.entry.id for ref in refs] for _, refs in outcome.values] if contained else []
        result = m.Result(seq, took, b"", m.ResultExtra(blobs, sizes, ids))
        self._deliver(queued, token, result, contained)
        return ""

    def _answer_error(self, queued: Queued, token: Token, failure: str, took: int) -> None:
        extra = m.ResultExtra(error=True, retriable=failure == "raised")
        self._deliver(queued, token, m.Result(queued.spec.seq, took, dump(Value(0, error=failure)), extra), [])

    def _deliver(self, queued: Queued, token: Token, result: m.Result, contained: list[Ref]) -> None:
        if contained or token.touched:
            self.events.append(Finished(queued.connection, result, token, [ref.hold() for ref in contained]))
            self.wake()
        else:
            self._results.append((queued.connection, result))

    def _flush_results(self) -> None:
        self._flushed = self.world.now
        results, self._results = self._results, []
        batch: list[m.Result] = []
        for position, (connection, result) in enumerate(results):
            batch.append(result)
            if position + 1 == len(results) or results[position + 1][0] is not connection:
                connection.send(m.Results(batch))
                batch = []

    def _count_call(self, queued: Queued) -> None:
        calls = self._functions[queued.connection.peer.name, queued.spec.function]
        calls[1] += 1
        if not calls[0] or calls[1] < calls[0] or self._retiring:
            return
        self._retiring = True
        self._return_queue("retired")
        self._flush_results()
        self.later(0.0, lambda: self._tell_retired(queued))

    def _tell_retired(self, queued: Queued) -> None:
        self.references.flush()
        owns = self.references.core.has_borrowers()
        if owns != self._owns:
            self._owns = owns
            self.node.send(m.WorkerBusy(owns))
        queued.connection.send(m.Recalled(queued.lease, [], "retired"))


def load_payload(payload: bytes) -> tuple[programs.Plan, list[bytes]]:
    return msgspec.msgpack.decode(payload, type=tuple[programs.Plan, list[bytes]])
