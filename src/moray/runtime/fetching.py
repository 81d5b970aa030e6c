"""Values on their way from an owner to the borrowers of an object: both ends. The loop's side of :class:`Values`.

A borrower whose thread waits for a foreign object asks its owner (Fetch), once a turn for all that is wanted. The owner
answers when the value is ready (ObjectValue), with a stored one's place instead of its bytes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from moray import exceptions
from moray.ids import tag_of
from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.object_ref import Entry, Origin
    from moray.runtime.runtime import Runtime
    from moray.runtime.values import Values


class Fetching:
    """What this process asks of owners, and what borrowers ask of it."""

    def __init__(self, runtime: Runtime, values: Values) -> None:
        self._runtime = runtime
        self._values = values
        self._ready = values.ready
        self._space = values.space
        self._places = values.places
        #: Foreign entries that somebody waits for: asked of their owners once a turn. Threads add.
        self.wanted: deque[Entry] = deque()
        #: Borrowers' wishes: entry → the peers that asked.
        self.asked: dict[int, list[Any]] = {}
        runtime.handlers[m.ObjectValue] = self._on_value

    # --- the borrower's end ----------------------------------------------------------------------------

    def want(self, entry: Entry) -> None:
        """Ask the owner of a foreign entry for its value. Any thread."""
        self.wanted.append(entry)
        self._runtime.wake()

    def ask_again(self, origin: Origin) -> None:
        """A connection to an owner is gone, and with it perhaps questions or answers. Loop only."""
        self.wanted.extend(entry for entry in origin.entries.values() if not entry.ready and entry.waiters)

    def ask(self) -> None:
        """Ask the owners of all that is wanted, each with one message. Loop only."""
        by_origin: dict[Origin, list[int]] = {}
        lost: dict[Origin, dict[int, bytes]] = {}
        missed = self._runtime.recovery.missed
        while self.wanted:
            entry = self.wanted.popleft()
            if not entry.ready:
                by_origin.setdefault(entry.origin, []).append(entry.key)
                if missed and (node := missed.pop(entry.id, b"")):
                    lost.setdefault(entry.origin, {})[entry.key] = node
        for origin, keys in by_origin.items():
            peer = self._runtime.peer(origin.process)
            if peer.dead is not None:
                self.owner_died(origin, peer.dead)
            elif not self._runtime.send(peer, m.Fetch(keys, lost.get(origin, {}))):
                self._runtime.references.owner_unreachable(peer)

    def _on_value(self, connection: Any, message: m.ObjectValue) -> None:
        """An owner told us the value of an object that we borrow."""
        entry = connection.peer.origin.entries.get(message.key)
        if entry is None or entry.ready:
            return
        entry.error = message.error  # Before the blob: a thread may be reading what was lost (LINEAGE).
        entry.blob = None if message.size else message.blob
        entry.size = message.size
        if message.size:
            self._places.note(entry, message.node or tag_of(entry.origin.process))
        else:
            self._places.drop(entry)
        if message.contained:
            entry.contained = message.contained
        self._ready(entry)

    def owner_died(self, origin: Origin, death: m.ProcessDied) -> None:
        """What the dead process owned and we had not fetched is lost. Loop only."""
        for entry in list(origin.entries.values()):
            if not entry.ready:
                self._values.fail(
                    entry,
                    exceptions.OwnerDiedError(
                        f"object {entry.id.hex()} is lost: its owner (pid {death.pid}) has {death.reason}. "
                        "The owner is the process that called put() or submitted the task; keep it alive as long as "
                        "others need its objects."
                    ),
                )

    # --- the owner's end -------------------------------------------------------------------------------

    def when_ready(self, entry: Entry, peer: Any) -> None:
        """A borrower asked for the value of our entry: answer now or when it is ready. Loop only."""
        if entry.ready:
            self._send_value(entry, peer)
            return
        asked = self.asked.setdefault(entry.key, [])
        if peer in asked:
            return  # It looks again and again.
        asked.append(peer)
        if len(asked) == 1:
            self._values.subscribe(entry, lambda: self._answer_all(entry))

    def _answer_all(self, entry: Entry) -> None:
        for peer in self.asked.pop(entry.key, ()):
            self._send_value(entry, peer)

    def _send_value(self, entry: Entry, peer: Any) -> None:
        entry.seen = True
        self._space.tell_of(entry)
        contained = [each if isinstance(each, bytes) else each.binary() for each in entry.contained or ()]
        node = self._places.named(entry) if entry.size else b""
        value = m.ObjectValue(entry.key, entry.blob or b"", entry.size, entry.error, contained, node)
        self._runtime.send(peer, value)
