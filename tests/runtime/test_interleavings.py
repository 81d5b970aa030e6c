"""Schedules that once broke the runtime, each forced rather than hoped for (LEASE, INTERRUPT)."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from moray.protocol import messages as m
from moray.protocol.connection import Connection, encode_frame
from moray.protocol.reactor import WRITE, Reactor
from moray.runtime import state
from moray.runtime.executor import Executor
from moray.runtime.runtime import Runtime
from moray.runtime.worker import Worker


class Pair:
    """A connection, and the bare socket at its other end."""

    def __init__(self, reactor: Reactor) -> None:
        ours, self.other = socket.socketpair()
        self.got: list[m.AnyMessage] = []
        self.connection = Connection(ours, reactor, self.on_message, lambda _connection, _reason: None)

    def on_message(self, _connection: Connection, message: m.AnyMessage) -> None:
        self.got.append(message)

    def close(self) -> None:
        self.connection.close()
        self.other.close()


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


@pytest.fixture
def pair(reactor: Reactor) -> Iterator[Pair]:
    made = Pair(reactor)
    yield made
    made.close()


# --- sending --------------------------------------------------------------------------------


def _fill(pair: Pair) -> None:
    """Send until the socket is full."""
    while not pair.connection.out:
        pair.connection.send(m.LogLines("f", 1, "out", ["x" * 60_000]))


def _read(pair: Pair) -> None:
    """Read what has arrived at the other end."""
    pair.other.setblocking(False)
    try:
        while pair.other.recv(1 << 20):
            pass
    except BlockingIOError:
        pass


def _empty(pair: Pair, reactor: Reactor) -> None:
    """Read at the other end until everything was sent."""
    deadline = monotonic() + 2
    while pair.connection.out and monotonic() < deadline:
        _read(pair)
        reactor.turn(0.05)
    assert not pair.connection.out


@pytest.mark.parametrize("when", ["asking for EPOLLOUT", "taking it back"])
def test_an_interrupt_beside_epoll_ctl_neither_stops_the_connection_nor_makes_the_loop_spin(
    reactor: Reactor, pair: Pair, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    modify = reactor.modify

    def interrupted(fd: int, events: int) -> None:
        modify(fd, events)
        if bool(events & WRITE) == (when == "asking for EPOLLOUT"):
            monkeypatch.setattr(reactor, "modify", modify)
            raise KeyboardInterrupt

    monkeypatch.setattr(reactor, "modify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _fill(pair)
        while True:  # As a user's thread does that sends while there is room again.
            _read(pair)
            pair.connection.flush()
    _empty(pair, reactor)
    reactor.turn(0)
    assert reactor.turn(0) == 0, "EPOLLOUT is still asked for"
    pair.connection.send(m.LogLines("f", 1, "out", ["x" * 8_000_000]))
    _empty(pair, reactor)
    reactor.turn(0)
    assert reactor.turn(0) == 0, "EPOLLOUT is still asked for"


def test_frames_that_two_threads_append_while_a_flush_ends_are_sent(
    reactor: Reactor, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see that EPOLLOUT is asked for and that they are not alone, so both leave the sending to the loop."""
    _fill(pair)
    late = [(encode_frame(m.Fetch([number])), deque[int](), None) for number in (1, 2)]
    modify = reactor.modify

    def switched(fd: int, events: int) -> None:
        if not events & WRITE and not pair.connection.out and late:
            pair.connection.out.extend(late)
            late.clear()
        modify(fd, events)

    monkeypatch.setattr(reactor, "modify", switched)
    while late:  # As a user's thread does that sends while there is room again.
        _read(pair)
        pair.connection.flush()
    assert not pair.connection.out


# --- receiving ---------------------------------------------------------------------------------


def test_a_handler_may_drain_another_connection(reactor: Reactor, pair: Pair) -> None:
    """The frames after the one that is being handled stay what they were."""
    other = Pair(reactor)
    runtime = cast("Runtime", SimpleNamespace(reactor=reactor))

    def on_message(_connection: Connection, message: m.AnyMessage) -> None:
        pair.got.append(message)
        Runtime.drain_connection(runtime, other.connection)

    pair.connection.on_message = on_message
    frames = [m.Fetch([1]), m.Fetch([2]), m.Fetch([3])]
    pair.other.sendall(b"".join(map(encode_frame, frames)))
    other.other.sendall(encode_frame(m.LogLines("other", 1, "out", ["y" * 500])))
    reactor.turn(1)
    assert pair.got == frames
    assert len(other.got) == 1
    other.close()


# --- the worker ------------------------------------------------------------------------------------


