"""A node of the simulated cluster, with its owners and workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moray.core.cluster_scheduler import ClusterScheduler, Demand
from moray.core.cluster_view import ClusterView
from moray.core.local_scheduler import LocalScheduler
from moray.core.membership import LEASE_S
from moray.core.scheduler_actions import Action, Grant, Refuse, Revoke, Revoked, StartWorker, StopWorker
from moray.core.wishes import Ask, Choice, Step, Wish, Wishes
from moray.ids import tag_of
from moray.protocol.cluster_messages import NodeInfo

if TYPE_CHECKING:
    from tests.simulation.cluster import ClusterWorld

UNIT = 10_000
JOB = 1


class Held:
    """A lease, as its owner sees it."""

    def __init__(self, key: int, node: bytes, worker: bytes) -> None:
        self.key = key
        self.node = node
        self.worker = worker
        #: A task runs.
        self.busy = False


class Owner:
    """A process with tasks; it knows what its node tells it."""

    def __init__(self, node: Node, process: bytes) -> None:
        self.node = node
        self.process = process
        #: Key → tasks that do not run; grants seen; leases.
        self.todo: dict[int, int] = {}
        self.seen: dict[int, int] = {}
        self.leases: dict[int, Held] = {}

    def work(self, key: int, tasks: int) -> None:
        self.todo[key] = self.todo.get(key, 0) + tasks
        self.wish(key)

    def wish(self, key: int) -> None:
        """As many workers as there are tasks."""
        self.node.on_request(self, key, self.todo.get(key, 0), self.seen.get(key, 0))

    def granted(self, key: int, lease: int, node: bytes, worker: bytes) -> None:
        assert lease not in self.leases, "granted twice"
        assert all(held.worker != worker for held in self.leases.values()), "the same worker twice"
        self.seen[key] = self.seen.get(key, 0) + 1
        self.leases[lease] = Held(key, node, worker)
        self._feed(lease)
        self.wish(key)

    def _feed(self, lease: int) -> None:
        held, world = self.leases[lease], self.node.world
        if self.todo.get(held.key, 0):
            self.todo[held.key] -= 1
            held.busy = True
            world.at(world.random.uniform(0.01, 2.0), lambda: self._finished(lease, held))
        else:
            del self.leases[lease]
            self.node.on_return(self, lease, held)

    def _finished(self, lease: int, held: Held) -> None:
        if self.leases.get(lease) is held and held.busy:
            held.busy = False
            self.node.world.finished += 1
            self._feed(lease)

    def over(self, lease: int) -> None:
        """Revoked, or its worker is dead: the task is to be done again."""
        held = self.leases.pop(lease, None)
        if held is not None:
            self.todo[held.key] = self.todo.get(held.key, 0) + held.busy
            held.busy = False
            self.wish(held.key)

    def lost(self, is_lost: Callable[[Held], bool]) -> None:
        for lease in [lease for lease, held in self.leases.items() if is_lost(held)]:
            self.over(lease)


class Node:
    """The cores of a node, and what its shell does with them."""

    def __init__(self, world: ClusterWorld, node_id: bytes, cpus: int) -> None:
        self.world = world
        self.node_id = node_id
        self.tag = tag_of(node_id)
        self.total = {"CPU": cpus * UNIT}
        self.dead = False
        self.scheduler = LocalScheduler(dict(self.total), {})
        self.scheduler.number_leases_from(int.from_bytes(self.tag, "big") << 32)
        self.scheduler.job_started(JOB)
        self.view = ClusterView(node_id)
        self.chooser = ClusterScheduler(self.view)
        self.wishes = Wishes(self._choose)
        #: Tag → the id of a living node.
        self.tags: dict[bytes, bytes] = {}
        self.owners: dict[bytes, Owner] = {}
        #: Nodes that are dead, as the head has told.
        self.buried: set[bytes] = set()
        #: Owners at other nodes that this one has heard of: process → id of its node.
        self.remote: dict[bytes, bytes] = {}
        #: Process → tags of nodes that hear of its death.
        self.interest: dict[bytes, dict[bytes, None]] = {}
        #: Worker → the lease that it has.
        self.workers: dict[bytes, int | None] = {}
        self.doomed: set[bytes] = set()
        self.steps: list[Step] = []
        # --- the head
        self.connection = 0
        self.welcomed = False
        self.epoch = 0
        self.lease_end = 0.0
        self.renewals: dict[int, float] = {}
        self.number = 0
        self.heard_at = 0.0
        self._tick()
        self._renew()

    def knows(self, source: bytes) -> bool:
        """Whether the head has told of this node."""
        return self.tags.get(tag_of(source)) == source

    # --- the head ---------------------------------------------------------------------------------------------

    def connect(self) -> None:
        if self.dead or self.welcomed:
            return
        self.connection += 1
        connection, sent = self.connection, self.world.now
        self.heard_at = sent
        if self.world.reaches(b"", self.node_id) and not self.world.head.over:
            head = self.world.head
            info = NodeInfo(self.node_id, "", dict(self.total), dict(self.scheduler.available))
            self.renewals = {0: sent}
            self.world.at(self.world.delay(), lambda: self._to_head(head, connection, info))
        self.world.at(1.5, lambda: self._connect_again(connection))

    def _to_head(self, head: Any, connection: int, info: NodeInfo) -> None:
        if not (self.dead or head.over or connection != self.connection) and self.world.reaches(b"", self.node_id):
            head.on_hello(self, connection, info, self.epoch, self.view.version)

    def _connect_again(self, connection: int) -> None:
        if connection == self.connection and not self.welcomed:
            self.connect()

    def lose_head(self) -> None:
        """The connection ends: what is on its way is lost."""
        self.welcomed = False
        self.connection += 1
        self.world.at(self.world.random.uniform(0.05, 1.0), self.connect)

    def _renew(self) -> None:
        if self.dead:
            return
        if self.welcomed and self.world.now - self.heard_at > LEASE_S / 2:
            self.lose_head()
        elif self.welcomed:
            self.number += 1
            number, head, connection = self.number, self.world.head, self.connection
            available = dict(self.scheduler.available)
            waiting = [(wish.need, wish.owed) for wish in self.wishes.waiting()]
            self.renewals[number] = self.world.now
            self.world.at(self.world.delay(), lambda: self._say(head, connection, number, available, waiting))
        self.world.at(1.0, self._renew)

    def _say(self, head: Any, connection: int, number: int, available: dict[str, int], waiting: list[Any]) -> None:
        if not (self.dead or head.over or connection != self.connection) and self.world.reaches(b"", self.node_id):
            head.on_renew(self, number, available, waiting)

    def on_welcome(self, epoch: int, view: int, nodes: list[NodeInfo]) -> None:
        assert epoch >= self.epoch, "an old head (HEAD-EPOCH)"
        self.epoch, self.welcomed, self.heard_at = epoch, True, self.world.now
        self.lease_end = max(self.lease_end, self.renewals[0] + LEASE_S)
        gone = self.view.reset(view, nodes)
        assert not self.buried & {info.node_id for info in nodes}, "a dead node is back (FENCE)"
        self.tags = {tag_of(info.node_id): info.node_id for info in nodes}
        for node_id in gone:
            self.node_died(node_id)
        self.carry_out(self.wishes.view_changed())

    def on_renewed(self, number: int) -> None:
        self.heard_at = self.world.now
        self.lease_end = max(self.lease_end, self.renewals.pop(number) + LEASE_S)

    def on_refused(self, connection: int, code: str) -> None:
        if self.dead or connection != self.connection:
            return
        if code in ("fenced", "tag"):
            self.world.kill_node(self)
            self.world.at(self.world.random.uniform(0.1, 3.0), self.world.start_node)
        else:
            self.lose_head()

    def on_delta(self, view: int, changed: list[NodeInfo], dead: list[tuple[bytes, str]]) -> None:
        if not self.welcomed:
            return
        self.heard_at = self.world.now
        assert self.view.apply(view, changed, dead), f"version {view} came after {self.view.version}"
        for info in changed:
            assert info.node_id not in self.buried, "a dead node is back (FENCE)"
            self.tags[tag_of(info.node_id)] = info.node_id
        for node_id, _reason in dead:
            if self.tags.pop(tag_of(node_id), None) is not None:
                self.node_died(node_id)
        self.carry_out(self.wishes.view_changed())

    def node_died(self, node_id: bytes) -> None:
        tag = tag_of(node_id)
        self.buried.add(node_id)
        for process in [process for process, home in self.remote.items() if home == node_id]:
            self.forget(process)
        for owner in self.owners.values():
            owner.lost(lambda held: held.node == tag)
        self.carry_out(self.wishes.node_died(tag))

    def forget(self, process: bytes) -> None:
        if self.remote.pop(process, None) is not None:
            self.perform(self.scheduler.owner_left(process))

    # --- owners here ----------------------------------------------------------------------------------------

    def more_work(self) -> None:
        from tests.simulation.cluster import process_of

        if len(self.owners) < 3:
            process = process_of(self.world, self.node_id)
            self.owners[process] = Owner(self, process)
        owner = self.world.random.choice(list(self.owners.values()))
        owner.work(self.world.random.randint(1, 2), self.world.random.randint(1, 12))

    def on_request(self, owner: Owner, key: int, count: int, seen: int) -> None:
        if owner.process in self.owners:
            need = {"CPU": UNIT if key == 1 else UNIT // 2}
            self.carry_out(self.wishes.request(owner.process, JOB, key, count, seen, need, key))

    def on_return(self, owner: Owner, lease: int, held: Held) -> None:
        if held.node == self.tag:
            self.return_lease(owner.process, lease)
        else:
            self.interest.setdefault(owner.process, {})[held.node] = None
            self.say(held.node, lambda node: node.return_lease(owner.process, lease))

    def lose_an_owner(self) -> None:
        owner = self.owners.pop(self.world.random.choice(list(self.owners)))
        self.carry_out(self.wishes.owner_left(owner.process))
        self.perform(self.scheduler.owner_left(owner.process))
        self._tell_death(owner.process)

    def _tell_death(self, process: bytes) -> None:
        for tag in self.interest.pop(process, ()):
            self.say(tag, lambda node: node.on_death(process))

    def on_death(self, process: bytes) -> None:
        """Of another node's process."""
        self.forget(process)
        for owner in self.owners.values():
            owner.lost(lambda held: held.worker == process)

    # --- choosing, asking -----------------------------------------------------------------------------------

    def _choose(self, wish: Wish, count: int) -> Choice:
        self.view.report(self.node_id, self.scheduler.available)
        demand = Demand((wish.owner, wish.key), wish.need, count)
        now, rest, reason, waiting = self.chooser.decide(demand, self.world.random.randrange, self.world.now)
        return Choice([(tag_of(node), some) for node, some in now], tag_of(rest), reason,
                      [(tag_of(node), some) for node, some in waiting])  # fmt: skip

    def carry_out(self, steps: list[Step]) -> None:
        self.steps += steps
        while self.steps:
            step = self.steps.pop(0)
            if isinstance(step, Ask):
                self._ask(step)

    def _ask(self, step: Ask) -> None:
        wish, more, seen = step.wish, step.more, step.seen
        process, key, need = wish.owner, wish.key, dict(wish.need)
        if step.node == self.tag:
            if process in self.owners:
                self.perform(self.scheduler.request(process, JOB, key, more, seen, need, "", "f", self.world.now))
            return
        self.interest.setdefault(process, {})[step.node] = None
        own = self.node_id
        self.say(step.node, lambda node: node.on_remote_request(own, process, key, more, seen, need))

    def on_remote_request(
        self, home: bytes, process: bytes, key: int, count: int, seen: int, need: dict[str, int]
    ) -> None:
        if process not in self.remote:
            if not count:
                return
            self.remote[process] = home
        self.perform(self.scheduler.request(process, JOB, key, count, seen, need, "", "f", self.world.now))

    def say(self, tag: bytes, call: Callable[[Node], None]) -> None:
        """To another living node, in order."""
        target = self.tags.get(tag)
        if target is not None:
            world = self.world
            world.send(self.node_id, target, lambda: call(world.nodes[target]))

    def return_lease(self, process: bytes, lease: int) -> None:
        for worker, had in self.workers.items():
            if had == lease:
                self.workers[worker] = None
        self.perform(self.scheduler.return_lease(process, lease, False, self.world.now))

    # --- what the scheduler here decides --------------------------------------------------------------------

    def perform(self, actions: list[Action]) -> None:
        world = self.world
        for action in actions:
            if isinstance(action, Grant):
                self._grant(action)
            elif isinstance(action, StartWorker):
                world.at(world.random.uniform(0.01, 0.5), self._worker_started)
            elif isinstance(action, StopWorker):
                self.doomed.add(action.worker)
                world.at(world.delay(), lambda action=action: self._worker_died(action.worker))  # type: ignore[misc]
            elif isinstance(action, Revoke):
                world.at(world.random.uniform(0.0, 1.0), lambda action=action: self._revoked(action))  # type: ignore[misc]
            elif isinstance(action, Revoked):
                lease = action.lease
                self._to_owner(action.owner, lambda owner, lease=lease: owner.over(lease))  # type: ignore[misc]
            else:
                assert not isinstance(action, Refuse), action

    def _grant(self, grant: Grant) -> None:
        if grant.worker not in self.workers:
            return  # Its death is about to be told to the scheduler.
        assert self.workers[grant.worker] is None, "the worker has a lease (LEASE)"
        self.workers[grant.worker] = grant.lease
        process, key, lease, worker, tag = grant.owner, grant.key, grant.lease, grant.worker, self.tag
        if process in self.owners:
            # As the shell does: not from within the scheduler's call.
            self.world.at(0.0, lambda: self._granted_here(process, key, lease, worker))
            return
        home = self.remote.get(process)
        if home is not None:
            self.interest.setdefault(worker, {})[tag_of(home)] = None
            self.say(tag_of(home), lambda node: node.on_remote_grant(tag, process, key, lease, worker))

    def _granted_here(self, process: bytes, key: int, lease: int, worker: bytes) -> None:
        owner = self.owners.get(process)
        if self.dead or owner is None:
            return
        self._count(process, key, self.tag)
        owner.granted(key, lease, self.tag, worker)
        if worker not in self.workers:
            owner.over(lease)  # It is told after the grant.

    def on_remote_grant(self, tag: bytes, process: bytes, key: int, lease: int, worker: bytes) -> None:
        self._count(process, key, tag)
        owner = self.owners.get(process)
        if owner is None:
            self.say(tag, lambda node: node.return_lease(process, lease))
        else:
            owner.granted(key, lease, tag, worker)

    def _count(self, process: bytes, key: int, tag: bytes) -> None:
        node_id = self.tags.get(tag)
        if node_id is not None:
            self.view.granted((process, key), node_id, self.world.now)
        self.carry_out(self.wishes.granted(process, key, tag))

    def _to_owner(self, process: bytes, call: Callable[[Owner], None]) -> None:
        if process in self.owners:
            # Not before the grants that were decided earlier.
            self.world.at(0.0, lambda: call(self.owners[process]) if process in self.owners else None)
        elif process in self.remote:
            self.say(
                tag_of(self.remote[process]),
                lambda node: call(node.owners[process]) if process in node.owners else None,
            )

    def _worker_started(self) -> None:
        from tests.simulation.cluster import process_of

        if self.dead:
            return
        worker = process_of(self.world, self.node_id)
        self.workers[worker] = None
        self.perform(self.scheduler.worker_started(worker, JOB, "", self.world.now))

    def _worker_died(self, worker: bytes) -> None:
        if self.dead or worker not in self.workers:
            return
        del self.workers[worker]
        self.doomed.discard(worker)
        for owner in list(self.owners.values()):
            owner.lost(lambda held: held.worker == worker)
        self._tell_death(worker)
        self.perform(self.scheduler.worker_died(worker, self.world.now))

    def lose_a_worker(self) -> None:
        if self.workers:
            self._worker_died(self.world.random.choice(list(self.workers)))

    def _revoked(self, revoke: Revoke) -> None:
        if self.dead or revoke.worker not in self.workers:
            return
        lease = self.workers[revoke.worker]
        if lease is not None and lease <= revoke.lease:
            self.workers[revoke.worker] = None
        self.perform(self.scheduler.revoked(revoke.worker, revoke.lease, self.world.now))

    def _tick(self) -> None:
        if not self.dead:
            due = self.scheduler.next_tick()
            if due is not None and due <= self.world.now:
                self.perform(self.scheduler.tick(self.world.now))
            self.world.at(0.05, self._tick)

    # --- checks ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        self.scheduler.validate()
        self.view.validate()
        self.chooser.validate()
        for wish in self.wishes.waiting():
            assert wish.refused or sum(wish.asked.values()) == wish.owed, "a wish that nobody was asked for"

    def problems(self) -> list[str]:
        """What is not as it should be when nothing is left to do."""
        name, nodes = self.tag.hex(), self.world.nodes
        found = [
            f"owner {owner.process.hex()} has {owner.todo} to do, {len(owner.leases)} leases"
            for owner in self.owners.values()
            if any(owner.todo.values()) or owner.leases
        ]
        if self.scheduler.available != self.total:
            found.append(f"node {name} has {self.scheduler.available} of {self.total}")
        if list(self.wishes.waiting()):
            found.append(f"node {name} waits for something")
        self.view.expire(self.world.now)
        booked = {node.node_id[:4].hex(): node.booked for node in self.view.nodes.values() if node.booked}
        if booked:
            found.append(f"node {name} has booked {booked}")
        if set(self.view.nodes) != set(nodes):
            found.append(f"node {name} knows {len(self.view.nodes)} nodes of {len(nodes)}")
        gone = [process.hex() for process, home in self.remote.items() if home not in nodes]
        gone += [
            process.hex()
            for process, home in self.remote.items()
            if home in nodes and process not in nodes[home].owners
        ]
        if gone:
            found.append(f"node {name} knows owners that are dead: {gone}")
        return found
