"""A hypothesis machine of the lease pool: any interleaving of an owner, its workers and its node.

Checked at every step (tests/core/leases_world.py): LEASE-1, LEASE-2, LEASE-3, the share rule, recalls only from
workers that do not move and one at a time, wishes within a factor of two of the need. At the end, whatever
state the walk left: with one worker stuck for ever, everything but its current task gets done; then that, too.
"""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.core.leases_world import Worker, World
from tests.support.machines import searched, walk_fixed

FUNCTIONS = 4
MOST_WORKERS = 4
#: Below the least estimate, tiny, a few to the budget, one to the budget, at the limit, beyond.
DURATIONS_US = [0, 5, 40, 90, 300, 501, 999, 1000, 1_000_000]
SHORT_US = [5, 40, 90, 300]

durations = st.sampled_from([*SHORT_US * 3, *DURATIONS_US])
functions = st.integers(0, FUNCTIONS - 1)


class LeasesMachine(RuleBasedStateMachine):
    """Random life of one scheduling key's pool."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(FUNCTIONS)

    @initialize(workers=st.integers(0, MOST_WORKERS), known=st.lists(st.sampled_from(SHORT_US), max_size=FUNCTIONS))
    def start(self, workers: int, known: list[int]) -> None:
        """Most walks start with workers, and with functions that have run before."""
        for _ in range(workers):
            self.unasked_grant_arrives()
        for function, short_us in enumerate(known):
            self.has_been_short(function, short_us)

    def _some(self, data: st.DataObject, workers: list[Worker]) -> Worker:
        return workers[data.draw(st.integers(0, len(workers) - 1))]

    def _workers(self) -> list[Worker]:
        return list(self.world.workers.values())

    # --- the owner -------------------------------------------------------------------------------

    @rule(function=functions, number=st.sampled_from([1, 2, 3, 7, 40, 400]))
    def submit(self, function: int, number: int) -> None:
        self.world.submit(function, number)

    @rule(order=st.lists(functions, min_size=2, max_size=12), times=st.integers(1, 4))
    def submit_mixed(self, order: list[int], times: int) -> None:
        for function in order * times:
            self.world.submit(function, 1)

    @rule(function=functions, short_us=st.sampled_from(SHORT_US))
    def has_been_short(self, function: int, short_us: int) -> None:
        """Sixteen short runs elsewhere: otherwise walks are too short to open a pipeline again."""
        for _ in range(16):
            self.world.functions[function].ran(short_us)

    def _idle(self) -> list[Worker]:
        return [w for w in self._workers() if w.idle]

    @precondition(lambda self: not self.world.pool.queue and self._idle())
    @rule(data=st.data(), function=functions, then=st.lists(functions, max_size=6))
    def submit_directly(self, data: st.DataObject, function: int, then: list[int]) -> None:
        """A user's thread finds an idle worker; perhaps it goes on before that answers."""
        worker = self._some(data, self._idle())
        self.world.submit_directly(function, worker)
        for other in then:
            self.world.submit(other, 1)
        if then:
            self.world.settle(worker)
            self.world.give(worker)

    @precondition(lambda self: self.world.pool.queue)
    @rule()
    def fill(self) -> None:
        self.world.fill()

    @precondition(lambda self: self.world.workers)
    @rule(data=st.data())
    def give_one(self, data: st.DataObject) -> None:
        worker = self._some(data, self._workers())
        self.world.settle(worker)
        self.world.give(worker)

    @rule()
    def tell_wish(self) -> None:
        self.world.tell_wish()

    @rule(times=st.integers(1, 2))
    def look_for_recalls(self, times: int) -> None:
        for _ in range(times):
            self.world.look_for_recalls()

    @precondition(lambda self: any(w.outbox for w in self._workers()))
    @rule(data=st.data(), filled=st.booleans())
    def hear(self, data: st.DataObject, filled: bool) -> None:
        self.world.hear(self._some(data, [w for w in self._workers() if w.outbox]))
        if filled:
            self.world.fill()

    @precondition(lambda self: self.world.workers)
    @rule(data=st.data(), sure=st.integers(0, 5))
    def drain(self, data: st.DataObject, sure: int) -> None:
        worker = self._some(data, self._workers())
        self.world.settle(worker)
        if not sure and worker.slot.running:
            worker.slot.draining = True

    # --- the node --------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.owed > 0)
    @rule(number=st.integers(1, MOST_WORKERS))
    def node_makes_grants(self, number: int) -> None:
        world = self.world
        on_their_way = world.made - world.arrived
        world.made += min(number, world.owed, MOST_WORKERS - on_their_way - len(world.workers))
        world.made = max(world.made, world.arrived)

    @precondition(lambda self: self.world.made > self.world.arrived)
    @rule(filled=st.booleans())
    def grant_arrives(self, filled: bool) -> None:
        worker = self.world.grant()
        if filled:
            self.world.give(worker)

    @precondition(lambda self: len(self.world.workers) < 2)
    @rule()
    def unasked_grant_arrives(self) -> None:
        """A grant that was under way when the wish ended, and late."""
        self.world.made += 1
        self.world.grant()

    @precondition(lambda self: self.world.workers)
    @rule(data=st.data(), sure=st.integers(0, 5))
    def revoke(self, data: st.DataObject, sure: int) -> None:
        if not sure:
            self._some(data, self._workers()).revoke()

    @precondition(lambda self: any(w.revoked and w.current is None for w in self._workers()))
    @rule(data=st.data())
    def revoked(self, data: st.DataObject) -> None:
        worker = self._some(data, [w for w in self._workers() if w.revoked and w.current is None])
        worker.flush()
        self.world.revoked(worker)

    # --- workers -----------------------------------------------------------------------------------------

    @precondition(lambda self: any(w.inbox for w in self._workers()))
    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        self._some(data, [w for w in self._workers() if w.inbox]).receive()

    @rule()
    def all_receive(self) -> None:
        for worker in self._workers():
            while worker.inbox:
                worker.receive()

    @precondition(lambda self: self.world.workers)
    @rule(data=st.data(), times=st.integers(1, 3), looks=st.integers(0, 2))
    def others_get_much_done(self, data: st.DataObject, times: int, looks: int) -> None:
        """All workers but one catch up, and the owner with them; that one is looked at."""
        slow = self._some(data, self._workers())
        self._begin_one(slow)
        for _ in range(times):
            for worker in self._workers():
                if worker is not slow and not worker.revoked:
                    self._turn(worker, stuck=False)
                    self.world.fill()
        for _ in range(looks):
            self.world.look_for_recalls()

    @staticmethod
    def _begin_one(worker: Worker) -> None:
        while worker.inbox:
            worker.receive()
        if worker.queue and worker.current is None and not worker.blocked:
            worker.begin()

    @precondition(lambda self: any(w.queue or w.current for w in self._workers()))
    @rule(data=st.data(), runs=st.lists(durations, max_size=20), flushed=st.booleans(), goes_on=st.booleans())
    def run(self, data: st.DataObject, runs: list[int], flushed: bool, goes_on: bool) -> None:
        """A worker finishes what it runs and some more, and perhaps begins the next."""
        worker = self._some(data, [w for w in self._workers() if w.queue or w.current])
        if not worker.blocked:
            self._run(worker, runs)
            if worker.queue and goes_on and worker.current is None:
                worker.begin()
        if flushed:
            worker.flush()

    @staticmethod
    def _run(worker: Worker, runs: list[int]) -> None:
        for duration_us in runs:
            if worker.current is None:
                if not worker.queue:
                    return
                worker.begin()
            worker.finish(duration_us)

    @precondition(lambda self: any(not w.blocked for w in self._workers()))
    @rule(data=st.data())
    def block(self, data: st.DataObject) -> None:
        """Its task waits, or a thread that an earlier task has left behind."""
        self._some(data, [w for w in self._workers() if not w.blocked]).block()

    @precondition(lambda self: any(w.blocked for w in self._workers()))
    @rule(data=st.data())
    def unblock(self, data: st.DataObject) -> None:
        self._some(data, [w for w in self._workers() if w.blocked]).blocked = False

    @precondition(lambda self: self.world.workers)
    @rule(data=st.data(), sure=st.integers(0, 7))
    def die(self, data: st.DataObject, sure: int) -> None:
        if not sure:
            self.world.dies(self._some(data, self._workers()))

    # --- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """Everything finishes, with one worker stuck for ever as long as that can be."""
        for worker in self._workers():
            if worker.revoked:
                self._finish_revoked(worker)
        self.world.fill()
        for worker in self._workers():
            self._begin_one(worker)
        stuck = next((w for w in self._workers() if w.current), None)
        if stuck is not None:
            self._run_dry(stuck)
            assert self.world.alive == {task.seq for task in [stuck.current] if task}, "left behind a stuck worker"
            stuck.blocked = False
        self._run_dry(None)
        assert not self.world.alive
        self.world.look_for_recalls()
        self.world.tell_wish()
        assert self.world.pool.requested == 0

    def _finish_revoked(self, worker: Worker) -> None:
        if worker.current is not None:
            worker.finish(5)
        worker.flush()
        self.world.revoked(worker)
        self.world.check()

    def _run_dry(self, stuck: Worker | None) -> None:
        """Turns of everything. A turn that may run a task runs one, so turns are as many as tasks at most."""
        world = self.world
        for _ in range(4 * len(world.alive) + 50):
            if not world.alive - ({stuck.current.seq} if stuck and stuck.current else set()) and not self._messages():
                return
            if not self._idle() and all(w is stuck or w.slot.draining or w.slot.blocked for w in self._workers()):
                world.made += 1
                world.grant()
            world.fill()
            for worker in self._workers():
                self._turn(worker, worker is stuck)
            world.look_for_recalls()
            world.check()
        raise AssertionError(f"{len(world.alive)} tasks do not end: {world.pool.queue}, {self._workers()}")

    def _messages(self) -> bool:
        return any(w.inbox or w.outbox or w.unsettled for w in self._workers())

    def _turn(self, worker: Worker, stuck: bool) -> None:
        while worker.inbox:
            worker.receive()
        if not stuck:
            worker.blocked = False
            self._run(worker, [5] * (len(worker.queue) + 1))
        worker.flush()
        while worker.outbox:
            self.world.hear(worker)


