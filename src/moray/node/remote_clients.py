"""Owners at other nodes, as this node's clients.

An owner talks to its own node only. When that node asks for workers here in its name, the owner becomes a client here
too: one without a connection and without a pidfd, whose messages go over the link to its node, and whose end is
told by that node, or is the end of the node itself (FENCE).
"""

from __future__ import annotations

from moray.node.clients import Client
from moray.node.links import Link
from moray.protocol import messages as m
from moray.protocol.connection import HEADER, encode_frame


class RemoteClient(Client):
    """An owner, or whoever else at another node has to do with this one."""

    __slots__ = ("link",)

    def __init__(self, process: bytes, pid: int, job: int, link: Link) -> None:
        super().__init__("remote", process, pid, "", job, limit=0)
        #: To its node.
        self.link = link

    def send(self, message: m.Message, frame: bytes = b"") -> None:
        """Send by way of its node."""
        if not self.gone:
            self.link.send(m.ForClient([self.process], (frame or encode_frame(message))[HEADER.size :]))

    def may_resume(self) -> bool:
        """It never connects here."""
        return False

    def drain(self) -> None:
        """Its node tells its end after all that it has said."""
