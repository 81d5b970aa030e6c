"""Sees everything that processes know, and says what must not be: tasks, objects, fairness.

Tasks: one runs again only if the worker of its last run is dead or that run asked to be retried; under a lease that its
worker has; for its own job; its error is one that had a cause. Calls and actors: :mod:`tests.simulation.calls_oracle`.
Cancels (CANCEL): only what somebody asked for, or a part of it, is cancelled; what its worker said had not begun never
begins; no cancelled task is tried again. Streams (STREAM-1): a consumer takes the items one by one. Objects
(REF-FREE): none is freed while a living process has a reference or a living container has it inside; none that arrives
is gone; what is read is what was written.

Exceptions. When a process dies, references that only it covered may be lost: those unregistered or on their way at that
moment, what it owned, and all that is inside of these. They are *excused* from then on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from moray.core.references import Foreign, Registration
from moray.protocol import messages as m
from tests.simulation.calls_oracle import CallsOracle
from tests.simulation.objects import Arrived, Finished, ItemMade, Value
from tests.simulation.submission import Call, Task
from tests.simulation.world import ViolationError

if TYPE_CHECKING:
    from tests.simulation.objects import Entry
    from tests.simulation.process import Process
    from tests.simulation.universe import Universe


@dataclass
class Run:
    """One try of a task."""

    worker: Process
    attempt: int
    #: It asked for another.
    retried: bool = False
    #: Its answer was lost with a connection.
    unheard: bool = False
    #: Of a call: of the actor.
    incarnation: int = -1


@dataclass
class Record:
    """One submitted task or call."""

    owner: Process
    since: float
    watched: bool
    #: Of a call.
    actor: bytes = b""
    runs: list[Run] = field(default_factory=list)
    ended: str = ""
    #: The attempt that was to be the last: it was cancelled then; -1: it was not.
    last: int = -1
    #: Its worker has said that it never begins.
    unstarted: bool = False
    #: It raised, and came again behind later ones.
    reordered: bool = False

    def check_start(self, story: str, attempt: int) -> None:
        """It may be run."""
        if self.ended:
            raise ViolationError(f"{story}: it had ended with {self.ended}")
        if self.unstarted:
            raise ViolationError(f"{story}: its owner has been told that it would never begin (CANCEL)")
        if 0 <= self.last < attempt:
            raise ViolationError(f"{story}: it was cancelled in attempt {self.last}, this is {attempt} (CANCEL)")


class Oracle:
    """The judge of tasks and objects."""

    def __init__(self, universe: Universe) -> None:
        self._universe = universe
        self.tasks: dict[tuple[bytes, int], Record] = {}
        #: Objects that have been freed.
        self._freed: set[bytes] = set()
        self._excused: set[bytes] = set()
        #: Object → what its value contains, and how many living values contain an object.
        self._contents: dict[bytes, list[bytes]] = {}
        self._living: dict[bytes, list[bytes]] = {}
        self._inside: Counter[bytes] = Counter()
        #: What was written for a stored object, by all tries.
        self._written: dict[bytes, set[bytes]] = {}
        self._marks = 0
        self.calls = CallsOracle(universe)
        #: Objects whose tasks somebody wanted to end.
        self._unwanted: set[bytes] = set()
        #: The longest wait of a watched task.
        self.longest_s = 0.0

    def next_mark(self) -> int:
        self._marks += 1
        return self._marks

    # --- tasks -------------------------------------------------------------------------------------

    def submitted(self, process: Process, task: Task) -> None:
        watched = process.universe.watching and bool(task.function.index) and b"probe" in task.payload
        actor = task.callee.actor if isinstance(task, Call) else b""
        self.tasks[process.name, task.seq] = Record(process, process.world.now, watched, actor)

    def started(self, worker: Process, owner: bytes, lease: int, spec: m.TaskSpec) -> None:
        record = self.tasks[owner, spec.seq]
        attempt = spec.extra.attempt if spec.extra is not None else 0
        story = f"task {spec.seq} of {record.owner.title} at {worker.title}, lease {lease}"
        if worker.job != record.owner.job:
            raise ViolationError(f"{story}: a worker of another job")
        record.check_start(story, attempt)
        for run in record.runs:
            if not run.worker.dead and not run.retried:
                raise ViolationError(f"{story}: it runs or ran at {run.worker.title} already, which lives")
        held = self._universe.node.book.leases.get(lease)
        if not record.owner.dead and (held is None or held.worker != worker.name or held.owner != owner):
            raise ViolationError(f"{story}: the worker does not have this lease: {held}")
        self._check_wait(record)
        record.runs.append(Run(worker, attempt))

    def call_started(self, worker: Process, caller: bytes, spec: m.CallSpec) -> None:
        """A method begins at its actor."""
        record = self.tasks[caller, spec.seq]
        attempt = spec.extra.attempt if spec.extra is not None else 0
        story = f"call {spec.seq} of {record.owner.title} at {worker.title}"
        record.check_start(story, attempt)
        host = self.calls.host_of(worker, record, story)
        self.calls.check_order(host, caller, spec.seq, record, story)
        record.runs.append(Run(worker, attempt, incarnation=host.incarnation))

    def _check_wait(self, record: Record) -> None:
        waited = self._universe.world.now - record.since
        if record.watched and not record.runs:
            self.longest_s = max(self.longest_s, waited)
            if waited > self._universe.patience_s:
                raise ViolationError(f"a short task of {record.owner.title} waited {waited:.3f} s for its turn")

    def retried(self, process: Process, task: Task) -> None:
        record = self.tasks[process.name, task.seq]
        record.runs[-1].retried = record.reordered = True

    def out_of_reach(self, process: Process, task: Task) -> None:
        """Its owner has lost the connection to its worker, and the lease."""
        for run in self.tasks[process.name, task.seq].runs:
            run.retried = run.unheard = self._universe.unheard = True
        if not self._universe.breaks:
            raise ViolationError(f"task {task.seq} of {process.title} is given up, but no connection was lost")

    def ended(self, process: Process, task: Task, how: str) -> None:
        record = self.tasks[process.name, task.seq]
        story = f"task {task.seq} of {process.title}"
        if record.ended:
            raise ViolationError(f"{story} ended twice: {record.ended}, {how}")
        record.ended = how
        if how == "cancelled" and record.last < 0:
            raise ViolationError(f"{story} was cancelled, and nobody had asked for that")
        if how == "crashed" and not any(run.worker.dead or run.unheard for run in record.runs):
            raise ViolationError(f"{story} has crashed, but no worker of it is dead")
        if record.actor:
            self.calls.check_end(record, how, story)
        self._universe.unheard |= how == "stream lost"
        if how == "stream lost" and not (record.actor and self._universe.breaks):
            raise ViolationError(f"{story}: items of its stream were lost, but no connection was")
        if how == "stream inconsistent" and b"uneven" not in task.payload:
            raise ViolationError(f"{story}: its stream is said to be inconsistent, but its items are the same")

    def cancelled_object(self, object_id: bytes) -> None:
        """User code wants the task of this object to end."""
        self._unwanted.add(object_id)

    def cancelled(self, process: Process, task: Task) -> None:
        """Its owner begins to end a task."""
        asked = any(entry.id in self._unwanted for entry in task.entries)
        dropped = task.stream is not None and task.stream.inbox.dropped
        inherited = task.parent is not None and task.parent.cancelled and not task.parent.spares_children
        if not (asked or dropped or inherited):
            raise ViolationError(f"task {task.seq} of {process.title} is cancelled, and nobody has asked for that")
        record = self.tasks[process.name, task.seq]
        if record.last < 0:
            record.last = task.attempt

    def answered_cancel(self, worker: Process, owner: bytes, seq: int, answer: str) -> None:
        """A worker answers a cancel."""
        if answer == "unstarted":
            self.tasks[owner, seq].unstarted = True
        elif answer == "interrupting":
            self.calls.cancelled(worker, owner, seq)

    def interrupted(self, worker: Process, owner: bytes, seq: int) -> None:
        """A worker ends a running task."""
        record = self.tasks[owner, seq]
        self.calls.interrupted(worker, owner, seq)
        if record.last < 0 and not (record.owner.dead or record.owner.leaving):
            raise ViolationError(f"task {seq} of {owner!r} was interrupted, and nobody had asked for that (CANCEL)")

    def took(self, object_id: bytes, before: int) -> None:
        """The consumer of a stream took an item after so many others."""
        index = int.from_bytes(object_id[24:28], "big") - 1
        if index != before:
            raise ViolationError(f"item {index} of a stream was taken after {before} others (STREAM-1)")

    def unended(self) -> list[str]:
        """Tasks of living owners that have not ended."""
        return [
            f"{record.owner.title}/{seq} ({self._where(record, seq)})"
            for (_, seq), record in self.tasks.items()
            if not record.ended and not record.owner.dead
        ]

    @staticmethod
    def _where(record: Record, seq: int) -> str:
        """What is known of a task that does not end."""
        runs = ", ".join(f"{run.worker.title}{' (dead)' * run.worker.dead}" for run in record.runs)
        task = record.owner.submitter.pending[seq]
        if not isinstance(task, Call):
            return f"a task run at [{runs}]"
        callee = task.callee
        return f"a call of {callee.actor!r}, which is {callee.state} ({callee.reason}), run at [{runs}]"

    # --- objects -------------------------------------------------------------------------------------

    def made(self, process: Process, entry: Entry, contained: list[bytes]) -> None:
        """An object has its value now."""
        self._contents[entry.id] = contained
        if entry.alive is None and (entry.book is None or getattr(entry.book, "freed", False)):
            return
        for object_id in contained:
            self._must_be_there(process, object_id, f"it is inside {entry.id.hex()}")
        self._living[entry.id] = contained
        self._inside.update(contained)

    def arrived(self, process: Process, object_id: bytes) -> None:
        """A reference came out of a value."""
        self._must_be_there(process, object_id, "it has just arrived")

    def freed(self, process: Process, entry: Entry) -> None:
        """The owner gives an object up."""
        object_id = entry.id
        if object_id in self._freed:
            return
        self._freed.add(object_id)
        self._inside.subtract(self._living.pop(object_id, ()))
        if object_id in self._excused:
            return
        if self._inside[object_id] > 0:
            raise ViolationError(f"object {object_id.hex()} was freed inside a living value (REF-FREE)")
        for other in self._universe.living():
            found = entry if other is process else other.entries.get(object_id)
            if found is not None and found.alive is not None and found.alive.holders and not is_lost(found):
                raise ViolationError(
                    f"object {object_id.hex()} was freed, but {other.title} has a reference (REF-FREE)"
                )

    def lost(self, process: Process, object_id: bytes) -> None:
        """A borrower was told that the object is gone."""
        if not self._is_excused(object_id):
            raise ViolationError(f"{process.title} lost object {object_id.hex()}, whose owner lives")

    def got(self, process: Process, object_id: bytes, value: Value) -> None:
        """User code has read a value."""
        if value.error in {"lost", "freed"} and not self._is_excused(object_id):
            raise ViolationError(f"{process.title} got {value.error!r} for object {object_id.hex()}, whose owner lives")

    def wrote(self, object_id: bytes, content: bytes) -> None:
        self._written.setdefault(object_id, set()).add(content)

    def read(self, process: Process, object_id: bytes, content: bytes) -> None:
        if content not in self._written.get(object_id, ()):
            raise ViolationError(f"{process.title} found something else in the place of {object_id.hex()} (STORE-PIN)")

    def read_failed(self, process: Process, object_id: bytes, why: str) -> None:
        if not self._is_excused(object_id):
            raise ViolationError(f"{process.title} cannot read object {object_id.hex()}: {why}")

    def refused(self, object_id: bytes, code: str, detail: str) -> None:
        """The store did not take an object."""
        if code != "full" and not self._is_excused(object_id):
            raise ViolationError(f"object {object_id.hex()} could not be made: {code}, {detail}")

    def _must_be_there(self, process: Process, object_id: bytes, why: str) -> None:
        if object_id in self._freed and not self._is_excused(object_id):
            raise ViolationError(f"{process.title} has object {object_id.hex()} ({why}), which was freed (REF-COVER)")

    def _is_excused(self, object_id: bytes) -> bool:
        owner = self._universe.processes.get(object_id[8:20])
        return object_id in self._excused or owner is None or owner.dead

    # --- deaths ------------------------------------------------------------------------------------------

    def died(self, process: Process) -> None:
        """What only the dead process kept alive may go."""
        self.calls.died(process)
        for object_id in [each for each in self._living if each[8:20] == process.name]:
            self._inside.subtract(self._living.pop(object_id))
        todo = [object_id for object_id in self._contents if object_id[8:20] == process.name]
        for other in self._universe.living():
            todo += [object_id for object_id, entry in other.entries.items() if not is_registered(entry)]
        on_the_way = b"".join(self._messages())
        todo += [object_id for object_id in self._known() if object_id in on_the_way]
        while todo:
            object_id = todo.pop()
            if object_id not in self._excused:
                self._excused.add(object_id)
                todo += self._contents.get(object_id, ())

    def _known(self) -> list[bytes]:
        known: dict[bytes, None] = dict.fromkeys(self._contents)
        for process in self._universe.living():
            known |= dict.fromkeys(process.entries)
        return [object_id for object_id in known if object_id not in self._freed]

    def _messages(self) -> list[bytes]:
        """Everything that is on its way between processes, or in a worker's queue."""
        found: list[bytes] = []
        for process in self._universe.processes.values():
            for end in process.ends:
                found += [frame for frame in end.inbox if frame is not None]
            pending: list[Any] = [event.ref.entry.id for event in process.events if isinstance(event, Arrived)]
            for gated in process.references.gated.values():
                if isinstance(gated, Finished):
                    pending.append(gated.result)
                elif isinstance(gated, ItemMade):
                    pending.append(gated.item)
            pending += process.unsent()
            found.append(msgspec.msgpack.encode(pending))
        return found


def is_lost(entry: Entry) -> bool:
    return isinstance(entry.book, Foreign) and entry.book.registration is Registration.LOST


def is_registered(entry: Entry) -> bool:
    """Whether the owner knows of this process's reference by itself."""
    return not isinstance(entry.book, Foreign) or entry.book.registration is Registration.REGISTERED
