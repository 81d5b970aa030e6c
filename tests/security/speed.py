"""Speed of the transport beside bare TLS sockets: `python -m tests.security.speed`.

Both run in two processes on this machine, alternating, and CPU time of both sides is counted: on a busy machine
that says more than the clock.
"""

from __future__ import annotations

import os
import resource
import socket
import ssl
import time
from collections.abc import Callable

from moray.protocol import cluster_messages as m
from moray.protocol.connection import encode_frame
from moray.protocol.reactor import Reactor
from moray.protocol.tls import TlsConnection
from moray.security.authority import Authority
from moray.security.identity import Identity, client_context, server_context

ROUNDS = 4
PINGS = 3000
#: 64 pieces of 4 MiB.
PIECE, PIECES = 4 << 20, 64
BYTE = b"x" * 100


def bare_server(sock: socket.socket, identity: Identity) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with server_context(identity).wrap_socket(sock, server_side=True) as tls:
        for _ in range(PINGS):
            tls.sendall(tls.recv(len(BYTE)))
        buffer, got = bytearray(PIECE), 0
        tls.sendall(b"y")
        while got < PIECE * PIECES:
            got += tls.recv_into(memoryview(buffer)[got % PIECE :])
        tls.sendall(b"z")
        tls.recv(1)


def bare_client(sock: socket.socket, identity: Identity) -> tuple[float, float]:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client_context(identity).wrap_socket(sock) as tls:
        begin = time.perf_counter()
        for _ in range(PINGS):
            tls.sendall(BYTE)
            tls.recv(len(BYTE))
        middle = time.perf_counter()
        tls.recv(1)
        piece = bytes(PIECE)
        for _ in range(PIECES):
            tls.sendall(piece)
        tls.recv(1)
        return middle - begin, time.perf_counter() - middle


class Ours:
    """Either side, with what both need."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_side: bool) -> None:
        self.reactor = Reactor()
        self.count = 0
        self.ended = False
        self.buffer = memoryview(bytearray(PIECE))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = TlsConnection(
            sock, self.reactor, self.on_message, self.on_close, context=context, server_side=server_side
        )

    def on_message(self, connection: TlsConnection, message: object) -> None:
        if isinstance(message, m.KvRequest):
            connection.send(m.KvAnswer(message.request, message.value))
        elif isinstance(message, m.PullChunk):
            connection.receive_raw(message.size, self.buffer, self.on_raw)
        else:
            self.count += 1

    def on_raw(self) -> None:
        self.count += 1
        if self.count == PIECES:
            self.connection.send(m.KvAnswer(0))

    def on_close(self, _connection: TlsConnection, _reason: str) -> None:
        self.ended = True

    def turn_until(self, condition: Callable[[], bool]) -> None:
        with self.reactor.lead:
            while not condition():
                self.reactor.turn()


def our_server(sock: socket.socket, identity: Identity) -> None:
    ours = Ours(sock, server_context(identity), True)
    ours.turn_until(lambda: ours.ended)


def our_client(sock: socket.socket, identity: Identity) -> tuple[float, float]:
    ours = Ours(sock, client_context(identity), False)
    ours.turn_until(lambda: ours.connection.ready)
    begin = time.perf_counter()
    for number in range(PINGS):
        ours.connection.send(m.KvRequest(number, "", b"", b"", BYTE))
        ours.turn_until(lambda: ours.count > number)  # noqa: B023 - called in this round only.
    middle = time.perf_counter()
    ours.count = 0
    piece = memoryview(bytes(PIECE))
    frame = encode_frame(m.PullChunk(1, 0, PIECE))
    for _ in range(PIECES):
        ours.connection.send_raw(frame, piece)
    ours.turn_until(lambda: ours.count > 0)
    end = time.perf_counter()
    ours.connection.close()
    ours.reactor.close()
    return middle - begin, end - middle


Side = Callable[[socket.socket, Identity], object]


def run(
    server: Side, client: Callable[[socket.socket, Identity], tuple[float, float]], identity: Identity
) -> tuple[float, float, float]:
    """Seconds of pings, of bulk, and of CPU time of both processes."""
    listener = socket.create_server(("127.0.0.1", 0))
    pid = os.fork()
    if not pid:
        try:
            server(listener.accept()[0], identity)
        finally:
            os._exit(0)
    before = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    times = client(socket.create_connection(listener.getsockname()), identity)
    os.waitpid(pid, 0)
    listener.close()
    after = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return *times, sum(a.ru_utime + a.ru_stime - b.ru_utime - b.ru_stime for a, b in zip(after, before, strict=True))


def main() -> None:
    identity = Authority.create().issue("speed")
    bare, ours = [], []
    for _ in range(ROUNDS):
        bare.append(run(bare_server, bare_client, identity))
        ours.append(run(our_server, our_client, identity))
    for name, rows in (("bare", bare), ("ours", ours)):
        ping, bulk, cpu = (min(column) for column in zip(*rows, strict=True))
        size = PIECE * PIECES / 1e9
        print(f"{name}: {ping / PINGS * 1e6:.0f} µs a round trip, {size / bulk:.2f} GB/s, {cpu:.2f} s of CPU in all")


if __name__ == "__main__":
    main()
