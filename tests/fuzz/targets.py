"""What is fuzzed: everything that reads bytes of somebody who may be anybody.

A target takes bytes, and raises if something happens that must not: an exception that is not one of ours, or two ways
of cutting the same bytes that give other messages.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec

from moray.exceptions import AuthenticationError
from moray.protocol.connection import HEADER, ProtocolError, decode_body
from moray.protocol.messages import PROTOCOL_VERSION
from moray.protocol.reactor import Reactor
from moray.protocol.tcp import JOIN_TARGET, PREFACE, HalfOpen, TcpServer, parse_address
from moray.protocol.tls import TlsConnection
from moray.security import token as tokens
from moray.security.authority import Authority, authority_key, check_issued
from moray.security.identity import join_server_context, server_context
from moray.security.join import JoinSession


class _Surroundings:
    """What connections need, made once."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.limits = HalfOpen(self.reactor)
        self.authority = Authority.create()
        self.token = tokens.make(self.authority.public_key)
        identity = self.authority.issue("fuzz")
        self.context, self.join_context = server_context(identity), join_server_context(identity)
        self.taken: list[tuple[bytes, bytes]] = []
        self.server = TcpServer(self.reactor, "127.0.0.1", 0, self._on_connection, log=lambda _line: None)

    def _on_connection(self, sock: socket.socket, target: bytes, _address: str) -> None:
        with sock:
            self.taken.append((target, sock.recv(1 << 16)))


@cache
def surroundings() -> _Surroundings:
    return _Surroundings()


def close_surroundings() -> None:
    """Leave no descriptors behind."""
    if surroundings.cache_info().currsize:
        surroundings().server.close()
        surroundings().reactor.close()
        surroundings.cache_clear()


def _cut(data: bytes, step: int) -> tuple[list[Any], str]:
    """The messages, and why it ended, if these bytes come after decryption in pieces of `step`."""
    around = surroundings()
    near, far = socket.socketpair()
    got: list[Any] = []
    ended: list[str] = []

    def on_message(_connection: TlsConnection, message: Any) -> None:
        got.append(message)

    connection = TlsConnection(
        far,
        around.reactor,
        on_message,
        lambda _connection, reason: ended.append(reason),
        context=around.context,
        server_side=True,
        half_open=around.limits,
    )
    with near:
        try:
            for position in range(0, len(data), step):
                piece = data[position : position + step]
                if connection._inbox:
                    connection._inbox += piece
                    connection._cut(connection._inbox)
                else:
                    connection._cut(memoryview(piece))
        except ProtocolError as error:
            ended.append(str(error))
        finally:
            connection.close()
            around.reactor.turn(0)  # It forgets what was closed.
    return got, ended[0]


def frames(data: bytes) -> None:
    """The cutter of frames, and the decoder behind it: the same in pieces of any size."""
    whole, reason = _cut(data, max(1, len(data)))
    for step in (1, 7) if len(data) < 500 else (97,):
        pieces, other = _cut(data, step)
        assert list(map(msgspec.msgpack.encode, pieces)) == list(map(msgspec.msgpack.encode, whole))
        assert other == reason


def messages(data: bytes) -> None:
    """The decoder of messages: what it takes, it takes again after encoding."""
    try:
        message = decode_body(data)
    except ProtocolError:
        return
    encoded = msgspec.msgpack.encode(message)  # Not repr(): an extension's has its address.
    assert msgspec.msgpack.encode(decode_body(encoded)) == encoded


def preface(data: bytes) -> None:
    """The port's first bytes: at most 20 are taken, and only from who begins as he should."""
    around = surroundings()
    with socket.create_connection(around.server.address) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        before = sum(
            around.server.stats[kind] for kind in ("handed_on", "plain", "http", "tls", "protocol", "vanished")
        )
        taken = len(around.taken)
        with around.reactor.lead:
            while before == sum(
                around.server.stats[kind] for kind in ("handed_on", "plain", "http", "tls", "protocol", "vanished")
            ):
                around.reactor.turn(1)
    right = data.startswith(b"moray1\n" + bytes([PROTOCOL_VERSION])) and len(data) >= PREFACE
    assert len(around.taken) - taken == right
    if right:
        target, rest = around.taken.pop()
        assert target == data[8:20]
        assert data[20:].startswith(rest)
    assert len(around.server.half_open) == 0


def join(data: bytes) -> None:
    """What a stranger says inside of a join, as if its TLS handshake were over."""
    around = surroundings()
    near, far = socket.socketpair()
    with near:
        session = JoinSession(
            far,
            around.reactor,
            context=around.join_context,
            certificate_der=b"certificate",
            authority=around.authority,
            token=around.token,
            half_open=around.limits,
            peer_address="127.0.0.1",
            on_close=lambda _session, _reason: None,
        )
        try:
            session._cut(memoryview(HEADER.pack(len(data), PROTOCOL_VERSION) + data))
        except ProtocolError:
            pass
        finally:
            session.close()
            around.reactor.turn(0)
        assert not session.issued


def credentials(data: bytes) -> None:
    """Tokens, requests and certificates."""
    authority = surroundings().authority
    for reader in (
        lambda: tokens.parse(data.decode(errors="replace")),
        lambda: authority.sign(data),
        lambda: check_issued(data, authority.certificate_der),
        lambda: check_issued(authority.certificate_der, data),
        lambda: authority_key(data),
    ):
        try:
            reader()
        except AuthenticationError:
            continue
    try:
        parse_address(data.decode(errors="replace"))
    except ValueError:
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    "frames": frames,
    "messages": messages,
    "preface": preface,
    "join": join,
    "credentials": credentials,
}


def seeds() -> dict[str, list[bytes]]:
    """What the corpus began with: bytes as they should be."""
    from moray.protocol import cluster_messages as m
    from moray.protocol.connection import encode_frame
    from moray.protocol.tcp import preface as begin
    from moray.security.authority import Request

    some = [
        m.KvRequest(1, "put", b"space", b"key", b"value"),
        m.KvAnswer(1, None, 2, [b"a", b"b"]),
        m.GroupList(3, [{"name": "x", "bundles": [1, 2.5, None, True, {"a": b"b"}]}]),
        m.RenewLease(4, {"CPU": 10_000}, [({"GPU": 5}, 2)]),
        m.PullChunk(1, 0, 100),
    ]
    coded = [encode_frame(message) for message in some]
    return {
        "frames": [*coded, b"".join(coded), coded[0][:-3], HEADER.pack(1 << 30, PROTOCOL_VERSION)],
        "messages": [frame[HEADER.size :] for frame in coded],
        "preface": [begin(), begin(JOIN_TARGET) + b"rest", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", begin()[:9]],
        "join": [b"R" + bytes(64) + Request("x").der, b"R", b"X"],
        "credentials": [
            Request("x").der,
            Authority.create().certificate_der,
            str(tokens.Token(bytes(32), bytes(32))).encode(),
        ],
    }


def name_of(data: bytes) -> str:
    """The name of a file of the corpus."""
    return hashlib.sha256(data).hexdigest()[:16] + ".bin"
