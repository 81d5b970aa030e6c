"""At which nodes the stored objects lie that this process knows of.

A result lies at the node of the worker that made it: the first bytes of the worker's process id say which
(:func:`~moray.ids.tag_of`). Only places at other nodes are written down, so on one machine this book is empty. What
is sent to others names a place relative to the owner's node, which everybody can tell from the object's id: b"" is
there.

An attempt that died with its worker may have left a value at that node before its word of it came (a *stray*). It is
freed when the task has ended: the node itself may run the next attempt, whose value must not be freed instead.

Threads read it, the loop alone writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moray.ids import tag_of
from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.object_ref import Entry
    from moray.runtime.runtime import Runtime

#: Where the tag of its owner's node is in an object's id.
_OWNERS_NODE = slice(8, 12)


class Places:
    """The book of one process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: This process's node.
        self.tag = tag_of(runtime.process)
        #: Objects at other nodes → the node with the primary copy.
        self._away: dict[bytes, bytes] = {}
        #: Our objects → nodes where attempts have died.
        self._strays: dict[bytes, set[bytes]] = {}
        #: To be freed at other nodes: node → objects.
        self._free: dict[bytes, list[bytes]] = {}

    def note(self, entry: Entry, tag: bytes) -> None:
        """It is stored at this node. Loop only."""
        self.move(entry, tag)
        if self._strays:
            self.end_strays(entry.id, tag)

    def move(self, entry: Entry, tag: bytes) -> None:
        """Its primary copy is at this node now. Loop only."""
        if tag != self.tag:
            self._away[entry.id] = tag
        elif self._away:
            self._away.pop(entry.id, None)

    def moved(self, object_id: bytes, source: bytes, tag: bytes) -> None:
        """The node with the primary copy of an object leaves; another one has it now. Loop only."""
        if self._away.get(object_id) != source:
            return  # It was freed, or is elsewhere by now.
        if tag != self.tag:
            self._away[object_id] = tag
        else:
            del self._away[object_id]

    def drop(self, entry: Entry) -> None:
        """It is stored nowhere any more. Loop only."""
        if self._away:
            self._away.pop(entry.id, None)

    def free_at(self, object_id: bytes, tag: bytes) -> None:
        """Free an object of ours at this node. Loop only."""
        self._free.setdefault(tag, []).append(object_id)

    def of(self, entry: Entry) -> bytes:
        """The node of a stored entry; b"": this one. Any thread."""
        return self._away.get(entry.id, b"") if self._away else b""

    def named(self, entry: Entry) -> bytes:
        """The same for others: b"" is the owner's node. Any thread."""
        tag = self.of(entry) or self.tag
        return b"" if tag == tag_of(entry.origin.process) else tag

    def understood(self, object_id: bytes, named: bytes) -> bytes:
        """What another process has named; b"": this node. Any thread."""
        tag = named or object_id[_OWNERS_NODE]
        return b"" if tag == self.tag else tag

    def forget(self, entry: Entry, ours: bool) -> bool:
        """Nothing refers to it any more; whether it lay at another node, where it is freed if it is ours. Loop only."""
        if not self._away:
            return False
        tag = self._away.pop(entry.id, b"")
        if tag and ours:
            self._free.setdefault(tag, []).append(entry.id)
        return bool(tag)

    def note_stray(self, entry: Entry, tag: bytes) -> None:
        """An attempt at it died at this node. Loop only."""
        self._strays.setdefault(entry.id, set()).add(tag)

    def end_strays(self, object_id: bytes, tag: bytes = b"") -> None:
        """The task has ended, with its value at this node; b"": at none, and here it has been freed. Loop only."""
        for other in self._strays.pop(object_id, ()):
            if other != (tag or self.tag):
                self._free.setdefault(other, []).append(object_id)

    def flush(self) -> None:
        """Tell the node what is freed elsewhere. Loop only."""
        if self._free:
            free, self._free = self._free, {}
            for tag, objects in free.items():
                self._runtime.node.send(m.FreeObjects(objects, tag))

    def node_died(self, tag: bytes) -> None:
        """A node is dead: nothing is to be freed there. Loop only."""
        self._free.pop(tag, None)
        for strays in self._strays.values():
            strays.discard(tag)
