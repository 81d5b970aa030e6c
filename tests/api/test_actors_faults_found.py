"""Actors and generators in situations that the simulator found: each of these once waited for ever."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moray

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote
class Retried:
    def fail_once(self, tried: str, value: int) -> int:
        path = Path(tried)
        if not path.exists():
            time.sleep(0.2)  # What depends on it is made meanwhile.
            path.touch()
            raise ValueError("the first try")
        return value

    def add(self, a: int, b: int) -> int:
        return a + b


def test_a_retried_call_comes_before_the_calls_that_wait_for_it(tmp_path: Path) -> None:
    """CALL-ORDER: a call that waits for its arguments holds back the later ones of its caller; a repeat is none."""
    actor = Retried.options(max_task_retries=1).remote()
    retried = actor.fail_once.options(retry_exceptions=True)
    one, two = retried.remote(str(tmp_path / "one"), 1), retried.remote(str(tmp_path / "two"), 2)
    total = actor.add.remote(one, two)
    assert moray.get(actor.add.remote(total, total), timeout=20) == 6


@moray.remote(max_concurrency=2)
class Source:
    def items(self) -> Iterator[int]:
        yield from range(1_000_000)

    def ping(self) -> str:
        return "pong"


def test_a_dropped_generator_of_a_threaded_actor_ends_though_it_is_paused() -> None:
    """CANCEL: no signal reaches the thread that waits for its consumer; it looks by itself."""
    source: Any = Source.remote()
    narrow = source.items.options(_generator_backpressure_num_objects=2)
    for _ in range(4):
        items = narrow.remote()
        assert moray.get(next(items), timeout=20) == 0
        del items
    # Both threads have been used twice, and are free again.
    assert moray.get([source.ping.remote() for _ in range(4)], timeout=20) == ["pong"] * 4
