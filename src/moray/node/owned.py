"""Which objects in the store belong to which owner, so that a dead owner's go with it.

An object's id names its owner (:mod:`moray.ids`). While the owner lives, it says when no reference is left (REF-FREE).
When it dies, nobody ever will, and nobody can ask it where its objects are: the node frees them, pins permitting.
What another process completes for an owner that died meanwhile is freed at its seal.

In a cluster, what concerns objects of other nodes is passed on to :class:`~moray.node.transfers.ObjectTransfers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from moray.ids import tag_of
from moray.protocol.messages import AbortObject, CreateObject, FreeObjects, Message, PinObject, SealObject
from moray.store.server import StoreServer

if TYPE_CHECKING:
    from moray.node.transfers import ObjectTransfers

#: Where the owner's process id is in an object's id: after the task's number.
_OWNER: Final = slice(8, 20)
#: Dead owners that are remembered for what is still being made for them.
_REMEMBERED: Final = 10_000


class OwnedObjects:
    """Stands before the store and keeps the books."""

    def __init__(self, store: StoreServer) -> None:
        self._store = store
        #: Owner → its objects in the store.
        self._objects: dict[bytes, set[bytes]] = {}
        #: The latest dead owners, oldest first.
        self._dead: dict[bytes, None] = {}
        #: None: there are no other nodes.
        self.transfers: ObjectTransfers | None = None

    def handle(self, process: bytes, message: Message) -> None:
        """Pass a message of the store's on."""
        if type(message) is PinObject and message.node and self.transfers is not None:
            self.transfers.pin(process, message)
            return
        if type(message) is FreeObjects and message.node and self.transfers is not None:
            self._free_away(process, message)
            return
        self._store.handle(process, message)
        if isinstance(message, CreateObject):
            self._objects.setdefault(message.object[_OWNER], set()).add(message.object)
        elif isinstance(message, FreeObjects):
            self.forget(message.objects)
            if self.transfers is not None:
                self.transfers.freed(message.objects)
        elif isinstance(message, AbortObject):
            # Its sender may have been interrupted before it knew that it had sealed the object.
            if not self._store.holds(message.object):
                self.forget([message.object])
        elif isinstance(message, SealObject):
            owner = message.object[_OWNER]
            if message.place:
                # It was written into space granted ahead: the first that is heard of it.
                self._objects.setdefault(owner, set()).add(message.object)
            if owner in self._dead:
                self._free(owner)

    def _free_away(self, process: bytes, message: FreeObjects) -> None:
        """What a node has, or had, is freed there. A primary copy here is another attempt's, which counts."""
        transfers = self.transfers
        assert transfers is not None
        ours = [] if message.node == transfers.tag else list(filter(transfers.is_primary, message.objects))
        rest = [name for name in message.objects if name not in ours]
        if rest:
            self._store.handle(process, FreeObjects(rest))
            self.forget(rest)
            transfers.freed(rest, message.node)
        if ours:
            transfers.free_strays(ours, message.node)

    def of_others(self) -> list[bytes]:
        """Complete objects of owners at other nodes, of which the primary copy is here."""
        transfers = self.transfers
        assert transfers is not None
        return [
            name
            for owner, objects in self._objects.items()
            if tag_of(owner) != transfers.tag
            for name in objects
            if transfers.is_primary(name) and self._store.has_whole(name)
        ]

    def note_copy(self, name: bytes) -> None:
        """The node itself makes a copy of another node's object."""
        self._objects.setdefault(name[_OWNER], set()).add(name)

    def node_died(self, tag: bytes) -> None:
        """Another node is dead, and all owners there."""
        for owner in [owner for owner in self._objects if tag_of(owner) == tag]:
            self.owner_died(owner)

    def owner_died(self, owner: bytes) -> None:
        """A process, of this node or another, is dead: free what it owned."""
        if self.transfers is not None:
            self.transfers.process_died(owner)
        self._dead[owner] = None
        if len(self._dead) > _REMEMBERED:
            del self._dead[next(iter(self._dead))]
        self._free(owner)

    def _free(self, owner: bytes) -> None:
        objects = self._objects.pop(owner, None)
        if objects:
            self._store.handle(owner, FreeObjects(list(objects)))
            if self.transfers is not None:
                self.transfers.freed(list(objects))

    def forget(self, objects: list[bytes]) -> None:
        """They are not here any more."""
        for name in objects:
            owned = self._objects.get(name[_OWNER])
            if owned is not None:
                owned.discard(name)
                if not owned:
                    del self._objects[name[_OWNER]]
