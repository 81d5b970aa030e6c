"""Actors as one simulated process knows them (the counterpart of moray.runtime.actors, CALL-ORDER)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from moray.core.actor_calls import Outgoing
from moray.protocol import messages as m
from tests.simulation.creations import Creations
from tests.simulation.objects import Value, dump, load
from tests.simulation.submission import Call, resolve

if TYPE_CHECKING:
    from tests.simulation.network import End
    from tests.simulation.process import Peer, Process

#: Far fewer than the real ones, so that they are reached.
_WINDOW: Final = 6
_BATCH_CALLS: Final = 4
#: As in moray.runtime.actors.
_ANSWERED_AFTER_S: Final = 1.0
_RECONNECT_AFTER_S: Final = 0.01


class Callee:
    """An actor that this process may call."""

    def __init__(self, actor: bytes, creator: bytes, ordered: bool) -> None:
        self.actor = actor
        self.creator = creator
        self.ordered = ordered
        self.state = "pending"
        self.incarnation = -1
        self.reason = ""
        self.error = b""
        self.peer: Peer | None = None
        self.connection: End | None = None
        #: Calls that were not sent, oldest first.
        self.queue: deque[Call] = deque()
        #: Calls of an unordered actor that wait for arguments.
        self.set_aside: dict[int, Call] = {}
        self.calls = Outgoing()
        #: Nothing of ours is queued or open: user code may send directly.
        self.idle = False
        self.watched = False
        self.killed = False
        #: `calls.answered` when the actor was last told.
        self.last_told = 0
        self.answered_timer: Any = None


class ActorClient:
    """All actors that this process has created or has handles of."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.callees: dict[bytes, Callee] = {}
        self.creations = Creations(process, self)
        self._ready: list[Callee] = []
        #: Actors whose last reference has gone.
        self._released: list[bytes] = []

    # --- user code -------------------------------------------------------------------------------------

    def callee(self, actor: bytes, creator: bytes, ordered: bool = True) -> Callee:
        """The way to an actor."""
        callee = self.callees.get(actor)
        if callee is None:
            callee = self.callees[actor] = Callee(actor, creator, ordered)
        return callee

    def kill(self, actor: bytes, no_restart: bool) -> None:
        """End the actor's process now."""
        callee = self.callees.get(actor)
        if callee is not None and no_restart:
            callee.killed, callee.idle = True, False
        self._process.node.send(m.KillActor(actor, no_restart))

    def submit(self, call: Call) -> None:
        """Call a method."""
        self._process.submitter.register(call)
        callee: Callee = call.callee
        if callee.idle and not callee.queue and not call.arguments and not callee.killed and callee.connection:
            callee.idle = False
            callee.calls.sent(call)
            callee.connection.send(m.Calls(callee.calls.answered, [spec_of(call)]))
            return
        callee.queue.append(call)
        self.pump_soon(callee)

    # --- the loop: sending -------------------------------------------------------------------------------

    def pump_soon(self, callee: Callee) -> None:
        """There may be something to send."""
        self._ready.append(callee)
        self._process.wake()

    def dispatch(self) -> None:
        """Once a turn: send what was submitted, tell of what was dropped."""
        while self._ready:
            self._pump(self._ready.pop(0))
        while self._released:
            self._process.node.send(m.ReleaseActor(self._released.pop(0)))

    def _pump(self, callee: Callee) -> None:
        if not callee.queue:
            return
        if not callee.watched:
            callee.watched = True
            self._process.node.send(m.WatchActor(callee.actor, callee.creator))
        if callee.state == "dead":
            self._fail_all(callee)
            return
        if callee.connection is None or callee.killed:
            return
        callee.idle = False
        failed: list[Call] = []
        room = _WINDOW - len(callee.calls.unanswered) if callee.ordered else 1 << 30
        while callee.queue and room > 0:
            batch = self._take(callee, min(room, _BATCH_CALLS), failed)
            if not batch:
                break
            room -= len(batch)
            for call in batch:
                callee.calls.sent(call)
            callee.last_told = callee.calls.answered
            callee.connection.send(m.Calls(callee.calls.answered, [spec_of(call) for call in batch]))
        for call in failed:
            self._process.submitter.finish_with(call, "argument failed")
        if not callee.queue and not callee.calls.unanswered:
            callee.idle = not callee.killed

    def _take(self, callee: Callee, most: int, failed: list[Call]) -> list[Call]:
        """Calls from the head of the queue that are ready to go."""
        batch: list[Call] = []
        while callee.queue and len(batch) < most:
            call = callee.queue[0]
            if call.cancelled:
                callee.queue.popleft()
                self._process.cancels.end_unsent(call)
                continue
            if call.arguments and not self._resolve(callee, call):
                if callee.ordered:
                    break
                callee.queue.popleft()
                callee.set_aside[call.seq] = call
                continue
            callee.queue.popleft()
            arguments = resolve(call)
            if arguments is None:
                failed.append(call)
                continue
            extra = call.extra or m.TaskExtra()
            if arguments or call.attempt:
                call.extra = m.TaskExtra(arguments, extra.num_returns, call.attempt, stream=extra.stream)
            batch.append(call)
        return batch

    def _resolve(self, callee: Callee, call: Call) -> bool:
        """Whether a call's arguments are there; it is looked at again when they are."""
        missing = [ref.entry for ref in call.arguments if not ref.entry.ready]
        if missing and not call.waiting:
            call.waiting = len(missing)

            def arrived() -> None:
                call.waiting -= 1
                if not call.waiting:
                    if callee.set_aside.pop(call.seq, None) is not None:
                        callee.queue.append(call)
                    self.pump_soon(callee)

            for entry in missing:
                self._process.values.subscribe(entry, arrived)
        return not missing

    def retry(self, call: Call) -> None:
        """The call raised, and is to be tried again: before what its caller has made since, which may wait for it."""
        queue = call.callee.queue
        queue.insert(next((at for at, other in enumerate(queue) if other.seq > call.seq), len(queue)), call)
        self.pump_soon(call.callee)

    # --- the loop: results ----------------------------------------------------------------------------------

    def on_results(self, connection: End, message: m.CallResults) -> None:
        process = self._process
        peer: Peer = connection.peer
        if message.borrows is not None:
            process.references.borrowed(peer, message.borrows)
        callee: Callee | None = peer.callee
        for result in message.results:
            call = callee.calls.complete(result.seq) if callee is not None else None
            if call is None:
                self.creations.constructed(peer, result)
            else:
                process.submitter.take_result(peer, call, result)
        if callee is None:
            return
        if callee.queue:
            self._pump(callee)
        elif not callee.calls.unanswered:
            callee.idle = callee.connection is not None and not callee.killed
        if callee.answered_timer is None and callee.calls.answered != callee.last_told:
            callee.answered_timer = process.later(_ANSWERED_AFTER_S, lambda: self._tell_answered(callee))

    def _tell_answered(self, callee: Callee) -> None:
        callee.answered_timer = None
        answered = callee.calls.answered
        if answered != callee.last_told and callee.connection is not None:
            callee.last_told = answered
            callee.connection.send(m.Calls(answered, []))

    # --- the loop: life ------------------------------------------------------------------------------------

    def released(self, actor: bytes) -> None:
        """The last reference to an actor of ours is gone."""
        self._released.append(actor)
        self._process.wake()

    def on_state(self, _connection: End, message: m.ActorState) -> None:
        callee = self.callee(message.actor, b"")
        if message.incarnation < callee.incarnation or callee.state == "dead":
            return
        renewed = message.incarnation != callee.incarnation
        callee.incarnation = message.incarnation
        callee.state, callee.reason = message.state, message.reason
        if message.state == "alive":
            if renewed or callee.peer is None:
                self._retry_unanswered(callee)
                callee.peer = self._process.peer(message.process)
                callee.peer.callee = callee
            self._connect(callee)
            return
        self._lost(callee, message)
        if message.state == "dead":
            callee.error = message.error
            self.creations.forget(message.actor)
            self._fail_all(callee)
            self.callees.pop(message.actor, None)

    def _connect(self, callee: Callee) -> None:
        """Begin, or resume, the conversation with the present incarnation."""
        if callee.peer is None or callee.peer.dead:
            return
        connection = self._process.connect(callee.peer)
        if connection is None or connection is callee.connection:
            return
        for number, calls in callee.calls.resend() or [(callee.calls.next, [])]:
            connection.send(m.CallerHello(number, callee.calls.conversation))
            for start in range(0, len(calls), _BATCH_CALLS):
                batch = calls[start : start + _BATCH_CALLS]
                connection.send(m.Calls(callee.calls.answered, [spec_of(call) for call in batch]))
                for call in batch:
                    if call.cancelled:
                        self._process.cancels.send_cancel(connection, call)
        callee.connection = connection
        self._pump(callee)

    def connection_closed(self, connection: End, peer: Peer) -> None:
        """A connection to an actor is gone; whether the actor is, the head says (LIVENESS)."""
        self.creations.connection_closed(peer)
        callee: Callee | None = peer.callee
        if callee is None or callee.connection is not connection:
            return
        callee.idle = False
        callee.connection = None
        if not peer.dead:
            self._process.later(_RECONNECT_AFTER_S, lambda: self._reconnect(callee, peer))

    def _reconnect(self, callee: Callee, peer: Peer) -> None:
        if callee.peer is peer and callee.connection is None and callee.state == "alive":
            self._connect(callee)

    def _lost(self, callee: Callee, message: m.ActorState) -> None:
        """The incarnation is gone; the actor comes back, or not."""
        callee.idle = False
        if callee.connection is not None:
            callee.connection.drain()
        if callee.connection is not None:
            self._process.close(callee.connection)
        if callee.peer is not None:
            callee.peer.callee = None
            callee.peer = None
        if message.state != "dead":
            self._retry_unanswered(callee)

    def _retry_unanswered(self, callee: Callee) -> None:
        """What the old incarnation did not answer: again, in order, if it has retries left."""
        again: list[Call] = []
        callee.last_told = 0
        for call in callee.calls.restart():
            if call.cancelled:
                self._fail(call, "cancelled")
            elif call.retries_left:
                call.retries_left -= 1
                self._process.submitter.again(call)
                again.append(call)
            else:
                self._fail(call, "actor unavailable")
        callee.queue.extendleft(reversed(again))

    def _fail_all(self, callee: Callee) -> None:
        """The actor is dead: every call of it fails, with the cause."""
        calls = [*callee.calls.restart(), *callee.set_aside.values(), *callee.queue]
        callee.set_aside.clear()
        callee.queue.clear()
        error = load(callee.error).error if callee.error else "actor dead"
        for call in calls:
            self._fail(call, error)

    def _fail(self, call: Call, error: str) -> None:
        """The call ends with its actor, which may have left its result in the store."""
        if call.number >= 0:
            for entry in call.entries:
                self._process.values.forget_stored(entry.id)
        self._process.submitter.finish_with(call, error)

    def open_calls(self) -> list[tuple[bytes, int]]:
        """What is not answered."""
        return [
            (callee.actor, call.seq)
            for callee in self.callees.values()
            for call in (*callee.queue, *callee.calls.unanswered.values(), *callee.set_aside.values())
        ]

    def validate(self) -> None:
        for callee in self.callees.values():
            callee.calls.validate()


def spec_of(call: Call) -> m.CallSpec:
    return m.CallSpec(call.seq, call.method, call.payload, call.extra)


def constructor_error(error: str) -> bytes:
    """The pickled error of a constructor."""
    return dump(Value(0, error=f"constructor: {error}"))
