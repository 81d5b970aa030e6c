"""The encrypted connection and the port before it, between real sockets."""

from __future__ import annotations

import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moray.protocol import cluster_messages as m
from moray.protocol.connection import MAX_FRAME, encode_frame
from moray.protocol.messages import PROTOCOL_VERSION
from moray.protocol.reactor import Reactor
from moray.protocol.tcp import (
    MAGIC,
    HalfOpen,
    TcpServer,
    connect_tcp,
    format_address,
    parse_address,
    preface,
    start_connect,
)
from moray.protocol.tls import TlsConnection
from moray.protocol.tls_sending import SEAL_BYTES
from moray.security.authority import Authority
from moray.security.identity import Identity, client_context, server_context
from tests.support.procs import wait_until


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Authority.create().issue("node")


class Pair:
    """Two ends in two reactors, each turned by a thread or by the test."""

    def __init__(self, identity: Identity) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        listener.close()
        self.reactors = [Reactor(), Reactor()]
        self.got: list[list[Any]] = [[], []]
        self.reasons: list[str] = ["", ""]
        self.on_message: Callable[[TlsConnection, Any], None] = lambda _connection, _message: None
        self.ends = [
            self._make(near, 0, client_context(identity)),
            self._make(far, 1, server_context(identity)),
        ]
        self.stopping = False
        self.threads: list[threading.Thread] = []

    def _make(self, sock: socket.socket, index: int, context: ssl.SSLContext) -> TlsConnection:
        def message(connection: TlsConnection, what: Any) -> None:
            self.got[index].append(what)
            self.on_message(connection, what)

        def close(_connection: TlsConnection, reason: str) -> None:
            self.reasons[index] = reason

        return TlsConnection(sock, self.reactors[index], message, close, context=context, server_side=index == 1)

    def turn(self, index: int, timeout_s: float = 0.0) -> None:
        with self.reactors[index].lead:
            self.reactors[index].turn(timeout_s)

    def turn_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.reasons
            self.turn(0, 0.005)
            self.turn(1, 0.005)

    def start(self) -> None:
        def loop(reactor: Reactor) -> None:
            with reactor.lead:
                while not self.stopping:
                    reactor.turn()

        self.threads = [threading.Thread(target=loop, args=(reactor,)) for reactor in self.reactors]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        self.stopping = True
        for reactor in self.reactors:
            reactor.interrupt()
        for thread in self.threads:
            thread.join()
        for end in self.ends:
            end.close()
        for reactor in self.reactors:
            reactor.close()


@pytest.fixture
def pair(identity: Identity) -> Iterator[Pair]:
    pair = Pair(identity)
    yield pair
    pair.close()


def put(number: int, value: bytes = b"") -> m.KvRequest:
    return m.KvRequest(number, "put", b"", b"", value)


# --- sending and receiving ----------------------------------------------------------------------------------


def test_frames_of_all_sizes_arrive_in_order(pair: Pair) -> None:
    sizes = [0, 1, 100, (1 << 14) - 40, 1 << 14, (1 << 14) + 1, 1 << 18, (1 << 18) + 7, 3 << 20, 5, 5]
    for number, size in enumerate(sizes):  # Before the handshake: they wait for it.
        pair.ends[0].send(put(number, os.urandom(size)))
    pair.turn_until(lambda: len(pair.got[1]) == len(sizes))
    assert [(message.request, len(message.value)) for message in pair.got[1]] == list(enumerate(sizes))
    assert not pair.ends[0].out


