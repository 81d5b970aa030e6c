"""What a relay does for those who misuse it: strangers, members of the cluster, and tunnels that break the rules."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moray.cluster_utils import Cluster
from moray.core.tunnel import CREDIT, DATA, EOF, OPEN, RESET
from moray.protocol import messages as m
from moray.protocol.connection import encode_frame
from moray.protocol.reactor import Reactor
from moray.protocol.relaying import RELAY_TARGET
from moray.protocol.tcp import parse_address, preface, start_connect
from moray.protocol.tls import TlsConnection
from moray.security.contexts import contexts_of
from moray.security.identity import CERTIFICATE_FILE, join_client_context

TIMEOUT_S = 20

pytestmark = pytest.mark.slow


@pytest.fixture(name="shared_session", scope="module")
def _cluster(module_leaks: set[str]) -> Iterator[Cluster]:
    """One node, which has the head."""
    del module_leaks
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        yield cluster


class Raw:
    """A tunnel's connection, by hand."""

    def __init__(self, cluster: Cluster, context: ssl.SSLContext | None = None) -> None:
        assert cluster.head_node is not None
        self.directory = Path(cluster.head_node._handle.session_dir)
        self.address = cluster.address.rpartition("/")[2]
        self.reactor = Reactor()
        self.said: list[Any] = []
        self.closed: list[str] = []
        self.number = 0
        self.connection = TlsConnection(
            start_connect(*parse_address(self.address)),
            self.reactor,
            lambda _connection, message: self.said.append(message),
            lambda _connection, reason: self.closed.append(reason),
            context=context or contexts_of(self.directory / "tls").client,
            server_side=False,
            preface=preface(RELAY_TARGET),
        )

    def hello(
        self,
        session: bytes,
        secret: bytes,
        *,
        attempt: int = 1,
        received: int = 0,
        fresh: bool = True,
        patience_s: float = 5.0,
    ) -> None:
        self.connection.send(
            m.TunnelHello(m.PROTOCOL_VERSION, session, secret, session[:4], attempt, received, fresh, patience_s)
        )

    def say(self, kind: int, stream: int, data: bytes = b"", amount: int = 0) -> None:
        self.number += 1
        self.connection.send(m.TunnelFrame(self.number, kind, stream, 0, data, amount))

    def wait(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := condition()):
            assert time.monotonic() < deadline, (self.said, self.closed)
            with self.reactor.lead:
                self.reactor.turn(0.05)
        return found

    def first(self, kind: type[Any]) -> Any:
        return self.wait(lambda: next((message for message in self.said if isinstance(message, kind)), None))

    def frames(self, stream: int, *kinds: int) -> list[m.TunnelFrame]:
        """Those of these kinds that have come on a stream."""
        frames = [message for message in self.said if isinstance(message, m.TunnelFrame)]
        return [frame for frame in frames if frame.stream == stream and frame.kind in kinds]

    def frame(self, stream: int, *kinds: int) -> m.TunnelFrame:
        """The first of them."""
        found: list[m.TunnelFrame] = self.wait(lambda: self.frames(stream, *kinds))
        return found[0]

    def close(self) -> None:
        self.connection.close()
        self.reactor.close()


@pytest.fixture(name="raw")
def _raw(shared_session: Cluster) -> Iterator[Callable[..., Raw]]:
    made: list[Raw] = []

    def make(context: ssl.SSLContext | None = None) -> Raw:
        made.append(Raw(shared_session, context))
        return made[-1]

    yield make
    for one in made:
        one.close()


def names() -> tuple[bytes, bytes]:
    return os.urandom(16), os.urandom(32)


def test_streams_lead_to_the_cluster_only(raw: Callable[[], Raw]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.5)
        one = raw()
        one.hello(*names())
        gate = one.first(m.TunnelWelcome).gate
        port = other.getsockname()[1]
        for stream, target in ((0, f"127.0.0.1:{port}"), (2, "no address"), (4, "x" * 600), (6, "127.0.0.1:22")):
            one.say(OPEN, stream, target.encode())
            assert b"no node of the cluster" in one.frame(stream, RESET).data
        with pytest.raises(TimeoutError):
            other.accept()
        # These do: who talks nonsense there is hung up on.
        for stream, target in ((8, ""), (10, gate)):
            one.say(OPEN, stream, target.encode())
            one.say(DATA, stream, b"GET / HTTP/1.1\r\n\r\n")
            assert b"no node" not in one.frame(stream, EOF, RESET).data


def test_nobody_takes_over_the_session_of_another(raw: Callable[[], Raw]) -> None:
    session, secret = names()
    owner, thief = raw(), raw()
    owner.hello(session, secret)
    owner.first(m.TunnelWelcome)
    thief.hello(session, os.urandom(32), attempt=2)
    assert thief.first(m.Refused).code == "session"
    # Nor what comes for its tag.
    other = raw()
    other.hello(session[:4] + os.urandom(12), os.urandom(32))
    assert other.first(m.Refused).code == "session"
    owner.say(OPEN, 0)
    owner.say(DATA, 0, b"nonsense, which the head hangs up on")
    owner.frame(0, EOF, RESET)


def test_a_session_that_is_not_known(raw: Callable[[], Raw]) -> None:
    one = raw()
    one.hello(*names(), fresh=False)
    assert one.first(m.Refused).code == "unknown"


