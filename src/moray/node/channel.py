"""A socket between the node and a template: packets with descriptors, never blocking the node (FLOW)."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable

from moray.node.template_messages import PACKET_BYTES, AnyPacket, Packet, decode, encode
from moray.protocol.reactor import READ, WRITE, Reactor

#: Descriptors that may ride along with one packet.
_MAX_FDS = 2


class Channel:
    """The node's end. Packets keep their borders and their order."""

    def __init__(
        self,
        sock: socket.socket,
        reactor: Reactor,
        on_packet: Callable[[AnyPacket, list[int]], None],
        on_close: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reactor = reactor
        self._on_packet = on_packet
        self._on_close = on_close
        #: What the socket did not take yet, oldest first; the descriptors are ours until they are sent.
        self._out: deque[tuple[bytes, list[int]]] = deque()
        self.closed = False
        reactor.register(sock.fileno(), READ, self._on_events)

    def send(self, packet: Packet, fds: list[int] | None = None) -> None:
        """Send, or queue. The descriptors are closed here once they are sent."""
        if self.closed:
            _close_all(fds or [])
            return
        self._out.append((encode(packet), fds or []))
        if len(self._out) == 1:
            self._flush()

    def close(self) -> None:
        """End the connection without telling `on_close`."""
        if not self.closed:
            self.closed = True
            self._reactor.unregister(self._sock.fileno())
            self._sock.close()
            for _data, fds in self._out:
                _close_all(fds)
            self._out.clear()

    def drain(self) -> None:
        """Handle what a dead peer had still sent."""
        self._on_events(READ)

    def _flush(self) -> None:
        while self._out:
            data, fds = self._out[0]
            try:
                socket.send_fds(self._sock, [data], fds)
            except BlockingIOError:
                self._reactor.modify(self._sock.fileno(), READ | WRITE)
                return
            except OSError:
                pass  # It is gone. Reading tells so, after what it had still said.
            _close_all(fds)
            self._out.popleft()
        self._reactor.modify(self._sock.fileno(), READ)

    def _on_events(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        while events & ~WRITE and not self.closed:
            try:
                data, fds, _flags, _address = socket.recv_fds(self._sock, PACKET_BYTES, _MAX_FDS)
            except BlockingIOError:
                return
            except ConnectionResetError:
                # It ended with orders of ours unread. That is told once, before what it had still said.
                continue
            except OSError:
                data, fds = b"", []
            if not data:
                self._lost()
                return
            self._on_packet(decode(data), fds)

    def _lost(self) -> None:
        if not self.closed:
            self.close()
            self._on_close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection that keeps the borders of packets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
