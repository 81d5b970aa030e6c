"""Cancel: several tasks look for the same thing; the first to find it ends the others."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import moray
from examples.demo.show import Show, check

SEARCHERS = 4
#: Bits of the digest that must be zero: about a quarter of a million tries.
ZERO_BITS = 18


def is_found(number: int) -> bool:
    """Whether the digest of the number begins with so many zero bits."""
    digest = hashlib.sha256(str(number).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - ZERO_BITS) == 0


def search(first: int, step: int) -> int:
    """The first such number of first, first + step, …"""
    number = first
    while not is_found(number):
        number += step
    return number


def search_nothing() -> None:
    """Look for something that is not there."""
    while True:
        hashlib.sha256(b"").digest()


class RaceShow(Show):
    name = "cancel"
    detail = f"{SEARCHERS} tasks search; the first that finds something ends the others"

    def run(self) -> str:
        task = moray.remote(search)
        refs: list[moray.ObjectRef[Any]] = [task.remote(first, SEARCHERS) for first in range(SEARCHERS)]
        refs += [moray.remote(search_nothing).remote() for _ in range(2)]
        (winner, *_), others = moray.wait(refs)
        number = moray.get(winner)
        check(is_found(number), f"{number} is not what was searched for")
        start = time.perf_counter()
        for ref in others:
            moray.cancel(ref)
        ended, running = moray.wait(others, num_returns=len(others), timeout=30)
        check(not running, f"{len(running)} tasks went on after they were cancelled")
        cancelled_ms = (time.perf_counter() - start) * 1e3
        found = f"SHA-256 of {number:,} begins with {ZERO_BITS} zero bits"
        return f"{found}; {len(ended)} others ended in {cancelled_ms:.0f} ms"
