"""Which nodes the bundles of a placement group go to.

Larger bundles are placed first. The strategies:

=============  ==========================================================================================
STRICT_PACK    all on one node: the one that is left with the least
PACK           on few nodes: again and again the node that takes the most of what is left
SPREAD         on many nodes: each bundle where the fewest of its group are, then where the most is free
STRICT_SPREAD  each on a node of its own: a matching, so that no bundle takes the only node of another
=============  ==========================================================================================

All of it is deterministic: equal nodes are taken in the order of their ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import TypeAlias

from moray.core import strategies
from moray.core.bundles import total_of
from moray.core.placement_types import GroupSpec, PlacementNode
from moray.core.resources import UNIT, Amounts

Place: TypeAlias = dict[int, bytes]


class Room:
    """What the nodes have for a group."""

    def __init__(self, nodes: Mapping[bytes, PlacementNode], free: Mapping[bytes, Amounts], spec: GroupSpec) -> None:
        self.nodes = {
            name: node for name, node in sorted(nodes.items()) if not node.draining and spec.target_node in (b"", name)
        }
        self.free = free
        self.spec = spec

    def accepts(self, node: PlacementNode, bundle: int) -> bool:
        """Whether the node has the labels that the bundle asks for."""
        selectors = self.spec.selectors
        return not selectors or strategies.matches(selectors[bundle], node.labels)

    def left(self, node: PlacementNode) -> float:
        """How much of the node is free, as the mean share of its resources that the group uses."""
        names = {name for bundle in self.spec.bundles for name in bundle}
        free = self.free[node.node]
        shares = [free.get(name, 0) / node.total[name] for name in names if node.total.get(name)]
        return sum(shares) / len(shares) if shares else 0.0


class Filling:
    """A node that takes one bundle after another."""

    __slots__ = ("_fractions", "_free", "_node", "_room")

    def __init__(self, room: Room, node: PlacementNode) -> None:
        self._room = room
        self._node = node
        self._free = dict(room.free[node.node])
        #: What its bundles have of devices; their sum depends on how they share them.
        self._fractions: list[Amounts] = []

    def add(self, index: int) -> bool:
        """Take the bundle, if it fits beside the others."""
        room, node, free = self._room, self._node, self._free
        if not room.accepts(node, index):
            return False
        bundle = room.spec.bundles[index]
        plain = {name: amount for name, amount in bundle.items() if name not in node.devices}
        parts = {name: amount for name, amount in bundle.items() if name in node.devices}
        if any(amount > free.get(name, 0) for name, amount in plain.items()):
            return False
        if parts:
            if any(amount > UNIT and amount % UNIT for amount in parts.values()):
                return False
            total = total_of([*self._fractions, parts], node.devices)
            if any(amount > free.get(name, 0) for name, amount in total.items()):
                return False
            self._fractions.append(parts)
        for name, amount in plain.items():
            free[name] -= amount
        return True


def choose(room: Room, bundles: Sequence[int], placed: Mapping[int, bytes]) -> Place | None:
    """A node for each of `bundles`, beside those that are `placed`; None: they do not fit."""
    ordered = sorted(bundles, key=lambda index: (-_size(room, index), index))
    kind = room.spec.strategy
    if kind == "STRICT_PACK":
        return _on_one(room, ordered, placed)
    if kind == "PACK":
        return _packed(room, ordered)
    if kind == "SPREAD":
        return _spread(room, ordered, placed)
    return _matched(room, ordered, placed)


def _size(room: Room, index: int) -> float:
    """A bundle's share of the largest nodes."""
    share = 0.0
    for name, amount in room.spec.bundles[index].items():
        most = max((node.total.get(name, 0) for node in room.nodes.values()), default=0)
        share = max(share, amount / most if most else float(amount))
    return share


def _on_one(room: Room, bundles: Sequence[int], placed: Mapping[int, bytes]) -> Place | None:
    there = set(placed.values())
    fitting = [
        node
        for node in room.nodes.values()
        if there <= {node.node} and len(_filled(room, node, bundles)) == len(bundles)
    ]
    if not fitting:
        return None
    best = min(fitting, key=room.left)
    return dict.fromkeys(bundles, best.node)


def _packed(room: Room, bundles: Sequence[int]) -> Place | None:
    rest = list(bundles)
    place: Place = {}
    # A node takes ever fewer of what is left: what it took when it was looked at last is a bound.
    heap = [(-len(bundles), room.left(node), number) for number, node in enumerate(room.nodes.values())]
    heapify(heap)
    nodes = list(room.nodes.values())
    while rest and heap:
        bound, left, number = heappop(heap)
        taken = _filled(room, nodes[number], rest)
        if heap and -len(taken) > heap[0][0] and -len(taken) > bound:
            if taken:
                heappush(heap, (-len(taken), left, number))
            continue
        place |= dict.fromkeys(taken, nodes[number].node)
        rest = [index for index in rest if index not in place]
    return None if rest else place


def _filled(room: Room, node: PlacementNode, bundles: Sequence[int]) -> list[int]:
    """Which of `bundles` the node takes, the first ones first."""
    filling = Filling(room, node)
    return [index for index in bundles if filling.add(index)]


def _spread(room: Room, bundles: Sequence[int], placed: Mapping[int, bytes]) -> Place | None:
    counts: dict[bytes, int] = dict.fromkeys(room.nodes, 0)
    for node in placed.values():
        if node in counts:
            counts[node] += 1
    place: Place = {}
    nodes = list(room.nodes.values())
    fillings = [Filling(room, node) for node in nodes]
    heap = [(counts[node.node], -room.left(node), number) for number, node in enumerate(nodes)]
    heapify(heap)
    for index in bundles:
        passed = []
        while heap:
            count, left, number = entry = heappop(heap)
            if fillings[number].add(index):
                place[index] = nodes[number].node
                heappush(heap, (count + 1, left, number))
                break
            passed.append(entry)
        for entry in passed:
            heappush(heap, entry)
        if index not in place:
            return None
    return place


def _matched(room: Room, bundles: Sequence[int], placed: Mapping[int, bytes]) -> Place | None:
    used = set(placed.values())
    nodes = [node for node in sorted(room.nodes.values(), key=room.left) if node.node not in used]
    wanted = {index: [n for n, node in enumerate(nodes) if _filled(room, node, (index,))] for index in bundles}
    owner: dict[int, int] = {}
    for index in bundles:
        if not _augment(index, wanted, owner):
            return None
    return {index: nodes[number].node for number, index in owner.items()}


def _augment(start: int, wanted: Mapping[int, list[int]], owner: dict[int, int]) -> bool:
    """Give bundle `start` a node; others may have to move to another of theirs."""
    came: dict[int, int] = {}
    todo = deque([start])
    while todo:
        index = todo.popleft()
        for number in wanted[index]:
            if number in came:
                continue
            came[number] = index
            if number in owner:
                todo.append(owner[number])
                continue
            free: int | None = number
            while free is not None:
                taker = came[free]
                before = next((n for n, who in owner.items() if who == taker), None)
                owner[free] = taker
                if before is not None:
                    del owner[before]
                free = before
            return True
    return False
