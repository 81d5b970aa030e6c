"""The driver's side of a relay: a tunnel from a driver's node to the relay beside the head.

This host makes connections to one address only, the head's, and nobody makes any to it. What its node and its driver
would connect to goes through the tunnel instead, as socketpairs whose other ends are streams (:meth:`Tunnel.connect`;
the driver hands its ends over through :func:`~moray.protocol.relaying.tunnel_inbox`). Who wants something of them
connects to the head's gate, and arrives here as a stream that the relay opens, with the process that is wanted. TLS
between the two processes runs inside, from end to end.

**A lost connection** is made anew, with growing pauses, and nothing is lost with it: the streams go on where they were.
Where nothing is heard, not even answers to pings, the connection is taken for lost. After `patience_s` without one,
the session is over, as if the network to this host were cut. **A relay that was started anew** has none of the streams:
all are closed here, another session begins, and everybody connects again, as after any lost connection.

Owned by the node's loop.
"""

from __future__ import annotations

import os
import random
import secrets
import select
import socket
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from moray.core.tunnel import TooManyStreamsError
from moray.ids import PROCESS_BYTES
from moray.node.logs import log
from moray.node.tunnel_end import SILENCE_S, TunnelConnection, TunnelEnd, prefer_latency
from moray.protocol import messages as m
from moray.protocol.reactor import READ, Timer
from moray.protocol.relaying import RELAY_TARGET, open_datagrams, receive_descriptor, tunnel_inbox
from moray.protocol.tcp import FewLines, parse_address, preface, start_connect
from moray.security.contexts import contexts_of

if TYPE_CHECKING:
    from moray.protocol.reactor import Reactor

#: Between pings.
_PING_S: Final = 2.0
#: An attempt may take so long, TLS included.
_ATTEMPT_S: Final = 4.0
#: A connection that cannot be made is tried again after this time, doubled up to the last.
_RETRY_S: Final = 0.05
_RETRY_MAX_S: Final = 2.0
#: The first one must come about within this time.
_FIRST_S: Final = 15.0
#: Last words may take so long to arrive.
_LAST_WORDS_S: Final = 1.0

#: Codes of Refused upon which there is no use in trying again.
_FINAL: Final = frozenset({"version", "session"})


