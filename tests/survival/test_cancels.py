"""A thousand random cancels under load: no worker is hurt, no wrong task is hit, nothing is left (CANCEL)."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return,no-untyped-call"

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import moray
from moray.exceptions import MorayError, TaskCancelledError
from moray.protocol import messages as m
from moray.runtime import state
from tests.support.procs import anonymous_bytes, wait_until
from tests.support.tables import runtime_tables, wait_until_empty

pytestmark = pytest.mark.slow

#: Per round; about half of them are cancelled.
TASKS = 500
ROUNDS = 4


@moray.remote(num_cpus=0.25)
def value(number: int) -> int:
    return number


@moray.remote(num_cpus=0.25)
def compute(number: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass
    return number


@moray.remote(num_cpus=0.25)
def sleep(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return number


@moray.remote(num_cpus=0.25)
def nested(number: int) -> int:
    return int(sum(moray.get([value.remote(number), sleep.remote(number, 0.002), compute.remote(number, 0.001)])))


@moray.remote(num_cpus=0.25)
def large(number: int) -> bytes:
    return bytes([number % 256]) * 150_000


@moray.remote(num_cpus=0.25)
def first(values: list[Any], lost: str) -> int:
    """Reads its argument late, even when it is cancelled: the hold on it lasts until this has ended."""
    try:
        time.sleep(0.003)
    finally:
        try:
            found: int = moray.get(values[0], timeout=20)[0]
        except MorayError as error:
            Path(lost).write_text(repr(error))
            raise
    return found


@moray.remote(num_cpus=0.25, num_returns=1)
def total(*values: int) -> int:
    return sum(values)


@moray.remote(num_cpus=0.25)
def count_up(number: int) -> Iterator[int]:
    yield from range(number)


@moray.remote(num_cpus=0)
class Sync:
    def value(self, number: int, seconds: float) -> int:
        time.sleep(seconds)
        return number


@moray.remote(num_cpus=0)
class Async:
    async def value(self, number: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return number


@moray.remote(num_cpus=0, max_concurrency=3)
class Threaded:
    def value(self, number: int, seconds: float) -> int:
        time.sleep(seconds)
        return number


class Deaths:
    """What the node tells of workers that ended otherwise than by themselves."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        runtime = state.runtime
        assert runtime is not None
        handle = runtime.handlers[m.ProcessDied]

        def noting(connection: Any, message: m.ProcessDied) -> None:
            if message.status:
                self.seen.append(f"pid {message.pid}: {message.reason} {message.stderr}")
            handle(connection, message)

        runtime.handlers[m.ProcessDied] = noting


def _kinds(chance: random.Random, actors: list[Any], lost: str) -> list[Callable[[int], tuple[Any, Any]]]:
    """Each submits one thing: (what to cancel, what it must give)."""
    duration = lambda: chance.random() ** 3 * 0.02  # noqa: E731 - short.
    return [
        lambda n: (value.remote(n), n),
        lambda n: (value.remote(n), n),
        lambda n: (compute.remote(n, duration()), n),
        lambda n: (sleep.remote(n, duration()), n),
        lambda n: (nested.remote(n), 3 * n),
        lambda n: (large.remote(n), bytes([n % 256]) * 150_000),
        lambda n: (first.remote([moray.put(bytes([n % 256]) * 150_000)], lost), n % 256),
        lambda n: (first.remote([moray.put([n])], lost), n),
        lambda n: (total.remote(value.remote(n), moray.put(1), sleep.remote(n, duration())), 2 * n + 1),
        lambda n: (chance.choice(actors).value.remote(n, duration()), n),
        lambda n: (chance.choice(actors).value.remote(moray.put(n), duration()), n),
        lambda n: (count_up.remote(n % 300), list(range(n % 300))),
    ]


def _outcome(waited: Any) -> Any:
    if isinstance(waited, moray.ObjectRefGenerator):
        items = [moray.get(ref, timeout=60) for ref in waited]
        moray.get(waited.completed(), timeout=60)
        return items
    return moray.get(waited, timeout=60)


def _round(chance: random.Random, actors: list[Any], lost: str) -> tuple[int, int]:
    """(how many were asked to end, how many of these did)."""
    kinds = _kinds(chance, actors, lost)
    submitted = []
    asked = ended = 0
    for number in range(TASKS):
        waited, expected = chance.choice(kinds)(number)
        submitted.append((waited, expected, chance.random() < 0.5))
        if chance.random() < 0.1:
            time.sleep(chance.random() * 0.005)
        due = chance.randrange(len(submitted))
        if submitted[due][2]:
            moray.cancel(submitted[due][0])
    for waited, _expected, to_end in submitted:
        if to_end:
            asked += 1
            moray.cancel(waited, recursive=chance.random() < 0.8)
    for waited, expected, to_end in submitted:
        try:
            assert _outcome(waited) == expected
        except TaskCancelledError:
            assert to_end, f"nobody asked for the end of what should give {expected!r}"
            ended += 1
    return asked, ended


