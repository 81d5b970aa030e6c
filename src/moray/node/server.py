"""Accepting clients: who may connect, without waiting for anybody.

The socket lies in the session's 0700 directory, and the kernel says which user and process connected. A peer has
a few seconds for one frame of limited size, a Hello (:mod:`~moray.node.settings`); nothing else is heard from it
before that, and its bytes are collected as they come, so a slow or silent peer costs a timer and a descriptor.
Another protocol number is refused, naming both (PROTOCOL).
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from moray.node.logs import log
from moray.node.settings import Settings
from moray.protocol.connection import HEADER, ProtocolError, decode_body, encode_frame
from moray.protocol.handshake import listen, peer_pid
from moray.protocol.messages import PROTOCOL_VERSION, Hello, Message, Refused, Welcome
from moray.protocol.reactor import READ, RECEIVE_BYTES, Reactor

#: Connections that are accepted in one turn of the loop, so that a flood leaves time for others.
_ACCEPT_AT_ONCE = 64
_RETRY_S = 0.2


class Newcomer:
    """A connection that has not said who it is."""

    def __init__(
        self,
        sock: socket.socket,
        pid: int,
        reactor: Reactor,
        settings: Settings,
        on_hello: Callable[[Newcomer, Hello], None],
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        #: The process that connected, as the kernel knows it.
        self.pid = pid
        #: What came after its Hello.
        self.leftover = b""
        self._reactor = reactor
        self._limit = settings.handshake_bytes
        self._on_hello = on_hello
        self._data = b""
        self._timer = reactor.call_later(settings.handshake_timeout_s, self._too_slow)
        reactor.register(sock.fileno(), READ, self._on_events)

    def refuse(self, reason: str) -> None:
        """Tell it why, and hang up."""
        log(f"process {self.pid} was refused: {reason}")
        self._send(Refused(reason))
        self.close()

    def welcome(self, message: Welcome, fd: int) -> bool:
        """Answer, with the arena's descriptor; False if it is gone."""
        return self._send(message, [fd])

    def hold(self) -> None:
        """It has said Hello, and its answer must be fetched: read nothing more meanwhile, however long that takes."""
        self._timer.cancel()
        self._reactor.unregister(self.sock.fileno())

    def release(self) -> None:
        """Leave the socket to whoever takes it over."""
        self.hold()

    def close(self) -> None:
        """Hang up."""
        self.release()
        self.sock.close()

    def _send(self, message: Message, fds: list[int] | None = None) -> bool:
        frame = encode_frame(message)
        try:
            # The first frame on a fresh socket: it fits into the socket's buffer.
            return socket.send_fds(self.sock, [frame], fds or []) == len(frame)
        except OSError:
            return False

    def _too_slow(self) -> None:
        self.refuse("it did not say Hello in time")

    def _on_events(self, _events: int) -> None:
        try:
            chunk = self.sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return
        self._data += chunk
        try:
            hello = self._cut()
        except ProtocolError as error:
            self.refuse(str(error))
            return
        if hello is not None:
            self._on_hello(self, hello)

    def _cut(self) -> Hello | None:
        """Its Hello, once it is complete."""
        if len(self._data) < HEADER.size:
            return None
        size, version = HEADER.unpack_from(self._data)
        if version != PROTOCOL_VERSION:
            raise ProtocolError(f"the peer speaks protocol {version}, this node {PROTOCOL_VERSION}")
        if size > self._limit:
            raise ProtocolError(f"the first message has {size} bytes; at most {self._limit} are accepted")
        end = HEADER.size + size
        if len(self._data) < end:
            return None
        message = decode_body(self._data[HEADER.size : end])
        if not isinstance(message, Hello):
            raise ProtocolError(f"the first message was {type(message).__name__}, not Hello")
        self.leftover = self._data[end:]
        return message


class Server:
    """The node's listening socket."""

    def __init__(
        self, address: str, reactor: Reactor, settings: Settings, on_hello: Callable[[Newcomer, Hello], None]
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._on_hello = on_hello
        self._socket = listen(address)
        self._listen()

    def _listen(self) -> None:
        self._reactor.register(self._socket.fileno(), READ, self._accept)

    def close(self) -> None:
        """Accept nobody any more."""
        self._reactor.unregister(self._socket.fileno())
        self._socket.close()

    def _accept(self, _events: int) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, _address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Too many descriptors are open, most likely: try again when some may be closed.
                log(f"a connection could not be accepted: {error}")
                self._reactor.unregister(self._socket.fileno())
                self._reactor.call_later(_RETRY_S, self._listen)
                return
            try:
                pid = peer_pid(sock)
            except PermissionError as error:
                log(str(error))
                sock.close()
                continue
            Newcomer(sock, pid, self._reactor, self._settings, self._on_hello)
