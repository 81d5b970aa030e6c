"""Streams of a generator's items: the owner's side (STREAM). The worker's is :mod:`moray.runtime.stream_producer`.

Items arrive in the loop, each becomes an object of ours with its ObjectRef, and lies in the generator's
:class:`~moray.object_ref_generator.Inbox` until somebody takes it; :mod:`moray.core.streams` decides which count. The
key of item `i` is that of index ``i + 1`` of the task; index 0 is the task's own object, which is ready when
the task has ended.

With ``num_returns="dynamic"`` nobody sees the inbox: at the end the references in it become the value of the
task's own object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray import exceptions
from moray.core.references import Owned
from moray.core.streams import Arriving, End
from moray.ids import tag_of
from moray.object_ref import Entry, ObjectRef
from moray.object_ref_generator import Dropped, DynamicObjectRefGenerator, Inbox, ObjectRefGenerator
from moray.protocol import messages as m
from moray.runtime.references import is_wanted
from moray.runtime.tasks import Call
from moray.runtime.values import dump_error
from moray.serialization import NONE_BLOB, serialize

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Peer, Runtime
    from moray.runtime.tasks import Task

#: Items in the store that a worker may have written and not sent when it died: it sends each as soon as it is written.
_UNSENT: Final = 64


class Stream:
    """One generator task's items as they arrive. The loop's, but for its making."""

    __slots__ = ("_dropped", "_kept", "_runtime", "_source", "_spec", "dynamic", "raised", "state")

    def __init__(self, runtime: Runtime, spec: m.StreamSpec) -> None:
        self._runtime = runtime
        self._spec = spec
        # Where generators share a limit, each item that is taken may be what another one waits for: it is told at once.
        self.state = Arriving(spec.ahead if spec.together < 0 else 1)
        self.dynamic = spec.dynamic
        #: The present attempt has ended with an exception of the generator's.
        self.raised = False
        #: The inbox, while somebody may take from it.
        self._dropped: Dropped | None = None
        #: The inbox of a dynamic stream, which nobody else has.
        self._kept: Inbox | None = None
        #: The connection that the last items came by: credits go there.
        self._source: Connection | None = None

    def open(self, task: Task, ref: ObjectRef[Any]) -> Any:
        """What the caller of the generator gets; `ref` is that of the task's own object. The submitting thread."""
        runtime = self._runtime
        inbox = Inbox(runtime.origin, ref)
        if self.dynamic:
            # The reference stays the caller's alone: it says whether anybody wants the items.
            del inbox.ref
            self._kept = inbox
            return ref
        if self.state.ahead >= 0:
            inbox.on_taken = lambda: runtime.call_soon(lambda: self._tell_credit(task))
        self._dropped = dropped = Dropped(inbox, runtime.note_event)
        dropped.task = task
        return ObjectRefGenerator._over(inbox)

    # --- items -------------------------------------------------------------------------------------------

    def _inbox(self, task: Task) -> Inbox | None:
        """The inbox, if anybody wants what comes."""
        if self._kept is not None:
            entry = task.entry
            return self._kept if entry is not None and is_wanted(entry) else None
        return self._dropped() if self._dropped is not None else None

    def arrived(self, task: Task, connection: Connection, message: m.StreamItems) -> None:
        """Items came, and the task has not ended."""
        self._source = connection
        peer: Peer = connection.peer
        new = self.state.accept(message.attempt, message.first, len(message.items))
        inbox = self._inbox(task)
        refs = []
        for index, item in enumerate(message.items, message.first):
            key = task.seq << 32 | (index + 1)
            if index not in new:
                # An item that is here already has the same place in the store as this one.
                discard(self._runtime, peer, key, item, keep_stored=True)
            elif inbox is None:
                discard(self._runtime, peer, key, item)
            else:
                refs.append(self._make(peer, task, key, item))
        if inbox is not None and refs:
            inbox.extend(refs)
            self._notify(inbox)
        del inbox
        if isinstance(task, Call) and self.state.acknowledge(sum([len(item.blob) for item in message.items])):
            self._acknowledge(task, connection)
        if self.state.ahead >= 0:
            self._tell_credit(task)

    def _acknowledge(self, task: Task, connection: Connection) -> None:
        """Tell the actor what need not be kept."""
        self.state.said()
        connection.send(m.StreamCredit(task.seq, self.state.attempt, self.state.told, self.state.received))

    def _make(self, peer: Peer, task: Task, key: int, item: m.StreamItem) -> ObjectRef[Any]:
        """The object of one item, and its reference."""
        runtime = self._runtime
        entry = Entry(runtime.origin, key)
        ref = runtime.make_ref(entry)
        if item.handover:
            runtime.references.drain()
            runtime.references.result_arrived(peer, item.handover, [(entry, item.contained)])
        if item.size:
            entry.size = item.size
            runtime.recovery.stored(task, entry)
            runtime.values.note_stored(entry, tag_of(peer.origin.process))
        else:
            entry.blob = item.blob
        entry.ready = True
        return ref

    def _tell_credit(self, task: Task) -> None:
        """Let the generator go on, if it waits for that."""
        inbox = self._inbox(task)
        if inbox is None or self._source is None:
            return
        taken = self.state.received - len(inbox)
        if self.state.credit(taken):
            self.state.said()
            self._source.send(m.StreamCredit(task.seq, self.state.attempt, taken, self.state.received))

    def reconnected(self, task: Task, connection: Connection) -> None:
        """The actor that makes the items is about to be told again of the call, on a new connection: what may have been
        lost with the old one is said first, so that it sends what is missing, and goes on."""
        self._source = connection
        inbox = self._inbox(task)
        self.state.resume(self.state.received - len(inbox) if inbox is not None else 0)
        self._acknowledge(task, connection)

    # --- the end -------------------------------------------------------------------------------------------

    def replay(self, task: Task) -> None:
        """The task is going to be run again, as attempt `task.attempt`: put into its extra what need not be sent."""
        self._source, self.raised = None, False
        skip = self.state.replay(task.attempt)
        spec = msgspec.structs.replace(self._spec, skip=skip)
        task.extra = msgspec.structs.replace(task.extra or m.TaskExtra(), stream=spec)

    def finish(self, task: Task, items: int) -> None:
        """The generator has ended by itself, after so many items: publish that, and the task's own object."""
        end = self.state.finish(task.attempt, items)
        if self._source is not None and isinstance(task, Call) and self.state.owes_last_word():
            self._acknowledge(task, self._source)
        if end is End.COMPLETE:
            self._complete(task)
            return
        received = self.state.received
        if end is End.LOST:
            text = f"but only {received} have arrived; the others were lost with a connection"
        else:
            text = (
                f"but {received} had arrived before, from an earlier attempt: a generator that may be run again "
                "(max_retries) must give the same items each time"
            )
        error = exceptions.StreamingGeneratorReplayInconsistentError(
            f"{task.options.name}() made {items} items in attempt {task.attempt + 1}, {text}"
        )
        self._runtime.submitter.finish_with(task, dump_error(error), False)

    def _complete(self, task: Task) -> None:
        inbox = self._inbox(task)
        entry = task.entry
        assert entry is not None
        if inbox is not None and not self.dynamic:
            self._end(inbox)
        if not entry.ready:  # Otherwise it was cancelled, and whoever waited has been told.
            entry.blob = NONE_BLOB
            if inbox is not None and self.dynamic:
                self._gather(entry, inbox)
            self._runtime.submitter.publish(entry)
        self._forget()

    def _gather(self, entry: Entry, inbox: Inbox) -> None:
        """Make the references to all items the value of the task's own object, if anybody still refers to that."""
        references = self._runtime.references
        references.drain()
        if not is_wanted(entry):
            return
        # Our own class and our own references: no code of the user's runs here (CALLBACKS).
        serialized = serialize(DynamicObjectRefGenerator(inbox))
        entry.blob = serialized.to_bytes()
        if serialized.contained:
            entry.contained = serialized.contained
            # Now, not as an event: behind the end of the entry's reference it would give it a book that nothing ends.
            container = references.book(entry)
            assert isinstance(container, Owned)
            references.core.contain(container, [references.book(ref._entry) for ref in serialized.contained])

    def keep_what_came(self, task: Task, error: bytes) -> None:
        """The task is about to fail. If a dynamic generator raised, its value is the items before that, and the error
        as the last of them."""
        own, inbox = task.entry, self._inbox(task)
        if not (self.dynamic and self.raised) or task.cancelled or inbox is None or own is None:
            return
        if own.ready or own.contained is not None or not self.state.fail():
            return  # With references in the error, which are the task's own object's, that stays the error.
        inbox.append(self._last_item(task, error))
        own.blob = NONE_BLOB
        self._gather(own, inbox)
        self._runtime.submitter.publish(own)
        self._forget()

    def _last_item(self, task: Task, error: bytes | None) -> ObjectRef[Any]:
        """The error as an item."""
        entry = Entry(self._runtime.origin, task.seq << 32 | (self.state.received + 1))
        ref = self._runtime.make_ref(entry)
        entry.blob = error
        entry.error = entry.ready = True
        return ref

    def fail(self, task: Task, _error: bytes) -> None:
        """The task has failed: its own object has got the error, which becomes the stream's last item too."""
        if not self.state.fail():
            return
        if self._source is not None and isinstance(task, Call) and self.state.owes_last_word():
            self._acknowledge(task, self._source)
        own = task.entry
        inbox = self._inbox(task)
        if inbox is not None and own is not None and not self.dynamic:
            inbox.append(self._last_item(task, own.blob))
            self._runtime.references.inherit(inbox[-1]._entry, inbox.ref)
            self._end(inbox)
        self._forget_unsent(task)
        self._forget()

    def _end(self, inbox: Inbox) -> None:
        inbox.ended = True
        self._notify(inbox)

    def _notify(self, inbox: Inbox) -> None:
        """Call whoever waits for the inbox."""
        if inbox.waiters is None:
            return
        with self._runtime.waiter_lock:
            waiters, inbox.waiters = inbox.waiters, None
        for notify in waiters or ():
            notify()

    def _forget(self) -> None:
        if self._dropped is not None:
            self._dropped.task = None
        self._dropped = self._kept = self._source = None

    def _forget_unsent(self, task: Task) -> None:
        """No attempt follows: what the last one may have left in the store before it died is nobody's."""
        values = self._runtime.values
        first = self.state.received + 1
        for index in range(first, first + _UNSENT):
            values.forget_stored(Entry(self._runtime.origin, task.seq << 32 | index))


