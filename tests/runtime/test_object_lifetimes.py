"""Schedules that once lost, kept or confused objects, each forced rather than hoped for (REF-FREE, INTERRUPT, FORK)."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import moray
from moray.object_ref import Entry, ObjectRef, new_ref
from moray.protocol import messages as m
from moray.runtime import references, state
from moray.runtime.references import Escaped
from moray.runtime.runtime import Runtime
from moray.runtime.submission import Submitter
from tests.support.procs import run_driver
from tests.support.tables import empty_tables, runtime_tables

LARGE = 300_000


@pytest.fixture
def runtime(moray_session: ModuleType) -> Runtime:
    assert state.runtime is not None
    return state.runtime


def until(condition: Callable[[], Any], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def in_loop(runtime: Runtime, call: Callable[[], Any]) -> Any:
    """What `call` returns when the loop makes it."""
    results: list[Any] = []
    done = threading.Event()

    def run() -> None:
        results.append(call())
        done.set()

    runtime.call_soon(run)
    assert done.wait(20)
    return results[0]


@contextmanager
def loop_held(runtime: Runtime) -> Iterator[None]:
    """The loop stands still meanwhile, so that no answer comes."""
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go.wait(20)

    runtime.call_soon(hold)
    assert held.wait(20)
    try:
        yield
    finally:
        go.set()


def flush(runtime: Runtime) -> None:
    def both() -> None:
        runtime.references.flush()
        runtime.values.flush()

    in_loop(runtime, both)


def store(runtime: Runtime) -> dict[str, Any]:
    flush(runtime)
    found: dict[str, Any] = runtime.ask(m.ClusterInfo).state["store"]
    return found


def is_empty(runtime: Runtime) -> bool:
    objects: int = store(runtime)["objects"]
    return objects == 0


# Sent by value: workers cannot import this module.


def gated(path: str, kind: str) -> Any:
    import time as clock

    import moray as session

    while not Path(path).exists():
        clock.sleep(0.005)
    if kind == "none":
        return None
    return [session.put(1), bytes(300_000 if kind == "large" else 3)]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "gate"
    yield path
    path.touch()


def remote(function: Callable[..., Any], **options: Any) -> Any:
    import cloudpickle

    copy = cloudpickle.loads(cloudpickle.dumps(function))
    return moray.remote(**options)(copy) if options else moray.remote(copy)


# --- waiting -----------------------------------------------------------------------------------


class Between:
    """A lock after whose first release something happens."""

    def __init__(self, lock: Any, action: Callable[[], None]) -> None:
        self._lock = lock
        self._action: Callable[[], None] | None = action

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_exc: object) -> None:
        self._lock.release()
        action, self._action = self._action, None
        if action is not None:
            action()


@pytest.mark.parametrize("loop_is_quick", [True, False])
def test_a_subscriber_is_served_once(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, loop_is_quick: bool) -> None:
    """The value comes between the subscription and the second look; wait() counted it twice."""
    entry = Entry(runtime.origin, 1 << 60)
    calls: list[int] = []

    def arrive() -> None:
        entry.ready = True
        if loop_is_quick:
            runtime.values.notify(entry)

    monkeypatch.setattr(runtime, "waiter_lock", Between(runtime.waiter_lock, arrive))
    is_ready = runtime.values.subscribe(entry, lambda: calls.append(1))
    runtime.values.notify(entry)
    assert is_ready + len(calls) == 1


def test_an_error_is_raised_while_others_are_pending(runtime: Runtime, gate: Path) -> None:
    pending = remote(gated).remote(str(gate), "none")
    with pytest.raises(ZeroDivisionError):
        moray.get([pending, remote(lambda: 1 / 0).remote()], timeout=20)
    assert not pending._entry.waiters


def test_timeouts_leave_no_waiters(runtime: Runtime, gate: Path) -> None:
    ref = remote(gated).remote(str(gate), "none")

    async def look() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ref, 0.001)

    for _ in range(5):
        with pytest.raises(moray.exceptions.GetTimeoutError):
            moray.get([ref], timeout=0.001)
        moray.wait([ref], timeout=0.001)
        asyncio.run(look())
    assert not ref._entry.waiters


def test_a_borrower_that_looks_often_asks_once(runtime: Runtime, gate: Path) -> None:
    def looks(box: list[ObjectRef[Any]]) -> int:
        import moray as session

        for _ in range(20):
            session.wait(box, timeout=0.005)
        return 1

    ref = remote(gated).remote(str(gate), "none")
    assert moray.get(remote(looks).remote([ref]), timeout=20) == 1
    assert [len(peers) for peers in runtime.values._asked.values()] == [1]


# --- freeing -----------------------------------------------------------------------------------


def test_an_escaped_object_leaves_nothing(runtime: Runtime) -> None:
    """Its entry and its book refer to each other, and the garbage collector sees neither."""
    ref = moray.put(1)
    assert moray.get(remote(lambda box: len(box)).remote([ref]), timeout=20) == 1
    book = ref._entry.book
    del ref
    flush(runtime)
    until(lambda: book.freed)
    assert book.entry is None
    assert not runtime.origin.entries


@pytest.mark.parametrize("kind", ["ref", "large"])
def test_a_result_that_nobody_waits_for(runtime: Runtime, gate: Path, kind: str) -> None:
    """Its reference goes while the task runs; then it arrives, with references in it."""
    ref = remote(gated).remote(str(gate), kind)
    entry = ref._entry
    del ref
    flush(runtime)
    gate.touch()
    until(lambda: entry.ready)
    until(lambda: is_empty(runtime) and runtime_tables(runtime) == empty_tables())


def test_an_interrupted_escape_is_made_up_for(runtime: Runtime) -> None:
    """INTERRUPT: the event is there before the table says that it is."""
    ref = moray.put(1)
    seen: list[bool] = []

    class Events(list[Any]):
        def append(self, event: Any) -> None:
            if isinstance(event, Escaped):
                seen.append(event.entry.key in runtime.origin.entries)
                raise KeyboardInterrupt

    events, runtime.references.events = runtime.references.events, Events()  # type: ignore[assignment]
    try:
        with pytest.raises(KeyboardInterrupt):
            runtime.references.escape(ref._entry, ref)
    finally:
        runtime.references.events = events
    assert seen == [False]
    assert moray.get(remote(lambda box: box).remote([ref]), timeout=20) == [ref]


# --- the store ---------------------------------------------------------------------------------


def seals_and_dies(path: str, often: int) -> bytes:
    import os as system

    from moray.runtime import state as here

    values: Any = here.runtime and here.runtime.values
    tries = Path(path)
    count = len(tries.read_text()) if tries.exists() else 0
    if count < often:
        tries.write_text("x" * (count + 1))
        write = values.write

        def write_and_die(*args: Any, **kwargs: Any) -> None:
            write(*args, **kwargs)
            system.kill(system.getpid(), 9)

        values.write = write_and_die
    return bytes(300_000)


def test_a_retry_takes_the_place_of_a_sealed_result(runtime: Runtime, tmp_path: Path) -> None:
    ref = remote(seals_and_dies, max_retries=1).remote(str(tmp_path / "tries"), 1)
    assert len(moray.get(ref, timeout=30)) == LARGE
    del ref
    until(lambda: is_empty(runtime))


def test_the_sealed_result_of_a_failed_task_goes(runtime: Runtime, tmp_path: Path) -> None:
    ref = remote(seals_and_dies, max_retries=0).remote(str(tmp_path / "tries"), 1)
    with pytest.raises(moray.exceptions.WorkerCrashedError):
        moray.get(ref, timeout=30)
    until(lambda: is_empty(runtime))


def _interrupt(*_args: Any) -> bool:
    raise KeyboardInterrupt


def test_an_interrupted_put_leaves_nothing_in_the_store(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, loop_held(runtime):
        patch.setattr(runtime, "block", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            moray.put(bytes(LARGE))
    until(lambda: is_empty(runtime))
    assert not runtime.values._stored

    seal = runtime.values.write

    def write_then_interrupt(*args: Any, **kwargs: Any) -> None:
        seal(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runtime.values, "write", write_then_interrupt)
        with pytest.raises(KeyboardInterrupt):
            moray.put(bytes(LARGE))
    until(lambda: is_empty(runtime))


def test_an_interrupted_put_is_not_created_later(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was dropped before it is booked by the loop, which then asks for the room: after the put has given up."""
    with monkeypatch.context() as patch, loop_held(runtime):
        patch.setattr(runtime, "block", _interrupt)
        moray.put([moray.put(1)])
        assert runtime.events
        with pytest.raises(KeyboardInterrupt):
            moray.put(bytes(LARGE))
    until(lambda: is_empty(runtime))


