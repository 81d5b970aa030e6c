"""Nodes that leave (DrainNode), at the head: what lives there moves, as far as others have room.

That no new work goes there is the cluster's scheduler's matter, which sees it in the table of nodes; bundles of
placement groups are placed anew by the table of groups. Here the node's *restartable actors* are told, one by one as
others have room for them, to finish what they do and to end; the next incarnation is started elsewhere, which is no
restart that counts. Those for which there is no room are told shortly before the deadline, when they end in any case.
Objects are the leaving node's own matter (:mod:`moray.node.evacuation`), and it leaves by itself.

Nothing here is stored: what was told is (in the table of actors), and who leaves stands in the table of nodes.
"""

from __future__ import annotations

from math import isfinite
from time import time
from typing import TYPE_CHECKING, Final

from moray.core.actor_actions import DRAINED
from moray.core.cluster_scheduler import Demand
from moray.core.cluster_view import ClusterView
from moray.core.resources import show_amount, show_amounts
from moray.ids import tag_of
from moray.protocol import messages as m
from moray.protocol.reactor import Timer

if TYPE_CHECKING:
    from moray.head.head import Head

#: How often it is looked whether there is room by now.
_LOOK_S: Final = 0.5
#: So long before the deadline actors for which nobody has room are told, too: enough for their answer to come.
_LAST_S: Final = 3.0


class Leaving:
    """See the module."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._timer: Timer | None = None
        #: Node → what cannot move, and why.
        self._stuck: dict[bytes, list[str]] = {}

    def look(self) -> None:
        """A node leaves now; or the head has been started anew, and some may have been leaving."""
        if self._timer is None:
            self._timer = self._head.reactor.call_later(0, self._look)

    def stuck(self, node_id: bytes) -> list[str]:
        """What cannot move from a node at the moment, in words."""
        return self._stuck.get(node_id, [])

    def _look(self) -> None:
        self._timer = None
        actors = self._head.actors
        moving = actors.forget_moves()
        leaving = [info for info in self._head.members.table.nodes() if leaves(info)]
        self._stuck = {}
        for info in leaving:
            last = time() > info.drain_deadline - _LAST_S
            stuck = actors.move_from(tag_of(info.node_id), why(info), info.drain_deadline, last)
            if stuck:
                self._stuck[info.node_id] = stuck
        if leaving or moving:
            self._timer = self._head.reactor.call_later(_LOOK_S, self._look)


def leaves(info: m.NodeInfo) -> bool:
    """Whether somebody has told this node to leave; a driver's own node takes no work either, and stays."""
    return info.drain_deadline > 0 and isfinite(info.drain_deadline)


def why(info: m.NodeInfo) -> str:
    """Of what was on a node that left, for people."""
    return f"its node {info.node_id.hex()[:8]}{DRAINED}{info.drain_reason or 'no reason was given'}"


def no_room(view: ClusterView, demand: Demand) -> str:
    """Why something waits that nodes could serve, with numbers."""
    need = {name: amount for name, amount in demand.need.items() if amount}
    others = [node for node in view.nodes.values() if not node.draining]
    free = [f"{name}: {show_amount(max(node.free(name) for node in others))}" for name in sorted(need) if others]
    count = f"{len(others)} other node{'s' if len(others) != 1 else ''}"
    return (
        f"it needs {show_amounts(need)}, and of {count} none has that free; the most free is {', '.join(free) or '0'}"
    )
