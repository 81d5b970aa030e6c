"""A simulated worker: runs tasks one after another, or is an actor (moray.runtime.executor and .worker)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moray.protocol import messages as m
from moray.runtime.work import Called, Caller, Queued
from tests.simulation import programs
from tests.simulation.actor_host import ActorHost
from tests.simulation.context import Context, CrashError, ExitError, Outcome, TaskFailedError, load_payload
from tests.simulation.network import End
from tests.simulation.objects import Finished, Ref, Token, Value, dump, load
from tests.simulation.process import Process
from tests.simulation.producer import Producer
from tests.simulation.user_code import Code, InterruptError, Thread
from tests.simulation.world import RefusedError

if TYPE_CHECKING:
    from tests.simulation.universe import Universe

#: Answers wait at most so long for others to share a message with.
_REPLY_AFTER_S = 0.0003
#: An interrupt is tried again after so long, until the task is over.
_INTERRUPT_AGAIN_S = 0.1
#: How a worker ends whose task is cancelled by force.
_FORCED_EXIT = 130


class Worker(Process):
    """One worker process."""

    kind = "worker"

    def __init__(self, universe: Universe, name: bytes, job: int, runtime_env: str) -> None:
        super().__init__(universe, name, job)
        self.runtime_env = runtime_env
        #: Tasks, calls, and what else the main thread shall do.
        self.queue: list[Any] = []
        #: What runs in the main thread, and its thread.
        self.thread: Thread | None = None
        #: The actor that it is.
        self.host: ActorHost | None = None
        #: (owner, seq) → what makes its items here.
        self.producers: dict[tuple[bytes, int], Producer] = {}
        #: (owner, function) → most calls, calls so far.
        self._functions: dict[tuple[bytes, int], list[int]] = {}
        self._results: list[tuple[Any, m.Result]] = []
        self._flushed = 0.0
        self._revoked = 0
        self._revocation = 0
        self._waits = 0
        self._retiring = False
        self._owns = False
        #: Lease of the last task, and how many of that have begun.
        self._mark = (0, 0)
        self.handlers |= {
            m.Tasks: self._on_tasks,
            m.Recall: self._on_recall,
            m.RevokeLease: self._on_revoke,
            m.Shutdown: self._on_shutdown,
            m.StartActor: self._on_start_actor,
            m.CallerHello: self._on_caller,
            m.Calls: self._on_calls,
            m.CancelTask: self._on_cancel,
            m.StreamCredit: self._on_credit,
        }

    def is_busy(self) -> bool:
        return self.busy or (self.host is not None and bool(self.host.running))

    def unsent(self) -> list[Any]:
        """What is here and has references in it, encodable."""
        found: list[Any] = [work.spec for work in [*self.queue, self.current] if isinstance(work, (Queued, Called))]
        found += [result for _, result in self._results]
        for producer in self.producers.values():
            found += producer.unsent()
        return found + (self.host.unsent() if self.host is not None else [])

    # --- the loop: tasks ------------------------------------------------------------------------------

    def _turn(self) -> None:
        super()._turn()
        self._tell_ownership()
        if self.current is not None:
            self.flush_results()
        self._answer_revocation()
        self.run_next()

    def _tell_ownership(self) -> None:
        owns = self.references.core.has_borrowers() or self.actors.creations.any_alive()
        if owns != self._owns:
            self._owns = owns
            self.node.send(m.WorkerBusy(owns))

    def _bounces(self) -> str:
        if self._retiring:
            return "retired"
        return "blocked" if self._waits and self.current is not None else ""

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
        taken = self._take_back(lambda work: work.lease == message.lease, max(0, message.keep - running))
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
        passing = [*self.references.gated.values(), *self.events]
        gated = any(isinstance(event, Finished) and not event.work.connection.closed for event in passing)
        return gated or bool(self._results)

    def _return_queue(self, cause: str, upto_lease: int | None = None) -> None:
        taken = self._take_back(lambda work: upto_lease is None or work.lease <= upto_lease, 0)
        by_lease: dict[tuple[End, int], list[int]] = {}
        for queued in taken:
            by_lease.setdefault((queued.connection, queued.lease), []).append(queued.spec.seq)
        for (connection, lease), seqs in by_lease.items():
            connection.send(m.Recalled(lease, seqs, cause))

    def _take_back(self, wanted: Callable[[Queued], bool], keep: int) -> list[Queued]:
        newest = self.queue[keep:]
        taken = [work for work in newest if isinstance(work, Queued) and wanted(work)]
        self.queue = self.queue[:keep] + [work for work in newest if work not in taken]
        return taken

    def blocked(self) -> None:
        self._waits += 1
        if self.host is not None:
            self.flush_results()  # Actors lend nothing; but its callers may be what it waits for.
        elif self._waits == 1:
            self._return_queue("blocked")
            self.flush_results()
            self.node.send(m.Blocked())

    def unblocked(self) -> None:
        self._waits -= 1
        if not self._waits and self.host is None:
            self.node.send(m.Unblocked())

    def _on_process_died(self, connection: End, message: m.ProcessDied) -> None:
        super()._on_process_died(connection, message)
        self.queue = [
            work
            for work in self.queue
            if not (isinstance(work, (Queued, Called)) and work.connection.peer.name == message.process)
        ]
        if self.host is not None:
            self.host.forget_caller(message.process)

    def _on_shutdown(self, _connection: End, message: m.Shutdown) -> None:
        if self.host is not None and message.reason:
            self.oracle.calls.ending(self)
            self.host.end_in_peace()
        else:
            self.universe.die(self, 0)

    # --- the loop: calls ------------------------------------------------------------------------------

    def _on_start_actor(self, connection: End, message: m.StartActor) -> None:
        if self.host is None:
            self.host = ActorHost(self, message, None if connection is self.node else connection)
            self.queue.append(self.host.become)

    def _on_caller(self, connection: End, message: m.CallerHello) -> None:
        peer = connection.peer
        if peer.caller is None:
            peer.caller = Caller(peer.name, connection)  # type: ignore[arg-type]
        replaced = peer.caller.connection
        if peer.caller.hello(message.number, message.conversation) and replaced is not connection:
            peer.caller.connection = peer.connection = connection
            replaced.drain()
            self.close(replaced)

    def _on_calls(self, connection: End, message: m.Calls) -> None:
        if self.host is None:
            self.close(connection)
        else:
            self.host.on_calls(connection, message)

    # --- the loop: cancels ----------------------------------------------------------------------------

    def _on_cancel(self, connection: End, message: m.CancelTask) -> None:
        owner = connection.peer.name
        here = [self.current, *self.queue, *(self.host.pending() if self.host is not None else ())]
        works = [work for work in here if isinstance(work, (Queued, Called)) and work.spec.seq == message.seq]
        work = next((work for work in works if work.connection.peer.name == owner), None)
        if work is None:
            self._answer_cancel(connection, message, "finished")
            return
        work.cancelled, work.spares_children = True, not message.recursive
        thread = self.host.running.get((owner, message.seq)) if self.host is not None else None
        if work is not self.current and thread is None:
            self._answer_cancel(connection, message, "unstarted")
            return
        self._answer_cancel(connection, message, "interrupting")
        if message.force:
            self.universe.die(self, _FORCED_EXIT)
            return
        if message.recursive:
            self.cancels.cancel_children(work)
        if thread is not None:
            thread.cancel()
        if work is self.current and self.thread is not None:
            self._interrupt(self.thread)

    def _answer_cancel(self, connection: End, message: m.CancelTask, answer: str) -> None:
        self.oracle.answered_cancel(self, connection.peer.name, message.seq, answer)
        connection.send(m.CancelAnswer(message.seq, message.attempt, answer))

    def _interrupt(self, thread: Thread) -> None:
        if not thread.over:
            thread.interrupt()
            self.later(_INTERRUPT_AGAIN_S, lambda: self._interrupt(thread))

    def _on_credit(self, connection: End, message: m.StreamCredit) -> None:
        producer = self.producers.get((connection.peer.name, message.seq))
        if producer is not None:
            producer.credit(message.attempt, message.consumed)

    # --- the main thread ------------------------------------------------------------------------------

    def run_next(self) -> None:
        """Have the main thread go on with what is queued."""
        if self.busy or not self.queue:
            return
        self.busy = True
        work = self.current = self.queue.pop(0)
        if isinstance(work, Queued):
            self._mark = work.lease, self._mark[1] + 1 if work.lease == self._mark[0] else 1
            self.universe.marks[self.name] = self._mark
            if not work.cancelled:
                self.oracle.started(self, work.connection.peer.name, work.lease, work.spec)
            code = self._run(work)
        elif isinstance(work, Called):
            code = self.perform(work)
        else:
            self.current = None
            code = work()
        self.thread = self.start(code, self._task_over)

    def _task_over(self) -> None:
        self.current = self.thread = None
        self.busy = False
        if self.world.now - self._flushed > _REPLY_AFTER_S or not self.queue:
            self.flush_results()
        self._answer_revocation()
        self.run_next()

    def _run(self, queued: Queued) -> Code[None]:
        yield from self.perform(queued)
        self._count_call(queued)

    def perform(self, work: Queued | Called) -> Code[None]:
        """One task or call, to its result."""
        spec = work.spec
        extra = spec.extra or m.TaskExtra()
        owner = work.connection.peer.name
        token = Token(owner, spec.seq)
        begin = self.world.now
        plan, inside = load_payload(spec.payload)
        context = Context(self, plan, extra.attempt, work)
        producer = Producer(self, work, extra) if extra.stream is not None else None
        failure = "cancelled" if work.cancelled else ""
        outcome = Outcome()
        try:
            if not failure:
                if isinstance(work, Called):
                    self.oracle.call_started(self, owner, work.spec)
                yield from self.take_arguments(context, token, inside, extra.arguments)
                if isinstance(work, Called):
                    yield from self.references.secure(token)
                if producer is not None:
                    yield from producer.run(context)
                else:
                    outcome = yield from programs.run(context)
        except InterruptError:
            self.oracle.interrupted(self, owner, spec.seq)
            failure = "cancelled"
        except (TaskFailedError, RefusedError) as error:
            failure = str(error)
        except CrashError:
            self.universe.die(self, 1)
            return
        except ExitError:
            assert self.host is not None
            context.close()
            yield from self.host.leave("exit_actor() was called")
            return
        took = int((self.world.now - begin) * 1e6)
        if producer is not None:
            yield from producer.finish()
        if not failure:
            failure = yield from self._answer(work, token, outcome, took, producer)
        if failure:
            self._answer_error(work, token, failure, took, producer.making.made if producer is not None else -1)
        context.close()

    def take_arguments(
        self, context: Context, token: Token, inside: list[bytes], arguments: list[m.Argument]
    ) -> Code[None]:
        """What came in the arguments is in the user's variables."""
        context.hold([self.references.import_ref(each, token).hold() for each in inside])
        for argument in arguments:
            content = argument.blob
            if content is None:
                content = yield from self.values.map(argument.object)
            value = load(content)
            self.oracle.got(self, argument.object, value)
            if value.error:
                raise TaskFailedError(f"argument {value.error}")
            context.hold([self.references.import_ref(each, token).hold() for each in value.contained])

    def _answer(
        self, work: Queued | Called, token: Token, outcome: Outcome, took: int, producer: Producer | None
    ) -> Code[str]:
        """Place the values and answer; what goes wrong is returned."""
        seq = work.spec.seq
        if producer is not None:
            result = m.Result(seq, took, dump(Value(0)), m.ResultExtra(items=producer.making.made))
            self.respond(work, token, result, [])
            return ""
        blobs: list[bytes | None] = []
        contained: list[Ref] = []
        for index, (size, refs) in enumerate(outcome.values):
            content = self.pickle(refs)
            if size:
                object_id = self.id_of(work.connection.peer.name, seq << 32 | index)
                try:
                    yield from self.values.write(object_id, size, content, acknowledged=True)
                except RefusedError as error:
                    return str(error)
            blobs.append(None if size else content)
            contained += refs
        sizes = [size for size, _ in outcome.values] if any(size for size, _ in outcome.values) else []
        ids = [[ref.entry.id for ref in refs] for _, refs in outcome.values] if contained else []
        self.respond(work, token, m.Result(seq, took, b"", m.ResultExtra(blobs, sizes, ids)), contained)
        return ""

    def _answer_error(self, work: Queued | Called, token: Token, failure: str, took: int, items: int) -> None:
        cancelled = failure == "cancelled"
        if work.cancelled and not work.spares_children:
            self.later(0.0, lambda: self.cancels.cancel_children(work))  # Also what it has submitted since.
        retriable = failure == "raised"
        extra = m.ResultExtra(error=True, retriable=retriable, items=items, cancelled=cancelled)
        self.respond(work, token, m.Result(work.spec.seq, took, dump(Value(0, error=failure)), extra), [])

    def respond(self, work: Any, token: Token, result: m.Result, contained: list[Ref]) -> None:
        """Have a result sent, through the reference protocol if references are concerned."""
        if contained or token.touched:
            self.events.append(Finished(work, result, token, [ref.hold() for ref in contained]))
            self.wake()
        else:
            self._results.append((work, result))

    def post_result(self, work: Any, result: m.Result, borrows: Any) -> None:
        """Send a result that had to pass the reference protocol."""
        if isinstance(work, Called):
            work.caller.keep(work.number, result)
            work.caller.connection.send(m.CallResults([result], borrows))
        else:
            work.connection.send(m.Results([result], borrows))

    def flush_results(self) -> None:
        """Send the gathered answers."""
        self._flushed = self.world.now
        results, self._results = self._results, []
        # Runs of answers that go the same way.
        batches: list[tuple[End, bool, list[m.Result]]] = []
        for work, result in results:
            called = isinstance(work, Called)
            target = work.caller.connection if called else work.connection
            if called:
                work.caller.keep(work.number, result)
            if not batches or batches[-1][:2] != (target, called):
                batches.append((target, called, []))
            batches[-1][2].append(result)
        for target, called, batch in batches:
            target.send(m.CallResults(batch) if called else m.Results(batch))

    def _count_call(self, queued: Queued) -> None:
        calls = self._functions[queued.connection.peer.name, queued.spec.function]
        calls[1] += 1
        if not calls[0] or calls[1] < calls[0] or self._retiring:
            return
        self._retiring = True
        self._return_queue("retired")
        self.flush_results()
        self.later(0.0, lambda: self._tell_retired(queued))

    def _tell_retired(self, queued: Queued) -> None:
        self.references.flush()
        self._tell_ownership()
        queued.connection.send(m.Recalled(queued.lease, [], "retired"))