@moray.remote(num_cpus=0)
def tables() -> tuple[int, dict[str, int]]:
    """Those of the worker that runs this; it is itself nothing that stays."""
    assert state.runtime is not None
    return os.getpid(), runtime_tables(state.runtime)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_thousand_random_cancels(moray_session: ModuleType, tmp_path: Path, seed: int) -> None:
    runtime = state.runtime
    assert runtime is not None
    deaths = Deaths()
    over = threading.Event()
    burner = threading.Thread(target=_burn, args=(over,))
    burner.start()
    try:
        actors = [Sync.remote(), Async.remote(), Threaded.remote()]
        moray.get([actor.value.remote(0, 0) for actor in actors], timeout=30)
        chance = random.Random(seed)
        asked = ended = 0
        sizes = []
        for _ in range(ROUNDS):
            counts = _round(chance, actors, str(tmp_path / "lost"))
            asked, ended = asked + counts[0], ended + counts[1]
            sizes.append(anonymous_bytes(os.getpid()))
        assert asked > 800
        assert ended > 100
        assert not deaths.seen
        assert not (tmp_path / "lost").exists(), (tmp_path / "lost").read_text()
        # The actors are whole, and so is everything else.
        assert moray.get([actor.value.remote(7, 0) for actor in actors], timeout=30) == [7] * 3
        assert moray.get([value.remote(i) for i in range(2000)], timeout=30) == list(range(2000))
        assert sizes[-1] - sizes[1] < 20 << 20
        _nothing_is_left(runtime, actors)
    finally:
        over.set()
        burner.join()


def _nothing_is_left(runtime: Any, actors: list[Any]) -> None:
    # The actors' own hidden objects stay.
    wait_until_empty(runtime, owned=len(actors), entries=len(actors))
    assert not runtime.submitter.pending_tasks()
    assert not runtime.actors.pending_calls()
    assert not runtime.cancels._swept
    wait_until(lambda: moray.available_resources().get("CPU") == 2, 20, "free CPUs")
    used = {name: size for _pid, sizes in moray.get([tables.remote() for _ in range(20)], timeout=30)
            for name, size in sizes.items() if size > 1}  # fmt: skip
    assert not used, f"left in a worker: {used}"


def _burn(over: threading.Event) -> None:
    """Another thread competes for the interpreter: the moments are others."""
    while not over.wait(0.001):
        sum(range(20_000))


def test_cancels_at_every_moment_of_a_short_task(moray_session: ModuleType) -> None:
    """The same worker runs a neighbour right after each: the signal must not be late."""
    deaths = Deaths()
    chance = random.Random(5)
    pairs = []
    for number in range(600):
        ref = compute.remote(number, 0.002)
        neighbour = value.remote(number)
        spin = time.perf_counter() + chance.random() * 0.006
        while time.perf_counter() < spin:
            pass
        moray.cancel(ref)
        pairs.append((ref, neighbour))
    for number, (ref, neighbour) in enumerate(pairs):
        assert moray.get(neighbour, timeout=30) == number
        try:
            assert moray.get(ref, timeout=30) == number
        except TaskCancelledError:
            pass
    assert not deaths.seen


def test_forced_cancels_hit_their_own_worker_only(moray_session: ModuleType) -> None:
    chance = random.Random(6)
    forced = [sleep.options(num_cpus=0.5, max_retries=0).remote(i, 30) for i in range(8)]
    others = [compute.options(max_retries=0).remote(i, 0.01) for i in range(100)]
    for ref in forced:
        time.sleep(chance.random() * 0.1)
        moray.cancel(ref, force=True)
    for ref in forced:
        with pytest.raises(TaskCancelledError):
            moray.get(ref, timeout=30)
    assert moray.get(others, timeout=60) == list(range(100))


def test_order_of_calls_while_others_are_cancelled(moray_session: ModuleType) -> None:
    """Taking cancelled calls out of the queue must not let one thread's calls overtake each other (CALL-ORDER)."""

    @moray.remote(num_cpus=0)
    class Log:
        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []

        def add(self, thread: int, number: int) -> None:
            if number >= 0:
                self.seen.append((thread, number))
            else:
                time.sleep(0.0002)

        def all(self) -> list[tuple[int, int]]:
            return self.seen

    log = Log.remote()

    def call(thread: int) -> None:
        for number in range(1000):
            log.add.remote(thread, number)
            if number % 3 == 0:
                moray.cancel(log.add.remote(thread, -1))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = moray.get(log.all.remote(), timeout=60)
    for thread_number in range(3):
        assert [number for thread, number in seen if thread == thread_number] == list(range(1000))
