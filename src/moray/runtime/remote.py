"""Peers at other machines: TCP with TLS, both ways.

A process of another machine is known by its id alone, whose first bytes are its node's tag. Before this process
connects to it, it asks its own node where that one is (Locate), which asks the other's node: so a process that has
ended is known to have ended (LIVENESS: between machines, death is what a node says), and both nodes know who must hear
of whose death. What is sent meanwhile waits in the connection.

The other way round, this process's node accepts connections on the machine's one port, and passes those that are meant
for this process on, before TLS has begun, through a datagram socket in the session's directory.

Where the node reaches the cluster through a tunnel (:mod:`moray.node.tunnel`), connections to others are socketpairs
whose other ends the node takes; all else is the same.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moray.ids import tag_of
from moray.protocol import messages as m
from moray.protocol.handshake import inbox_path, open_inbox
from moray.protocol.reactor import READ
from moray.protocol.relaying import receive_descriptor, send_descriptor, tunnel_inbox
from moray.protocol.tcp import HalfOpen, parse_address, preface, start_connect
from moray.protocol.tls import TlsConnection
from moray.security.contexts import Contexts, contexts_of

if TYPE_CHECKING:
    from moray.runtime.runtime import Peer, Runtime

#: A node that has not taken the last ends of connections yet is asked again after this time, so many times.
_AGAIN_S: Final = 0.02
_ATTEMPTS: Final = 250


class Remote:
    """This process's connections to and from other machines. Owned by the loop."""

    def __init__(self, runtime: Runtime, inbox: socket.socket | None) -> None:
        """`inbox`: see :func:`~moray.protocol.handshake.open_inbox`; None: made here."""
        self._runtime = runtime
        self._credentials = Path(runtime.welcome.credentials)
        #: Node → numbers of the Locates that go on to it, and are not answered.
        self._asked: dict[bytes, set[int]] = {}
        #: What was read last. Now, as templates do it ahead.
        self._last = contexts_of(self._credentials)
        self._path = inbox_path(runtime.session_dir, runtime.process)
        #: Limits for those who have not shown who they are.
        self._half_open = HalfOpen(runtime.reactor)
        self._inbox = inbox if inbox is not None else open_inbox(runtime.session_dir, runtime.process)
        runtime.reactor.register(self._inbox.fileno(), READ, self._on_handover)
        tunnel = tunnel_inbox(runtime.session_dir)
        #: Where the node takes ends of connections; "": there is no tunnel.
        self._tunnel = tunnel if runtime.kind != "worker" and os.path.exists(tunnel) else ""
        self._handover = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def _contexts(self) -> Contexts:
        """This machine's TLS settings. Files that cannot be read any more end nothing here: what was read is as good as
        it was, and the node says what is wrong with them."""
        try:
            self._last = contexts_of(self._credentials)
        except OSError:
            pass
        return self._last

    # --- to others ------------------------------------------------------------------------------------

    def connect(self, peer: Peer) -> Any:
        """A connection to a peer at another machine; what is sent on it waits until it is there."""
        runtime = self._runtime
        connection = TlsConnection(
            None,
            runtime.reactor,
            runtime.on_message,
            runtime.on_peer_closed,
            context=self._contexts().client,
            server_side=False,
        )
        runtime.adopt(peer, connection)
        job = runtime.welcome.job_id
        connection.send(m.Hello(m.PROTOCOL_VERSION, "peer", runtime.process, runtime.pid, "", None, job))
        known = peer.address.startswith("tcp://")
        if known:
            # Its node has just granted it to us, or the head has told of it.
            self._begin(connection, peer, peer.address)
            peer.address = ""  # Whoever connects again must ask where it is.
        # Asked in any case: from now on its node tells of its death, and ours of ours to its node.
        process, tag, asked = peer.origin.process, tag_of(peer.origin.process), list[int]()

        def ask(number: int) -> m.Locate:
            asked.append(number)
            self._asked.setdefault(tag, set()).add(number)
            return m.Locate(number, process)

        def answered(answer: Any) -> None:
            self._asked.get(tag, set()).difference_update(asked)
            self._located(connection, answer, begun=known)

        runtime.request(ask, answered)
        return connection

    def node_died(self, tag: bytes) -> None:
        """A node is dead: what it was asked is not answered, and everybody there is known to be dead. Loop only."""
        for number in self._asked.pop(tag, ()):
            self._runtime.pending.pop(number, None)

    def _located(self, connection: Any, answer: Any, *, begun: bool) -> None:
        if connection.closed:
            return
        peer: Peer = connection.peer
        if isinstance(answer, m.Located) and answer.address:
            if not begun:
                self._begin(connection, peer, answer.address)
            return
        reason = answer.reason if isinstance(answer, m.Located) else str(answer)
        if isinstance(answer, m.Located):
            death = m.ProcessDied(peer.origin.process, peer.pid, 0, f"cannot be reached: {reason}", mark=(0, -1))
            self._runtime.process_died(death)
        connection.close(reason)

    def _begin(self, connection: Any, peer: Peer, address: str) -> None:
        where = address.removeprefix("tcp://").split("/")[0]
        try:
            sock = self._through_tunnel(where) if self._tunnel else start_connect(*parse_address(where))
        except OSError as error:
            connection.close(str(error))
            return
        connection.begin(sock, preface(peer.origin.process))

    def _through_tunnel(self, where: str) -> socket.socket:
        """A connection whose other end the node takes, and connects to HOST:PORT."""
        mine, other = socket.socketpair()
        self._hand_over(other, where, _ATTEMPTS)
        return mine

    def _hand_over(self, sock: socket.socket, where: str, attempts: int) -> None:
        try:
            send_descriptor(self._handover, sock.fileno(), where.encode(), self._tunnel)
        except BlockingIOError:
            # The node has not taken the last ones yet. What is sent meanwhile waits in the socket.
            if attempts and self._handover.fileno() >= 0:
                self._runtime.reactor.call_later(_AGAIN_S, lambda: self._hand_over(sock, where, attempts - 1))
                return
        except OSError:
            pass  # The node has ended, which everybody is about to be told; the connection ends with `sock`.
        sock.close()

    # --- from others ------------------------------------------------------------------------------------

    def _on_handover(self, _events: int) -> None:
        """The node passes on connections from other machines."""
        while (found := receive_descriptor(self._inbox)) is not None:
            address, sock = found
            if sock is not None:
                self._accept(sock, address.decode(errors="replace"))

    def _accept(self, sock: socket.socket, address: str) -> None:
        runtime = self._runtime
        TlsConnection(
            sock,
            runtime.reactor,
            runtime.on_first,
            runtime.on_peer_closed,
            context=self._contexts().server,
            server_side=True,
            half_open=self._half_open,
            peer_address=address,
        )

    # --- the end --------------------------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        """What a forked child closes."""
        return [self._inbox.fileno(), self._handover.fileno()]

    def close(self) -> None:
        """Accept nothing more."""
        self._half_open.close()
        self._runtime.reactor.unregister(self._inbox.fileno())
        self._inbox.close()
        self._handover.close()
        try:
            os.unlink(self._path)
        except OSError:
            pass  # The node has removed the whole directory.
