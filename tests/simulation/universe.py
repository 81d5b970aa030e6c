"""One whole simulated machine: what it has, who lives on it, what goes wrong, and how it comes to rest.

A run has four phases: work with faults, for a number of steps; the drivers finish what they have begun, without
faults; they let go of everything, and nothing may be left; they leave. Each phase after the first has a limit in
simulated time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from moray.protocol import messages as m
from tests.simulation.context import ActorInfo, Context, Plan
from tests.simulation.memory import Memory
from tests.simulation.network import End, break_connection
from tests.simulation.node import Node
from tests.simulation.oracle import Oracle
from tests.simulation.process import Process
from tests.simulation.programs import driver
from tests.simulation.world import ViolationError, World

#: Within so long everything must end once faults have stopped.
_PATIENCE_S: Final = 300.0
#: When a user kills actors whose resources others wait for.
_IMPATIENT_S: Final = 30.0
#: Leases linger, slow clients catch up.
_SETTLE_S: Final = 5.0
#: The death of a process is noticed after at most so long.
_NOTICE_S: Final = 0.02

#: Kinds of worlds; a seed draws one.
_KINDS: Final = ("calm", "deadly", "deadly", "breaking", "fair")


def may_break(end: End) -> bool:
    """Whether the connection may be lost."""
    sides = (end, end.other)
    return not any(side.closed or side.cut or side.peer is None for side in sides)


def carries_tasks(end: End) -> bool:
    """Whether a lease is on it: its loss costs the worker."""
    return any(side.peer.slots for side in (end, end.other))


class Universe:
    """Everything."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.world = World(seed, trace)
        random = self.world.random
        self.kind = random.choice(_KINDS)
        self.faulty = self.kind in {"deadly", "breaking"}
        self.with_actors = self.kind != "fair" and random.random() < 0.75
        #: Connections that were lost while both sides lived.
        self.breaks = 0
        #: Answers or items of workers that live were lost with one.
        self.unheard = False
        #: Short tasks of a job of their own are timed, and wait no longer than this.
        self.watching = self.kind == "fair"
        self.patience_s = 1.0
        self.failing_disk = random.choice((0.0, 0.1)) if self.faulty else 0.0
        self.total = {"CPU": random.choice((1, 2, 2, 4, 8)) * m.RESOURCE_UNIT, "blue": 2 * m.RESOURCE_UNIT}
        # Only actors want it.
        self.total["green"] = m.RESOURCE_UNIT
        if random.random() < 0.6:
            self.total["GPU"] = random.choice((1, 2)) * m.RESOURCE_UNIT
        capacity = random.choice((1 << 17, 1 << 19, 1 << 22))
        self.largest_object = capacity // random.choice((2, 8))
        self.winding_down = False
        self.memory = Memory()
        #: Of each worker: the lease of its last task, and how many of that have begun; outlives it.
        self.marks: dict[bytes, tuple[int, int]] = {}
        #: All processes that ever were.
        self.processes: dict[bytes, Process] = {}
        #: Hidden object → the actor that it keeps alive.
        self.lives: dict[bytes, ActorInfo] = {}
        self._actors = 0
        self.oracle = Oracle(self)
        self.node = Node(self, capacity)
        #: Drivers whose programs run.
        self._working: set[bytes] = set()
        styles = (
            ["flood", "probe"] if self.watching else random.choices(("mixed", "flood"), (3, 1), k=random.randint(1, 3))
        )
        for job, style in enumerate(styles, 1):
            self._add_driver(job, style)
        if self.faulty:
            self._expect_fault()
        if self.kind == "breaking":
            self._expect_break()

    def _add_driver(self, job: int, style: str) -> None:
        process = Process(self, f"j{job}d".ljust(12, ".").encode(), job)
        self.processes[process.name] = process
        self.node.attach(process)
        self._working.add(process.name)
        context = Context(process, Plan(style, self.world.random.getrandbits(32), 0, 0, 0.0))
        process.start(driver(context, style), lambda: self._working.discard(process.name))

    def next_actor(self) -> bytes:
        self._actors += 1
        return f"actor{self._actors}".ljust(16, ".").encode()

    def living(self) -> list[Process]:
        return [process for process in self.processes.values() if not process.dead]

    # --- faults -------------------------------------------------------------------------------------

    def die(self, process: Process, status: int) -> None:
        """A process ends: what it has sent stays, what it has not sent does not."""
        if process.dead:
            return
        self.world.log(f"{process.title} dies ({status})")
        process.dead = True
        self._working.discard(process.name)
        for end in process.ends:
            end.hang_up(int(self.faulty and end is not process.node and self.world.chance(0.1)))
        self.oracle.died(process)
        delay = self.world.random.random() * _NOTICE_S
        self.world.at(delay, f"{process.title} is reaped", lambda: self.node.gone(process, status), self.node)

    def _expect_fault(self) -> None:
        self.world.at(self.world.random.expovariate(2.0), "", self._fault)

    def _fault(self) -> None:
        if self.winding_down:
            return
        random = self.world.random
        victim = random.choice(self.living())
        hosts = [process for process in self.living() if getattr(process, "host", None) is not None]
        if hosts and random.random() < 0.3:
            victim = random.choice(hosts)
        dice = random.random()
        if dice < 0.5 and (victim.kind == "worker" or self._may_lose_driver()):
            self.die(victim, -9)
        elif dice < 0.7:
            self.world.log(f"{victim.title} stalls")
            victim.stalled_until = self.world.now + random.random() * 2.0
        elif dice < 0.8:
            victim.slowness = random.choice((1.0, 10.0))
        self._expect_fault()

    def _expect_break(self) -> None:
        self.world.at(self.world.random.expovariate(20.0), "", self._break)

    def _break(self) -> None:
        """Somebody loses a connection."""
        if self.winding_down:
            return
        random = self.world.random
        victim = random.choice(self.living())
        ends = [end for end in victim.ends if end is not victim.node and may_break(end)]
        end = random.choice(ends) if ends else None
        if end is not None and (not carries_tasks(end) or self.world.chance(0.1)):
            self.breaks += 1
            self.world.log(f"{victim.title} loses {end.name}")
            break_connection(self.world, end)
        self._expect_break()

    def _may_lose_driver(self) -> bool:
        drivers = sum(process.kind == "driver" for process in self.living())
        return drivers > 1 and self.world.chance(0.3)

    # --- the phases ---------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """All phases; raises ViolationError."""
        while self.world.steps < steps:
            self.world.step()
        self.world.log("--- no more work, no more faults")
        self.winding_down = True
        self.world.run_until(lambda: not self._working, _PATIENCE_S, lambda: "drivers wait for their tasks")
        self._drop_stashes()
        self.world.at(_IMPATIENT_S, "", self._kill_holders)
        self.world.run_until(
            lambda: not self.oracle.unended(), _PATIENCE_S, lambda: f"tasks have not ended: {self.oracle.unended()}"
        )
        # Tasks of dead owners go on to their end, and so do their references; they may submit others.
        self.world.run_until(lambda: not self._busy(), _PATIENCE_S, lambda: f"there is work: {self._busy()}")
        self._let_go()
        self._leave()

    def _busy(self) -> list[str]:
        return [process.title for process in self.living() if process.is_busy()] + self.oracle.unended()

    def _drop_stashes(self) -> None:
        """What global variables and actors hold goes, now and again: actors may wait for resources of actors."""
        for process in self.living():
            stash, process.stash = process.stash, []
            for ref in stash:
                ref.drop()
        self.world.at(1.0, "", self._drop_stashes)

    def _kill_holders(self) -> None:
        """A user loses patience: tasks and actors that wait for what actors hold may keep these alive themselves."""
        for name, actor in list(self.node.actors.table._actors.items()):
            if actor.made.resources:
                self._any_driver().node.send(m.KillActor(name, True))
        self.world.at(_IMPATIENT_S, "", self._kill_holders)

    def _any_driver(self) -> Process:
        return next(process for process in self.living() if process.kind == "driver")

    def _let_go(self) -> None:
        self.world.log("--- everything is dropped")
        driver = self._any_driver()
        for actor in self.node.actors.table.describe():
            if actor["detached"] and actor["state"] != "dead":
                driver.node.send(m.KillActor(bytes.fromhex(actor["actor"]), True))
        self.world.run_for(_SETTLE_S)
        if self.unheard:
            # What their answers handed over, and nobody got, is given up with them.
            for process in self.living():
                if process.kind == "worker":
                    self.die(process, -9)
            self.world.run_for(_SETTLE_S)
        for process in self.living():
            left = process.left()
            if left:
                raise ViolationError(f"{process.title} never gave up {left}")
        stats = self.node.store.table.stats()
        if any(stats[name] for name in ("used_bytes", "objects", "pinned_objects", "spilled_objects", "queued")):
            raise ViolationError(f"the store is not empty: {stats}")
        if self.memory.files():
            raise ViolationError(f"files are left on disk: {self.memory.files()}")
        if actors := self.node.actors_left():
            raise ViolationError(f"actors are left: {actors}")
        self.node.book.check_rest()

    def _leave(self) -> None:
        self.world.log("--- the drivers leave")
        for process in self.living():
            if process.kind == "driver":
                process.leaving = True
                process.node.send(m.Shutdown())
        self.world.run_until(self.node.at_rest, _PATIENCE_S, lambda: "jobs have not ended")
        self.node.book.check_rest()
