"""The nodes of the cluster: carries out what the table of members decides (FENCE, HEAD-EPOCH).

The table (:class:`~moray.core.membership.Membership`) hears registrations and renewals, and the clock. It is stored as
a row per node; a head that starts anew restores it, and nodes that do not come back in time are dead.

A node whose connection is lost is called at its address once in a while: if nobody listens there any more, its process
is gone, and nobody needs to wait for the end of its lease to say so.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final, Protocol

import msgspec

from moray.core.cluster_scheduler import ClusterScheduler
from moray.core.cluster_view import ClusterView
from moray.core.membership import Membership
from moray.core.membership_actions import Died, Drain, MemberAction, Refuse, Released, Renewed, StepDown, Welcome
from moray.head.commits import Commits
from moray.head.listener import Endpoint
from moray.head.peers import Peer, Peers
from moray.head.storage import Storage
from moray.node.logs import log
from moray.protocol import messages as m
from moray.protocol.connection import body_of, encode_frame
from moray.protocol.reactor import WRITE, Alarm, Reactor, Timer
from moray.protocol.tcp import parse_address

#: Node id → (NodeInfo, why it is dead; "": it lives).
_NODES: Final = "nodes"
#: Changes are gathered for so long, so that many nodes' reports make few messages.
_DELTA_S: Final = 0.1
#: So many nodes can be told of each other's reports that often; more of them less often, but this often in any case.
_FEW_NODES: Final = 25
_MOST_DELTA_S: Final = 1.0
#: Nodes are asked to renew their leases at the same moments, so many of them at each, and no further apart: most of
#: what a renewal costs that comes alone is to wake a process that has gone cold.
_TOGETHER: Final = 64
_BEAT_S: Final = 0.25
#: Between calls at the address of a node whose connection is lost.
_PROBE_S: Final = 0.5


class _Row(msgspec.Struct, array_like=True):
    info: m.NodeInfo
    dead: str = ""


class MemberEvents(Protocol):
    """What concerns the head's other parts."""

    def fenced_of(self, hello: m.NodeHello) -> list[tuple[bytes, int]]: ...
    def view_changed(self) -> None: ...
    def node_joined(self, info: m.NodeInfo) -> None: ...
    def node_leaves(self, info: m.NodeInfo) -> None: ...
    def stuck(self, node_id: bytes) -> list[str]: ...
    def node_died(self, info: m.NodeInfo, reason: str) -> None: ...
    def node_released(self, node_id: bytes) -> None: ...
    def step_down(self, reason: str) -> None: ...


