"""On which node something runs: the choice among all nodes of a :class:`~moray.core.cluster_view.ClusterView`.

A decision is about so many workers with equal needs; its answer says where there is room now, and where the rest waits.

- What the holder has asked for already stays where there is still room: deciding anew moves nothing in vain.
- DEFAULT: the node with most bytes of arguments, if it has room; then this node, below the spread threshold; then one
  of the *best* nodes at random. Below the threshold all nodes are equally good, and the order in which they came
  decides, so that work is packed; above it the less loaded is better. The best are the first ``top_k_fraction`` of
  the nodes (at least ``top_k_absolute``): at random, so that many deciders with equal views do not all choose the same.
- Whether a node without room is waited for (``_fail_on_unavailable``) is that node's matter, which knows better.
- SPREAD: one after the other. Actors that hold nothing: at random.
- Device indices are the node's matter: a node whose GPUs are all shared may have to wait for a whole one.

**Cost.** For each kind of demand (needs and choice of nodes) there is an index: the feasible nodes, in buckets by
load. A change marks the node in the indexes; the next decision that uses an index moves the marked nodes. So a
decision costs the same with ten nodes and ten thousand, once its index exists, and each report a little. Indexes
not used lately are dropped (:data:`INDEXED_NODES`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from math import ceil
from typing import Final, TypeAlias

import msgspec

from moray.core.cluster_infeasible import explain_infeasible
from moray.core.cluster_view import ClusterView, Node
from moray.core.resources import Amounts
from moray.core.strategies import NODE, SPREAD, Choice as Where, Strategy, choices
from moray.core.wishes import Choice

#: Entries of all indexes together; one has as many as there are nodes. About 100 bytes each.
INDEXED_NODES: Final = 200_000

#: Buckets: below the threshold, then up to a full node, then by how much waits there.
_LOADED: Final = 32
_WAITING: Final = 32
#: Buckets for as much again as the node has.
_WAITING_STEPS: Final = 4

#: Texts that are kept.
_REASONS: Final = 1000

#: Takes n > 0; returns a number from 0 to n - 1: the randomness, from outside.
Pick: TypeAlias = Callable[[int], int]


class Knobs(msgspec.Struct, frozen=True):
    """What a user may tune; read from the environment by the shell (:func:`moray.config.scheduler_knobs`)."""

    #: Nodes are packed up to this load.
    spread_threshold: float = 0.5
    #: The best nodes among which chance decides: this share of the feasible ones, and at least so many.
    top_k_fraction: float = 0.2
    top_k_absolute: int = 1


class Demand(msgspec.Struct, frozen=True):
    """So many workers with equal needs."""

    #: Who asks: its next demand replaces this one.
    holder: Hashable
    need: Amounts
    count: int
    strategy: Strategy | None = None
    #: Tag of a node → bytes of large arguments that lie there.
    locality: Mapping[bytes, int] = {}
    #: What the node must have in all, beside the need. Given for actors only.
    placement: Amounts = {}


class ClusterScheduler:
    """The choice of nodes. It books what it decides in the view."""

    def __init__(self, view: ClusterView, knobs: Knobs = Knobs()) -> None:  # noqa: B008 - it is immutable.
        self.view = view
        self._knobs = knobs
        #: The most recently used last.
        self._indexes: OrderedDict[Hashable, _Index] = OrderedDict()
        #: Demand → why it is infeasible; true as long as the view's layout is this.
        self._reasons: dict[Hashable, str] = {}
        self._reasons_layout = -1
        view.listeners.append(self._changed)

    def decide(self, demand: Demand, pick: Pick, now: float) -> Choice:
        """Where the demand's workers shall come from. It replaces what the holder was told before."""
        view = self.view
        view.expire(now)
        held = view.held(demand.holder)
        view.release(demand.holder)
        if demand.count <= 0:
            return Choice([], b"")
        while self._indexes and (len(self._indexes) + 1) * len(view.nodes) > INDEXED_NODES:
            self._indexes.popitem(last=False)  # Here none is in use.
        strategy = demand.strategy
        options = [index for where in choices(strategy) if (index := self._index(demand, where)).feasible]
        if not options:
            return Choice([], b"", self._infeasible(demand))
        if strategy is not None and strategy.kind == NODE and not strategy.spill:
            options = options[:1]  # Another node only if this one is gone.
        placed: dict[bytes, int] = {}
        left = demand.count
        for index in options:
            left = self._fill(index, demand, left, held, placed, pick)
            if not left:
                break
        rest = b""
        if left:
            if strategy is not None and strategy.kind == SPREAD:
                queued = self._queue_everywhere(options[0], demand, left, held, placed, pick)
                return Choice(list(placed.items()), queued[0][0], waiting=queued[1:])
            rest = self._queue_at(options[0], held, pick)
            view.book(demand.holder, demand.need, rest, left)
        return Choice(list(placed.items()), rest)

    def validate(self) -> None:
        """Raise AssertionError if an index differs from what it would be if it were made now."""
        for index in self._indexes.values():
            index.refresh()
            index.validate()

    # --- filling ------------------------------------------------------------------------------------------

    def _fill(
        self, index: _Index, demand: Demand, left: int, held: Mapping[bytes, int], placed: dict[bytes, int], pick: Pick
    ) -> int:
        """Place what has room in one set of nodes; returns how many are left."""
        view, need = self.view, demand.need

        def place(node_id: bytes, most: int) -> bool:
            nonlocal left
            count = min(left, most, view.nodes[node_id].room(need)) if node_id in index.position else 0
            if count > 0:
                view.book(demand.holder, need, node_id, count)
                placed[node_id] = placed.get(node_id, 0) + count
                left -= count
            return count > 0

        for node_id, count in held.items():
            place(node_id, count)
        if demand.placement and not any(need.values()):
            while left:
                place(index.feasible[pick(len(index.feasible))], 1)
            return 0
        kind = demand.strategy.kind if demand.strategy is not None else ""
        if kind == SPREAD:
            while left and (next_one := index.next_in_turn(pick)) is not None:
                found_room = place(next_one.node_id, 1)
                assert found_room, "a node without room has its turn"
            return left
        if left and demand.locality:
            near = view.by_tag(max(demand.locality, key=demand.locality.__getitem__))
            if near is not None:
                place(near.node_id, left)
        if left and view.own in index.position:
            place(view.own, self._below_threshold(view.nodes[view.own], need))
        best = max(int(self._knobs.top_k_fraction * len(index.feasible)), self._knobs.top_k_absolute, 1)
        while left and (found := index.best(best, pick)) is not None:
            some = max(1, self._below_threshold(view.nodes[found], need))
            found_room = place(found, some)
            assert found_room, "a node without room is among the best"
        return left

    def _below_threshold(self, node: Node, need: Amounts) -> int:
        """How many fit before the node reaches the spread threshold."""
        counts = []
        for name, amount in need.items():
            if amount:
                total = node.total.get(name, 0)
                taken = total - node.free(name) + node.waiting.get(name, 0)
                counts.append(ceil((self._knobs.spread_threshold * total - taken) / amount))
        return max(0, min(counts, default=1 << 60))

    def _queue_at(self, index: _Index, held: Mapping[bytes, int], pick: Pick) -> bytes:
        """Where what has no room waits: where it waits already, or here, or where least waits."""
        for node_id in (*held, self.view.own):
            if node_id in index.position:
                return node_id
        index.refresh()
        return index.least_waiting(pick)

    def _queue_everywhere(
        self,
        index: _Index,
        demand: Demand,
        left: int,
        held: Mapping[bytes, int],
        placed: Mapping[bytes, int],
        pick: Pick,
    ) -> list[tuple[bytes, int]]:
        """What has no room waits at all nodes in turn: a full node may be full of what is idle, and gives it up
        for those who wait there. (node, how many) each.

        Nodes that have room for some of it have had their first turn; nodes where it waits already come before others,
        so that deciding anew moves nothing in vain.
        """
        nodes, first = len(index.feasible), pick(len(index.feasible))
        waiting: dict[bytes, int] = {}
        for node_id in _in_turn(index, held, first):
            if not left:
                break
            if node_id not in placed:
                waiting[node_id] = 1
                left -= 1
        while left:
            rounds = max(1, left // nodes)
            for node_id in _in_turn(index, held, first):
                count = min(rounds, left)
                if not count:
                    break
                waiting[node_id] = waiting.get(node_id, 0) + count
                left -= count
        for node_id, count in waiting.items():
            self.view.book(demand.holder, demand.need, node_id, count)
        return list(waiting.items())

    # --- indexes ------------------------------------------------------------------------------------------

    def _index(self, demand: Demand, where: Where) -> _Index:
        need = {name: amount for name, amount in demand.need.items() if amount}
        key = frozenset(need.items()), frozenset(demand.placement.items()), where
        index = self._indexes.get(key)
        if index is None:
            index = _Index(self.view, need, demand.placement, where, self._knobs.spread_threshold)
            self._indexes[key] = index
        else:
            self._indexes.move_to_end(key)
            index.refresh()
        return index

    def _changed(self, node_id: bytes, reshaped: bool) -> None:
        for index in self._indexes.values():
            # What could never serve cannot by having more free. With many kinds of demand, each for few nodes, that
            # is almost all.
            if reshaped or node_id in index.position:
                index.marked[node_id] = None

    def _infeasible(self, demand: Demand) -> str:
        """Why no node can ever serve. It looks at all nodes, once for each change of what they have in all."""
        if self._reasons_layout != self.view.layout or len(self._reasons) > _REASONS:
            self._reasons_layout = self.view.layout
            self._reasons.clear()
        options = choices(demand.strategy)
        key = frozenset(demand.need.items()), frozenset(demand.placement.items()), options
        reason = self._reasons.get(key)
        if reason is None:
            wanted = {name: max(demand.need.get(name, 0), amount) for name, amount in demand.placement.items()}
            reason = explain_infeasible(self.view.nodes.values(), {**demand.need, **wanted}, options)
            self._reasons[key] = reason
        return reason


class _Index:
    """The nodes that could serve one kind of demand, by how good they are now."""

    def __init__(self, view: ClusterView, need: Amounts, placement: Amounts, where: Where, threshold: float) -> None:
        self._view = view
        self._need = need
        self._placement = placement
        self.where = where
        self._threshold = threshold
        #: All that could ever serve, in the order in which they came (but for those that fill gaps).
        self.feasible: list[bytes] = []
        self.position: dict[bytes, int] = {}
        #: Node → its bucket and its position there. Those with room come first, each by level.
        self._place: dict[bytes, tuple[int, int]] = {}
        self._roomy: list[list[bytes]] = [[] for _ in range(_LOADED + _WAITING + 1)]
        self._roomy_count = 0
        self._full: list[list[bytes]] = [[] for _ in range(_LOADED + _WAITING + 1)]
        #: Nodes with room, in the order of their turns; None: SPREAD was never asked for.
        self._turns: OrderedDict[bytes, None] | None = None
        #: What has changed since the last refresh.
        self.marked: dict[bytes, None] = {}
        for node in view.nodes.values():
            if self._could_serve(node):
                self._update(node.node_id)

    def refresh(self) -> None:
        """Look at what has changed."""
        while self.marked:
            self._update(self.marked.popitem()[0])

    def best(self, k: int, pick: Pick) -> bytes | None:
        """One of the k best nodes with room; None: none has room."""
        self.refresh()
        return _at(self._roomy, pick(min(k, self._roomy_count))) if self._roomy_count else None

    def least_waiting(self, pick: Pick) -> bytes:
        """A node without room where least waits."""
        for bucket in self._full:
            if bucket:
                return bucket[pick(len(bucket))]
        return self.feasible[pick(len(self.feasible))]

    def next_in_turn(self, pick: Pick) -> Node | None:
        """The node whose turn it is, of those with room; it is the last one then."""
        self.refresh()
        if self._turns is None:
            roomy = [node_id for bucket in self._roomy for node_id in bucket]
            # Different kinds of demand do not all begin at the same node.
            first = pick(len(roomy)) if roomy else 0
            self._turns = OrderedDict.fromkeys(roomy[first:] + roomy[:first])
        if not self._turns:
            return None
        node_id = next(iter(self._turns))
        self._turns.move_to_end(node_id)
        return self._view.nodes[node_id]

    def validate(self) -> None:
        """Raise AssertionError if it is not what the view says."""
        could = {node.node_id for node in self._view.nodes.values() if self._could_serve(node)}
        assert set(self.feasible) == could == set(self.position) == set(self._place)
        assert all(self.feasible[at] == node_id for node_id, at in self.position.items())
        for node_id, (number, at) in self._place.items():
            assert number == self._level(self._view.nodes[node_id])
            assert self._bucket(number)[at] == node_id
        assert self._roomy_count == sum(map(len, self._roomy))
        if self._turns is not None:
            assert set(self._turns) == {node_id for bucket in self._roomy for node_id in bucket}

    def _could_serve(self, node: Node) -> bool:
        """Whether the node could ever serve, as far as its totals say."""
        if node.draining:
            return False
        total = node.total  # Loops: every new index asks this of every node.
        for name, amount in self._need.items():
            if total.get(name, 0) < amount:
                return False
        for name, amount in self._placement.items():
            if total.get(name, 0) < amount:
                return False
        return not self.where.mismatch(node.node_id, node.labels)

    def _update(self, node_id: bytes) -> None:
        node = self._view.nodes.get(node_id)
        if node is None or not self._could_serve(node):
            self._leave(node_id)
            if node_id in self.position:
                _take_out(self.feasible, self.position.pop(node_id), self.position)
            return
        if node_id not in self.position:
            self.position[node_id] = len(self.feasible)
            self.feasible.append(node_id)
        level = self._level(node)
        place = self._place.get(node_id)
        if place is not None and place[0] == level:
            return
        self._leave(node_id)
        bucket = self._bucket(level)
        self._place[node_id] = level, len(bucket)
        bucket.append(node_id)
        self._roomy_count += level >= 0
        if self._turns is not None and level >= 0:
            self._turns.setdefault(node_id)

    def _leave(self, node_id: bytes) -> None:
        """Out of its bucket. Turns are kept by those that only change their level."""
        place = self._place.pop(node_id, None)
        if place is None:
            return
        level, at = place
        bucket = self._bucket(level)
        self._roomy_count -= level >= 0
        last = bucket.pop()
        if last != node_id:
            bucket[at] = last
            self._place[last] = level, at
        node = self._view.nodes.get(node_id)
        if self._turns is not None and (node is None or self._level(node) < 0 or not self._could_serve(node)):
            self._turns.pop(node_id, None)

    def _level(self, node: Node) -> int:
        """The bucket of a node with room; its complement (negative) if it has none."""
        load, threshold = node.load(self._need), self._threshold
        if load < threshold:
            level = 0
        elif load <= 1:
            level = 1 + int((load - threshold) / max(1 - threshold, 1e-9) * (_LOADED - 1))
        else:
            level = _LOADED + 1 + min(_WAITING - 1, int((load - 1) * _WAITING_STEPS))
        return level if node.room(self._need) else ~level

    def _bucket(self, level: int) -> list[bytes]:
        return self._roomy[level] if level >= 0 else self._full[~level]


def _in_turn(index: _Index, before: Collection[bytes], first: int) -> Iterator[bytes]:
    """The feasible nodes, once each: those of `before`, then the others from the one with the number `first` on."""
    yield from (node_id for node_id in before if node_id in index.position)
    for number in range(len(index.feasible)):
        node_id = index.feasible[(first + number) % len(index.feasible)]
        if node_id not in before:
            yield node_id


def _at(buckets: list[list[bytes]], rank: int) -> bytes:
    for bucket in buckets:
        if rank < len(bucket):
            return bucket[rank]
        rank -= len(bucket)
    raise IndexError(rank)


def _take_out(items: list[bytes], at: int, position: dict[bytes, int]) -> None:
    """The last one takes the place of the one that goes."""
    last = items.pop()
    if at < len(items):
        items[at] = last
        position[last] = at
