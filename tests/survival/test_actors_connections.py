"""Connections between callers and living actors are cut: no call is lost or run twice (CALL-ORDER)."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return,no-untyped-call"

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Self

import pytest

import moray
from moray.exceptions import MorayError, TaskCancelledError
from moray.runtime import state
from tests.support.tables import wait_until_empty

pytestmark = pytest.mark.slow

CALLS = 1500


def cut_all() -> int:
    """Close the sockets of this process to all others but the node, as if the kernel had; how many."""
    runtime = state.runtime
    assert runtime is not None
    done = threading.Event()
    cut = []

    def cut_now() -> None:
        for peer in list(runtime.peers.values()):
            if peer.callee is not None and peer.connection is not None:
                cut.append(peer)
                peer.connection.close("cut by the test")
        done.set()

    runtime.call_soon(cut_now)
    assert done.wait(20)
    return len(cut)


class Cutter:
    """Cuts now and then, while the block runs."""

    def __init__(self, seed: int, every_s: float = 0.05) -> None:
        self._chance = random.Random(seed)
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.cuts = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._chance.random() * self._every_s):
            self.cuts += cut_all()


class Log:
    """Notes each call that it runs."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.kept: list[Any] = []

    def note(self, number: int, *_more: Any) -> int:
        self.seen.append(number)
        return number

    def note_large(self, number: int, data: bytes) -> bytes:
        self.seen.append(number)
        return data

    def keep(self, number: int, refs: list[Any]) -> list[Any]:
        """A reply with references, of an actor that keeps what it got."""
        self.seen.append(number)
        self.kept.append(refs[0])
        return [refs[0], moray.put(number)]

    def read_kept(self) -> list[int]:
        return [value[0] for value in moray.get(self.kept, timeout=30)]

    def all(self) -> list[int]:
        return self.seen

    def items(self, count: int) -> Iterator[int]:
        for number in range(count):
            time.sleep(0.0005)
            yield number

    def cut(self) -> int:
        """Close the actor's sockets to its callers, from inside."""
        runtime = state.runtime
        assert runtime is not None

        def cut_now() -> None:
            for peer in list(runtime.peers.values()):
                if peer.caller is not None:
                    peer.caller.connection.close("cut by the test")

        runtime.call_soon(cut_now)
        return 0


