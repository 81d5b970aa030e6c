"""The distributed reference protocol: which objects live, and how processes agree on it.

One :class:`References` per process, used by one thread. It carries REF-FREE, REF-COVER, REF-SEND and REF-EPOCH.

**Owner.** An object lives while its entry has a local reference or a hold (REF-FREE). Other processes' registrations
are holds, kept per peer with the epoch that each carried. An object whose id never left the process is in no
table here. What a freed object contains is let go iteratively.

**Borrower.** A reference arrives under a *cover* (REF-COVER): the task whose arguments it came in, or the
container it was unpickled from. Under a container it registers with its owner at the next flush, and holds the
container until that is acknowledged. Under a task it waits: most are dropped before the task ends and cost
no message. What is still held then is registered: with the submitter by the reply itself (`depart`: one step
ends the task's hold and begins the registration), with any other owner before the reply may go. The last drop
releases, with the epoch, which no later registration uses again (REF-EPOCH).

**Values on their way to a task's submitter** (REF-SEND). Each reply with references in it is a numbered *hand-over*.
For each reference in it:

- ours: the receiver is promised it in our own table, in the step that makes the reply;
- the receiver's own: we keep our hold, which is registered or covered by the task itself, until it says `accepted`;
- a third process's: the receiver is promised it there, acknowledged before the reply may go.

A promise (`provisional`) is apart from the receiver's own registrations, so that no release of an older
reference to the same object can end it. The receiver's request that registers its new hold also
*consumes* the promise, in one step. When a sender dies, each owner asks the receivers of its
promises which hand-overs arrived; a receiver answers when it knows of the death itself, and so has seen all
that the dead one sent. What did not arrive is taken back (`settle`, `settled`).

**The wire.** What accumulates for a peer goes out as one :class:`Changes` per flush, numbered, repeated after
reconnects, carried out exactly once in any order (:mod:`moray.core.references_peer`).

**Death.** `process_died` says that a process is gone *and* that everything it sent here was handled. Its
registrations and promises end; entries that it owned are lost. What it alone covered is registered as fast as
possible, and may be lost: its tasks are being cancelled. (An actor calls `secure` before its method starts.)

**Not covered.** Counting never frees a cycle. Only a task that is handed the reference to its own result, and returns
something that contains it, can make one out of objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from moray.core.references_peer import Outbox, Peer, Sent, new_changes
from moray.core.references_types import (
    Changes,
    Entry,
    Foreign,
    Gate,
    Output,
    Owned,
    Registration,
    Reply,
    TaskCover,
    key_of,
    owner_of,
)

#: So many deaths are remembered. Late traffic about a dead process comes within a few deaths of its own, or
#: from one that was stopped meanwhile. What comes later still frees nothing too early: a message to the dead fails
#: for want of a connection, which is told as its death again; at worst a hand-over of its stays held until the end.
DEAD_REMEMBERED: Final = 1 << 16

#: By a name of its own: a member of an enum is slow to look up.
REGISTERED: Final = Registration.REGISTERED

__all__ = [
    "REGISTERED",
    "Changes",
    "Entry",
    "Foreign",
    "Gate",
    "Output",
    "Owned",
    "References",
    "Registration",
    "Reply",
    "TaskCover",
]


class References:
    """References of one process. No method calls back; what must be done is in :meth:`take`."""

    def __init__(self, process: bytes, make_foreign: Callable[[bytes, bytes, int, int], Foreign] = Foreign) -> None:
        self.process = process
        #: Makes a borrowed entry from (id, owner, key, epoch).
        self._make_foreign = make_foreign
        #: Our escaped objects, by key.
        self.owned: dict[int, Owned] = {}
        #: Borrowed objects, by id.
        self.foreign: dict[bytes, Foreign] = {}
        #: Our objects that contain references, by key.
        self.containers: dict[int, Owned] = {}
        #: Other living processes that something was exchanged with.
        self.peers: dict[bytes, Peer] = {}
        #: Processes that died; their late traffic is nothing. The oldest are forgotten (see DEAD_REMEMBERED).
        self.dead: set[bytes] = set()
        self._deaths: deque[bytes] = deque()
        #: Tasks here whose arguments contained references, until their replies departed.
        self.tasks: dict[TaskCover, None] = {}
        #: Entries pinned until the process ends, once per pin.
        self.pinned: list[Entry] = []
        #: Sender that we do not know to be dead → (owner that asks, hand-over numbers).
        self.questions: dict[bytes, list[tuple[bytes, list[int]]]] = {}
        #: The last epoch given; one sequence for all objects.
        self._epoch = 0
        #: The last hand-over number given.
        self._handover = 0
        #: Peers with an outbox.
        self._dirty: dict[bytes, Peer] = {}
        self._out = Output([], [], [], [], [])

    # --- counting ---------------------------------------------------------------------------

    def drop_local(self, entries: Iterable[Entry]) -> None:
        """One local reference of each is gone."""
        dead: list[Entry] = []
        freed = self._out.freed
        for entry in entries:
            entry.local = left = entry.local - 1
            if left or entry.holds:
                continue
            if isinstance(entry, Owned) and not entry.escaped and entry.contained is None:
                entry.freed = True
                freed.append(entry)
            else:
                dead.append(entry)
        if dead:
            self._end(dead)

    def lend(self, entries: Iterable[Entry]) -> None:
        """Hold the references that a task takes with it; :meth:`unhold` ends it when the task is over for good."""
        for entry in entries:
            entry.holds += 1
            if isinstance(entry, Owned) and not entry.escaped:
                self.escape(entry)

    def unhold(self, entries: Iterable[Entry]) -> None:
        """End one hold of each."""
        dead: list[Entry] = []
        for entry in entries:
            entry.holds = left = entry.holds - 1
            if not (left or entry.local):
                dead.append(entry)
        if dead:
            self._end(dead)

    def escape(self, entry: Owned) -> None:
        """The object's id leaves the process, or may."""
        entry.escaped = True
        self.owned[entry.key] = entry

    def contain(self, container: Owned, entries: Sequence[Entry]) -> None:
        """The container's value contains these references (a put, or more of the same value)."""
        if not entries:
            return
        self.lend(entries)
        if container.contained is None:
            container.contained = []
            self.containers[container.key] = container
        container.contained.extend(entries)

    def pin_forever(self, entry: Entry) -> None:
        """The reference was pickled by code outside moray: nobody can say when its last copy goes."""
        self.lend((entry,))
        self.pinned.append(entry)

    def _end(self, dead: list[Entry]) -> None:
        """Nothing keeps these entries; nor, perhaps, what they kept."""
        while dead:
            entry = dead.pop()
            for kept in self._free(entry) if isinstance(entry, Owned) else self._release(entry):
                kept.holds = left = kept.holds - 1
                if not (left or kept.local):
                    dead.append(kept)

    def _free(self, entry: Owned) -> Sequence[Entry]:
        entry.freed = True
        if entry.escaped:
            del self.owned[entry.key]
        self._out.freed.append(entry)
        contained = entry.contained
        if contained is None:
            return ()
        entry.contained = None
        del self.containers[entry.key]
        return contained

    def _release(self, foreign: Foreign) -> Sequence[Entry]:
        del self.foreign[foreign.id]
        registration = foreign.registration
        if registration is Registration.SENT or registration is Registration.REGISTERED:
            self._box(foreign.owner).changes.release.append((foreign.key, foreign.epoch))
        foreign.registration = Registration.NONE
        covers, foreign.covers = foreign.covers, []
        return covers

    # --- references arrive --------------------------------------------------------------------

    def begin_task(self, submitter: bytes, seq: int) -> TaskCover:
        """The cover for references in the arguments of a task that starts here."""
        cover = TaskCover(submitter, seq=seq)
        self.tasks[cover] = None
        return cover

    def arrive(self, object_id: bytes, cover: TaskCover | Entry | None) -> Entry | None:
        """A reference was unpickled here: one more local reference. None: it was ours and is gone."""
        owner = owner_of(object_id)
        if owner == self.process:
            own = self.owned.get(key_of(object_id))
            if own is not None:
                own.local += 1
            return own
        foreign = self.foreign.get(object_id) or self._borrow(object_id, owner)
        foreign.local += 1
        if foreign.registration < Registration.REGISTERED:
            self._cover(foreign, cover)
        return foreign

    def again(self, registered: Iterable[Foreign]) -> None:
        """References that are REGISTERED were unpickled once more: the short way of :meth:`arrive`."""
        for foreign in registered:
            foreign.local += 1

    def _borrow(self, object_id: bytes, owner: bytes) -> Foreign:
        self._epoch += 1
        foreign = self._make_foreign(object_id, owner, key_of(object_id), self._epoch)
        self.foreign[object_id] = foreign
        if owner in self.dead:
            self._lose(foreign)
        return foreign

    def _cover(self, foreign: Foreign, cover: TaskCover | Entry | None) -> None:
        """Note what keeps an arriving reference alive until its owner knows of us (REF-COVER)."""
        if isinstance(cover, TaskCover):
            cover.refs[foreign] = None
            if not (cover.finished or cover.submitter in self.dead):
                return
        elif isinstance(cover, Owned) and foreign.holds:
            return  # our own container holds it already, and is no better covered itself
        elif cover is not None and cover not in foreign.covers:
            cover.holds += 1
            foreign.covers.append(cover)
        self._queue(foreign)

    def _queue(self, foreign: Foreign) -> None:
        """Register with the owner at the next flush, unless that has begun."""
        if foreign.registration is Registration.NONE:
            foreign.registration = Registration.QUEUED
            self._box(foreign.owner).registering.append(foreign)

    def secure(self, cover: TaskCover) -> None:
        """Register now what the submitter does not own; the cover is in ``Output.ready`` once it is done (REF-SEND)."""
        for foreign in cover.refs:
            if foreign.owner != cover.submitter:
                self._await(foreign, cover)
        if not cover.waits:
            self._out.ready.append(cover)

    def _await(self, foreign: Foreign, gate: Gate) -> None:
        """Let the gate wait for the registration of a living entry."""
        if not (foreign.local or foreign.holds):
            return
        self._queue(foreign)
        if foreign.registration is Registration.QUEUED:
            self._box(foreign.owner).gates.append(gate)
        elif foreign.registration is Registration.SENT:
            self.peers[foreign.owner].unacked[foreign.request].gates.append(gate)
        else:
            return
        gate.waits += 1

    # --- values leave ---------------------------------------------------------------------------

    def finish_task(self, submitter: bytes, contained: Iterable[Entry], cover: TaskCover | None = None) -> Reply:
        """The task's value is ready to go, with these references in it; its reply may go when in ``Output.ready``.

        `cover` is left out for an item of a stream, which does not end its task.
        """
        reply = Reply(submitter, cover=cover)
        if submitter in self.dead:
            self._forget_task(cover)
            return reply
        if cover is not None:
            cover.finished = True
            for foreign in cover.refs:
                if foreign.owner != submitter:
                    self._await(foreign, reply)
        self._hand_over(reply, {id(entry): entry for entry in contained}.values())
        if not reply.waits:
            self._out.ready.append(reply)
        return reply

    def _hand_over(self, reply: Reply, contained: Iterable[Entry]) -> None:
        """Keep what the reply contains alive until the receiver has it (REF-SEND)."""
        promised: dict[bytes, list[Entry]] = {}
        for entry in contained:
            owner = self.process if isinstance(entry, Owned) else entry.owner
            if owner not in self.dead:
                promised.setdefault(owner, []).append(entry)
        if not promised:
            return
        self._handover = reply.handover = self._handover + 1
        for owner, entries in promised.items():
            self.lend(entries)
            keys = [entry.key for entry in entries]
            if owner == self.process:
                self._peer(reply.submitter).provisional[self.process, reply.handover] = keys
            elif owner == reply.submitter:
                self._peer(owner).transit[reply.handover] = entries
                self._secure_transit(reply, entries)
            else:
                box = self._box(owner)
                box.changes.provisional.append((reply.submitter, reply.handover, keys))
                box.lent.extend(entry for entry in entries if isinstance(entry, Foreign))
                box.gates.append(reply)
                reply.waits += 1

    def _secure_transit(self, reply: Reply, entries: Iterable[Entry]) -> None:
        """Our hold on the receiver's own objects must mean something to the receiver until it reads the reply.

        It does for what the task itself covers, and for what is registered. What only another submitter's task
        covers could be freed when that submitter's hold ends.
        """
        for entry in entries:
            if isinstance(entry, Foreign) and (reply.cover is None or entry not in reply.cover.refs):
                self._await(entry, reply)

    def depart(self, submitter: bytes, replies: Iterable[Reply]) -> Changes | None:
        """Ready replies go out in one Results message now; the returned registrations must travel in it.

        They are references of the submitter itself that are still held here: its step that ends the holds on
        the arguments also begins these. After a reconnect they are repeated like all requests.
        """
        borrowed: dict[Foreign, None] = {}
        for reply in replies:
            if reply.cover is not None:
                borrowed |= dict.fromkeys(f for f in reply.cover.refs if f.owner == submitter and _is_unregistered(f))
                self._forget_task(reply.cover)
        if not borrowed or submitter in self.dead:
            return None
        peer = self._peer(submitter)
        for foreign in borrowed:
            foreign.registration = Registration.SENT
            foreign.request = peer.next_request
        changes = new_changes()
        changes.request = peer.next_request
        changes.register = [(foreign.key, foreign.epoch) for foreign in borrowed]
        peer.post(Sent(changes, list(borrowed), [], []))
        return changes

    def _forget_task(self, cover: TaskCover | None) -> None:
        if cover is not None:
            cover.finished = True
            self.tasks.pop(cover, None)

    def accept(self, sender: bytes, handover: int, values: Iterable[tuple[Owned | None, Sequence[bytes]]]) -> None:
        """Values arrived for objects of ours (None: not wanted any more), each with the ids that it contains.

        Call it once per hand-over that is not 0, after the registrations in the same message were received
        and before the holds on the task's arguments end.
        """
        owners: dict[bytes, None] = {}
        for container, ids in values:
            wanted = container is not None and not container.freed
            kept: list[Entry] = []
            for object_id in dict.fromkeys(ids):
                owners[owner_of(object_id)] = None
                # What is held here already is registered even if the value is unwanted: the promise that is
                # consumed may be the only thing that still keeps it.
                entry = self._received(object_id) if wanted or object_id in self.foreign else None
                if entry is not None and wanted:
                    kept.append(entry)
            if container is not None:
                self.contain(container, kept)
        for owner in owners:
            if owner == self.process == sender:
                # An actor that calls itself: the promise to ourselves is kept now.
                promised = self._peer(sender).provisional.pop((sender, handover), None)
                self.unhold([self.owned[key] for key in promised or ()])
            elif owner == self.process:
                if sender not in self.dead:
                    self._box(sender).changes.accepted.append(handover)
            elif owner not in self.dead:
                self._box(owner).changes.consume.append((sender, handover))

    def _received(self, object_id: bytes) -> Entry | None:
        """The entry for a reference inside a value of ours; its registration goes with what consumes the promise."""
        owner = owner_of(object_id)
        if owner == self.process:
            return self.owned.get(key_of(object_id))
        foreign = self.foreign.get(object_id) or self._borrow(object_id, owner)
        if foreign.registration is Registration.SENT:
            self._box(owner).registering.append(foreign)
        else:
            self._queue(foreign)
        return foreign

    # --- the other processes --------------------------------------------------------------------

    def receive(self, process: bytes, changes: Changes) -> None:
        """A request of a peer arrived, by itself or in a Results message."""
        if process in self.dead:
            return
        peer = self._peer(process)
        if peer.is_new(changes.request):
            self._carry_out(peer, changes)
            peer.mark_done(changes.request)
        lost = [key for key, _ in changes.register if key not in self.owned]
        self._out.acks.append((process, changes.request, lost))

    def _carry_out(self, peer: Peer, changes: Changes) -> None:
        owned = self.owned
        for key, epoch in changes.register:
            entry = owned.get(key)
            if entry is not None and peer.note_registered(key, epoch):
                entry.holds += 1
        for receiver, handover, keys in changes.provisional:
            self._promise(receiver, (peer.process, handover), keys)
        over: list[int] = []
        for consumed in changes.consume:
            over += peer.provisional.pop(consumed, ())
        for number in changes.accepted:
            self.unhold(peer.transit.pop(number, ()))
        for sender, numbers in changes.settle:
            if sender in self.dead:
                self._answer(peer, sender, numbers)
            else:
                self.questions.setdefault(sender, []).append((peer.process, numbers))
        for sender, numbers in changes.settled:
            for number in numbers:
                over += peer.provisional.pop((sender, number), ())
        over += [key for key, epoch in changes.release if peer.note_released(key, epoch, changes.request)]
        if over:
            self.unhold([owned[key] for key in over])

    def _promise(self, receiver: bytes, handover: tuple[bytes, int], keys: list[int]) -> None:
        kept = [key for key in keys if key in self.owned]
        if kept and receiver not in self.dead:
            for key in kept:
                self.owned[key].holds += 1
            self._peer(receiver).provisional[handover] = kept

    def _answer(self, owner: Peer, sender: bytes, numbers: list[int]) -> None:
        """Tell an owner which hand-overs of a dead sender never arrived here; of the others it hears by `consume`."""
        absent = [number for number in numbers if not owner.is_consuming((sender, number))]
        if absent:
            self._box(owner.process).changes.settled.append((sender, absent))

    def acknowledged(self, process: bytes, request: int, lost: Sequence[int]) -> None:
        """A peer has carried out our request."""
        peer = self.peers.get(process)
        sent = peer.unacked.pop(request, None) if peer is not None else None
        if sent is None:
            return
        gone = set(lost)
        for foreign in sent.registering:
            if foreign.registration is not Registration.SENT:
                continue
            if foreign.key in gone:
                self._lose(foreign)
            else:
                foreign.registration = Registration.REGISTERED
                self._uncover(foreign)
        self._settle_sent(sent)

    def _settle_sent(self, sent: Sent | Outbox) -> None:
        """The request is acknowledged, or nobody is left who could."""
        self.unhold(sent.lent)
        for gate in sent.gates:
            gate.waits -= 1
            if not gate.waits and gate.submitter not in self.dead:
                self._out.ready.append(gate)

    def _uncover(self, foreign: Foreign) -> None:
        covers, foreign.covers = foreign.covers, []
        if covers:
            self.unhold(covers)

    def _lose(self, foreign: Foreign) -> None:
        foreign.registration = Registration.LOST
        self._out.lost.append(foreign)
        self._uncover(foreign)

    def reconnected(self, process: bytes) -> None:
        """The connection to a living peer was replaced: repeat what it may not have got."""
        peer = self.peers.get(process)
        if peer is not None:
            self._out.sends += [(process, sent.changes) for sent in peer.unacked.values()]

    def process_died(self, process: bytes) -> None:
        """A process is dead, and everything that it had sent here has been handled."""
        if process in self.dead:
            return
        self.dead.add(process)
        self._deaths.append(process)
        if len(self._deaths) > DEAD_REMEMBERED:
            self.dead.discard(self._deaths.popleft())
        self._dirty.pop(process, None)
        peer = self.peers.pop(process, None)
        for foreign in [foreign for foreign in self.foreign.values() if foreign.owner == process]:
            if foreign.local or foreign.holds:  # losing one may end another that covered it
                self._lose(foreign)
        for cover in [cover for cover in self.tasks if cover.submitter == process]:
            self._orphan(cover)
        if peer is not None:
            self._end_peer(peer)
        self._ask_receivers(process)
        for owner, numbers in self.questions.pop(process, ()):
            if owner not in self.dead:
                self._answer(self._peer(owner), process, numbers)

    def _end_peer(self, peer: Peer) -> None:
        owned = self.owned
        self.unhold([owned[key] for key in peer.registered])
        for keys in peer.provisional.values():
            self.unhold([owned[key] for key in keys])
        for entries in peer.transit.values():
            self.unhold(entries)
        for sent in peer.unacked.values():
            self._settle_sent(sent)
        if peer.outbox is not None:
            self._settle_sent(peer.outbox)

    def _orphan(self, cover: TaskCover) -> None:
        """The submitter is dead and with it the cover: register what is still held, as fast as possible."""
        for foreign in cover.refs:
            if foreign.local or foreign.holds:
                self._queue(foreign)
        self._forget_task(cover)

    def _ask_receivers(self, sender: bytes) -> None:
        for receiver, peer in self.peers.items():
            numbers = [number for process, number in peer.provisional if process == sender]
            if numbers:
                self._box(receiver).changes.settle.append((sender, numbers))

    def _peer(self, process: bytes) -> Peer:
        peer = self.peers.get(process)
        if peer is None:
            peer = self.peers[process] = Peer(process)
        return peer

    def _box(self, process: bytes) -> Outbox:
        peer = self._peer(process)
        if peer.outbox is None:
            peer.outbox = Outbox()
            self._dirty[process] = peer
        return peer.outbox

    # --- what to do -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Make one request per peer of what has accumulated. Called once per turn of the shell's loop."""
        dirty, self._dirty = self._dirty, {}
        for process, peer in dirty.items():
            box, peer.outbox = peer.outbox, None
            sent = box.close(peer.next_request) if box is not None else None
            if sent is not None:
                peer.post(sent)
                self._out.sends.append((process, sent.changes))

    def take(self) -> Output:
        """Everything to do since the last call."""
        out, self._out = self._out, Output([], [], [], [], [])
        return out

    def has_borrowers(self) -> bool:
        """Whether others hold, or are promised, objects of this process (OWNER-STAYS)."""
        return any(peer.registered or peer.provisional for peer in self.peers.values())


def _is_unregistered(foreign: Foreign) -> bool:
    """A living entry of which the owner has not yet acknowledged that we hold it."""
    return foreign.registration < Registration.REGISTERED and bool(foreign.local or foreign.holds)
