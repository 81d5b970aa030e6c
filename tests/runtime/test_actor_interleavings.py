"""Interleavings of calls, cancels and connections that once lost something, made to happen (CALL-ORDER, CANCEL)."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return,no-untyped-call"

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from queue import SimpleQueue
from types import MethodType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

import moray
from moray.core.leases import Durations
from moray.core.references_types import Changes
from moray.protocol import messages as m
from moray.runtime import actors, state
from moray.runtime.actor_host import ActorHost
from moray.runtime.cancels import Cancels
from moray.runtime.executor import Executor
from moray.runtime.stream_producer import Producer
from moray.runtime.tasks import Function, KeyPool, Task
from moray.runtime.work import Called, Caller, Queued
from moray.runtime.worker import Worker
from tests.support.procs import wait_until

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Runtime

OWNER = b"o" * 12


# --- cancels in the owner -------------------------------------------------------------------------


def _task(seq: int, cancelled: bool = False) -> Any:
    function = Function(0, "f", b"", 0, Durations(), [])
    settings: Any = SimpleNamespace(name="f")
    return Task(seq, function, function.durations, b"", None, None, settings, 0, cancelled=cancelled)


class Ended(list[int]):
    """Cancels of a runtime that notes what it ends."""

    def __init__(self) -> None:
        submitter = SimpleNamespace(finish_with=lambda task, _blob, _retriable: self.append(task.seq))
        self.pumped: list[Any] = []
        runtime = SimpleNamespace(
            submitter=submitter,
            handlers={},
            origin=SimpleNamespace(tail=b"t" * 16),
            actors=SimpleNamespace(pump_soon=self.pumped.append),
        )
        self.cancels = Cancels(cast("Runtime", runtime))


class Growing(deque[Any]):
    """Another thread appends whenever the loop takes."""

    late: list[Any]

    def popleft(self) -> Any:
        found = super().popleft()
        if self.late:
            self.append(self.late.pop(0))
        return found


def test_calls_that_are_added_while_cancelled_ones_are_removed_stay_last() -> None:
    """A call must not overtake one that the same thread submitted before it."""
    ended = Ended()
    queue = Growing([_task(0), _task(1, cancelled=True), _task(2)])
    queue.late = [_task(3), _task(4, cancelled=True), _task(5)]
    callee = actors.Callee(b"a" * 16, OWNER)
    callee.queue = queue
    ended.cancels._swept[callee] = None
    ended.cancels._sweep()
    assert [task.seq for task in queue] == [0, 2, 3, 4, 5]
    assert ended == [1]
    assert ended.pumped == [callee]


def test_a_cancelled_task_that_its_worker_gave_back_does_not_run_elsewhere() -> None:
    """The cancel has crossed the recall, or was answered "unstarted" before it."""
    ended = Ended()
    pool = KeyPool(1, {}, "", "", 1)
    slot = pool.granted(1, None)
    tasks = [_task(seq) for seq in range(4)]
    slot.running = {task.seq: task for task in tasks}
    tasks[1].cancelled = tasks[2].cancelled = True
    ended.cancels.given_back(pool, pool.recalled(slot, [1, 2, 3]))
    assert [task.seq for task in pool.queue] == [3]
    ended.cancels.requeue(pool, pool.lost(slot))
    assert [task.seq for task in pool.queue] == [0, 3]
    assert ended == [1, 2]


def test_a_forced_cancel_of_what_had_not_begun_ends_no_process() -> None:
    """Another task runs in that worker."""
    ended = Ended()
    cancels, task = ended.cancels, _task(7, cancelled=True)
    told: list[Any] = []
    peer: Any = SimpleNamespace(
        dead=None, slots={3: (None, SimpleNamespace(running={7: task}))}, origin=SimpleNamespace(process=OWNER)
    )
    runtime: Any = cancels._runtime
    runtime.node = SimpleNamespace(send=told.append)
    runtime.submitter.find_sent = lambda _connection, _seq: None
    cancels._forced.add(7)
    cancels._on_answer(cast("Connection", None), m.CancelAnswer(7, 0, "unstarted"))
    cancels._force(task, peer, 3)
    assert not told
    cancels._forced.add(7)
    cancels._on_answer(cast("Connection", None), m.CancelAnswer(7, 0, "interrupting"))
    cancels._force(task, peer, 3)
    assert [type(message) for message in told] == [m.ReturnLease]


# --- an actor that moves --------------------------------------------------------------------------


def test_what_is_held_back_is_the_newest() -> None:
    """A thread of the group has its wake-up, and takes its call after that: the oldest (CALL-ORDER)."""
    host: Any = ActorHost.__new__(ActorHost)
    host._executor = SimpleNamespace(take_calls=list)
    queue: SimpleQueue[None] = SimpleQueue()
    host._queues, host._waiting = {"one": queue}, {"one": deque([1, 2, 3])}
    for _ in range(3):
        queue.put(None)
    queue.get()
    host.hold_back()
    assert list(host.held_back) == [2, 3]
    assert host._waiting["one"].popleft() == 1


def test_a_generator_whose_item_was_not_kept_does_not_pause() -> None:
    """Its consumer can never take that item."""
    worker = SimpleNamespace(blocked=lambda: None, unblocked=lambda: None, block=lambda *_: pytest.fail("it waits"))
    producer: Any = SimpleNamespace(
        _worker=worker,
        _is_congested=lambda: False,
        _must_pause=lambda: True,
        _announce=lambda: None,
        _failure=OSError("the disk"),
        _is_over=lambda: False,
    )
    Producer._pause(producer, None)


# --- cancels in the worker ------------------------------------------------------------------------


def _worker(tmp_path: Path) -> Any:
    worker: Any = SimpleNamespace(session_dir=str(tmp_path), process=b"p" * 12, interrupted=[])
    worker.executor = Executor(cast("Worker", worker))
    worker.interrupts = SimpleNamespace(request=worker.interrupted.append)
    worker.cancels = SimpleNamespace(cancel_children=lambda _work: None)
    worker._find_work = MethodType(Worker._find_work, worker)
    return worker


def _connection(answers: list[str]) -> Any:
    peer = SimpleNamespace(origin=SimpleNamespace(process=OWNER))
    return SimpleNamespace(peer=peer, send=lambda message: answers.append(message.answer))


def test_a_cancel_that_comes_while_the_task_is_taken_from_the_queue(tmp_path: Path) -> None:
    """It is in the main thread's hands only: neither queued nor running."""
    answers: list[str] = []
    worker, connection = _worker(tmp_path), _connection(answers)
    queued = Queued(connection, 1, m.TaskSpec(5, 0, b""))
    Worker._on_cancel(worker, connection, m.CancelTask(5, 0, force=False, recursive=True))
    assert answers == ["finished"]
    executor = worker.executor
    executor.current = queued
    assert executor.unfound
    executor.look_for(queued)
    assert queued.cancelled
    assert not executor.unfound
    other = Queued(connection, 1, m.TaskSpec(6, 0, b""))
    executor.look_for(other)
    assert not other.cancelled


