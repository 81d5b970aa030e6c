"""Messages of a tunnel: between a driver's node and the relay at the head's (:mod:`moray.core.tunnel`)."""

from __future__ import annotations

from moray.protocol.base import Message


class TunnelHello(Message, tag=190):
    """Driver's node → relay, first on each connection. Answered by TunnelWelcome, or Refused with one of the codes
    "version", "unknown" (a session that the relay does not have: begin another one), "session"."""

    version: int
    #: 16 bytes. And 32 that only the node and the relay know, the same for all sessions of this node, so that no other
    #: member of the cluster takes them over.
    session: bytes
    secret: bytes
    #: Of the node: who asks for a process with this tag is passed on.
    tag: bytes
    #: Grows with each connection of the session.
    attempt: int
    #: How many frames have arrived there.
    received: int
    #: The relay has not welcomed this session yet, and may begin it.
    fresh: bool = False
    #: How long the relay keeps the session without a word.
    patience_s: float = 60.0


class TunnelWelcome(Message, tag=191):
    #: How many frames have arrived at the relay.
    received: int
    #: "HOST:PORT" at which others reach the driver's side: that of the head's node.
    gate: str


class TunnelFrame(Message, tag=192):
    """Both ways: a frame of the core, and what has arrived."""

    number: int
    kind: int
    stream: int
    acknowledged: int
    data: bytes = b""
    amount: int = 0
    #: `data` follows the message, and is so many bytes long.
    raw: int = 0


class TunnelAck(Message, tag=193):
    """Both ways: so many frames have arrived. Not counted itself."""

    acknowledged: int
    #: To be answered by another one: is there anybody?
    ping: bool = False


class TunnelLeaves(Message, tag=194):
    """Driver's node → relay: the session is over."""

    reason: str = ""
