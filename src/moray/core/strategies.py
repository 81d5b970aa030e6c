"""Scheduling strategies: on which nodes a task or actor may run, and on which it had better.

A :class:`Strategy` travels with a request for workers; None stands for the default. For the scheduler it is a list of
*choices*, the best first: sets of nodes, each given by a node id or by conditions on labels (:mod:`moray.labels`). The
first choice that has room is taken; if none has, the first that has a node at all waits for it.

========== ==============================================================================================
DEFAULT    where the arguments are, then packed, then the least loaded node
SPREAD     one node after the other
NODE       this node; `soft`: any other if it is gone (`spill`: also if it has no room now);
           `fail`: an error if it has no room now
LABELS     nodes for which all of `hard` holds; of them, if there are any, those for which `preferred` holds
========== ==============================================================================================

`selector` (of ``label_selector=``) holds beside each of them, and `fallbacks` are selectors to try in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

from moray.labels import Condition, parse_selector

DEFAULT: Final = "DEFAULT"
SPREAD: Final = "SPREAD"
NODE: Final = "NODE"
LABELS: Final = "LABELS"

Conditions: TypeAlias = tuple[Condition, ...]

#: The label that every node has: its id in hex.
NODE_ID_LABEL: Final = "ray.io/node-id"


class Strategy(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where something may run. Hashable; equal strategies share workers."""

    kind: str = DEFAULT
    #: NODE: its 28-byte id.
    node: bytes = b""
    soft: bool = False
    spill: bool = False
    fail: bool = False
    #: LABELS.
    hard: Conditions = ()
    preferred: Conditions = ()
    #: Of any kind.
    selector: Conditions = ()
    fallbacks: tuple[Conditions, ...] = ()
    #: What can run nowhere is an error and does not wait.
    refuse_infeasible: bool = False

    @property
    def fails(self) -> bool:
        """Tasks fail if no node may run them; otherwise they wait for a node that joins.

        A node that is gone does not come back under its id, so there is nothing to wait for.
        """
        return self.refuse_infeasible or (self.kind == NODE and (self.fail or not self.soft))


class Choice(msgspec.Struct, frozen=True, gc=False):
    """A set of nodes: one by its id, or all for which the conditions hold."""

    node: bytes = b""
    conditions: Conditions = ()

    def mismatch(self, node_id: bytes, labels: Mapping[str, str]) -> str:
        """Why a node is not in the set; "" if it is."""
        if self.node and node_id != self.node:
            return f"another node is asked for, {self.node.hex()}"
        return mismatch(self.conditions, labels)

    def __str__(self) -> str:
        words = [f"the node {self.node.hex()}"] if self.node else []
        return " and ".join([*words, *map(str, self.conditions)]) or "any node"


ANYWHERE: Final = Choice()


def choices(strategy: Strategy | None) -> tuple[Choice, ...]:
    """The sets of nodes that a strategy allows, the best first."""
    if strategy is None or strategy is _PLAIN:
        return (ANYWHERE,)
    found: dict[Choice, None] = {}
    for selector in (strategy.selector, *strategy.fallbacks):
        if strategy.kind == NODE:
            found[Choice(strategy.node, selector)] = None
            if strategy.soft:
                found[Choice(b"", selector)] = None
            continue
        if strategy.preferred:
            found[Choice(b"", _joined(strategy.hard, strategy.preferred, selector))] = None
        found[Choice(b"", _joined(strategy.hard, selector))] = None
    return tuple(found)


_PLAIN: Final = Strategy()


def mismatch(conditions: Conditions, labels: Mapping[str, str]) -> str:
    """Why a node with these labels does not meet the conditions; "" if it does."""
    reasons = []
    for condition in conditions:
        if not condition.holds(labels):
            value = labels.get(condition.label)
            has = "the node has no such label" if value is None else f"the node has {value!r}"
            reasons.append(f"{condition} wanted, {has}")
    return "; ".join(reasons)


def refusal(strategy: Strategy | None, node_id: bytes, labels: Mapping[str, str]) -> str:
    """Why a node may not run what has this strategy, not even as a last resort; "" if it may."""
    if strategy is None:
        return ""
    reasons: dict[str, None] = {}
    for choice in choices(strategy):
        reason = choice.mismatch(node_id, labels)
        if not reason:
            return ""
        reasons[reason] = None
    return "; nor: ".join(reasons)


def selector_of(selector: Mapping[str, str]) -> Conditions:
    """The wire form of a ``label_selector``; ValueError if it cannot be read."""
    return parse_selector(selector)


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels meets a ``label_selector``."""
    return all(condition.holds(labels) for condition in parse_selector(selector))


def _joined(*parts: Conditions) -> Conditions:
    return tuple(sorted({condition for part in parts for condition in part}))
