"""A generator: a task whose results are used while it still makes them, and that ends when nobody reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

import moray
from examples.demo.show import Show, check

if TYPE_CHECKING:
    from numpy.typing import NDArray

Block: TypeAlias = "NDArray[np.float64]"

BLOCKS = 30
STEPS_PER_BLOCK = 125_000
#: Seconds that making a block takes beside the computing, as reading from a disk or a network does.
PAUSE_S = 0.03


def walk(blocks: int) -> Iterator[Block]:
    """A random walk, in blocks of a megabyte."""
    rng = np.random.default_rng(0)
    last = 0.0
    for _ in range(blocks):
        time.sleep(PAUSE_S)
        block = last + np.cumsum(rng.standard_normal(STEPS_PER_BLOCK))
        last = float(block[-1])
        yield block


class StreamsShow(Show):
    name = "generator"
    detail = f"a task makes {BLOCKS} blocks of 1 MB; each is used as soon as it is there"

    def run(self) -> str:
        task = moray.remote(walk)
        start = time.perf_counter()
        first_s, highest, last = 0.0, -np.inf, 0.0
        for ref in task.remote(BLOCKS):
            block = moray.get(ref)
            first_s = first_s or time.perf_counter() - start
            highest, last = max(highest, float(block.max())), float(block[-1])
        seconds = time.perf_counter() - start
        rng = np.random.default_rng(0)
        steps = np.concatenate([rng.standard_normal(STEPS_PER_BLOCK) for _ in range(BLOCKS)])
        check(bool(np.isclose(last, steps.sum())), f"the walk ended at {last}, and should at {steps.sum()}")

        endless = task.options(_generator_backpressure_num_objects=2).remote(10**9)
        ended = endless.completed()
        moray.get(next(endless))
        dropped = time.perf_counter()
        del endless
        check(bool(moray.wait([ended], timeout=10)[0]), "an endless generator went on without its reader")
        ended_ms = (time.perf_counter() - dropped) * 1e3
        return (
            f"the first block after {first_s:.2f} s, the last after {seconds:.2f} s, highest point {highest:.0f}; "
            f"an endless one ended {ended_ms:.0f} ms after it was dropped"
        )
