"""Why no node of a cluster can run something, and which one nearly could: a text for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from moray.core.cluster_view import Node
from moray.core.resources import show_amount, show_amounts
from moray.core.strategies import Choice


def explain_infeasible(nodes: Iterable[Node], need: Mapping[str, int], options: Sequence[Choice]) -> str:
    """One line; `options` as the strategy has them, the best first. It looks at every node."""
    every = list(nodes)
    if not every:
        return "the cluster has no nodes"
    reasons = dict.fromkeys(_of_choice(every, need, choice) for choice in options)
    return "; nor: ".join(reasons)


def show_node(node: Node) -> str:
    """A node as people find it again."""
    where = node.info.hostname if node.info is not None else ""
    return f"node {node.node_id.hex()[:8]}" + (f" ({where})" if where else "")


def _of_choice(every: list[Node], need: Mapping[str, int], choice: Choice) -> str:
    if choice.node:
        found = next((node for node in every if node.node_id == choice.node), None)
        if found is None:
            return f"the node {choice.node.hex()} is not in the cluster: it never joined, or it is dead"
        if not found.draining and (reason := choice.mismatch(found.node_id, found.labels)):
            return f"{show_node(found)}: {reason}"
        every = [found]
    staying = [node for node in every if not node.draining]
    if not staying:
        which = show_node(every[0]) if choice.node else f"all {len(every)} nodes"
        return f"{which} {'is' if choice.node else 'are'} draining: no new work is taken"
    matching = [node for node in staying if not choice.mismatch(node.node_id, node.labels)]
    if not matching:
        nearest = min(staying, key=lambda node: sum(not c.holds(node.labels) for c in choice.conditions))
        return (
            f"no node of {len(staying)} has {choice}; the nearest, {show_node(nearest)}: "
            f"{choice.mismatch(nearest.node_id, nearest.labels)}"
        )
    return _of_resources(matching, need, len(matching) < len(staying))


def _of_resources(nodes: list[Node], need: Mapping[str, int], some: bool) -> str:
    """What is missing at nodes that match otherwise."""
    them = f"of the {len(nodes)} matching" if some else f"of {len(nodes)}"
    reasons = []
    for name, amount in sorted(need.items()):
        largest = max(nodes, key=lambda node: node.total.get(name, 0))
        most = largest.total.get(name, 0)
        if amount > most > 0:
            reasons.append(
                f"{name}: {show_amount(amount)} wanted, no node {them} has more than {show_amount(most)} "
                f"({show_node(largest)})"
            )
        elif amount > most:
            reasons.append(f"no node {them} has a resource named {name!r}")
    if reasons:
        return "; ".join(reasons)
    nearest = min(nodes, key=lambda node: sum(node.total.get(name, 0) < amount for name, amount in need.items()))
    lacking = ", ".join(
        f"{name}: {show_amount(nearest.total.get(name, 0))}"
        for name, amount in sorted(need.items())
        if nearest.total.get(name, 0) < amount
    )
    return f"no node {them} has all of {show_amounts(need)} together; the nearest, {show_node(nearest)}, has {lacking}"
