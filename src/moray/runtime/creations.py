"""Actors that this process has created: what makes an instance, for as long as one may have to be made.

The head gives the creator a process for each incarnation (:class:`~moray.protocol.actor_messages.ActorPlaced`), and the
creator sends the creation there. An actor lives as long as its hidden object, owned by the creator: handles contain a
reference to it (REF-FREE).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray import exceptions
from moray.object_ref import Entry, ObjectRef
from moray.protocol import messages as m
from moray.runtime.arguments import Prepared, resolve
from moray.runtime.tasks import Life
from moray.runtime.values import dump_error
from moray.serialization import NONE_BLOB

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.actors import ActorClient
    from moray.runtime.runtime import Peer, Runtime


#: After the loss of a connection.
_AGAIN_S: Final = 0.01


class Created(msgspec.Struct, eq=False):
    """An actor of ours that is not dead for good."""

    actor: bytes
    seq: int
    creation: m.Creation
    restartable: bool
    #: Top-level references among the constructor's arguments.
    arguments: list[tuple[int | str, ObjectRef[Any]]]
    #: References held as long as an instance may have to be made.
    held: list[ObjectRef[Any]]
    #: The hidden object whose end is the actor's; its entry.
    life: Entry | None = None
    #: It was registered with arguments that were not ready.
    waiting: int = 0
    #: The process that is to become it, and what it was told, until it is known to have been.
    placed: tuple[Peer, m.StartActor] | None = None
    #: The task or call that creates it, in a worker: its cancel is the constructor's, too (CANCEL).
    parent: Any = None
    #: The constructor has returned once, or is being cancelled.
    made: bool = False
    cancelled: bool = False


class Creations:
    """Of one process. `Runtime.actors.creations`."""

    def __init__(self, runtime: Runtime, client: ActorClient) -> None:
        self._runtime = runtime
        self._client = client
        #: Actors of ours. The creating thread adds; the loop removes.
        self._created: dict[bytes, Created] = {}
        #: Creation's seq → the actor.
        self._creations: dict[int, Created] = {}
        runtime.handlers[m.ActorPlaced] = self._on_placed

    # --- creating: any thread --------------------------------------------------------------------------

    def create(
        self, spec: m.ActorSpec, creation: m.Creation, prepared: Prepared | None, held: list[ObjectRef[Any]]
    ) -> tuple[bytes, bytes, bytes, ObjectRef[Any] | None]:
        """Register an actor and have it made: (actor id, meta, creator, reference that keeps it alive or None).

        `creation` lacks payload and arguments, which `prepared` has; `held`: references that the class closes over.
        The result is about an older actor if ``spec.get_if_exists`` and there is one (then the reference is None).
        Raises ActorAlreadyExistsError if the name is taken.
        """
        runtime = self._runtime
        runtime.check_usable()
        if prepared is not None:
            creation = msgspec.structs.replace(creation, payload=prepared.payload)
        reference: ObjectRef[Any] | None = None
        callee = self._client.callee(spec.actor, b"" if spec.detached else runtime.process)
        callee.class_name = spec.class_name
        callee.watched = not spec.detached  # The head tells the creator without being asked.
        if not spec.detached:
            life = Entry(
                runtime.origin, next(runtime.sequence) << 32, ready=True, blob=NONE_BLOB, task=Life(spec.actor)
            )
            created = Created(
                spec.actor,
                next(runtime.sequence),
                creation,
                spec.max_restarts != 0,
                (prepared.arguments if prepared is not None else None) or [],
                [*held, *((prepared.held if prepared is not None else None) or [])],
                life,
            )
            if runtime.kind == "worker":
                created.parent = runtime.current_work()
            spec.waiting = any(not ref._entry.ready for _where, ref in created.arguments)
            self._created[spec.actor] = created
            self._creations[created.seq] = created
            reference = runtime.make_ref(life)
            if spec.waiting:
                runtime.call_soon(lambda: self._await_arguments(created))
        if spec.name or spec.detached:
            answer = self._register_named(spec)
            if answer is not None:
                return answer
        else:
            runtime.node.send(m.RegisterActor(0, spec))
        return spec.actor, spec.meta, callee.creator, reference

    def _register_named(self, spec: m.ActorSpec) -> tuple[bytes, bytes, bytes, None] | None:
        """Ask the head; an answer that is about another actor, if there is one of this name."""

        def undo(answer: Any) -> None:
            if isinstance(answer, m.ActorRegistered) and answer.actor == spec.actor:
                self._runtime.node.send(m.KillActor(spec.actor, True))

        answer = self._runtime.ask(lambda number: m.RegisterActor(number, spec), undo)
        if answer.actor == spec.actor:
            return None
        self.forget(spec.actor)
        self._client.forget(spec.actor)
        if not answer.actor:
            raise exceptions.ActorAlreadyExistsError(
                f"{answer.reason}: the name {spec.name!r} is already taken. Choose another one, or pass "
                "get_if_exists=True for a handle of the actor that has it"
            )
        return answer.actor, answer.meta, answer.creator, None

    def forget(self, actor: bytes) -> Created | None:
        created = self._created.pop(actor, None)
        if created is not None:
            self._creations.pop(created.seq, None)
        return created

    def any_alive(self) -> bool:
        """Whether actors of ours are not dead for good."""
        return bool(self._created)

    # --- the loop -----------------------------------------------------------------------------------------

    def _await_arguments(self, created: Created) -> None:
        """Its place is asked for when its arguments are there: it would hold what their tasks may need."""
        missing = [ref._entry for _where, ref in created.arguments if not ref._entry.ready]
        created.waiting = len(missing)

        def arrived() -> None:
            created.waiting -= 1
            if not created.waiting:
                self._runtime.node.send(m.PlaceActor(created.actor))

        for entry in missing:
            if self._runtime.values.subscribe(entry, arrived):
                arrived()
        if not missing:
            self._runtime.node.send(m.PlaceActor(created.actor))

    def _on_placed(self, _connection: Connection, message: m.ActorPlaced) -> None:
        """A process for an actor of ours: send it what makes the instance."""
        created = self._created.get(message.actor)
        if created is None:
            return
        runtime = self._runtime
        arguments, failed = resolve(created.arguments, self._runtime.values.places)
        if failed is not None:
            failed._entry.seen = True
            error = self._constructor_failed(created, failed)
            runtime.node.send(m.ActorStarted(message.actor, message.incarnation, error))
            return
        creation = msgspec.structs.replace(created.creation, arguments=arguments)
        peer = runtime.peer(message.process, message.address, message.pid)
        start = m.StartActor(
            message.actor, message.incarnation, created.seq, creation, runtime.process, message.devices
        )
        created.placed = peer, start
        runtime.send(peer, start)  # If it cannot be reached it is dead, which the head will see.
        if created.cancelled:
            self._send_cancel(created)  # The process that was told of it has died.

    def connection_closed(self, peer: Peer) -> None:
        """With the connection to a process that is to be an actor of ours, what it was told may be lost, or its answer:
        again. One that is it already answers again."""
        if peer.dead is not None or self._runtime.closing:
            return
        for created in list(self._created.values()):
            if created.placed is not None and created.placed[0] is peer:
                self._runtime.reactor.call_later(_AGAIN_S, partial(self._start_again, created, peer))

    def _start_again(self, created: Created, peer: Peer) -> None:
        if created.placed is not None and created.placed[0] is peer and peer.dead is None:
            start = msgspec.structs.replace(created.placed[1], told=created.placed[1].told + 1)
            created.placed = peer, start
            self._runtime.send(peer, start)
            if created.cancelled:
                self._send_cancel(created)

    def cancel_children(self, work: Any) -> None:
        """`work` is cancelled, and with it the constructors of the actors that it created: those that have not begun
        never will. An actor that is there stays, as long as anybody has a handle."""
        for created in list(self._created.values()):
            if created.parent is work and not created.made and not created.cancelled:
                created.cancelled = True
                if created.placed is None:
                    self._runtime.node.send(m.KillActor(created.actor, True))
                else:
                    self._send_cancel(created)

    def _send_cancel(self, created: Created) -> None:
        if created.placed is not None:
            self._runtime.send(created.placed[0], m.CancelTask(created.seq, 0, False, True))

    def _constructor_failed(self, created: Created, failed: ObjectRef[Any]) -> bytes:
        """The error of an actor whose constructor got an argument that is an error."""
        return failed._entry.blob or dump_error(
            exceptions.ObjectLostError(f"an argument of {created.creation.class_name}() is lost")
        )

    def constructed(self, peer: Peer, result: m.Result) -> None:
        """The constructor of an actor of ours has returned: its arguments are needed no more, unless for a restart."""
        self._runtime.references.unwanted(peer, result)  # The head's word has the error itself.
        created = self._creations.get(result.seq)
        if created is None:
            return
        created.placed, created.parent, created.made = None, None, True
        if not created.restartable:
            self._creations.pop(created.seq, None)
            created.arguments, created.held = [], []
            created.creation = m.Creation(created.creation.class_name, b"", b"")
