"""What one process knows of all nodes: the head's table as of the last delta, and what it has sent there since.

The head publishes the table in versions (:mod:`moray.core.membership`): the whole of it on joining, then deltas, each
of which is applied to the version before it and to no other. Of a node that is as it was but for what it has free and
what waits there, which is what changes all the time, a delta has only that.

**Bookings.** Reports are old when they arrive. So what is asked of a node is booked here, and counts as taken: of two
decisions in a row the second sees the first. A booking belongs to a *holder* (a wish for workers), which has it as long
as it asks; it is exact, since each holder's next decision replaces it. What was granted stays booked until reports must
show it: until the second report after the grant (the first may have been on its way), or for :data:`IN_FLIGHT_S`.
What this process's own node has is told at first hand, before each decision, so that grants need no booking there.

Whoever keeps an index over the nodes is told of each change by `listeners`, and whether it can change for whom the node
is good at all. What changes one node costs nothing that grows with the number of nodes; a node's death looks at all
holders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from moray.core.resources import Amounts
from moray.core.strategies import NODE_ID_LABEL
from moray.ids import tag_of

#: How long a grant counts beside the reports of its node, at most. A node reports a change within a second.
IN_FLIGHT_S: Final = 2.0
#: So many reports after a grant it is in them.
_REPORTS: Final = 2


class NodeLike(Protocol):
    """A node as the head describes it (:class:`~moray.protocol.cluster_messages.NodeInfo`)."""

    @property
    def node_id(self) -> bytes: ...
    @property
    def address(self) -> str: ...
    @property
    def hostname(self) -> str: ...
    @property
    def resources(self) -> dict[str, int]: ...
    @property
    def labels(self) -> dict[str, str]: ...
    @property
    def drain_deadline(self) -> float: ...

    #: As of its last report.
    available: dict[str, int]
    demand: list[tuple[dict[str, int], int]]


class LoadLike(Protocol):
    """What a node has free and what waits there (:class:`~moray.protocol.cluster_messages.NodeLoad`)."""

    @property
    def node_id(self) -> bytes: ...
    @property
    def available(self) -> dict[str, int]: ...
    @property
    def demand(self) -> list[tuple[dict[str, int], int]]: ...


class Node:
    """One living node."""

    __slots__ = (
        "address", "available", "booked", "draining", "flights", "info", "labels", "node_id", "reports", "total",
        "waiting",
    )  # fmt: skip

    def __init__(self, node_id: bytes) -> None:
        self.node_id = node_id
        self.address = ""
        self.total: Amounts = {}
        #: Free as of its last report; a blocked worker's CPUs may make it negative.
        self.available: Amounts = {}
        #: With the label of its id.
        self.labels: Mapping[str, str] = {}
        #: It takes no new work.
        self.draining = False
        #: What waits there, as of its last report.
        self.waiting: Amounts = {}
        #: What this process has sent there, and reports do not show.
        self.booked: Amounts = {}
        #: Reports so far.
        self.reports = 0
        #: (need, reports then) of grants that reports may not show yet, oldest first.
        self.flights: deque[_Flight] = deque()
        #: As the head describes it.
        self.info: NodeLike | None = None

    def free(self, name: str) -> int:
        """What is left of a resource."""
        return self.available.get(name, 0) - self.booked.get(name, 0)

    def room(self, need: Mapping[str, int]) -> int:
        """How many times `need` fits now; a need of nothing fits without end."""
        counts = [self.free(name) // amount for name, amount in need.items() if amount]
        return max(0, min(counts, default=_ENDLESS))

    def load(self, need: Mapping[str, int]) -> float:
        """The share of its scarcest wanted resource that is taken or asked for; above 1 when some of it waits."""
        most = 0.0
        for name in need:
            total = self.total.get(name, 0)
            if total:
                share = (total - self.free(name) + self.waiting.get(name, 0)) / total
                most = max(most, share)
        return most


#: Room for a need of nothing.
_ENDLESS: Final = 1 << 60


class _Flight:
    """A granted worker that reports may not show yet."""

    __slots__ = ("gone", "need", "node", "reports")

    def __init__(self, node: bytes, need: Amounts, reports: int) -> None:
        self.node = node
        self.need = need
        #: The node's count of reports at the grant.
        self.reports = reports
        self.gone = False


class ClusterView:
    """The table, and what is booked in it."""

    def __init__(self, own: bytes = b"") -> None:
        """`own`: the node whose reports are at first hand."""
        self.own = own
        self.version = 0
        #: Rises when nodes come or go, or change in what they have in all, in labels, or by draining.
        self.layout = 0
        #: The living nodes.
        self.nodes: dict[bytes, Node] = {}
        self._by_tag: dict[bytes, Node] = {}
        #: Told the id of each node that is new, different, or gone; False: it only has more or less free than before.
        self.listeners: list[Callable[[bytes, bool], None]] = []
        #: Holder → (need, node → how many are asked there).
        self._held: dict[Hashable, tuple[Amounts, dict[bytes, int]]] = {}
        #: (until when, flight), oldest first.
        self._expiries: deque[tuple[float, _Flight]] = deque()

    def by_tag(self, tag: bytes) -> Node | None:
        """The living node whose id (and whose processes' ids) begin with `tag`."""
        return self._by_tag.get(tag)

    # --- what the head says --------------------------------------------------------------------------

    def reset(self, version: int, nodes: Iterable[NodeLike]) -> list[bytes]:
        """The whole table, on joining the head (again). Returns the ids of nodes that have gone meanwhile."""
        self.version = version
        present = {info.node_id: info for info in nodes}
        gone = [node_id for node_id in self.nodes if node_id not in present]
        for node_id in gone:
            self._remove(node_id)
        for info in present.values():
            self._put(info)
        return gone

    def apply(
        self,
        version: int,
        changed: Sequence[NodeLike],
        dead: Sequence[tuple[bytes, str]],
        loads: Sequence[LoadLike] = (),
    ) -> bool:
        """A delta. False: it does not follow on the version here, and nothing was done; the whole table is needed."""
        if version != self.version + 1:
            return False
        self.version = version
        for node_id, _reason in dead:
            self._remove(node_id)
        for info in changed:
            self._put(info)
        for load in loads:
            node = self.nodes.get(load.node_id)
            if node is not None and node.info is not None:
                node.info.available, node.info.demand = load.available, load.demand
                self._take_report(node, node.info)
                self._tell(node.node_id, reshaped=False)
        return True

    def report(self, node_id: bytes, available: Mapping[str, int], waiting: Mapping[str, int] | None = None) -> None:
        """What a node has free now, known at first hand: this process's own node says so before each decision."""
        node = self.nodes.get(node_id)
        if node is None or (node.available == available and node.waiting == (waiting or {})):
            return
        node.available, node.waiting = dict(available), dict(waiting or {})
        self._tell(node_id, reshaped=False)

    # --- bookings ------------------------------------------------------------------------------------

    def held(self, holder: Hashable) -> dict[bytes, int]:
        """What the holder has asked of each node, and was not granted yet."""
        booking = self._held.get(holder)
        return dict(booking[1]) if booking is not None else {}

    def book(self, holder: Hashable, need: Mapping[str, int], node_id: bytes, count: int) -> None:
        """The holder asks for so many more workers at a living node. Its need stays the same until it is released."""
        _need, asked = self._held.setdefault(holder, (dict(need), {}))
        asked[node_id] = asked.get(node_id, 0) + count
        self._charge(self.nodes[node_id], need, count)

    def release(self, holder: Hashable) -> None:
        """The holder asks for nothing any more."""
        booking = self._held.pop(holder, None)
        if booking is None:
            return
        for node_id, count in booking[1].items():
            node = self.nodes.get(node_id)
            if node is not None:
                self._charge(node, booking[0], -count)

    def granted(self, holder: Hashable, node_id: bytes, now: float) -> None:
        """A node has granted the holder a worker: soon its reports show it."""
        booking = self._held.get(holder)
        node = self.nodes.get(node_id)
        if booking is None or not booking[1].get(node_id):
            return  # It was asked elsewhere meanwhile; the worker comes back.
        need, asked = booking
        asked[node_id] -= 1
        if not asked[node_id]:
            del asked[node_id]
            if not asked:
                del self._held[holder]
        if node_id == self.own and node is not None:
            self._charge(node, need, -1)
        elif node is not None:
            flight = _Flight(node_id, need, node.reports)
            node.flights.append(flight)
            self._expiries.append((now + IN_FLIGHT_S, flight))

    def expire(self, now: float) -> None:
        """Forget grants that reports must show by now."""
        while self._expiries and self._expiries[0][0] <= now:
            flight = self._expiries.popleft()[1]
            node = self.nodes.get(flight.node)
            if not flight.gone and node is not None:
                node.flights.popleft()  # Both are in the order of the grants.
                self._land(node, flight)

    def validate(self) -> None:
        """Raise AssertionError if the books do not agree with each other."""
        assert self._by_tag == {tag_of(node_id): node for node_id, node in self.nodes.items()}
        booked: dict[bytes, Amounts] = {node_id: {} for node_id in self.nodes}
        for need, asked in self._held.values():
            assert asked
            assert all(count > 0 for count in asked.values())
            for node_id, count in asked.items():
                if node_id in booked:
                    _add(booked[node_id], need, count)
        for node_id, node in self.nodes.items():
            for flight in node.flights:
                assert not flight.gone
                _add(booked[node_id], flight.need, 1)
            assert node.booked == booked[node_id], f"{node.booked} booked at {node_id.hex()}, not {booked[node_id]}"

    # --- inside ------------------------------------------------------------------------------------------

    def _put(self, info: NodeLike) -> None:
        node = self.nodes.get(info.node_id)
        if node is None:
            node = self.nodes[info.node_id] = self._by_tag[tag_of(info.node_id)] = Node(info.node_id)
        draining = info.drain_deadline > 0
        relabelled = node.info is None or node.info.labels != info.labels
        reshaped = relabelled or node.total != info.resources or node.draining != draining
        if reshaped:
            self.layout += 1
        if relabelled:
            node.labels = {NODE_ID_LABEL: info.node_id.hex(), **info.labels}
        node.info = info
        node.address = info.address
        node.total = dict(info.resources)
        node.draining = draining
        self._take_report(node, info)
        self._tell(node.node_id, reshaped=reshaped)

    def _take_report(self, node: Node, info: NodeLike) -> None:
        """What is free there, and what waits; with it come grants that were not in the last report."""
        node.available, node.waiting = dict(info.available), {}
        for need, count in info.demand:
            _add(node.waiting, need, count)
        node.reports += 1
        while node.flights and node.flights[0].reports + _REPORTS <= node.reports:
            self._land(node, node.flights.popleft())

    def _remove(self, node_id: bytes) -> None:
        node = self.nodes.pop(node_id, None)
        if node is None:
            return
        del self._by_tag[tag_of(node_id)]
        self.layout += 1
        for flight in node.flights:
            flight.gone = True
        for holder, (_need, asked) in list(self._held.items()):
            if asked.pop(node_id, 0) and not asked:
                del self._held[holder]
        self._tell(node_id, reshaped=True)

    def _land(self, node: Node, flight: _Flight) -> None:
        flight.gone = True
        self._charge(node, flight.need, -1)

    def _charge(self, node: Node, need: Mapping[str, int], count: int) -> None:
        _add(node.booked, need, count)
        self._tell(node.node_id, reshaped=False)

    def _tell(self, node_id: bytes, *, reshaped: bool) -> None:
        for listener in self.listeners:
            listener(node_id, reshaped)


def _add(amounts: Amounts, need: Mapping[str, int], count: int) -> None:
    """Add `count` times `need`; what comes to nothing is left out."""
    for name, amount in need.items():
        left = amounts.get(name, 0) + amount * count
        if left:
            amounts[name] = left
        else:
            amounts.pop(name, None)
