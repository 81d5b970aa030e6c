"""Where the owners of a node of a cluster get their workers: the hands of :mod:`moray.core.wishes`.

An owner's wish is divided between the scheduler here and other nodes, by the cluster's view
(:mod:`moray.core.cluster_scheduler`). Here it is asked like any client's; other nodes are asked over their links, in
the owner's name. Owned by the node's loop.
"""

from __future__ import annotations

import os
import random
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from moray.config import scheduler_knobs
from moray.core.bundles import group_of
from moray.core.cluster_scheduler import ClusterScheduler, Demand, Knobs
from moray.core.wishes import Ask, Choice, Step, Wish, Wishes
from moray.ids import tag_of
from moray.protocol import messages as m
from moray.protocol.connection import body_of

if TYPE_CHECKING:
    from moray.node.clients import Client
    from moray.node.cluster import Cluster
    from moray.node.node import Node


class ClusterLeases:
    """The wishes of this node's owners."""

    def __init__(self, node: Node, cluster: Cluster) -> None:
        self._node = node
        self._cluster = cluster
        self._wishes = Wishes(self._choose)
        given = {f"RAY_{name}": str(value) for name, value in node.config.system_config.items()}
        self._knobs = Knobs(*scheduler_knobs(os.environ | given))
        self._scheduler: ClusterScheduler | None = None
        #: Decided, and not carried out yet.
        self._steps: deque[Step] = deque()

    # --- what happens -----------------------------------------------------------------------------------

    def request(self, client: Client, wish: m.RequestLeases) -> None:
        """What an owner of this node wants, as of now."""
        self._carry_out(
            self._wishes.request(client.process, client.job, wish.key, wish.count, wish.seen, wish.resources, wish)
        )

    def granted(self, owner: bytes, key: int, tag: bytes) -> None:
        """A worker of another node is about to be told to an owner."""
        self._carry_out(self._count_grant(owner, key, tag))

    def granted_here(self, owner: bytes, key: int) -> None:
        """A worker of this node is: its scheduler is telling its decisions just now, and must not be asked anew."""
        if steps := self._count_grant(owner, key, self._cluster.tag):
            self._steps.extend(steps)
            self._node.reactor.call_later(0, lambda: self._carry_out([]))

    def view_changed(self) -> None:
        """What waits may be better off elsewhere."""
        self._carry_out(self._wishes.view_changed())

    def node_died(self, tag: bytes) -> None:
        """What was asked of it is asked of others."""
        self._carry_out(self._wishes.node_died(tag))

    def owner_left(self, owner: bytes) -> None:
        """It is dead, or its job has ended."""
        self._carry_out(self._wishes.owner_left(owner))

    def demand(self) -> list[tuple[m.Resources, int]]:
        """What waits."""
        return [(wish.need, wish.owed) for wish in self._wishes.waiting()]

    # --- choosing nodes ---------------------------------------------------------------------------------

    def _choose(self, wish: Wish, count: int) -> Choice:
        view = self._cluster.head.view
        if not count:
            view.release((wish.owner, wish.key))
            return Choice([], b"")
        if self._scheduler is None or self._scheduler.view is not view:
            self._scheduler = ClusterScheduler(view, self._knobs)
        view.report(self._cluster.node_id, self._free_here())
        detail: m.RequestLeases = wish.detail
        demand = Demand((wish.owner, wish.key), wish.need, count, detail.strategy, detail.locality)
        now, rest, reason, waiting = self._scheduler.decide(demand, random.randrange, monotonic())
        if reason and group_of(wish.need):
            # Its bundles are about to be known here, and the owner may know where one is. Of its end it hears from
            # the head.
            reason = ""
            home = view.by_tag(next(iter(detail.locality), b""))
            rest = home.node_id if home is not None else b""
        return Choice(
            [(tag_of(node_id), some) for node_id, some in now],
            tag_of(rest),
            reason,
            [(tag_of(node_id), some) for node_id, some in waiting],
        )

    def _free_here(self) -> m.Resources:
        """What is free at this node, and what was taken for wishes whose workers are still starting: the view has
        these booked until they are granted, and would count them twice."""
        scheduler = self._node.leases.scheduler
        free = scheduler.all_available
        for owner, key, need in scheduler.claims():
            if self._wishes.asks(owner, key, self._cluster.tag):
                free = {name: amount + need.get(name, 0) for name, amount in free.items()}
        return free

    def _count_grant(self, owner: bytes, key: int, tag: bytes) -> list[Step]:
        info = self._cluster.head.nodes().get(tag)
        if info is not None:
            self._cluster.head.view.granted((owner, key), info.node_id, monotonic())
        return self._wishes.granted(owner, key, tag)

    # --- asking -------------------------------------------------------------------------------------------

    def _carry_out(self, steps: list[Step]) -> None:
        """In the order in which they were decided."""
        self._steps.extend(steps)
        while self._steps:
            step = self._steps.popleft()
            if isinstance(step, Ask):
                self._ask(step)
            else:
                refused = m.LeaseRefused(step.wish.key, step.reason, infeasible=True)
                self._node.clients.send(step.wish.owner, refused)

    def _ask(self, step: Ask) -> None:
        wish = step.wish
        request = msgspec.structs.replace(step.detail, count=step.more, seen=step.seen)
        client = self._node.clients.get(wish.owner)
        if step.node == self._cluster.tag:
            if client is not None:
                self._node.leases.on_request(client, request)
            return
        info = self._cluster.head.nodes().get(step.node)
        if info is None:
            return  # It has died; what was asked of it is about to be asked of others.
        pid = client.pid if client is not None else 0
        self._cluster.tell_of_death(wish.owner, step.node)
        self._cluster.links.get(info.node_id).send(m.FromClient(wish.owner, pid, wish.job, body_of(request)))
