"""Carries out :mod:`moray.core.references`: references in and out of this process.

User threads never call the core. They append *events* to one deque, in the order in which things happen, and the
loop books them: :class:`Arrived`, :class:`Escaped`, :class:`Contains`, :class:`Finished`, and the dead
:class:`~moray.object_ref.Alive` itself, appended by C code when an ObjectRef goes (DEL). One deque, so that an
arrival is booked before its end.

An :class:`~moray.object_ref.Entry` has a `book` (the core's entry) once anything beside its one ObjectRef matters.
For the core, an ObjectRef is the one local reference; what pending tasks and functions hold, they hold by
holding ObjectRefs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray import exceptions
from moray.core.references import REGISTERED, Changes, Foreign, Gate, Owned, References, TaskCover
from moray.error_transport import carry_outside
from moray.object_ref import Alive, Entry, ObjectRef, new_ref
from moray.object_ref_generator import Dropped
from moray.protocol import messages as m
from moray.serialization import Imported, context

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Peer, Runtime


#: An object id: (seq, process, job, index).
_ID: Final = struct.Struct(">Q12s4sI")

#: A value with so many references is read with all of them imported ahead.
MANY: Final = 8
#: So many are imported while `import_lock` is held.
AT_ONCE: Final = 100


# References inside an exception are counted like those in any other value.
carry_outside(ObjectRef)


class OwnBook(Owned, gc=False, eq=False):
    """The core's entry of an object of ours."""

    entry: Any = None


class ForeignBook(Foreign, gc=False, eq=False):
    """The core's entry of a borrowed object."""

    entry: Any = None


class TaskToken(msgspec.Struct, eq=False):
    """The cover of what is unpickled from a task's arguments (REF-COVER)."""

    submitter: bytes
    seq: int
    #: The core's cover, once something arrived. Loop only.
    core: TaskCover | None = None
    #: Something arrived: the reply must pass the core. Set by the thread that runs the task.
    touched: bool = False
    #: Some of it belongs to a third process.
    foreign: bool = False


class Arrived(msgspec.Struct, gc=False, eq=False):
    """ObjectRefs were made for ids that came in some value."""

    alives: Sequence[Alive]
    cover: Any


class Escaped(msgspec.Struct, gc=False, eq=False):
    """The id of an object of ours left, or is about to."""

    entry: Entry
    #: Pickled by the user's own code: pinned until the job ends.
    forever: bool = False


class Contains(msgspec.Struct, gc=False, eq=False):
    """A value that was put contains references."""

    entry: Entry
    refs: list[ObjectRef[Any]]


class Finished(msgspec.Struct, eq=False):
    """A task here is done, and its result or its arguments had references in them."""

    work: Any
    result: m.Result
    token: TaskToken
    contained: list[ObjectRef[Any]]


class Secured(msgspec.Struct, eq=False):
    """What came in a call's arguments shall be registered with its owners before the method starts (REF-SEND)."""

    token: TaskToken
    #: Called in the loop once it is.
    done: Callable[[], None]
    passed: bool = False


class ItemMade(msgspec.Struct, eq=False):
    """An item of a stream has references in it, and waits for its place behind the protocol (REF-SEND)."""

    submitter: bytes
    item: m.StreamItem
    contained: list[ObjectRef[Any]]
    #: Called in the loop once it may be sent.
    done: Callable[[], None]
    passed: bool = False


class _Core(References):
    """Also tells which borrowed entries ended, so that the table of entries follows."""

    ended: list[Foreign]

    def _release(self, foreign: Foreign) -> Sequence[Owned | Foreign]:
        self.ended.append(foreign)
        return super()._release(foreign)


