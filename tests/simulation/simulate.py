"""Runs one seed and tells how it went."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.universe import Universe

#: Steps of the first phase, if not told otherwise.
STEPS = 3000


@dataclass
class Outcome:
    """How a run went."""

    seed: int
    kind: str
    #: Of its history: equal for equal seeds.
    digest: str
    steps: int
    tasks: int
    #: What was violated and where; "" is nothing.
    violation: str
    latest: list[str]

    def __str__(self) -> str:
        line = f"seed {self.seed}: {self.kind}, {self.steps} steps, {self.tasks} tasks, history {self.digest}"
        if not self.violation:
            return line
        events = "\n".join(f"  {event}" for event in self.latest)
        return f"{line}\nVIOLATED at step {self.steps} of seed {self.seed}, after:\n{events}\n{self.violation}"


def simulate(seed: int, steps: int = STEPS, trace: Callable[[str], None] | None = None) -> Outcome:
    """One world from its beginning to its end. An exception of a core is a violation like any other."""
    universe = Universe(seed, trace)
    violation = ""
    try:
        universe.run(steps)
    except Exception:
        violation = traceback.format_exc()
    world = universe.world
    tasks = len(universe.oracle.tasks)
    return Outcome(seed, universe.kind, world.digest, world.steps, tasks, violation, list(world.latest))
