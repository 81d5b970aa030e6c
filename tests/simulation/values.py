"""put, get and the store in one simulated process (the counterpart of moray.runtime.values)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moray.protocol import messages as m
from tests.simulation.objects import Contains, Entry, Life, Ref, Value, dump, load
from tests.simulation.user_code import Code, Open
from tests.simulation.world import RefusedError, ViolationError

if TYPE_CHECKING:
    from tests.simulation.network import End
    from tests.simulation.process import Peer, Process

#: How long a place is held.
_IDLE_S = 0.5


class Values:
    """The objects that this process owns or has fetched."""

    def __init__(self, process: Process) -> None:
        self._process = process
        #: Store objects that nobody refers to any more; told to the node once a turn.
        self._free: list[bytes] = []
        #: Views that have gone, by id.
        self._unpinned: list[bytes] = []
        #: Borrowed entries that somebody waits for: asked of their owners once a turn.
        self.wanted: list[Entry] = []
        #: Borrowers' wishes: key → peers.
        self._asked: dict[int, list[Peer]] = {}
        #: Places for objects to come: (number, offset, size); the node's questions.
        self._places: list[tuple[int, int, int]] = []
        self._recalls: list[m.RecallSpace] = []

    # --- user code: generators that yield functions which are given a callback ------------------------

    def put(self, size: int, refs: list[Ref]) -> Code[Ref]:
        """Store a value as an object of this process; returns its reference, held once."""
        process = self._process
        entry = Entry(process.object_id(process.next_seq(), 0))
        ref = process.make_ref(entry).hold()
        content = process.pickle(refs)
        if refs:
            entry.contained = [each.hold() for each in refs]
            process.events.append(Contains(entry, list(refs)))
        process.oracle.made(process, entry, [each.entry.id for each in refs])
        if size:
            try:
                yield from self.write(entry.id, size, content, acknowledged=False)
            except RefusedError:
                contained, entry.contained = entry.contained, []
                for each in [*contained, ref]:
                    each.drop()
                raise
            entry.size = size
        else:
            entry.blob = content
        entry.ready = True
        return ref

    def write(self, object_id: bytes, size: int, content: bytes, acknowledged: bool) -> Code[None]:
        """Create, write and seal an object in the node's store."""
        process = self._process
        process.handlers[m.SpaceGranted] = self._on_granted
        process.handlers[m.RecallSpace] = self._on_recall
        place = next((place for place in self._places if place[2] >= size), None)
        if place is None:
            yield from self._create(object_id, size, content)
        else:
            self._places.remove(place)
            process.oracle.wrote(object_id, content)
            yield from process.work(1e-4 + size * 1e-9)
            process.memory.write(0, place[1], size, content)
        number = place[0] if place is not None else 0
        # Half of the processes' objects are followed by others of their size.
        ahead = 2 if len(self._places) < 2 and process.world.chance(0.5) else 0
        if not acknowledged:
            process.node.send(m.SealObject(0, object_id, number, size, ahead, size))
            return
        answer = yield from process.ask(lambda request: m.SealObject(request, object_id, number, size, ahead, size))
        if isinstance(answer, m.StoreError) and answer.code == "exists":
            process.node.send(m.FreeObjects([object_id]))
            answer = yield from process.ask(lambda request: m.SealObject(request, object_id, number, size))
        if isinstance(answer, m.StoreError):
            raise ViolationError(f"a seal was refused: {answer.detail}")

    def _create(self, object_id: bytes, size: int, content: bytes) -> Code[None]:
        """Ask for space for one object, and write it there."""
        process = self._process
        answer = yield from process.ask(lambda number: m.CreateObject(number, object_id, size))
        if isinstance(answer, m.StoreError) and answer.code == "exists":
            # An earlier try of this task died between its seal and its answer: this one takes its place.
            process.node.send(m.FreeObjects([object_id]))
            answer = yield from process.ask(lambda number: m.CreateObject(number, object_id, size))
        if isinstance(answer, m.StoreError):
            process.oracle.refused(object_id, answer.code, answer.detail)
            raise RefusedError(f"{answer.code}: {answer.detail}")
        process.oracle.wrote(object_id, content)
        yield from process.work(1e-4 + size * 1e-9)
        process.memory.write(int(answer.path or 0), answer.offset, size, content)

    def wait_for(self, entries: list[Entry], timeout_s: float = 0.0) -> Code[None]:
        """Return when all are ready, or one is an error, or (if it is not 0) after `timeout_s`."""
        process = self._process
        deadline = process.world.now + timeout_s if timeout_s else float("inf")

        def satisfied() -> bool:
            if process.world.now >= deadline:
                return True
            return all(entry.ready for entry in entries) or any(entry.ready and entry.error for entry in entries)

        if satisfied():
            return
        process.blocked()
        try:
            while not satisfied():
                yield Open(lambda resume: self._subscribe_all(entries, resume, deadline))
        finally:
            process.unblocked()

    def _subscribe_all(self, entries: list[Entry], resume: Callable[[Any], None], deadline: float) -> None:
        """Resume once when anything of it becomes ready."""
        called: list[bool] = []

        def notify() -> None:
            if not called:
                called.append(True)
                resume(None)

        for entry in entries:
            if not entry.ready:
                self.subscribe(entry, notify)
        if deadline != float("inf"):
            self._process.later(deadline - self._process.world.now + 1e-6, notify)

    def get(self, refs: list[Ref], timeout_s: float = 0.0) -> Code[list[tuple[Value, list[Ref]]]]:
        """The values of the references; values with the references inside, each held once."""
        yield from self.wait_for([ref.entry for ref in refs], timeout_s)
        loaded: list[tuple[Value, list[Ref]]] = []
        for ref in refs:
            if not ref.entry.ready:
                continue
            loaded.append((yield from self.load(ref.entry)))
        return loaded

    def load(self, entry: Entry) -> Code[tuple[Value, list[Ref]]]:
        """The value of a ready entry, made anew."""
        content = entry.blob
        if content is None:
            content = yield from self.map(entry.id)
        value = load(content)
        self._process.oracle.got(self._process, entry.id, value)
        return value, [self._process.references.import_ref(each, entry).hold() for each in value.contained]

    def map(self, object_id: bytes) -> Code[bytes]:
        """The bytes of a stored object, read in place for a while."""
        process = self._process
        answer = yield from process.ask(lambda number: m.PinObject(number, object_id))
        if isinstance(answer, m.StoreError):
            process.oracle.read_failed(process, object_id, f"{answer.code}: {answer.detail}")
            return dump(Value(0, error=answer.code))
        place = int(answer.path or 0), answer.offset, answer.size
        content = process.memory.read(*place)
        process.oracle.read(process, object_id, content)
        yield from process.work(process.world.random.random() * 0.002)
        process.oracle.read(process, object_id, process.memory.read(*place))
        self._unpinned.append(object_id)
        process.wake()
        return content

    # --- the loop ------------------------------------------------------------------------------------

    def _on_granted(self, _connection: End, message: m.SpaceGranted) -> None:
        self._places += [(number, offset, message.size) for number, offset in message.places]
        if message.places:
            self._process.later(_IDLE_S, self._give_back)

    def _on_recall(self, _connection: End, message: m.RecallSpace) -> None:
        self._recalls.append(message)

    def _give_back(self) -> None:
        """Places go back, used lately or not."""
        if self._places:
            self._process.node.send(m.AbortObject(b"", self._take_places()))

    def _take_places(self) -> list[int]:
        places, self._places = self._places, []
        return [number for number, _, _ in places]

    def subscribe(self, entry: Entry, notify: Callable[[], None]) -> None:
        """Have the loop call `notify` once `entry`, which is not ready, is."""
        entry.waiters.append(notify)
        if entry.owner != self._process.name:
            self.wanted.append(entry)
            self._process.wake()

    def ready(self, entry: Entry) -> None:
        """The value fields are set: publish it."""
        entry.ready = True
        waiters, entry.waiters = entry.waiters, []
        for notify in waiters:
            notify()

    def set_error(self, entry: Entry, error: str) -> None:
        entry.blob = dump(Value(0, error=error))
        entry.error = entry.ready = True

    def fail(self, entry: Entry, error: str) -> None:
        self.set_error(entry, error)
        self.ready(entry)

    def release(self, entry: Entry) -> None:
        """Nothing refers to the object any more: give up its value (REF-FREE)."""
        contained, entry.contained = entry.contained, []
        for ref in contained:
            ref.drop()
        if isinstance(entry.task, Life):
            self._process.actors.released(entry.task.actor)
        entry.task = None
        if entry.owner == self._process.name and not entry.released:
            entry.released = True
            self._process.oracle.freed(self._process, entry)
            if entry.size:
                self._free.append(entry.id)
        entry.blob = None

    def forget_stored(self, object_id: bytes) -> None:
        """Nobody gets the object; an attempt may have left it in the store before it died."""
        self._free.append(object_id)
        self._process.wake()

    def ask_again(self, owner: bytes) -> None:
        """A connection to an owner is gone, and with it perhaps questions or answers."""
        entries = self._process.entries.values()
        self.wanted += [entry for entry in entries if entry.owner == owner and not entry.ready and entry.waiters]

    def when_ready(self, entry: Entry, peer: Peer) -> None:
        """A borrower asked for the value of our entry."""
        if entry.ready:
            self._send_value(entry, peer)
            return
        asked = self._asked.setdefault(entry.key, [])
        if peer in asked:
            return
        asked.append(peer)
        if len(asked) == 1:
            self.subscribe(entry, lambda: self._answer_all(entry))

    def _answer_all(self, entry: Entry) -> None:
        for peer in self._asked.pop(entry.key, ()):
            self._send_value(entry, peer)

    def _send_value(self, entry: Entry, peer: Peer) -> None:
        contained = entry.contained_ids or [ref.entry.id for ref in entry.contained]
        self._process.send(peer, m.ObjectValue(entry.key, entry.blob or b"", entry.size, entry.error, contained))

    def on_value(self, connection: End, message: m.ObjectValue) -> None:
        """An owner told us the value of an object that we borrow."""
        process = self._process
        entry = process.entries.get(process.id_of(connection.peer.name, message.key))
        if entry is None or entry.ready:
            return
        entry.blob = None if message.size else message.blob
        entry.size = message.size
        entry.error = message.error
        entry.contained_ids = message.contained
        self.ready(entry)

    def owner_died(self, owner: bytes) -> None:
        """What the dead process owned and we had not fetched is lost."""
        for entry in list(self._process.entries.values()):
            if entry.owner == owner and not entry.ready:
                self.fail(entry, "lost")

    def flush(self) -> None:
        """Once a turn: tell the node what was unpinned and freed, and ask owners for what is wanted."""
        process = self._process
        if self._unpinned:
            unpinned, self._unpinned = self._unpinned, []
            process.node.send(m.UnpinObjects(unpinned))
        if self._free:
            free, self._free = self._free, []
            process.node.send(m.FreeObjects(free))
        while self._recalls:
            recall = self._recalls.pop(0)
            process.node.send(m.AbortObject(b"", [] if recall.keep else self._take_places(), recall.recall))
        by_owner: dict[bytes, list[int]] = {}
        for entry in self.wanted:
            if not entry.ready:
                by_owner.setdefault(entry.owner, []).append(entry.key)
        self.wanted = []
        for owner, keys in by_owner.items():
            peer = process.peer(owner)
            if peer.dead or not process.send(peer, m.Fetch(keys)):
                self.owner_died(owner)
