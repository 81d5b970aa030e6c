"""Conversations between nodes that outlive their connections.

A :class:`Link` delivers each message once and in order for as long as both nodes live, whatever becomes of the
connection: what was sent is kept until the other side has acknowledged it, and a new connection begins with both sides
saying how much has arrived (LinkHello), after which the rest is sent again. So nothing above has to think of lost
connections; a link ends only with a node (FENCE).

Two nodes may connect to each other at the same moment. The connection that the node with the smaller id has made
stays; the other one is dropped, and nothing is lost by that. Whoever changes connections stops listening to the old one
before it says how much has arrived.

Objects travel on connections of their own (:mod:`moray.node.transfers`), so that they hold nothing up here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from moray.ids import tag_of
from moray.node.logs import log
from moray.protocol import messages as m
from moray.protocol.connection import encode_frame
from moray.protocol.reactor import Reactor, Timer

#: Acknowledge after so many messages, or after this time.
_ACK_MESSAGES: Final = 64
_ACK_S: Final = 0.2
#: A connection that cannot be made is tried again after this time, doubled up to the last.
_RETRY_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0


class Wire(Protocol):
    """A connection, as links use it: :class:`~moray.protocol.tls.TlsConnection`, or a plain one."""

    on_message: Callable[[Any, Any], None]
    on_close: Callable[[Any, str], None]
    peer: Any

    def send(self, message: m.Message) -> None: ...
    def send_frame(self, frame: bytes) -> bool: ...
    def close(self, reason: str = ...) -> None: ...


#: Connects to the node with this id: (its id, on_message, on_close) → the connection; OSError if that fails at once.
Dial = Callable[[bytes, Callable[[Any, Any], None], Callable[[Any, str], None]], Wire]


class Link:
    """One other node."""

    __slots__ = (
        "_ack_timer", "_links", "_retry", "_retry_timer", "acknowledged", "ended", "node_id", "received", "synced",
        "unacked", "wire",
    )  # fmt: skip

    def __init__(self, links: Links, node_id: bytes) -> None:
        self._links = links
        self.node_id = node_id
        #: The connection; None: there is none at the moment.
        self.wire: Wire | None = None
        #: The other side has said on it what had arrived: messages may be sent.
        self.synced = False
        #: What the other side may not have, oldest first.
        self.unacked: deque[bytes] = deque()
        #: How many are not kept any more, because they have arrived there.
        self.acknowledged = 0
        #: How many messages have arrived here.
        self.received = 0
        self.ended = False
        self._ack_timer: Timer | None = None
        self._retry = _RETRY_S
        self._retry_timer: Timer | None = None

    def send(self, message: m.Message) -> None:
        """Deliver `message`, now or when there is a connection."""
        if self.ended:
            return
        frame = encode_frame(message)
        self.unacked.append(frame)
        if self.wire is None:
            if self._retry_timer is None:  # Otherwise the next attempt is due soon, and takes this along.
                self._dial()
        elif self.synced:
            self.wire.send_frame(frame)

    def end(self) -> None:
        """The node is dead."""
        self.ended = True
        self.unacked.clear()
        for timer in (self._ack_timer, self._retry_timer):
            if timer is not None:
                timer.cancel()
        self._drop("the node is dead")

    # --- connections ----------------------------------------------------------------------------------

    def _dial(self) -> None:
        self._retry_timer = None
        if self.wire is not None or self.ended:
            return
        try:
            wire = self._links.dial(self.node_id, self._on_first, self._on_close)
        except OSError as error:
            self._retry_later(str(error))
            return
        self._adopt(wire)

    def accept(self, wire: Wire, hello: m.LinkHello) -> None:
        """The other node has connected, and this is its first message."""
        if self.wire is not None and self._links.node_id < self.node_id and not self.synced:
            # Both have connected at once: ours stays. If it cannot be made, both try again.
            wire.close("this node has connected itself")
            return
        self._drop("replaced by a newer connection")
        wire.on_close = self._on_close
        self._adopt(wire)
        self._on_hello(wire, hello)

    def _adopt(self, wire: Wire) -> None:
        self.wire, self.synced = wire, False
        wire.peer = self
        wire.send(m.LinkHello(m.PROTOCOL_VERSION, self._links.node_id, self.received, self.node_id))

    def _drop(self, reason: str) -> None:
        wire, self.wire, self.synced = self.wire, None, False
        if wire is not None:
            wire.peer = None
            wire.on_message = _ignore  # What it still brings is sent again: it was not counted.
            wire.close(reason)

    def _on_first(self, wire: Wire, message: Any) -> None:
        """The first message on a connection that this node has made."""
        if wire is not self.wire:
            return
        if isinstance(message, m.LinkHello) and message.node_id == self.node_id:
            self._on_hello(wire, message)
        else:
            wire.close(f"{getattr(message, 'reason', '')} (it did not answer as node {self.node_id.hex()[:8]})")

    def _on_hello(self, wire: Wire, hello: m.LinkHello) -> None:
        self._retry = _RETRY_S
        self._forget(hello.received)
        wire.on_message = self._on_message
        self.synced = True
        for frame in self.unacked:
            wire.send_frame(frame)

    def _on_close(self, wire: Wire, reason: str) -> None:
        if wire is not self.wire:
            return
        self.wire, self.synced = None, False
        if self.unacked and not self.ended:
            self._retry_later(reason)

    def _retry_later(self, reason: str) -> None:
        log(f"no connection to node {tag_of(self.node_id).hex()} ({reason}): next attempt in {self._retry:g} s")
        if self._retry_timer is None:
            self._retry_timer = self._links.reactor.call_later(self._retry, self._dial)
        self._retry = min(2 * self._retry, _RETRY_MAX_S)

    # --- messages ---------------------------------------------------------------------------------------

    def _on_message(self, _wire: Wire, message: Any) -> None:
        if isinstance(message, m.LinkAck):
            self._forget(message.received)
            return
        self.received += 1
        if self.received % _ACK_MESSAGES == 0:
            self._acknowledge()
        elif self._ack_timer is None:
            self._ack_timer = self._links.reactor.call_later(_ACK_S, self._acknowledge)
        self._links.on_message(self, message)

    def _acknowledge(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self.wire is not None and self.synced:
            self.wire.send(m.LinkAck(self.received))

    def _forget(self, received: int) -> None:
        """The other side has so many of all that this side ever sent."""
        while self.acknowledged < received and self.unacked:
            self.unacked.popleft()
            self.acknowledged += 1


class Links:
    """All links of a node. Owned by its loop.

    Args:
        node_id: this node's.
        dial: connects to another node.
        on_message: what becomes of a message: (link, message).
    """

    def __init__(self, node_id: bytes, reactor: Reactor, dial: Dial, on_message: Callable[[Link, Any], None]) -> None:
        self.node_id = node_id
        self.reactor = reactor
        self.dial = dial
        self.on_message = on_message
        self._links: dict[bytes, Link] = {}

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._links.values()))

    def get(self, node_id: bytes) -> Link:
        """The link to a node, made now if there is none."""
        link = self._links.get(node_id)
        if link is None:
            link = self._links[node_id] = Link(self, node_id)
        return link

    def accept(self, wire: Wire, hello: m.LinkHello) -> None:
        """Another node has connected."""
        if hello.wanted not in (b"", self.node_id):
            wire.send(m.Refused(f"node {hello.wanted.hex()[:8]} is not here any more"))
            wire.close("another node is wanted")
            return
        self.get(hello.node_id).accept(wire, hello)

    def node_died(self, node_id: bytes) -> None:
        """It is dead: nothing is delivered there any more."""
        link = self._links.pop(node_id, None)
        if link is not None:
            link.end()

    def close(self) -> None:
        """End all."""
        for node_id in list(self._links):
            self.node_died(node_id)


def _ignore(_wire: Any, _message: Any) -> None:
    """What comes on a connection that was replaced."""
