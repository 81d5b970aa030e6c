"""Attacks on a cluster's port. After each: nothing was unpickled, the server lives, others are served fast, and neither
memory nor descriptors have grown."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import socket
import ssl
import statistics
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moray.exceptions import AuthenticationError
from moray.protocol import cluster_messages as m
from moray.protocol.connection import HEADER, encode_frame
from moray.protocol.messages import PROTOCOL_VERSION
from moray.protocol.tcp import JOIN_TARGET, MAGIC, PREFACE, preface
from moray.security import token as tokens
from moray.security.authority import Authority
from moray.security.identity import Identity, client_context, join_client_context, join_server_context
from moray.security.join import join, join_over
from tests.security.harness import HOST, Client, Remote, client_of, running
from tests.support.procs import wait_until

#: A round trip of somebody else, at the median; or so many times what it was before, on a machine that is busy.
FAST_S = 0.02
SLOWER = 10
#: The same while a hundred strangers come in between two of them.
FLOODED_S = 0.2
GROWTH_BYTES = 16 << 20


class Poison:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def server(module_leaks: set[str]) -> Iterator[Remote]:
    with running(TIMEOUT_S="2") as remote:
        yield remote


@pytest.fixture(scope="module")
def identity(server: Remote) -> Identity:
    return server.join()


@pytest.fixture
def poison(server: Remote) -> bytes:
    return pickle.dumps(Poison(server.directory / "poisoned"))


@pytest.fixture
def bystander(server: Remote, identity: Identity) -> Iterator[Client]:
    """Somebody else's connection; the checks that hold after each attack."""
    with unharmed(server, identity) as client:
        yield client


@contextlib.contextmanager
def unharmed(server: Remote, identity: Identity) -> Iterator[Client]:
    with client_of(server, identity) as client:
        usual_s = statistics.median(client.round_trip() for _ in range(50))
        before = server.ask()
        yield client
        assert statistics.median(client.round_trip() for _ in range(50)) < max(FAST_S, SLOWER * usual_s)
        wait_until(lambda: server.ask()["descriptors"] <= before["descriptors"], what="the end of all attackers")
        after = server.ask()
        assert after["half_open"] == 0
        assert after["rss"] - before["rss"] < GROWTH_BYTES
        assert not (server.directory / "poisoned").exists()
        assert after["modules"] == before["modules"]


def test_the_poison_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Poison(tmp_path / "poisoned")))
    assert (tmp_path / "poisoned").exists()


def end_of(sock: socket.socket) -> bytes:
    """What the server said before it hung up."""
    sock.settimeout(10)
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(1 << 16):
            said += chunk
    return said


def refusal_of(server: Remote, identity: Identity) -> str:
    """Why a connection with this identity ended."""
    client = Client(server, identity)
    try:
        with client.reactor.lead:
            while not client.reason:
                client.reactor.turn(0.1)
        return client.reason
    finally:
        client.close()


# --- who may come in -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("bystander")
def test_no_token(server: Remote, poison: bytes) -> None:
    """Without a certificate nothing is said but "no", and without a token there is no certificate."""
    for frame in (encode_frame(m.KvRequest(1, "echo", b"", b"", poison)), poison):
        with contextlib.suppress(OSError), server.tls(join_client_context()) as tls:
            tls.sendall(frame)
            assert tls.recv(100) == b""
    wait_until(lambda: any("join with the token" in reason for reason in server.ask()["reasons"]))
    with pytest.raises(AuthenticationError, match="no token: MORAY_TOKEN is not set"):
        tokens.load(environ={"MORAY_TOKEN_FILE": str(server.directory / "nothing")})


@pytest.mark.usefixtures("bystander")
def test_wrong_token(server: Remote) -> None:
    wrong = tokens.make(server.authority.public_key)
    with pytest.raises(AuthenticationError, match="the head refused: its token is not this cluster's"):
        join(HOST, server.port, wrong, "stranger")


@pytest.mark.usefixtures("bystander")
def test_token_of_another_cluster(server: Remote) -> None:
    other = tokens.make(Authority.create().public_key)
    with pytest.raises(AuthenticationError, match=r"joining the cluster at 127\.0\.0\.1:\d+ failed: this is another"):
        join(HOST, server.port, other, "stranger")


@pytest.mark.usefixtures("bystander")
def test_foreign_authority(server: Remote) -> None:
    stranger = Authority.create().issue("stranger")
    assert "the peer's certificate was refused" in refusal_of(server, stranger)
    # One that does not look at whom it talks to is not heard either.
    mixed = stranger._replace(authority=server.authority.certificate_pem)
    assert "is this another cluster" in refusal_of(server, mixed)


