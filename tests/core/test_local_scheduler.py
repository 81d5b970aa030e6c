"""Scenarios of the local scheduler, one rule or policy each (LEASE, FLOW, OWNER-STAYS, LIVENESS)."""

from __future__ import annotations

from typing import Any

import pytest

from moray.core.lease_balance import QUANTUM_S
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

UNIT = 10_000
CPU = {"CPU": UNIT}


class Node:
    """A scheduler with a shell that answers at once, unless told otherwise."""

    def __init__(self, cpus: float = 2, *, gpus: int = 0, answer: bool = True, **more: int) -> None:
        total = {"CPU": int(cpus * UNIT), **more}
        if gpus:
            total["GPU"] = gpus * UNIT
        self.core = LocalScheduler(total, {"GPU": gpus} if gpus else {})
        self.now = 100.0
        self.answer = answer
        self.grants: list[Grant] = []
        self.log: list[Action] = []
        self.workers = 0
        self.seen: dict[tuple[bytes, int], int] = {}
        for job in (1, 2, 3):
            self.core.job_started(job)

    def do(self, actions: list[Action]) -> list[Action]:
        self.core.validate()
        self.log += actions
        for action in actions:
            if isinstance(action, Grant):
                self.grants.append(action)
                self.seen[action.owner, action.key] = self.seen.get((action.owner, action.key), 0) + 1
            elif isinstance(action, StartWorker) and self.answer:
                self.start(action.job, action.runtime_env)
            elif isinstance(action, Revoke) and self.answer:
                self.do(self.core.revoked(action.worker, action.lease, self.now))
            elif isinstance(action, StopWorker) and self.answer:
                self.do(self.core.worker_died(action.worker, self.now))
        return actions

    def start(self, job: int = 1, env: str = "") -> bytes:
        self.workers += 1
        name = b"w%d" % self.workers
        self.do(self.core.worker_started(name, job, env, self.now))
        return name

    def want(
        self, owner: bytes, count: int, need: dict[str, int] = CPU, *, job: int = 1, key: int = 1, env: str = ""
    ) -> list[Action]:
        seen = self.seen.get((owner, key), 0)
        return self.do(self.core.request(owner, job, key, count, seen, need, env, f"f{key}", self.now))

    def give_back(self, grant: Grant, *, discard: bool = False) -> list[Action]:
        return self.do(self.core.return_lease(grant.owner, grant.lease, discard, self.now))

    def after(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.do(self.core.tick(self.now))

    def of(self, kind: type[Any]) -> list[Any]:
        return [action for action in self.log if isinstance(action, kind)]

    def owners(self) -> list[bytes]:
        return [grant.owner for grant in self.grants]


def test_grants_what_fits_and_no_more() -> None:
    node = Node(2)
    node.want(b"d", 10)
    assert len(node.grants) == 2
    assert len(node.of(StartWorker)) == 2
    assert node.core.available == {"CPU": 0}
    node.give_back(node.grants[0])
    assert len(node.grants) == 3
    assert [g.lease for g in node.grants] == [1, 2, 3]
    assert len(node.of(StartWorker)) == 2, "the worker is used again"


def test_who_has_which_worker_is_known_until_the_lease_is_over() -> None:
    """An owner that lost the connection to a worker has it ended: not one that is somebody else's by now."""
    node = Node(1)
    node.want(b"d", 1)
    lease, worker = node.grants[0].lease, node.grants[0].worker
    assert node.core.worker_of(b"d", lease) == worker
    assert node.core.worker_of(b"e", lease) == b""
    node.give_back(node.grants[0])
    assert node.core.worker_of(b"d", lease) == b""
    node.want(b"e", 1)
    assert (node.grants[1].worker, node.core.worker_of(b"d", lease)) == (worker, b"")


def test_a_grant_in_flight_is_not_made_twice() -> None:
    node = Node(4)
    node.want(b"d", 2)
    node.do(node.core.request(b"d", 1, 1, 2, 0, CPU, "", "f", node.now))
    assert len(node.grants) == 2
    node.do(node.core.request(b"d", 1, 1, 2, 2, CPU, "", "f", node.now))
    assert len(node.grants) == 4


def test_an_owner_cannot_claim_to_have_seen_more_than_there_was() -> None:
    node = Node(4)
    node.want(b"d", 1)
    node.do(node.core.request(b"d", 1, 1, 1, 3, CPU, "", "f", node.now))
    assert len(node.grants) == 2


def test_lowering_the_wish_takes_claims_back() -> None:
    node = Node(2, answer=False)
    node.want(b"d", 2)
    assert node.core.available["CPU"] == 0
    node.want(b"d", 0)
    assert node.core.available["CPU"] == 2 * UNIT
    node.start()
    assert node.grants == []


def test_claims_are_what_is_taken_before_there_is_a_worker() -> None:
    node = Node(3, answer=False)
    node.want(b"d", 2)
    node.want(b"e", 5, key=7)
    assert sorted(node.core.claims()) == [(b"d", 1, CPU), (b"d", 1, CPU), (b"e", 7, CPU)]
    node.start()
    assert len(list(node.core.claims())) == 2
    node.want(b"e", 0, key=7)
    assert all(owner == b"d" for owner, _key, _need in node.core.claims())


def test_records_of_a_finished_key_are_forgotten_and_it_can_come_again() -> None:
    node = Node(1)
    for _ in range(3):
        node.want(b"d", 1)
        node.want(b"d", 0)
        node.give_back(node.grants[-1])
        assert node.core.explain(node.now) == []
        assert node.core._owners == {}
    assert len(node.grants) == 3


def test_workers_belong_to_job_and_environment() -> None:
    node = Node(2)
    node.want(b"d", 1)
    node.give_back(node.grants[0])
    node.want(b"e", 1, job=2)
    node.want(b"d", 1, env="pip", key=2)
    assert len({grant.worker for grant in node.grants}) == 3
    assert [(s.job, s.runtime_env) for s in node.of(StartWorker)] == [(1, ""), (2, ""), (1, "pip")]


def test_starts_are_limited_and_not_more_than_claims() -> None:
    node = Node(2, answer=False)
    node.want(b"d", 1000, {})
    assert len(node.of(StartWorker)) == 4
    node.start()
    assert len(node.of(StartWorker)) == 5
    assert len(node.grants) == 1


def test_a_returned_worker_serves_the_claim_that_waits_for_a_start() -> None:
    node = Node(2)
    node.want(b"d", 1)
    node.answer = False
    node.want(b"e", 1)
    node.give_back(node.grants[0])
    assert node.owners() == [b"d", b"e"]
    node.start()
    assert node.core.available["CPU"] == UNIT


def test_device_indices_are_whole_or_shared_within_one() -> None:
    node = Node(8, gpus=2)
    node.want(b"d", 1, {"GPU": UNIT}, key=1)
    node.want(b"d", 2, {"GPU": UNIT // 2}, key=2)
    assert [g.devices for g in node.grants] == [{"GPU": [0]}, {"GPU": [1]}, {"GPU": [1]}]
    node.answer = False
    node.want(b"d", 1, {"GPU": UNIT // 10}, key=3)
    assert len(node.grants) == 3
    node.answer = True
    node.give_back(node.grants[0])
    assert node.grants[3].devices == {"GPU": [0]}


@pytest.mark.parametrize("need", [{"CPU": 3 * UNIT}, {"TPU": 1}, {"GPU": UNIT * 3 // 2}])
def test_the_impossible_is_refused_once_and_stays_explained(need: dict[str, int]) -> None:
    node = Node(2, gpus=2)
    actions = node.want(b"d", 1, need) + node.want(b"d", 2, need)
    assert [type(a) for a in actions] == [Refuse]
    assert actions[0].infeasible  # type: ignore[union-attr]
    [story] = node.core.explain(node.now)
    assert story["cause"] == "infeasible"
    assert next(iter(need)) in story["reason"]


def test_a_second_driver_gets_its_half_at_once() -> None:
    node = Node(4, answer=False)
    node.want(b"d", 100)
    workers = [node.start() for _ in range(4)]
    actions = node.want(b"e", 100, job=2)
    revoked = [a for a in actions if isinstance(a, Revoke)]
    assert len(revoked) == 2
    assert {r.owner for r in revoked} == {b"d"}
    assert b"e" not in node.owners(), "LEASE: nothing before the acknowledgement"
    assert not [a for a in actions if isinstance(a, StartWorker)]
    actions = node.do(node.core.revoked(revoked[0].worker, revoked[0].lease, node.now))
    assert isinstance(actions[0], Revoked)
    assert isinstance(actions[1], StartWorker)
    node.start(2)
    assert node.owners().count(b"e") == 1
    assert set(workers) >= {g.worker for g in node.grants if g.owner == b"d"}


def test_no_lease_is_taken_from_an_equal() -> None:
    node = Node(2)
    node.want(b"d", 5)
    node.want(b"e", 5)
    assert node.owners().count(b"e") == 1
    before = len(node.of(Revoke))
    node.after(10 * QUANTUM_S)
    assert len(node.of(Revoke)) == before


def test_more_owners_than_cpus_take_turns() -> None:
    node = Node(1)
    node.want(b"d", 1000)
    node.want(b"e", 1000)
    assert node.owners() == [b"d"]
    for _ in range(6):
        node.after(QUANTUM_S)
        node.want(b"d", 1000)
        node.want(b"e", 1000)
    assert node.owners()[:6] == [b"d", b"e", b"d", b"e", b"d", b"e"]


def test_another_key_of_the_same_owner_gets_a_lease() -> None:
    node = Node(2)
    node.want(b"d", 2, key=1)
    node.want(b"d", 2, key=2)
    assert [g.key for g in node.grants] == [1, 1, 2]


def test_one_revocation_per_waiting_grant() -> None:
    node = Node(8, answer=False)
    node.want(b"d", 8)
    for _ in range(8):
        node.start()
    node.want(b"e", 1, job=2)
    for _ in range(5):
        node.want(b"e", 1, job=2)
    assert len(node.of(Revoke)) == 1


def test_a_victim_in_a_long_task_is_given_up_after_a_quantum() -> None:
    node = Node(8, answer=False)
    node.want(b"d", 8)
    for _ in range(8):
        node.start()
    node.want(b"e", 1, job=2)
    node.after(QUANTUM_S)
    first, second = node.of(Revoke)
    assert first.lease != second.lease
    node.do(node.core.revoked(second.worker, second.lease, node.now))
    node.start(2)
    assert node.owners()[-1] == b"e"


def test_a_large_need_collects_several_leases() -> None:
    node = Node(4)
    node.want(b"d", 1000)
    node.want(b"e", 1, {"CPU": 4 * UNIT}, job=2)
    assert len(node.grants) == 4
    for _ in range(20):
        node.after(QUANTUM_S)
        if b"e" in node.owners():
            break
        node.want(b"d", 1000)
    assert b"e" in node.owners()


def test_a_large_need_is_not_overtaken_forever() -> None:
    node = Node(2, answer=False)
    node.want(b"d", 10**6, key=1)
    node.start(), node.start()
    node.want(b"d", 1, {"CPU": 2 * UNIT}, key=2)
    live = list(node.grants)
    started = node.now
    while node.grants[-1].key != 2 and node.now < started + 4.0:
        # Leases come back one at a time, so the two CPUs are never free together by chance.
        node.now += 0.02
        before = len(node.grants)
        node.give_back(live.pop(0))
        live += node.grants[before:]
        node.want(b"d", 10**6, key=1)
    assert node.grants[-1].key == 2
    assert node.now > started + 0.1, "it waited at first"


def test_a_reservation_rests_so_that_small_needs_run() -> None:
    node = Node(2, answer=False)
    node.want(b"d", 1, key=9)
    node.start()
    node.start()
    # The lease in the way runs a long task, so its revocation is not acknowledged.
    node.want(b"e", 1, {"CPU": 2 * UNIT}, job=2)
    node.after(0.3)
    node.want(b"d", 1, key=2)
    explained = {story["label"]: story["cause"] for story in node.core.explain(node.now)}
    assert explained == {"f1": "taken", "f2": "reserved"}
    node.after(0.5)
    assert node.grants[-1].key == 2


def test_a_blocked_worker_lends_cpus_only_and_takes_them_back() -> None:
    node = Node(1, gpus=1)
    node.want(b"d", 1, {"CPU": UNIT, "GPU": UNIT})
    worker = node.grants[0].worker
    node.do(node.core.blocked(worker, node.now))
    assert node.core.available == {"CPU": UNIT, "GPU": 0}
    node.want(worker, 1)
    assert node.grants[1].owner == worker
    node.answer = False
    node.do(node.core.unblocked(worker, node.now))
    assert node.core.available["CPU"] == -UNIT
    node.want(b"e", 1, {"CPU": 1})
    node.do(node.core.return_lease(worker, 2, False, node.now))
    assert node.core.available["CPU"] == 0
    assert b"e" not in node.owners()
    node.give_back(node.grants[0])
    assert b"e" in node.owners()


def test_a_lease_that_ends_while_its_worker_is_blocked_gives_back_the_rest() -> None:
    node = Node(1, gpus=1)
    node.want(b"d", 1, {"CPU": UNIT, "GPU": UNIT})
    node.do(node.core.blocked(node.grants[0].worker, node.now))
    node.give_back(node.grants[0])
    assert node.core.available == node.core.total
    node.do(node.core.unblocked(node.grants[0].worker, node.now))
    assert node.core.available == node.core.total, "the message that crossed the return changes nothing"


def test_a_dead_owners_leases_end_when_the_worker_says_so() -> None:
    node = Node(1, answer=False)
    node.want(b"d", 5)
    worker = node.start()
    actions = node.do(node.core.owner_left(b"d"))
    assert actions == [Revoke(worker, 1, b"d")]
    assert node.want(b"e", 1) == []
    actions = node.do(node.core.revoked(worker, 1, node.now))
    assert actions == [Grant(b"e", 1, 2, worker, {})]


def test_an_old_acknowledgement_ends_nothing() -> None:
    node = Node(1, answer=False)
    node.want(b"d", 1)
    worker = node.start()
    node.want(b"e", 1, job=1)
    node.after(QUANTUM_S)
    [revoke] = node.of(Revoke)
    node.give_back(node.grants[0])
    assert node.owners() == [b"d", b"e"]
    assert node.do(node.core.revoked(worker, revoke.lease, node.now)) == []
    assert node.core.available["CPU"] == 0


def test_a_discarded_worker_keeps_its_resources_until_it_is_dead() -> None:
    node = Node(1, answer=False)
    node.want(b"d", 2)
    worker = node.start()
    assert node.give_back(node.grants[0], discard=True) == [StopWorker(worker, "its owner asked for another")]
    assert node.core.available["CPU"] == 0
    assert node.do(node.core.worker_died(worker, node.now)) == [StartWorker(1, "")]


def test_owner_stays() -> None:
    node = Node(1, answer=False)
    node.want(b"d", 2)
    worker = node.start()
    node.do(node.core.owns_objects(worker, True))
    assert node.give_back(node.grants[0], discard=True) == [StartWorker(1, "")]
    other = node.start()
    assert node.grants[1].worker == other
    actions = node.do(node.core.owns_objects(worker, False))
    assert actions == [StopWorker(worker, "its objects are no longer needed")]


def test_idle_workers_beyond_the_cpus_are_stopped_but_not_owners() -> None:
    node = Node(2)
    node.want(b"d", 5, {})
    for grant in list(node.grants):
        node.give_back(grant)
    node.want(b"d", 0, {})
    node.do(node.core.owns_objects(b"w1", True))
    assert node.after(59.0) == []
    stopped = node.after(1.0)
    assert len(stopped) == 3
    assert b"w1" not in {s.worker for s in stopped if isinstance(s, StopWorker)}
    assert node.core.next_tick() is None


def test_the_favoured_environment_is_stopped_last() -> None:
    node = Node(1)
    node.core.job_started(4, "main")
    node.want(b"d", 1, {}, job=4, env="main")
    node.want(b"d", 1, {}, job=4, env="other", key=2)
    for grant in list(node.grants):
        node.give_back(grant)
    [stopped] = node.after(60.0)
    assert stopped == StopWorker(node.grants[1].worker, "it was idle")


def test_three_failed_starts_refuse_and_pause() -> None:
    node = Node(2, answer=False)
    node.want(b"d", 1)
    for _ in range(2):
        assert node.do(node.core.worker_start_failed(1, "", "no such file", node.now)) == [StartWorker(1, "")]
    assert node.do(node.core.worker_start_failed(1, "", "no such file", node.now)) == [
        Refuse(b"d", 1, "no such file", False)
    ]
    assert node.core.available["CPU"] == 2 * UNIT
    assert node.want(b"e", 1) == [Refuse(b"e", 1, "no such file", False)]
    assert node.core.explain(node.now)[0]["cause"] == "broken"
    assert node.after(9.9) == []
    assert node.after(0.1) == [StartWorker(1, "")]
    node.start()
    assert node.owners() == [b"d"]


def test_starts_that_fail_together_make_one_pause() -> None:
    node = Node(4, answer=False)
    node.want(b"d", 8)
    starts = len(node.of(StartWorker))
    assert starts == 4
    for _ in range(starts + 2):  # Two are ordered anew before the pool counts as broken.
        node.do(node.core.worker_start_failed(1, "", "no memory", node.now))
    assert StartWorker(1, "") not in node.after(9.9)
    assert StartWorker(1, "") in node.after(0.1)
    node.do(node.core.worker_start_failed(1, "", "no memory", node.now))
    assert StartWorker(1, "") not in node.after(19.9)
    assert StartWorker(1, "") in node.after(0.1)


def test_a_slow_start_gives_its_resources_to_others() -> None:
    node = Node(1, answer=False)
    node.want(b"d", 1, env="pip")
    node.want(b"e", 1)
    assert node.of(StartWorker) == [StartWorker(1, "pip")]
    node.after(1.0)
    assert node.of(StartWorker) == [StartWorker(1, "pip"), StartWorker(1, "")]
    node.start()
    assert node.owners() == [b"e"]
    node.give_back(node.grants[0])
    node.start(1, "pip")
    assert node.owners() == [b"e", b"d"]


def test_job_end_stops_its_workers_and_only_those() -> None:
    node = Node(4, answer=False)
    node.want(b"d", 2)
    node.want(b"e", 1, job=2)
    one, two = node.start(1), node.start(2)
    actions = node.do(node.core.job_ended(1))
    assert actions == [StopWorker(one, "its job has ended")]
    assert node.do(node.core.request(b"d", 1, 1, 1, 0, CPU, "", "f", node.now)) == []
    late = node.do(node.core.worker_started(b"late", 1, "", node.now))
    assert late == [StopWorker(b"late", "its job has ended")]
    node.do(node.core.worker_died(one, node.now))
    node.give_back(next(g for g in node.grants if g.worker == two))
    assert node.core.available == node.core.total


def test_one_warning_after_ten_seconds_names_the_holder() -> None:
    node = Node(1)
    node.want(b"d", 1, key=7)
    node.do(node.core.blocked(node.grants[0].worker, node.now))
    node.want(b"w", 1, {"CPU": UNIT}, key=8)
    node.do(node.core.unblocked(node.grants[0].worker, node.now))
    node.answer = False
    node.want(b"e", 1, key=3, job=2)
    warnings = [a for _ in range(30) for a in node.after(1.0) if isinstance(a, Warn)]
    assert len(warnings) == 1
    assert "f3" in warnings[0].text
    assert "f7" in warnings[0].text


def test_no_warning_while_something_of_the_key_runs() -> None:
    node = Node(1)
    node.want(b"d", 10)
    assert not [a for _ in range(30) for a in node.after(1.0) if isinstance(a, Warn)]


def test_very_many_blocked_workers_warn_once() -> None:
    node = Node(1)
    node.want(b"d", 10)
    for index in range(8):
        node.do(node.core.blocked(node.grants[index].worker, node.now))
    [warning] = node.of(Warn)
    assert "5 workers are blocked" in warning.text


# --- actors: permanent leases ---------------------------------------------------------------------------------


def actor_wants(node: Node, actor: bytes, need: dict[str, int] = CPU, count: int = 1, **options: Any) -> list[Action]:
    node.do(
        node.core.request(actor, 1, 0, count, 0, need, "", "Counter", node.now, permanent=True, **options),
    )
    return node.log


def test_an_actors_lease_is_not_taken_back_lends_nothing_and_ends_with_its_worker() -> None:
    node = Node(1)
    actor_wants(node, b"actor-----------")
    (grant,) = node.grants
    node.want(b"driver", 1, job=2)
    node.after(1.0)
    node.do(node.core.blocked(grant.worker, node.now))
    assert not node.of(Revoke)
    assert node.grants == [grant]
    assert node.core.available["CPU"] == 0
    node.do(node.core.worker_died(grant.worker, node.now))
    assert node.grants[1].owner == b"driver"
    assert not node.core._owners.keys() - {b"driver"}, "nothing is remembered of the actor"


def test_an_actor_takes_a_cpu_from_tasks_and_a_withdrawn_one_wants_nothing() -> None:
    node = Node(1)
    node.want(b"driver", 2)
    actor_wants(node, b"actor-----------")
    node.after(QUANTUM_S)
    assert node.grants[-1].owner == b"actor-----------"
    actor_wants(node, b"another---------")
    actor_wants(node, b"another---------", count=0)
    assert {story["owner"] for story in node.core.explain(node.now)} == {b"driver".hex()}


def test_placement_must_exist_but_is_not_held() -> None:
    node = Node(1)
    actor_wants(node, b"actor-----------", {}, placement=CPU)
    actor_wants(node, b"another---------", {}, placement={"CPU": 2 * UNIT})
    assert [grant.owner for grant in node.grants] == [b"actor-----------"]
    assert node.core.available["CPU"] == UNIT
    (refusal,) = node.of(Refuse)
    assert refusal.infeasible
    assert "2 wanted, the machine has 1" in refusal.reason


def test_many_waiting_actors_are_warned_of_together() -> None:
    node = Node(1)
    for number in range(5):
        actor_wants(node, b"actor%11d" % number)
    node.after(30.0)
    node.after(30.0)
    (warning,) = node.of(Warn)
    assert "Counter has been waiting 30 s for 4 worker(s)" in warning.text


def test_nothing_is_reserved_for_a_need_that_does_not_fit_beside_an_actor() -> None:
    """It would hold the free CPU for ever longer, and in vain, as long as the actor lives."""
    node = Node(2)
    actor_wants(node, b"actor-----------", {"CPU": UNIT // 2})
    node.want(b"large", 1, {"CPU": 2 * UNIT})
    served = 0
    for _ in range(200):
        node.want(b"small", 1)
        held = [grant for grant in node.grants if grant.owner == b"small"]
        if len(held) > served:
            served += 1
            node.after(0.01)
            node.give_back(held[-1])
        else:
            node.after(0.01)
    assert served >= 199
    assert not [grant for grant in node.grants if grant.owner == b"large"]
    node.do(node.core.worker_died(node.grants[0].worker, node.now))
    node.after(1.0)
    assert [grant for grant in node.grants if grant.owner == b"large"], "the actor is gone"


def test_an_owner_that_wants_nothing_more_hears_that_its_last_lease_was_revoked() -> None:
    """With the lease goes the owner's record, which must not be why it is not told."""
    node = Node(cpus=1, answer=False)
    node.want(b"o1", 1)
    worker = node.start()
    granted = node.grants[0]
    node.want(b"o1", 0)
    node.want(b"o2", 1)
    node.now += QUANTUM_S
    actions = node.do(node.core.tick(node.now))
    revoke = next(action for action in node.log if isinstance(action, Revoke))
    assert (revoke.worker, revoke.lease) == (worker, granted.lease)
    actions = node.do(node.core.revoked(worker, revoke.lease, node.now))
    assert Revoked(b"o1", granted.lease) in actions
