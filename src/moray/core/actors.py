"""The head's table of actors: which exist, where they live, who is told, what ends them.

Roles. The *creator* registers an actor, starts each incarnation of it (unless it is *detached*: then its node does) and
releases it. The *scheduler* gives a worker process on request. The *worker* becomes the actor. *Watchers* are all that
have asked for its state. All of them speak on connections of their own, so that their words cross; whatever speaks of
an incarnation or a process that is not the present one is late, and ignored.

The life of an actor::

    register ──▶ HELD ──ready──▶ WAITING ──granted──▶ PLACED ──started──▶ ALIVE
         its arguments are       ▲   for a worker    │ its constructor   │
         not there (optional)    │                   │ runs              │
                                 └──── its process died, restarts left ──┘

    any of them ── released, killed, creator dead, job over, exiting, constructor failed, no restart left ──▶ dead

*Ending* is a mark on a PLACED or ALIVE actor: it is decided that it dies, and why; its name is free, it is no longer
found, and it is dead when its process is. (Only a failed constructor is told at once: nothing else can happen.) An
actor without a process is dead as soon as that is decided. The first reason stays, whatever else ends it meanwhile.

Outside, HELD, WAITING and PLACED are "pending" for the first incarnation and "restarting" for later ones. A dead actor
leaves a tombstone (:mod:`moray.core.actor_tombstones`).

A watcher may be quicker than the registration, which travels on another connection: it waits while the creator lives.
So may a killer, whose kill is kept, and another thread of the creator, which says that the arguments are there.

Invariants:

- ACTORS-1: an actor has at most one process at a time; the next incarnation is asked for when the last one's is dead.
- ACTORS-2: "dead" is told once to the creator and to each watcher, as the last word; nothing is placed after it.
- ACTORS-3: an actor is restarted at most `max_restarts` times; never after it was to end.
- ACTORS-4: a (namespace, name) has at most one actor that is not ending.
- ACTORS-5: each Place is granted or withdrawn, and each granted process dies or is stopped.
- ACTORS-6: an actor that is not detached ends with its creator, and with its job.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Final

from moray.core.actor_actions import (
    LAST_WORDS,
    NOWHERE,
    UNSCHEDULABLE,
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
from moray.core.actor_state import Actor, Phase, audience, describe, describe_dead, last_word, news, no_restart
from moray.core.actor_tombstones import Tombstones, bury
from moray.core.bundles import group_of

#: Words that are kept for registrations on their way. They take a moment; more are about actors that never come.
_EARLY_WORDS: Final = 10_000

#: The pause before another process, after one that died before the actor lived in it; it doubles each time.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 10.0

#: Dead actors that are listed.
_LISTED_DEAD: Final = 200


class ActorTable:
    """The state machine; every event returns the actions to carry out, in order."""

    def __init__(self) -> None:
        #: All that are not dead.
        self._actors: dict[bytes, Actor] = {}
        self._dead = Tombstones()
        #: (namespace, name) → the one that is not ending (ACTORS-4).
        self._names: dict[tuple[str, str], Actor] = {}
        #: Process → the actor that it is.
        self._by_process: dict[bytes, Actor] = {}
        #: What ends with a creator or a job (ACTORS-6).
        self._by_creator: dict[bytes, dict[bytes, Actor]] = {}
        self._by_job: dict[int, dict[bytes, Actor]] = {}
        #: Process → the actors that it watches.
        self._watched_by: dict[bytes, dict[bytes, None]] = {}
        #: Creator → actor → watchers that were quicker than its registration.
        self._early: dict[bytes, dict[bytes, dict[bytes, None]]] = {}
        #: Actors that were killed before their registration came, oldest first.
        self._early_kills: dict[bytes, None] = {}
        #: Actor → the creator that said it is ready before its registration came, oldest first.
        self._early_ready: dict[bytes, bytes] = {}
        #: (job, text) that its user has read.
        self._warned: set[tuple[int, str]] = set()
        #: What the running call has decided.
        self._actions: list[ActorAction] = []

    # --- what creators say ----------------------------------------------------------------------

    def register(self, made: Registration, request: int) -> list[ActorAction]:
        """A new actor. `request` is answered unless it is 0. A repeat (its connection was lost) hears how it stands."""
        known = self._actors.get(made.actor)
        if known is not None or self._dead.get(made.actor) is not None:
            self._answer(made.creator, request, made)
            self._repeat(made, known)
            return self._done()
        older = self._names.get((made.namespace, made.name)) if made.name else None
        if older is not None:
            self._name_taken(made, request, older.made)
            return self._done()
        actor = self._actors[made.actor] = Actor(made)
        if made.name:
            self._names[made.namespace, made.name] = actor
        if not made.detached:
            self._by_creator.setdefault(made.creator, {})[made.actor] = actor
            self._by_job.setdefault(made.job, {})[made.actor] = actor
        self._answer(made.creator, request, made)
        self._greet_early(actor)
        ready = self._early_ready.pop(made.actor, None) == made.creator
        if made.actor in self._early_kills:
            del self._early_kills[made.actor]
            self._finish(actor, "killed by moray.kill() before it was started")
        elif ready or not made.waiting:
            self._place(actor)
        return self._done()

    def ready(self, process: bytes, actor: bytes) -> list[ActorAction]:
        """The creator: the constructor's arguments are there."""
        held = self._actors.get(actor)
        if held is None:
            if self._dead.get(actor) is None:
                _keep(self._early_ready, actor, process)
        elif held.made.creator == process and held.phase is Phase.HELD:
            self._place(held)
        return self._done()

    def release(self, process: bytes, actor: bytes) -> list[ActorAction]:
        """The creator: no handle is left, and no call."""
        released = self._actors.get(actor)
        if released is not None and released.made.creator == process and not released.made.detached:
            self._end(released, "no handle of it was left", graceful=True)
        return self._done()

    # --- what the scheduler says ------------------------------------------------------------------

    def granted(self, actor: bytes, incarnation: int, site: Site) -> list[ActorAction]:
        """A worker process for an incarnation."""
        placed = self._actors.get(actor)
        if placed is None or placed.phase is not Phase.WAITING or placed.incarnation != incarnation:
            # It crossed a Withdraw.
            self._actions.append(Stop(site.process, "the actor that it was meant for has ended", graceful=False))
            return self._done()
        placed.phase, placed.site, placed.refused = Phase.PLACED, site, ""
        self._by_process[site.process] = placed
        self._tell_place(placed)
        return self._done()

    def refused(self, actor: bytes, incarnation: int, reason: str, infeasible: bool) -> list[ActorAction]:
        """No worker will come until `reason` goes away. Actors of one class are warned of once."""
        waiting = self._actors.get(actor)
        if waiting is None or waiting.phase is not Phase.WAITING or waiting.incarnation != incarnation:
            return self._done()
        made = waiting.made
        if infeasible and made.strategy is not None and made.strategy.fails:
            self._end(waiting, UNSCHEDULABLE + reason)
            return self._done()
        waiting.refused = f"it cannot be placed: {reason}" if infeasible else f"its workers do not start: {reason}"
        text = f"the actor {made.class_name} waits: {waiting.refused}"
        if (made.job, text) not in self._warned:
            self._warned.add((made.job, text))
            self._actions.append(WarnJob(made.job, text))
        return self._done()

    # --- what its process says, and how it ends -----------------------------------------------------

    def started(self, process: bytes, actor: bytes, incarnation: int, error: bytes) -> list[ActorAction]:
        """Its constructor has returned, or raised `error`, or (says the creator) had an argument that is an error."""
        begun = self._present(process, actor, incarnation)
        if begun is None and error:
            begun = self._actors.get(actor)
            if begun is not None and (begun.made.creator, begun.incarnation) != (process, incarnation):
                return self._done()
        if begun is None or begun.phase is not Phase.PLACED or begun.ending:
            return self._done()
        if error:
            self._actions.append(Stop(begun.site.process, "the constructor of its actor failed", graceful=True))
            del self._by_process[begun.site.process]
            self._finish(begun, "its constructor raised an exception", error)
        else:
            begun.phase, begun.why, begun.failures = Phase.ALIVE, "", 0
            self._tell(begun)
        return self._done()

    def exiting(self, process: bytes, actor: bytes, incarnation: int, reason: str) -> list[ActorAction]:
        """It ends by its own will."""
        leaving = self._present(process, actor, incarnation)
        if leaving is not None and not leaving.ending:
            reason = reason or "it ended by its own will"
            self._mark(leaving, reason)
            self._stop(leaving, reason, graceful=True)  # So that it does end.
        return self._done()

    def worker_died(self, process: bytes, reason: str, stderr: str) -> list[ActorAction]:
        """A process is dead: how, and its last words. To be followed by `process_died`."""
        actor = self._by_process.pop(process, None)
        if actor is None:
            return self._done()
        pid, restarts_left = actor.site.pid, actor.restarts_left
        why = "killed by moray.kill()" if actor.killed else f"its process (pid {pid}): {reason}"
        words = f"{LAST_WORDS}{stderr}" if stderr and not actor.killed else ""
        died = why if actor.moving in why else f"{why}; {actor.moving}"
        if actor.ending:
            self._finish(actor, actor.ending)
        elif not restarts_left and not (actor.moving and actor.made.max_restarts):
            self._finish(actor, died + no_restart(actor) + words)
        else:
            actor.restarts += not actor.moving
            actor.incarnation += 1
            actor.failures += actor.phase is Phase.PLACED
            actor.site, actor.killed, actor.stopped = NOWHERE, False, 0
            actor.phase, actor.why = Phase.WAITING, died + words if actor.moved is None else actor.moving
            self._tell(actor)
            actor.moving, actor.moved = "", None
            self._place(actor)
        return self._done()

    def process_died(self, process: bytes) -> list[ActorAction]:
        """A client is gone: what it created and what it watched."""
        for actor in list(self._by_creator.get(process, {}).values()):
            actor.orphaned = True
            self._end(actor, f"its creator, pid {actor.made.creator_pid}, has ended")
        for name in self._watched_by.pop(process, ()):
            self._actors[name].watchers.pop(process, None)
        for early in self._early.values():
            for watchers in early.values():
                watchers.pop(process, None)
        for name, watchers in self._early.pop(process, {}).items():
            self._tell_unknown(name, tuple(watchers), "its creator ended before it was registered")
        self._early_ready = {name: creator for name, creator in self._early_ready.items() if creator != process}
        self._dead.creator_died(process)
        return self._done()

    def job_ended(self, job: int) -> list[ActorAction]:
        """A driver's job is over."""
        for actor in list(self._by_job.get(job, {}).values()):
            self._end(actor, "its job has ended")
        self._warned = {(other, text) for other, text in self._warned if other != job}
        return self._done()

    # --- what anybody says --------------------------------------------------------------------------

    def kill(self, actor: bytes, no_restart: bool) -> list[ActorAction]:
        """End its process now; with `no_restart` for good."""
        victim = self._actors.get(actor)
        if victim is not None:
            if no_restart:
                self._end(victim, "killed by moray.kill()")
            elif victim.site is not NOWHERE:
                victim.killed = not victim.ending
                self._stop(victim, "moray.kill()", graceful=False)
        elif no_restart and self._dead.get(actor) is None:
            _keep(self._early_kills, actor, None)
        return self._done()

    def end(self, actor: bytes, reason: str) -> list[ActorAction]:
        """It cannot run any more, and is not restarted."""
        if (victim := self._actors.get(actor)) is not None:
            self._end(victim, reason)
        return self._done()

    def group_removed(self, group: str, reason: str) -> list[ActorAction]:
        """A placement group is gone: so are the actors in it."""
        for actor in [a for a in self._actors.values() if group_of(a.made.resources) == group]:
            self._end(actor, reason)
        return self._done()

    def watch(self, process: bytes, actor: bytes, creator: bytes, creator_lives: bool) -> list[ActorAction]:
        """Tell `process` the state now and at each change."""
        watched, dead = self._actors.get(actor), self._dead.get(actor)
        if watched is not None:
            self._add_watcher(watched, process)
            self._actions.append(news(watched, (process,)))
        elif dead is not None:
            self._actions.append(last_word(dead, (process,)))
        elif creator_lives:
            self._early.setdefault(creator, {}).setdefault(actor, {})[process] = None
        else:
            why = "its creator has ended" if creator else "no actor with this id is remembered"
            self._tell_unknown(actor, (process,), why)
        return self._done()

    def is_waiting(self, actor: bytes, incarnation: int) -> bool:
        """Whether a worker is still wanted for this incarnation."""
        waiting = self._actors.get(actor)
        return waiting is not None and waiting.phase is Phase.WAITING and waiting.incarnation == incarnation

    def find(self, process: bytes, request: int, name: str, namespace: str) -> list[ActorAction]:
        """Which living actor has this name?"""
        found = self._names.get((namespace, name))
        if found is not None:
            self._answer(process, request, found.made)
        else:
            self._refuse(process, request, self._not_found(name, namespace))
        return self._done()

    def names(self, process: bytes, request: int, namespace: str) -> list[ActorAction]:
        """The names of living actors: of `namespace`, or of all."""
        names = sorted(key for key in self._names if namespace in ("", key[0]))
        self._actions.append(Names(process, request, names))
        return self._done()

    # --- views ------------------------------------------------------------------------------------------

    def describe(self) -> list[dict[str, Any]]:
        """All that live and the last that died; JSON-like."""
        living = [describe(actor) for actor in self._actors.values()]
        dead = [describe_dead(stone) for stone in self._dead.latest(_LISTED_DEAD)]
        return living + dead[::-1]

    def validate(self) -> None:
        """Raise AssertionError if the books do not agree with each other."""
        self._dead.validate()
        for name, actor in self._actors.items():
            assert name == actor.made.actor
            assert self._dead.get(name) is None, "both living and dead"
            assert (actor.phase in (Phase.HELD, Phase.WAITING)) == (actor.site is NOWHERE)
            assert not actor.ending or actor.site is not NOWHERE, "what has no process need not wait for its end"
            assert actor.phase is not Phase.HELD or (actor.made.waiting and not actor.incarnation)
            assert actor.made.max_restarts < 0 or actor.restarts <= actor.made.max_restarts, "ACTORS-3"
            named = self._names.get((actor.made.namespace, actor.made.name)) if actor.made.name else None
            assert (named is actor) == bool(actor.made.name and not actor.ending), "ACTORS-4"
            assert all(name in self._watched_by[watcher] for watcher in actor.watchers)
        placed = {a.site.process: a for a in self._actors.values() if a.site is not NOWHERE}
        assert placed == self._by_process, "ACTORS-1"
        mortal = {name for name, actor in self._actors.items() if not actor.made.detached}
        for index in (self._by_creator, self._by_job):
            assert all(index.values()), "an empty record"
            assert {name for actors in index.values() for name in actors} == mortal, "ACTORS-6"
        for watcher, names in self._watched_by.items():
            assert names, "an empty record"
            assert all(watcher in self._actors[name].watchers for name in names)
        assert all(actor in self._actors.values() for actor in self._names.values())

    # --- beginnings ----------------------------------------------------------------------------------------

    def _place(self, actor: Actor) -> None:
        """Ask for a worker."""
        actor.phase = Phase.WAITING
        # A constructor that kills its process at once must not keep the machine busy with starting it.
        delay_s = min(_FIRST_PAUSE_S * 2 ** (actor.failures - 1), _LONGEST_PAUSE_S) if actor.failures else 0.0
        self._actions.append(Place(actor.made.actor, actor.incarnation, actor.made, delay_s))

    def _repeat(self, made: Registration, known: Actor | None) -> None:
        """Tell a creator that registers again what it may have missed."""
        dead = self._dead.get(made.actor)
        if known is None:
            if dead is not None:
                self._actions.append(last_word(dead, (made.creator,)))
            return
        self._actions.append(news(known, (made.creator,)))
        if known.phase is Phase.PLACED and not made.detached:
            self._tell_place(known)

    def _name_taken(self, made: Registration, request: int, older: Registration) -> None:
        if made.get_if_exists:
            self._answer(made.creator, request, older)
        else:
            where = f"in the namespace {made.namespace!r}"
            reason = f"the name {made.name!r} belongs to an actor {older.class_name} ({older.actor.hex()}) {where}"
            self._refuse(made.creator, request, reason)
        # Whoever has heard of this one hears that it never was.
        self._tell_unknown(made.actor, self._take_early(made), f"its name {made.name!r} was taken")

    def _greet_early(self, actor: Actor) -> None:
        """Those who asked before the registration."""
        watchers = self._take_early(actor.made)
        for process in watchers:
            self._add_watcher(actor, process)
        if watchers:
            self._actions.append(news(actor, watchers))

    def _take_early(self, made: Registration) -> tuple[bytes, ...]:
        """The watchers that were quicker than this registration."""
        early = self._early.get(made.creator)
        if early is None:
            return ()
        watchers = early.pop(made.actor, {})
        if not early:
            del self._early[made.creator]
        return tuple(watchers)

    def _tell_place(self, actor: Actor) -> None:
        made = actor.made
        if made.detached:
            self._actions.append(Start(made.actor, actor.incarnation, actor.site, made.creation))
        else:
            self._actions.append(Placed(made.creator, made.actor, actor.incarnation, actor.site))

    # --- ends ------------------------------------------------------------------------------------------------

    def _end(self, actor: Actor, reason: str, *, graceful: bool = False) -> None:
        """It shall die for good: now, if it has no process."""
        if actor.phase is Phase.WAITING:
            self._actions.append(Withdraw(actor.made.actor, actor.incarnation, actor.made))
        if actor.site is NOWHERE:
            self._finish(actor, reason)
            return
        if not actor.ending:
            self._mark(actor, reason)
        self._stop(actor, reason, graceful)

    def _mark(self, actor: Actor, reason: str) -> None:
        """It is ending: nobody finds it any more."""
        actor.ending = reason
        self._free_name(actor)

    def _stop(self, actor: Actor, reason: str, graceful: bool) -> None:
        """End its process, unless that has been said at least as clearly."""
        degree = 1 if graceful else 2
        if degree > actor.stopped:
            actor.stopped = degree
            self._actions.append(Stop(actor.site.process, reason, graceful))

    def _finish(self, actor: Actor, reason: str, error: bytes = b"") -> None:
        """It is dead."""
        made = actor.made
        self._free_name(actor)
        del self._actors[made.actor]
        if not made.detached:
            _remove(self._by_creator, made.creator, made.actor)
            _remove(self._by_job, made.job, made.actor)
        for watcher in actor.watchers:
            watched = self._watched_by[watcher]
            del watched[made.actor]
            if not watched:
                del self._watched_by[watcher]
        stone = bury(made, actor.incarnation, actor.restarts, reason, error)
        if not actor.orphaned:
            self._dead.add(stone)
        self._actions.append(last_word(stone, audience(actor)))
        self._actions.append(Over(made.actor))

    def _free_name(self, actor: Actor) -> None:
        key = actor.made.namespace, actor.made.name
        if self._names.get(key) is actor:
            del self._names[key]

    # --- words ------------------------------------------------------------------------------------------------

    def _tell(self, actor: Actor) -> None:
        self._actions.append(news(actor, audience(actor)))

    def _tell_unknown(self, actor: bytes, processes: tuple[bytes, ...], why: str) -> None:
        if processes:
            self._actions.append(Tell(processes, actor, "dead", 0, NOWHERE, f"unknown actor: {why}", b"", 0))

    def _answer(self, process: bytes, request: int, made: Registration) -> None:
        if request:
            creator = b"" if made.detached else made.creator
            self._actions.append(Registered(process, request, made.actor, made.meta, creator, ""))

    def _refuse(self, process: bytes, request: int, reason: str) -> None:
        if request:
            self._actions.append(Registered(process, request, b"", b"", b"", reason))

    def _not_found(self, name: str, namespace: str) -> str:
        reason = f"no living actor is named {name!r} in the namespace {namespace!r}"
        elsewhere = sorted(space for space, other in self._names if other == name)
        if elsewhere:
            return f"{reason}; there is one in {', '.join(map(repr, elsewhere[:3]))}"
        near = get_close_matches(name, [other for space, other in self._names if space == namespace], 1)
        return f"{reason}; did you mean {near[0]!r}?" if near else reason

    # --- small helpers -------------------------------------------------------------------------------------------

    def _present(self, process: bytes, actor: bytes, incarnation: int) -> Actor | None:
        """The actor that this process is, if it says so truly."""
        found = self._by_process.get(process)
        if found is None or found.made.actor != actor or found.incarnation != incarnation:
            return None
        return found

    def _add_watcher(self, actor: Actor, process: bytes) -> None:
        actor.watchers[process] = None
        self._watched_by.setdefault(process, {})[actor.made.actor] = None

    def _done(self) -> list[ActorAction]:
        actions, self._actions = self._actions, []
        return actions


def _remove(index: dict[Any, dict[bytes, Actor]], key: Any, actor: bytes) -> None:
    del index[key][actor]
    if not index[key]:
        del index[key]


def _keep(words: dict[bytes, Any], actor: bytes, value: Any) -> None:
    """Keep what was said of an actor that is not registered."""
    words[actor] = value
    if len(words) > _EARLY_WORDS:
        del words[next(iter(words))]
