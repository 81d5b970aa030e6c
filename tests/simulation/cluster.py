"""Nodes, a head, the lines between them: the real cores of scheduling in a cluster, on a clock of their own.

Real are `Membership` (the head), and in each node `ClusterView`, `ClusterScheduler`, `Wishes` and `LocalScheduler`. The
shells around them are the simulation's: they do what :mod:`moray.node.cluster` and :mod:`moray.head.members` do.
Between nodes everything arrives once and in order for as long as both live, however long they cannot reach each other
(:mod:`moray.node.links`); a connection to the head loses what was on its way when it ends
(:mod:`moray.node.head_link`).

Nodes die, are cut off and healed, are declared dead while they live; heads die and are started anew; workers and owners
die. `run` raises AssertionError if anything is granted twice, if a dead node is released while it may still start
something, and if, after the faults, some owner does not get what it wanted or some node does not have all again.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Final

from moray.core.membership import LEASE_S, Membership
from moray.core.membership_actions import Died, MemberAction, Refuse, Released, Renewed, Welcome
from moray.ids import tag_of
from moray.protocol.cluster_messages import NodeInfo
from tests.simulation.cluster_node import Node

#: Everything must have come to its end so long after the last fault.
SETTLE_S: Final = 120.0
FAULTS_S: Final = 60.0
_DELTA_S: Final = 0.1


class ClusterWorld:
    """One seed."""

    def __init__(self, seed: int, most_nodes: int = 12, fewest_nodes: int = 3) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.nodes: dict[bytes, Node] = {}
        #: Pairs (smaller first) of ids that cannot reach each other; the head is b"".
        self.cut: set[tuple[bytes, bytes]] = set()
        #: (from, to) → what is on its way.
        self.lines: dict[tuple[bytes, bytes], deque[Callable[[], None]]] = {}
        self.head = Head(self, 1, [], [])
        #: Tasks that have run to their end; events so far.
        self.finished = 0
        self.steps = 0
        for _ in range(self.random.randint(fewest_nodes, most_nodes)):
            self.start_node()

    # --- time and lines -----------------------------------------------------------------------------------

    def at(self, delay_s: float, call: Callable[[], None]) -> None:
        """Make `call` after so long."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), call))

    def delay(self) -> float:
        """On a line: mostly short."""
        return self.random.random() * self.random.choice((0.001, 0.001, 0.05, 0.5))

    def send(self, source: bytes, target: bytes, call: Callable[[], None]) -> None:
        """Once and in order, when the two can reach each other; never if one of them is dead by then."""
        self.lines.setdefault((source, target), deque()).append(call)
        self.at(self.delay(), lambda: self._arrive(source, target))

    def reaches(self, one: bytes, other: bytes) -> bool:
        return (min(one, other), max(one, other)) not in self.cut

    def _arrive(self, source: bytes, target: bytes) -> None:
        line = self.lines.get((source, target))
        if not line or not self.reaches(source, target):
            return  # When it is healed, all of it arrives.
        receiver = self.nodes.get(target)
        if receiver is not None and source and not receiver.knows(source):
            # One that it has not heard of yet comes again. A link ends when its end hears of the other's death.
            if source not in receiver.buried:
                self.at(self.random.uniform(0.05, 1.0), lambda: self._arrive(source, target))
            return
        call = line.popleft()
        if receiver is not None:
            call()

    def heal(self, pair: tuple[bytes, bytes]) -> None:
        """They reach each other again."""
        self.cut.discard(pair)
        for ends in (pair, pair[::-1]):
            for _ in self.lines.get(ends, ()):
                self.at(self.delay(), lambda ends=ends: self._arrive(*ends))  # type: ignore[misc]

    def turn(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _order, call = heapq.heappop(self._events)
            self.steps += 1
            call()
        self.now = until

    # --- nodes, heads and faults ------------------------------------------------------------------------------

    def start_node(self) -> None:
        node_id = self.random.randbytes(28)
        cpus = self.random.randint(1, 4)
        node = self.nodes[node_id] = Node(self, node_id, cpus)
        node.connect()

    def kill_node(self, node: Node) -> None:
        """Its machine fails; or it ends because it is dead to the others."""
        self.nodes.pop(node.node_id, None)
        node.dead = True
        for ends in [ends for ends in self.lines if node.node_id in ends]:
            if ends[1] == node.node_id:
                del self.lines[ends]

    def kill_head(self) -> None:
        old = self.head
        if old.over:
            return  # The next one is on its way.
        old.over = True
        infos, dying = old.stored()
        for node in self.nodes.values():
            node.lose_head()
        # There is none until then: nodes that connect find nobody.
        self.at(self.random.uniform(0.05, 3.0), lambda: self._start_head(old.table.epoch + 1, infos, dying))

    def _start_head(self, epoch: int, infos: list[NodeInfo], dying: list[bytes]) -> None:
        self.head = Head(self, epoch, infos, dying)

    def fault(self) -> None:
        """One of them, now."""
        node = self.random.choice(list(self.nodes.values()))
        dice = self.random.random()
        if dice < 0.15 and len(self.nodes) > 2:
            self.kill_node(node)
            self.at(self.random.uniform(0, 5), self.start_node)
        elif dice < 0.25:
            self.kill_head()
        elif dice < 0.5:
            others = [b"", *self.nodes]
            other = self.random.choice(others)
            if other != node.node_id:
                self._cut_off(node.node_id, other)
        elif dice < 0.75:
            node.lose_a_worker()
        elif node.owners:
            node.lose_an_owner()

    def _cut_off(self, one: bytes, other: bytes) -> None:
        pair = (min(one, other), max(one, other))
        self.cut.add(pair)
        if not pair[0] and pair[1] in self.nodes:
            self.nodes[pair[1]].lose_head()
        # Shorter and longer than a lease.
        self.at(self.random.uniform(0.1, 3 * LEASE_S), lambda: self.heal(pair))

    # --- the run ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All of it."""
        self.turn(2.0)
        while self.now < FAULTS_S:
            for node in list(self.nodes.values()):
                if self.random.random() < 0.2:
                    node.more_work()
            if self.random.random() < 0.3:
                self.fault()
            self.turn(self.now + self.random.random())
            self._check()
        for pair in sorted(self.cut):
            self.heal(pair)
        end = self.now + SETTLE_S
        while self.now < end and not self._settled():
            self.turn(self.now + 1.0)
            self._check()
        self._check_end()

    def _settled(self) -> bool:
        return not self.problems()

    def _check(self) -> None:
        self.head.table.validate()
        for node in self.nodes.values():
            node.check()

    def problems(self) -> list[str]:
        """What is not as it should be in the end."""
        found = [problem for node in self.nodes.values() for problem in node.problems()]
        living = {info.node_id for info in self.head.table.nodes()}
        if living != set(self.nodes):
            found.append(f"the head knows {len(living)} nodes, {len(self.nodes)} live")
        return found

    def _check_end(self) -> None:
        problems = self.problems()
        assert not problems, "\n".join(problems)


class Head:
    """The head's table of nodes, and who is connected."""

    def __init__(self, world: ClusterWorld, epoch: int, infos: list[NodeInfo], dying: list[bytes]) -> None:
        self.world = world
        self.table: Membership[NodeInfo] = Membership(epoch)
        self.table.restore(infos, world.now)
        self.over = False
        #: Node → the number of its connection.
        self._connections: dict[bytes, int] = {}
        #: What each node says of itself; the same of those that are dead and not released.
        self._infos = {info.node_id: info for info in infos}
        self._dying: dict[bytes, NodeInfo] = {}
        for node_id in dying:
            self._perform(self.table.refused(node_id, "it was dead before the head's restart"))
        self._tick()
        self._send_later()

    def stored(self) -> tuple[list[NodeInfo], list[bytes]]:
        """What the next head knows: all that are not released, and which of them are dead."""
        return [_copy(info) for info in (*self.table.nodes(), *self._dying.values())], list(self._dying)

    def on_hello(self, node: Node, connection: int, info: NodeInfo, epoch: int, view: int) -> None:
        if view and not self.table.get(info.node_id) and not self.table.death_of(info.node_id):
            # It was released before this head's time.
            self._refuse(node, connection, "fenced")
            return
        self._infos[info.node_id] = info
        for action in self.table.register(info, epoch, self.world.now):
            if isinstance(action, Welcome):
                self._welcome(node, connection)
            elif isinstance(action, Refuse):
                self._refuse(node, connection, action.code)

    def _welcome(self, node: Node, connection: int) -> None:
        self._send_delta()
        self._connections[node.node_id] = connection
        nodes = [_copy(known) for known in self.table.nodes()]
        view, epoch = self.table.view, self.table.epoch
        self._tell(node.node_id, lambda: node.on_welcome(epoch, view, nodes))

    def _refuse(self, node: Node, connection: int, code: str) -> None:
        self.world.at(self.world.delay(), lambda: node.on_refused(connection, code))

    def on_renew(self, node: Node, number: int, available: dict[str, int], waiting: list[Any]) -> None:
        for action in self.table.renew(node.node_id, number, available, waiting, self.world.now):
            if isinstance(action, Renewed):
                self._tell(node.node_id, lambda: node.on_renewed(number))
            elif isinstance(action, Refuse):
                self._refuse(node, node.connection, action.code)

    def _tell(self, node_id: bytes, call: Callable[[], None]) -> None:
        """On the node's connection, in order; lost with it."""
        node, connection = self.world.nodes.get(node_id), self._connections.get(node_id)
        if node is None or connection is None:
            return
        line = self.world.lines.setdefault((b"", node_id), deque())
        line.append(lambda: call() if node.connection == connection else None)
        self.world.at(self.world.delay(), lambda: self.world._arrive(b"", node_id))

    def _tick(self) -> None:
        if self.over:
            return
        self._perform(self.table.tick(self.world.now))
        self.world.at(0.05, self._tick)

    def _perform(self, actions: list[MemberAction]) -> None:
        for action in actions:
            if isinstance(action, Died):
                # Its connection is dropped: it is told nothing any more.
                self._connections.pop(action.node_id, None)
                self._dying[action.node_id] = self._infos[action.node_id]
            elif isinstance(action, Released):
                del self._dying[action.node_id]
                node = self.world.nodes.get(action.node_id)
                assert node is None or node.lease_end <= self.world.now, "released while it may start something (FENCE)"

    def _send_later(self) -> None:
        if not self.over:
            self._send_delta()
            self.world.at(_DELTA_S, self._send_later)

    def _send_delta(self) -> None:
        delta = self.table.delta()
        if delta is None:
            return
        infos = [_copy(info) for node_id in delta.changed if (info := self.table.get(node_id)) is not None]
        for node_id in self._connections:
            node = self.world.nodes.get(node_id)
            if node is not None:
                self._tell(node_id, lambda node=node: node.on_delta(delta.view, infos, delta.dead))  # type: ignore[misc]


def _copy(info: NodeInfo) -> NodeInfo:
    """As it is now: the table's own changes."""
    return NodeInfo(info.node_id, info.address, dict(info.resources), dict(info.available), demand=list(info.demand))


def process_of(world: ClusterWorld, node_id: bytes) -> bytes:
    """The id of a new process there."""
    return tag_of(node_id) + world.random.randbytes(8)