class ReferenceShell:
    """One process's references."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: What user threads and finalizers did, oldest first; the loop drains it.
        self.events = runtime.events
        self.core = _Core(runtime.process, ForeignBook)
        self.core.ended = []
        #: By id: those that had arrived before they were their entries'. An interrupt may let go of them before their
        #: references go, whose ends nobody would hear of then (INTERRUPT). Loop only.
        self._strays: dict[int, Alive] = {}
        #: Replies that wait for acknowledgements.
        self._gated: dict[Gate, Finished | Secured | ItemMade] = {}
        runtime.handlers |= {
            m.References: self._on_references,
            m.ReferencesDone: self._on_done,
            m.Fetch: self._on_fetch,
        }

    # --- any thread ---------------------------------------------------------------------------------

    def escape(self, entry: Entry, ref: ObjectRef[Any]) -> None:
        """`ref` is being pickled: by us, into a value that will hold it, or by the user's own code."""
        contained = context.contained
        if contained is not None:
            contained.append(ref)
        if entry.origin is self._runtime.origin and entry.key not in entry.origin.entries:
            # In this order: an interrupt between the two may lead to a second event, never to none (INTERRUPT).
            self.events.append(Escaped(entry))
            entry.origin.entries[entry.key] = entry
        if contained is None:
            self.events.append(Escaped(entry, True))
            self._runtime.wake()

    def import_ref(self, binary: bytes) -> ObjectRef[Any]:
        """The reference with this id; made now if this process has none."""
        runtime = self._runtime
        cover = context.cover
        with runtime.import_lock:
            entry = self._entry_of(binary)
            before = entry.alive
            if before is not None:
                ref = before()
                if ref is not None:
                    return ref
            # make_ref(), spelled out: values may contain many references.
            ref = new_ref(ObjectRef)
            ref._entry = entry
            alive = Alive(ref, runtime.note_event)
            alive.entry = entry
            alive.counted = False
            if type(cover) is TaskToken:
                cover.touched = True
                origin = entry.origin
                if origin.process != cover.submitter and origin is not runtime.origin:
                    cover.foreign = True
            self.events.append(Arrived((alive,), cover))
            if entry.alive is not None:
                return publish(alive, ref)
            entry.alive = alive
            return ref

    def import_all(self, ids: Sequence[bytes], cover: Entry) -> Imported:
        """The references in the value of `cover`: what import_ref() does, with fewer steps for each."""
        imported = Imported()
        for start in range(0, len(ids), AT_ONCE):
            self._import_some(ids[start : start + AT_ONCE], cover, imported)
        return imported

    def _import_some(self, ids: Sequence[bytes], cover: Entry, imported: Imported) -> None:
        note = self._runtime.note_event
        foreign = self.core.foreign
        made: list[Alive] = []
        with self._runtime.import_lock:
            for binary in ids:
                if binary in imported:
                    continue
                # The short way of _entry_of(), spelled out.
                book: Any = foreign.get(binary)
                entry = book.entry if book is not None else None
                if entry is None or entry.book is not book:
                    entry = self._entry_of(binary)
                before = entry.alive
                if before is not None:
                    ref = before()
                    if ref is not None:
                        imported[binary] = ref
                        continue
                    if entry.alive is before:
                        entry.alive = None
                imported[binary] = ref = new_ref(ObjectRef)
                ref._entry = entry
                alive = Alive(ref, note)
                alive.entry = entry
                alive.counted = False
                made.append(alive)
            if not made:
                return
            self.events.append(Arrived(made, cover))
            for alive in made:
                entry = alive.entry
                if entry.alive is None:
                    entry.alive = alive
                else:
                    imported[entry.id] = publish(alive, imported[entry.id])

    def _entry_of(self, binary: bytes) -> Entry:
        """What is known of an object whose id came in some value. Under `import_lock`."""
        # The short way to most. An entry whose book ends just now has lost it, or loses it when the lock is free again.
        book: Any = self.core.foreign.get(binary)
        if book is not None and book.entry is not None and book.entry.book is book:
            found: Entry = book.entry
            return found
        runtime = self._runtime
        seq, process, job, index = _ID.unpack(binary)
        key = seq << 32 | index
        origin = runtime.origins.get(process) or runtime.origin_of(process, job)
        if origin.job != job and origin is not runtime.origin:
            # Only its process had been named so far, which may be of another job than this one.
            origin.job, origin.tail = job, process + job
        entry: Entry | None = origin.entries.get(key)
        if entry is None:
            entry = Entry(origin, key)
            if origin is runtime.origin:
                return self._gone(entry)
            entry = origin.entries.setdefault(key, entry)
        return entry

    def _gone(self, entry: Entry) -> Entry:
        """An id of ours came back that we have freed: a pickle that outlived its object."""
        from moray.runtime.values import dump_error

        error = exceptions.ObjectFreedError(f"object {entry.id.hex()} was freed: no reference was left")
        entry.blob = dump_error(error)
        entry.error = entry.ready = True
        return entry

    # --- the loop: booking ------------------------------------------------------------------------------

    def drain(self) -> None:  # noqa: C901, PLR0912 - one branch per kind of event, on a hot path.
        """Book what user threads did. Loop only; also called before anything from outside is believed."""
        events = self.events
        release = self._runtime.values.release
        strays = self._strays
        #: Ends not yet told to the core: many come together.
        ended: list[Owned | Foreign] = []
        while events:
            event = events.popleft()
            kind = type(event)
            if kind is Alive:
                if strays:
                    strays.pop(id(event), None)
                entry = event.entry
                book = entry.book
                if book is not None:
                    if event.counted:
                        if entry.alive is event:
                            entry.alive = None
                        ended.append(book)
                elif entry.alive is event:
                    entry.alive = None
                    if entry.ready or entry.size:
                        release(entry)
                continue
            if ended:
                self.core.drop_local(ended)
                ended = []
            if kind is Arrived:
                self._arrived(event)
            elif kind is Escaped:
                self._escaped(event)
            elif kind is Contains:
                container = self.book(event.entry)
                assert isinstance(container, Owned)
                self.core.contain(container, [self.book(ref._entry) for ref in event.refs])
            elif kind is Secured:
                self._secured(event)
            elif kind is ItemMade:
                self._item_made(event)
            elif kind is Dropped:
                task, event.task = event.task, None
                if task is not None:
                    self._runtime.cancels.drop_stream(task)
            else:
                self._finished(event)
        if ended:
            self.core.drop_local(ended)

    def book(self, entry: Entry) -> Owned | Foreign:
        """The core's entry; made now for an object of ours that has none."""
        book = entry.book
        if book is None:
            alive = entry.alive
            book = OwnBook(entry.key, local=1 if alive is not None else 0, entry=entry)
            if alive is not None:
                alive.counted = True
            entry.book = book
        found: Owned | Foreign = book
        return found

    def _arrived(self, event: Arrived) -> None:
        known: list[Foreign] = []
        for alive in event.alives:
            entry = alive.entry
            if entry.alive is not alive:
                self._strays[id(alive)] = alive
            book = entry.book
            if type(book) is ForeignBook and book.registration is REGISTERED:
                known.append(book)
                alive.counted = True
            else:
                self._arrived_unknown(alive, event.cover)
        self.core.again(known)

    def _arrived_unknown(self, alive: Alive, cover: Any) -> None:
        entry = alive.entry
        book = entry.book
        if type(cover) is TaskToken:
            if cover.core is None:
                cover.core = self.core.begin_task(cover.submitter, cover.seq)
            cover = cover.core
        elif cover is not None:
            cover = self.book(cover) if type(cover) is Entry and cover.book is not None else None
        if isinstance(book, Owned) and book.freed:
            return
        book = self.core.arrive(entry.id, cover)
        if book is not None:
            alive.counted = True
            book.entry = entry  # type: ignore[union-attr]
            entry.book = book

    def _escaped(self, event: Escaped) -> None:
        entry = event.entry
        book = self.book(entry)
        if isinstance(book, Owned) and not book.escaped:
            self.core.escape(book)
        if event.forever:
            self.core.pin_forever(book)

    # --- the loop: results with references ----------------------------------------------------------------

    def result_arrived(self, peer: Peer, handover: int, values: list[tuple[Entry | None, list[bytes]]]) -> None:
        """Values for entries of ours (None: for nobody) arrived, with these ids in them (REF-SEND)."""
        books: Any = []
        for entry, ids in values:
            # An entry that lost its last reference while it was pending must not get a book: nothing would end it.
            if entry is None or (entry.alive is None and entry.book is None):
                books.append((None, ids))
                continue
            if ids:
                entry.contained = ids
            books.append((self.book(entry), ids))
        self.core.accept(peer.origin.process, handover, books)

    def unwanted(self, peer: Peer, result: m.Result) -> None:
        """A result arrived that nobody waits for: what it hands over is taken, and dropped."""
        extra = result.extra
        if extra is not None and extra.handover:
            self.drain()
            self.result_arrived(peer, extra.handover, [(None, ids) for ids in extra.contained])

    def inherit(self, entry: Entry, failed: ObjectRef[Any]) -> None:
        """A pending entry of ours gets the same error as `failed`, with whatever references are in it."""
        if failed._entry.contained is None:
            return
        self.drain()
        if is_wanted(entry):
            container = self.book(entry)
            assert isinstance(container, Owned)
            entry.contained = [failed]
            self.core.contain(container, [self.book(failed._entry)])

    def borrowed(self, peer: Peer, changes: Changes) -> None:
        """A worker's reply registers what it still holds of ours."""
        self.core.receive(peer.origin.process, changes)

    def secure_soon(self, token: TaskToken, done: Callable[[], None]) -> None:
        """Have `done` called in the loop when what came under `token` is registered. The thread that runs the call."""
        self.events.append(Secured(token, done))
        self._runtime.wake()

    def secure(self, token: TaskToken) -> None:
        """Wait for that."""
        if not token.foreign:
            return
        runtime = self._runtime
        waiter = runtime.new_waiter()
        done: list[None] = []

        def secured() -> None:
            done.append(None)
            waiter.notify()

        self.secure_soon(token, secured)
        while not done:
            runtime.block(waiter, None)

    def _secured(self, event: Secured) -> None:
        cover = event.token.core
        if cover is None or cover.submitter in self.core.dead:
            event.done()
            return
        self._gated[cover] = event
        self.core.secure(cover)

    def finish(self, work: Any, result: m.Result, token: TaskToken, contained: list[ObjectRef[Any]]) -> None:
        """The worker's side: a result whose reply must pass the core. The task's thread."""
        self.events.append(Finished(work, result, token, contained))
        self._runtime.wake()

    def finish_item(self, event: ItemMade) -> None:
        """The worker's side: an item of a stream with references in it. The task's thread."""
        self.events.append(event)
        self._runtime.wake()

    def _item_made(self, event: ItemMade) -> None:
        books = [self.book(ref._entry) for ref in event.contained]
        reply = self.core.finish_task(event.submitter, books)
        event.item.handover = reply.handover
        event.contained = []
        if event.submitter in self.core.dead:
            event.passed = True  # Nobody will get it.
            event.done()
            return
        self._gated[reply] = event

    def _finished(self, event: Finished) -> None:
        token = event.token
        if token.core is None and not event.contained:
            self._runtime.post_result(event.work, event.result, None)
            return
        books = [self.book(ref._entry) for ref in event.contained]
        reply = self.core.finish_task(token.submitter, books, token.core)
        if reply.handover and event.result.extra is not None:
            event.result.extra.handover = reply.handover
        event.contained = []
        self._gated[reply] = event

    # --- the loop: talking to others -------------------------------------------------------------------------

    def flush(self) -> None:
        """Once a turn: book events, then carry out what the core wants."""
        if self.events:
            self.drain()
        core = self.core
        core.flush()
        if core.ended:
            self._end_entries()
        out = core.take()
        if not (out.sends or out.acks or out.ready or out.lost or out.freed):
            return
        runtime = self._runtime
        unreachable = []
        for process, changes in out.sends:
            if not runtime.send(runtime.peer(process), m.References(changes)):
                unreachable.append(process)
        for process, request, lost in out.acks:
            runtime.send(runtime.peer(process), m.ReferencesDone(request, lost))
        for process in unreachable:
            # It died before this process began, so nobody will tell of its death: what waits for it must not.
            self.owner_unreachable(runtime.peer(process))
        for gate in out.ready:
            self._pass(gate)
        for foreign in out.lost:
            self._lost(foreign)
        for owned in out.freed:
            self._freed(owned)
        self.flush()

    def _pass(self, gate: Gate) -> None:
        """What waited for acknowledgements goes on."""
        gated = self._gated.pop(gate, None)
        if type(gated) is Finished:
            borrows = self.core.depart(gate.submitter, (gate,))  # type: ignore[arg-type]
            self._runtime.post_result(gated.work, gated.result, borrows)
        elif isinstance(gated, (Secured, ItemMade)):
            gated.passed = True
            gated.done()

    def _freed(self, owned: Owned) -> None:
        entry: Entry = owned.entry  # type: ignore[attr-defined]
        owned.entry = None  # type: ignore[attr-defined]  # The two refer to each other, unseen by the garbage collector.
        entry.origin.entries.pop(entry.key, None)
        if entry.ready or entry.size:
            self._runtime.values.release(entry)

    def _end_entries(self) -> None:
        """Borrowed objects that nothing here refers to any more leave the table."""
        ended, self.core.ended = self.core.ended, []
        with self._runtime.import_lock:
            for foreign in ended:
                entry = foreign.entry  # type: ignore[attr-defined]
                if entry is None or entry.book is not foreign:
                    continue
                entry.book = None
                if entry.alive is None:
                    entry.origin.entries.pop(entry.key, None)
                    self._runtime.values.places.forget(entry, ours=False)

    def _lost(self, foreign: Foreign) -> None:
        """The owner does not have it, or is dead."""
        entry = foreign.entry  # type: ignore[attr-defined]
        if entry is not None and not entry.ready:
            self._runtime.values.fail(
                entry,
                exceptions.OwnerDiedError(
                    f"object {entry.id.hex()} is lost: its owner, process {foreign.owner.hex()}, has ended "
                    "or has freed it"
                ),
            )

    def _on_references(self, connection: Connection, message: m.References) -> None:
        self.drain()
        self.core.receive(connection.peer.origin.process, message.changes)
        self.flush()

    def _on_done(self, connection: Connection, message: m.ReferencesDone) -> None:
        self.core.acknowledged(connection.peer.origin.process, message.request, message.lost)
        self.flush()

    def _on_fetch(self, connection: Connection, message: m.Fetch) -> None:
        """A borrower wants values."""
        self.drain()
        entries = self._runtime.origin.entries
        for key, node in message.lost.items():
            if key in entries:
                self._runtime.recovery.suspect(entries[key], node)
        if message.free:
            from moray.runtime.freeing import free_own

            for key in message.free:
                if key in entries:
                    free_own(self._runtime, entries[key])
        for key in message.keys:
            entry = entries.get(key)
            if entry is None:
                entry = self._gone(Entry(self._runtime.origin, key))
            self._runtime.values.when_ready(entry, connection.peer)

    # --- the loop: connections and deaths -----------------------------------------------------------------------

    def reconnected(self, peer: Peer) -> None:
        """A connection to a peer was accepted or made."""
        self.core.reconnected(peer.origin.process)

    def disconnected(self, peer: Peer) -> None:
        """A connection is gone while its process may live: what was not acknowledged is repeated on the next one."""
        if peer.dead is None and not self._runtime.closing and self.core.peers.get(peer.origin.process) is not None:
            self.core.reconnected(peer.origin.process)
        self._runtime.values.ask_again(peer.origin)

    def process_died(self, peer: Peer) -> None:
        """A process is dead and all that it had sent was handled."""
        self.drain()
        self.core.process_died(peer.origin.process)
        for gate, gated in list(self._gated.items()):
            if gate.submitter != peer.origin.process:
                continue
            # Nobody waits for the result, but the actor goes on with what comes next.
            del self._gated[gate]
            if isinstance(gated, Finished):
                self._runtime.drop_result(gated.result)
            else:
                gated.passed = True
                gated.done()
        self.flush()

    def owner_unreachable(self, peer: Peer) -> None:
        """An owner refuses connections: it has ended, or never was of this session."""
        self.core.process_died(peer.origin.process)
        for entry in list(peer.origin.entries.values()):
            if not entry.ready:
                self._runtime.values.fail(
                    entry,
                    exceptions.OwnerDiedError(
                        f"object {entry.id.hex()} is lost: its owner, process {peer.origin.process.hex()}, "
                        "cannot be reached"
                    ),
                )


def publish(alive: Alive, ref: ObjectRef[Any]) -> ObjectRef[Any]:
    """Make a new ObjectRef that of its entry, and return it. Under `import_lock`.

    Its arrival is among the events before: whoever finds it may put or drop it at once, which is booked after that."""
    entry = alive.entry
    while (before := entry.alive) is not None:
        other = before()
        if other is not None:
            return other  # A signal handler has unpickled the same reference meanwhile (INTERRUPT). Ours ends, counted.
        if entry.alive is before:
            entry.alive = None
    entry.alive = alive  # No call is between this and the look at it: nothing can come in between.
    return ref


def is_wanted(entry: Entry) -> bool:
    """Whether anything needs the value that an entry of ours is about to get. Loop only, events drained: what was freed
    must not be given anything to hold, for nothing would end that."""
    book = entry.book
    return entry.alive is not None if book is None else not book.freed