def test_an_older_attempt_comes_late(raw: Callable[[], Raw]) -> None:
    session, secret = names()
    second, first = raw(), raw()
    second.hello(session, secret, attempt=2)
    second.first(m.TunnelWelcome)
    first.hello(session, secret, attempt=1)
    first.wait(lambda: first.closed)
    assert not first.said
    second.say(OPEN, 0, b"nowhere")
    second.frame(0, RESET)


def test_a_certificate_that_cannot_be_used(raw: Callable[..., Raw]) -> None:
    """Who comes while it is in that state is refused. Those who are here stay, and so does the relay."""
    one = raw()
    one.hello(*names())
    one.first(m.TunnelWelcome)
    directory = one.directory / "tls"
    context = contexts_of(directory).client
    os.chmod(directory / CERTIFICATE_FILE, 0o644)
    try:
        two = raw(context)
        two.wait(lambda: two.closed)
        log = one.directory / "logs" / "relay.log"
        one.wait(lambda: "others may read or change it (mode 0644)" in log.read_text(encoding="utf-8"))
    finally:
        os.chmod(directory / CERTIFICATE_FILE, 0o600)
    three = raw()
    three.hello(*names())
    three.first(m.TunnelWelcome)
    one.say(OPEN, 0, b"nowhere")
    one.frame(0, RESET)


def test_patience_is_for_connections_that_are_lost(raw: Callable[[], Raw]) -> None:
    """A driver asks every two seconds. One with less patience than that does not go while it is connected."""
    session, secret = names()
    one = raw()
    one.hello(session, secret, patience_s=0.2)
    one.first(m.TunnelWelcome)
    quiet_until = time.monotonic() + 4
    one.wait(lambda: one.closed or time.monotonic() > quiet_until)
    one.connection.send(m.TunnelAck(0, ping=True))
    one.first(m.TunnelAck)
    one.connection.close()
    log = one.directory / "logs" / "relay.log"
    gone = f"the session of node {session[:4].hex()} has ended: nothing was heard of it for"
    one.wait(lambda: gone in log.read_text(encoding="utf-8"))


def test_what_was_lost_is_sent_again(raw: Callable[[], Raw]) -> None:
    session, secret = names()
    one = raw()
    one.hello(session, secret)
    one.first(m.TunnelWelcome)
    one.say(OPEN, 0, b"nowhere")
    one.frame(0, RESET)
    one.connection.close()
    again = raw()
    again.hello(session, secret, attempt=2, fresh=False)
    assert again.first(m.TunnelWelcome).received == 1
    assert b"no node" in again.frame(0, RESET).data


@pytest.mark.parametrize(
    "frames",
    [
        [(DATA, 0, b"of no stream")],
        [(OPEN, 1, b"")],
        [(OPEN, 0, b""), (OPEN, 0, b"")],
        [(OPEN, 0, b""), (EOF, 0, b""), (DATA, 0, b"x")],
        [(OPEN, 0, b""), (CREDIT, 0, b"")],
        [(9, 0, b"")],
        [(OPEN, 0, b"nowhere"), *[(DATA, 0, bytes(8000))] * 40],
    ],
)
def test_who_breaks_the_rules_is_cut_off(raw: Callable[[], Raw], frames: list[tuple[int, int, bytes]]) -> None:
    """And nobody else is."""
    other, one = raw(), raw()
    other.hello(*names())
    other.first(m.TunnelWelcome)
    one.hello(*names())
    one.first(m.TunnelWelcome)
    for frame in frames:
        one.say(*frame)
    if frames[0] == (OPEN, 0, b"nowhere"):
        # More than was granted to a stream that it is refused: dropped, until that is known there.
        one.wait(lambda: one.closed or one.frames(0, RESET))
    else:
        one.wait(lambda: one.closed)
    other.say(OPEN, 0, b"nowhere")
    other.frame(0, RESET)


@pytest.mark.parametrize(("number", "size"), [(7, 20_000), (2, 1 << 20)])
def test_long_frames_that_break_the_rules(raw: Callable[[], Raw], number: int, size: int) -> None:
    """Out of their order, or longer than any."""
    one = raw()
    one.hello(*names())
    one.first(m.TunnelWelcome)
    one.say(OPEN, 0, b"nowhere")
    frame = encode_frame(m.TunnelFrame(number, DATA, 0, 0, raw=size))
    one.connection.send_raw(frame, memoryview(bytes(size)))
    one.wait(lambda: one.closed)
    other = raw()
    other.hello(*names())
    other.first(m.TunnelWelcome)


def test_a_frame_that_is_announced_too_long(raw: Callable[[], Raw]) -> None:
    """Nothing is kept of it."""
    one = raw()
    one.hello(*names())
    one.first(m.TunnelWelcome)
    one.connection.send(m.TunnelFrame(1, OPEN, 0, 0, bytes(1 << 20)))
    one.wait(lambda: one.closed)


def test_strangers_are_not_heard(shared_session: Cluster) -> None:
    host, port = parse_address(shared_session.address.rpartition("/")[2])
    for begin in (b"GET / HTTP/1.1\r\n\r\n", b""):
        with socket.create_connection((host, port), TIMEOUT_S) as plain:
            plain.sendall(preface(RELAY_TARGET) + begin)
            plain.settimeout(15)
            if begin:
                while plain.recv(4096):
                    pass  # The alert.
    with socket.create_connection((host, port), TIMEOUT_S) as plain:
        plain.sendall(preface(RELAY_TARGET))
        # Without a certificate.
        with join_client_context().wrap_socket(plain) as sock, pytest.raises((ssl.SSLError, OSError)):
            sock.sendall(b"anything")
            if not sock.recv(1):
                raise OSError("hung up")