def test_a_cancel_whose_second_look_finds_the_task(tmp_path: Path) -> None:
    """The main thread began it between the two looks."""
    answers: list[str] = []
    worker, connection = _worker(tmp_path), _connection(answers)
    queued = Queued(connection, 1, m.TaskSpec(5, 0, b""))
    note = worker.executor.note_unfound

    def note_and_begin(owner: bytes, seq: int) -> None:
        worker.executor.current = queued
        note(owner, seq)

    worker.executor.note_unfound = note_and_begin
    Worker._on_cancel(worker, connection, m.CancelTask(5, 0, force=False, recursive=True))
    assert answers == ["interrupting"]
    assert worker.interrupted == [queued]
    assert queued.cancelled


def test_what_is_told_unstarted_does_not_start(tmp_path: Path) -> None:
    """The mark is there before the look at what runs, and who begins it looks in the other order."""
    marked: list[bool] = []
    answers: list[str] = []
    worker, connection = _worker(tmp_path), _connection(answers)
    queued = Queued(connection, 1, m.TaskSpec(5, 0, b""))

    class Looking(Executor):
        """Notes whether the task was marked when somebody looked at what runs."""

        @property
        def current(self) -> Any:
            marked.append(queued.cancelled)

        @current.setter
        def current(self, _work: Any) -> None: ...

    worker.executor = Looking(worker)
    worker.executor.queue.append(queued)
    Worker._on_cancel(worker, connection, m.CancelTask(5, 0, force=False, recursive=True))
    assert answers == ["unstarted"]
    assert marked[-1]


