"""Actors in a cluster: the same service as in a local session's node, with nodes for hands.

:class:`~moray.node.actors.Actors` carries out what the table decides. Here its workers come from the node that the
cluster's scheduler chooses (:class:`Places`), and clients are reached through their nodes. What changes in the table is
stored with what led to it; a head that starts anew restores the table, and asks again for what waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from moray.core.actor_actions import Registration, Site
from moray.core.actor_records import ActorRecord, EarlyRecord, RecordedActorTable
from moray.core.actor_tombstones import Tombstone
from moray.core.cluster_scheduler import Demand
from moray.head.leaving import no_room
from moray.head.storage import Storage
from moray.ids import tag_of
from moray.node.actors import Actors
from moray.node.logs import log
from moray.protocol import messages as m
from moray.protocol.reactor import Timer

if TYPE_CHECKING:
    from moray.head.head import Head

#: Actor → Registration, which never changes and may be large; → _Living; → _Dead. Key b"" of the last: EarlyRecord.
_MADE: Final = "actors_made"
_LIVING: Final = "actors_living"
_DEAD: Final = "actors_dead"
_EARLY: Final = "actors_early"

#: How often it is looked whether actors that wait at a full node had better wait elsewhere.
_RECONSIDER_S: Final = 1.0
#: Of how many at once.
_RECONSIDERED: Final = 1000
#: Dead processes that are remembered, for watchers of actors that they never came to register.
_DEAD_PROCESSES: Final = 100_000


class _Living(msgspec.Struct, array_like=True):
    record: ActorRecord
    #: Its own job, if it is detached; 0: it has none.
    job: int
    #: The node that was asked for a worker; b"": none was, or it has answered.
    asked: bytes


class _Dead(msgspec.Struct, array_like=True):
    #: Rises: later deaths have larger ones.
    order: int
    stone: Tombstone


class Caller:
    """A client that has said something through its node."""

    __slots__ = ("_head", "job", "pid", "process")

    def __init__(self, head: Head, process: bytes, pid: int, job: int) -> None:
        self._head = head
        self.process = process
        self.pid = pid
        self.job = job

    def send(self, message: m.Message) -> None:
        self._head.send(self.process, message)


class HeadClients:
    """Clients by way of their nodes."""

    def __init__(self, head: Head) -> None:
        self._head = head
        #: Processes that their nodes said are dead, oldest first.
        self._dead: dict[bytes, None] = {}

    def get(self, process: bytes) -> object | None:
        """None: it is dead."""
        if process in self._dead:
            return None
        return self._head.peers.of_tag(tag_of(process))

    def send(self, process: bytes, message: m.Message) -> None:
        self._head.send(process, message)

    def send_all(self, processes: Iterable[bytes], message: m.Message) -> None:
        self._head.send_all(processes, message)

    def died(self, process: bytes) -> None:
        """Its node says so."""
        self._dead[process] = None
        if len(self._dead) > _DEAD_PROCESSES:
            del self._dead[next(iter(self._dead))]


class HeadWorkers:
    """Ends processes by way of their nodes."""

    def __init__(self, head: Head, grace_s: float) -> None:
        self._head = head
        self._grace_s = grace_s

    def stop(self, process: bytes, reason: str, graceful: bool) -> None:
        """Ask its node; nothing if that is dead."""
        self._head.tell(tag_of(process), m.StopProcess(process, reason, graceful, self._grace_s if graceful else 0.0))


class _Wish:
    """An incarnation that wants a worker."""

    __slots__ = ("asked", "incarnation", "job", "made", "refused")

    def __init__(self, made: Registration, job: int, incarnation: int, asked: bytes = b"") -> None:
        self.made = made
        self.job = job
        self.incarnation = incarnation
        #: The node that was asked; b"": none can serve it now.
        self.asked = asked
        #: Why none can, as the table was told.
        self.refused = ""


class Places:
    """Finds workers for actors on the cluster's nodes.

    A node is asked for one worker and grants it when it has room. If it is full and another has room, the wish moves;
    should both grant, the table stops the second worker (ACTORS-5).
    """

    def __init__(self, head: Head, on_changed: Callable[[bytes], None], on_refused: Callable[..., None]) -> None:
        self._head = head
        self._on_changed = on_changed
        self._on_refused = on_refused
        self._wishes: dict[bytes, _Wish] = {}
        #: As of the view's layout that they were last tried with.
        self._layout = -1
        self._timer: Timer | None = None

    def ask(self, made: Registration, job: int, incarnation: int) -> None:
        """An incarnation wants a worker."""
        self._wishes[made.actor] = wish = _Wish(made, job, incarnation)
        self._decide(wish)

    def withdraw(self, made: Registration, _job: int, incarnation: int) -> None:
        """It does not any more."""
        wish = self._wishes.get(made.actor)
        if wish is not None and wish.incarnation == incarnation:
            self._drop(wish)
            self._tell(wish, 0)

    def placed(self, actor: bytes, incarnation: int, process: bytes) -> None:
        """A node has given it a worker."""
        wish = self._wishes.get(actor)
        if wish is None or wish.incarnation != incarnation:
            return
        node = self._head.peers.of_tag(tag_of(process))
        if node is not None:
            self._head.members.view.granted(actor, node.node_id, monotonic())
        if wish.asked != tag_of(process):
            self._tell(wish, 0)  # It had moved on; the other node need not.
        self._drop(wish)

    def restore(self, made: Registration, job: int, incarnation: int, asked: bytes) -> None:
        """What the last head had asked for, and of which node."""
        self._wishes[made.actor] = _Wish(made, job, incarnation, asked)

    def resume(self) -> None:
        """All parts are restored: ask for what nobody was asked for."""
        for wish in list(self._wishes.values()):
            if not wish.asked:
                self._decide(wish)
        self._look_later()

    def asked(self, actor: bytes) -> bytes:
        """The tag of the node that was asked for a worker."""
        wish = self._wishes.get(actor)
        return b"" if wish is None else wish.asked

    def asks(self, actor: bytes) -> bool:
        """Whether a worker is wanted for it."""
        return actor in self._wishes

    def node_died(self, tag: bytes) -> None:
        """What was asked of it is asked of others: nothing of ours was started there yet, as far as anybody knows.

        A worker that it had given, and did not come to tell of, knows of no actor.
        """
        for wish in list(self._wishes.values()):
            if wish.asked == tag:
                wish.asked = b""
                self._decide(wish)

    def view_changed(self) -> None:
        """Nodes have joined or are different: what nobody could serve is tried again."""
        if self._layout == self._head.members.view.layout:
            return
        self._layout = self._head.members.view.layout
        for wish in list(self._wishes.values()):
            if not wish.asked:
                self._decide(wish)

    def _decide(self, wish: _Wish) -> None:
        made, members = wish.made, self._head.members
        demand = Demand(made.actor, made.resources, 1, made.strategy, placement=made.placement)
        choice = members.scheduler.decide(demand, members.pick, monotonic())
        node_id, reason = choice.now[0][0] if choice.now else choice.rest, choice.reason
        if reason and (home := self._head.groups.home(made.resources)) is not None:
            # Its bundles are being reserved, or their node will say with its next report that it has them.
            node_id, reason = home, ""
        asked = tag_of(node_id)
        if reason != wish.refused:
            wish.refused = reason
            if reason:
                self._on_refused(made.actor, wish.incarnation, reason, True)
        if asked == wish.asked:
            return
        if wish.asked:
            self._tell(wish, 0)
        wish.asked = asked
        self._on_changed(made.actor)
        if asked:
            self._tell(wish, 1)
            self._look_later()

    def _tell(self, wish: _Wish, count: int) -> None:
        made, job = wish.made, self._head.jobs.get(wish.job)
        if not wish.asked:
            return
        place = m.PlaceWorker(
            made.actor,
            wish.incarnation,
            wish.job,
            count,
            made.resources,
            made.placement,
            made.runtime_env,
            made.label,
            job.config if made.detached and count and job is not None else b"",
        )
        self._head.tell(wish.asked, place)

    def _drop(self, wish: _Wish) -> None:
        del self._wishes[wish.made.actor]
        self._head.members.view.release(wish.made.actor)
        self._on_changed(wish.made.actor)

    def _look_later(self) -> None:
        if self._timer is None and self._wishes:
            self._timer = self._head.reactor.call_later(_RECONSIDER_S, self._reconsider)

    def _reconsider(self) -> None:
        self._timer = None
        for actor, wish in list(islice(self._wishes.items(), _RECONSIDERED)):
            self._wishes[actor] = self._wishes.pop(actor)  # Others have their turn next time.
            self._decide(wish)
        self._look_later()


class HeadActors:
    """The service, with its storage."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self.table = RecordedActorTable()
        self._clients = HeadClients(head)
        #: Actors whose rows are to be written.
        self._changed: set[bytes] = set()
        #: Actors whose registrations are stored; the early words that are.
        self._stored: set[bytes] = set()
        self._early = EarlyRecord()
        self._deaths = 0
        #: Actors that were told to move, for which a place may be booked → the deadline that they were told.
        self._leaving: dict[bytes, float] = {}
        self._places = Places(head, self._changed.add, self._refused)
        workers = HeadWorkers(head, head.config.actor_stop_grace_s)
        self._actors = Actors(self._clients, self._places, workers, head.reactor, head, self.table)
        head.add_handlers(self._actors.handlers)
        head.services[m.WorkerPlaced] = self._on_placed
        head.services[m.WorkerRefused] = self._on_worker_refused
        head.services[m.ProcessDied] = self._on_died
        head.services[m.ActorMoved] = self._on_moved
        head.commits.gatherers.append(self._gather)

    # --- what happens elsewhere in the cluster --------------------------------------------------------------

    def driver_left(self, process: bytes, job: int) -> None:
        """A job has ended."""
        self._clients.died(process)
        self._head.groups.process_died(process)
        self._actors.driver_left(process, job)

    def group_removed(self, group: str, reason: str) -> None:
        """A placement group is gone."""
        self._actors.group_removed(group, reason)

    def view_changed(self) -> None:
        """Nodes have joined, or told how they stand."""
        self._places.view_changed()

    def node_died(self, tag: bytes, drained: str = "") -> None:
        """A node is dead. What it had created ends; what lives there is lost when nothing of it can start any more.

        `drained`: it was leaving, and why: the restarts of what was there do not count.
        """
        homes = {process for _incarnation, process in self.table.placed_on(tag).values()}
        if drained:
            for process in homes:
                self.table.drained(process, drained)
        for process in self.table.processes_of(tag) - homes:
            self._actors.process_left(process)
        self._places.node_died(tag)

    def node_released(self, tag: bytes, reason: str) -> None:
        """Nothing of a dead node can start any more (FENCE)."""
        for process in self.table.processes_of(tag):
            self._actors.worker_died(process, reason, "")

    def fenced_of(self, hello: m.NodeHello) -> list[tuple[bytes, int]]:
        """Which of the actors that a node says it has are not, or no longer, there."""
        here = self.table.placed_on(tag_of(hello.info.node_id))
        return [
            (actor, incarnation)
            for actor, incarnation, process, _pid, _address, _job in hello.actors
            if here.get(actor) != (incarnation, process) and not self._wanted(actor, incarnation)
        ]

    def _wanted(self, actor: bytes, incarnation: int) -> bool:
        """Whether the node may have a worker for it of which its word is still under way."""
        return self.table.is_waiting(actor, incarnation)

    def _on_placed(self, _process: bytes, _pid: int, _job: int, placed: m.WorkerPlaced) -> None:
        if (other := self.table.lives_in(placed.process)) not in (b"", placed.actor):
            # A process is one actor (ACTORS-1); the wish stands.
            text = f"process {placed.process.hex()} was given to actor {placed.actor.hex()}, and is {other.hex()}"
            log(text)
            self._head.events.add("error", text)
            return
        self._places.placed(placed.actor, placed.incarnation, placed.process)
        site = Site(placed.process, placed.pid, placed.address, placed.job, placed.devices)
        self._actors.placed_at(placed.actor, placed.incarnation, site)

    def _on_worker_refused(self, _process: bytes, _pid: int, _job: int, refused: m.WorkerRefused) -> None:
        self._refused(refused.actor, refused.incarnation, refused.reason, refused.infeasible)

    def _refused(self, actor: bytes, incarnation: int, reason: str, infeasible: bool) -> None:
        self._actors.not_placed(actor, incarnation, reason, infeasible)

    def _on_died(self, _process: bytes, _pid: int, _job: int, died: m.ProcessDied) -> None:
        self._clients.died(died.process)
        self._head.groups.process_died(died.process)
        if died.drained:
            self.table.drained(died.process, died.reason)
        self._actors.worker_died(died.process, died.reason, died.stderr)

    # --- nodes that leave -----------------------------------------------------------------------------------

    def move_from(self, tag: bytes, reason: str, deadline: float, last: bool) -> list[str]:
        """Have actors of a node that leaves live elsewhere, those for which there is room; the others, and why not.
        `last`: they end there in any case, so all of them are told, that what they have not begun is not lost."""
        members, stuck = self._head.members, []
        for actor in self.table.moving(tag):
            if self._leaving.get(actor) != deadline:
                self._tell_to_move(actor, reason, deadline)  # There is another deadline, or another head.
        for made in self.table.movable(tag):
            demand = Demand(made.actor, made.resources, 1, made.strategy, placement=made.placement)
            choice = members.scheduler.decide(demand, members.pick, monotonic())
            if not choice.now:
                members.view.release(made.actor)
                stuck.append(f"actor {made.label}: {choice.reason or no_room(members.view, demand)}")
            if choice.now or last:
                # What is booked stays so until the next incarnation asks for its place.
                self._tell_to_move(made.actor, reason, deadline)
        return stuck

    def _tell_to_move(self, actor: bytes, reason: str, deadline: float) -> None:
        self._leaving[actor] = deadline
        self._actors.move(self.table.move(actor, reason, deadline))

    def forget_moves(self) -> bool:
        """Give back what is booked for actors that have ended instead of asking for a place; whether some still may."""
        for actor in [actor for actor in self._leaving if not self.table.is_moving(actor)]:
            del self._leaving[actor]
            if not self._places.asks(actor):
                self._head.members.view.release(actor)
        return bool(self._leaving)

    def _on_moved(self, process: bytes, _pid: int, _job: int, moved: m.ActorMoved) -> None:
        self._actors.move(self.table.moved(process, moved.actor, moved.incarnation, moved.begun))

    # --- storage --------------------------------------------------------------------------------------------

    def load(self, storage: Storage) -> None:
        """Be the table that was stored."""
        made = {key: msgspec.msgpack.decode(value, type=Registration) for key, value in storage.scan(_MADE)}
        rows = {key: msgspec.msgpack.decode(value, type=_Living) for key, value in storage.scan(_LIVING)}
        dead = [msgspec.msgpack.decode(value, type=_Dead) for _key, value in storage.scan(_DEAD)]
        dead.sort(key=lambda row: row.order)
        early = storage.get(_EARLY, b"")
        if early is not None:
            self._early = msgspec.msgpack.decode(early, type=EarlyRecord)
        self._stored = set(made)
        self._deaths = dead[-1].order if dead else 0
        waiting = self.table.restore(
            [(made[actor], row.record) for actor, row in rows.items()], [row.stone for row in dead], self._early
        )
        self._actors.detached.update({actor: row.job for actor, row in rows.items() if row.job})
        for registration, incarnation in waiting:
            row = rows[registration.actor]
            self._places.restore(registration, row.job or registration.job, incarnation, row.asked)
        self._changed.update(row.stone.actor for row in dead if self.table.tombstone(row.stone.actor) is None)

    def resume(self) -> None:
        """When all parts are restored."""
        self._places.resume()

    def _gather(self) -> None:
        """A batch closes: store what it has changed."""
        changed = self.table.take_changed() | self._changed
        if not changed:
            return
        self._changed.clear()
        write, encode = self._head.commits.write, msgspec.msgpack.encode
        for actor in changed:
            made, record, stone = self.table.registration(actor), self.table.record(actor), self.table.tombstone(actor)
            if made is None or record is None:
                if actor in self._stored:
                    self._stored.discard(actor)
                    write(_MADE, actor, None)
                write(_LIVING, actor, None)
            else:
                if actor not in self._stored:
                    self._stored.add(actor)
                    write(_MADE, actor, encode(made))
                row = _Living(record, self._actors.detached.get(actor, 0), self._places.asked(actor))
                write(_LIVING, actor, encode(row))
            if stone is not None:
                self._deaths += 1
            write(_DEAD, actor, None if stone is None else encode(_Dead(self._deaths, stone)))
        early = self.table.early()
        if early != self._early:
            self._early = early
            write(_EARLY, b"", encode(early))
