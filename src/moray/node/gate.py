"""The machine's one TCP port, and connections to other machines' ports.

Who connects says which process it wants before TLS begins (:mod:`moray.protocol.tcp`). A connection for this node
becomes a link, or carries objects; one for a process of this node is passed on to it untouched, by a datagram with
the descriptor, so that the process itself does the handshake and the node copies no byte. One for a process or a node
that is reached through a relay (:mod:`moray.node.relay`) is passed on to the relay in the same way.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moray.ids import tag_of
from moray.node.logs import log
from moray.protocol import messages as m
from moray.protocol.handshake import inbox_path
from moray.protocol.relaying import node_target, relay_inbox, send_descriptor
from moray.protocol.tcp import NODE_TARGET, FewLines, TcpServer, format_address, parse_address, preface, start_connect
from moray.protocol.tls import TlsConnection
from moray.security.contexts import contexts_of

if TYPE_CHECKING:
    from moray.protocol.reactor import Reactor

#: A process whose inbox is full is asked again after this time, so many times.
_AGAIN_S: Final = 0.02
_ATTEMPTS: Final = 250


class Gate:
    """In and out. Owned by the node's loop.

    Args:
        on_hello: another node has connected: (connection, its first message).
        info_of: what a node says of itself; KeyError if it is not known (any more).
        tag: this node's.
    """

    def __init__(
        self,
        reactor: Reactor,
        session_dir: str,
        credentials: Path,
        host: str,
        port: int,
        on_hello: Callable[[TlsConnection, m.LinkHello], None],
        info_of: Callable[[bytes], m.NodeInfo],
        tag: bytes,
    ) -> None:
        self._reactor = reactor
        self._session_dir = session_dir
        self._credentials = credentials
        self._on_hello = on_hello
        self._info_of = info_of
        self._tag = tag
        #: Connects to a "HOST:PORT": directly, or through a tunnel.
        self.connect: Callable[[str], socket.socket] = lambda address: start_connect(*parse_address(address))
        #: Strangers can ask for any process.
        self._say = FewLines(log)
        self._handover = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.server = TcpServer(reactor, host, port, self.adopt, log=log)
        #: "HOST:PORT" for others.
        self.address = format_address(host, self.server.address[1])

    def dial(
        self, node_id: bytes, on_message: Callable[[Any, Any], None], on_close: Callable[[Any, str], None]
    ) -> TlsConnection:
        """Connect to another node; OSError if that fails at once."""
        try:
            info = self._info_of(node_id)
        except KeyError:
            raise ConnectionRefusedError(f"node {node_id.hex()[:8]} is not in the cluster (any more)") from None
        return TlsConnection(
            self.connect(info.address),
            self._reactor,
            on_message,
            on_close,
            context=contexts_of(self._credentials).client,
            server_side=False,
            preface=preface(node_target(tag_of(node_id)) if info.relayed else NODE_TARGET),
        )

    def close(self) -> None:
        """Accept nobody any more."""
        self.server.close()
        self._handover.close()

    def adopt(self, sock: socket.socket, target: bytes, peer_address: str) -> None:
        """A connection that somebody has made to this node (zeros), or a process behind it."""
        if tag_of(target) != self._tag and target != NODE_TARGET:
            path, data = relay_inbox(self._session_dir), target + peer_address.encode()
            self._pass_on(sock, target, path, data, _ATTEMPTS)
            return
        if target not in (NODE_TARGET, node_target(self._tag)):
            self._pass_on(sock, target, inbox_path(self._session_dir, target), peer_address.encode(), _ATTEMPTS)
            return
        TlsConnection(
            sock,
            self._reactor,
            self._on_first,
            _ignore_close,
            context=contexts_of(self._credentials).server,
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

    def _pass_on(self, sock: socket.socket, target: bytes, path: str, data: bytes, attempts: int) -> None:
        """To one of this node's processes, or the relay; if it is gone, the connection ends."""
        try:
            send_descriptor(self._handover, sock.fileno(), data, path)
        except BlockingIOError:
            # It has not taken the last ones yet: it computes in C code, or is stopped.
            if attempts:
                self._reactor.call_later(_AGAIN_S, lambda: self._pass_on(sock, target, path, data, attempts - 1))
                return
            self._say("full", f"a connection for process {target.hex()} was dropped: the process takes none over")
        except OSError as error:
            # It has ended. Whoever wants it asks its own node where it is.
            self._say("gone", f"a connection for process {target.hex()} was dropped: {error}")
        sock.close()


def _ignore_close(_connection: Any, _reason: str) -> None:
    """A node that went before it said who it is."""
