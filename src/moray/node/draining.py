"""A node that is to leave (DrainNode): it gets no new work, what can move moves, and it ends when nothing is left here,
or at the deadline.

That others send it no work is the head's matter, which has told them; leases of owners end with the tasks that run
under them. The head has restartable actors and the bundles of placement groups live elsewhere
(:mod:`moray.head.leaving`), and this node hands its objects over (:mod:`moray.node.evacuation`). What cannot move
keeps it until the deadline: tasks, actors that are not restarted, drivers, and workers with objects that others hold
(OWNER-STAYS). At the deadline its workers are ended; the head hears that it is the node's doing.

What still holds it is said with each renewal of its lease, for ``moray status``.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from moray.core.actor_actions import DRAINED
from moray.node.logs import log
from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.node.cluster import Cluster
    from moray.node.node import Node

_LOOK_S: Final = 0.2
#: How long the deaths of its workers, and what they lead to, may take after the deadline.
_END_S: Final = 5.0
#: Names of tasks and actors that are listed.
_NAMES: Final = 5


class Draining:
    """Owned by the node's loop."""

    def __init__(self, node: Node, cluster: Cluster) -> None:
        self._node = node
        self._cluster = cluster
        self._deadline = 0.0
        self._reason = ""
        #: Its workers are being ended.
        self.ending = False

    def begin(self, message: m.DrainNode) -> None:
        """The head says so; a later word may set another deadline."""
        first, self._deadline = not self._deadline, message.deadline
        if first:
            self._reason = f"the node{DRAINED}{message.reason or 'no reason was given'}"
            self._cluster.evacuation.leaves = True
        log(f"{self._reason}; it leaves within {message.deadline - time.time():.0f} s")
        if first:
            self._look()

    def _look(self) -> None:
        leases, cluster = self._node.leases, self._cluster
        leases.perform(leases.scheduler.drain(time.monotonic()))
        cluster.evacuation.look()
        holds = self._holds()
        if holds != cluster.head.holds:
            cluster.head.holds = holds
            cluster.head.changed()
        left_s = self._deadline - time.time()
        if left_s <= 0 and not self.ending:
            self._end_workers(holds)
        over = not holds or (self.ending and not list(self._node.workers))
        if left_s <= -_END_S or (over and self._all_said()):
            self._node.end_session(self._reason)
        self._node.reactor.call_later(_LOOK_S, self._look)

    def _end_workers(self, holds: list[str]) -> None:
        """The deadline has come: nothing is waited for any more."""
        self.ending = True
        log(f"the deadline has come; here were {'; '.join(holds) or 'nothing'}")
        for worker in self._node.workers:
            self._node.workers.kill(worker, f"killed: {self._reason}, and the deadline has come")

    def _all_said(self) -> bool:
        """Whether the head and the other nodes have what this node has told them."""
        return self._cluster.head.settled() and not any(link.unacked for link in self._cluster.links)

    def _holds(self) -> list[str]:
        """What must end or move before this node may leave."""
        node, holds = self._node, []
        held = node.leases.scheduler.holders()
        tasks = Counter(label or "?" for label, is_actor in held if not is_actor)
        actors = Counter(label or "?" for label, is_actor in held if is_actor)
        drivers = [job.number for job in node.jobs.values() if job.driver is not None and not job.ended]
        if tasks:
            holds.append(_listed(tasks, "task"))
        if actors:
            holds.append(_listed(actors, "actor"))
        if drivers:
            holds.append(f"the driver{'s' if len(drivers) > 1 else ''} of job {', '.join(map(str, drivers))}")
        owners = node.leases.scheduler.idle_owners()
        if owners:
            holds.append(f"{owners} worker{'s' if owners > 1 else ''} with objects that others hold")
        objects = self._cluster.evacuation.left()
        return [*holds, objects] if objects else holds


def _listed(names: Counter[str], what: str) -> str:
    """So many of each, the most first."""
    listed = [f"{name} ({count})" if count > 1 else name for name, count in names.most_common(_NAMES)]
    more = ", …" if len(names) > _NAMES else ""
    return f"{names.total()} {what}{'s' if names.total() > 1 else ''}: {', '.join(listed)}{more}"
