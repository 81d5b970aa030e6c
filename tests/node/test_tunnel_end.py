"""Both ends of a tunnel over a real connection: what its sockets do, and what a faulty other end does."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from moray.core.tunnel import DATA, OPEN
from moray.ids import PROCESS_BYTES
from moray.node.tunnel import Tunnel
from moray.node.tunnel_end import PIECE_BYTES, SILENCE_S, TunnelConnection, TunnelEnd
from moray.protocol import messages as m
from moray.protocol.connection import HEADER, decode_body, encode_frame
from moray.protocol.reactor import Reactor
from moray.protocol.relaying import open_datagrams, receive_descriptor, send_descriptor
from moray.protocol.tcp import PREFACE, format_address
from moray.security.authority import Authority
from moray.security.identity import Identity, client_context, server_context

TIMEOUT_S = 20
TAG = b"\x01\x02\x03\x04"


@pytest.fixture(name="identity", scope="module")
def _identity() -> Identity:
    return Authority.create().issue("node")


def turn_until(reactor: Reactor, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        with reactor.lead:
            reactor.turn(0.05)


class Ends:
    """Two of them in one loop. Streams that the first one opens get the sockets in `accepted` at the other one."""

    def __init__(self, identity: Identity, buffer_bytes: int = 0) -> None:
        self.reactor = Reactor()
        self.faults: list[str] = []
        self.accepted: list[socket.socket] = []
        self.ends = [TunnelEnd(self.reactor, side, self._on_open, self.faults.append) for side in (0, 1)]
        listener = socket.create_server(("127.0.0.1", 0))
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        listener.close()
        for sock in (near, far) if buffer_bytes else ():
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
        contexts = client_context(identity), server_context(identity)
        self.connections = [self._make(sock, side, contexts[side]) for side, sock in enumerate((near, far))]
        turn_until(self.reactor, lambda: all(connection.ready for connection in self.connections))
        for end, connection in zip(self.ends, self.connections, strict=True):
            end.attach(connection, 1, 0)

    def _make(self, sock: socket.socket, side: int, context: object) -> TunnelConnection:
        return TunnelConnection(
            sock,
            self.reactor,
            self.ends[side].on_message,
            lambda _connection, _reason: self.ends[side].detach(),
            context=context,  # type: ignore[arg-type]
            server_side=side == 1,
        )

    def _on_open(self, stream: int, _target: bytes) -> None:
        mine, other = socket.socketpair()
        mine.setblocking(False)
        self.accepted.append(mine)
        self.ends[1].begin(stream, other)

    def open(self) -> tuple[socket.socket, socket.socket]:
        """A stream's sockets at the first and the other end."""
        mine, other = socket.socketpair()
        mine.setblocking(False)
        self.ends[0].open(b"somewhere", other)
        count = len(self.accepted)
        turn_until(self.reactor, lambda: len(self.accepted) > count)
        return mine, self.accepted[-1]

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        for end in self.ends:
            end.close()
        self.reactor.close()
        for sock in self.accepted:
            sock.close()


@pytest.fixture(name="ends")
def _ends(identity: Identity) -> Iterator[Ends]:
    ends = Ends(identity)
    yield ends
    ends.close()


def received(ends: Ends, sock: socket.socket, size: int) -> bytes:
    """So many bytes that come out of a stream."""
    found = bytearray()

    def enough() -> bool:
        try:
            found.extend(sock.recv(size - len(found)))
        except BlockingIOError:
            pass
        return len(found) == size

    turn_until(ends.reactor, enough)
    return bytes(found)


def test_an_end_that_is_half_closed_still_takes(ends: Ends) -> None:
    near, far = ends.open()
    near.send(b"question")
    near.shutdown(socket.SHUT_WR)
    assert received(ends, far, 8) == b"question"
    far.send(b"answer")
    assert received(ends, near, 6) == b"answer"
    near.close()


def test_who_ended_one_direction_and_then_all_takes_nothing_more(ends: Ends) -> None:
    """Or the other side could send for ever, and all of it through the tunnel, to nobody."""
    near, far = ends.open()
    near.shutdown(socket.SHUT_WR)
    turn_until(ends.reactor, lambda: _at_end(far))
    near.close()
    sent = 0

    def refused() -> bool:
        nonlocal sent
        try:
            sent += far.send(bytes(1 << 16))
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            return True
        assert sent < 64 << 20, "it is taken, and goes nowhere"
        return False

    turn_until(ends.reactor, refused)
    assert not ends.faults
    assert [len(end) for end in ends.ends] == [0, 0]


