"""Carries out the reference protocol in one simulated process (the counterpart of moray.runtime.references).

User code appends events, in the order in which things happen; the loop books them with the core and carries out what
it says. A reference that dies lands in the same queue, so an arrival is booked before its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from moray.core.references import Changes, Foreign, Gate, Owned, References, Reply
from moray.core.references_report import validate
from moray.protocol import messages as m
from tests.simulation.objects import (
    Arrived,
    Contains,
    Dropped,
    Entry,
    Escaped,
    Finished,
    ForeignBook,
    ItemMade,
    OwnBook,
    Ref,
    Secured,
    Token,
)
from tests.simulation.user_code import Code

if TYPE_CHECKING:
    from tests.simulation.network import End
    from tests.simulation.process import Peer, Process


class Core(References):
    """Also tells which borrowed entries ended, so that the table of entries follows."""

    ended: list[Foreign]

    def _release(self, foreign: Foreign) -> Sequence[Owned | Foreign]:
        self.ended.append(foreign)
        return super()._release(foreign)


class ReferenceShell:
    """One process's references."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.core = Core(process.name, ForeignBook)
        self.core.ended = []
        self.events: deque[Any] = process.events
        #: Replies that wait for acknowledgements.
        self.gated: dict[Gate, Finished | Secured | ItemMade] = {}

    # --- user code ----------------------------------------------------------------------------

    def escape(self, ref: Ref) -> None:
        """`ref` is being pickled into a value that holds it."""
        entry, process = ref.entry, self._process
        if entry.owner == process.name and entry.id not in process.entries:
            process.entries[entry.id] = entry
            self.events.append(Escaped(entry))

    def import_ref(self, object_id: bytes, cover: Any) -> Ref:
        """The reference with this id; made now if this process has none."""
        process = self._process
        entry = process.entries.get(object_id)
        if entry is None:
            entry = process.entries[object_id] = Entry(object_id)
            if entry.owner == process.name:
                process.values.set_error(entry, "freed")
        elif entry.alive is not None and entry.alive.holders:
            return entry.alive
        ref = process.make_ref(entry)
        if isinstance(cover, Token):
            cover.touched = True
            if entry.owner not in (cover.submitter, process.name):
                cover.foreign = True
        self.events.append(Arrived(ref, cover))
        process.oracle.arrived(process, object_id)
        return ref

    # --- the loop: booking ----------------------------------------------------------------------

    def drain(self) -> None:
        """Book what user code did; also called before anything from outside is believed."""
        while self.events:
            event = self.events.popleft()
            if isinstance(event, Ref):
                self._died(event)
            elif isinstance(event, Arrived):
                self._arrived(event)
            elif isinstance(event, Escaped):
                book = self.book(event.entry)
                if isinstance(book, Owned) and not book.escaped:
                    self.core.escape(book)
            elif isinstance(event, Contains):
                container = self.book(event.entry)
                assert isinstance(container, Owned)
                self.core.contain(container, [self.book(ref.entry) for ref in event.refs])
            elif isinstance(event, Secured):
                self._secured(event)
            elif isinstance(event, ItemMade):
                self._item_made(event)
            elif isinstance(event, Dropped):
                self._process.cancels.drop_stream(event.task)
            else:
                self._finished(event)

    def _died(self, ref: Ref) -> None:
        entry = ref.entry
        if entry.alive is ref:
            entry.alive = None
        if entry.book is not None:
            if ref.counted:
                self.core.drop_local((entry.book,))
        elif entry.ready and entry.alive is None:
            self._process.values.release(entry)
            # An own id that came back after its object had gone.
            self._process.entries.pop(entry.id, None)

    def book(self, entry: Entry) -> OwnBook | ForeignBook:
        """The core's entry; made now for an own object that has none."""
        if entry.book is None:
            entry.book = OwnBook(entry.key, local=1 if entry.alive is not None else 0, entry=entry)
            if entry.alive is not None:
                entry.alive.counted = True
        return entry.book

    def _arrived(self, event: Arrived) -> None:
        ref, cover = event.ref, event.cover
        entry = ref.entry
        if isinstance(cover, Token):
            if cover.core is None:
                cover.core = self.core.begin_task(cover.submitter, cover.seq)
            cover = cover.core
        elif cover is not None:
            cover = self.book(cover) if cover.book is not None else None
        if isinstance(entry.book, Owned) and entry.book.freed:
            return
        book: Any = self.core.arrive(entry.id, cover)
        if book is not None:
            ref.counted = True
            book.entry = entry
            entry.book = book

    # --- the loop: results with references --------------------------------------------------------

    def result_arrived(self, peer: Peer, handover: int, values: list[tuple[Entry | None, list[bytes]]]) -> None:
        """Values for entries of ours (None: for nobody) arrived, with these ids in them (REF-SEND)."""
        books: Any = []
        for entry, ids in values:
            # Nobody wants the value of an entry that has neither a reference nor another reason to be.
            if entry is None or (entry.alive is None and entry.book is None):
                books.append((None, ids))
                continue
            if ids:
                entry.contained_ids = ids
            books.append((self.book(entry), ids))
        self.core.accept(peer.name, handover, books)

    def unwanted(self, peer: Peer, result: m.Result) -> None:
        """A result arrived that nobody waits for: what it hands over is taken, and dropped."""
        extra = result.extra
        if extra is not None and extra.handover:
            self.drain()
            self.result_arrived(peer, extra.handover, [(None, ids) for ids in extra.contained])

    def secure(self, token: Token) -> Code[None]:
        """Wait until what came under `token` from third processes is registered."""
        if token.foreign:
            yield lambda resume: self._secure_soon(token, lambda: resume(None))

    def _secure_soon(self, token: Token, done: Callable[[], None]) -> None:
        self.events.append(Secured(token, done))
        self._process.wake()

    def _secured(self, event: Secured) -> None:
        cover = event.token.core
        if cover is None or cover.submitter in self.core.dead:
            event.done()
            return
        self.gated[cover] = event
        self.core.secure(cover)

    def finish_item(self, event: ItemMade) -> None:
        """An item of a stream with references in it."""
        self.events.append(event)
        self._process.wake()

    def _item_made(self, event: ItemMade) -> None:
        books = [self.book(ref.entry) for ref in event.contained]
        reply = self.core.finish_task(event.submitter, books)
        event.item.handover = reply.handover
        contained, event.contained = event.contained, []
        for ref in contained:
            ref.drop()
        if event.submitter in self.core.dead:
            event.passed = True
            event.done()
            return
        self.gated[reply] = event

    def _finished(self, event: Finished) -> None:
        token, process = event.token, self._process
        if token.core is None and not event.contained:
            process.post_result(event.work, event.result, None)
            return
        books = [self.book(ref.entry) for ref in event.contained]
        reply = self.core.finish_task(token.submitter, books, token.core)
        if reply.handover:
            event.result.extra.handover = reply.handover
        for ref in event.contained:
            ref.drop()
        event.contained = []
        if token.submitter not in self.core.dead:
            self.gated[reply] = event

    # --- the loop: talking to others ----------------------------------------------------------------

    def flush(self) -> None:
        """Once a turn: book events, then carry out what the core wants."""
        while True:
            self.drain()
            self.core.flush()
            self._end_entries()
            out = self.core.take()
            if not (out.sends or out.acks or out.ready or out.lost or out.freed):
                return
            process = self._process
            for name, changes in out.sends:
                if not process.send(process.peer(name), m.References(changes)):
                    # It ended before this process began, perhaps: nobody would ever tell of its death.
                    self.core.process_died(name)
            for name, request, lost in out.acks:
                process.send(process.peer(name), m.ReferencesDone(request, lost))
            for gate in out.ready:
                self._depart(gate)
            for foreign in out.lost:
                self._lost(foreign)
            for owned in out.freed:
                self._freed(owned)

    def _depart(self, gate: Gate) -> None:
        gated = self.gated.pop(gate, None)
        if isinstance(gated, Finished) and isinstance(gate, Reply):
            borrows = self.core.depart(gate.submitter, (gate,))
            self._process.post_result(gated.work, gated.result, borrows)
        elif isinstance(gated, (Secured, ItemMade)):
            gated.passed = True
            gated.done()

    def _freed(self, owned: Any) -> None:
        entry: Entry = owned.entry
        if self._process.entries.get(entry.id) is entry:
            del self._process.entries[entry.id]
        if entry.ready or entry.size:
            self._process.values.release(entry)
        else:
            self._process.oracle.freed(self._process, entry)

    def _end_entries(self) -> None:
        """Borrowed objects that nothing here refers to any more leave the table."""
        ended, self.core.ended = self.core.ended, []
        for foreign in ended:
            entry: Entry | None = foreign.entry  # type: ignore[attr-defined]
            if entry is None or entry.book is not foreign:
                continue
            entry.book = None
            if entry.alive is None and self._process.entries.get(entry.id) is entry:
                del self._process.entries[entry.id]

    def _lost(self, foreign: Any) -> None:
        """The owner does not have it, or is dead."""
        self._process.oracle.lost(self._process, foreign.id)
        entry: Entry | None = foreign.entry
        if entry is not None and not entry.ready:
            self._process.values.fail(entry, "lost")

    def on_references(self, connection: End, message: m.References) -> None:
        self.drain()
        self.core.receive(connection.peer.name, message.changes)
        self.flush()

    def on_done(self, connection: End, message: m.ReferencesDone) -> None:
        self.core.acknowledged(connection.peer.name, message.request, message.lost)
        self.flush()

    def borrowed(self, peer: Peer, changes: Changes) -> None:
        """A worker's reply registers what it still holds of ours."""
        self.drain()
        self.core.receive(peer.name, changes)

    def on_fetch(self, connection: End, message: m.Fetch) -> None:
        """A borrower wants values."""
        self.drain()
        process = self._process
        for key in message.keys:
            object_id = process.object_id(key >> 32, key & 0xFFFFFFFF)
            entry = process.entries.get(object_id)
            if entry is None:
                entry = Entry(object_id)
                process.values.set_error(entry, "freed")
            process.values.when_ready(entry, connection.peer)

    def disconnected(self, peer: Peer) -> None:
        """A connection is gone while its process may live: what was not acknowledged is repeated."""
        if not peer.dead and peer.name in self.core.peers:
            self.core.reconnected(peer.name)
        self._process.values.ask_again(peer.name)

    def process_died(self, peer: Peer) -> None:
        """A process is dead and all that it had sent was handled."""
        self.drain()
        self.core.process_died(peer.name)
        over = [(gate, gated) for gate, gated in self.gated.items() if gate.submitter == peer.name]
        for gate, gated in over:
            del self.gated[gate]
            if not isinstance(gated, Finished):
                # Nobody waits for the result, but the actor goes on with what comes next.
                gated.passed = True
                gated.done()
        self.flush()

    def validate(self) -> None:
        validate(self.core)
