"""Where nodes connect to the head: the head's one TCP port.

With the cluster's certificates (:mod:`moray.security`) a connection is encrypted and both sides show theirs; those who
have none yet may ask for one, with the token (TOKEN). Without, anybody may connect: that is for tests on loopback.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

from moray.node.logs import log
from moray.protocol.connection import Connection
from moray.protocol.reactor import Reactor
from moray.protocol.tcp import JOIN_TARGET, NODE_TARGET, TcpServer, format_address, tune

#: The file of the token in the directory of certificates.
TOKEN_FILE: Final = "token"  # noqa: S105 - a name


class Endpoint(Protocol):
    """A connection to a node: :class:`~moray.protocol.tls.TlsConnection`, or a plain one."""

    on_message: Callable[[Any, Any], None]
    on_close: Callable[[Any, str], None]
    peer: Any

    @property
    def closed(self) -> bool: ...
    def send(self, message: Any) -> None: ...
    def send_frame(self, frame: bytes) -> bool: ...
    def close(self, reason: str = ...) -> None: ...


OnMessage: TypeAlias = Callable[[Any, Any], None]
OnClose: TypeAlias = Callable[[Any, str], None]


class Listener:
    """Accepts nodes."""

    def __init__(
        self,
        host: str,
        port: int,
        reactor: Reactor,
        on_message: OnMessage,
        on_close: OnClose,
        security_dir: str = "",
    ) -> None:
        self._reactor = reactor
        self._on_message = on_message
        self._on_close = on_close
        self._security = _Security(Path(security_dir)) if security_dir else None
        self._server = TcpServer(reactor, host, port, self._on_connection, log=log)
        self.port: int = self._server.address[1]
        #: "HOST:PORT".
        self.address = format_address(*self._server.address)

    def close(self) -> None:
        """Accept nobody any more."""
        self._server.close()

    def _on_connection(self, sock: socket.socket, target: bytes, peer_address: str) -> None:
        if self._security is not None:
            self._security.accept(self, sock, target, peer_address)
        elif target == NODE_TARGET:
            tune(sock)
            Connection(sock, self._reactor, self._on_message, self._on_close)
        else:
            sock.close()

    def accept_member(self, sock: socket.socket, context: Any, peer_address: str) -> None:
        """Somebody who must show a certificate."""
        from moray.protocol.tls import TlsConnection

        TlsConnection(
            sock,
            self._reactor,
            self._on_message,
            self._on_close,
            context=context,
            server_side=True,
            half_open=self._server.half_open,
            peer_address=peer_address,
        )

    def accept_joiner(self, sock: socket.socket, security: _Security, peer_address: str) -> None:
        """Somebody who wants one."""
        from moray.security.join import JoinSession

        JoinSession(
            sock,
            self._reactor,
            context=security.join_context,
            certificate_der=security.certificate_der,
            authority=security.authority,
            token=security.token,
            half_open=self._server.half_open,
            peer_address=peer_address,
            on_close=lambda session, reason: log(
                f"{peer_address} has joined" if session.issued else f"{peer_address} did not join: {reason}"
            ),
        )


class _Security:
    """What the head shows and asks for."""

    def __init__(self, directory: Path) -> None:
        import ssl

        from moray.security import identity, token
        from moray.security.authority import Authority

        mine = identity.Identity.load(directory)
        self.context = identity.server_context(mine)
        self.join_context = identity.join_server_context(mine)
        self.certificate_der = ssl.PEM_cert_to_DER_cert(mine.certificate.decode())
        self.authority = Authority.load(directory)
        self.token = token.load(directory / TOKEN_FILE)

    def accept(self, listener: Listener, sock: socket.socket, target: bytes, peer_address: str) -> None:
        if target == NODE_TARGET:
            listener.accept_member(sock, self.context, peer_address)
        elif target == JOIN_TARGET:
            listener.accept_joiner(sock, self, peer_address)
        else:
            sock.close()