@pytest.mark.usefixtures("bystander")
def test_expired_certificate(server: Remote) -> None:
    expired = server.authority.issue("late", days=-0.1)
    assert "has expired" in refusal_of(server, expired)


# --- in the middle ---------------------------------------------------------------------------------------


class Middle:
    """Somebody who accepts one connection in the server's place."""

    def __init__(self, act: Callable[[socket.socket], None]) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.port: int = self.listener.getsockname()[1]
        self.seen: list[bytes] = []
        self.thread = threading.Thread(target=self._run, args=(act,))
        self.thread.start()

    def _run(self, act: Callable[[socket.socket], None]) -> None:
        sock, _ = self.listener.accept()
        sock.settimeout(10)
        with sock, contextlib.suppress(OSError):
            act(sock)

    def close(self) -> None:
        self.thread.join(20)
        self.listener.close()
        assert not self.thread.is_alive()


def relay_join(server: Remote, identity: Identity, seen: list[bytes]) -> Callable[[socket.socket], None]:
    """TLS with the victim by a certificate of one's own, TLS with the head, and every frame passed on."""

    def act(sock: socket.socket) -> None:
        assert sock.recv(PREFACE, socket.MSG_WAITALL) == preface(JOIN_TARGET)
        with (
            join_server_context(identity).wrap_socket(sock, server_side=True) as victim,
            join_client_context().wrap_socket(server.connect(JOIN_TARGET)) as head,
        ):
            victim.sendall(head.recv(1 << 14))
            while chunk := victim.recv(1 << 14):
                seen.append(chunk)
                head.sendall(chunk)
                victim.sendall(head.recv(1 << 14))

    return act


@pytest.mark.usefixtures("bystander")
def test_man_in_the_middle_with_an_authority_of_his_own(server: Remote) -> None:
    seen: list[bytes] = []
    middle = Middle(relay_join(server, Authority.create().issue("head"), seen))
    with pytest.raises(AuthenticationError, match="its authority has not issued"):
        join(HOST, middle.port, server.token, "victim")
    middle.close()
    assert not seen  # The victim has not even sent a MAC.


@pytest.mark.usefixtures("bystander")
def test_man_in_the_middle_with_a_certificate_of_the_cluster(server: Remote, identity: Identity) -> None:
    """He may show it, but what the victim then proves holds for his certificate alone."""
    seen: list[bytes] = []
    middle = Middle(relay_join(server, identity, seen))
    with pytest.raises(AuthenticationError, match="the head refused"):
        join(HOST, middle.port, server.token, "victim")
    middle.close()
    assert seen
    assert not any(server.token.secret in chunk for chunk in seen)


@pytest.mark.usefixtures("bystander")
def test_a_refusal_does_no_harm_to_a_terminal(server: Remote) -> None:
    """Anybody can refuse, in any words."""

    def act(sock: socket.socket) -> None:
        sock.recv(PREFACE, socket.MSG_WAITALL)
        with join_server_context(Authority.create().issue("head")).wrap_socket(sock, server_side=True) as victim:
            refusal = b"X\x1b]0;hello\x07\nmoray: all is well\xff" + b"!" * 5000
            victim.sendall(HEADER.pack(len(refusal), PROTOCOL_VERSION) + refusal)
            victim.recv(1)

    middle = Middle(act)
    with pytest.raises(AuthenticationError, match="the head refused: ") as raised:
        join(HOST, middle.port, server.token, "victim")
    middle.close()
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


@pytest.mark.usefixtures("bystander")
def test_an_answer_without_the_token_is_not_believed(server: Remote, identity: Identity) -> None:
    """Somebody with a certificate, but without the token, plays the head."""

    def act(sock: socket.socket) -> None:
        sock.recv(PREFACE, socket.MSG_WAITALL)
        with join_server_context(identity).wrap_socket(sock, server_side=True) as victim:
            offer = b"O" + bytes(32) + server.authority.certificate_der
            victim.sendall(HEADER.pack(len(offer), PROTOCOL_VERSION) + offer)
            request = victim.recv(1 << 14)[8 + 65 :]
            answer = b"A" + bytes(32) + server.authority.sign(request)
            victim.sendall(HEADER.pack(len(answer), PROTOCOL_VERSION) + answer)
            victim.recv(1)

    middle = Middle(act)
    with pytest.raises(AuthenticationError, match="does not come from somebody who has the token"):
        join(HOST, middle.port, server.token, "victim")
    middle.close()


