"""Nodes as the head talks to them: two streams of numbered messages each, neither of which loses or repeats anything.

**To the head** (ToHead): what a node's clients, and the node itself, have to say. The node numbers it and repeats it
until it hears RelayDone, which need not be soon. The head remembers the number of the last one *in the transaction
that stores what it changed*, so each is carried out once, whichever head it reaches (HEAD-EPOCH).

**To the node** (FromHead): everything that must not be lost when a connection, or the head, ends. Each has a number
and is stored, in the transaction of what led to it, until the node says that it has it. A head that starts goes on
with what its predecessor had not delivered: so a node cannot see that the head was killed between a decision and its
telling.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from moray.head.commits import Commits
from moray.head.listener import Endpoint
from moray.ids import tag_of
from moray.protocol import messages as m
from moray.protocol.connection import ProtocolError, body_of, encode_frame
from moray.protocol.reactor import Reactor, Timer

#: Node id → numbers of the last message in each direction.
_STREAMS: Final = "streams"
#: Node id + number → the frame of a FromHead.
_OUTGOING: Final = "outgoing"

_NUMBERS: Final = struct.Struct(">QQ")
_NUMBER: Final = struct.Struct(">Q")
#: A RelayDone comes so late, for all of this time.
_DONE_S: Final = 0.02


class Peer:
    """One living node."""

    __slots__ = ("acknowledged", "carried", "connection", "kept", "node_id", "released", "sent", "stored", "tag")

    def __init__(self, node_id: bytes, carried: int = 0, sent: int = 0) -> None:
        self.node_id = node_id
        self.tag = tag_of(node_id)
        #: None: lost at the moment.
        self.connection: Endpoint | None = None
        #: Number of the last ToHead that was carried out, of which this is stored, and that it was told so of.
        self.carried = carried
        self.stored = carried
        self.acknowledged = carried
        #: Number of the last FromHead; of the last one that is stored, and may be sent.
        self.sent = sent
        self.released = sent
        #: (number, frame) of those that it may not have, oldest first.
        self.kept: deque[tuple[int, bytes]] = deque()


class Peers:
    """All living nodes, by id and by tag."""

    def __init__(self, commits: Commits, reactor: Reactor) -> None:
        self._commits = commits
        self._reactor = reactor
        self._done_timer: Timer | None = None
        self._by_id: dict[bytes, Peer] = {}
        self._by_tag: dict[bytes, Peer] = {}
        #: Whose numbers have changed in this batch.
        self._changed: dict[Peer, None] = {}
        commits.gatherers.append(self._gather)

    def load(self, nodes: list[bytes], scan: Callable[[str], list[tuple[bytes, bytes]]]) -> None:
        """Go on where the last head was."""
        numbers = {key: _NUMBERS.unpack(value) for key, value in scan(_STREAMS)}
        for node_id in nodes:
            self._add(Peer(node_id, *numbers.get(node_id, (0, 0))))
        for key, frame in scan(_OUTGOING):
            peer = self._by_id.get(key[: -_NUMBER.size])
            if peer is not None:
                peer.kept.append((_NUMBER.unpack(key[-_NUMBER.size :])[0], frame))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, node_id: bytes) -> Peer | None:
        return self._by_id.get(node_id)

    def of_tag(self, tag: bytes) -> Peer | None:
        return self._by_tag.get(tag)

    def all(self) -> list[Peer]:
        return list(self._by_id.values())

    def add(self, node_id: bytes) -> Peer:
        """A new node."""
        peer = Peer(node_id)
        self._add(peer)
        self._changed[peer] = None
        return peer

    def remove(self, peer: Peer) -> None:
        """It is dead, for good."""
        del self._by_id[peer.node_id]
        del self._by_tag[peer.tag]
        self._changed.pop(peer, None)
        self._commits.write(_STREAMS, peer.node_id, None)
        for number, _frame in peer.kept:
            self._commits.write(_OUTGOING, peer.node_id + _NUMBER.pack(number), None)
        if peer.connection is not None:
            connection, peer.connection = peer.connection, None
            self._commits.after(lambda: connection.close("the node is dead to the others"))

    # --- to the node ----------------------------------------------------------------------------------

    def tell(self, peer: Peer, body: bytes, processes: list[bytes] | None = None) -> None:
        """Have a message delivered: to its clients, or (none are named) to the node itself."""
        peer.sent += 1
        number = peer.sent
        frame = encode_frame(m.FromHead(processes or [], body, number))
        peer.kept.append((number, frame))
        self._changed[peer] = None
        self._commits.write(_OUTGOING, peer.node_id + _NUMBER.pack(number), frame)
        self._commits.after(lambda: self._release(peer, number, frame))

    def tell_all(self, message: m.Message) -> None:
        """The same to every node."""
        body = body_of(message)
        for peer in self.all():
            self.tell(peer, body)

    def heard(self, peer: Peer, number: int) -> None:
        """It has all up to `number`."""
        while peer.kept and peer.kept[0][0] <= min(number, peer.released):
            gone, _frame = peer.kept.popleft()
            self._commits.write(_OUTGOING, peer.node_id + _NUMBER.pack(gone), None)

    def attach(self, peer: Peer, connection: Endpoint) -> None:
        """It has a new connection, on which it was welcomed: send what it may not have.

        What is not stored yet follows when it is (`_release`), later on the same connection.
        """
        previous, peer.connection = peer.connection, connection
        connection.peer = peer
        if previous is not None:
            previous.peer = None
            previous.close("replaced by a new connection of the same node")
        for number, frame in peer.kept:
            if number <= peer.released:
                connection.send_frame(frame)

    def _release(self, peer: Peer, number: int, frame: bytes) -> None:
        peer.released = number
        if peer.connection is not None:
            peer.connection.send_frame(frame)

    # --- to the head ----------------------------------------------------------------------------------

    def carry_out(self, peer: Peer, number: int) -> bool:
        """Whether a ToHead is the next one, which is then counted; False: it is a repeat.

        Raises ProtocolError, which ends the connection, if others before it are missing.
        """
        if number > peer.carried + 1:
            raise ProtocolError(f"message {number} of node {peer.node_id.hex()} came after {peer.carried}")
        self._changed[peer] = None
        if number <= peer.carried:
            peer.acknowledged = min(peer.acknowledged, number - 1)  # It was told on a connection that was lost.
            return False
        peer.carried = number
        return True

    def _gather(self) -> None:
        """A batch closes: store the numbers with it, and tell the nodes after it."""
        if not self._changed:
            return
        changed, self._changed = list(self._changed), {}
        for peer in changed:
            self._commits.write(_STREAMS, peer.node_id, _NUMBERS.pack(peer.carried, peer.sent))
        carried = [(peer, peer.carried) for peer in changed]
        self._commits.after(lambda: self._stored(carried))

    def _stored(self, carried: list[tuple[Peer, int]]) -> None:
        for peer, number in carried:
            peer.stored = number
        if self._done_timer is None:
            self._done_timer = self._reactor.call_later(_DONE_S, self._acknowledge)

    def _acknowledge(self) -> None:
        self._done_timer = None
        for peer in self._by_id.values():
            if peer.acknowledged < peer.stored:
                peer.acknowledged = peer.stored
                if peer.connection is not None:  # Otherwise its NodeWelcome says so.
                    peer.connection.send(m.RelayDone(peer.stored))

    def _add(self, peer: Peer) -> None:
        self._by_id[peer.node_id] = peer
        self._by_tag[peer.tag] = peer
