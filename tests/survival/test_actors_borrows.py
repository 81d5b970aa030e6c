"""What a reply says of references is not lost with the connection that it was meant for (REF-COVER)."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return,no-untyped-call"

from __future__ import annotations

import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import moray
from moray.runtime import state
from tests.support.procs import wait_until

pytestmark = pytest.mark.slow


class Keeper:
    """Keeps what it is given, and loses the connection to its caller before it says so."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, refs: list[Any]) -> None:
        self.kept.append(refs[0])

    def keep_without_connection(self, refs: list[Any], begin: str, answered: str) -> None:
        """The connection is closed here; another is made, for a release; then the reply departs. `begin` and
        `answered` are files: what the method waits for, and what says that the reply is kept."""
        wait_until(Path(begin).exists, 20)
        runtime = state.runtime
        assert runtime is not None
        (peer,) = [peer for peer in runtime.peers.values() if peer.caller is not None]
        caller = peer.caller
        first = caller.connection
        runtime.call_soon(lambda: first.close("cut by the test"))
        wait_until(lambda: first.closed, 20)
        self.kept.append(refs[0])
        self.kept.pop(0)
        wait_until(lambda: peer.connection is not None, 20)
        number = caller.accepted - 1

        def tell() -> None:
            wait_until(lambda: number in caller.replies, 20)
            Path(answered).touch()

        threading.Thread(target=tell).start()

    def read(self) -> list[int]:
        return [value[0] for value in moray.get(self.kept, timeout=30)]


class AsyncKeeper(Keeper):
    """The same, with coroutines."""

    async def keep_without_connection(self, refs: list[Any], begin: str, answered: str) -> None:  # type: ignore[override]
        super().keep_without_connection(refs, begin, answered)

    async def read(self) -> list[int]:  # type: ignore[override]
        return [(await ref)[0] for ref in self.kept]


@pytest.mark.parametrize("kind", ["sync", "async", "threaded"])
def test_reply_after_its_connection(moray_session: ModuleType, tmp_path: Path, kind: str) -> None:
    """The actor has a connection of its own by the time the caller resumes the conversation, on that one: nothing but
    the reply itself says what the actor keeps."""
    options: dict[str, Any] = {"num_cpus": 0} | ({"max_concurrency": 3} if kind == "threaded" else {})
    actor = moray.remote(**options)(AsyncKeeper if kind == "async" else Keeper).remote()
    moray.get(actor.keep.remote([moray.put([1])]), timeout=30)
    runtime = state.runtime
    assert runtime is not None
    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go_on.wait(60)

    begin, answered = tmp_path / "begin", tmp_path / "answered"
    reply = actor.keep_without_connection.remote([moray.put([2])], str(begin), str(answered))
    runtime.call_soon(block)
    try:
        assert blocked.wait(20)
        begin.touch()
        wait_until(answered.exists, 40)
    finally:
        go_on.set()
    assert moray.get(reply, timeout=30) is None
    assert moray.get(actor.read.remote(), timeout=60) == [2]


class Given:
    """Loses the connection to its creator in its constructor, and gets another."""

    def __init__(self, refs: list[Any]) -> None:
        runtime = state.runtime
        assert runtime is not None
        ref = refs[0]
        peer = runtime.peers[ref._entry.origin.process]
        first = peer.connection
        assert first is not None
        runtime.call_soon(lambda: first.close("cut by the test"))
        wait_until(lambda: first.closed and peer.connection is not None, 20)
        self.kept = refs

    def give(self) -> list[Any]:
        return self.kept


class AsyncGiven(Given):
    """The same, with coroutines."""

    async def give(self) -> list[Any]:  # type: ignore[override]
        return self.kept


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_constructors_answer_after_its_connection(moray_session: ModuleType, kind: str) -> None:
    """What the constructor kept is registered; its creator hears that it has returned."""
    given = moray.put([1])
    actor = moray.remote(num_cpus=0)(AsyncGiven if kind == "async" else Given).remote([given])
    (again,) = moray.get(actor.give.remote(), timeout=20)
    assert moray.get(again, timeout=20) == [1]
    runtime = state.runtime
    assert runtime is not None
    wait_until(
        lambda: not runtime.actors.creations._creations, 10, "the end of the hold on the constructor's arguments"
    )
