"""The actor that a simulated worker is (the counterpart of moray.runtime.actor_host)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from moray.core.limits import Limit
from moray.protocol import messages as m
from moray.runtime.work import Called, Caller
from tests.simulation import actor_programs
from tests.simulation.actors import constructor_error
from tests.simulation.context import Context, CrashError, TaskFailedError, load_payload
from tests.simulation.objects import Finished, Token, Value, dump
from tests.simulation.user_code import Code, Coroutine, InterruptError, Open, Thread
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
        self._start_message = start
        self._connection = connection
        self.actor = start.actor
        self.incarnation = start.incarnation
        creation = start.creation
        #: Calls are coroutines.
        self.asynchronous = creation.asynchronous
        #: Group → how many of its calls run at once; "" is missing if the main thread runs those one by one.
        self._limits = {group: Limit(size) for group, size in creation.groups.items()}
        if creation.asynchronous or creation.max_concurrency > 1:
            self._limits[""] = Limit(creation.max_concurrency)
        #: Calls run several at once.
        self.concurrent = bool(self._limits)
        #: What arrived before the constructor returned.
        self._early: list[Called] | None = []
        #: Of a concurrent actor: what waits for a place → what wakes it.
        self._waiting: dict[Called, Callable[[], None]] = {}
        #: (caller, seq) → what runs in a thread, or is a coroutine.
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
        group = self._group_of(call)
        if self._early is not None:
            self._early.append(call)
        elif group not in self._limits:
            self._worker.queue.append(call)
        elif self.asynchronous:
            self._start(call, Coroutine, self._run_async(call, group), lambda: None)
        elif self._limits[group].take():
            self._enter(call, group)
            self._start_thread(call, group)
        else:
            self._line_up(call, group, lambda: self._start_thread(call, group))

    @staticmethod
    def _group_of(call: Called) -> str:
        return call.spec.extra.group if call.spec.extra is not None else ""

    def _size_of(self, group: str) -> int:
        creation = self._start_message.creation
        return creation.groups.get(group) or creation.max_concurrency

    def _start(self, call: Called, kind: type[Thread], code: Code[None], then: Callable[[], None]) -> None:
        key = call.caller.process, call.spec.seq

        def over() -> None:
            del self.running[key], self._calls[key]
            self._worker.flush_results()
            then()

        self._calls[key] = call
        self.running[key] = kind(self._worker, code, over)

    def _start_thread(self, call: Called, group: str) -> None:
        """A thread has taken a call."""
        self._start(call, Thread, self._worker.perform(call), lambda: self._leave_group(call, group))

    def _run_async(self, call: Called, group: str) -> Code[None]:
        """A coroutine, from its arrival on."""
        limit, worker = self._limits[group], self._worker
        if limit.take():
            self._enter(call, group)
        else:
            try:
                yield Open(lambda resume: self._line_up(call, group, lambda: resume(None)))
            except InterruptError:
                worker.oracle.interrupted(worker, call.caller.process, call.spec.seq)
                given = not limit.withdraw(call)
                self._waiting.pop(call, None)
                yield from worker.perform(call)  # It is cancelled: that is its result.
                self._leave_group(call, group, given)
                return
        yield from worker.perform(call)
        self._leave_group(call, group)

    # --- the places of groups ----------------------------------------------------------------------------

    def _line_up(self, call: Called, group: str, wake: Callable[[], None]) -> None:
        self._limits[group].line_up(call)
        self._waiting[call] = wake
        self._worker.oracle.calls.waits(self._worker, group, (call.caller.process, call.spec.seq))

    def _enter(self, call: Called, group: str) -> None:
        """A call has a place, whether or not it knows."""
        key = call.caller.process, call.spec.seq
        self._worker.oracle.calls.enters(self._worker, group, self._size_of(group), key)

    def _leave_group(self, call: Called, group: str, has_place: bool = True) -> None:
        """A call has ended: whoever waits has its place."""
        worker = self._worker
        worker.oracle.calls.leaves(worker, group, (call.caller.process, call.spec.seq))
        if has_place:
            following = self._limits[group].release()
            if following is not None:
                self._enter(following, group)
                self._waiting.pop(following)()
        worker.oracle.calls.check_places(worker, group, self._size_of(group))

    def pending(self) -> list[Called]:
        """Calls that are not in the worker's queue."""
        waiting = [call for call in self._waiting if (call.caller.process, call.spec.seq) not in self._calls]
        return [*self._calls.values(), *(self._early or ()), *waiting]

    def forget_caller(self, process: bytes) -> None:
        """A caller died: what it still wanted is not begun."""
        for call in self.pending():
            if call.caller.process == process:
                call.cancelled = True

    def unsent(self) -> list[Any]:
        """What is here and has references in it."""
        found: list[Any] = [self._start_message, *(call.spec for call in self.pending())]
        for peer in self._worker.peers.values():
            if peer.caller is not None:
                found += peer.caller.replies.values()
        return found

    # --- becoming the actor: the main thread ------------------------------------------------------------

    def become(self) -> Code[None]:
        """Run the constructor; the creator and the head are told how it went."""
        worker, start = self._worker, self._start_message
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
        worker, start = self._worker, self._start_message
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
