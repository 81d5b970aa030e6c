"""The machine's one TCP port, and connections to other machines' ports.

Who connects says which process it wants before TLS begins (:mod:`moray.protocol.tcp`). A connection for this node
becomes a link, or carries objects; one for a process of this node is passed on to it untouched, by a datagram with
the descriptor, so that the process itself does the handshake and the node copies no byte.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from sys import byteorder
from typing import TYPE_CHECKING, Any, Final

from moray.node.logs import log
from moray.protocol import messages as m
from moray.protocol.handshake import inbox_path, short_path
from moray.protocol.tcp import NODE_TARGET, TcpServer, format_address, parse_address, preface, start_connect
from moray.protocol.tls import TlsConnection
from moray.security.identity import Identity, client_context, server_context

if TYPE_CHECKING:
    from moray.protocol.reactor import Reactor

#: A process whose inbox is full is asked again after this time, so many times.
_AGAIN_S: Final = 0.02
_ATTEMPTS: Final = 250


class Gate:
    """In and out. Owned by the node's loop.

    Args:
        on_hello: another node has connected: (connection, its first message).
        address_of: "HOST:PORT" of a node; KeyError if it is not known (any more).
    """

    def __init__(
        self,
        reactor: Reactor,
        session_dir: str,
        identity: Identity,
        host: str,
        port: int,
        on_hello: Callable[[TlsConnection, m.LinkHello], None],
        address_of: Callable[[bytes], str],
    ) -> None:
        self._reactor = reactor
        self._session_dir = session_dir
        self._client_context, self._server_context = client_context(identity), server_context(identity)
        self._on_hello = on_hello
        self._address_of = address_of
        self._handover = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.server = TcpServer(reactor, host, port, self._on_connection, log=log)
        #: "HOST:PORT" for others.
        self.address = format_address(host, self.server.address[1])

    def dial(
        self, node_id: bytes, on_message: Callable[[Any, Any], None], on_close: Callable[[Any, str], None]
    ) -> TlsConnection:
        """Connect to another node; OSError if that fails at once."""
        try:
            host, port = parse_address(self._address_of(node_id))
        except KeyError:
            raise ConnectionRefusedError(f"node {node_id.hex()[:8]} is not in the cluster (any more)") from None
        return TlsConnection(
            start_connect(host, port),
            self._reactor,
            on_message,
            on_close,
            context=self._client_context,
            server_side=False,
            preface=preface(NODE_TARGET),
        )

    def close(self) -> None:
        """Accept nobody any more."""
        self.server.close()
        self._handover.close()

    def _on_connection(self, sock: socket.socket, target: bytes, peer_address: str) -> None:
        if target != NODE_TARGET:
            self._pass_on(sock, target, peer_address, _ATTEMPTS)
            return
        TlsConnection(
            sock,
            self._reactor,
            self._on_first,
            _ignore_close,
            context=self._server_context,
            server_side=True,
            half_open=self.server.half_open,
            peer_address=peer_address,
        )

    def _on_first(self, connection: TlsConnection, message: Any) -> None:
        if not isinstance(message, m.LinkHello):
            connection.close("the first message was not LinkHello")
        elif message.version != m.PROTOCOL_VERSION:
            reason = f"it speaks protocol {message.version}, this node {m.PROTOCOL_VERSION}"
            connection.send(m.Refused(reason))
            connection.flush()
            connection.close(reason)
        else:
            self._on_hello(connection, message)

    def _pass_on(self, sock: socket.socket, target: bytes, peer_address: str, attempts: int) -> None:
        """To one of this node's processes; if it is gone, the connection ends."""
        path = inbox_path(self._session_dir, target)
        try:
            _send_fd(self._handover, sock.fileno(), peer_address.encode(), path)
        except BlockingIOError:
            # It has not taken the last ones yet: it computes in C code, or is stopped.
            if attempts:
                self._reactor.call_later(_AGAIN_S, lambda: self._pass_on(sock, target, peer_address, attempts - 1))
                return
            log(f"a connection for process {target.hex()} was dropped: the process takes none over")
        except OSError as error:
            # It has ended. Whoever wants it asks its own node where it is.
            log(f"a connection for process {target.hex()} was dropped: {error}")
        sock.close()


def _send_fd(sender: socket.socket, fd: int, data: bytes, path: str) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, byteorder))
    with short_path(path) as short:
        sender.sendmsg([data or b"?"], [rights], 0, short)


def _ignore_close(_connection: Any, _reason: str) -> None:
    """A node that went before it said who it is."""