@pytest.mark.usefixtures("bystander")
def test_replayed_connection(server: Remote, identity: Identity) -> None:
    """All bytes of a client that was let in, sent again."""
    recorded: list[bytes] = []

    def act(sock: socket.socket) -> None:
        with socket.create_connection((HOST, server.port)) as head:
            back = threading.Thread(target=pump, args=(head, sock, []))
            back.start()
            pump(sock, head, recorded)
            back.join()

    def pump(source: socket.socket, target: socket.socket, record: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                record.append(chunk)
                target.sendall(chunk)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    middle = Middle(act)
    with client_context(identity).wrap_socket(
        socket.create_connection((HOST, middle.port)), do_handshake_on_connect=False
    ) as tls:
        socket.socket.sendall(tls, preface())
        tls.do_handshake()
        tls.sendall(encode_frame(m.KvRequest(1, "echo", b"", b"", b"hello")))
        assert tls.recv(1000)
        assert tls.session is None or not tls.session.has_ticket
    middle.close()
    before = server.stat("not_authenticated")
    for _ in range(3):
        with socket.create_connection((HOST, server.port)) as sock:
            sock.sendall(b"".join(recorded))
            assert b"hello" not in end_of(sock)
    assert server.stat("not_authenticated") == before + 3


@pytest.mark.usefixtures("bystander")
def test_replayed_request_to_join(server: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody who has the token has said, said again by somebody who has not."""
    recorded: list[bytes] = []

    sendall = ssl.SSLSocket.sendall

    def record(tls: ssl.SSLSocket, data: Any, flags: int = 0) -> None:
        recorded.append(bytes(data))
        sendall(tls, data, flags)

    with monkeypatch.context() as patch, server.connect(JOIN_TARGET) as sock:
        patch.setattr(ssl.SSLSocket, "sendall", record)
        join_over(sock, server.token, "honest")
    assert len(recorded) == 1
    with join_client_context().wrap_socket(server.connect(JOIN_TARGET)) as tls:
        tls.recv(1 << 14)
        tls.sendall(recorded[0])
        assert b"its token is not this cluster's" in tls.recv(1 << 14)


def test_a_server_that_resets_the_connection_leaves_no_socket_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
    fd = sock.fileno()
    with pytest.raises(ConnectionResetError, match="hung up") as caught:
        join_over(sock, tokens.Token(bytes(32), bytes(32)), "unlucky")
    with pytest.raises(OSError, match="Bad file descriptor"):  # While the traceback still holds what was made.
        os.fstat(fd)
    assert caught.value.__traceback__ is not None


# --- not even TLS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"hello, is anybody there?", "plain"),
        (b"m", "vanished"),
        (b"moray0\n" + bytes(13), "plain"),
        (b"GE", "http"),
        (b"\x16", "tls"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "http"),
        (b"POST /api/jobs/ HTTP/1.1\r\nContent-Length: 4\r\n\r\nrm *", "http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), "tls"),
        (MAGIC + bytes([PROTOCOL_VERSION + 1]) + bytes(12), "protocol"),
        (b"", "vanished"),
    ],
)
@pytest.mark.usefixtures("bystander")
def test_bytes_that_are_not_ours(server: Remote, data: bytes, kind: str, poison: bytes) -> None:
    """HTTP, TLS without our preface, anything else: closed at the first wrong byte, without an answer."""
    before = server.stat(kind)
    with server.connect(b"") as sock:
        sock.sendall(data + (poison if kind == "plain" else b""))
        if kind == "vanished":
            sock.shutdown(socket.SHUT_WR)
        assert end_of(sock) == (MAGIC + bytes([PROTOCOL_VERSION]) if kind == "protocol" else b"")
    assert server.stat(kind) == before + 1


@pytest.mark.usefixtures("bystander")
def test_plain_bytes_after_the_preface(server: Remote, poison: bytes) -> None:
    for target in (bytes(12), JOIN_TARGET):
        before = server.stat("not_authenticated")
        with server.connect(target) as sock:
            sock.sendall(encode_frame(m.KvRequest(1, "echo", b"", b"", poison)))
            assert poison not in end_of(sock)
        assert server.stat("not_authenticated") == before + 1


def test_three_lines_a_minute_for_each_kind(server: Remote) -> None:
    for _ in range(30):
        with server.connect(b"") as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            end_of(sock)
    logged = server.ask()["logged"]
    assert len([line for line in logged if "HTTP" in line]) == 3
    assert any("127.0.0.1" in line for line in logged)


# --- what is announced, and what comes ------------------------------------------------------------------


@pytest.mark.usefixtures("bystander")
def test_announced_gigabyte(server: Remote, identity: Identity) -> None:
    """Before the first message even somebody with a certificate may not announce much, a stranger nothing at all."""
    for size in (1 << 30, (1 << 32) - 1):
        header = HEADER.pack(size, PROTOCOL_VERSION)
        with server.tls(client_context(identity)) as tls:
            tls.sendall(header)
            assert end_of(tls) == b""
        with join_client_context().wrap_socket(server.connect(JOIN_TARGET)) as tls:
            tls.recv(1 << 14)
            tls.sendall(header)
            assert end_of(tls) == b""
    assert [reason for reason in server.ask()["reasons"] if f"announces {1 << 30} bytes" in reason]


def test_a_frame_that_does_not_come_costs_nothing(server: Remote, identity: Identity) -> None:
    """Nothing is allocated for what is only announced."""
    with unharmed(server, identity), server.tls(client_context(identity)) as tls:
        tls.sendall(encode_frame(m.KvRequest(1, "echo", b"", b"", b"")))
        tls.recv(1000)
        before = server.ask()["rss"]
        tls.sendall(HEADER.pack((1 << 30) - 1, PROTOCOL_VERSION) + bytes(1000))
        assert server.ask()["rss"] - before < GROWTH_BYTES


@pytest.mark.usefixtures("bystander")
def test_truncated_frames(server: Remote, identity: Identity, poison: bytes) -> None:
    frame = encode_frame(m.KvRequest(1, "echo", b"", b"", poison))
    for length in range(1, len(frame), max(1, len(frame) // 12)):
        with server.tls(client_context(identity)) as tls:
            tls.sendall(frame[:length])
            tls.shutdown(socket.SHUT_WR)
            assert end_of(tls) == b""


@pytest.mark.usefixtures("bystander")
def test_garbled_frames(server: Remote, identity: Identity, poison: bytes) -> None:
    """One byte of each frame is another: the connection ends, or the message is another one; nothing else happens."""
    frame = encode_frame(m.KvRequest(1, "echo", b"", b"", poison))
    for position in range(0, len(frame), max(1, len(frame) // 40)):
        garbled = bytearray(frame)
        garbled[position] ^= 0xFF
        with server.tls(client_context(identity)) as tls:
            tls.sendall(garbled)
            tls.shutdown(socket.SHUT_WR)
            end_of(tls)


# --- many -------------------------------------------------------------------------------------------------


def test_slow_strangers_are_cut(server: Remote, identity: Identity) -> None:
    """In the preface and in the TLS handshake alike, after the time for both."""
    with unharmed(server, identity):
        before = server.stat("too_slow")
        socks = [server.connect(target) for target in (b"", bytes(12), JOIN_TARGET)]
        socks[0].sendall(MAGIC[:3])
        for sock in socks:
            end_of(sock)
            sock.close()
        assert server.stat("too_slow") == before + 3


def test_too_many_from_one_address() -> None:
    with running(MOST_PER_ADDRESS="8", TIMEOUT_S="60") as server:
        socks = [server.connect(b"") for _ in range(20)]
        wait_until(lambda: server.stat("too_many_of_address") == 12)
        assert end_of(socks[0]) == b""  # The oldest went.
        assert server.ask()["half_open"] == 8
        server.join()  # Who is quick comes in.
        for sock in socks:
            sock.close()
        wait_until(lambda: server.ask()["half_open"] == 0)


@pytest.mark.slow
def test_ten_thousand_half_open_connections() -> None:
    """From many addresses, silent or slow, while somebody else works; as many as the machine has descriptors for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(10_000, hard - 1000)
    socks: list[socket.socket] = []
    try:
        with running(TIMEOUT_S="60") as server, unharmed(server, server.join()) as client:
            times: list[float] = []
            for number in range(count):
                sock = socket.socket()
                socks.append(sock)
                sock.bind((f"127.0.{1 + number % 64}.1", 0))
                sock.connect((HOST, server.port))
                sock.sendall((b"", MAGIC[:1], preface(), preface(JOIN_TARGET))[number % 4])
                if number % 100 == 0:
                    times.append(client.round_trip())
            assert statistics.median(times) < FLOODED_S
            state = server.ask()
            assert state["half_open"] <= 1024
            assert state["descriptors"] < 1100
            wait_until(lambda: server.stat("too_many") + server.ask()["half_open"] >= count)
            server.join()
            for sock in socks:
                sock.close()
    finally:
        for sock in socks:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
