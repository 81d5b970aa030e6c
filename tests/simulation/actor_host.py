"""The actor that a simulated worker is (the counterpart of moray.runtime.actor_host)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from moray.protocol import messages as m
from moray.runtime.work import Called, Caller
from tests.simulation import actor_programs
from tests.simulation.actors import constructor_error
from tests.simulation.context import Context, CrashError, TaskFailedError, load_payload
from tests.simulation.objects import Finished, Token, Value, dump
from tests.simulation.user_code import Code, Thread
from tests.simulation.world import RefusedError

if TYPE_CHECKING:
    from tests.simulation.network import End
    from tests.simulation.worker import Worker

#: As in moray.runtime.actor_host.
_PASSING_S: Final = 1.0


class ActorHost:
    """The actor of one process."""

    def __init__(self, worker: Worker, start: m.StartActor, connection: End | None) -> None:
        self._worker = worker
        self._start = start
        self._connection = connection
        self.actor = start.actor
        self.incarnation = start.incarnation
        #: Calls run several at once.
        self.concurrent = start.creation.max_concurrency > 1
        #: What arrived before the constructor returned.
        self._early: list[Called] | None = []
        #: Of a concurrent actor: what waits, and (caller, seq) → what runs.
        self._waiting: list[Called] = []
        self._calls: dict[tuple[bytes, int], Called] = {}
        self.running: dict[tuple[bytes, int], Thread] = {}
        self.exiting = False
        worker.oracle.calls.began(worker, start.actor, start.incarnation)

    # --- the loop --------------------------------------------------------------------------------------

    def on_calls(self, connection: End, message: m.Calls) -> None:
        """Calls of one caller."""
        worker = self._worker
        caller: Caller | None = connection.peer.caller
        if caller is None:
            worker.close(connection)
            return
        present: Any = caller.connection
        if connection is not present:
            return
        caller.forget(message.answered)
        again = []
        for spec in message.calls:
            number, fresh = caller.accept()
            if fresh:
                self._dispatch(Called(connection, caller, number, spec))
            elif (reply := caller.replies.get(number)) is not None:
                again.append(reply)
        if again:
            worker.references.flush()
            connection.send(m.CallResults(again))

    def _dispatch(self, call: Called) -> None:
        if self._early is not None:
            self._early.append(call)
        elif self.concurrent:
            self._waiting.append(call)
            self._begin_some()
        else:
            self._worker.queue.append(call)

    def _begin_some(self) -> None:
        """Have threads take waiting calls."""
        while self._waiting and len(self.running) < self._start.creation.max_concurrency:
            call = self._waiting.pop(0)
            key = call.caller.process, call.spec.seq
            self._calls[key] = call
            self.running[key] = self._worker.start(self._worker.perform(call), lambda key=key: self._over(key))  # type: ignore[misc]

    def _over(self, key: tuple[bytes, int]) -> None:
        del self.running[key], self._calls[key]
        self._worker.flush_results()
        self._begin_some()

    def pending(self) -> list[Called]:
        """Calls that are not in the worker's queue."""
        return [*self._calls.values(), *(self._early or ()), *self._waiting]

    def forget_caller(self, process: bytes) -> None:
        """A caller died: what it still wanted is not begun."""
        for call in self.pending():
            if call.caller.process == process:
                call.cancelled = True

    def unsent(self) -> list[Any]:
        """What is here and has references in it."""
        found: list[Any] = [self._start, *(call.spec for call in self.pending())]
        for peer in self._worker.peers.values():
            if peer.caller is not None:
                found += peer.caller.replies.values()
        return found

    # --- becoming the actor: the main thread ------------------------------------------------------------

    def become(self) -> Code[None]:
        """Run the constructor; the creator and the head are told how it went."""
        worker, start = self._worker, self._start
        token = Token(start.creator or worker.name, start.seq)
        plan, inside = load_payload(start.creation.payload)
        context = Context(worker, plan, start.incarnation)
        failure = ""
        try:
            yield from worker.take_arguments(context, token, inside, start.creation.arguments)
            yield from worker.references.secure(token)
            yield from actor_programs.construct(context)
        except (TaskFailedError, RefusedError) as error:
            failure = str(error)
        except CrashError:
            worker.universe.die(worker, 1)
            return
        self._answer(token, failure)
        context.close()
        if failure:
            worker.node.send(m.ActorStarted(self.actor, self.incarnation, constructor_error(failure)))
        else:
            worker.later(0.0, self._open)

    def _open(self) -> None:
        """Calls may begin."""
        early, self._early = self._early or [], None
        self._worker.node.send(m.ActorStarted(self.actor, self.incarnation))
        for call in early:
            self._dispatch(call)

    def _answer(self, token: Token, failure: str) -> None:
        worker, start = self._worker, self._start
        if self._connection is None or not start.seq:
            return
        extra = m.ResultExtra(error=True) if failure else None
        caller = Caller(start.creator, self._connection)  # type: ignore[arg-type]
        call = Called(self._connection, caller, 0, m.CallSpec(start.seq, "", b""))
        worker.respond(call, token, m.Result(start.seq, 0, dump(Value(0)), extra), [])
        worker.flush_results()

    # --- the end ------------------------------------------------------------------------------------------

    def leave(self, reason: str) -> Code[None]:
        """End the process in peace; with a reason the head does not restart it."""
        worker = self._worker
        self.exiting = True
        if reason:
            worker.node.send(m.ActorExiting(self.actor, self.incarnation, reason))
        worker.flush_results()
        deadline = worker.world.now + _PASSING_S
        while worker.world.now < deadline:
            passing = [*worker.references.gated.values(), *worker.events]
            if not any(isinstance(event, Finished) for event in passing):
                break
            yield from worker.work(0.01)
        worker.flush_results()
        worker.universe.die(worker, 0)

    def end_in_peace(self) -> None:
        """Nobody refers to the actor any more."""
        if not self.exiting:
            self.exiting = True
            self._worker.queue.append(lambda: self.leave(""))
