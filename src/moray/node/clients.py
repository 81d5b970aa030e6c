"""Drivers and workers as the node's clients.

A client is a *process*, not a connection (LIVENESS): it is here until its pidfd says that it is dead, or it says
goodbye. A connection may be lost and made anew, with the same process id, by the same process; what was to be sent
meanwhile waits. If that becomes too much, the process cannot resume and is refused.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from moray.platform import process_control
from moray.protocol.connection import Connection, encode_frame
from moray.protocol.messages import Message
from moray.protocol.reactor import READ, Reactor, Timer

#: getsockopt(SOL_SOCKET): a pidfd of whoever connected (Linux 6.5).
_SO_PEERPIDFD = 77


class Client:
    """One driver or worker."""

    __slots__ = ("_backlog", "_limit", "address", "connection", "gone", "job", "kind", "pid", "process", "timer")

    def __init__(self, kind: str, process: bytes, pid: int, address: str, job: int, limit: int) -> None:
        #: "driver" or "worker".
        self.kind = kind
        self.process = process
        self.pid = pid
        #: Where it accepts peers.
        self.address = address
        self.job = job
        #: None: lost at the moment.
        self.connection: Connection | None = None
        #: Messages for when it is back; None: there were too many, it cannot resume.
        self._backlog: deque[Message] | None = deque()
        self._limit = limit
        self.gone = False
        #: What happens if it does not come back.
        self.timer: Timer | None = None

    def send(self, message: Message, frame: bytes = b"") -> None:
        """Send, or keep for later. `frame`: the message, encoded."""
        if self.connection is not None:
            self.connection.send_frame(frame or encode_frame(message))
        elif self._backlog is not None and not self.gone:
            self._backlog.append(message)
            if len(self._backlog) > self._limit:
                self._backlog = None

    def may_resume(self) -> bool:
        """Whether nothing that it should know has been dropped."""
        return self._backlog is not None

    def attach(self, connection: Connection) -> None:
        """It is here, for the first time or again."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        previous, self.connection = self.connection, connection
        connection.peer = self
        if previous is not None:
            previous.peer = None
            previous.close("replaced by a new connection of the same process")
        while self._backlog:
            connection.send(self._backlog.popleft())

    def detach(self, connection: Connection) -> bool:
        """A connection ended; True if that leaves it without any."""
        if self.connection is not connection:
            return False
        self.connection = None
        return not self.gone

    def drain(self) -> None:
        """Handle what a dead process had still sent, so that nothing that arrived is lost."""
        connection = self.connection
        while connection is not None and connection is self.connection and connection.readable():
            connection.on_events(READ)

    def leave(self) -> None:
        """It is gone: close its connection."""
        self.gone = True
        if self.timer is not None:
            self.timer.cancel()
        if self.connection is not None:
            connection, self.connection = self.connection, None
            connection.close("the process is gone")


class Clients:
    """All clients, by process and by job."""

    def __init__(self) -> None:
        self._by_process: dict[bytes, Client] = {}
        self._by_job: dict[int, dict[bytes, Client]] = {}

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._by_process.values()))

    def __len__(self) -> int:
        return len(self._by_process)

    def get(self, process: bytes) -> Client | None:
        return self._by_process.get(process)

    def add(self, client: Client) -> None:
        self._by_process[client.process] = client
        self._by_job.setdefault(client.job, {})[client.process] = client

    def remove(self, client: Client) -> None:
        """Forget it and close its connection."""
        if self._by_process.pop(client.process, None) is not None:
            del self._by_job[client.job][client.process]
            if not self._by_job[client.job]:
                del self._by_job[client.job]
        client.leave()

    def of_job(self, job: int) -> list[Client]:
        return list(self._by_job.get(job, {}).values())

    def send(self, process: bytes, message: Message) -> None:
        """Send to a process; a dead one needs no messages."""
        client = self._by_process.get(process)
        if client is not None:
            client.send(message)

    def send_all(self, processes: Iterable[bytes], message: Message) -> None:
        """The same to several."""
        frame = encode_frame(message)
        for process in processes:
            client = self._by_process.get(process)
            if client is not None:
                client.send(message, frame)


class PidWatch:
    """Calls back once when a process that is not our child has died."""

    def __init__(self, pidfd: int, reactor: Reactor, on_death: Callable[[], None]) -> None:
        self._pidfd = pidfd
        self._reactor = reactor
        self._on_death = on_death
        reactor.register(pidfd, READ, self._fired)

    def _fired(self, _events: int) -> None:
        self.close()
        self._on_death()

    def close(self) -> None:
        """Watch no longer."""
        if self._pidfd >= 0:
            self._reactor.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def peer_pidfd(sock: socket.socket, pid: int) -> int | None:
    """A pidfd of the process that connected `sock`; None if it is gone."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        # An older kernel: the number is all there is; or the process is gone.
        return process_control.open_pidfd(pid)
