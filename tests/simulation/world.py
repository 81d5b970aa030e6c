"""Time, chance and history of one simulated world.

Everything that happens is an *event* on one heap, ordered by (time, number). An event may belong to a process: a dead
process has no events any more, a stalled one (its interpreter is held by C code) has them later. All randomness
comes from one generator made from the seed. The history is hashed as it happens: equal seeds give equal hashes.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Final, Protocol

#: Events that a report shows.
REMEMBERED: Final = 60


class ViolationError(AssertionError):
    """An invariant does not hold."""


class RefusedError(Exception):
    """The store did not take an object."""


class Lively(Protocol):
    """What can die and stall."""

    dead: bool
    stalled_until: float


class Timer:
    """One event to come."""

    __slots__ = ("call", "label", "process")

    def __init__(self, process: Lively | None, label: str, call: Callable[[], None]) -> None:
        self.process = process
        self.label = label
        #: None: cancelled.
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class World:
    """The clock, the dice and the chronicle."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.random = Random(seed)
        self.now = 0.0
        #: Events that happened.
        self.steps = 0
        self._heap: list[tuple[float, int, Timer]] = []
        self._events = 0
        self._trace = trace
        self._digest = hashlib.sha256()
        #: The latest lines of the history.
        self.latest: deque[str] = deque(maxlen=REMEMBERED)
        #: Called after each event: the checkers.
        self.after: list[Callable[[], None]] = []

    def at(self, delay: float, label: str, call: Callable[[], None], process: Lively | None = None) -> Timer:
        """Have `call` happen after `delay` seconds."""
        timer = Timer(process, label, call)
        self._push(self.now + max(delay, 0.0), timer)
        return timer

    def _push(self, time: float, timer: Timer) -> None:
        self._events += 1
        heappush(self._heap, (time, self._events, timer))

    def step(self) -> bool:
        """Let the next event happen; False if there is none."""
        while self._heap:
            time, _, timer = heappop(self._heap)
            call, process = timer.call, timer.process
            if call is None or (process is not None and process.dead):
                continue
            self.now = max(self.now, time)
            if process is not None and process.stalled_until > self.now:
                self._push(process.stalled_until, timer)
                continue
            self.steps += 1
            if timer.label:
                self.log(timer.label)
            call()
            for check in self.after:
                check()
            return True
        return False

    def run_until(self, condition: Callable[[], bool], limit_s: float, what: Callable[[], str]) -> None:
        """Step until `condition` holds; a violation if that takes more than `limit_s` simulated seconds."""
        deadline = self.now + limit_s
        while not condition():
            if self.now > deadline or not self.step():
                raise ViolationError(f"after {limit_s:g} simulated seconds without faults: {what()}")

    def run_for(self, duration_s: float) -> None:
        """Let time pass."""
        over: list[bool] = []
        self.at(duration_s, "", lambda: over.append(True))
        while not over:
            self.step()

    def log(self, line: str) -> None:
        """Something worth telling happened."""
        line = f"{self.now:.6f} {line}"
        self._digest.update(line.encode())
        self.latest.append(line)
        if self._trace is not None:
            self._trace(line)

    @property
    def digest(self) -> str:
        """The history, in short."""
        return self._digest.hexdigest()[:16]

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability
