"""The floor: tasks over bare sockets, with nothing that a runtime needs beyond moving them.

A driver, its I/O thread and forked workers joined by socket pairs. Each task is still snapshot by pickle on
its own, framed, executed and answered, because no runtime can avoid that; there is no scheduling, ownership,
error handling or flow control. What a real runtime reaches of this figure is what its bookkeeping costs,
and as both are measured in one run on one machine, the ratio carries over to other machines.

How it moves: the caller appends framed tasks to the worker with the least to do and lets them gather while that
worker is busy; a gathered batch leaves when it is large enough, when a worker runs dry, or when
somebody waits for a result. Workers answer each received batch by one send.
"""

from __future__ import annotations

import os
import pickle
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

_LENGTH = struct.Struct("<I")
#: Bytes read at once, and the socket buffers: large enough that neither side waits for the other in a burst.
_CHUNK = 1 << 18
#: Tasks gathered before they are sent to a busy worker: one system call is then shared by so many.
_BATCH = 32
#: Tasks that a worker may hold unanswered; bounds what is in the socket buffers so that sends never block.
_DEPTH = 256


def _split(buffer: bytearray) -> Iterator[bytes]:
    """Take every complete frame out of `buffer`."""
    start, end = 0, len(buffer)
    while end - start >= 4:
        stop = start + 4 + _LENGTH.unpack_from(buffer, start)[0]
        if stop > end:
            break
        yield bytes(buffer[start + 4 : stop])
        start = stop
    del buffer[:start]


def _frame(value: object) -> bytes:
    body = pickle.dumps(value, 5)
    return _LENGTH.pack(len(body)) + body


def _serve(sock: socket.socket, function: Callable[..., Any]) -> None:
    """The worker's whole life: run what arrives, until the driver hangs up."""
    buffer = bytearray()
    while data := sock.recv(_CHUNK):
        buffer += data
        replies = []
        for frame in _split(buffer):
            number, payload = pickle.loads(frame)
            value = function(*pickle.loads(payload))
            replies.append(_frame((number, pickle.dumps(value, 5))))
        if replies:
            sock.sendall(b"".join(replies))


class _Result:
    """Where one task's answer arrives."""

    __slots__ = ("payload", "waiter")

    def __init__(self) -> None:
        #: The pickled value, once it is here.
        self.payload: bytes | None = None
        #: Held by the caller that waits; released by the I/O thread.
        self.waiter: threading.Lock | None = None


class _Worker:
    """The driver's end of one worker."""

    def __init__(self, function: Callable[..., Any], siblings: list[_Worker]) -> None:
        self.sock, theirs = socket.socketpair()
        for end in (self.sock, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        #: Process id, to wait for at the end.
        self.pid = os.fork()
        if self.pid == 0:
            for inherited in [self, *siblings]:
                inherited.sock.close()
            try:
                _serve(theirs, function)
            finally:
                os._exit(0)
        theirs.close()
        #: Bytes received that are not a whole frame yet.
        self.buffer = bytearray()
        #: Tasks sent and not answered.
        self.in_flight = 0


class Floor:
    """Submit and get, over bare sockets."""

    def __init__(self, function: Callable[..., Any], workers: int = 2) -> None:
        self._workers: list[_Worker] = []
        for _ in range(workers):
            self._workers.append(_Worker(function, self._workers))
        #: Framed tasks that wait for a batch or a free worker.
        self._pending: list[bytes] = []
        #: Guards `_pending` and every `in_flight`.
        self._lock = threading.Lock()
        #: Results not fetched yet, by task number.
        self._results: dict[int, _Result] = {}
        self._number = 0
        self._selector = selectors.DefaultSelector()
        for worker in self._workers:
            self._selector.register(worker.sock, selectors.EVENT_READ, worker)
        self._io = threading.Thread(target=self._receive, daemon=True)
        self._io.start()

    def submit(self, *args: Any) -> int:
        self._number = number = self._number + 1
        message = _frame((number, pickle.dumps(args, 5)))
        self._results[number] = _Result()
        with self._lock:
            pending = self._pending
            pending.append(message)
            if len(pending) == 1 or len(pending) % _BATCH == 0:
                self._offer()
        return number

    def get(self, number: int) -> Any:
        result = self._results[number]
        if result.payload is None:
            self._wait(result)
        del self._results[number]
        assert result.payload is not None
        return pickle.loads(result.payload)

    def close(self) -> None:
        for worker in self._workers:
            worker.sock.shutdown(socket.SHUT_WR)
        for worker in self._workers:
            os.waitpid(worker.pid, 0)
        self._io.join()
        self._selector.close()
        for worker in self._workers:
            worker.sock.close()

    def _offer(self) -> None:
        """Give work to the first worker that is nearly idle, or that has room for a full batch."""
        full = len(self._pending) >= _BATCH
        for worker in self._workers:
            if worker.in_flight < 4 or (full and worker.in_flight < _DEPTH):
                self._send(worker, _BATCH)
                return

    def _send(self, worker: _Worker, most: int) -> None:
        count = min(most, _DEPTH - worker.in_flight, len(self._pending))
        if count > 0:
            worker.in_flight += count
            worker.sock.sendall(b"".join(self._pending[:count]))
            del self._pending[:count]

    def _wait(self, result: _Result) -> None:
        waiter = threading.Lock()
        waiter.acquire()
        result.waiter = waiter
        if result.payload is not None:
            return
        with self._lock:
            for worker in self._workers:
                self._send(worker, _DEPTH)
        waiter.acquire()

    def _receive(self) -> None:
        """The I/O thread."""
        while True:
            for key, _ in self._selector.select():
                worker: _Worker = key.data
                data = worker.sock.recv(_CHUNK)
                if not data:
                    return
                worker.buffer += data
                answered = self._deliver(worker.buffer)
                with self._lock:
                    worker.in_flight -= answered
                    self._send(worker, _DEPTH)

    def _deliver(self, buffer: bytearray) -> int:
        count = 0
        for frame in _split(buffer):
            number, payload = pickle.loads(frame)
            result = self._results[number]
            result.payload = payload
            if result.waiter is not None:
                result.waiter.release()
            count += 1
        return count
