"""Joining: the token becomes a certificate (TOKEN).

Over TLS in which only the head has a certificate; the connection asked for :data:`~moray.protocol.tcp.JOIN_TARGET`, and
nothing but this can be said on it::

    head → joiner   offer     the authority's certificate, a nonce
    joiner → head   request   a nonce, a request for a certificate, a MAC
    head → joiner   answer    the certificate, a MAC                          or: refused, and why

The joiner checks that the authority is the one that the token names, and that it issued the certificate which the head
has shown in this very TLS handshake, before it says anything. Both MACs are keyed by the token's secret, which is never
sent, and cover both nonces, the request and the head's certificate. So whoever stands between with another certificate
learns no MAC, and could use none on another connection; whoever only passes bytes on changes nothing. The head's nonce
begins with the time by its clock: a joiner can say how far its own differs.

Frames have the usual header and a few kilobytes at most; they are cut by hand, since a stranger's bytes shall not
reach the decoder of messages. The head's side runs in its loop and counts as half open until it is over.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from moray.exceptions import AuthenticationError
from moray.protocol.connection import HEADER, ProtocolError
from moray.protocol.messages import PROTOCOL_VERSION
from moray.protocol.reactor import Reactor
from moray.protocol.tcp import JOIN_TARGET, MAGIC, HalfOpen, connect_tcp, format_address
from moray.protocol.tls import TlsConnection, explain
from moray.security.authority import Authority, Request, authority_key, check_issued, show_skew
from moray.security.identity import Identity, join_client_context
from moray.security.token import Token

_NONCE_BYTES: Final = 32
#: Seconds of the epoch: what the head's nonce begins with.
_CLOCK: Final = struct.Struct(">d")
#: Clocks that differ by more than this are worth a word; what is said to be more than that is no time.
SKEW_S: Final = 60.0
_SKEW_MOST_S: Final = 100 * 365 * 86400.0
_MAC_BYTES: Final = 32
#: No frame of a join is longer; certificates and requests have a few hundred bytes.
_FRAME_LIMIT: Final = 1 << 13
#: Characters of a refusal that are shown.
_MOST_SAID: Final = 300
#: How long a head may take to say that it speaks another protocol. It does so at once.
_VERSION_S: Final = 2.0
_OFFER, _REQUEST, _ANSWER, _REFUSED = b"O", b"R", b"A", b"X"


def _mac(token: Token, purpose: bytes, *parts: bytes) -> bytes:
    """Over all parts, each with its length, so that no two lists of parts look alike."""
    mac = hmac.new(token.secret, purpose, hashlib.sha256)
    for part in parts:
        mac.update(len(part).to_bytes(4, "big") + part)
    return mac.digest()


def _frame(body: bytes) -> bytes:
    return HEADER.pack(len(body), PROTOCOL_VERSION) + body


# --- the head's side -------------------------------------------------------------------------------------


class JoinSession(TlsConnection):
    """A connection on which somebody joins, in the head's loop."""

    first_frame_limit = frame_limit = _FRAME_LIMIT

    def __init__(
        self,
        sock: socket.socket,
        reactor: Reactor,
        *,
        context: ssl.SSLContext,
        certificate_der: bytes,
        authority: Authority,
        token: Token,
        half_open: HalfOpen,
        peer_address: str,
        on_close: Callable[[JoinSession, str], None],
    ) -> None:
        """Begin the handshake.

        Args:
            sock: as handed on by TcpServer, whose target was JOIN_TARGET.
            reactor: whose loop this is.
            context: `join_server_context` of the head's identity.
            certificate_der: the certificate in that identity.
            authority: signs.
            token: what the other side must have.
            half_open: the limits; it stays half open all the time.
            peer_address: for these, and for messages.
            on_close: called once; :attr:`issued` says whether a certificate was given.
        """
        #: A certificate was given.
        self.issued = False
        self._certificate = certificate_der
        self._authority = authority
        self._token = token
        self._nonce = _CLOCK.pack(time.time()) + os.urandom(_NONCE_BYTES - _CLOCK.size)
        super().__init__(
            sock,
            reactor,
            self._unexpected,
            on_close,
            context=context,
            server_side=True,
            on_ready=self._offer,
            half_open=half_open,
            peer_address=peer_address,
        )

    def _authenticated(self) -> None:
        """It has not shown anything yet: the limits stay."""

    @staticmethod
    def _unexpected(_connection: object, _message: object) -> None:
        raise AssertionError("no message is decoded here")

    def _offer(self, _connection: object) -> None:
        self.send_frame(_frame(_OFFER + self._nonce + self._authority.certificate_der))

    def _on_body(self, body: memoryview) -> None:
        data = bytes(body)
        start = 1 + _NONCE_BYTES + _MAC_BYTES
        if self.issued or data[:1] != _REQUEST or len(data) <= start:
            raise ProtocolError("not a request to join")
        nonce, mac, request = data[1 : 1 + _NONCE_BYTES], data[1 + _NONCE_BYTES : start], data[start:]
        said = (self._nonce, nonce, self._certificate, request)
        if not hmac.compare_digest(mac, _mac(self._token, b"moray join request", *said)):
            self._refuse("its token is not this cluster's")
            return
        try:
            certificate = self._authority.sign(request)
        except AuthenticationError as error:
            self._refuse(str(error))
            return
        self.issued, self._outcome = True, "joined"
        proof = _mac(self._token, b"moray join answer", *said, certificate)
        self.send_frame(_frame(_ANSWER + proof + certificate))

    def _refuse(self, reason: str) -> None:
        """Tell it and hang up: a few bytes that fit into the socket's buffer."""
        self.send_frame(_frame(_REFUSED + reason.encode()))
        self.write()
        self.close(f"refused: {reason}")


