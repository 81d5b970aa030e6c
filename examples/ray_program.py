"""A program for Ray, unchanged: the largest gap between primes, by tasks and by a pool of actors.

``moray run --as-ray examples/ray_program.py`` runs it on moray; with Ray installed, ``python`` runs it on that.
"""

# ruff: noqa: T201
# mypy: disable-error-code="untyped-decorator,attr-defined"

from __future__ import annotations

import itertools
import sys

import ray
from ray.util import ActorPool

BLOCK = 50_000


@ray.remote
def primes_below(n: int) -> list[int]:
    """Every prime under n."""
    sieve = bytearray([1]) * n
    sieve[:2] = b"\0\0"
    for i in range(2, int(n**0.5) + 1):
        if sieve[i]:
            sieve[i * i :: i] = bytes(len(range(i * i, n, i)))
    return [i for i in range(n) if sieve[i]]


@ray.remote
class Sieve:
    """Finds the primes of a block, with small primes that it was given once."""

    def __init__(self, small: list[int]) -> None:
        self.small = small

    def gap(self, first: int) -> tuple[int, int]:
        """The largest gap between neighbours in the block, and where it begins."""
        sieve = bytearray([1]) * BLOCK
        for p in self.small:
            start = max(p * p, -(-first // p) * p)
            sieve[start - first :: p] = bytes(len(range(start - first, BLOCK, p)))
        found = [first + i for i in range(BLOCK) if sieve[i]]
        return max((b - a, a) for a, b in itertools.pairwise(found))


def main(blocks: int) -> None:
    ray.init(num_cpus=2)
    try:
        small = primes_below.remote(int((BLOCK * (blocks + 1)) ** 0.5) + 1)
        pool = ActorPool([Sieve.remote(small) for _ in range(2)])
        gaps = pool.map_unordered(
            lambda actor, first: actor.gap.remote(first), [i * BLOCK for i in range(1, blocks + 1)]
        )
        gap, where = max(gaps, key=lambda pair: (pair[0], -pair[1]))
        print(f"ray {ray.__version__}: after {where:,} the next prime is {gap} away")
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
