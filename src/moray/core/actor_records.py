"""The table of actors as records, so that a head that is started anew goes on where the last one was (DURABLE).

:class:`RecordedActorTable` notes which actors an event may have changed; its shell stores their records with what
else the event led to, and gives them back by `restore` before anything happens. What is restored is the table as it
was after the last stored event: nothing in it is derived from time or from connections.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from moray.core.actor_actions import ActorAction, Move, Registration, Site
from moray.core.actor_state import Actor, Phase
from moray.core.actor_tombstones import Tombstone
from moray.core.actors import ActorTable
from moray.ids import TAG_BYTES, tag_of

#: Incarnations of these phases have a process.
_PLACED: Final = frozenset({Phase.PLACED, Phase.ALIVE})


class ActorRecord(msgspec.Struct, array_like=True):
    """All of a living actor but its registration, which never changes."""

    phase: str
    incarnation: int
    restarts: int
    site: Site
    failures: int
    ending: str
    killed: bool
    stopped: int
    why: str
    refused: str
    orphaned: bool
    watchers: list[bytes]
    moving: str = ""
    moved: dict[bytes, list[int]] | None = None


class EarlyRecord(msgspec.Struct, array_like=True):
    """What was said of actors whose registrations are on their way."""

    #: (creator, actor, watchers).
    watchers: list[tuple[bytes, bytes, list[bytes]]] = []
    kills: list[bytes] = []
    ready: list[tuple[bytes, bytes]] = []


class RecordedActorTable(ActorTable):
    """A table that says what to store."""

    def __init__(self) -> None:
        super().__init__()
        #: Actors that the events since `take_changed` may have changed.
        self._changed: set[bytes] = set()

    # --- what is to be stored ---------------------------------------------------------------------------

    def take_changed(self) -> set[bytes]:
        """Actors whose records are to be stored anew, or removed, and which are not asked for again."""
        changed, self._changed = self._changed, set()
        return changed

    def registration(self, actor: bytes) -> Registration | None:
        """None: it is not among the living."""
        living = self._actors.get(actor)
        return None if living is None else living.made

    def record(self, actor: bytes) -> ActorRecord | None:
        """None: it is not among the living."""
        living = self._actors.get(actor)
        if living is None:
            return None
        return ActorRecord(
            living.phase.value, living.incarnation, living.restarts, living.site, living.failures, living.ending,
            living.killed, living.stopped, living.why, living.refused, living.orphaned, list(living.watchers),
            living.moving, living.moved,
        )  # fmt: skip

    def tombstone(self, actor: bytes) -> Tombstone | None:
        """None: nothing is remembered of its death."""
        return self._dead.get(actor)

    def early(self) -> EarlyRecord:
        """What waits for registrations."""
        return EarlyRecord(
            [(who, actor, list(said)) for who, early in self._early.items() for actor, said in early.items()],
            list(self._early_kills),
            list(self._early_ready.items()),
        )

    def restore(
        self,
        living: Iterable[tuple[Registration, ActorRecord]],
        dead: Iterable[Tombstone],
        early: EarlyRecord,
    ) -> list[tuple[Registration, int]]:
        """Be the table that was stored. `dead`: oldest first. Returns the incarnations that wait for a worker."""
        for made, record in living:
            self._restore(made, record)
        for stone in dead:
            self._dead.add(stone)
        for creator, name, watchers in early.watchers:
            self._early.setdefault(creator, {})[name] = dict.fromkeys(watchers)
        self._early_kills = dict.fromkeys(early.kills)
        self._early_ready = dict(early.ready)
        return [(a.made, a.incarnation) for a in self._actors.values() if a.phase is Phase.WAITING]

    def _restore(self, made: Registration, record: ActorRecord) -> None:
        actor = self._actors[made.actor] = Actor(made)
        actor.phase = Phase(record.phase)
        actor.incarnation, actor.restarts, actor.failures = record.incarnation, record.restarts, record.failures
        actor.ending, actor.killed, actor.stopped = record.ending, record.killed, record.stopped
        actor.why, actor.refused, actor.orphaned = record.why, record.refused, record.orphaned
        actor.moving, actor.moved = record.moving, record.moved
        if actor.phase in _PLACED:
            actor.site = record.site
            self._by_process[actor.site.process] = actor
        if made.name and not actor.ending:
            self._names[made.namespace, made.name] = actor
        if not made.detached:
            self._by_creator.setdefault(made.creator, {})[made.actor] = actor
            self._by_job.setdefault(made.job, {})[made.actor] = actor
        for watcher in record.watchers:
            self._add_watcher(actor, watcher)

    # --- views --------------------------------------------------------------------------------------------

    def processes_of(self, tag: bytes) -> set[bytes]:
        """The processes of a node that the table has to do with."""
        assert len(tag) == TAG_BYTES
        early = {process for waiting in self._early.values() for said in waiting.values() for process in said}
        creators = {actor.made.creator for actor in self._actors.values()} | {*self._dead.creators()}
        known = {*self._by_process, *creators, *self._watched_by, *self._early, *early, *self._early_ready.values()}
        return {process for process in known if tag_of(process) == tag}

    def placed_on(self, tag: bytes) -> dict[bytes, tuple[int, bytes]]:
        """Actors that live on a node: their incarnation and process."""
        return {
            actor.made.actor: (actor.incarnation, process)
            for process, actor in self._by_process.items()
            if tag_of(process) == tag
        }

    def incarnation_of(self, actor: bytes) -> int | None:
        """The present one; None: it is not among the living."""
        living = self._actors.get(actor)
        return None if living is None else living.incarnation

    def lives_in(self, process: bytes) -> bytes:
        """The actor that a process is; b"": it is none."""
        living = self._by_process.get(process)
        return b"" if living is None else living.made.actor

    # --- nodes that leave -------------------------------------------------------------------------------

    def movable(self, tag: bytes) -> list[Registration]:
        """Actors on a node that could live elsewhere, and have not been told to."""
        return [
            actor.made
            for process, actor in self._by_process.items()
            if tag_of(process) == tag
            and actor.phase is Phase.ALIVE
            and actor.made.max_restarts
            and not actor.ending
            and not actor.moving
        ]

    def moving(self, tag: bytes) -> list[bytes]:
        """Actors on a node that were told to, and whose process is not dead yet."""
        return [
            actor.made.actor
            for process, actor in self._by_process.items()
            if tag_of(process) == tag and actor.moving and not actor.ending
        ]

    def is_moving(self, actor: bytes) -> bool:
        """Whether it was told to move, and its process is not dead yet."""
        living = self._actors.get(actor)
        return living is not None and bool(living.moving)

    def move(self, actor: bytes, reason: str, deadline: float) -> list[ActorAction]:
        """Its node leaves: have a `movable` one end there and live elsewhere, which is no restart that counts; or tell
        one that is `moving` of another deadline."""
        moving = self._actors[actor]
        moving.moving = reason
        self._changed.add(actor)
        self._actions.append(Move(moving.site.process, actor, moving.incarnation, reason, deadline))
        return self._done()

    def moved(self, process: bytes, actor: bytes, incarnation: int, begun: dict[bytes, list[int]]) -> list[ActorAction]:
        """The process of an actor that moves begins no more calls; `begun`: those that it may have, by caller."""
        moving = self._present(process, actor, incarnation)
        if moving is not None and moving.moving:
            self._changed.add(actor)
            moving.moved = begun
        return self._done()

    def drained(self, process: bytes, reason: str) -> None:
        """A process that may be an actor is about to be known as dead, because its node leaves or died leaving."""
        actor = self._by_process.get(process)
        if actor is not None and not actor.moving:
            self._changed.add(actor.made.actor)
            actor.moving = reason

    # --- events: what each may change -------------------------------------------------------------------

    def register(self, made: Registration, request: int) -> list[ActorAction]:
        self._changed.add(made.actor)
        return super().register(made, request)

    def ready(self, process: bytes, actor: bytes) -> list[ActorAction]:
        self._changed.add(actor)
        return super().ready(process, actor)

    def release(self, process: bytes, actor: bytes) -> list[ActorAction]:
        self._changed.add(actor)
        return super().release(process, actor)

    def granted(self, actor: bytes, incarnation: int, site: Site) -> list[ActorAction]:
        self._changed.add(actor)
        return super().granted(actor, incarnation, site)

    def refused(self, actor: bytes, incarnation: int, reason: str, infeasible: bool) -> list[ActorAction]:
        self._changed.add(actor)
        return super().refused(actor, incarnation, reason, infeasible)

    def started(self, process: bytes, actor: bytes, incarnation: int, error: bytes) -> list[ActorAction]:
        self._changed.add(actor)
        return super().started(process, actor, incarnation, error)

    def exiting(self, process: bytes, actor: bytes, incarnation: int, reason: str) -> list[ActorAction]:
        self._changed.add(actor)
        return super().exiting(process, actor, incarnation, reason)

    def worker_died(self, process: bytes, reason: str, stderr: str) -> list[ActorAction]:
        if process in self._by_process:
            self._changed.add(self._by_process[process].made.actor)
        return super().worker_died(process, reason, stderr)

    def process_died(self, process: bytes) -> list[ActorAction]:
        self._changed.update(self._by_creator.get(process, ()))
        self._changed.update(self._watched_by.get(process, ()))
        self._changed.update(self._early.get(process, ()))
        self._changed.update(self._dead.of_creator(process))
        return super().process_died(process)

    def job_ended(self, job: int) -> list[ActorAction]:
        self._changed.update(self._by_job.get(job, ()))
        return super().job_ended(job)

    def kill(self, actor: bytes, no_restart: bool) -> list[ActorAction]:
        self._changed.add(actor)
        return super().kill(actor, no_restart)

    def watch(self, process: bytes, actor: bytes, creator: bytes, creator_lives: bool) -> list[ActorAction]:
        self._changed.add(actor)
        return super().watch(process, actor, creator, creator_lives)

    def _end(self, actor: Actor, reason: str, *, graceful: bool = False) -> None:
        self._changed.add(actor.made.actor)
        super()._end(actor, reason, graceful=graceful)

    def _finish(self, actor: Actor, reason: str, error: bytes = b"") -> None:
        self._changed.add(actor.made.actor)
        super()._finish(actor, reason, error)
