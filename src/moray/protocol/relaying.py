"""How connections find their way to a relay and through it, and descriptors from one process of a machine to another.

A driver behind a translator of addresses is reached through a tunnel that its node has made to a relay beside the head
(:mod:`moray.node.relay`). To others its node is at the address of the head's; who connects there names the process, or
by :func:`node_target` the node, in the preface, and so the connection goes to the relay.
"""

from __future__ import annotations

import os
import socket
from sys import byteorder
from typing import Final

from moray.ids import PROCESS_BYTES, TAG_BYTES
from moray.protocol.handshake import short_path

#: Asks the head, or its node, for the relay; no process has this id.
RELAY_TARGET: Final = b"moray-relay\0"
#: Of a datagram that hands a descriptor over: the most that it says of it.
DATAGRAM_BYTES: Final = 512
#: Of a descriptor's number in a message's control data.
_FD_BYTES: Final = 4


def node_target(tag: bytes) -> bytes:
    """Asks for a node that is behind a relay; no process has this id."""
    return tag + bytes(PROCESS_BYTES - TAG_BYTES)


def relay_inbox(session_dir: str) -> str:
    """Where the head and its node hand connections over to the relay: the target, and the peer's address."""
    return f"{session_dir}/relay.in"


def tunnel_inbox(session_dir: str) -> str:
    """Where a driver hands its node the other ends of connections through the tunnel, with the address to reach."""
    return f"{session_dir}/tunnel.in"


def open_datagrams(path: str) -> socket.socket:
    """A non-blocking socket that takes descriptors over, readable by this user only."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        with short_path(path) as short:
            sock.bind(short)
        os.chmod(path, 0o600)
    except BaseException:
        sock.close()
        raise
    return sock


def send_descriptor(sender: socket.socket, fd: int, data: bytes, path: str) -> None:
    """Hand a copy of a descriptor over. BlockingIOError: the inbox is full; other OSErrors: nobody is there."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(_FD_BYTES, byteorder))
    with short_path(path) as short:
        sender.sendmsg([data or b"?"], [rights], 0, short)


def receive_descriptor(inbox: socket.socket) -> tuple[bytes, socket.socket | None] | None:
    """The next one that was handed over, made non-blocking; None: there is none at the moment. Without a socket: this
    process may have no more descriptors, and the connection has ended."""
    try:
        # Not recv_fds(), which passes no flags on: another thread may start a program at any moment, and the connection
        # would live as long as that.
        data, rights, _flags, _address = inbox.recvmsg(
            DATAGRAM_BYTES, socket.CMSG_LEN(_FD_BYTES), socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return None
    if not rights:
        return data, None
    sock = socket.socket(fileno=int.from_bytes(rights[0][2], byteorder))
    sock.setblocking(False)
    return data, sock
