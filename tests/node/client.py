"""A driver without a runtime: blocking sockets that speak the node's protocol."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from moray.launch.config import NodeConfig
from moray.launch.local import NodeHandle, start_node
from moray.protocol import messages as m
from moray.protocol.connection import HEADER, decode_body
from moray.protocol.handshake import connect, receive_blocking, send_blocking

#: What anything here may take on a busy machine.
DEADLINE_S = 30.0
STANDIN = "tests.node.standin:main"

M = TypeVar("M", bound=m.Message)


class Driver:
    """A client of kind "driver"."""

    def __init__(self, address: str, process: bytes | None = None, **job: Any) -> None:
        self.process = process or os.urandom(12)
        self.sock = connect(address, DEADLINE_S)
        send_blocking(
            self.sock, m.Hello(m.PROTOCOL_VERSION, "driver", self.process, os.getpid(), "", job_config(**job))
        )
        answer, self.fds, self._data = receive_blocking(self.sock, 1)
        if isinstance(answer, m.Refused):
            self.close()
            raise PermissionError(answer.reason)
        assert isinstance(answer, m.Welcome)
        self.welcome = answer
        #: Messages that nobody has asked for yet.
        self.inbox: list[m.Message] = []

    def send(self, message: m.Message) -> None:
        send_blocking(self.sock, message)

    def expect(self, kind: type[M], accept: Callable[[M], bool] = lambda _message: True) -> M:
        """The next message of a kind; others stay in the inbox."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for message in self.inbox:
                if isinstance(message, kind) and accept(message):
                    self.inbox.remove(message)
                    return message
            if not self._receive(deadline):
                raise EOFError(f"the node hung up before it sent {kind.__name__}")

    def _receive(self, deadline: float) -> bool:
        self.sock.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = self.sock.recv(1 << 16)
        self._data += chunk
        while len(self._data) >= 8:
            size, _version = HEADER.unpack_from(self._data)
            if len(self._data) < 8 + size:
                break
            self.inbox.append(decode_body(self._data[8 : 8 + size]))
            self._data = self._data[8 + size :]
        return bool(chunk)

    def request(self, count: int, seen: int = 0, key: int = 1, runtime_env: str = "", **resources: float) -> None:
        units = {name: int(amount * m.RESOURCE_UNIT) for name, amount in (resources or {"CPU": 1}).items()}
        self.send(m.RequestLeases(key, count, seen, units, runtime_env, "function"))

    def lease(self, count: int = 1, seen: int = 0, key: int = 1, **rest: Any) -> list[m.LeaseGranted]:
        """Ask for workers and wait for them."""
        self.request(count, seen, key, **rest)
        return [self.expect(m.LeaseGranted, lambda granted: granted.key == key) for _ in range(count)]

    def state(self) -> dict[str, Any]:
        self.send(m.ClusterInfo(7))
        return self.expect(m.ClusterState).state

    def shutdown(self) -> None:
        self.send(m.Shutdown("the test is over"))
        self.expect(m.ShutdownDone)

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []


def job_config(**changes: Any) -> m.JobConfig:
    job: dict[str, Any] = {
        "sys_path": sys.path,
        "cwd": os.getcwd(),
        "environ": dict(os.environ),
        "executable": sys.executable,
        "namespace": "",
        "entrypoint": "a test",
    }
    return m.JobConfig(**(job | changes))


def tell(granted: m.LeaseGranted | str, command: str) -> str:
    """Have a stand-in worker obey; "" if that ended it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect(granted if isinstance(granted, str) else granted.address)
        try:
            sock.sendall(command.encode() + b"\n")
            return sock.recv(1 << 16).decode().strip()
        except ConnectionResetError:
            return ""


@contextmanager
def running_node(**settings: Any) -> Iterator[NodeHandle]:
    """A node whose workers are stand-ins; it is gone afterwards, whatever happened."""
    settings = {"worker_entry": STANDIN, "resources": {"CPU": 2 * m.RESOURCE_UNIT}, **settings}
    handle = start_node(NodeConfig(**settings))
    try:
        yield handle
    finally:
        handle.kill()


@contextmanager
def session(**settings: Any) -> Iterator[tuple[NodeHandle, Driver]]:
    """A node and its own driver."""
    with running_node(**settings) as handle:
        driver = Driver(handle.address)
        try:
            yield handle, driver
        finally:
            driver.close()


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.005)
    return value


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
