"""A server in a process of its own, and clients in loops of their own, for the tests of the transport."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moray.protocol import cluster_messages as m
from moray.protocol.reactor import Reactor
from moray.protocol.tcp import NODE_TARGET, preface, start_connect
from moray.protocol.tls import TlsConnection
from moray.security import token as tokens
from moray.security.authority import Authority
from moray.security.identity import Identity, client_context
from moray.security.join import join
from tests.support.procs import driver_environment
from tests.tidy.source import ROOT

HOST = "127.0.0.1"


class Remote:
    """The server's process, from outside."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.security.server", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=driver_environment("", environment),
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.token = tokens.load(directory / "token")
        self.authority = Authority.load(directory)

    def ask(self) -> dict[str, Any]:
        """What it has counted; it answers between two turns of its loop."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def stat(self, kind: str) -> int:
        value: int = self.ask()["stats"].get(kind, 0)
        return value

    def join(self, name: str = "test") -> Identity:
        return join(HOST, self.port, self.token, name)

    def connect(self, target: bytes = NODE_TARGET) -> socket.socket:
        """A plain connection; `target` b"": without a preface."""
        sock = socket.create_connection((HOST, self.port), 10)
        if target:
            sock.sendall(preface(target))
        return sock

    def tls(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """A blocking TLS connection."""
        sock = self.connect()
        try:
            return context.wrap_socket(sock)
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def running(**environment: str) -> Iterator[Remote]:
    """A server for the block."""
    with tempfile.TemporaryDirectory(prefix="moray-test-") as directory:
        server = Remote(Path(directory), environment)
        try:
            yield server
        finally:
            server.close()


class Client:
    """A TlsConnection in a loop that the test itself turns."""

    def __init__(self, server: Remote, identity: Identity) -> None:
        self.reactor = Reactor()
        self.messages: list[Any] = []
        self.reason = ""
        #: Where the next raw bytes go.
        self.into: memoryview | None = None
        self.raw_done = 0
        self.connection = TlsConnection(
            start_connect(HOST, server.port),
            self.reactor,
            self._on_message,
            self._on_close,
            context=client_context(identity),
            server_side=False,
            preface=preface(),
        )

    def _on_message(self, connection: TlsConnection, message: Any) -> None:
        self.messages.append(message)
        if isinstance(message, m.PullChunk):
            connection.receive_raw(message.size, self.into, self._on_raw)

    def _on_raw(self) -> None:
        self.raw_done += 1

    def _on_close(self, _connection: TlsConnection, reason: str) -> None:
        self.reason = reason

    def turn_until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        with self.reactor.lead:
            while not condition():
                assert time.monotonic() < deadline, f"not within {timeout_s} s; closed: {self.reason!r}"
                assert not self.reason, self.reason
                self.reactor.turn(0.1)

    def round_trip(self, value: bytes = b"ping") -> float:
        """Seconds that an echo took."""
        begin = time.perf_counter()
        number = len(self.messages)
        self.connection.send(m.KvRequest(number, "echo", b"", b"", value))
        self.turn_until(lambda: len(self.messages) > number)
        assert self.messages[-1].value == value
        return time.perf_counter() - begin

    def close(self) -> None:
        self.connection.close()
        self.reactor.close()


@contextlib.contextmanager
def client_of(server: Remote, identity: Identity | None = None) -> Iterator[Client]:
    client = Client(server, identity or server.join())
    try:
        yield client
    finally:
        client.close()
