"""A link that can fail: ``python link.py HOST PORT``, a process that passes bytes on to HOST:PORT.

It prints the port at which it listens. Lines on its standard input say what becomes of the link: ``cut`` ends all
connections and refuses others, ``drop`` ends all and takes others, ``stall`` takes everything and passes nothing on,
``heal`` ends what was stalled and passes new ones on. After each it prints how many connections there were in all. Ends
with its standard input.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_PIECE = 1 << 16


class Link:
    """For tests: the process, and what it is told."""

    def __init__(self, address: str) -> None:
        """`address`: "HOST:PORT" that it leads to."""
        host, _, port = address.rpartition(":")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), host, port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.port = int(self._read())
        #: "HOST:PORT" at which it listens.
        self.address = f"127.0.0.1:{self.port}"

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the link has ended"
        return line

    def tell(self, what: str) -> int:
        """One of "cut", "drop", "stall", "heal", "count": how many connections there were so far."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        return int(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()


class _Proxy:
    def __init__(self, host: str, port: int) -> None:
        self.goal = host, port
        self.selector = selectors.DefaultSelector()
        self.listener: socket.socket | None = None
        self.port = 0
        #: Each way: from where, to where, what waits.
        self.other: dict[socket.socket, socket.socket] = {}
        self.waiting: dict[socket.socket, bytearray] = {}
        self.stalled = False
        self.accepted = 0
        self.listen()
        os.set_blocking(0, False)
        self.selector.register(0, selectors.EVENT_READ)
        print(self.port, flush=True)

    def listen(self) -> None:
        if self.listener is None:
            self.listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            self.listener.setblocking(False)
            self.port = self.listener.getsockname()[1]
            self.selector.register(self.listener, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            for key, events in self.selector.select():
                if key.fileobj == 0:
                    for line in os.read(0, 4096).decode().splitlines() or ["end"]:
                        if line == "end":
                            return
                        self.obey(line)
                elif key.fileobj is self.listener:
                    self.accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self.other:
                    self.move(key.fileobj, events)

    def obey(self, line: str) -> None:
        if line in ("cut", "drop", "heal"):
            for sock in list(self.other):
                self.end(sock)
            self.stalled = False
        if line == "cut" and self.listener is not None:
            self.selector.unregister(self.listener)
            self.listener.close()
            self.listener = None
        elif line == "stall":
            self.stalled = True
            for sock in self.other:
                self.selector.unregister(sock)
        elif line == "heal":
            self.listen()
        print(self.accepted, flush=True)

    def accept(self) -> None:
        assert self.listener is not None
        near, _address = self.listener.accept()
        self.accepted += 1
        try:
            far = socket.create_connection(self.goal)
        except OSError:
            near.close()
            return
        for sock, other in ((near, far), (far, near)):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.other[sock], self.waiting[sock] = other, bytearray()
            if not self.stalled:
                self.selector.register(sock, selectors.EVENT_READ)

    def move(self, sock: socket.socket, events: int) -> None:
        other = self.other[sock]
        try:
            if events & selectors.EVENT_READ:
                data = sock.recv(_PIECE)
                if not data:
                    self.end(sock)
                    return
                self.waiting[other] += data
            for target in (sock, other):
                waiting = self.waiting[target]
                if waiting:
                    del waiting[: target.send(waiting)]
        except BlockingIOError:
            pass
        except OSError:
            self.end(sock)
            return
        for target in (sock, other):
            # What is not taken there is not read here.
            events = selectors.EVENT_WRITE if self.waiting[target] else 0
            events |= 0 if len(self.waiting[self.other[target]]) > _PIECE else selectors.EVENT_READ
            self.selector.modify(target, events or selectors.EVENT_WRITE)

    def end(self, sock: socket.socket) -> None:
        for one in (sock, self.other.get(sock)):
            if one is not None and one in self.other:
                if one in self.selector.get_map():
                    self.selector.unregister(one)
                del self.other[one], self.waiting[one]
                one.close()


if __name__ == "__main__":
    _Proxy(sys.argv[1], int(sys.argv[2])).run()