def test_many_threads_send_while_both_sides_flood_each_other(pair: Pair) -> None:
    """Nobody reads less because of what it has to write (FLOW)."""
    pair.start()
    threads, frames = 4, 300

    def send(end: TlsConnection, base: int) -> None:
        chance = random.Random(base)
        for number in range(frames):
            assert end.send_frame(encode_frame(put(base * frames + number, bytes(chance.choice((10, 1000, 40_000))))))

    senders = [threading.Thread(target=send, args=(end, base)) for end in pair.ends for base in range(threads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    wait_until(lambda: all(len(got) == threads * frames for got in pair.got), 60)
    for got in pair.got:
        for base in range(threads):
            mine = [message.request for message in got if message.request // frames == base]
            assert mine == sorted(mine)


def test_a_sleeping_loop_is_woken(pair: Pair) -> None:
    pair.start()
    wait_until(lambda: pair.ends[0].ready and pair.ends[1].ready)
    times = []
    for number in range(30):
        time.sleep(0.005)  # So that both sleep.
        begin = time.perf_counter()
        pair.ends[0].send(put(number))
        while len(pair.got[1]) <= number:
            time.sleep(0.0002)
        times.append(time.perf_counter() - begin)
    assert sorted(times)[15] < 0.1  # A lost wake-up costs a heartbeat: a second.


def test_an_interrupted_sender_delays_its_frame_by_a_heartbeat(pair: Pair) -> None:
    """As if a signal had come between its append and the wake-up."""
    pair.turn_until(lambda: pair.ends[0].ready and pair.ends[1].ready)
    pair.start()
    end = pair.ends[0]
    end.out.append((encode_frame(put(7)), None, None, None))
    wait_until(lambda: len(pair.got[1]) == 1, 5)


@pytest.mark.parametrize("size", [0, 1, 1000, 16_384, (1 << 20) + 3, 20 << 20])
def test_raw_bytes_land_where_they_belong(pair: Pair, size: int) -> None:
    """Between ordinary frames, in the middle of a buffer, and several in a row."""
    data = os.urandom(size)
    into = bytearray(size + 20)
    done: list[str] = []

    def on_message(connection: TlsConnection, message: Any) -> None:
        if isinstance(message, m.PullChunk):
            view = memoryview(into)[10 : 10 + size] if message.pull == 2 else None
            connection.receive_raw(message.size, view, lambda: done.append(f"got {message.pull}"))

    pair.on_message = on_message
    for number in range(1, 4):
        pair.ends[0].send(put(number))
        frame = encode_frame(m.PullChunk(number, 0, size))
        pair.ends[0].send_raw(frame, memoryview(data), lambda number=number: done.append(f"sent {number}"))  # type: ignore[misc]
    pair.ends[0].send(put(4))
    pair.turn_until(lambda: len(pair.got[1]) == 7)
    assert bytes(into[10 : 10 + size]) == data
    assert not any(into[:10] + into[10 + size :])
    assert sorted(done) == ["got 1", "got 2", "got 3", "sent 1", "sent 2", "sent 3"]
    assert [type(message).__name__ for message in pair.got[1]] == ["KvRequest", "PullChunk"] * 3 + ["KvRequest"]


def test_raw_bytes_may_come_in_one_record_with_what_is_around_them(pair: Pair) -> None:
    """How the other side cuts its records is its own business."""
    data, into, done = os.urandom(3000), bytearray(3000), list[int]()
    pair.on_message = lambda connection, message: (
        connection.receive_raw(message.size, memoryview(into), lambda: done.append(len(pair.got[1])))
        if isinstance(message, m.PullChunk)
        else None
    )
    frame = encode_frame(m.PullChunk(1, 0, len(data)))
    for piece in (encode_frame(put(1)) + frame + data[:1000], data[1000:1001], data[1001:] + encode_frame(put(2))):
        pair.ends[0].send_frame(piece)
        pair.turn_until(lambda: not pair.ends[0].out and pair.ends[0].ready)
        pair.turn(1, 0.01)
    pair.turn_until(lambda: len(pair.got[1]) == 3)
    assert bytes(into) == data
    assert done == [2]


def test_raw_bytes_that_do_not_fit_are_refused(pair: Pair) -> None:
    errors: list[str] = []

    def on_message(connection: TlsConnection, message: Any) -> None:
        try:
            connection.receive_raw(message.size, memoryview(bytearray(5)), lambda: None)
        except ValueError as error:
            errors.append(str(error))
            connection.close()

    pair.on_message = on_message
    pair.ends[0].send_raw(encode_frame(m.PullChunk(1, 0, 6)), memoryview(bytes(6)))
    pair.turn_until(lambda: bool(errors))
    assert errors == ["6 bytes do not fit into a buffer of 5"]


def test_a_peer_that_does_not_read_costs_no_second_copy(pair: Pair) -> None:
    """What waits is encrypted only when the socket has room, and somebody is told when it is sent (FLOW)."""
    pair.turn_until(lambda: pair.ends[0].ready and pair.ends[1].ready)
    sent: list[int] = []
    data = memoryview(bytes(4 << 20))
    for number in range(30):
        pair.ends[0].send_raw(encode_frame(m.PullChunk(number, 0, len(data))), data, lambda: sent.append(1))
    begin = time.monotonic()
    for _ in range(50):
        pair.turn(0)
    assert time.monotonic() - begin < 10
    assert len(pair.ends[0].out) > 0
    assert sum(map(len, pair.ends[0]._sealed)) <= SEAL_BYTES + 1024 * (SEAL_BYTES >> 14)
    assert len(sent) < 30
    pair.on_message = lambda connection, message: connection.receive_raw(message.size, None, lambda: None)
    pair.turn_until(lambda: len(pair.got[1]) == 30 and len(sent) == 30)
    pair.turn_until(lambda: not pair.ends[0].out)


# --- the end -------------------------------------------------------------------------------------------------


def test_records_are_settled_before_the_other_side_can_have_them(pair: Pair) -> None:
    """And what is found in `out` after the end has never been seen there."""
    pair.turn_until(lambda: pair.ends[0].ready and pair.ends[1].ready)
    end, count = pair.ends[0], 400
    for number in range(count):
        assert end.send_frame(encode_frame(put(number, bytes(50_000))), number)
    for _ in range(20):
        pair.turn(0)
    left: list[Any] = []
    end.on_close = lambda connection, _reason: left.extend(entry[2] for entry in connection.out)
    end.close("cut")
    settled = [entry[2] for entry in end.settled]
    assert left
    assert settled + [record for record in left if record is not None] == list(range(count))
    pair.turn_until(lambda: bool(pair.reasons[1]))
    assert {message.request for message in pair.got[1]} <= set(settled)
    assert not end.send_frame(b"late", 1)
    assert end.ended()


def test_what_cannot_be_sent_is_told(pair: Pair) -> None:
    called: list[int] = []
    pair.turn_until(lambda: pair.ends[0].ready and pair.ends[1].ready)
    for _ in range(10):
        pair.ends[0].send_raw(
            encode_frame(m.PullChunk(1, 0, 4 << 20)), memoryview(bytes(4 << 20)), lambda: called.append(1)
        )
    pair.turn(0)
    pair.ends[0].close()
    pair.turn(0)
    assert len(called) == 10


def test_both_sides_know_the_other_ones_certificate(pair: Pair, identity: Identity) -> None:
    assert pair.ends[0].peer_certificate() == b""
    pair.turn_until(lambda: pair.ends[0].ready and pair.ends[1].ready)
    der = ssl.PEM_cert_to_DER_cert(identity.certificate.decode())
    assert [end.peer_certificate() for end in pair.ends] == [der, der]


def test_the_limit_of_frames_rises_after_the_first() -> None:
    assert TlsConnection.first_frame_limit < TlsConnection.frame_limit == MAX_FRAME


def test_a_handshake_that_does_not_come_ends(identity: Identity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reactor, reasons = Reactor(), list[str]()
        connection = TlsConnection(
            socket.create_connection(listener.getsockname()),
            reactor,
            lambda *_: None,
            lambda _connection, reason: reasons.append(reason),
            context=client_context(identity),
            server_side=False,
            handshake_timeout_s=0.1,
        )
        with reactor.lead:
            while not reasons:
                reactor.turn()
        assert reasons == ["the peer did not finish the TLS handshake in time"]
        assert isinstance(connection.error, TimeoutError)
        reactor.close()


# --- connecting ----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_a_refused_connection_says_so(identity: Identity) -> None:
    port = free_port()
    with pytest.raises(ConnectionRefusedError, match=rf"no connection to 127\.0\.0\.1:{port}: Connection refused"):
        connect_tcp("127.0.0.1", port)
    reactor, reasons = Reactor(), list[str]()
    connection = TlsConnection(
        start_connect("127.0.0.1", port),
        reactor,
        lambda *_: None,
        lambda _connection, reason: reasons.append(reason),
        context=client_context(identity),
        server_side=False,
        preface=preface(),
    )
    with reactor.lead:
        while not reasons:
            reactor.turn()
    assert isinstance(connection.error, ConnectionRefusedError)
    reactor.close()


def test_the_loop_resolves_no_names() -> None:
    with pytest.raises(socket.gaierror):
        start_connect("localhost", 1)


def test_addresses() -> None:
    assert parse_address("10.0.0.1:6379") == ("10.0.0.1", 6379)
    assert parse_address("[fd00::1]:80") == ("fd00::1", 80)
    assert parse_address(format_address("fd00::1", 80)) == ("fd00::1", 80)
    for text in ("10.0.0.1", "10.0.0.1:", ":80", "fd00::1:80", "host:99999", "host:x"):
        with pytest.raises(ValueError, match="write HOST:PORT"):
            parse_address(text)


def test_a_port_that_is_taken_is_named() -> None:
    reactor = Reactor()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot listen at 127\.0\.0\.1:{port}: Address already in use"):
            TcpServer(reactor, "127.0.0.1", port, lambda *_: None, log=print)
    reactor.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_rest_of_the_stream_is_handed_on_untouched(host: str) -> None:
    """Byte by byte or at once: exactly the preface is read, so that another process can go on."""
    reactor, taken = Reactor(), list[tuple[socket.socket, bytes, str]]()
    server = TcpServer(reactor, host, 0, lambda *what: taken.append(what), log=print)
    target = bytes(range(12))
    data = preface(target) + b"the rest"
    socks = []
    with reactor.lead:
        for step in (1, 7, len(data)):
            sock = socket.create_connection(server.address)
            socks.append(sock)
            for position in range(0, len(data), step):
                sock.sendall(data[position : position + step])
                reactor.turn(0.01)
        while len(taken) < 3:
            reactor.turn()
    for sock, asked, address in taken:
        assert (asked, address) == (target, host)
        mine, theirs = socket.socketpair()
        socket.send_fds(mine, [b"x"], [sock.fileno()])
        _data, (fd,), _flags, _address = socket.recv_fds(theirs, 1, 1)
        with socket.socket(fileno=fd) as passed:
            passed.setblocking(True)
            passed.settimeout(5)
            rest = b""
            while len(rest) < 8:
                chunk = passed.recv(8 - len(rest))
                assert chunk
                rest += chunk
            assert rest == b"the rest"
        for other in (mine, theirs, sock):
            other.close()
    for sock in socks:
        sock.close()
    assert server.stats["handed_on"] == 3
    assert len(server.half_open) == 0
    server.close()
    reactor.close()


def test_another_protocol_is_refused_naming_both(identity: Identity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reactor, reasons = Reactor(), list[str]()
        TlsConnection(
            socket.create_connection(listener.getsockname()),
            reactor,
            lambda *_: None,
            lambda _connection, reason: reasons.append(reason),
            context=client_context(identity),
            server_side=False,
        )
        peer, _ = listener.accept()
        peer.sendall(MAGIC + bytes([99]))
        with reactor.lead:
            while not reasons:
                reactor.turn()
        peer.close()
        assert reasons == [
            f"malformed data from the peer: the peer speaks protocol 99, this process {PROTOCOL_VERSION}"
        ]
        reactor.close()


def test_an_ipv6_network_counts_as_one_address() -> None:
    reactor, cut = Reactor(), list[int]()
    limits = HalfOpen(reactor, most=100, most_per_address=2)
    for number in range(4):
        limits.admit(f"fd00:0:0:1::{number + 1:x}", lambda _reason, number=number: cut.append(number))  # type: ignore[misc]
    limits.admit("fd00:0:0:2::1", lambda _reason: cut.append(-1))
    limits.admit("::ffff:10.0.0.1", lambda _reason: cut.append(-2))
    assert cut == [0, 1]
    assert len(limits) == 4
    limits.close()
    assert len(limits) == 0
    reactor.close()
