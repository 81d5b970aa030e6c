"""A cluster's port for tests: joins, and an echo for whoever has a certificate.

`python -m tests.security.server DIRECTORY` prints its port, then answers each line of its input by a line of JSON: what
it has counted, its memory, and what it has imported. Payloads are never looked at: a poisoned pickle, echoed, must do
nothing here.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import psutil

from moray.protocol import cluster_messages as m
from moray.protocol.connection import encode_frame
from moray.protocol.reactor import READ, Reactor
from moray.protocol.tcp import JOIN_TARGET, HalfOpen, TcpServer
from moray.protocol.tls import TlsConnection
from moray.security import token as tokens
from moray.security.authority import Authority
from moray.security.identity import Identity, join_server_context, server_context
from moray.security.join import JoinSession


class Server:
    """Everything in one loop."""

    def __init__(self, directory: Path) -> None:
        self.reactor = Reactor()
        self.authority = Authority.create()
        self.token = tokens.make(self.authority.public_key)
        tokens.save(self.token, directory / "token")
        self.authority.save(directory)
        identity = self.authority.issue("head")
        self.certificate = _der(identity)
        self.context, self.join_context = server_context(identity), join_server_context(identity)
        self.logged: list[str] = []
        half_open = HalfOpen(
            self.reactor,
            most=int(os.environ.get("MOST_HALF_OPEN", "1024")),
            most_per_address=int(os.environ.get("MOST_PER_ADDRESS", "256")),
            timeout_s=float(os.environ.get("TIMEOUT_S", "10")),
        )
        self.tcp = TcpServer(
            self.reactor, "127.0.0.1", 0, self.on_connection, log=self.logged.append, half_open=half_open
        )
        self.reasons: list[str] = []
        self.connections = 0

    def on_connection(self, sock: socket.socket, target: bytes, address: str) -> None:
        if target == JOIN_TARGET:
            JoinSession(
                sock,
                self.reactor,
                context=self.join_context,
                certificate_der=self.certificate,
                authority=self.authority,
                token=self.token,
                half_open=self.tcp.half_open,
                peer_address=address,
                on_close=self.on_close,
            )
            return
        TlsConnection(
            sock,
            self.reactor,
            self.on_message,
            self.on_close,
            context=self.context,
            server_side=True,
            half_open=self.tcp.half_open,
            peer_address=address,
        )

    def on_close(self, connection: TlsConnection, reason: str) -> None:
        self.reasons = [*self.reasons[-99:], reason]
        if not connection.ready:
            self.tcp.report("tls", reason, connection.peer_address)

    def on_message(self, connection: TlsConnection, message: Any) -> None:
        if isinstance(message, m.KvRequest):
            connection.send(m.KvAnswer(message.request, message.value))
        elif isinstance(message, m.PullChunk):
            buffer = bytearray(message.size)
            view = memoryview(buffer)
            frame = encode_frame(message)
            connection.receive_raw(message.size, view, lambda: _sent(connection.send_raw(frame, view)))

    def command(self, _events: int) -> None:
        line = os.read(0, 1 << 16)
        if not line:
            os._exit(0)
        answer = {
            "stats": dict(self.tcp.stats),
            "half_open": len(self.tcp.half_open),
            "rss": psutil.Process().memory_info().rss,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "logged": self.logged,
            "reasons": self.reasons,
            "modules": [name for name in ("cloudpickle", "moray.serialization", "numpy") if name in sys.modules],
        }
        print(json.dumps(answer), flush=True)

    def run(self) -> None:
        self.reactor.register(0, READ, self.command)
        print(self.tcp.address[1], flush=True)
        with self.reactor.lead:
            while True:
                self.reactor.turn()


def _sent(queued: bool) -> None:
    assert queued


def _der(identity: Identity) -> bytes:
    import ssl

    return ssl.PEM_cert_to_DER_cert(identity.certificate.decode())


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Server(Path(sys.argv[1])).run()