# --- the joiner's side -----------------------------------------------------------------------------------


def _ignore(_warning: str) -> None:
    """Nobody wants to know."""


def join(
    host: str, port: int, token: Token, name: str, timeout_s: float = 10.0, warn: Callable[[str], None] = _ignore
) -> Identity:
    """Ask the head at HOST:PORT for a certificate. Blocking. `warn` is told if the clocks differ by much.

    Raises:
        AuthenticationError: this is not the cluster that the token names, or it does not accept the token.
        OSError: nobody is there, or does not answer.
    """
    where = format_address(host, port)
    with connect_tcp(host, port, JOIN_TARGET, timeout_s) as sock:
        try:
            return join_over(sock, token, name, warn)
        except ssl.SSLError as error:
            reason = _other_protocol(host, port) or explain(error)
            raise AuthenticationError(f"joining the cluster at {where} failed: {reason}") from None
        except AuthenticationError as error:
            raise AuthenticationError(f"joining the cluster at {where} failed: {error}") from None
        except ConnectionResetError as error:
            # It may have hung up before we had read why.
            reason = _other_protocol(host, port) or error.strerror or str(error)
            raise ConnectionResetError(error.errno, f"joining the cluster at {where} failed: {reason}") from None
        except OSError as error:
            reason = f"joining the cluster at {where} failed: {error.strerror or str(error) or type(error).__name__}"
            raise type(error)(error.errno, reason) from None


def _other_protocol(host: str, port: int) -> str:
    """Both numbers, if the head speaks another protocol: it says so in plain bytes (PROTOCOL). "" if it does not."""
    try:
        with connect_tcp(host, port, JOIN_TARGET, _VERSION_S) as sock:
            said = sock.recv(len(MAGIC) + 1, socket.MSG_WAITALL)
    except OSError:
        return ""  # It waits for TLS, as it should; or it is gone.
    if said[:-1] != MAGIC or said[-1] == PROTOCOL_VERSION:
        return ""
    return f"the head speaks protocol {said[-1]}, this process {PROTOCOL_VERSION}"


def join_over(sock: socket.socket, token: Token, name: str, warn: Callable[[str], None] = _ignore) -> Identity:
    """The same on a connected socket, whose preface was sent."""
    context = join_client_context()
    context.sslsocket_class = _Connected
    with context.wrap_socket(sock) as tls:
        offer = _receive(tls, _OFFER)
        server_nonce, authority = offer[:_NONCE_BYTES], offer[_NONCE_BYTES:]
        shown = tls.getpeercert(binary_form=True) or b""
        if not token.names(authority_key(authority)):
            raise AuthenticationError(
                "this is another cluster than the token's: its authority's key has another hash. "
                "Is the token of this cluster, and the address right?"
            )
        skew_s = time.time() - _CLOCK.unpack(server_nonce[: _CLOCK.size])[0]
        skew = show_skew(skew_s) if SKEW_S < abs(skew_s) < _SKEW_MOST_S else ""
        problem = f"{skew}. Set it right, and try again" if skew else ""
        check_issued(shown, authority, problem)
        request, nonce = Request(name), os.urandom(_NONCE_BYTES)
        said = (server_nonce, nonce, shown, request.der)
        tls.sendall(_frame(_REQUEST + nonce + _mac(token, b"moray join request", *said) + request.der))
        answer = _receive(tls, _ANSWER)
        proof, certificate = answer[:_MAC_BYTES], answer[_MAC_BYTES:]
        if not hmac.compare_digest(proof, _mac(token, b"moray join answer", *said, certificate)):
            raise AuthenticationError("the answer does not come from somebody who has the token")
        identity = request.answered(certificate, authority, problem)
        if skew:
            warn(f"{skew}: deadlines and the ends of certificates come at other times here. Set it right")
        return identity


class _Connected(ssl.SSLSocket):
    """Closed if the other side hangs up while it is made: wrap_socket() would leave it open."""

    def getpeername(self) -> Any:
        try:
            return super().getpeername()
        except OSError as error:
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, "the other side hung up") from error


def _receive(tls: ssl.SSLSocket, kind: bytes) -> bytes:
    size, version = HEADER.unpack(_read(tls, HEADER.size))
    if version != PROTOCOL_VERSION:
        raise AuthenticationError(f"the head speaks protocol {version}, this process {PROTOCOL_VERSION}")
    if not 0 < size <= _FRAME_LIMIT:
        raise AuthenticationError(f"the other side announced {size} bytes, which is no answer to a request to join")
    body = _read(tls, size)
    if body[:1] == _REFUSED:
        raise AuthenticationError(f"the head refused: {_said(body[1:])}")
    if body[:1] != kind:
        raise AuthenticationError("the other side does not know how to join somebody")
    return body[1:]


def _said(reason: bytes) -> str:
    """For people, and their terminals: whoever says it may not be the head at all."""
    text = reason.decode(errors="replace")[:_MOST_SAID]
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _read(tls: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = tls.recv(size - len(data))
        if not chunk:
            raise AuthenticationError("the other side hung up; its log says why")
        data += chunk
    return data
