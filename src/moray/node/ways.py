"""How a node reaches the others, and they it, where that is not by a connection from one to the other.

A driver's node that was told so goes through a tunnel (:mod:`moray.node.tunnel`): the head's address is all that it
connects to, and others find it at the gate there. At the head's node there is the other end, the relay, if somebody
needs it (:mod:`moray.node.relay_process`). All other nodes have neither.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moray.launch import session_directory
from moray.node.head_link import dial_tls
from moray.protocol.tcp import preface
from moray.protocol.tls import TlsConnection
from moray.security.contexts import contexts_of

if TYPE_CHECKING:
    from moray.launch.config import ClusterConfig
    from moray.node.cluster import Cluster
    from moray.node.node import Node
    from moray.node.relay_process import RelayProcess
    from moray.node.tunnel import Tunnel


class Ways:
    """A node's. Owned by its loop."""

    def __init__(self, node: Node, cluster: Cluster, config: ClusterConfig) -> None:
        self._node = node
        self._cluster = cluster
        self._credentials = Path(cluster.credentials)
        self._tunnel: Tunnel | None = None
        self._relay: RelayProcess | None = None
        self._on_ready: Callable[[], None] | None = None
        if config.relayed:
            self._make_tunnel(config)
        elif config.start_head:
            self._make_relay()

    def _make_tunnel(self, config: ClusterConfig) -> None:
        from moray.node.tunnel import Tunnel

        self._tunnel = Tunnel(
            self._node.reactor,
            self._node.config.session_dir,
            self._credentials,
            config.head,
            self._cluster.tag,
            config.relay_patience_s,
            self._cluster.gate.adopt,
            self._on_gate,
            self._cluster.unreachable,
        )
        self._cluster.gate.connect = self._tunnel.connect

    def _make_relay(self) -> None:
        from moray.node.relay import RelayConfig
        from moray.node.relay_process import RelayProcess

        session_dir = self._node.config.session_dir
        self._relay = RelayProcess(
            self._node.reactor,
            session_dir,
            f"{session_dir}/{session_directory.LOG_FOLDER}",
            self._node.config.session,
            RelayConfig(credentials=self._cluster.credentials, gate=self._cluster.gate.address),
            self._resolve,
        )

    def open(self, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` when the head can be reached."""
        if self._tunnel is None:
            on_ready()
        else:
            self._on_ready = on_ready
            self._tunnel.start()

    def _on_gate(self, gate: str) -> None:
        """The tunnel leads somewhere: others reach this host there."""
        self._cluster.gate.address = gate
        self._cluster.head.set_address(gate)
        on_ready, self._on_ready = self._on_ready, None
        if on_ready is not None:
            on_ready()

    def dial_head(self, on_message: Callable[[Any, Any], None], on_close: Callable[[Any, str], None]) -> Any:
        """Connect to the head; OSError if that fails at once."""
        context = contexts_of(self._credentials).client
        if self._tunnel is None:
            return dial_tls(self._cluster.head_address, self._node.reactor, context)(on_message, on_close)
        return TlsConnection(
            self._tunnel.connect(""),
            self._node.reactor,
            on_message,
            on_close,
            context=context,
            server_side=False,
            preface=preface(),
        )

    def _resolve(self, address: str, answer: Callable[[str], None]) -> None:
        """Where the relay may connect to: the head, or the gate of a node."""
        if not address:
            answer(self._cluster.head_address)
        elif self._is_gate(address):
            answer(address)
        else:
            # The node may be so new that the head's word of it is still under way.
            self._cluster.head.when_current(lambda: answer(address if self._is_gate(address) else ""))

    def _is_gate(self, address: str) -> bool:
        return any(info.address == address for info in self._cluster.head.nodes().values())

    def close(self, reason: str) -> None:
        """The node ends."""
        if self._tunnel is not None:
            self._tunnel.close(reason)
        if self._relay is not None:
            self._relay.close()
