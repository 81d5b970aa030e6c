"""Actors in a cluster, as a node sees them: the head decides, this node gives workers and ends them.

What clients say about actors is relayed to the head, and what it answers comes back through its stream
(:mod:`moray.node.head_link`). For an incarnation that is to live here the head asks for a worker (PlaceWorker), which
is a permanent request to the scheduler, as in a local session. Deaths of workers are reported to the head, which
knows who is an actor and who waits for whom.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from moray.core.scheduler_actions import Grant, Refuse
from moray.node.actors import LocalWorkers
from moray.node.clients import Client
from moray.node.draining import Draining
from moray.node.jobs import Job
from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.node.cluster import Cluster
    from moray.node.node import Node

#: What clients say to the head.
RELAYED = (
    m.RegisterActor, m.FindActor, m.ListActors, m.PlaceActor, m.WatchActor, m.KillActor, m.ReleaseActor,
    m.ActorStarted, m.ActorExiting, m.ActorMoved, m.KvRequest, m.CreateGroup, m.RemoveGroup, m.WatchGroup, m.ListGroups,
    m.DrainNode,
)  # fmt: skip

_decode_job = msgspec.msgpack.Decoder(m.JobConfig).decode


class ClusterActors:
    """Stands where a local session has the service itself (:class:`~moray.node.actors.Actors`)."""

    def __init__(self, node: Node, cluster: Cluster, workers: LocalWorkers) -> None:
        self._node = node
        self._cluster = cluster
        self._workers = workers
        #: Worker → (actor, incarnation) that it is, or is about to be.
        self._hosted: dict[bytes, tuple[bytes, int]] = {}
        #: Actor → incarnation for which a worker is wanted.
        self._wanted: dict[bytes, int] = {}
        self._draining = Draining(node, cluster)
        self.handlers: dict[type[m.Message], Callable[[Client, Any], None]] = dict.fromkeys(RELAYED, self._relay)
        cluster.head.handlers |= {
            m.PlaceWorker: self._on_place,
            m.StopProcess: self._on_stop,
            m.ReserveBundles: node.bundles.reserve,
            m.DrainNode: self._draining.begin,
        }

    def _relay(self, client: Client, message: m.Message) -> None:
        self._cluster.head.relay(client.process, client.pid, client.job, message)

    # --- workers for actors -------------------------------------------------------------------------------

    def _on_place(self, place: m.PlaceWorker) -> None:
        if not place.count:
            if self._wanted.get(place.actor) == place.incarnation:
                del self._wanted[place.actor]
                self._request(place)
            return
        self._wanted[place.actor] = place.incarnation
        if place.config and place.job not in self._node.jobs:
            config = _decode_job(place.config)
            self._node.begin_job(Job(place.job, config, None, owns_session=False, origin=place.job))
        self._cluster.with_job(place.job, lambda: self._request_if_wanted(place))

    def _request_if_wanted(self, place: m.PlaceWorker) -> None:
        if self._wanted.get(place.actor) == place.incarnation:
            self._request(place)

    def _request(self, place: m.PlaceWorker) -> None:
        leases = self._node.leases
        leases.perform(
            leases.scheduler.request(
                place.actor,
                place.job,
                place.incarnation,
                place.count,
                0,
                place.resources,
                place.runtime_env,
                place.label,
                monotonic(),
                permanent=True,
                placement=place.placement,
            )
        )

    def granted(self, grant: Grant, worker: Client) -> None:
        """The scheduler has a worker."""
        self._wanted.pop(grant.owner, None)
        self._hosted[worker.process] = grant.owner, grant.key
        address = self._cluster.address_of(worker.process)
        self._cluster.head.report(
            m.WorkerPlaced(grant.owner, grant.key, worker.process, worker.pid, address, worker.job, grant.devices)
        )

    def refused(self, refusal: Refuse) -> None:
        """The scheduler has none for now."""
        self._cluster.head.report(m.WorkerRefused(refusal.owner, refusal.key, refusal.reason, refusal.infeasible))

    def _on_stop(self, stop: m.StopProcess) -> None:
        self._workers.stop(stop.process, stop.reason, stop.graceful)

    def end(self, actors: list[tuple[bytes, int]]) -> None:
        """These incarnations live elsewhere by now (FENCE)."""
        fenced = set(actors)
        for process, hosted in list(self._hosted.items()):
            if hosted in fenced:
                self._workers.stop(process, "the actor lives elsewhere by now", False)

    def hosted(self) -> list[tuple[bytes, int, bytes, int, str, int]]:
        """The actors that are here: (actor, incarnation, process, pid, address, job)."""
        found = []
        for process, (actor, incarnation) in self._hosted.items():
            client = self._node.clients.get(process)
            if client is not None:
                address = self._cluster.address_of(process)
                found.append((actor, incarnation, process, client.pid, address, client.job))
        return found

    # --- what happens elsewhere in the node -------------------------------------------------------------------

    def died(self, death: m.ProcessDied) -> None:
        """A worker is dead."""
        self._hosted.pop(death.process, None)
        self._cluster.head.report(msgspec.structs.replace(death, drained=self._draining.ending))

    def driver_left(self, process: bytes, job: int) -> None:
        """A driver of this node is dead, or has said goodbye."""
        self._cluster.head.report(m.JobEnded(job, process, "its driver has ended"))