def test_unfound_cancels_do_not_pile_up(tmp_path: Path) -> None:
    executor = _worker(tmp_path).executor
    for seq in range(1000):
        executor.note_unfound(OWNER, seq)
    assert len(executor.unfound) <= 100


# --- calls ----------------------------------------------------------------------------------------


def test_a_reply_that_is_sent_again_says_again_what_is_kept() -> None:
    """What it said of references is lost with it, and it ends the caller's holds on the arguments (REF-COVER)."""
    sent: list[m.CallResults] = []
    ran: list[Called] = []
    connection: Any = SimpleNamespace(send=sent.append)
    caller = Caller(OWNER, connection)
    connection.peer = SimpleNamespace(caller=caller)
    host: Any = SimpleNamespace(_dispatch=ran.append)
    calls = m.Calls(0, [m.CallSpec(1, "keep", b""), m.CallSpec(2, "drop", b"")])
    ActorHost.on_calls(host, connection, calls)
    borrows = Changes(1, [(7, 1)])
    ActorHost.post(host, ran[0], m.Result(1, 0, b""), borrows)
    ActorHost.post(host, ran[1], m.Result(2, 0, b""), None)
    sent.clear()
    caller.hello(0, 1)
    ActorHost.on_calls(host, connection, calls)
    assert [(message.results[0].seq, message.borrows) for message in sent] == [(1, borrows), (2, None)]


def test_calls_on_a_connection_that_was_replaced_are_not_heard() -> None:
    ran: list[Called] = []
    old: Any = SimpleNamespace(send=lambda _message: None)
    caller = Caller(OWNER, cast("Connection", SimpleNamespace()))
    old.peer = SimpleNamespace(caller=caller)
    host: Any = SimpleNamespace(_dispatch=ran.append)
    ActorHost.on_calls(host, old, m.Calls(0, [m.CallSpec(1, "method", b"")]))
    assert not ran
    assert caller.accepted == 0


@moray.remote(num_cpus=0)
class Slow:
    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def echo(self, value: Any) -> Any:
        return value


def test_a_window_that_was_filled_exactly_opens_again(moray_session: ModuleType) -> None:
    """Nothing was left in the queue when the last of them was sent: whoever comes later must wake the loop."""
    slow = Slow.remote()
    moray.get(slow.echo.remote(0), timeout=20)
    runtime = state.runtime
    assert runtime is not None
    (callee,) = [each for each in runtime.actors._callees.values() if each.class_name]
    for _ in range(3):
        refs: list[Any] = [slow.sleep.remote(0.3)]
        while len(refs) < actors._WINDOW:
            refs.append(slow.echo.remote(len(refs)))
        wait_until(lambda: len(callee.calls.unanswered) == actors._WINDOW, 10, "a full window")
        moray.get(refs, timeout=20)
        assert moray.get(slow.echo.remote(moray.put("late")), timeout=10) == "late"


def test_calls_to_a_dead_actor_whose_window_was_full_fail(moray_session: ModuleType) -> None:
    slow = Slow.remote()
    refs = [slow.sleep.remote(30), *[slow.echo.remote(i) for i in range(3 * actors._WINDOW)]]
    moray.wait(refs, timeout=0.3)
    moray.kill(slow)
    for ref in refs:
        with pytest.raises(moray.exceptions.ActorDiedError):
            moray.get(ref, timeout=20)
    for late in (slow.echo.remote(1), slow.echo.remote(moray.put(2))):
        with pytest.raises(moray.exceptions.ActorDiedError):
            moray.get(late, timeout=10)
