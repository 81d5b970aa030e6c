"""A hypothesis machine of the table of actors against a model that only believes what it is told.

Every process speaks to the head on a FIFO of its own, and hears it on another; the scheduler grants late, and crosses
withdrawals; workers crash at each step of their lives, and stopped ones linger. Cited invariants: ACTORS-1 to 6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moray.core.actor_actions import (
    ActorAction,
    Names,
    Over,
    Place,
    Placed,
    Registered,
    Registration,
    Site,
    Start,
    Stop,
    Tell,
    WarnJob,
    Withdraw,
)
from moray.core.actors import ActorTable
from tests.support.machines import searched, walk_fixed

JOBS = (1, 2)
NAMES = ("", "x", "x", "y")
#: Living actors at once: more would get less far.
MOST_ACTORS = 4


@dataclass
class Process:
    """A driver or worker; what it says and hears is on its way."""

    name: bytes
    job: int
    #: To the head: (method, arguments).
    says: deque[tuple[str, tuple[Any, ...]]] = field(default_factory=deque)
    hears: deque[ActorAction] = field(default_factory=deque)
    #: Of which actor it was to be which incarnation.
    actor: bytes = b""
    incarnation: int = 0
    #: "empty", "constructing", "alive", "leaving".
    state: str = "empty"
    #: Told to end: it cannot be relied on to live.
    stopped: bool = False


@dataclass
class Known:
    """What the model knows of an actor that the head has accepted."""

    made: Registration
    #: Incarnations that were asked for.
    placed: int = 0
    #: It was to die, by what the head has heard.
    ended: bool = False
    dead: bool = False
    #: Who must still hear "dead".
    audience: set[bytes] = field(default_factory=set)


class ActorsMachine(RuleBasedStateMachine):
    """Random lives of actors."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ActorTable()
        self.processes: dict[bytes, Process] = {}
        #: What creators have decided, registered or not.
        self.made: dict[bytes, Registration] = {}
        self.known: dict[bytes, Known] = {}
        #: Places that the scheduler has not granted, and grants on their way.
        self.asked: dict[tuple[bytes, int], Registration] = {}
        self.grants: deque[tuple[bytes, int, Site]] = deque()
        self.killed_early: set[bytes] = set()
        #: Actors whose creators have said that their arguments are there.
        self.ready: set[bytes] = set()
        #: (actor, watcher) whose watch has come and waits for the registration → the creator that it named.
        self.early: dict[tuple[bytes, bytes], bytes] = {}
        self.ended_jobs: set[int] = set()
        self.numbers = 0
        for job in JOBS:
            self._new_process(job)
            self._new_process(job)

    def _number(self) -> int:
        self.numbers += 1
        return self.numbers

    def _new_process(self, job: int) -> Process:
        name = b"process%05d" % self._number()
        process = self.processes[name] = Process(name, job)
        return process

    # --- what the head decides ------------------------------------------------------------------------

    def _do(self, actions: list[ActorAction]) -> None:
        performers: dict[type[Any], Callable[[Any], None]] = {
            Place: self._on_place,
            Withdraw: self._on_withdraw,
            Placed: self._on_placed,
            Start: self._on_placed,
            Tell: self._on_tell,
            Stop: self._on_stop,
            Over: self._on_over,
        }
        for action in actions:
            if not isinstance(action, Registered | Names | WarnJob):
                performers[type(action)](action)
        self.table.validate()

    def _on_place(self, action: Place) -> None:
        known = self.known[action.actor]
        assert not known.dead, "ACTORS-2"
        assert not known.ended, "ACTORS-3: nothing is placed that is to end"
        assert not self._living(action.actor), "ACTORS-1"
        assert not known.made.waiting or action.actor in self.ready, "placed before its arguments are there"
        assert action.incarnation == known.placed
        known.placed += 1
        assert known.made.max_restarts < 0 or known.placed <= known.made.max_restarts + 1, "ACTORS-3"
        self.asked[action.actor, action.incarnation] = action.made

    def _on_withdraw(self, action: Withdraw) -> None:
        self.asked.pop((action.actor, action.incarnation), None)

    def _on_placed(self, action: Placed | Start) -> None:
        known = self.known[action.actor]
        assert not known.dead, "ACTORS-2"
        assert known.made.detached == isinstance(action, Start)
        listener = action.site.process if isinstance(action, Start) else action.creator
        if listener in self.processes:
            self.processes[listener].hears.append(action)

    def _on_tell(self, action: Tell) -> None:
        assert len(set(action.processes)) == len(action.processes), "told twice at once"
        known = self.known.get(action.actor)
        if action.state == "dead" and known is not None and not known.dead and action.processes:
            missed = {watcher for watcher in known.audience if watcher in self.processes} - set(action.processes)
            assert not missed, "ACTORS-2: some would never hear it"
            assert set(action.processes) <= known.audience, "told to one that did not ask"
            known.dead = known.ended = True
        elif known is not None and known.dead:
            assert action.state == "dead", "ACTORS-2: dead is the last word"
        if action.state == "alive":
            assert action.site.process in {process.name for process in self._living(action.actor)}
        for watcher in action.processes:
            self.early.pop((action.actor, watcher), None)

    def _on_stop(self, action: Stop) -> None:
        if action.process in self.processes:
            self.processes[action.process].stopped = True

    def _on_over(self, action: Over) -> None:
        assert self.known[action.actor].dead, "over, but nobody was told"

    def _living(self, actor: bytes) -> list[Process]:
        return [process for process in self.processes.values() if process.actor == actor]

    # --- what processes do ---------------------------------------------------------------------------------

    @precondition(lambda self: sum(not process.actor for process in self.processes.values()) < 4)
    @rule(job=st.sampled_from(JOBS))
    def process_comes(self, job: int) -> None:
        if job not in self.ended_jobs:
            self._new_process(job)

    def _pick(self, data: st.DataObject, of: Callable[[Process], bool] = lambda _process: True) -> Process | None:
        names = sorted(name for name, process in self.processes.items() if of(process))
        return self.processes[data.draw(st.sampled_from(names))] if names else None

    @rule(
        data=st.data(),
        name=st.sampled_from(NAMES),
        detached=st.sampled_from([False, False, True]),
        restarts=st.sampled_from([0, 1, 2, -1]),
        get=st.booleans(),
        waiting=st.sampled_from(["", "", "before", "after"]),
    )
    def create(self, data: st.DataObject, name: str, detached: bool, restarts: int, get: bool, waiting: str) -> None:
        creator = self._pick(data)
        if creator is None or creator.job in self.ended_jobs or len(self.known) - self._dead() > MOST_ACTORS:
            return
        actor = b"actor%011d" % self._number()
        made = Registration(
            actor, creator.name, 7, creator.job, "Counter", name, "space", detached, restarts, get, bool(waiting)
        )
        self.made[actor] = made
        words: list[tuple[str, tuple[Any, ...]]] = [("register", (made,))]
        if waiting:
            words.insert(waiting == "after", ("ready", (actor,)))
        creator.says.extend(words)

    def _dead(self) -> int:
        return sum(known.dead for known in self.known.values())

    @precondition(lambda self: self.made)
    @rule(data=st.data(), no_restart=st.sampled_from([False, False, True]), chance=st.integers(0, 2))
    def somebody_kills(self, data: st.DataObject, no_restart: bool, chance: int) -> None:
        if chance:
            return
        actor = data.draw(st.sampled_from(sorted(self.made)))
        process = self._pick(data)
        if process is not None:
            process.says.append(("kill", (actor, no_restart)))

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def somebody_watches(self, data: st.DataObject) -> None:
        actor = data.draw(st.sampled_from(sorted(self.made)))
        process = self._pick(data)
        if process is not None:
            process.says.append(("watch", (actor, b"" if self.made[actor].detached else self.made[actor].creator)))

    @precondition(lambda self: self.made)
    @rule(data=st.data(), what=st.sampled_from(["release", "register"]), chance=st.integers(0, 2))
    def creator_releases_or_repeats(self, data: st.DataObject, what: str, chance: int) -> None:
        living = [actor for actor, known in self.known.items() if not known.dead]
        if chance == 0 or not living:
            return
        made = self.made[data.draw(st.sampled_from(sorted(living)))]
        creator = self.processes.get(made.creator)
        if creator is not None:
            creator.says.append((what, (made.actor if what == "release" else made,)))

    @rule(data=st.data())
    def a_process_hears(self, data: st.DataObject) -> None:
        process = self._pick(data, lambda process: bool(process.hears))
        if process is not None:
            self._hear(process)

    def _hear(self, process: Process) -> None:
        action = process.hears.popleft()
        assert isinstance(action, Placed | Start)
        worker = self.processes.get(action.site.process)
        if worker is not None and worker.state == "empty":
            worker.state = "constructing"

    @rule(data=st.data(), steps=st.integers(1, 8))
    def all_goes_its_way(self, data: st.DataObject, steps: int) -> None:
        """Several steps without trouble, so that walks come far."""
        for _ in range(steps):
            moves: list[Callable[[], None]] = []
            for process in self.processes.values():
                if process.says:
                    moves.append(partial(self._deliver, process))
                if process.hears:
                    moves.append(partial(self._hear, process))
                if process.state == "constructing":
                    moves += [partial(self._construct, process, good=good) for good in (True, True, False)]
            moves += [partial(self._grant, *key) for key in self.asked]
            if self.grants:
                moves.append(self._take_grant)
            if moves:
                data.draw(st.sampled_from(moves))()

    def _construct(self, worker: Process, *, good: bool) -> None:
        worker.state = "alive"
        worker.says.append(("started", (worker.actor, worker.incarnation, b"" if good else b"error")))

    @rule(data=st.data())
    def an_actor_exits(self, data: st.DataObject) -> None:
        worker = self._pick(data, lambda process: process.state == "alive")
        if worker is not None:
            worker.state = "leaving"
            worker.says.append(("exiting", (worker.actor, worker.incarnation, "enough")))

    @rule(data=st.data(), step=st.sampled_from([-1, 1]))
    def a_worker_speaks_of_another_incarnation(self, data: st.DataObject, step: int) -> None:
        worker = self._pick(data, lambda process: bool(process.actor))
        if worker is not None:
            for method in ("started", "exiting"):
                words: Any = b"" if method == "started" else ""
                late = getattr(self.table, method)(worker.name, worker.actor, worker.incarnation + step, words)
                assert not late, "late words mean nothing"

    # --- what the head hears --------------------------------------------------------------------------------

    @rule(data=st.data())
    def the_head_hears(self, data: st.DataObject) -> None:
        process = self._pick(data, lambda process: bool(process.says))
        if process is not None:
            self._deliver(process)

    def _deliver(self, process: Process) -> None:
        method, arguments = process.says.popleft()
        getattr(self, f"_deliver_{method}")(process, *arguments)

    def _deliver_register(self, process: Process, made: Registration) -> None:
        if process.job in self.ended_jobs:
            return
        known = self.known.get(made.actor)
        older = self._named(made.namespace, made.name)
        accepted = known is None and older is None
        if accepted:
            known = self.known[made.actor] = Known(made, audience={made.creator})
            known.audience |= {watcher for actor, watcher in self.early if actor == made.actor}
            known.ended = made.actor in self.killed_early
        actions = self.table.register(made, 5)
        (answer,) = [action for action in actions if isinstance(action, Registered)]
        expected = made.actor if known is not None else (older.actor if older and made.get_if_exists else b"")
        assert answer.actor == expected, "ACTORS-4"
        if known is not None and known.ended and accepted:
            self.killed_early.discard(made.actor)
        self._do(actions)

    def _deliver_ready(self, process: Process, actor: bytes) -> None:
        self.ready.add(actor)
        self._do(self.table.ready(process.name, actor))

    def _deliver_release(self, process: Process, actor: bytes) -> None:
        known = self.known.get(actor)
        if known is not None and not known.made.detached:
            known.ended = True
        self._do(self.table.release(process.name, actor))

    def _deliver_kill(self, _process: Process, actor: bytes, no_restart: bool) -> None:
        known = self.known.get(actor)
        if known is not None:
            known.ended |= no_restart
        elif no_restart:
            self.killed_early.add(actor)
        self._do(self.table.kill(actor, no_restart))
        if known is not None:
            for worker in self._living(actor):
                granted = not any(site.process == worker.name for _, _, site in self.grants)
                assert worker.stopped or not granted or known.dead, "killed, and not stopped"

    def _deliver_watch(self, process: Process, actor: bytes, creator: bytes) -> None:
        known = self.known.get(actor)
        lives = creator in self.processes
        if known is not None and not known.dead:
            known.audience.add(process.name)
        elif known is None and lives:
            self.early[actor, process.name] = creator
        actions = self.table.watch(process.name, actor, creator, lives)
        told = [action for action in actions if isinstance(action, Tell)]
        assert len(told) == (0 if known is None and lives else 1)
        if known is None or known.dead:
            assert all(action.state == "dead" for action in told)
        else:
            self._do(actions)

    def _deliver_started(self, process: Process, actor: bytes, incarnation: int, error: bytes) -> None:
        known = self.known[actor]
        if error and not known.ended:
            known.ended = True
        self._do(self.table.started(process.name, actor, incarnation, error))

    def _deliver_exiting(self, process: Process, actor: bytes, incarnation: int, reason: str) -> None:
        self.known[actor].ended = True
        self._do(self.table.exiting(process.name, actor, incarnation, reason))

    # --- the scheduler ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def scheduler_grants(self, data: st.DataObject) -> None:
        self._grant(*data.draw(st.sampled_from(sorted(self.asked))))

    def _grant(self, actor: bytes, incarnation: int) -> None:
        made = self.asked.pop((actor, incarnation))
        worker = self._new_process(0 if made.detached else made.job)
        worker.actor, worker.incarnation = actor, incarnation
        self.grants.append((actor, incarnation, Site(worker.name, 8, "address", worker.job)))

    @precondition(lambda self: self.grants)
    @rule()
    def a_grant_arrives(self) -> None:
        self._take_grant()

    def _take_grant(self) -> None:
        actor, incarnation, site = self.grants.popleft()
        if site.process in self.processes:
            self._do(self.table.granted(actor, incarnation, site))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), infeasible=st.booleans())
    def scheduler_refuses(self, data: st.DataObject, infeasible: bool) -> None:
        actor, incarnation = data.draw(st.sampled_from(sorted(self.asked)))
        self._do(self.table.refused(actor, incarnation, "no unobtainium", infeasible))

    # --- ends ----------------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def an_actor_crashes(self, data: st.DataObject) -> None:
        process = self._pick(data, lambda process: bool(process.actor))
        if process is not None:
            self._die(process)

    @rule(data=st.data(), chance=st.integers(0, 9))
    def any_process_dies(self, data: st.DataObject, chance: int) -> None:
        process = self._pick(data)
        if process is not None and chance == 5:
            self._die(process)

    def _die(self, process: Process) -> None:
        """What it said comes first."""
        while process.says:
            self._deliver(process)
        if any(site.process == process.name for _, _, site in self.grants):
            return  # The scheduler knows it as living: its death cannot be told before the grant.
        del self.processes[process.name]
        actor = self.known.get(process.actor)
        if actor is not None and not actor.ended and actor.made.max_restarts == process.incarnation:
            actor.ended = True  # It has no restart left.
        self._do(self.table.worker_died(process.name, "exited with code 3", "words"))
        for known in self.known.values():
            known.ended |= known.made.creator == process.name and not known.made.detached
        self.early = {key: creator for key, creator in self.early.items() if key[1] != process.name}
        waiting = {key for key, creator in self.early.items() if creator == process.name}
        actions = self.table.process_died(process.name)
        told = {
            (a.actor, who)
            for a in actions
            if isinstance(a, Tell) and a.reason.startswith("unknown")
            for who in a.processes
        }
        assert told == waiting, "who waits for a registration that never comes hears so"
        self._do(actions)

    @rule(job=st.sampled_from(JOBS), chance=st.integers(0, 29))
    def job_ends(self, job: int, chance: int) -> None:
        if chance == 13 and job not in self.ended_jobs:
            self._end_job(job)

    def _end_job(self, job: int) -> None:
        self.ended_jobs.add(job)
        for known in self.known.values():
            known.ended |= known.made.job == job and not known.made.detached
        for process in self.processes.values():
            process.stopped |= process.job == job
        self._do(self.table.job_ended(job))
        # The scheduler drops the job's requests.
        self.asked = {key: made for key, made in self.asked.items() if made.job != job or made.detached}

    # --- what must hold ----------------------------------------------------------------------------------------------

    def _named(self, namespace: str, name: str) -> Registration | None:
        for known in self.known.values():
            if name and not known.ended and (known.made.namespace, known.made.name) == (namespace, name):
                return known.made
        return None

    @invariant()
    def names_are_those_of_the_living(self) -> None:
        (answer,) = self.table.names(b"", 1, "")
        assert isinstance(answer, Names)
        living = sorted(
            ("space", known.made.name) for known in self.known.values() if known.made.name and not known.ended
        )
        assert answer.names == living, "ACTORS-4"

    @invariant()
    def what_has_ended_and_has_no_process_is_dead(self) -> None:
        for actor, known in self.known.items():
            if known.ended and not self._living(actor):
                assert known.dead, "ACTORS-6: it is to end, and nothing will end it"

    @invariant()
    def what_lives_is_asked_for_or_placed(self) -> None:
        for actor, known in self.known.items():
            if not known.ended and (actor in self.ready or not known.made.waiting):
                waits = (actor, known.placed - 1) in self.asked
                assert waits or self._living(actor), "ACTORS-5: it waits for nothing"

    def teardown(self) -> None:
        """Let everything be said and done; then nothing is left."""
        self._settle()
        for process in self.processes.values():
            if process.actor:
                known = self.known[process.actor]
                assert not known.dead, "ACTORS-5: a process of a dead actor lives on"
        for job in JOBS:
            if job not in self.ended_jobs:
                self._end_job(job)
        self._settle()
        for actor in list(self.known):
            self._do(self.table.kill(actor, no_restart=True))
            self.known[actor].ended = True
        self._settle()
        assert all(known.dead for known in self.known.values())
        assert not self.asked, "ACTORS-5: a lease is wanted for nothing"
        assert not self.processes or all(not process.actor for process in self.processes.values())
        for process in list(self.processes.values()):
            self._die(process)
        assert not self.table._early, "somebody waits for what cannot come"
        assert not self.table._watched_by

    def _settle(self) -> None:
        while True:
            while self.grants:
                self._take_grant()
            speaking = [process for process in self.processes.values() if process.says or process.hears]
            for process in speaking:
                while process.says:
                    self._deliver(process)
                while process.hears:
                    self._hear(process)
            leaving = [p for p in self.processes.values() if p.stopped or p.state == "leaving"]
            for process in leaving:
                self._die(process)
            if not speaking and not leaving and not self.grants:
                return


TestActorsMachine = searched(ActorsMachine, steps=80)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(ActorsMachine, 200, steps=80)
