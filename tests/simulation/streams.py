"""Streams of a generator's items: the owner's side (the counterpart of moray.runtime.streams, STREAM)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray.core.references import Owned
from moray.core.streams import Arriving, End
from moray.protocol import messages as m
from tests.simulation.objects import Dropped, Entry, Ref, Value, dump
from tests.simulation.user_code import Code, Open

if TYPE_CHECKING:
    from tests.simulation import network
    from tests.simulation.process import Peer, Process
    from tests.simulation.submission import Task

#: As in moray.runtime.streams.
_UNSENT: Final = 64


def is_wanted(entry: Entry) -> bool:
    """Whether anything needs the value that an entry is about to get."""
    return entry.alive is not None if entry.book is None else not getattr(entry.book, "freed", False)


class Inbox:
    """What user code has of a generator: items that have arrived, oldest first, each held once."""

    def __init__(self, process: Process, ref: Ref) -> None:
        self._process = process
        self.items: deque[Ref] = deque()
        #: The task's own object, held once.
        self.ref = ref
        self.ended = False
        self.dropped = False
        self.taken = 0
        self.task: Task | None = None
        self.on_taken: Callable[[], None] = lambda: None
        self.waiters: list[Callable[[], None]] = []

    def next(self, timeout_s: float) -> Code[Ref | None]:
        """The next item's reference, which is the taker's then; None if there is none, or none in time."""
        process = self._process
        deadline = process.world.now + timeout_s
        if not (self.items or self.ended):
            process.blocked()
            try:
                while not (self.items or self.ended) and process.world.now < deadline:
                    yield Open(lambda resume: self._subscribe(resume, deadline))
            finally:
                process.unblocked()
        if not self.items:
            return None
        ref = self.items.popleft()
        process.oracle.took(ref.entry.id, self.taken)
        self.taken += 1
        process.later(0.0, self.on_taken)
        return ref

    def _subscribe(self, resume: Callable[[Any], None], deadline: float) -> None:
        self.waiters.append(lambda: resume(None))
        self._process.later(deadline - self._process.world.now + 1e-6, lambda: resume(None))

    def notify(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter()

    def drop(self) -> None:
        """The user's generator goes."""
        self.dropped = True
        items, self.items = self.items, deque()
        for ref in (*items, self.ref):
            ref.drop()
        if self.task is not None:
            self._process.events.append(Dropped(self.task))
            self.task = None
            self._process.wake()


