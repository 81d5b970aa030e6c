"""Objects of a node that leaves: their primary copies go to other nodes, spilled ones too.

The node that leaves asks others to take its objects over (TakeObjects): each is pulled like any other object, and when
all of it is there, that copy becomes the primary one (ObjectsTaken). Then the owner is told (ObjectsMoved). From that
word on, what the owner says of the object goes to the other node; what it has said before has arrived here when its
answer comes (MoveNoted), as both go the same way. Only then is the object none of this node's concern.

What an owner frees meanwhile is freed here, and, as with every copy, at the node that was sent it (REF-FREE). If this
node dies in the middle, owners look for copies as after any death, and find those that were taken over. If another one
dies, they may find copies here: this node stays for a while, until they have.

Objects of processes of the node itself end with these, wherever copies are: they are not moved.

Owned by the node's loop.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from moray.ids import tag_of
from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.node.clients import Client
    from moray.node.cluster import Cluster
    from moray.node.links import Link
    from moray.node.node import Node

#: Objects that others are fetching from here, or are to.
_UNDER_WAY: Final = 64
#: A look at all objects may take one part in so many of the time.
_LOOK_SHARE: Final = 10
#: Owners of objects whose node has died have looked for copies after so long, also if they were busy.
_LOOK_FOR_S: Final = 10.0
#: Where the owner's process id is in an object's id.
_OWNER: Final = slice(8, 20)


class Evacuation:
    """Both sides of it: what leaves this node, and what this node takes over from others."""

    def __init__(self, node: Node, cluster: Cluster) -> None:
        self._node = node
        self._cluster = cluster
        #: This node leaves, too: it takes nothing.
        self.leaves = False
        #: Object → the node that was asked to take it over.
        self._asked: dict[bytes, bytes] = {}
        #: Object → the node that has it now; its owner has not noted that.
        self._untold: dict[bytes, bytes] = {}
        #: Object → nodes that could not take it, and why.
        self._refused: dict[bytes, dict[bytes, str]] = {}
        #: Node → bytes that it was asked to take.
        self._given: Counter[bytes] = Counter()
        #: Node that died → until when owners look for copies of what it had (monotonic).
        self._searched: dict[bytes, float] = {}
        #: Such copies that were here at the last look.
        self._orphans = 0
        #: Bytes and number of what was here at the last look, and when the next one may be, if there was (monotonic).
        self._left = (0, 0)
        self._next_look = 0.0
        #: What nobody was asked to take at that look.
        self._waiting: deque[bytes] = deque()
        self.link_handlers: dict[type[Any], Any] = {m.TakeObjects: self._on_take, m.ObjectsTaken: self._on_taken}
        self.handlers: dict[type[Any], Any] = {m.MoveNoted: self._on_noted}

    # --- the node that leaves -----------------------------------------------------------------------------

    def look(self) -> None:
        """Ask others to take what is here, as far as not too much is under way. To be called again and again."""
        began = monotonic()
        if began < self._next_look and self._left[1]:
            return
        store, objects = self._node.store, self._node.objects.of_others()
        self._forget_gone(set(objects))
        self._left = sum(map(store.size_of, objects)), len(objects)
        self._waiting = deque(name for name in objects if name not in self._asked)
        self._ask_more()
        self._next_look = began + _LOOK_SHARE * (monotonic() - began)

    def _ask_more(self) -> None:
        store, transfers = self._node.store, self._cluster.transfers
        asks: dict[bytes, list[bytes]] = defaultdict(list)
        while self._waiting and len(self._asked) < _UNDER_WAY:
            name = self._waiting.popleft()
            if store.holds(name) and transfers.is_primary(name) and (target := self._choose(name)):
                self._asked[name] = target
                self._given[target] += store.size_of(name)
                asks[target].append(name)
        for target, names in asks.items():
            self._send(target, m.TakeObjects(names, [store.size_of(name) for name in names]))

    def left(self) -> str:
        """What is still here, in words; "": nothing."""
        size, count = self._left
        if count:
            text = f"{count} object{'s' if count > 1 else ''} of {size} bytes"
            problems = [problem for refused in self._refused.values() for problem in refused.values()]
            if not self._targets():
                return f"{text}: there is no other node that could take them"
            return f"{text}: other nodes have no room for {len(self._refused)}: {problems[-1]}" if problems else text
        if self._untold:
            return f"{len(self._untold)} objects were moved, and their owners have not noted that yet"
        if self._orphans:
            return f"{self._orphans} copies of objects whose node has died: their owners may look for them"
        return ""

    def node_died(self, tag: bytes) -> None:
        """Another node is dead: what it was to take, others are asked to take; what it had is looked for."""
        self._asked = {name: target for name, target in self._asked.items() if target != tag}
        self._untold = {name: target for name, target in self._untold.items() if target != tag}
        self._forget_searched()
        self._searched[tag] = monotonic() + _LOOK_FOR_S  # Also if this node is told only then to leave.

    def _forget_gone(self, here: set[bytes]) -> None:
        """Some were freed meanwhile."""
        for name in [name for name in self._asked if name not in here]:
            del self._asked[name]
        for name in [name for name in self._refused if name not in here]:
            del self._refused[name]
        for name in [name for name in self._untold if not self._node.store.holds(name)]:
            del self._untold[name]
        self._forget_searched()
        copies = self._cluster.transfers.core.copies.values() if self._searched else ()
        self._orphans = sum(tag in self._searched for tag in copies)

    def _forget_searched(self) -> None:
        now = monotonic()
        self._searched = {tag: until for tag, until in self._searched.items() if until > now}

    def _targets(self) -> list[m.NodeInfo]:
        nodes = self._cluster.head.nodes()
        return [info for tag, info in nodes.items() if tag != self._cluster.tag and not info.drain_deadline]

    def _choose(self, name: bytes) -> bytes:
        """Who is to take an object: who has a copy, or else has most memory that nothing was given to."""
        refused = self._refused.get(name, {})
        targets = {tag_of(info.node_id): info for info in self._targets()}
        free = {tag: info.object_store_bytes - self._given[tag] for tag, info in targets.items() if tag not in refused}
        having = [tag for tag in self._cluster.transfers.core.holders(name) if tag in free]
        if not free:
            if targets and name in self._refused:
                self._refused[name] = {tag: why for tag, why in refused.items() if tag not in targets}
            return b""
        return max(having or free, key=free.__getitem__)

    def _on_taken(self, link: Link, message: m.ObjectsTaken) -> None:
        node, transfers = tag_of(link.node_id), self._cluster.transfers
        moved: dict[bytes, list[bytes]] = defaultdict(list)
        for name, problem in zip(message.objects, message.problems, strict=True):
            if self._asked.get(name) != node:
                continue
            del self._asked[name]
            if problem:
                self._refused.setdefault(name, {})[node] = f"node {node.hex()}: {problem}"
            elif transfers.is_primary(name):
                self._refused.pop(name, None)
                self._untold[name] = node
                transfers.given(name, node)
                moved[name[_OWNER]].append(name)
            # Otherwise it was freed, and so is that copy.
        for owner, names in moved.items():
            self._cluster.send_to(owner, m.ObjectsMoved(names, self._cluster.tag, node))
        if len(self._asked) <= _UNDER_WAY // 2:
            self._ask_more()

    def _on_noted(self, client: Client, message: m.MoveNoted) -> None:
        if message.source != self._cluster.tag:
            self._cluster.send_as(client, message.source, message)
            return
        for name in message.objects:
            self._untold.pop(name, None)

    # --- the node that takes over -----------------------------------------------------------------------------

    def _on_take(self, link: Link, message: m.TakeObjects) -> None:
        node = tag_of(link.node_id)
        if self.leaves:
            problem = "it leaves the cluster, too"
            self._send(node, m.ObjectsTaken(message.objects, [problem] * len(message.objects)))
            return
        for name, size in zip(message.objects, message.sizes, strict=True):
            self._take(node, name, size)

    def _take(self, node: bytes, name: bytes, size: int) -> None:
        def done(problem: str) -> None:
            self._send(node, m.ObjectsTaken([name], [problem]))

        self._cluster.transfers.take_over(name, size, node, done)

    def _send(self, tag: bytes, message: m.Message) -> None:
        info = self._cluster.head.nodes().get(tag)
        if info is not None:
            self._cluster.links.get(info.node_id).send(message)
