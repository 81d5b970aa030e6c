"""A worker without a runtime: it registers with the node and does what a test tells it over its own socket.

Commands are lines, each answered by a line; see :meth:`StandIn.obey`. ``sleep-child`` is a subprocess in the worker's
process group, ``daemon`` a fork without exec in a session of its own, detached, ``hang`` stops listening to the node.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from moray.protocol import messages as m
from moray.protocol.connection import HEADER, decode_body
from moray.protocol.handshake import connect, receive_blocking, send_blocking


class StandIn:
    def __init__(self, node: socket.socket, leftover: bytes, listener: socket.socket) -> None:
        self.node = node
        self.data = leftover
        self.listener = listener
        self.hanging = False
        #: What the node has sent to make an actor of this process.
        self.creation = ""

    def serve(self) -> NoReturn:
        clients: list[socket.socket] = []
        while True:
            watched = [self.listener, *clients] if self.hanging else [self.node, self.listener, *clients]
            for ready in select.select(watched, [], [])[0]:
                if ready is self.node:
                    self.hear_node()
                elif ready is self.listener:
                    clients.append(self.listener.accept()[0])
                else:
                    line = ready.recv(4096).decode().strip()
                    if line:
                        ready.sendall(f"{self.obey(*line.split(maxsplit=1))}\n".encode())
                    else:
                        clients.remove(ready)

    def hear_node(self) -> None:
        chunk = self.node.recv(1 << 16)
        if not chunk:
            os._exit(0)
        self.data += chunk
        while len(self.data) >= 8:
            size, _version = HEADER.unpack_from(self.data)
            if len(self.data) < 8 + size:
                return
            message, self.data = decode_body(self.data[8 : 8 + size]), self.data[8 + size :]
            if isinstance(message, m.RevokeLease):
                send_blocking(self.node, m.RevokedLease(message.lease))
            elif isinstance(message, m.StartActor):
                self.creation = message.creation.payload.decode()
                send_blocking(self.node, m.ActorStarted(message.actor, message.incarnation))
            elif isinstance(message, m.Shutdown):
                print(f"asked to end: {message.reason}", file=sys.stderr, flush=True)
                os._exit(0)

    def obey(self, command: str, argument: str = "") -> object:
        answers: dict[str, Callable[[], object]] = {
            "exit": lambda: os._exit(int(argument)),
            "signal": lambda: os.kill(os.getpid(), int(argument)),
            "raise": lambda: fail(argument),
            "env": lambda: os.environ.get(argument),
            "random": random.random,
            "say": lambda: print(argument, file=sys.stderr, flush=True),
            "sleep-child": lambda: subprocess.Popen(["sleep", "1000"]).pid,
            "daemon": detach,
            "threads": threading.active_count,
            "sid": lambda: f"{os.getsid(0)} {os.getpid()}",
            "cwd": os.getcwd,
            "path": lambda: sys.path,
            "fds": descriptors,
            "module": lambda: argument in sys.modules,
            "blocked": lambda: send_blocking(self.node, m.Blocked()),
            "unblocked": lambda: send_blocking(self.node, m.Unblocked()),
            "started": lambda: self.be_actor(*argument.split()),
            "exiting": lambda: self.leave(*argument.split()),
            "creation": lambda: self.creation,
            "register": lambda: self.create_actor(bytes.fromhex(argument)),
            "garbage": self.send_garbage,
            "hang": self.hang,
        }
        return answers[command]()

    def be_actor(self, actor: str, incarnation: str, error: str = "") -> None:
        send_blocking(self.node, m.ActorStarted(bytes.fromhex(actor), int(incarnation), error.encode()))

    def leave(self, actor: str, incarnation: str, reason: str) -> None:
        send_blocking(self.node, m.ActorExiting(bytes.fromhex(actor), int(incarnation), reason))
        os._exit(0)

    def create_actor(self, actor: bytes) -> None:
        send_blocking(self.node, m.RegisterActor(0, m.ActorSpec(actor, "Child", {}, {})))

    def send_garbage(self) -> None:
        self.node.sendall(b"GET / HTTP/1.1\r\n\r\n")
        self.hang()

    def hang(self) -> None:
        self.hanging = True


def fail(text: str) -> NoReturn:
    raise ValueError(text)


def descriptors() -> str:
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return " ".join(os.readlink(path) for path in paths if os.path.lexists(path))


def detach() -> int:
    """The pid of a process that left this one's group and session, and has no parent but the reaper."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write_end, str(os.getpid()).encode())
            while True:
                signal.pause()
        os._exit(0)
    os.wait()
    return int(os.read(read_end, 20))


def main(node_address: str, process: bytes, job_id: int, session_dir: str, log_paths: tuple[str, str]) -> NoReturn:
    assert all(map(os.path.exists, log_paths))
    address = f"{session_dir}/{process.hex()}.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    sock = connect(node_address)
    sock.settimeout(None)
    send_blocking(sock, m.Hello(m.PROTOCOL_VERSION, "worker", process, os.getpid(), address, None, job_id))
    welcome, _fds, leftover = receive_blocking(sock, 1)
    assert isinstance(welcome, m.Welcome), welcome
    StandIn(sock, leftover, listener).serve()
