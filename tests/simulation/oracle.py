"""Sees everything that processes know, and says what must not be: tasks, objects, fairness.

Tasks: one runs again only if the worker of its last run is dead or that run asked to be retried; under a lease that its
worker has; for its own job. Objects (REF-FREE): none is freed while a living process has a reference or a living
container has it inside; none that arrives is gone; what is read is what was written.

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
from tests.simulation.objects import Arrived, Value
from tests.simulation.world import ViolationError

if TYPE_CHECKING:
    from tests.simulation.objects import Entry
    from tests.simulation.process import Process
    from tests.simulation.submission import Task
    from tests.simulation.universe import Universe


@dataclass
class Run:
    """One try of a task."""

    worker: Process
    attempt: int
    #: It asked for another.
    retried: bool = False


@dataclass
class Record:
    """One submitted task."""

    owner: Process
    since: float
    watched: bool
    runs: list[Run] = field(default_factory=list)
    ended: str = ""


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
        #: The longest wait of a watched task.
        self.longest_s = 0.0

    def next_mark(self) -> int:
        self._marks += 1
        return self._marks

    # --- tasks -------------------------------------------------------------------------------------

    def submitted(self, process: Process, task: Task) -> None:
        watched = process.universe.watching and bool(task.function.index) and b"probe" in task.payload
        self.tasks[process.name, task.seq] = Record(process, process.world.now, watched)

    def started(self, worker: Process, owner: bytes, lease: int, spec: m.TaskSpec) -> None:
        record = self.tasks[owner, spec.seq]
        story = f"task {spec.seq} of {record.owner.title} at {worker.title}, lease {lease}"
        if worker.job != record.owner.job:
            raise ViolationError(f"{story}: a worker of another job")
        if record.ended:
            raise ViolationError(f"{story}: it had ended with {record.ended}")
        for run in record.runs:
            if not run.worker.dead and not run.retried:
                raise ViolationError(f"{story}: it runs or ran at {run.worker.title} already, which lives")
        held = self._universe.node.book.leases.get(lease)
        if not record.owner.dead and (held is None or held.worker != worker.name or held.owner != owner):
            raise ViolationError(f"{story}: the worker does not have this lease: {held}")
        self._check_wait(record)
        record.runs.append(Run(worker, spec.extra.attempt if spec.extra is not None else 0))

    def _check_wait(self, record: Record) -> None:
        waited = self._universe.world.now - record.since
        if record.watched and not record.runs:
            self.longest_s = max(self.longest_s, waited)
            if waited > self._universe.patience_s:
                raise ViolationError(f"a short task of {record.owner.title} waited {waited:.3f} s for its turn")

    def retried(self, process: Process, seq: int) -> None:
        self.tasks[process.name, seq].runs[-1].retried = True

    def ended(self, process: Process, seq: int, how: str) -> None:
        record = self.tasks[process.name, seq]
        if record.ended:
            raise ViolationError(f"task {seq} of {process.title} ended twice: {record.ended}, {how}")
        record.ended = how

    def unended(self) -> list[str]:
        """Tasks of living owners that have not ended."""
        return [
            f"{record.owner.title}/{seq} ({len(record.runs)} runs)"
            for (_, seq), record in self.tasks.items()
            if not record.ended and not record.owner.dead
        ]

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
            pending += [finished.result for finished in process.references.gated.values()]
            pending += process.unsent()
            found.append(msgspec.msgpack.encode(pending))
        return found


def is_lost(entry: Entry) -> bool:
    return isinstance(entry.book, Foreign) and entry.book.registration is Registration.LOST


def is_registered(entry: Entry) -> bool:
    """Whether the owner knows of this process's reference by itself."""
    return not isinstance(entry.book, Foreign) or entry.book.registration is Registration.REGISTERED
