"""``python -m tests.simulation SEED``, or ``--seeds A..B``: run worlds; exit 1 at the first violation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.simulation.simulate import STEPS, simulate


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, default=1)
    parser.add_argument("--seeds", metavar="A..B", help="all seeds from A to B")
    parser.add_argument("--steps", type=int, default=STEPS, help="events before the work and the faults stop")
    parser.add_argument("--trace", action="store_true", help="print every event")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    seeds: Sequence[int] = [options.seed]
    if options.seeds:
        first, _, last = options.seeds.partition("..")
        seeds = range(int(first), int(last or first) + 1)
    for seed in seeds:
        outcome = simulate(seed, options.steps, print if options.trace else None)
        print(outcome, flush=True)
        if outcome.violation:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