class Stream:
    """One generator task's items as they arrive."""

    def __init__(self, process: Process, spec: m.StreamSpec, ref: Ref) -> None:
        self._process = process
        self.state = Arriving(spec.ahead)
        self.dynamic = spec.dynamic
        #: The user's; or, of a dynamic stream, nobody else's.
        self.inbox = Inbox(process, ref)
        self._forgotten = False
        #: The connection that the last items came by: credits go there.
        self._source: network.End | None = None

    def open(self, task: Task) -> Inbox:
        """What the caller of the generator gets."""
        if self.state.ahead >= 0:
            self.inbox.on_taken = lambda: self._tell_credit(task)
        if not self.dynamic:
            self.inbox.task = task
        return self.inbox

    # --- items --------------------------------------------------------------------------------------------

    def _wanted(self, task: Task) -> bool:
        if self._forgotten:
            return False
        if self.dynamic:
            return is_wanted(task.entries[0])
        return not self.inbox.dropped

    def arrived(self, task: Task, connection: network.End, message: m.StreamItems) -> None:
        """Items came, and the task has not ended."""
        self._source = connection
        peer: Peer = connection.peer
        new = self.state.accept(message.attempt, message.first, len(message.items))
        wanted = self._wanted(task)
        found = False
        for index, item in enumerate(message.items, message.first):
            key = task.seq << 32 | (index + 1)
            if index not in new:
                discard(self._process, peer, key, item, keep_stored=True)
            elif not wanted:
                discard(self._process, peer, key, item)
            else:
                self.inbox.items.append(self._make(peer, key, item))
                found = True
        if found:
            self.inbox.notify()
        if self.state.ahead >= 0:
            self._tell_credit(task)

    def _make(self, peer: Peer, key: int, item: m.StreamItem) -> Ref:
        process = self._process
        entry = Entry(process.object_id(key >> 32, key & 0xFFFFFFFF))
        ref = process.make_ref(entry).hold()
        if item.handover:
            process.references.drain()
            process.references.result_arrived(peer, item.handover, [(entry, item.contained)])
        entry.size = item.size
        entry.blob = None if item.size else item.blob
        entry.ready = True
        process.oracle.made(process, entry, item.contained)
        return ref

    def _tell_credit(self, task: Task) -> None:
        """Let the generator go on, if it waits for that."""
        if not self._wanted(task) or self._source is None:
            return
        taken = self.state.received - len(self.inbox.items)
        if self.state.credit(taken):
            self._source.send(m.StreamCredit(task.seq, self.state.attempt, taken))

    # --- the end ------------------------------------------------------------------------------------------

    def replay(self, task: Task) -> None:
        """The task is going to be run again."""
        self._source = None
        skip = self.state.replay(task.attempt)
        spec = m.StreamSpec(skip, self.state.ahead, self.dynamic)
        task.extra = msgspec.structs.replace(task.extra or m.TaskExtra(), stream=spec)

    def finish(self, task: Task, items: int) -> str:
        """The generator has ended by itself, after so many items. Returns what is wrong with that."""
        end = self.state.finish(task.attempt, items)
        if end is not End.COMPLETE:
            return "stream lost" if end is End.LOST else "stream inconsistent"
        entry = task.entries[0]
        if not self.dynamic:
            self._end()
        if not entry.ready:
            entry.blob = dump(Value(self._process.oracle.next_mark()))
            if self.dynamic and self._wanted(task):
                self._gather(entry)
            self._process.submitter.publish(entry)
        self._forget()
        return ""

    def _gather(self, entry: Entry) -> None:
        """Make the references to all items the value of the task's own object, if anybody still refers to that."""
        process = self._process
        process.references.drain()
        if not is_wanted(entry):
            return
        refs = list(self.inbox.items)
        entry.blob = process.pickle(refs)
        process.oracle.made(process, entry, [ref.entry.id for ref in refs])
        if refs:
            entry.contained = [ref.hold() for ref in refs]
            container = process.references.book(entry)
            assert isinstance(container, Owned)
            process.references.core.contain(container, [process.references.book(ref.entry) for ref in refs])

    def fail(self, task: Task, error: str) -> None:
        """The task has failed: the error becomes the stream's last item too."""
        if not self.state.fail():
            return
        process = self._process
        if not self.dynamic and self._wanted(task):
            entry = Entry(process.object_id(task.seq, self.state.received + 1))
            ref = process.make_ref(entry).hold()
            process.values.set_error(entry, error)
            process.oracle.made(process, entry, [])
            self.inbox.items.append(ref)
            self._end()
        first = self.state.received + 1
        for index in range(first, first + _UNSENT):
            process.values.forget_stored(process.object_id(task.seq, index))
        self._forget()

    def _end(self) -> None:
        self.inbox.ended = True
        self.inbox.notify()

    def _forget(self) -> None:
        self._forgotten = True
        self.inbox.task = self._source = None
        if self.dynamic:
            items, self.inbox.items = self.inbox.items, deque()
            for ref in items:
                ref.drop()


class Streams:
    """All streams of an owner."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def on_items(self, connection: network.End, message: m.StreamItems) -> None:
        task = self._process.submitter.find_sent(connection, message.seq)
        if task is not None and task.stream is not None:
            task.stream.arrived(task, connection, message)
            return
        for index, item in enumerate(message.items, message.first):
            discard(self._process, connection.peer, message.seq << 32 | (index + 1), item)


def discard(process: Process, peer: Peer, key: int, item: m.StreamItem, keep_stored: bool = False) -> None:
    """Nobody wants an item that came: its references and its place in the store are given back."""
    if item.handover:
        process.references.drain()
        process.references.result_arrived(peer, item.handover, [(None, item.contained)])
    if item.size and not keep_stored:
        process.values.forget_stored(process.object_id(key >> 32, key & 0xFFFFFFFF))