class AsyncLog:
    """The same, with coroutines."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.kept: list[Any] = []

    async def note(self, number: int, *_more: Any) -> int:
        self.seen.append(number)
        return number

    async def note_large(self, number: int, data: bytes) -> bytes:
        self.seen.append(number)
        return data

    async def keep(self, number: int, refs: list[Any]) -> list[Any]:
        self.seen.append(number)
        self.kept.append(refs[0])
        return [refs[0], moray.put(number)]

    async def read_kept(self) -> list[int]:
        return [(await ref)[0] for ref in self.kept]

    async def all(self) -> list[int]:
        return self.seen


def make(kind: str) -> Any:
    """An actor of this kind, started."""
    cls: Any = AsyncLog if kind == "async" else Log
    options: dict[str, Any] = {"num_cpus": 0} | ({"max_concurrency": 3} if kind == "threaded" else {})
    actor = moray.remote(**options)(cls).remote()
    moray.get(actor.all.remote(), timeout=30)
    return actor


KINDS = pytest.mark.parametrize("kind", ["sync", "async", "threaded"])


@KINDS
def test_small_calls(moray_session: ModuleType, kind: str) -> None:
    actor = make(kind)
    with Cutter(1) as cutter:
        refs = []
        for number in range(CALLS):
            refs.append(actor.note.remote(number))
            if number % 10 == 0:
                moray.wait(refs[-1:], timeout=30)
        assert moray.get(refs, timeout=60) == list(range(CALLS))
    assert cutter.cuts > 0
    seen = moray.get(actor.all.remote(), timeout=30)
    assert (seen if kind != "threaded" else sorted(seen)) == list(range(CALLS))


@KINDS
def test_calls_one_at_a_time(moray_session: ModuleType, kind: str) -> None:
    """The direct way: each is sent by the calling thread itself."""
    actor = make(kind)
    with Cutter(2):
        for number in range(CALLS // 2):
            assert moray.get(actor.note.remote(number), timeout=30) == number
    assert moray.get(actor.all.remote(), timeout=30) == list(range(CALLS // 2))


@KINDS
def test_calls_that_fill_the_socket(moray_session: ModuleType, kind: str) -> None:
    """More lies in the old connection than is read at once, when the new one is there already."""
    actor = make(kind)
    data = b"x" * 90_000
    with Cutter(3, 0.4):
        refs = [actor.note_large.remote(number, data) for number in range(300)]
        for ref in refs:
            assert len(moray.get(ref, timeout=60)) == len(data)
    assert sorted(moray.get(actor.all.remote(), timeout=30)) == list(range(300))


@KINDS
def test_calls_with_references_both_ways(moray_session: ModuleType, kind: str) -> None:
    """What the actor keeps is registered before the hold on the arguments ends, whatever is lost (REF-COVER)."""
    actor = make(kind)
    with Cutter(4):
        for round_ in range(10):
            numbers = range(round_ * 20, round_ * 20 + 20)
            refs = [actor.keep.remote(number, [moray.put([number])]) for number in numbers]
            for number, ref in zip(numbers, refs, strict=True):
                given, made = moray.get(ref, timeout=60)
                assert moray.get(given, timeout=30) == [number]
                assert moray.get(made, timeout=30) == number
                del given, made
            del refs, ref
    assert sorted(moray.get(actor.read_kept.remote(), timeout=60)) == list(range(200))
    assert sorted(moray.get(actor.all.remote(), timeout=30)) == list(range(200))
    del actor
    assert state.runtime is not None
    wait_until_empty(state.runtime)


def test_cuts_by_the_actor(moray_session: ModuleType) -> None:
    actor = make("sync")
    refs = []
    for number in range(CALLS):
        if number % 50 == 0:
            actor.cut.remote()
        refs.append(actor.note.remote(number))
        if number % 10 == 0:
            moray.wait(refs[-1:], timeout=30)
    assert moray.get(refs, timeout=60) == list(range(CALLS))
    assert moray.get(actor.all.remote(), timeout=30) == list(range(CALLS))


def test_generators(moray_session: ModuleType) -> None:
    """No item is lost with a connection (STREAM-5); test_streams_cut.py has more."""
    actor = make("sync")
    with Cutter(5) as cutter:
        for _ in range(20):
            items = [moray.get(ref, timeout=30) for ref in actor.items.remote(60)]
            assert items == list(range(60))
    assert cutter.cuts > 0
    assert list(moray.get(list(actor.items.remote(10)), timeout=30)) == list(range(10))


def test_cancels_while_connections_are_cut(moray_session: ModuleType) -> None:
    """A cancel that was lost with a connection is said again on the next one."""

    @moray.remote(num_cpus=0)
    class Sleeper:
        def sleep(self, seconds: float) -> None:
            time.sleep(seconds)

    actor = Sleeper.remote()
    moray.get(actor.sleep.remote(0), timeout=30)
    for _ in range(10):
        ref = actor.sleep.remote(60)
        moray.wait([ref], timeout=0.02)
        cut_all()
        moray.cancel(ref)
        with pytest.raises(TaskCancelledError):
            moray.get(ref, timeout=20)


def test_actors_are_made_while_connections_are_cut(moray_session: ModuleType) -> None:
    """Also what makes an instance, and the answer of its constructor, may be lost."""
    runtime = state.runtime
    assert runtime is not None
    over = threading.Event()

    def cut_now() -> None:
        for peer in list(runtime.peers.values()):
            if peer.connection is not None and not peer.slots:
                peer.connection.close("cut by the test")

    def cut() -> None:
        while not over.wait(0.005):
            runtime.call_soon(cut_now)

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        kind = moray.remote(num_cpus=0)(Log)
        for _ in range(6):
            argument = moray.put([1])
            actors = [kind.remote() for _ in range(3)]
            refs = [actor.keep.remote(5, [argument]) for actor in actors]
            for ref in refs:
                made = moray.get(ref, timeout=30)[1]
                assert moray.get(made, timeout=30) == 5
            del actors, refs, ref, made, argument
    except MorayError as error:
        raise AssertionError(f"an actor was not made: {error}") from error
    finally:
        over.set()
        cutter.join()