def _at_end(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


def test_frames_of_no_bytes_are_a_fault(ends: Ends) -> None:
    """They need no credit: a stream that nobody reads yet could hold any number of them."""
    ends.connections[0].send(m.TunnelFrame(1, OPEN, 0, 0))
    ends.connections[0].send(m.TunnelFrame(2, DATA, 0, 0))
    turn_until(ends.reactor, lambda: ends.faults)
    assert "no bytes" in ends.faults[0]


def test_who_asks_and_does_not_listen_fills_no_memory(identity: Identity) -> None:
    """Pings are answered one by one, and what was not sent of the answers answers the later ones too."""
    ends = Ends(identity, buffer_bytes=1 << 13)
    try:
        answers = ends.connections[1].out
        peer, fd = ends.connections[0], ends.connections[0].fd
        peer.send(m.TunnelAck(0, ping=True))
        turn_until(ends.reactor, lambda: not peer.unfinished())
        ends.reactor.modify(fd, 0)  # It reads nothing any more.
        most = 0
        for _ in range(100):
            for _ in range(500):
                peer.send(m.TunnelAck(0, ping=True))
            peer.write()
            with ends.reactor.lead:
                ends.reactor.turn(0)
            most = max(most, len(answers))
        assert most < 600, "answers that nobody takes"
    finally:
        ends.close()


def test_a_reader_that_pauses_loses_no_time(ends: Ends) -> None:
    """What it takes, once its socket was full, is credited at once, not with the next thing that is said."""
    near, far = ends.open()
    with near:
        _pause_and_go_on(ends, near, far)


def _pause_and_go_on(ends: Ends, near: socket.socket, far: socket.socket) -> None:
    data = memoryview(os.urandom(32 << 20))
    sent = 0

    def stuck() -> bool:
        nonlocal sent
        try:
            sent += near.send(data[sent:])
        except BlockingIOError:
            pass
        return ends.reactor.turn(0.05) == 0

    with ends.reactor.lead:
        deadline = time.monotonic() + TIMEOUT_S
        while not stuck():
            assert time.monotonic() < deadline
    assert sent < len(data), "nobody reads, so it cannot all be under way"
    found = received(ends, far, sent)
    assert found == data[:sent]


def test_what_is_handed_over_stays_in_this_process(tmp_path: Path) -> None:
    """A program that it starts would keep the connection alive after its end."""
    path = str(tmp_path / "inbox")
    near, far = socket.socketpair()
    with near, far, open_datagrams(path) as inbox, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        assert receive_descriptor(inbox) is None
        send_descriptor(sender, far.fileno(), b"address", path)
        found = receive_descriptor(inbox)
        assert found is not None
        data, sock = found
        assert data == b"address"
        assert sock is not None
        with sock:
            assert not os.get_inheritable(sock.fileno())
            assert not sock.getblocking()
            near.send(b"x")
            assert sock.recv(1) == b"x"


# --- a driver's side alone ------------------------------------------------------------------------------------


class Relay:
    """The other side by hand, one connection at a time: a blocking socket in a thread."""

    def __init__(self, identity: Identity, act: Callable[[Relay], None], buffer_bytes: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        if buffer_bytes:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.address = format_address(*self.listener.getsockname())
        self.connections = 0
        self.number = 0
        self._context = server_context(identity)
        self._act = act
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            plain, _ = self.listener.accept()
            self.connections += 1
            assert len(plain.recv(PREFACE, socket.MSG_WAITALL)) == PREFACE
            with self._context.wrap_socket(plain, server_side=True) as self.sock:
                assert self.sock.recv(4096), "its hello"
                self.sock.sendall(encode_frame(m.TunnelWelcome(0, "127.0.0.1:1")))
                self._act(self)
                self.done.wait(TIMEOUT_S)
        except BaseException as error:
            self.error = error

    def say(self, kind: int, stream: int, data: bytes = b"", raw: int = 0) -> None:
        self.number += 1
        self.sock.sendall(encode_frame(m.TunnelFrame(self.number, kind, stream, 0, data, raw=raw)))

    def close(self) -> None:
        self.done.set()
        self.listener.close()
        self.thread.join()
        if self.error is not None:
            raise self.error


class Driver:
    """The driver's side, with this test as its node."""

    def __init__(self, directory: Path, identity: Identity, address: str) -> None:
        identity.save(directory)
        self.reactor = Reactor()
        self.adopted: list[tuple[socket.socket, bytes, str]] = []
        self.ready: list[str] = []
        self.lost: list[str] = []
        self.tunnel = Tunnel(
            self.reactor,
            str(directory),
            directory,
            address,
            TAG,
            60.0,
            lambda *what: self.adopted.append(what),
            self.ready.append,
            self.lost.append,
        )
        self.tunnel.start()

    def close(self) -> None:
        self.tunnel.close()
        self.reactor.close()
        for sock, _target, _address in self.adopted:
            sock.close()


@contextmanager
def driver_and_relay(directory: Path, identity: Identity, act: Callable[[Relay], None]) -> Iterator[Driver]:
    relay = Relay(identity, act)
    driver = Driver(directory, identity, relay.address)
    try:
        yield driver
        assert relay.connections == 1
        assert not driver.lost
    finally:
        driver.close()
        relay.close()


def test_no_descriptor_is_left(tmp_path: Path, identity: Identity) -> None:
    """Who wants to connect to the driver is refused, and its node goes on."""
    limited, again = threading.Event(), threading.Event()

    def act(relay: Relay) -> None:
        limited.wait(TIMEOUT_S)
        relay.say(OPEN, 1, TAG + bytes(PROCESS_BYTES - len(TAG)) + b"10.1.2.3")
        again.wait(TIMEOUT_S)
        relay.say(OPEN, 3, TAG + bytes(PROCESS_BYTES - len(TAG)) + b"10.1.2.3")

    with driver_and_relay(tmp_path, identity, act) as driver:
        turn_until(driver.reactor, lambda: driver.ready)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            limited.set()
            end = driver.tunnel._end
            turn_until(driver.reactor, lambda: end.core.received)
            assert not driver.adopted
            assert not len(end)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        again.set()
        turn_until(driver.reactor, lambda: driver.adopted)
        assert driver.adopted[0][1:] == (TAG + bytes(PROCESS_BYTES - len(TAG)), "10.1.2.3")


def test_a_connection_that_the_node_cannot_take_ends_nothing_else(tmp_path: Path, identity: Identity) -> None:
    def act(relay: Relay) -> None:
        for stream in (1, 3):
            relay.say(OPEN, stream, TAG + bytes(PROCESS_BYTES - len(TAG)))

    refused: list[socket.socket] = []

    def adopt(sock: socket.socket, target: bytes, source: str) -> None:
        if not refused:
            refused.append(sock)
            raise PermissionError("others may read the key")
        driver.adopted.append((sock, target, source))

    with driver_and_relay(tmp_path, identity, act) as driver:
        driver.tunnel._adopt = adopt
        turn_until(driver.reactor, lambda: driver.adopted)
        assert refused[0].fileno() < 0


@pytest.mark.long
def test_a_network_that_is_slow_is_not_lost(tmp_path: Path, identity: Identity) -> None:
    """One piece of data takes longer than nothing may be heard."""
    data = os.urandom(PIECE_BYTES)

    def act(relay: Relay) -> None:
        relay.say(OPEN, 1, TAG + bytes(PROCESS_BYTES - len(TAG)))
        relay.say(DATA, 1, raw=len(data))
        count = 30
        for begin in range(0, len(data), len(data) // count + 1):
            time.sleep((SILENCE_S + 4) / count)
            relay.sock.sendall(data[begin : begin + len(data) // count + 1])

    with driver_and_relay(tmp_path, identity, act) as driver:
        turn_until(driver.reactor, lambda: driver.adopted)
        found = bytearray()

        def enough() -> bool:
            try:
                found.extend(driver.adopted[0][0].recv(len(data)))
            except BlockingIOError:
                pass
            return len(found) == len(data)

        turn_until(driver.reactor, enough)
        assert found == data


def test_last_words_arrive_whatever_comes_meanwhile(tmp_path: Path, identity: Identity) -> None:
    """A socket that is closed while something comes drops what it has not sent."""
    words = os.urandom(16_000)
    connected, left = threading.Event(), threading.Event()
    heard: list[object] = []

    def act(relay: Relay) -> None:
        connected.wait(TIMEOUT_S)
        with suppress(OSError):  # It has hung up: what it had said may still be read.
            for _ in range(300):
                relay.sock.sendall(encode_frame(m.TunnelAck(0)))
                time.sleep(0.001)
        data = bytearray()
        while not heard:
            size = HEADER.unpack_from(data)[0] + HEADER.size if len(data) >= HEADER.size else HEADER.size
            if len(data) < size or size == HEADER.size:
                piece = relay.sock.recv(1 << 16)
                assert piece, "it has hung up without a word"
                data += piece
                continue
            message = decode_body(bytes(data[HEADER.size : size]))
            del data[:size]
            if isinstance(message, m.TunnelFrame) and message.raw:
                while len(data) < message.raw:
                    data += relay.sock.recv(1 << 16)
                del data[: message.raw]
            if isinstance(message, m.TunnelLeaves):
                heard.append(message.reason)
        relay.sock.close()
        left.set()

    relay = Relay(identity, act, buffer_bytes=1 << 12)
    driver = Driver(tmp_path, identity, relay.address)
    try:
        turn_until(driver.reactor, lambda: driver.ready)
        with driver.tunnel.connect("") as sock:
            sock.send(words)
            connected.set()
            driver.tunnel.close("it is over")
        left.wait(TIMEOUT_S)
    finally:
        driver.close()
        relay.close()
    assert heard == ["it is over"]
    assert not driver.lost