def test_results_that_come_while_output_is_sent_wait_for_their_own_output(tmp_path: Path) -> None:
    """The I/O thread sends output, the main thread prints and answers, the I/O thread sends results: not that one."""
    sent: list[list[int]] = []
    connection = SimpleNamespace(send=lambda message: sent.append([result.seq for result in message.results]))
    executor: Executor

    def pump(last: bool = False) -> None:
        if not sent:
            executor._results.append((cast("Connection", connection), m.Result(2, 0, b"")))

    worker = SimpleNamespace(session_dir=str(tmp_path), process=b"p" * 12, output=SimpleNamespace(pump=pump))
    executor = Executor(cast("Worker", worker))
    executor._results.append((cast("Connection", connection), m.Result(1, 0, b"")))
    executor.flush()
    assert sent == [[1]]
    executor.flush()
    assert sent == [[1], [2]]


def _worker(**fields: Any) -> Any:
    """As much of a worker as leases need; what it tells the node is in `told`."""
    told: list[tuple[str, bool]] = []
    lock = threading.RLock()
    return SimpleNamespace(
        told=told,
        node=SimpleNamespace(send=lambda message: told.append((type(message).__name__, lock._is_owned()))),  # type: ignore[attr-defined]
        explainer=SimpleNamespace(arm=lambda: None),
        executor=SimpleNamespace(host=None, return_queue=lambda *_: None, flush=lambda: None, revoked=0),
        _wait_lock=lock,
        waits={},
        revocation=0,
        **fields,
    )


def test_the_node_hears_of_waits_in_the_order_of_their_counts() -> None:
    """Else one thread's Unblocked may pass another's Blocked, and a CPU that is waited for is never lent."""
    worker = _worker()
    Worker.blocked(worker)
    Worker.unblocked(worker)
    assert worker.told == [("Blocked", True), ("Unblocked", True)]


def test_a_busy_main_thread_answers_a_revocation_itself() -> None:
    """It may have taken a task from the queue that nobody sees yet: an answer of the loop's would let it run twice."""
    worker = _worker(_busy=True)
    worker.answer_revocation = lambda: worker.told.append(("answered", True))
    Worker._on_revoke(worker, cast("Connection", None), m.RevokeLease(7))
    assert worker.revocation == 7
    assert not worker.told
    worker._busy = False
    Worker._on_revoke(worker, cast("Connection", None), m.RevokeLease(7))
    assert worker.told


# --- owners ---------------------------------------------------------------------------------------------


def test_a_result_that_came_before_the_end_of_its_lease_counts(moray_session: ModuleType, tmp_path: Path) -> None:
    """The result is in the worker's socket, unread, when the node's LeaseRevoked is handled: the task ran, once."""

    @moray_session.remote
    def note() -> None:
        os.open(tmp_path / str(len(os.listdir(tmp_path))), os.O_CREAT)

    moray_session.get(note.remote())
    runtime = state.runtime
    assert runtime is not None
    revoked: list[int] = []

    def revoke() -> None:
        for peer in list(runtime.peers.values()):
            runtime.submitter.settle(peer.connection) if peer.connection is not None else None
            for lease, (_pool, slot) in list(peer.slots.items()):
                deadline = monotonic() + 5
                while slot.running and not slot.worker[0].readable() and monotonic() < deadline:
                    pass
                if slot.running:
                    revoked.append(lease)
                    runtime.submitter._on_revoked(runtime.node, m.LeaseRevoked(lease))

    for _ in range(5):
        before = len(os.listdir(tmp_path))
        done = note.remote()
        runtime.call_soon(revoke)
        moray_session.get(done)
        moray_session.get([note.remote()])
        assert len(os.listdir(tmp_path)) == before + 2


def test_a_task_whose_result_holds_references_runs_once_though_its_lease_is_revoked(tmp_path: Path) -> None:
    """The result is on its way through the reference protocol when the running task ends: it is not sent yet."""
    import moray

    with moray.init(num_cpus=1):

        @moray.remote(num_cpus=1)
        def holder(number: int) -> list[Any]:
            os.mkdir(tmp_path / str(number))  # Fails the second time.
            deadline = monotonic() + 0.05
            while monotonic() < deadline:
                pass
            return [moray.put(number)]

        @moray.remote(num_cpus=0.5)
        def other() -> None:
            deadline = monotonic() + 0.05
            while monotonic() < deadline:
                pass

        moray.get(other.remote())
        holders = [holder.remote(number) for number in range(12)]
        others = [other.remote() for _ in range(12)]
        assert moray.get([inner for (inner,) in moray.get(holders, timeout=20)], timeout=20) == list(range(12))
        moray.get(others, timeout=20)


def test_a_late_result_of_a_lost_task_hides_no_other(moray_session: ModuleType) -> None:
    """It came last in a message, and the worker's books were not kept: its lease was never given back."""
    runtime = state.runtime
    assert runtime is not None
    take = runtime.handlers[m.Results]

    def with_a_stranger(connection: Any, message: m.Results) -> None:
        message.results.append(m.Result(1 << 40, 1, b"N"))
        take(connection, message)

    runtime.handlers[m.Results] = with_a_stranger
    assert moray_session.get(moray_session.remote(lambda: 7).remote()) == 7
    deadline = monotonic() + 10
    while moray_session.available_resources().get("CPU") != 2 and monotonic() < deadline:
        sleep(0.05)
    assert moray_session.available_resources()["CPU"] == 2
