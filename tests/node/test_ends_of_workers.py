"""The ends of workers as the node hears of them, in orders that whole sessions show rarely."""

from __future__ import annotations

import os
import subprocess
import time
from types import SimpleNamespace
from typing import Any

import pytest

from moray.node.settings import Settings
from moray.node.workers import Worker, Workers
from moray.protocol.reactor import READ, Reactor


def test_an_end_that_nobody_reports_is_told_though_the_worker_is_killed_once_more() -> None:
    """Its template died before it could tell the status, and its job ended when the process had just ended itself."""
    reactor = Reactor()
    lost: list[Worker] = []
    events: Any = SimpleNamespace(worker_lost=lambda worker, _status: lost.append(worker))
    templates: Any = SimpleNamespace(fork=lambda *_: None)
    orphans: Any = SimpleNamespace(worker_ended=lambda *_: None)
    workers = Workers("/nowhere", bytes(4), reactor, templates, orphans, events, Settings(status_wait_s=0.1))
    process = subprocess.Popen(["sleep", "60"])
    try:
        with reactor.lead:
            worker = workers.start(1, "", templates)
            workers.forked(worker.process, process.pid, os.pidfd_open(process.pid))
            assert workers.connected(worker, process.pid)
            process.kill()
            while not worker.dead:
                reactor.turn(1.0)
            workers.kill(worker, "its job has ended")
            workers.grant_grace(worker, "no handle of it was left", 60.0)
            deadline = time.monotonic() + 10
            while not lost and time.monotonic() < deadline:
                reactor.turn(0.2)
        assert lost == [worker]
        assert not workers.of_job(1)
    finally:
        process.kill()
        process.wait()
        reactor.close()


@pytest.mark.parametrize("first", [0, 1])
def test_an_event_is_not_given_to_another_one_with_the_same_number(first: int) -> None:
    reactor = Reactor()
    pipes = [os.pipe(), os.pipe(), os.pipe()]
    heard: list[str] = []

    def swap(other: int) -> None:
        """The other pipe's end is closed, and its number is a quiet pipe's."""
        heard.append("swap")
        reactor.unregister(pipes[other][0])
        os.dup2(pipes[2][0], pipes[other][0])
        reactor.register(pipes[other][0], READ, lambda _events: heard.append("quiet"))

    for number in (0, 1):
        reactor.register(pipes[number][0], READ, lambda _events, other=1 - number: swap(other))  # type: ignore[misc]
    try:
        for number in (first, 1 - first):
            os.write(pipes[number][1], b"x")
        with reactor.lead:
            reactor.turn(1.0)
        assert heard == ["swap"]
    finally:
        reactor.close()
        for pipe in pipes:
            os.close(pipe[0])
            os.close(pipe[1])
