"""Monte-Carlo pi: the share of random points in the unit square that lie in the quarter circle."""

from __future__ import annotations

import math
import random

import moray
from examples.demo.job import Advance, Job, advance_as_ready

CHUNKS = 32
POINTS_PER_CHUNK = 1_000_000


def hits(seed: int, points: int) -> int:
    """How many of so many random points are at most 1 from the origin."""
    draw = random.Random(seed).random
    inside = 0
    for _ in range(points):
        x, y = draw(), draw()
        if x * x + y * y <= 1.0:
            inside += 1
    return inside


class Pi(Job[int]):
    name = "pi"
    steps = CHUNKS
    detail = f"{CHUNKS * POINTS_PER_CHUNK / 1e6:.0f} million random points, in plain Python"

    def serial(self, advance: Advance) -> int:
        total = 0
        for seed in range(CHUNKS):
            total += hits(seed, POINTS_PER_CHUNK)
            advance()
        return total

    def parallel(self, advance: Advance) -> int:
        task = moray.remote(hits)
        refs = [task.remote(seed, POINTS_PER_CHUNK) for seed in range(CHUNKS)]
        advance_as_ready(refs, advance)
        return sum(moray.get(refs))

    def equal(self, one: int, other: int) -> bool:
        return one == other

    def summary(self, result: int) -> str:
        estimate = 4 * result / (CHUNKS * POINTS_PER_CHUNK)
        return f"pi is about {estimate:.5f}, off by {abs(estimate - math.pi):.5f}"
