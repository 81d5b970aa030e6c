"""Actors that one simulated process has created (the counterpart of moray.runtime.creations)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray.protocol import messages as m
from tests.simulation.objects import Entry, Life, Ref, Value, dump
from tests.simulation.submission import resolve
from tests.simulation.user_code import Code

if TYPE_CHECKING:
    from tests.simulation.actors import ActorClient
    from tests.simulation.network import End
    from tests.simulation.process import Peer, Process


#: As in moray.runtime.creations.
_AGAIN_S: Final = 0.01


class Created(msgspec.Struct, eq=False):
    """An actor of ours that is not dead for good."""

    actor: bytes
    seq: int
    creation: m.Creation
    restartable: bool
    #: Top-level references; all that are held as long as an instance may have to be made.
    arguments: list[Ref]
    held: list[Ref]
    waiting: int = 0
    #: The process that is to become it, and what it was told, until it is known to have been.
    placed: Any = None

    def drop(self) -> None:
        held, self.held, self.arguments = self.held, [], []
        for ref in held:
            ref.drop()


class Creations:
    """Of one process."""

    def __init__(self, process: Process, client: ActorClient) -> None:
        self._process = process
        self._client = client
        self.created: dict[bytes, Created] = {}
        #: Creation's seq → the actor.
        self._creations: dict[int, Created] = {}

    def create(
        self, spec: m.ActorSpec, creation: m.Creation, life: bytes, arguments: list[Ref], held: list[Ref]
    ) -> Code[tuple[bytes, Ref | None]]:
        """Register an actor and have it made: its meta (an older one's with get_if_exists; b"": the name is taken) and
        the reference that keeps it alive, held once. `life`: the id of the hidden object; b"" if it is detached."""
        process = self._process
        reference: Ref | None = None
        callee = self._client.callee(spec.actor, b"" if spec.detached else process.name, not creation.unordered)
        callee.watched = not spec.detached
        if not spec.detached:
            entry = Entry(life)
            entry.ready, entry.blob, entry.task = True, dump(Value(process.oracle.next_mark())), Life(spec.actor)
            process.oracle.made(process, entry, [])
            seq = process.next_seq()
            created = Created(spec.actor, seq, creation, spec.max_restarts != 0, arguments, [r.hold() for r in held])
            spec.waiting = any(not ref.entry.ready for ref in arguments)
            self.created[spec.actor] = self._creations[seq] = created
            reference = process.make_ref(entry).hold()
            if spec.waiting:
                process.later(0.0, lambda: self._await_arguments(created))
        if not (spec.name or spec.detached):
            process.node.send(m.RegisterActor(0, spec))
            return spec.meta, reference
        answer = yield from process.ask(lambda number: m.RegisterActor(number, spec))
        if answer.actor == spec.actor:
            return spec.meta, reference
        self.forget(spec.actor)
        self._client.callees.pop(spec.actor, None)
        if reference is not None:
            reference.drop()
        return answer.meta, None

    def forget(self, actor: bytes) -> None:
        created = self.created.pop(actor, None)
        if created is not None:
            self._creations.pop(created.seq, None)
            created.drop()

    def any_alive(self) -> bool:
        """Whether actors of ours are not dead for good."""
        return bool(self.created)

    # --- the loop -----------------------------------------------------------------------------------------

    def _await_arguments(self, created: Created) -> None:
        """Its place is asked for when its arguments are there."""
        missing = [ref.entry for ref in created.arguments if not ref.entry.ready]
        created.waiting = len(missing)

        def arrived() -> None:
            created.waiting -= 1
            if not created.waiting:
                self._process.node.send(m.PlaceActor(created.actor))

        for entry in missing:
            self._process.values.subscribe(entry, arrived)
        if not missing:
            self._process.node.send(m.PlaceActor(created.actor))

    def on_placed(self, _connection: End, message: m.ActorPlaced) -> None:
        """A process for an actor of ours: send it what makes the instance."""
        created = self.created.get(message.actor)
        if created is None:
            return
        process = self._process
        arguments = resolve(created)
        if arguments is None:
            error = dump(Value(0, error="constructor: argument failed"))
            process.node.send(m.ActorStarted(message.actor, message.incarnation, error))
            return
        creation = msgspec.structs.replace(created.creation, arguments=arguments)
        start: Any = m.StartActor(
            message.actor, message.incarnation, created.seq, creation, process.name, message.devices
        )
        peer = process.peer(message.process)
        created.placed = peer, start
        process.send(peer, start)

    def connection_closed(self, peer: Peer) -> None:
        """What a process that is to be an actor of ours was told may be lost: again."""
        if peer.dead:
            return
        for created in self.created.values():
            if created.placed is not None and created.placed[0] is peer:
                self._process.later(_AGAIN_S, partial(self._start_again, created, peer))

    def _start_again(self, created: Created, peer: Peer) -> None:
        if created.placed is not None and created.placed[0] is peer and not peer.dead:
            self._process.send(peer, created.placed[1])

    def constructed(self, peer: Peer, result: m.Result) -> None:
        """The constructor of an actor of ours has returned."""
        self._process.references.unwanted(peer, result)
        created = self._creations.get(result.seq)
        if created is not None:
            created.placed = None
        if created is not None and not created.restartable:
            self._creations.pop(created.seq, None)
            created.drop()
            created.creation = m.Creation(created.creation.class_name, b"", b"")
