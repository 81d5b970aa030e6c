"""Actors as this process knows them: creating them, and calling them (CALL-ORDER).

A :class:`Callee` is one actor seen from here. Like tasks, a call is committed by the user's thread in one step:

* appended to the actor's queue; the loop sends what is there in batches; or,
* if nothing of ours waits or runs at the actor, sent by this very thread.

**The loop** owns the rest. It numbers calls in the order in which they went out (:mod:`moray.core.actor_calls`),
resolves their arguments, and follows the head's word about where the actor lives: what a dead incarnation did not
answer is tried again if it has retries left, or fails. Calls of an actor that is not alive yet, or not again, wait.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray import exceptions
from moray.core.leases import Durations
from moray.ids import tag_of
from moray.object_ref import Alive, Entry, ObjectRef, new_ref
from moray.protocol import messages as m
from moray.protocol.connection import encode_frame
from moray.runtime.arguments import Prepared, resolve
from moray.runtime.callee import ALIVE, DEAD, Callee
from moray.runtime.creations import Creations
from moray.runtime.streams import make_stream, reconnect_streams
from moray.runtime.task_errors import actor_died, inherited
from moray.runtime.tasks import Call, CallSettings, Function, Life
from moray.runtime.values import dump_error, load_error

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Peer, Runtime

#: Calls that an actor which runs one at a time holds at most: enough to hide the way, few enough to lose little.
_WINDOW: Final = 1024
#: Calls and bytes in one message.
_BATCH_CALLS: Final = 256
_BATCH_BYTES: Final = 256 * 1024
#: A caller that has nothing more to say tells the actor after so long which replies it has.
_ANSWERED_AFTER_S: Final = 1.0
#: When a connection that could not be made is tried again.
_CONNECT_AGAIN_S: Final = 0.1
#: When a full connection is looked at again.
_FULL_RETRY_S: Final = 0.002

#: Calls have no exported function; their run times decide nothing.
_FUNCTION: Final = Function(0, "", b"", 0, Durations(), [])


class ActorClient:
    """All actors that this process has created or has handles of. `Runtime.actors`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: Actor → the way to it. Any thread adds, by one step.
        self._callees: dict[bytes, Callee] = {}
        self.creations = Creations(runtime, self)
        #: Callees with something new in their queues, for the loop.
        self._ready: deque[Callee] = deque()
        #: Actors whose last reference has gone.
        self._released: deque[bytes] = deque()
        handlers: dict[type, Callable[[Connection, Any], None]] = {
            m.ActorRegistered: runtime.on_answer,
            m.ActorNames: runtime.on_answer,
            m.ActorState: self._on_state,
            m.CallResults: self._on_results,
        }
        runtime.handlers |= handlers

    # --- the head: any thread ------------------------------------------------------------------------------

    def create(
        self, spec: m.ActorSpec, creation: m.Creation, prepared: Prepared | None, held: list[ObjectRef[Any]]
    ) -> tuple[bytes, bytes, bytes, ObjectRef[Any] | None]:
        """See :meth:`~moray.runtime.creations.Creations.create`."""
        return self.creations.create(spec, creation, prepared, held)

    def forget(self, actor: bytes) -> None:
        """It was never registered."""
        self._callees.pop(actor, None)

    def find(self, name: str, namespace: str) -> tuple[bytes, bytes, bytes]:
        """(actor, meta, creator) of the living actor with this name. Raises ActorHandleNotFoundError (a ValueError)."""
        answer = self._runtime.ask(lambda number: m.FindActor(number, name, namespace))
        if not answer.actor:
            raise exceptions.ActorHandleNotFoundError(f"{answer.reason} (Failed to look up actor with name {name!r})")
        return answer.actor, answer.meta, answer.creator

    def names(self, namespace: str) -> list[tuple[str, str]]:
        """(namespace, name) of living actors in `namespace`, or of all if it is ""."""
        names: list[tuple[str, str]] = self._runtime.ask(lambda number: m.ListActors(number, namespace)).names
        return names

    def kill(self, actor: bytes, _creator: bytes, no_restart: bool) -> None:
        """End the actor's process now."""
        self._runtime.check_usable()
        callee = self._callees.get(actor)
        if callee is not None and no_restart:
            with callee.lock:
                callee.killed = True  # What is called from now on must not be answered, however slow the way is.
                callee.idle = False
        self._runtime.node.send(m.KillActor(actor, no_restart))

    # --- calling: any thread -------------------------------------------------------------------------------

    def callee(self, actor: bytes, creator: bytes) -> Callee:
        """The way to an actor; kept by its handle. `creator`: the process that registered it, b"" if detached."""
        callee = self._callees.get(actor)
        if callee is None:
            callee = self._callees.setdefault(actor, Callee(actor, creator))
        return callee

    def callees(self) -> list[Callee]:
        """All actors that this process may call. Any thread."""
        return list(self._callees.values())

    def submit(  # noqa: C901, PLR0912 - spelled out: a hot path.
        self, callee: Callee, settings: CallSettings, prepared: Prepared | None, handle: ObjectRef[Any] | None
    ) -> Any:
        """Call a method: an ObjectRef, a list of them, None (num_returns=0), or an ObjectRefGenerator.
        Raises PendingCallsLimitExceeded."""
        runtime = self._runtime
        if callee.max_pending >= 0 and callee.pending() >= callee.max_pending:
            raise exceptions.PendingCallsLimitExceeded(
                f"{callee.text()} has {callee.pending()} unanswered calls of this process, and max_pending_calls="
                f"{callee.max_pending}: get some results first"
            )
        seq = next(runtime.sequence)
        entries: list[Entry] | None = None
        entry: Entry | None = None
        if settings.num_returns == 1:
            entry = Entry(runtime.origin, seq << 32)
            # make_ref(), spelled out: this is a hot path.
            returned: Any = new_ref(ObjectRef)
            returned._entry = entry
            entry.alive = alive = Alive(returned, runtime.note_event)
            alive.entry = entry
            alive.counted = False
        else:
            entries = [Entry(runtime.origin, seq << 32 | index) for index in range(settings.num_returns)]
            returned = [runtime.make_ref(each) for each in entries] or None
        call = Call(
            seq, _FUNCTION, _FUNCTION.durations, b"", entry, entries, settings, settings.max_retries, settings.extra
        )
        call.callee = callee
        call.handle = handle
        if runtime.kind == "worker":
            call.parent = runtime.current_work() if runtime.concurrent else runtime.work
        if settings.streaming:
            returned = make_stream(runtime, call, returned)
        if prepared is not None:
            call.payload = prepared.payload
            if prepared.held is not None:
                call.held = prepared.held
                call.arguments = prepared.arguments
                if call.extra is None:
                    call.extra = _REFERENCES
        if entry is not None:
            entry.task = call
        else:
            for each in entries or ():
                each.task = call
        if callee.idle and not callee.queue and call.arguments is None and not callee.inside():
            with callee.lock:
                if self._send_directly(callee, call):
                    return returned
        callee.queue.append(call)
        if callee.hungry:
            self._ready.append(callee)
            runtime.wake()
        return returned

    def _send_directly(self, callee: Callee, call: Call) -> bool:
        """Send `call` from this thread. The caller holds the lock."""
        connection = callee.connection
        if (
            connection is None
            or connection.out
            or connection.settled
            or callee.queue
            or not callee.idle
            or callee.killed
        ):
            return False
        spec = m.CallSpec(call.seq, call.options.method, call.payload, call.extra)
        return connection.send_frame(encode_frame(m.Calls(callee.calls.answered, [spec])), (callee, call))

    # --- the loop: sending -------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Once a turn: send what was submitted, tell of what was dropped."""
        while self._ready:
            callee = self._ready.popleft()
            if callee.queue:
                self._pump(callee)
        while self._released:
            actor = self._released.popleft()
            self._runtime.node.send(m.ReleaseActor(actor))

    def settle(self, record: tuple[Callee, Call | list[Call]]) -> None:
        """Calls were committed to the connection and went out, in this order."""
        callee, calls = record
        callee.idle = False
        if isinstance(calls, list):
            for call in calls:
                callee.calls.sent(call)
        else:
            callee.calls.sent(calls)

    def _pump(self, callee: Callee) -> None:
        """Send what may be sent."""
        if not callee.watched:
            callee.watched = True
            self._runtime.node.send(m.WatchActor(callee.actor, callee.creator))
        if callee.state == DEAD or self._runtime.ended is not None:
            self._fail_all(callee)
            return
        connection = callee.connection
        if connection is None or callee.killed:
            return  # The head will tell where it lives, or that it does not.
        submitter = self._runtime.submitter
        failed: list[tuple[Call, ObjectRef[Any]]] = []
        with callee.lock:
            submitter.settle(connection)
            if connection.out:
                self._pump_later(callee)
                return
            callee.idle = False
            # Calls that others at the actor wait for must not be held back by our window.
            room = _WINDOW - len(callee.calls.unanswered) if callee.ordered else sys.maxsize
            while callee.queue and room > 0 and not connection.out:
                batch = self._take(callee, min(room, _BATCH_CALLS), failed)
                if not batch:
                    break
                room -= len(batch)
                self._send(callee, connection, batch)
            callee.hungry = room > 0
        for call, ref in failed:
            self._fail_by_argument(call, ref)
        if connection.out:
            self._pump_later(callee)
        elif not callee.queue and not callee.calls.unanswered:
            callee.idle = not callee.killed

    def _send(self, callee: Callee, connection: Connection, batch: list[Call]) -> None:
        specs = [m.CallSpec(call.seq, call.options.method, call.payload, call.extra) for call in batch]
        callee.last_told = answered = callee.calls.answered
        connection.send_frame(encode_frame(m.Calls(answered, specs)), (callee, batch))
        self._runtime.submitter.settle(connection)

    def _take(self, callee: Callee, most: int, failed: list[tuple[Call, ObjectRef[Any]]]) -> list[Call]:
        """Calls from the head of the queue that are ready to go. Under the lock."""
        queue = callee.queue
        batch: list[Call] = []
        size = 0
        while queue and len(batch) < most and size < _BATCH_BYTES:
            call = queue[0]
            if call.cancelled:
                queue.popleft()
                self._runtime.cancels.end_unsent(call)
                continue
            if call.arguments is not None:
                ready = self._resolve(callee, call, failed)
                if ready is None and callee.ordered:
                    break
                queue.popleft()
                if ready is None:
                    callee.set_aside[call.seq] = call
                if not ready:
                    continue
            else:
                queue.popleft()
            batch.append(call)
            size += len(call.payload)
        return batch

    def _resolve(self, callee: Callee, call: Call, failed: list[tuple[Call, ObjectRef[Any]]]) -> bool | None:
        """Whether a call's arguments are there: None: not yet; False: one of them is an error."""
        arguments = call.arguments or []
        missing = [ref._entry for _where, ref in arguments if not ref._entry.ready]
        if missing:
            if not call.waiting:
                call.waiting = len(missing)

                def arrived() -> None:
                    call.waiting -= 1
                    if not call.waiting:
                        self._arguments_arrived(callee, call)

                for entry in missing:
                    if self._runtime.values.subscribe(entry, arrived):
                        arrived()
            return None
        resolved, error = resolve(arguments, self._runtime.values.places)
        if error is not None:
            failed.append((call, error))
            return False
        extra = call.options.extra or m.TaskExtra()
        call.extra = msgspec.structs.replace(extra, arguments=resolved, attempt=call.attempt)
        return True

    def _arguments_arrived(self, callee: Callee, call: Call) -> None:
        if callee.set_aside.pop(call.seq, None) is not None:
            callee.queue.append(call)
        self._ready.append(callee)
        self._runtime.wake()

    def _fail_by_argument(self, call: Call, failed: ObjectRef[Any]) -> None:
        for entry in call.entries if call.entries is not None else [call.entry]:
            if entry is not None:
                self._runtime.references.inherit(entry, failed)
        failed._entry.seen = True
        error = inherited(call.options.name, failed._entry.blob or b"")
        self._runtime.submitter.finish_with(call, error, False)

    def pump_soon(self, callee: Callee) -> None:
        """There may be something to send. Loop only."""
        self._ready.append(callee)
        self._runtime.wake()

    def _pump_later(self, callee: Callee) -> None:
        """The connection is full: look again soon."""
        if callee.retry_timer is None:

            def again() -> None:
                callee.retry_timer = None
                self._pump(callee)

            callee.retry_timer = self._runtime.reactor.call_later(_FULL_RETRY_S, again)

    def retry(self, call: Call) -> None:
        """The call raised, and is to be tried again: before what its caller has made since, which may wait for it."""
        callee: Callee = call.callee
        later = (at for at, other in enumerate(list(callee.queue)) if other.seq > call.seq)
        callee.queue.insert(next(later, len(callee.queue)), call)
        self._ready.append(callee)

    # --- the loop: results -----------------------------------------------------------------------------------------

    def _on_results(self, connection: Connection, message: m.CallResults) -> None:
        submitter = self._runtime.submitter
        submitter.settle(connection)
        peer: Peer = connection.peer
        if message.borrows is not None:
            self._runtime.references.drain()
            self._runtime.references.borrowed(peer, message.borrows)
        callee: Callee | None = peer.callee
        values = self._runtime.values
        for result in message.results:
            call = callee.calls.complete(result.seq) if callee is not None else None
            if call is None:
                self.creations.constructed(peer, result)
                continue
            entry = call.entry
            if result.extra is None and entry is not None:
                entry.task = None
                entry.blob = result.blob
                entry.ready = True
                if entry.waiters is not None:
                    values.notify(entry)
            else:
                submitter.take_special(peer, call, result)
        if callee is None:
            return
        callee.hungry = True  # Before the look at the queue: what is added after it wakes us.
        if callee.queue:
            self._pump(callee)
        elif not callee.calls.unanswered:
            callee.idle = callee.connection is not None and not callee.killed
        if callee.answered_timer is None and callee.calls.answered != callee.last_told:
            timer = self._runtime.reactor.call_later(_ANSWERED_AFTER_S, lambda: self._tell_answered(callee))
            callee.answered_timer = timer

    def _tell_answered(self, callee: Callee) -> None:
        """Let the actor drop replies that we have, if no call has said so since."""
        callee.answered_timer = None
        answered = callee.calls.answered
        if answered != callee.last_told and callee.connection is not None:
            callee.last_told = answered
            callee.connection.send(m.Calls(answered, []))

    # --- the loop: life ------------------------------------------------------------------------------

    def released(self, life: Life) -> None:
        """The last reference to an actor of ours is gone."""
        self._released.append(life.actor)
        self._runtime.wake()

    def _on_state(self, _connection: Connection, message: m.ActorState) -> None:
        callee = self.callee(message.actor, b"")
        if message.incarnation < callee.incarnation or callee.state == DEAD:
            return
        callee.restarts_left = message.restarts_left
        renewed = message.incarnation != callee.incarnation
        callee.incarnation = message.incarnation
        callee.state, callee.reason = message.state, message.reason
        if callee.creator == self._runtime.process:
            self._runtime.explainer.actor_changed(message.actor, message.state)
        if message.state == ALIVE:
            self._came_alive(callee, message, renewed)
        else:
            self._lost(callee, message)
        if message.state == DEAD:
            callee.error = message.error
            if message.error and not callee.pending() and callee.creator == self._runtime.process:
                self._runtime.unfetched.show(message.error)  # No call will raise it.
            self.creations.forget(message.actor)
            self._fail_all(callee)
            self._callees.pop(message.actor, None)

    def _came_alive(self, callee: Callee, message: m.ActorState, renewed: bool) -> None:
        runtime = self._runtime
        if renewed or callee.peer is None:
            self._retry_unanswered(callee)
            job = message.job_id.to_bytes(4, "big")
            callee.peer = runtime.peer(message.process, message.address, message.pid, job)
            callee.peer.callee = callee
        self._connect(callee)

    def _connect(self, callee: Callee) -> None:
        """Begin, or resume, the conversation with the present incarnation."""
        if callee.peer is None or callee.peer.dead is not None:
            return
        peer = callee.peer
        connection = self._runtime.connect(peer)
        if connection is None:
            # It has died since, and the head is about to say so; or we have no descriptor left, which may pass.
            self._runtime.reactor.call_later(_CONNECT_AGAIN_S, lambda: self._reconnect(callee, peer))
        if connection is None or connection is callee.connection:
            return
        self._runtime.submitter.settle(connection)
        runs = callee.calls.resend()
        reconnect_streams(callee.calls.unanswered.values(), connection)
        for number, calls in runs or [(callee.calls.next, [])]:
            connection.send(m.CallerHello(number, callee.calls.conversation))
            for start in range(0, len(calls), _BATCH_CALLS):
                specs = [
                    m.CallSpec(call.seq, call.options.method, call.payload, call.extra)
                    for call in calls[start : start + _BATCH_CALLS]
                ]
                connection.send(m.Calls(callee.calls.answered, specs))
                for call in calls[start : start + _BATCH_CALLS]:
                    if call.cancelled:
                        self._runtime.cancels.send_cancel(connection, call)
        callee.connection = connection
        self._pump(callee)

    def connection_closed(self, connection: Connection, peer: Peer) -> None:
        """A connection to an actor is gone; whether the actor is, the head says (LIVENESS)."""
        self.creations.connection_closed(peer)
        callee: Callee | None = peer.callee
        if callee is None or callee.connection is not connection:
            return
        callee.idle = False
        self._runtime.submitter.settle(connection)
        with callee.lock:
            # What user threads committed and was not sent is sent again with the rest, in this order.
            while connection.out:
                record = connection.out.popleft()[2]
                if record is not None:
                    self.settle(record)
            callee.connection = None
        if peer.dead is None and not self._runtime.closing:
            self._runtime.reactor.call_later(0.01, lambda: self._reconnect(callee, peer))

    def _reconnect(self, callee: Callee, peer: Peer) -> None:
        if callee.peer is peer and callee.connection is None and callee.state == ALIVE and not self._runtime.closing:
            self._connect(callee)

    def _lost(self, callee: Callee, message: m.ActorState) -> None:
        """The incarnation is gone; the actor comes back, or not."""
        callee.idle = False
        if callee.connection is not None:
            # The process ends, but is not known to be dead: what was committed to its connection is taken back.
            self._runtime.drain_connection(callee.connection)
            callee.connection.close("the actor that it was has ended")
        if callee.peer is not None:
            callee.peer.callee = None
            callee.peer = None
        if message.state != DEAD:
            self._retry_unanswered(callee, message.begun)

    def _retry_unanswered(self, callee: Callee, begun: Mapping[bytes, list[int]] | None = None) -> None:
        """What the old incarnation did not answer: again, in order, if it has retries left, or was not begun. `begun`:
        what may have been, by caller, if that is known."""
        again: list[Call] = []
        tried = None if begun is None else frozenset(begun.get(self._runtime.process, ()))
        callee.last_told = 0
        for call in callee.calls.restart():
            if call.cancelled:
                self._fail(callee, call, self._runtime.cancels.error_blob(call, "its actor has ended"))
            elif tried is not None and call.number not in tried:
                again.append(call)
            elif call.retries_left:
                if call.entries is None and call.entry is not None and call.stream is None:
                    call.entries, call.entry = [call.entry], None  # Its result is not taken by the short way.
                call.retries_left -= call.retries_left > 0
                call.attempt += 1
                call.extra = msgspec.structs.replace(call.extra or m.TaskExtra(), attempt=call.attempt)
                if call.stream is not None:
                    call.stream.replay(call)
                again.append(call)
            else:
                error = exceptions.ActorUnavailableError(
                    f"{callee.text()} ended while it had the call {call.options.name}(): {callee.reason}",
                    callee.actor.hex(),
                )
                self._fail(callee, call, dump_error(error))
        callee.queue.extendleft(reversed(again))

    def _fail_all(self, callee: Callee) -> None:
        """The actor is dead: every call of it fails, with the cause."""
        calls = callee.calls.restart()
        calls += callee.set_aside.values()
        callee.set_aside.clear()
        callee.hungry = True  # Before the queue is emptied: what is added after that wakes us, and fails.
        while callee.queue:
            calls.append(callee.queue.popleft())
        if not calls:
            return
        blob = self._death_blob(callee)
        for call in calls:
            self._fail(callee, call, blob)

    def _fail(self, callee: Callee, call: Call, blob: bytes) -> None:
        """The call ends with its actor, which may have left a result in the store. Whoever had it end knows why."""
        killed = callee.reason.startswith("killed by moray.kill()") or call.options.method == "__ray_terminate__"
        for entry in call.entries if call.entries is not None else [call.entry]:
            if entry is not None:
                entry.seen = entry.seen or killed
                if call.number >= 0:
                    node = tag_of(callee.peer.origin.process) if callee.peer is not None else b""
                    self._runtime.values.forget_stored(entry, node)
        self._runtime.submitter.finish_with(call, blob, False)

    def _death_blob(self, callee: Callee) -> bytes:
        if self._runtime.ended is not None:
            return dump_error(exceptions.LocalNodeDiedError(self._runtime.ended))
        if callee.error:
            return _died_in_constructor(callee)
        return dump_error(actor_died(callee.actor.hex(), callee.text(), callee.reason))

    def session_ended(self) -> None:
        """Nothing will be answered any more."""
        for callee in list(self._callees.values()):
            callee.state = DEAD
            self._fail_all(callee)

    def pending_calls(self) -> list[Call]:
        """All that are not answered. Loop only."""
        calls: list[Call] = []
        for callee in list(self._callees.values()):
            if callee.connection is not None:
                self._runtime.submitter.settle(callee.connection)
            calls += [*callee.queue, *callee.calls.unanswered.values(), *callee.set_aside.values()]
        return calls

    # --- explanations ----------------------------------------------------------------------------------

    def why(self, callee: Callee, call: Call | None) -> str:
        """One sentence: what a call of this actor waits for."""
        name = f"Call {call.options.name}()" if call is not None else "A call"
        if call is not None and call.waiting:
            return f"{name} of {callee.text()} waits for {call.waiting} of its arguments."
        if callee.state == ALIVE:
            if call is not None and call.seq in callee.calls.unanswered:
                return f"{name} is at {callee.text()}, running or queued there."
            return f"{name} is queued here behind {len(callee.queue)} others for {callee.text()}."
        return f"{name} waits for {callee.text()}, which is {callee.state}" + (
            f": {callee.reason}" if callee.reason else "."
        )


#: Tells the worker that references are among or inside the arguments.
_REFERENCES: Final = m.TaskExtra()


def _died_in_constructor(callee: Callee) -> bytes:
    """The blob of the error that callers get when the constructor raised: loaded when it is raised, not here."""
    from moray.serialization import serialize

    return serialize(ConstructorError(callee.error, callee.actor.hex())).to_bytes()


class ConstructorError(Exception):
    """Carries a constructor's error, still pickled, to whoever gets a call's result: the loop never unpickles."""

    def __reduce__(self) -> Any:
        return _load_constructor_error, self.args


def _load_constructor_error(blob: bytes, actor: str) -> BaseException:
    error = load_error(blob, None)
    if isinstance(error, exceptions.TaskError):
        return exceptions.ActorDiedError(error, actor_id=actor)
    return exceptions.ActorDiedError(f"its constructor could not run: {error}", actor_id=actor)
