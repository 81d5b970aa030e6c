"""A hypothesis machine of the local scheduler against a model that only believes the actions.

The shell around the scheduler is slow in every way: starts, acknowledgements, deaths of stopped workers and
the owners' `seen` come at any later step. Cited rules: LEASE, FLOW, LIVENESS, OWNER-STAYS.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moray.core.local_scheduler import (
    Action,
    Grant,
    LocalScheduler,
    Refuse,
    Revoke,
    Revoked,
    StartWorker,
    StopWorker,
    Warn,
)
from moray.core.worker_pool import RETRY_LAST_S
from tests.support.machines import searched, walk_fixed

UNIT = 10_000
CPUS = 3
TOTAL = {"CPU": CPUS * UNIT, "GPU": 2 * UNIT, "disk": 5 * UNIT}
SHAPES: list[dict[str, int]] = [
    {"CPU": UNIT},
    {"CPU": UNIT},
    {"CPU": UNIT // 2},
    {"CPU": 3 * UNIT},
    {"CPU": UNIT, "GPU": UNIT // 2},
    {"GPU": 2 * UNIT},
    {"GPU": UNIT},
    {"CPU": 2 * UNIT, "disk": 2 * UNIT},
    {},
    {"CPU": 4 * UNIT},
]
INFEASIBLE = len(SHAPES) - 1
#: Length of an actor's id, which stands for the owner of a permanent lease.
ACTOR_ID = 16
ENVS = ("", "env")


@dataclass
class ModelLease:
    owner: bytes
    key: int
    worker: bytes
    need: dict[str, int]
    devices: dict[str, list[int]]
    blocked: bool = False
    revoking: bool = False
    permanent: bool = False


@dataclass
class Wish:
    job: int
    shape: int
    env: str
    count: int = 0
    seen: int = 0
    granted: int = 0
    permanent: bool = False

    @property
    def owed(self) -> int:
        return self.count - (self.granted - self.seen)


@dataclass
class ModelWorker:
    job: int
    env: str
    stopping: bool = False
    owns: bool = False
    discarded: bool = False


@dataclass
class Model:
    jobs: set[int] = field(default_factory=set)
    #: Living owners and their jobs (workers may be owners, too).
    owners: dict[bytes, int] = field(default_factory=dict)
    wishes: dict[tuple[bytes, int], Wish] = field(default_factory=dict)
    workers: dict[bytes, ModelWorker] = field(default_factory=dict)
    leases: dict[int, ModelLease] = field(default_factory=dict)
    #: Said and not answered yet.
    starting: list[tuple[int, str]] = field(default_factory=list)
    revoking: list[tuple[bytes, int]] = field(default_factory=list)
    refused: Counter[tuple[bytes, int]] = field(default_factory=Counter)
    warned: Counter[int] = field(default_factory=Counter)
    last_lease: int = 0


class SchedulerMachine(RuleBasedStateMachine):
    """Random life of a node."""

    def __init__(self) -> None:
        super().__init__()
        self.core = LocalScheduler(dict(TOTAL), {"GPU": 2})
        self.model = Model()
        self.now = 1000.0
        self.names = 0
        self.jobs = 0
        for _ in range(2):
            self._new_job()

    # --- carrying out actions --------------------------------------------------------------------

    def _do(self, actions: list[Action], claims: set[Any] | None = None) -> None:
        for action in actions:
            match action:
                case Grant():
                    self._on_grant(action)
                case StartWorker():
                    self._on_start(action)
                case Revoke():
                    lease = self.model.leases[action.lease]
                    assert lease.worker == action.worker
                    assert not lease.revoking, "revoked twice"
                    assert not lease.permanent, "an actor's lease was revoked"
                    lease.revoking = True
                    self.model.revoking.append((action.worker, action.lease))
                case Revoked():
                    assert action.owner in self.model.owners
                case StopWorker():
                    worker = self.model.workers[action.worker]
                    assert not worker.stopping, "stopped twice"
                    assert not (worker.owns and worker.job in self.model.jobs), "OWNER-STAYS"
                    worker.stopping = True
                case Refuse():
                    wish = self.model.wishes[action.owner, action.key]
                    assert action.infeasible == (wish.shape == INFEASIBLE)
                case Warn():
                    assert action.job in self.model.jobs

    def _on_grant(self, grant: Grant) -> None:
        model = self.model
        assert grant.owner in model.owners, "granted to a dead owner"
        worker = model.workers[grant.worker]
        assert not worker.stopping, "granted a stopped worker"
        assert not worker.discarded, "granted a discarded worker"
        assert grant.worker not in {lease.worker for lease in model.leases.values()}, "a worker in two leases"
        assert grant.worker != grant.owner
        wish = model.wishes[grant.owner, grant.key]
        assert (worker.job, worker.env) == (wish.job, wish.env)
        assert wish.owed > 0, "more grants than wished for"
        assert grant.lease > model.last_lease, "lease numbers rise"
        model.last_lease = grant.lease
        wish.granted += 1
        need = SHAPES[wish.shape]
        lease = ModelLease(grant.owner, grant.key, grant.worker, need, grant.devices, permanent=wish.permanent)
        model.leases[grant.lease] = lease

    def _on_start(self, action: StartWorker) -> None:
        pool = action.job, action.runtime_env
        self.model.starting.append(pool)
        assert action.job in self.model.jobs
        # A claim is a grant that waits for a worker.
        pools = [claim.request.line.pool for claim in self.core._claims]
        claims = sum((known.job, known.runtime_env) == pool for known in pools)
        assert self.model.starting.count(pool) <= claims, "more starts than grants that wait for one"
        assert len(self.model.starting) <= 2 * CPUS, "FLOW of starts"

    def _call(self, method: str, *args: Any, **options: Any) -> list[Action]:
        before = set(self.core._claims)
        actions: list[Action] = getattr(self.core, method)(*args, **options)
        self._do(actions)
        new = set(self.core._claims) - before
        new |= {self.core._leases[a.lease] for a in actions if isinstance(a, Grant)} - before
        if any(lease.need.get("CPU") for lease in new):
            assert self.core.available["CPU"] >= 0, "granted from an empty account"
        return actions

    # --- jobs and owners -----------------------------------------------------------------------------

    def _new_job(self) -> None:
        self.jobs += 1
        self.model.jobs.add(self.jobs)
        self._call("job_started", self.jobs, ENVS[self.jobs % 2])
        self.model.owners[b"driver%d" % self.jobs] = self.jobs

    def _forget_owner(self, owner: bytes) -> None:
        self.model.owners.pop(owner, None)
        for key in [k for k in self.model.wishes if k[0] == owner]:
            del self.model.wishes[key]

    @precondition(lambda self: len(self.model.jobs) < 3)
    @rule()
    def job_starts(self) -> None:
        self._new_job()

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), sure=st.integers(0, 5))
    def job_ends(self, data: st.DataObject, sure: int) -> None:
        if sure:
            return
        job = data.draw(st.sampled_from(sorted(self.model.jobs)))
        self.model.jobs.discard(job)
        for owner in [o for o, j in self.model.owners.items() if j == job]:
            self._forget_owner(owner)
        self.model.starting = [(j, env) for j, env in self.model.starting if j != job]
        self._call("job_ended", job)
        assert all(w.stopping for w in self.model.workers.values() if w.job == job)

    @precondition(lambda self: self.model.owners)
    @rule(data=st.data(), sure=st.integers(0, 2))
    def owner_leaves(self, data: st.DataObject, sure: int) -> None:
        if sure:
            return
        owner = data.draw(st.sampled_from(sorted(self.model.owners)))
        if owner in self.model.workers or len(owner) == ACTOR_ID:
            return
        self._forget_owner(owner)
        actions = self._call("owner_left", owner)
        live = {n for n, lease in self.model.leases.items() if lease.owner == owner and not lease.revoking}
        assert not {n for n in live if not self.model.workers[self.model.leases[n].worker].stopping}, actions

    # --- wishes and leases -------------------------------------------------------------------------------

    @precondition(lambda self: self.model.owners)
    @rule(data=st.data(), key=st.integers(0, len(SHAPES) - 1), count=st.integers(0, 5), env=st.sampled_from(ENVS))
    def request(self, data: st.DataObject, key: int, count: int, env: str) -> None:
        model = self.model
        owner = data.draw(st.sampled_from(sorted(model.owners)))
        if len(owner) == ACTOR_ID:
            return
        wish = model.wishes.setdefault((owner, key), Wish(model.owners[owner], key, env))
        seen = data.draw(st.integers(wish.seen, wish.granted))
        wish.count, wish.seen = count, seen
        self._request(owner, key, wish)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), key=st.integers(0, len(SHAPES) - 1), env=st.sampled_from(ENVS))
    def permanent_request(self, data: st.DataObject, key: int, env: str) -> None:
        """An actor wants its worker."""
        self.names += 1
        job = data.draw(st.sampled_from(sorted(self.model.jobs)))
        actor = b"actor%011d" % self.names
        self.model.owners[actor] = job
        self.model.wishes[actor, key] = Wish(job, key, env, count=1, permanent=True)
        self._request(actor, key, self.model.wishes[actor, key])

    @precondition(lambda self: any(wish.permanent and wish.owed > 0 for wish in self.model.wishes.values()))
    @rule(data=st.data())
    def permanent_request_is_withdrawn(self, data: st.DataObject) -> None:
        waiting = sorted(key for key, wish in self.model.wishes.items() if wish.permanent and wish.owed > 0)
        owner, key = data.draw(st.sampled_from(waiting))
        self._withdraw(owner, key)

    def _withdraw(self, owner: bytes, key: int) -> None:
        wish = self.model.wishes[owner, key]
        wish.count = 0
        self._request(owner, key, wish)

    def _request(self, owner: bytes, key: int, wish: Wish) -> None:
        need = dict(SHAPES[wish.shape])
        arguments = owner, wish.job, key, wish.count, wish.seen, need, wish.env, f"f{key}", self.now
        self._call("request", *arguments, permanent=wish.permanent)

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data(), discard=st.sampled_from([False, False, False, True]))
    def return_lease(self, data: st.DataObject, discard: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.leases)))
        self._return(number, discard)

    def _return(self, number: int, discard: bool) -> None:
        lease = self.model.leases[number]
        if lease.owner not in self.model.owners or lease.permanent:
            return
        worker = self.model.workers[lease.worker]
        if not worker.stopping:
            if not discard or worker.owns:
                del self.model.leases[number]
            worker.discarded |= discard
        self._call("return_lease", lease.owner, number, discard, self.now)

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def foreign_return_is_ignored(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.leases)))
        self._call("return_lease", b"stranger", number, False, self.now)

    @precondition(lambda self: self.model.revoking)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self._acknowledge(data.draw(st.integers(0, len(self.model.revoking) - 1)))

    def _acknowledge(self, index: int) -> None:
        worker, number = self.model.revoking.pop(index)
        lease = self.model.leases.get(number)
        stopping = worker not in self.model.workers or self.model.workers[worker].stopping
        if lease is not None and not stopping:
            del self.model.leases[number]
        self._call("revoked", worker, number, self.now)

    # --- workers ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.starting)
    @rule(data=st.data())
    def worker_starts(self, data: st.DataObject) -> None:
        self._started(data.draw(st.integers(0, len(self.model.starting) - 1)))

    def _started(self, index: int) -> None:
        job, env = self.model.starting.pop(index)
        self.names += 1
        name = b"worker%03d" % self.names
        self.model.workers[name] = ModelWorker(job, env)
        self.model.owners[name] = job
        self._call("worker_started", name, job, env, self.now)

    @precondition(lambda self: self.model.starting)
    @rule(data=st.data())
    def worker_start_fails(self, data: st.DataObject) -> None:
        job, env = self.model.starting.pop(data.draw(st.integers(0, len(self.model.starting) - 1)))
        self._call("worker_start_failed", job, env, "no memory", self.now)

    @precondition(lambda self: self.model.workers)
    @rule(data=st.data(), sure=st.integers(0, 1))
    def worker_dies(self, data: st.DataObject, sure: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.model.workers)))
        if not sure or self.model.workers[worker].stopping:
            self._died(worker)

    def _died(self, worker: bytes) -> None:
        del self.model.workers[worker]
        self._forget_owner(worker)
        for number in [n for n, lease in self.model.leases.items() if lease.worker == worker]:
            del self.model.leases[number]
        self._call("worker_died", worker, self.now)

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def blocks(self, data: st.DataObject) -> None:
        lease = self.model.leases[data.draw(st.sampled_from(sorted(self.model.leases)))]
        if not self.model.workers[lease.worker].stopping and not lease.permanent:
            lease.blocked = True
        self._call("blocked", lease.worker, self.now)

    @precondition(lambda self: any(lease.blocked for lease in self.model.leases.values()))
    @rule(data=st.data())
    def unblocks(self, data: st.DataObject) -> None:
        blocked = sorted(n for n, lease in self.model.leases.items() if lease.blocked)
        self._unblock(data.draw(st.sampled_from(blocked)))

    def _unblock(self, number: int) -> None:
        lease = self.model.leases[number]
        lease.blocked = False
        self._call("unblocked", lease.worker, self.now)

    @precondition(lambda self: self.model.workers)
    @rule(data=st.data(), flag=st.booleans())
    def owns(self, data: st.DataObject, flag: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.model.workers)))
        self.model.workers[worker].owns = flag
        self._call("owns_objects", worker, flag)

    # --- time -------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0, 10.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._call("tick", self.now)
        due = self.core.next_tick()
        assert due is None or due > self.now, "a tick that does not advance"

    # --- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        self.core.validate()
        taken: Counter[str] = Counter()
        for claim in self.core._claims:
            taken.update(claim.need)
        for lease in self.model.leases.values():
            taken.update(lease.need)
            if lease.blocked and not self.model.workers[lease.worker].stopping:
                taken["CPU"] -= lease.need.get("CPU", 0)
        assert self.core.available == {name: total - taken[name] for name, total in TOTAL.items()}

    @invariant()
    def devices_are_not_shared_beyond_one(self) -> None:
        used: Counter[int] = Counter()
        granted = [(lease.need, lease.devices) for lease in self.model.leases.values()]
        claimed = [(claim.need, claim.devices) for claim in self.core._claims]
        for need, devices in granted + claimed:
            amount = need.get("GPU", 0)
            indices = devices.get("GPU", [])
            assert len(indices) == -(-amount // UNIT)
            used.update({index: min(amount, UNIT) for index in indices})
        assert all(0 <= index < 2 and amount <= UNIT for index, amount in used.items()), used

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        free = self.core.available
        for story in self.core.explain(self.now):
            if story["cause"] in ("infeasible", "reserved", "taken") or story["count"] == 0:
                if story["cause"] == "taken":
                    assert story["missing"]
                continue
            wish = self.model.wishes[bytes.fromhex(story["owner"]), story["key"]]
            idle = self._idle(wish.job, wish.env) - {bytes.fromhex(story["owner"])}
            assert not idle, f"{story} waits though {idle} are idle, free {free}"
            broken = story["cause"] == "broken"
            assert broken or self.model.starting, f"{story} waits though a worker could be started"

    def _idle(self, job: int, env: str) -> set[bytes]:
        leased = {lease.worker for lease in self.model.leases.values()}
        return {
            name
            for name, worker in self.model.workers.items()
            if (worker.job, worker.env) == (job, env)
            and name not in leased
            and not worker.stopping
            and not worker.discarded
        }

    @invariant()
    def every_wish_is_explained(self) -> None:
        told = {(bytes.fromhex(s["owner"]), s["key"]): s["count"] for s in self.core.explain(self.now)}
        assert told == {key: wish.owed for key, wish in self.model.wishes.items() if wish.owed > 0}

    def teardown(self) -> None:
        """Let everything finish: every feasible wish is served, then everything is free."""
        for _ in range(int(2 * RETRY_LAST_S) + 100):  # Half a second each: longer than a broken pool pauses.
            self._settle()
            waiting = [w for w in self.model.wishes.values() if w.owed > 0 and w.shape != INFEASIBLE]
            if not waiting and not self.model.leases and not self.model.starting:
                break
            self.now += 0.5
            self._call("tick", self.now)
            for number in list(self.model.leases):
                if number in self.model.leases:
                    self._finish_one(number)
        else:
            raise AssertionError(f"starved: {self.core.explain(self.now)}")
        assert self.core.available == TOTAL
        self.books_agree()

    def _settle(self) -> None:
        """The shell answers everything that it was asked."""
        while self.model.starting or self.model.revoking:
            while self.model.starting:
                self._started(0)
            while self.model.revoking:
                self._acknowledge(0)
        for worker in [name for name, w in self.model.workers.items() if w.stopping]:
            self._died(worker)
        for number in [n for n, lease in self.model.leases.items() if lease.blocked]:
            if number in self.model.leases:
                self._unblock(number)

    def _finish_one(self, number: int) -> None:
        """One task's end: its owner wants one less, and returns the lease."""
        lease = self.model.leases[number]
        if lease.permanent:
            self._died(lease.worker)
            return
        wish = self.model.wishes.get((lease.owner, lease.key))
        if wish is not None:
            wish.seen = wish.granted
            self._request(lease.owner, lease.key, wish)
            wish.count = max(0, wish.count - 1)
            self._request(lease.owner, lease.key, wish)
        if number in self.model.leases:
            self._return(number, discard=False)


TestSchedulerMachine = searched(SchedulerMachine, steps=60)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(SchedulerMachine, 150, steps=60)
