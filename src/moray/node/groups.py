"""Placement groups: the head's service for them, and a node's part in it.

:class:`Groups` carries out what the table of groups (:class:`~moray.core.placement.GroupTable`, PLACEMENT) decides. It
serves a local session, whose only node is :class:`LocalBundles`, and a cluster's head, which reaches its nodes by
:class:`~moray.protocol.cluster_messages.ReserveBundles`: what differs is the :class:`BundleNodes`.

:class:`LocalBundles` is a node's part: it has its scheduler reserve bundles (:mod:`moray.core.lease_bundles`), and says
when they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final, Protocol

from moray import config
from moray.core.performing import Performer
from moray.core.placement import GroupTable
from moray.core.placement_types import (
    Commit,
    Gone,
    GroupSpec,
    PlacementAction,
    PlacementNode,
    Prepare,
    RemoveFrom,
    Return,
    TellGroup,
    WarnOwner,
)
from moray.core.scheduler_actions import BundlesReady
from moray.node.leases import Leases
from moray.protocol import messages as m
from moray.protocol.reactor import Alarm, Reactor

#: Bytes of a group's id.
_GROUP_ID: Final = 18
#: The table is not called by its own wish more often than this.
_TICK_S: Final = 0.001


class GroupClient(Protocol):
    """Who says something about groups."""

    @property
    def process(self) -> bytes: ...
    @property
    def job(self) -> int: ...
    def send(self, message: m.Message) -> None: ...


class GroupClients(Protocol):
    """How clients are reached."""

    def send_all(self, processes: Iterable[bytes], message: m.Message) -> None: ...


class GroupEvents(Protocol):
    """What concerns other parts."""

    def job_lives(self, job: int) -> bool: ...
    def warn_job(self, job: int, text: str) -> None: ...

    def group_removed(self, group: str, reason: str) -> None:
        """Actors in it (its id is hexadecimal here) end."""


class BundleNodes(Protocol):
    """How nodes are reached; they answer by :meth:`Groups.reserved`."""

    def reserve(self, node: bytes, message: m.ReserveBundles) -> None: ...


class LocalBundles:
    """The bundles of this machine."""

    def __init__(self, leases: Leases, answer: Callable[[m.BundlesReserved], None]) -> None:
        self._leases = leases
        self._answer = answer

    def reserve(self, message: m.ReserveBundles) -> None:
        """The head wants something reserved, used, or given back."""
        scheduler, now = self._leases.scheduler, monotonic()
        group, number = message.group.hex(), message.request
        if message.step == "prepare":
            actions = scheduler.prepare_bundles(
                group, number, dict(message.bundles), message.job, message.label, now, alone=message.alone
            )
        elif message.step == "commit":
            actions = scheduler.commit_bundles(group, number, now)
        elif message.step == "return":
            actions = scheduler.return_bundles(group, number, now)
        else:
            actions = scheduler.remove_group(group, message.reason, now)
        self._leases.perform(actions)

    def ready(self, action: BundlesReady) -> None:
        """The scheduler has them, or never will."""
        group = bytes.fromhex(action.group)
        self._answer(m.BundlesReserved(action.number, group, action.reason, action.committed))


class OneNode:
    """The nodes of a local session."""

    def __init__(self, reserve: Callable[[m.ReserveBundles], None]) -> None:
        self._reserve = reserve

    def reserve(self, node: bytes, message: m.ReserveBundles) -> None:  # noqa: ARG002 - there is only one.
        """Tell it."""
        self._reserve(message)


class Groups:
    """The table's hands."""

    def __init__(
        self,
        clients: GroupClients,
        nodes: BundleNodes,
        reactor: Reactor,
        events: GroupEvents,
        table: GroupTable | None = None,
    ) -> None:
        warn_after_s = config.env_float("WARN_AFTER_S", config.WARN_AFTER_S)
        self.table = GroupTable(warn_after_s or float("inf")) if table is None else table
        self._clients = clients
        self._nodes = nodes
        self._reactor = reactor
        self._events = events
        self._alarm = Alarm(reactor, self.table.next_tick, self._tick, _TICK_S)
        self._performer = Performer(
            {
                Prepare: self._prepare,
                Commit: lambda action: self._step(action, "commit"),
                Return: lambda action: self._step(action, "return"),
                RemoveFrom: self._remove_from,
                Gone: lambda action: events.group_removed(action.group.hex(), action.reason),
                TellGroup: self._tell,
                WarnOwner: lambda action: events.warn_job(action.job, action.text),
            }
        )
        #: Messages of clients → what becomes of them.
        self.handlers: dict[type[m.Message], Callable[[GroupClient, Any], None]] = {
            m.CreateGroup: self._on_create,
            m.RemoveGroup: lambda client, message: self._perform(
                self.table.remove(client.process, message.request, message.group, monotonic())
            ),
            m.WatchGroup: self._on_watch,
            m.ListGroups: lambda client, message: client.send(m.GroupList(message.request, self.table.describe())),
        }

    # --- what happens elsewhere ----------------------------------------------------------------

    def resume(self, actions: Iterable[PlacementAction]) -> None:
        """Carry out what a restored table begins with."""
        self._perform(actions)

    def node_changed(self, node: PlacementNode) -> None:
        """A node is here, or has other resources or labels, or reports what is free."""
        self._perform(self.table.node_changed(node, monotonic()))

    def node_died(self, node: bytes) -> None:
        """A node is dead."""
        self._perform(self.table.node_died(node, monotonic()))

    def reserved(self, node: bytes, answer: m.BundlesReserved) -> None:
        """A node answers a ReserveBundles."""
        table, now = self.table, monotonic()
        if answer.committed:
            self._perform(table.committed(node, answer.group, answer.request, now))
        else:
            self._perform(table.prepared(node, answer.group, answer.request, answer.reason, now))

    def process_died(self, process: bytes) -> None:
        """A client is dead."""
        self._perform(self.table.process_died(process))

    def job_ended(self, job: int) -> None:
        """A job is over."""
        self._perform(self.table.job_ended(job, monotonic()))

    # --- messages -------------------------------------------------------------------------------

    def _on_create(self, client: GroupClient, message: m.CreateGroup) -> None:
        problem = self._create_problem(client, message)
        if problem:
            client.send(m.GroupState(message.request, message.group, "refused", reason=problem))
            return
        spec = GroupSpec(
            group=message.group,
            creator=client.process,
            job=client.job,
            bundles=tuple(message.bundles),
            strategy=message.strategy,
            name=message.name,
            namespace=message.namespace,
            detached=message.detached,
            selectors=tuple(message.selectors),
            target_node=message.target_node,
        )
        self._perform(self.table.create(spec, message.request, monotonic()))

    def _create_problem(self, client: GroupClient, message: m.CreateGroup) -> str:
        """Why this cannot be a group; "" if it can."""
        if len(message.group) != _GROUP_ID:
            return f"a placement group's id has {_GROUP_ID} bytes, not {len(message.group)}"
        if not self._events.job_lives(client.job):
            return f"its job {client.job} has ended"
        if not message.bundles or not all(any(bundle.values()) for bundle in message.bundles):
            return "a placement group has bundles, and each of them has resources"
        if any(amount < 0 for bundle in message.bundles for amount in bundle.values()):
            return "bundles have amounts of at least 0"
        if message.strategy not in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"):
            return f"there is no strategy {message.strategy!r}"
        if message.selectors and len(message.selectors) != len(message.bundles):
            return f"there are {len(message.bundles)} bundles and {len(message.selectors)} label selectors"
        return ""

    def _on_watch(self, client: GroupClient, message: m.WatchGroup) -> None:
        may_come = self._events.job_lives(int.from_bytes(message.group[14:], "big"))
        self._perform(
            self.table.watch(client.process, message.request, message.group, may_come, message.name, message.namespace)
        )

    # --- carrying out -----------------------------------------------------------------------------

    def _perform(self, actions: Iterable[PlacementAction]) -> None:
        self._performer(actions)
        self._alarm.arm()

    def _prepare(self, action: Prepare) -> None:
        message = m.ReserveBundles(
            action.number,
            "prepare",
            action.group,
            list(action.bundles.items()),
            action.job,
            action.label,
            alone=action.alone,
        )
        self._nodes.reserve(action.node, message)

    def _step(self, action: Commit | Return, step: str) -> None:
        self._nodes.reserve(action.node, m.ReserveBundles(action.number, step, action.group, []))

    def _remove_from(self, action: RemoveFrom) -> None:
        self._nodes.reserve(action.node, m.ReserveBundles(0, "remove", action.group, [], reason=action.reason))

    def _tell(self, action: TellGroup) -> None:
        state = m.GroupState(
            request=action.request,
            group=action.group,
            state=action.state,
            bundles=list(action.bundles),
            nodes=list(action.nodes),
            reason=action.reason,
            name=action.name,
            strategy=action.strategy,
            namespace=action.namespace,
        )
        self._clients.send_all(action.processes, state)

    # --- time ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._perform(self.table.tick(monotonic()))