class Members:
    """The table's hands."""

    def __init__(
        self,
        storage: Storage,
        commits: Commits,
        peers: Peers,
        reactor: Reactor,
        events: MemberEvents,
        lease_s: float,
        node_pid: int = 0,
    ) -> None:
        """`node_pid`: the node on this machine that has started the head, with which it ends."""
        self.table: Membership[m.NodeInfo] = Membership(storage.epoch, lease_s)
        self.view = ClusterView()
        self.scheduler = ClusterScheduler(self.view)
        self.pick: Callable[[int], int] = random.randrange
        self._cluster_id = storage.cluster_id
        self._exclusive = storage.exclusive
        self._node_pid = node_pid
        self._commits = commits
        self._peers = peers
        self._reactor = reactor
        self._events = events
        #: What each node last said of itself, until it is released.
        self._infos: dict[bytes, m.NodeInfo] = {}
        #: Which connection each node was last welcomed on, as decided (its NodeWelcome may still wait to be stored).
        self._welcomed: dict[bytes, Endpoint] = {}
        #: Nodes at whose addresses it is called.
        self._probed: set[bytes] = set()
        #: Hello of a registration that is being decided, and its connection.
        self._asking: tuple[m.NodeHello, Endpoint] | None = None
        self._alarm = Alarm(reactor, self.table.next_tick, self._tick)
        self._delta_timer: Timer | None = None
        self._performers: dict[type[Any], Callable[[Any], None]] = {
            Welcome: self._welcome,
            Refuse: self._refuse,
            Renewed: self._renewed,
            Drain: self._drain,
            Died: self._died,
            Released: self._released,
            StepDown: lambda action: events.step_down(f"there is a head with the epoch {action.epoch}"),
        }
        reactor.hooks.append(self._alarm.arm)

    def load(self, storage: Storage) -> list[bytes]:
        """Restore what the last head knew; the ids of its nodes."""
        rows = [msgspec.msgpack.decode(value, type=_Row) for _key, value in storage.scan(_NODES)]
        # Another head may have gone on granting leases for as long as it could believe that it is the one.
        doubt_s = 0.0 if storage.exclusive else self.table.lease_s
        self.table.restore([row.info for row in rows], monotonic() + doubt_s)
        self._infos = {row.info.node_id: row.info for row in rows}
        self._peers.load([row.info.node_id for row in rows], storage.scan)
        return [row.info.node_id for row in rows if row.dead]

    def resume(self, dead: list[bytes]) -> None:
        """When all parts are restored: nodes that were dead already are so again, until they are released."""
        self._send_delta()
        for node_id in dead:
            self._perform(self.table.refused(node_id, "it was dead before the head's restart"))
        self._send_delta()
        for peer in self._peers.all():
            self._reactor.call_later(_PROBE_S, partial(self._probe, peer))

    # --- what nodes say -----------------------------------------------------------------------------------

    def on_hello(self, connection: Endpoint, hello: m.NodeHello) -> None:
        """A node connects."""
        if hello.version != m.PROTOCOL_VERSION:
            reason = f"it speaks protocol {hello.version}, this head {m.PROTOCOL_VERSION}"
            self._hang_up(connection, m.Refused(reason, "version"))
            return
        peer = self._peers.get(hello.info.node_id)
        known = (peer.carried, peer.sent) if peer is not None else (0, 0)
        strange = hello.relayed > known[0] or hello.heard > known[1] or (peer is None and hello.view > 0)
        if strange and not self.table.death_of(hello.info.node_id):
            # Its streams began with a head whose storage is gone, or it was released before this head's time: the
            # others know it as dead, and have forgotten what they had to do with it.
            reason = (
                f"it has had {hello.heard} messages, answers to {hello.relayed} and version {hello.view} of the table, "
                f"of which this head knows {known if peer is not None else 'nothing'}"
            )
            self._hang_up(connection, m.Refused(f"{reason}: it must join with a new id", "fenced"))
            return
        self._asking = hello, connection
        self._perform(self.table.register(hello.info, hello.epoch, monotonic()))
        self._asking = None

    def on_renew(self, peer: Peer, message: m.RenewLease) -> None:
        """A node lives."""
        self._peers.heard(peer, message.heard)
        info = self.table.get(peer.node_id)
        if message.resources and info is not None and message.resources != info.resources:
            info.resources = message.resources
            self.table.described_anew(peer.node_id)
        if info is not None and info.drain_reason:
            holds = message.holds + self._events.stuck(peer.node_id)
            if holds != info.holds:
                info.holds = holds
                self.table.described_anew(peer.node_id)
        self._perform(self.table.renew(peer.node_id, message.number, message.available, message.demand, monotonic()))
        self._delta_soon()

    def on_leaves(self, peer: Peer, message: m.NodeLeaves) -> None:
        """A node has ended what ran there."""
        self._perform(self.table.leave(peer.node_id, message.reason))
        self._send_delta()

    def on_drain(self, message: m.DrainNode) -> str:
        """Somebody wants a node to leave; "" or why it does not."""
        info, name = self.table.get(message.node_id), message.node_id.hex()[:12]
        if info is None:
            death = self.table.death_of(message.node_id)
            return f"node {name} is dead: {death}" if death else f"there is no node {name}"
        if info.head:
            return f"node {name} has the head, and cannot leave the cluster: `moray stop` there ends it"
        if info.driver:
            return f"node {name} is a driver's own, and ends with it"
        info.drain_reason = message.reason or "no reason was given"
        self._perform(self.table.drain(message.node_id, message.reason, message.deadline))
        self._send_delta()
        return ""

    def on_close(self, peer: Peer, connection: Endpoint) -> None:
        """Its connection is lost, which says nothing; unless its process is gone."""
        if peer.connection is connection:
            peer.connection = None
        if self._welcomed.get(peer.node_id) is connection:
            del self._welcomed[peer.node_id]
            self._probe(peer)

    # --- carrying out -----------------------------------------------------------------------------------

    def _perform(self, actions: list[MemberAction]) -> None:
        for action in actions:
            self._performers[type(action)](action)

    def _welcome(self, action: Welcome) -> None:
        assert self._asking is not None
        hello, connection = self._asking
        if action.node_id in self._infos:
            hello.info.drain_reason = self._infos[action.node_id].drain_reason
        self._infos[action.node_id] = hello.info
        peer = self._peers.get(action.node_id) or self._peers.add(action.node_id)
        if not action.again:
            log(f"node {hello.info.node_id.hex()[:12]} at {hello.info.address} has joined")
            self._events.node_joined(hello.info)
        self._store(action.node_id)
        self._peers.heard(peer, hello.heard)
        self._send_delta()  # The others are told before it is welcomed, so that it gets what they have.
        welcome = m.NodeWelcome(
            self._cluster_id,
            self.table.epoch,
            self.table.lease_of(hello.info),
            self.table.view,
            list(map(_copy, self.table.nodes())),
            self._events.fenced_of(hello),
            peer.carried,
        )
        frame = encode_frame(welcome)
        self._welcomed[action.node_id] = connection
        # From now on its messages are heard; nothing is sent to it before what it is told is stored.
        connection.peer = peer
        self._commits.after(lambda: self._greet(peer, connection, frame))

    def _greet(self, peer: Peer, connection: Endpoint, frame: bytes) -> None:
        if connection.closed or self._welcomed.get(peer.node_id) is not connection:
            return  # Lost already, or replaced by a newer one.
        connection.send_frame(frame)
        self._peers.attach(peer, connection)

    def _refuse(self, action: Refuse) -> None:
        refused = m.Refused(action.reason, action.code)
        if self._asking is not None:
            log(f"node {action.node_id.hex()[:12]} was refused: {action.reason}")
            self._hang_up(self._asking[1], refused)
            return
        connection = self._welcomed.pop(action.node_id, None)
        if connection is not None:
            self._hang_up(connection, refused)

    def _hang_up(self, connection: Endpoint, refused: m.Refused) -> None:
        """Say why, and close when that is on its way."""
        connection.peer = None
        connection.send(refused)
        self._reactor.call_later(_PROBE_S, lambda: connection.close(refused.reason))

    def _renewed(self, action: Renewed) -> None:
        if not self._exclusive and monotonic() - self._commits.confirmed_at > self.table.lease_s:
            # Its storage has not answered for a lease: there may be another head, which waits for that long, and a
            # lease more, before it takes nodes for dead. So nobody's lease may be made longer (HEAD-EPOCH, FENCE).
            return
        connection = self._welcomed.get(action.node_id)
        if connection is not None and action.number:  # 0: nobody has asked.
            beat_s = min(_BEAT_S, _TOGETHER / len(self._welcomed))
            now = monotonic()
            # The last beat before the node would renew anyway.
            connection.send(m.LeaseRenewed(action.number, (now + m.RENEW_S) // beat_s * beat_s - now))

    def _drain(self, action: Drain) -> None:
        self._store(action.node_id)
        peer = self._peers.get(action.node_id)
        if peer is not None:
            self._peers.tell(peer, body_of(m.DrainNode(0, action.node_id, action.reason, action.deadline)))
        info = self.table.get(action.node_id)
        if info is not None:
            self._events.node_leaves(info)

    def _died(self, action: Died) -> None:
        log(f"node {action.node_id.hex()[:12]} is dead: {action.reason}")
        member = self._infos[action.node_id]
        self._commits.write(_NODES, action.node_id, msgspec.msgpack.encode(_Row(member, action.reason)))
        self._welcomed.pop(action.node_id, None)
        peer = self._peers.get(action.node_id)
        if peer is not None:
            self._peers.remove(peer)
        self._send_delta()
        self._events.node_died(member, action.reason)

    def _released(self, action: Released) -> None:
        self._commits.write(_NODES, action.node_id, None)
        del self._infos[action.node_id]
        self._events.node_released(action.node_id)

    def _store(self, node_id: bytes) -> None:
        info = self.table.get(node_id)
        if info is not None:
            self._commits.write(_NODES, node_id, msgspec.msgpack.encode(_Row(info)))

    # --- versions -----------------------------------------------------------------------------------------

    def _delta_soon(self) -> None:
        if self._delta_timer is None and self.table.unpublished():
            # All that has changed goes to all: with more nodes, less often.
            delay_s = min(_MOST_DELTA_S, _DELTA_S * max(1.0, len(self._welcomed) / _FEW_NODES))
            self._delta_timer = self._reactor.call_later(delay_s, self._send_delta)

    def _send_delta(self) -> None:
        if self._delta_timer is not None:
            self._delta_timer.cancel()
            self._delta_timer = None
        delta = self.table.delta()
        if delta is None:
            return
        infos, loads = self._split([info for node_id in delta.changed if (info := self.table.get(node_id)) is not None])
        frame = encode_frame(m.ViewDelta(delta.view, infos, delta.dead, loads))
        told = list(self._welcomed.values())
        self.view.apply(delta.view, infos, delta.dead, loads)
        self._commits.after(lambda: _send_to(told, frame))
        self._events.view_changed()

    def _split(self, changed: list[m.NodeInfo]) -> tuple[list[m.NodeInfo], list[m.NodeLoad]]:
        """Those to be told anew, and the loads of those that are as they were told last but for these."""
        infos, loads = [], []
        for info in changed:
            node = self.view.nodes.get(info.node_id)
            told = node.info if node is not None else None
            if told is not None and msgspec.structs.replace(info, available=told.available, demand=told.demand) == told:
                loads.append(m.NodeLoad(info.node_id, info.available, info.demand))
            else:
                infos.append(_copy(info))
        return infos, loads

    # --- time -----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._keep_own_node()
        self._perform(self.table.tick(monotonic()))
        self._send_delta()

    def _keep_own_node(self) -> None:
        """The node that this head ends with (LIVENESS: it would be told by its pidfd) is not dead while it is stopped:
        nothing of it starts meanwhile, and its end would be everybody's."""
        for node_id in [node_id for node_id, info in self._infos.items() if info.head and info.pid == self._node_pid]:
            info = self.table.get(node_id)
            if info is not None and self.table.is_member(node_id):
                self._perform(self.table.renew(node_id, 0, info.available, info.demand, monotonic()))

    # --- is its process gone? -----------------------------------------------------------------------------

    def _probe(self, peer: Peer) -> None:
        """Call at the address of a node without a connection, until it has one or is dead."""
        if peer.node_id not in self._probed:
            self._probed.add(peer.node_id)
            self._probe_again(peer)

    def _probe_again(self, peer: Peer) -> None:
        info = self.table.get(peer.node_id)
        if info is None or peer.node_id in self._welcomed:
            self._probed.discard(peer.node_id)
            return
        if info.address and not info.relayed:  # Who listens there is the relay's node, which says nothing of this one.
            _Probe(info.address, self._reactor, lambda: self._nobody_there(peer.node_id, info.address))
        self._reactor.call_later(_PROBE_S, lambda: self._probe_again(peer))

    def _nobody_there(self, node_id: bytes, address: str) -> None:
        if node_id in self._welcomed:
            return  # It has come back, maybe at another address.
        self._perform(self.table.refused(node_id, f"its connection is lost and its address {address} refuses others"))
        self._send_delta()


class _Probe:
    """One attempt to connect, of which only a refusal counts."""

    def __init__(self, address: str, reactor: Reactor, on_refused: Callable[[], None]) -> None:
        self._reactor = reactor
        self._on_refused = on_refused
        self._sock = socket.socket(socket.AF_INET6 if address.startswith("[") else socket.AF_INET, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        try:
            failure = self._sock.connect_ex(parse_address(address))
        except (OSError, ValueError):
            failure = errno.EHOSTUNREACH  # An address that leads nowhere says nothing of who has it.
        if failure != errno.EINPROGRESS:
            self._sock.close()
            if failure == errno.ECONNREFUSED:
                on_refused()
            return
        self._timer = reactor.call_later(2 * _PROBE_S, self._end)
        reactor.register(self._sock.fileno(), WRITE, self._on_events)

    def _on_events(self, _events: int) -> None:
        failure = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._end()
        if failure == errno.ECONNREFUSED:
            self._on_refused()

    def _end(self) -> None:
        if self._sock.fileno() >= 0:
            self._timer.cancel()
            self._reactor.unregister(self._sock.fileno())
            self._sock.close()


def _send_to(connections: list[Endpoint], frame: bytes) -> None:
    for connection in connections:
        connection.send_frame(frame)


def _copy(info: m.NodeInfo) -> m.NodeInfo:
    """As it is now: the table changes what it keeps."""
    return msgspec.structs.replace(info)