def make_stream(runtime: Runtime, task: Task, ref: ObjectRef[Any]) -> Any:
    """Give `task`, which nobody knows yet, a stream: what its caller gets in place of `ref`. The submitting thread."""
    spec = task.extra.stream if task.extra is not None else None
    task.stream = Stream(runtime, spec or m.StreamSpec())
    return task.stream.open(task, ref)


def reconnect_streams(calls: Iterable[Task], connection: Connection) -> None:
    """An actor is about to be told again of these calls, on a new connection. Loop only."""
    for call in calls:
        if call.stream is not None:
            call.stream.reconnected(call, connection)


class Streams:
    """All streams of an owner: where arriving items belong."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        runtime.handlers[m.StreamItems] = self._on_items

    def _on_items(self, connection: Connection, message: m.StreamItems) -> None:
        task = self._runtime.submitter.find_sent(connection, message.seq)
        if task is not None and task.stream is not None:
            task.stream.arrived(task, connection, message)
            return
        # The task was ended by other means, for good.
        for index, item in enumerate(message.items, message.first):
            discard(self._runtime, connection.peer, message.seq << 32 | (index + 1), item)


def discard(runtime: Runtime, peer: Peer, key: int, item: m.StreamItem, keep_stored: bool = False) -> None:
    """Nobody wants an item that came: its references and its place in the store are given back."""
    if item.handover:
        runtime.references.drain()
        runtime.references.result_arrived(peer, item.handover, [(None, item.contained)])
    if item.size and not keep_stored:
        runtime.values.forget_stored(Entry(runtime.origin, key), tag_of(peer.origin.process))