class Tunnel:
    """One node's way to its cluster.

    Args:
        session_dir: of this session.
        credentials: directory with this node's certificate.
        address: "HOST:PORT" of the head, as it is reached from here; HOST is a number.
        tag: of this node.
        patience_s: how long at most the connection may be lost.
        adopt: somebody has connected to this node or one of its processes: (socket, target, the peer's address).
        on_gate: called with the address at which others reach this side, when it is known, and whenever it is another.
        on_lost: called once, when all is over, with the reason.
    """

    def __init__(
        self,
        reactor: Reactor,
        session_dir: str,
        credentials: Path,
        address: str,
        tag: bytes,
        patience_s: float,
        adopt: Callable[[socket.socket, bytes, str], None],
        on_gate: Callable[[str], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._credentials = credentials
        self._address = address
        self._tag = tag
        self._patience_s = patience_s
        self._adopt = adopt
        self._on_gate = on_gate
        self._on_lost = on_lost
        #: Strangers can ask for anybody here, at the head's gate.
        self._say = FewLines(log)
        self._inbox_path = tunnel_inbox(session_dir)
        self._inbox = open_datagrams(self._inbox_path)
        reactor.register(self._inbox.fileno(), READ, self._on_handover)
        self._end: TunnelEnd
        self._session, self._secret = b"", secrets.token_bytes(32)
        #: Of the session: connections so far; whether the relay has welcomed it.
        self._attempt = 0
        self._fresh = True
        #: Where others reach this side; "": there was no session yet.
        self._gate = ""
        self._connection: TunnelConnection | None = None
        self._welcomed = False
        #: When something was heard last.
        self._heard_at = monotonic()
        self._lost = False
        #: The relay was told that it is over.
        self._leaving = False
        self._retry_s = _RETRY_S
        self._retry_timer: Timer | None = None
        self._ping_timer: Timer | None = None
        self._begin_session()

    def start(self) -> None:
        """Connect."""
        self._heard_at = monotonic()
        self._dial()

    def connect(self, address: str) -> socket.socket:
        """A connection to a node's "HOST:PORT", or the head ("")."""
        mine, other = socket.socketpair()
        try:
            self._end.open(address.encode(), other)
        except TooManyStreamsError as error:
            mine.close()
            other.close()
            raise ConnectionError(str(error)) from None
        mine.setblocking(False)
        return mine

    def close(self, reason: str = "") -> None:
        """It is over: say so, after what the node itself has just said."""
        self._on_lost = _ignore
        connection, deadline = self._connection, monotonic() + _LAST_WORDS_S
        if connection is not None and self._welcomed:
            # What the head is told of this node's end must arrive, or it waits for the end of a lease.
            while self._end.drain() and not connection.closed and monotonic() < deadline:
                _turn(connection)
            connection.send(m.TunnelLeaves(reason))
            # The relay hangs up when it has read this. A socket that is closed before, while something comes, drops
            # what it has not sent.
            self._leaving = True
            while not connection.closed and monotonic() < deadline:
                _turn(connection)
        self._stop()

    def _stop(self) -> None:
        """Nothing more is tried."""
        if self._lost:
            return
        self._lost = True
        for timer in (self._retry_timer, self._ping_timer):
            if timer is not None:
                timer.cancel()
        if self._connection is not None:
            self._connection.close()
        self._end.close()
        self._reactor.unregister(self._inbox.fileno())
        self._inbox.close()
        try:
            os.unlink(self._inbox_path)
        except OSError:
            pass  # It went with the session's directory.

    # --- the session --------------------------------------------------------------------------------------

    def _begin_session(self) -> None:
        self._end = TunnelEnd(self._reactor, 0, self._on_open, self._on_fault)
        self._session = secrets.token_bytes(16)
        self._attempt, self._fresh = 0, True

    def _on_open(self, stream: int, target: bytes) -> None:
        """Somebody wants this node (its tag and zeros) or one of its processes."""
        process, source = target[:PROCESS_BYTES], target[PROCESS_BYTES:].decode(errors="replace")
        try:
            mine, other = socket.socketpair()
        except OSError as error:
            # No descriptors are left. Who wants it tries again; this node and what it has go on.
            self._say("dropped", f"a connection from {source} for {process.hex()} was dropped: {error}")
            self._end.refuse(stream, str(error))
            return
        self._end.begin(stream, other)
        mine.setblocking(False)
        try:
            self._adopt(mine, process, source)
        except OSError as error:
            # Our own certificate cannot be read: as for a server, that ends nothing else.
            mine.close()
            self._say("dropped", f"a connection from {source} for {process.hex()} was dropped: {error}")

    def _on_handover(self, _events: int) -> None:
        """The driver wants to connect to somebody."""
        while (found := receive_descriptor(self._inbox)) is not None:
            address, sock = found
            if sock is None:
                continue
            try:
                self._end.open(address, sock)
            except TooManyStreamsError as error:
                log(f"a connection to {address.decode(errors='replace')} was refused: {error}")
                sock.close()

    # --- connections ----------------------------------------------------------------------------------------

    def _dial(self) -> None:
        self._retry_timer = None
        try:
            context = contexts_of(self._credentials).client
            sock = start_connect(*parse_address(self._address))
        except OSError as error:
            self._retry_later(str(error))
            return
        prefer_latency(sock)
        self._end.detach()
        self._attempt += 1
        self._welcomed = False
        self._connection = TunnelConnection(
            sock,
            self._reactor,
            self._on_message,
            self._on_close,
            context=context,
            server_side=False,
            preface=preface(RELAY_TARGET),
            handshake_timeout_s=_ATTEMPT_S,
        )
        self._connection.send(
            m.TunnelHello(
                m.PROTOCOL_VERSION,
                self._session,
                self._secret,
                self._tag,
                self._attempt,
                self._end.core.received,
                self._fresh,
                self._patience_s,
            )
        )
        began = monotonic()
        self._ping_later(began)

    def _ping_later(self, began: float) -> None:
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        self._ping_timer = self._reactor.call_later(_PING_S, lambda: self._ping(began))

    def _ping(self, began: float) -> None:
        connection = self._connection
        if connection is None:
            return
        silent_s = monotonic() - max(began, connection.heard_at if self._welcomed else self._heard_at)
        most = SILENCE_S if self._welcomed else _ATTEMPT_S
        if silent_s > most:
            connection.close(f"nothing was heard of the relay for {silent_s:.0f} s")
            return
        if self._welcomed:
            self._end.ping()
        self._ping_later(began)

    def _on_message(self, connection: TunnelConnection, message: Any) -> None:
        if connection is not self._connection:
            return
        if self._welcomed:
            self._heard_at = monotonic()
            self._end.on_message(connection, message)
        elif isinstance(message, m.TunnelWelcome):
            self._on_welcome(connection, message)
        elif isinstance(message, m.Refused):
            self._on_refused(connection, message)
        else:
            connection.close(f"a relay has no business sending {type(message).__name__} first")

    def _on_fault(self, fault: str) -> None:
        """The two do not agree on what was sent; nothing of this session can be trusted."""
        log(f"the relay at {self._address} broke the rules of the tunnel: {fault}")
        if self._connection is not None:
            self._renew(self._connection, fault)

    def _on_welcome(self, connection: TunnelConnection, welcome: m.TunnelWelcome) -> None:
        away_s = monotonic() - self._heard_at
        self._heard_at = monotonic()
        self._welcomed = True
        self._retry_s = _RETRY_S
        self._end.attach(connection, self._attempt, welcome.received)
        if connection is not self._connection:
            return  # It has broken the rules with this very word.
        if not self._fresh:
            log(f"connected to the relay at {self._address} again, {away_s:.1f} s after it was heard of last")
        self._fresh = False
        if welcome.gate != self._gate:
            # Later on: the machine of the head was started anew, and its node has another port.
            self._gate = welcome.gate
            self._on_gate(welcome.gate)

    def _on_refused(self, connection: TunnelConnection, refused: m.Refused) -> None:
        if refused.code == "unknown":
            log(f"the relay at {self._address} refuses this session: {refused.reason}; another one begins")
            self._renew(connection, refused.reason)
        elif refused.code in _FINAL:
            self._give_up(f"the relay at {self._address} refuses this driver: {refused.reason}")
        else:
            connection.close(refused.reason)

    def _renew(self, connection: TunnelConnection, reason: str) -> None:
        """All streams are lost; go on with new ones."""
        self._end.close()
        self._begin_session()
        connection.close(reason)

    def _on_close(self, connection: TunnelConnection, reason: str) -> None:
        if connection is not self._connection:
            return
        if self._welcomed and not self._leaving:
            log(f"the connection to the relay at {self._address} is lost: {reason}")
            self._heard_at = max(self._heard_at, connection.heard_at)
        self._connection = None
        self._welcomed = False
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        self._end.detach()
        if not (self._lost or self._leaving):
            self._retry_later(reason)

    def _retry_later(self, reason: str) -> None:
        away_s = monotonic() - self._heard_at
        if away_s > (self._patience_s if self._gate else _FIRST_S):
            if self._gate:
                self._give_up(
                    f"the connection to the relay at {self._address} was lost {away_s:.0f} s ago and could not be made "
                    f"again ({reason}); MORAY_RELAY_PATIENCE_S, now {self._patience_s:g}, says how long is tried"
                )
            else:
                self._give_up(f"the relay at {self._address} does not answer: {reason}")
            return
        pause_s = self._retry_s * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)
        self._retry_timer = self._reactor.call_later(pause_s, self._dial)

    def _give_up(self, reason: str) -> None:
        if not self._lost:
            self._stop()
            self._on_lost(reason)


def _ignore(_reason: str) -> None:
    """Whoever ends need not be told."""


def _turn(connection: TunnelConnection) -> None:
    """Send and receive on it for a moment, without the loop, of which the rest has ended."""
    connection.write()
    poller = select.poll()
    poller.register(connection.fd, select.POLLIN | (select.POLLOUT if connection.out else 0))
    for _fd, events in poller.poll(20):
        connection.on_events(events)