TestLeasesMachine = searched(LeasesMachine)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(LeasesMachine, 300)


# --- scenarios that random walks reach too rarely ------------------------------------------------------


def short_world(workers: int, *short_us: int) -> World:
    """Workers, and a function for each of the durations, which it has always had."""
    world = World(len(short_us))
    for function, duration_us in zip(world.functions, short_us, strict=True):
        function.ran(duration_us)
    for _ in range(workers):
        world.grant()
    return world


def test_short_functions_in_turn_fill_the_pipeline() -> None:
    world = short_world(1, 10, 20)
    for _ in range(100):
        world.submit(0, 1)
        world.submit(1, 1)
    world.fill()
    assert len(world.workers[1].slot.running) == 1000 // 20


def test_what_was_recalled_is_not_put_behind_the_same_task_again() -> None:
    world = short_world(1, 90)
    stuck = world.workers[1]
    world.submit(0, 6)
    world.give(stuck)
    stuck.receive()
    stuck.begin()
    idle = world.grant()
    for _ in range(2):
        world.look_for_recalls()
    stuck.receive()
    world.hear(stuck)
    assert len(world.pool.queue) == 5
    world.fill()
    assert len(stuck.slot.running) == 1
    assert len(idle.slot.running) == 3


def test_nothing_is_recalled_for_a_blocked_worker() -> None:
    world = short_world(2, 90)
    stuck, blocked = world.workers.values()
    blocked.block()
    world.submit_directly(0, blocked)
    world.settle(blocked)
    blocked.receive()
    world.hear(blocked)
    assert blocked.slot.blocked
    assert not blocked.slot.running
    world.submit(0, 3)
    world.give(stuck)
    assert len(stuck.slot.running) == 2
    world.pool.queue.clear()
    for _ in range(2):
        world.look_for_recalls()
    assert not stuck.recalled


def test_nothing_is_put_behind_a_function_that_turned_out_long() -> None:
    world = short_world(1, 10, 10)
    worker = world.workers[1]
    world.submit(0, 5)
    world.give(worker)
    world.functions[0].ran(1_000_000)
    world.submit(1, 1000)
    world.give(worker)
    assert len(worker.slot.running) == 5
