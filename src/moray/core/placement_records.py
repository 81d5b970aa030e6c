"""The records of the table of placement groups: groups, attempts, names, and those that were removed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from moray.core.bundles import total_of
from moray.core.placement_choice import Filling, Room
from moray.core.placement_types import GroupSpec, PlacementNode, TellGroup
from moray.core.resources import Amounts, show_amount, show_amounts

#: A time that does not come.
NEVER: Final = float("inf")
#: Removed groups whose ids are remembered, and those that are listed and stored.
_REMEMBERED: Final = 10_000
_LISTED: Final = 200


class Attempt:
    """Bundles on their way to nodes."""

    __slots__ = ("committed", "committing", "impatient_at", "number", "parts", "prepared")

    def __init__(self, number: int, parts: dict[bytes, list[int]], impatient_at: float) -> None:
        self.number = number
        #: Node → bundles.
        self.parts = parts
        self.prepared: set[bytes] = set()
        self.committed: set[bytes] = set()
        #: All have prepared: there is no way back.
        self.committing = False
        #: When it is given back, if not all have prepared.
        self.impatient_at = impatient_at


class Group:
    """A placement group that is not removed."""

    __slots__ = (
        "again_at", "attempt", "booked", "created_once", "hold", "infeasible", "nodes", "overtaken", "pause", "reason",
        "rest_until", "since", "spec", "told", "turn", "unfit_since", "warned", "watchers",
    )  # fmt: skip

    def __init__(self, spec: GroupSpec, turn: int, now: float) -> None:
        self.spec = spec
        #: Position among its job's.
        self.turn = turn
        #: Node of each bundle; b"": none.
        self.nodes = [b""] * len(spec.bundles)
        self.attempt: Attempt | None = None
        #: (node, amounts, number of the attempt) of what it was given.
        self.booked: list[tuple[bytes, Amounts, int]] = []
        self.created_once = False
        #: No nodes that are here could hold it.
        self.infeasible = False
        #: Why it is not created.
        self.reason = ""
        #: Since when it waits; its one warning was given.
        self.since = now
        self.warned = False
        #: No attempt before; how long the next pause is.
        self.again_at = 0.0
        self.pause = 0.0
        #: Another one was placed since it does not fit.
        self.overtaken = False
        #: Since when it does not fit; how long its next hold lasts, and until when it may have none.
        self.unfit_since = NEVER
        self.hold = 0.0
        self.rest_until = 0.0
        self.watchers: dict[bytes, None] = {}
        #: What the watchers know: (state, nodes).
        self.told: tuple[str, tuple[bytes, ...]] = ("", ())

    @property
    def state(self) -> str:
        """As others see it."""
        if all(self.nodes):
            return "created"
        if self.created_once:
            return "rescheduling"
        return "infeasible" if self.infeasible else "pending"

    def missing(self) -> list[int]:
        """Bundles without a node."""
        return [index for index, node in enumerate(self.nodes) if not node]

    def placed(self) -> dict[int, bytes]:
        """The others."""
        return {index: node for index, node in enumerate(self.nodes) if node}

    def news(self, processes: tuple[bytes, ...], request: int = 0) -> TellGroup:
        """How it stands."""
        spec = self.spec
        reason = "" if self.state == "created" else self.reason
        return TellGroup(
            processes,
            request,
            spec.group,
            self.state,
            reason,
            spec.bundles,
            tuple(self.nodes),
            spec.name,
            spec.strategy,
            spec.namespace,
        )

    def describe(self) -> dict[str, Any]:
        """JSON-like."""
        return {
            **_identity(self.spec),
            "state": self.state,
            "reason": "" if self.state == "created" else self.reason,
            "nodes": [node.hex() for node in self.nodes],
        }


class Names:
    """Names of groups that are not removed; each is unique in its namespace."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], bytes] = {}

    def holder(self, spec: GroupSpec) -> str:
        """Why a new group cannot have its name; "" if it can."""
        other = self.find(spec.name, spec.namespace) if spec.name else None
        if other is None:
            return ""
        where = f"in the namespace {spec.namespace!r}"
        return f"the name {spec.name!r} belongs to placement group {other.hex()} {where}: remove it, or choose another"

    def add(self, spec: GroupSpec) -> None:
        """It has its name now."""
        if spec.name:
            self._names[spec.namespace, spec.name] = spec.group

    def discard(self, spec: GroupSpec) -> None:
        """Its name is free."""
        if self._names.get((spec.namespace, spec.name)) == spec.group:
            del self._names[spec.namespace, spec.name]

    def find(self, name: str, namespace: str) -> bytes | None:
        """Who has this name?"""
        return self._names.get((namespace, name))

    def not_found(self, name: str, namespace: str) -> str:
        """Nobody has; maybe another was meant."""
        reason = f"no placement group is named {name!r} in the namespace {namespace!r}"
        elsewhere = sorted(space for space, other in self._names if other == name)
        if elsewhere:
            return f"{reason}; there is one in {', '.join(map(repr, elsewhere[:3]))}"
        near = get_close_matches(name, [other for space, other in self._names if space == namespace], 1)
        return f"{reason}; did you mean {near[0]!r}?" if near else reason


