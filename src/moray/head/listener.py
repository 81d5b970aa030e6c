"""Where nodes connect to the head: the head's one TCP port.

With the cluster's certificates (:mod:`moray.security`) a connection is encrypted and both sides show theirs; those who
have none yet may ask for one, with the token (TOKEN). Without, anybody may connect: that is for tests on loopback.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

from moray.node.logs import log
from moray.protocol.connection import Connection
from moray.protocol.reactor import Reactor
from moray.protocol.relaying import RELAY_TARGET, send_descriptor
from moray.protocol.tcp import JOIN_TARGET, NODE_TARGET, FewLines, TcpServer, format_address, tune

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
        relay_inbox: str = "",
    ) -> None:
        self._reactor = reactor
        #: The relay's, and what hands connections over to it.
        self._relay_inbox = relay_inbox
        self._handover = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        #: For what strangers can bring about.
        self._say = FewLines(log)
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
        self._handover.close()

    def _on_connection(self, sock: socket.socket, target: bytes, peer_address: str) -> None:
        if self._security is not None:
            self._security.accept(self, sock, target, peer_address)
        elif target == NODE_TARGET:
            tune(sock)
            Connection(sock, self._reactor, self._on_message, self._on_close)
        else:
            sock.close()

    def hand_to_relay(self, sock: socket.socket, target: bytes, peer_address: str) -> None:
        """A driver that nobody can connect to; its TLS handshake is the relay's. It comes again if that is busy."""
        try:
            send_descriptor(self._handover, sock.fileno(), target + peer_address.encode(), self._relay_inbox)
        except OSError as error:
            self._say("relay", f"a connection from {peer_address} for the relay was dropped: {error}")
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

        def ended(session: JoinSession, reason: str) -> None:
            if session.issued:
                log(f"{peer_address} has joined")
            else:
                self._say("join", f"{peer_address} did not join: {reason}")

        JoinSession(
            sock,
            self._reactor,
            context=security.join_context,
            certificate_der=security.certificate_der,
            authority=security.authority,
            token=security.token,
            half_open=self._server.half_open,
            peer_address=peer_address,
            on_close=ended,
        )


class _Security:
    """What the head shows and asks for."""

    def __init__(self, directory: Path) -> None:
        from moray.security import identity, token
        from moray.security.authority import Authority

        self._directory = directory
        #: Made of the certificate that was in the file in this state.
        self._context: Any = None
        self.certificate_der = b""
        self.join_context: Any = None
        self._made_of: Any = None
        self.authority = Authority.load(directory)
        if identity.validity(identity.Identity.load(directory).certificate)[1] < time.time():
            # There was no head for so long that even its own node could not come to have it renewed.
            self.authority.issue("head").save(directory)
        self._load()
        self.token = token.load(directory / TOKEN_FILE)

    def _load(self) -> None:
        """Make the contexts and the rest of the certificate as it is now: its node has it renewed."""
        import ssl

        from moray.security import identity

        status = os.stat(self._directory / identity.CERTIFICATE_FILE)
        state = (status.st_ino, status.st_mtime_ns)
        if state != self._made_of:
            mine = identity.Identity.load(self._directory)
            self._context = identity.server_context(mine)
            self.join_context = identity.join_server_context(mine)
            self.certificate_der = ssl.PEM_cert_to_DER_cert(mine.certificate.decode())
            self._made_of = state

    def accept(self, listener: Listener, sock: socket.socket, target: bytes, peer_address: str) -> None:
        try:
            self._load()
        except FileNotFoundError:
            pass  # Somebody has tidied up; what was read is good as long as it was.
        if target == NODE_TARGET:
            listener.accept_member(sock, self._context, peer_address)
        elif target == JOIN_TARGET:
            listener.accept_joiner(sock, self, peer_address)
        elif target == RELAY_TARGET:
            listener.hand_to_relay(sock, target, peer_address)
        else:
            sock.close()
