"""``moray.timeline()``: what ran where and when, as a trace that browsers show (chrome://tracing, ui.perfetto.dev).

Every worker remembers what it has finished (:class:`Events`). Living ones are asked directly; those that ended in
an orderly way have left a file in the session's directory. All clocks are the machine's monotonic one.
"""

from __future__ import annotations

import os
from _thread import get_ident
from collections import deque
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.local_mode import LocalRuntime
    from moray.runtime.runtime import Runtime
    from moray.runtime.worker import Worker

#: Finished tasks that each process remembers.
KEPT: Final = 10_000
#: A worker that has not answered after so long is left out.
ANSWER_S: Final = 1.0
_FILE: Final = "events-"


class Events(deque[Any]):
    """What ran in a worker: (name, seq, owner's connection, begin, duration), in ns, and the thread if not the main."""

    def __init__(self) -> None:
        super().__init__(maxlen=KEPT)
        self._main = get_ident()
        #: `append` for the main thread, in C.
        self.append_main = super().append

    def append(self, event: tuple[Any, ...]) -> None:
        """Add what ran in this thread. Any thread."""
        thread = get_ident()
        super().append(event if thread == self._main else (*event, thread))


class ProcessEvents(msgspec.Struct):
    """What ran in one process."""

    pid: int
    #: The class of the actor that it was; "": it ran tasks.
    actor: str
    #: As in TaskEvents.
    events: list[tuple[str, bytes, int, int, int]]
    #: Why there are none.
    missing: str = ""


# --- in a worker -----------------------------------------------------------------------------------


def on_get_events(worker: Worker, connection: Connection, message: m.GetEvents) -> None:
    """Somebody wants to know. Loop only."""
    own = own_events(worker)
    connection.send(m.TaskEvents(message.request, own.events, own.actor))


def own_events(worker: Worker) -> ProcessEvents:
    """What ran here so far."""
    host = worker.executor.host
    actor = host.creation.class_name if host is not None else ""
    events = []
    for name, seq, connection, begin, took, *thread in list(worker.executor.events):
        peer = connection.peer if connection is not None else None
        task_id = seq.to_bytes(8, "big") + peer.origin.tail if peer is not None else b""
        full = name if not actor or name.startswith(f"{actor}.") else f"{actor}.{name}"
        events.append((full, task_id, begin, took, thread[0] if thread else 0))
    return ProcessEvents(worker.pid, actor, events)


def save(worker: Worker) -> None:
    """The process ends: leave what ran here to whoever asks later."""
    if not worker.executor.events or worker.node.closed:
        return
    path = f"{worker.session_dir}/{_FILE}{worker.process.hex()}.msgpack"
    try:
        with open(f"{path}.new", "wb") as file:
            file.write(msgspec.msgpack.encode(own_events(worker)))
        os.rename(f"{path}.new", path)
    except OSError:
        pass  # The session's directory has gone, or the disk is full: a process that ends has nobody to tell.


# --- in whoever asks ----------------------------------------------------------------------------------


def trace(runtime: Runtime) -> list[dict[str, Any]]:
    """The trace's events, oldest first."""
    node = runtime.welcome.node_id.hex()[:8]
    if runtime.kind == "local":
        local: Any = runtime
        return _render(node, [_of_local_mode(local)])
    runtime.check_usable()
    found = _ask_living(runtime) | _read_files(runtime.session_dir)
    if runtime.kind == "worker":
        asking: Any = runtime
        found[runtime.process.hex()] = own_events(asking)
    return _render(node, list(found.values()))


def _of_local_mode(runtime: LocalRuntime) -> ProcessEvents:
    return ProcessEvents(os.getpid(), "", list(runtime.events))


def _ask_living(runtime: Runtime) -> dict[str, ProcessEvents]:
    """Process (hex) → what ran there."""
    state = runtime.ask(m.ClusterInfo).state
    job = runtime.welcome.job_id
    workers = {
        worker["process"]: worker["pid"]
        for worker in state["workers"]
        if worker["job"] == job and worker["pid"] and worker["process"] != runtime.process.hex()
    }
    answers: deque[tuple[str, Any]] = deque()
    numbers: dict[str, int] = {}
    waiter = runtime.new_waiter()

    def answered(process: str, answer: Any) -> None:
        answers.append((process, answer))
        waiter.notify()

    def ask(process: str) -> None:
        if not runtime.send(runtime.peer(bytes.fromhex(process)), m.GetEvents(numbers[process])):
            runtime.pending.pop(numbers[process], None)
            answered(process, None)

    runtime.handlers[m.TaskEvents] = runtime.on_answer
    for process in workers:
        number = numbers[process] = next(runtime._requests)
        runtime.pending[number] = partial(answered, process)
        runtime.call_soon(partial(ask, process))
    deadline = monotonic() + ANSWER_S
    try:
        while len(answers) < len(workers) and runtime.block(waiter, deadline):
            pass
    finally:
        for number in numbers.values():
            runtime.pending.pop(number, None)
    found = {
        process: ProcessEvents(pid, "", [], f"it did not answer within {ANSWER_S:g} s")
        for process, pid in workers.items()
    }
    for process, answer in list(answers):
        if isinstance(answer, m.TaskEvents):
            found[process] = ProcessEvents(workers[process], answer.actor, answer.events)
        else:
            found[process].missing = "it could not be reached"
    return found


def _read_files(session_dir: str) -> dict[str, ProcessEvents]:
    """What processes that have ended left."""
    found = {}
    for entry in os.scandir(session_dir):
        if entry.name.startswith(_FILE) and entry.name.endswith(".msgpack"):
            with open(entry.path, "rb") as file:
                process = entry.name.removeprefix(_FILE).removesuffix(".msgpack")
                found[process] = msgspec.msgpack.decode(file.read(), type=ProcessEvents)
    return found


def _render(node: str, processes: list[ProcessEvents]) -> list[dict[str, Any]]:
    """Chrome's trace event format: metadata first, then complete events by their begin."""
    metadata: list[dict[str, Any]] = []
    spans: list[dict[str, Any]] = []
    for process in processes:
        if not process.events and not process.missing:
            continue
        what = f"actor {process.actor}" if process.actor else "worker"
        metadata.append(_named("process_name", process.pid, 0, f"{what} (node {node}, pid {process.pid})"))
        if process.missing:
            labels = {"labels": f"left out: {process.missing}"}
            metadata.append({"name": "process_labels", "ph": "M", "pid": process.pid, "tid": 0, "args": labels})
        # The main thread is 0; others are numbered as they come.
        threads = {0: 0}
        for name, task_id, begin, took, thread in process.events:
            number = threads.setdefault(thread, len(threads))
            spans.append(
                {
                    "name": name,
                    "cat": "actor" if process.actor else "task",
                    "ph": "X",
                    "ts": begin / 1000,
                    "dur": took / 1000,
                    "pid": process.pid,
                    "tid": number,
                    "args": {"task_id": task_id.hex(), "name": name},
                }
            )
        for number in threads.values():
            text = f"thread {number}" if number else "main thread"
            metadata.append(_named("thread_name", process.pid, number, text))
    spans.sort(key=lambda span: span["ts"])
    return metadata + spans


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