def test_an_interrupted_get_leaves_no_pin(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = moray.put(np.zeros(LARGE))
    with monkeypatch.context() as patch, loop_held(runtime):
        patch.setattr(runtime, "block", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            moray.get(ref)
    until(lambda: store(runtime)["pins"] == {})
    assert moray.get(ref).shape == (LARGE,)


# --- errors with references in them --------------------------------------------------------------


def raises_a_reference(_before: Any = None) -> None:
    import moray as session

    raise ValueError([session.put("inside")])


def test_references_in_errors_are_counted(runtime: Runtime) -> None:
    def inner(ref: ObjectRef[Any]) -> str:
        with pytest.raises(ValueError) as raised:
            moray.get(ref, timeout=20)
        found: str = moray.get(raised.value.args[0][0], timeout=20)
        return found

    failing = remote(raises_a_reference).remote()
    dependent = remote(raises_a_reference).remote(failing)
    assert inner(failing) == "inside"
    del failing
    flush(runtime)
    assert inner(dependent) == "inside"
    unwanted = remote(raises_a_reference).remote()
    nobodys = remote(raises_a_reference, num_returns=0).remote()
    assert nobodys is None
    del dependent, unwanted
    pinned = remote(lambda: len(__import__("moray").runtime.state.runtime.references.core.pinned))
    assert sum(moray.get([pinned.remote() for _ in range(4)])) == 0
    gc.collect()  # Tracebacks hold frames, which hold references.
    until(lambda: is_empty(runtime) and runtime_tables(runtime) == empty_tables())


# --- the end of a session, forks ----------------------------------------------------------------------


def test_after_the_end_nothing_blocks(moray_session: ModuleType, gate: Path) -> None:
    runtime = state.runtime
    assert runtime is not None
    pending = remote(gated).remote(str(gate), "none")
    moray.shutdown()
    runtime.note_event(None)  # So that a put has drops to wait for.
    with pytest.raises(moray.exceptions.LocalNodeDiedError):
        runtime.values.put(b"x" * 1_000_000)
    later = Entry(runtime.origin, 1 << 60)
    ref = runtime.make_ref(later)
    with pytest.raises(moray.exceptions.LocalNodeDiedError):
        ref.future()

    async def wait() -> None:
        await ref

    with pytest.raises(moray.exceptions.LocalNodeDiedError):
        asyncio.run(wait())
    assert pending._entry.error


def test_the_end_reaches_tasks_that_nobody_has_admitted(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    first = moray.put(1)
    task = remote(lambda x: x)
    with monkeypatch.context() as patch:
        patch.setattr(Submitter, "_admit", lambda _self, _task: None)
        patch.setattr(runtime.submitter, "intake", runtime.submitter.intake.__class__())
        ref = None

        def submit_and_end() -> None:
            nonlocal ref
            ref = task.remote(first)
            runtime.submitter.session_ended("the end")

        in_loop(runtime, submit_and_end)
        assert ref is not None
        assert ref._entry.error


def test_a_forked_child_does_not_write_to_its_own_files(tmp_path: Path) -> None:
    """FORK: the numbers of closed descriptors are other files soon."""
    program = f"""
import os, pickle
import moray
moray.init(num_cpus=1)
refs = [moray.put(1), moray.put(bytes(300_000))]
pid = os.fork()
if pid == 0:
    files = [open({str(tmp_path)!r} + f"/file{{i}}", "w+b", 0) for i in range(40)]
    for ref in refs:
        for use in (pickle.dumps, lambda ref: ref.future(), lambda ref: ref.__await__()):
            try:
                use(ref)
            except moray.exceptions.MoraySystemError:
                continue
            os._exit(1)
    os._exit(any(os.fstat(file.fileno()).st_size for file in files))
assert os.waitpid(pid, 0)[1] == 0
print("clean")
"""
    assert "clean" in run_driver(program).stdout


# --- processes that come and go ----------------------------------------------------------------------


def test_dead_workers_are_forgotten(runtime: Runtime) -> None:
    def ends() -> None:
        os._exit(3)

    task = remote(ends, max_retries=0)
    moray.wait([task.remote() for _ in range(4)], num_returns=4, timeout=30)
    until(lambda: all(peer.dead is None for peer in list(runtime.peers.values())))
    until(lambda: len(runtime.peers) <= 3)
    assert len(runtime.origins) <= 1 + len(runtime.peers)


# --- many references at once -----------------------------------------------------------------------------------


class HandlerError(Exception):
    """Raised by what stands for a signal handler."""


@moray.remote
def many(count: int) -> list[ObjectRef[int]]:
    return [moray.put(i) for i in range(count)]


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("where", ["while they are made", "before they are noted", "after they are noted"])
def test_a_handler_reads_the_value_that_is_being_read(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, where: str, raises: bool
) -> None:
    """INTERRUPT: each object has one ObjectRef, which counts until it ends, whoever of the two has made it."""
    outer: Any = many.remote(3 * references.MANY)
    moray.wait([outer])
    shell = runtime.references
    seen: list[Any] = []
    calls = itertools.count()

    def handler() -> None:
        monkeypatch.undo()
        seen.extend(moray.get(outer))
        if raises:
            raise HandlerError

    class Events:
        def append(self, event: Any) -> None:
            shell.events = runtime.events
            if where == "before they are noted":
                handler()
            runtime.events.append(event)
            if where == "after they are noted":
                handler()

    def make(kind: Any) -> Any:
        if next(calls) == references.MANY:
            handler()
        return new_ref(kind)

    if where == "while they are made":
        monkeypatch.setattr(references, "new_ref", make)
    else:
        shell.events = Events()  # type: ignore[assignment]
    if raises:
        with pytest.raises(HandlerError):
            moray.get(outer)
    else:
        assert all(one is other for one, other in zip(moray.get(outer), seen, strict=True))
    assert all(one is other for one, other in zip(moray.get(outer), seen, strict=True))
    in_loop(runtime, shell.drain)
    books = [ref._entry.book for ref in seen]

    def counts() -> set[int]:
        shell.drain()
        return {book.local for book in books}

    until(lambda: in_loop(runtime, counts) == {1})
    seen.clear()
    until(lambda: in_loop(runtime, counts) == {0})
    assert moray.get(moray.get(outer)) == list(range(3 * references.MANY))
    outer = None
    until(lambda: not shell.core.foreign)


@pytest.mark.parametrize("count", [2, 3 * references.MANY])
@pytest.mark.parametrize("kept", [False, True], ids=["dropped", "left to the garbage collector"])
def test_a_reader_is_interrupted_when_its_references_were_booked(runtime: Runtime, count: int, kept: bool) -> None:
    """INTERRUPT, REF-FREE: they end with the trace, which drops the weak references in no certain order."""
    outer: Any = many.remote(count)
    first = moray.get(outer)
    shell = runtime.references
    core = shell.core

    def booked() -> set[str]:
        shell.drain()
        return {book.registration.name for book in core.foreign.values()}

    until(lambda: in_loop(runtime, booked) == {"REGISTERED"})
    del first

    class Events:
        def append(self, event: Any) -> None:
            shell.events = runtime.events
            runtime.events.append(event)
            del event
            in_loop(runtime, shell.drain)
            raise HandlerError

    shell.events = Events()  # type: ignore[assignment]
    try:
        moray.get(outer)
    except HandlerError as error:
        assert {book.local for book in core.foreign.values()} - {0} == {1}
        if kept:
            error.kept = error  # type: ignore[attr-defined]
    gc.collect()
    in_loop(runtime, shell.drain)
    assert {book.local for book in core.foreign.values()} == {0}
    assert not shell._strays
    del outer
    until(lambda: not core.foreign)


def test_the_end_of_many_references_crosses_their_arrival(runtime: Runtime) -> None:
    """Those that ended and were not booked yet are made anew."""
    outer = many.remote(3 * references.MANY)
    moray.wait([outer])
    moray.get(outer)
    with loop_held(runtime):
        for _ in range(3):
            refs = moray.get(outer)
        del outer
    assert moray.get(refs) == list(range(3 * references.MANY))
    assert {ref._entry.book.local for ref in refs} == {1}
    del refs
    until(lambda: not runtime.references.core.foreign)
