"""``moray.timeline()``: a trace of what ran in the workers."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import time
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import moray
from tests.support.procs import wait_until


def spans(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X" and event["name"] == name]


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_tasks_with_their_durations(shared_session: ModuleType) -> None:
    before = time.monotonic() * 1e6
    ref = moray.remote(nap).options(name="a nap").remote(0.1)
    pid = moray.get(ref)
    after = time.monotonic() * 1e6
    events = moray.timeline()
    assert events is not None
    (span,) = spans(events, "a nap")
    assert span["pid"] == pid
    assert span["cat"] == "task"
    assert 100_000 <= span["dur"] <= after - before
    assert before <= span["ts"] <= span["ts"] + span["dur"] <= after
    assert span["args"] == {"task_id": ref.task_id().hex(), "name": "a nap"}
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert f"pid {pid}" in names[pid]
    assert moray.get_runtime_context().get_node_id()[:8] in names[pid]


def test_failed_tasks_are_there(shared_session: ModuleType) -> None:
    @moray.remote
    def breaks() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        moray.get(breaks.remote())
    assert len(spans(moray.timeline() or [], "breaks")) == 1


class Sleeper:
    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class AsyncSleeper:
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def test_actors(shared_session: ModuleType) -> None:
    sleeper = moray.remote(Sleeper).remote()
    moray.get([sleeper.sleep.remote(0.01) for _ in range(3)])
    events = moray.timeline() or []
    assert len(spans(events, "Sleeper.__init__")) == 1
    calls = spans(events, "Sleeper.sleep")
    assert [(each["cat"], each["tid"]) for each in calls] == [("actor", 0)] * 3
    assert all(first["ts"] + first["dur"] <= then["ts"] for first, then in pairwise(calls))


def test_threads_are_told_apart(shared_session: ModuleType) -> None:
    class Threaded(Sleeper):
        pass

    sleeper = moray.remote(max_concurrency=2)(Threaded).remote()
    moray.get([sleeper.sleep.remote(0.2) for _ in range(2)])
    events = moray.timeline() or []
    first, second = spans(events, "Threaded.sleep")
    assert {first["tid"], second["tid"]} == {1, 2}
    assert second["ts"] < first["ts"] + first["dur"], "they ran at once"


def test_coroutines(shared_session: ModuleType) -> None:
    sleeper = moray.remote(AsyncSleeper).remote()
    moray.get([sleeper.sleep.remote(0.2) for _ in range(2)])
    first, second = spans(moray.timeline() or [], "AsyncSleeper.sleep")
    assert min(first["dur"], second["dur"]) >= 200_000
    assert second["ts"] < first["ts"] + first["dur"]


def test_workers_that_have_ended(shared_session: ModuleType) -> None:
    pid = moray.get(moray.remote(max_calls=1)(nap).options(name="the last").remote(0))
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="the worker's end")
    (span,) = spans(moray.timeline() or [], "the last")
    assert span["pid"] == pid


@pytest.mark.slow
def test_a_worker_that_does_not_answer_is_named(shared_session: ModuleType) -> None:
    moray.get(moray.remote(nap).remote(0))
    # One call into C code that keeps the interpreter for seconds.
    stuck = moray.remote(lambda: (ctypes.PyDLL(None).sleep(3), os.getpid())[1]).remote()
    moray.wait([stuck], timeout=0.3)
    begin = time.monotonic()
    events = moray.timeline() or []
    assert time.monotonic() - begin < 2.5
    pid = moray.get(stuck)
    assert "did not answer" in next(
        e["args"]["labels"] for e in events if e["name"] == "process_labels" and e["pid"] == pid
    )


def test_files_and_tasks(shared_session: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"

    @moray.remote
    def from_a_task() -> int:
        return len(spans(moray.timeline() or [], "nap"))

    pids = moray.get([moray.remote(nap).remote(0) for _ in range(3)])
    assert moray.get(from_a_task.remote()) >= len(pids)
    assert moray.timeline(str(path)) is None
    loaded = json.loads(path.read_text())
    assert len(spans(loaded, "nap")) >= 3
    assert {event["ph"] for event in loaded} == {"M", "X"}