class Tombs:
    """Removed groups, the oldest first."""

    __slots__ = ("_reasons", "_specs", "added")

    def __init__(self) -> None:
        #: Those that nobody has stored yet, as far as they are worth it.
        self.added: deque[bytes] = deque(maxlen=_LISTED)
        self._reasons: dict[bytes, str] = {}
        self._specs: dict[bytes, GroupSpec] = {}

    def add(self, group: bytes, reason: str, spec: GroupSpec | None = None) -> None:
        """It is removed; `spec` None: it was never here."""
        self._reasons[group] = reason
        self.added.append(group)
        if spec is not None:
            self._specs[group] = spec
        if len(self._reasons) > _REMEMBERED:
            del self._reasons[next(iter(self._reasons))]
        if len(self._specs) > _LISTED:
            del self._specs[next(iter(self._specs))]

    def reason(self, group: bytes) -> str | None:
        """Why it was removed; None: it was not."""
        return self._reasons.get(group)

    def describe(self) -> list[dict[str, Any]]:
        """The last ones; JSON-like."""
        return [
            {**_identity(spec), "state": "removed", "reason": self._reasons.get(group, ""), "nodes": []}
            for group, spec in self._specs.items()
        ]


def _identity(spec: GroupSpec) -> dict[str, Any]:
    return {
        "group": spec.group.hex(),
        "name": spec.name,
        "namespace": spec.namespace,
        "strategy": spec.strategy,
        "job": spec.job,
        "detached": spec.detached,
        "bundles": list(spec.bundles),
    }


def why_not(room: Room, missing: Iterable[int]) -> str:
    """Why no nodes that are here could ever hold these bundles."""
    spec, nodes = room.spec, list(room.nodes.values())
    bundles = list(missing)
    if not nodes:
        if spec.target_node:
            return f"its bundles are to be on node {spec.target_node.hex()[:8]}, which is not here (any more)"
        return "there is no node that takes new work"
    for index in bundles:
        labelled = [node for node in nodes if room.accepts(node, index)]
        what = f"bundle {index} ({show_amounts(spec.bundles[index])})"
        if not labelled:
            return f"{what} wants a node with the labels {spec.selectors[index]}, and none has them"
        if not any(Filling(room, node).add(index) for node in labelled):
            return f"{what} fits on no node: {_nearest(labelled, spec.bundles[index])}"
    total = total_of([spec.bundles[index] for index in bundles], frozenset())
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    if spec.strategy == "STRICT_PACK":
        return f"its bundles need {show_amounts(total)} on one node: {_nearest(nodes, total)}"
    if spec.strategy == "STRICT_SPREAD":
        return f"its {len(bundles)} bundles need a node each, and {count} can take them"
    there = total_of([{name: node.total.get(name, 0) for name in total} for node in nodes], frozenset())
    return f"its bundles need {show_amounts(total)} together; {count} with {show_amounts(there)} cannot hold them"


def _nearest(nodes: list[PlacementNode], need: Mapping[str, int]) -> str:
    """What the nodes lack, by the one that lacks the least."""

    def lacks(node: PlacementNode) -> dict[str, int]:
        short = {name: amount - node.total.get(name, 0) for name, amount in need.items()}
        return {name: amount for name, amount in short.items() if amount > 0}

    node = min(nodes, key=lambda node: (len(lacks(node)), sum(lacks(node).values())))
    short = lacks(node)
    if not short:
        return "fractions of devices above 1 must be whole numbers"
    has = ", ".join(f"{name}: {show_amount(node.total.get(name, 0))}" for name in sorted(short))
    which = f"node {node.node.hex()[:8]}" if len(nodes) == 1 else f"the nearest, node {node.node.hex()[:8]},"
    return f"{which} has {has}"
