"""Finished tasks on their second way: as the tasks that make lost results again (LINEAGE).

A task that runs again is a new :class:`~moray.runtime.tasks.Task` with the old one's number, and with the entries of
its lost results alone; what else it makes is discarded. A stand-in has a number and entries of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from moray import exceptions
from moray.core.lineage import Run
from moray.ids import tag_of
from moray.object_ref import Entry, ObjectRef
from moray.protocol import messages as m
from moray.runtime.tasks import Call, Task
from moray.runtime.values import dump_error

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.recovery import Recipe, Recovery
    from moray.runtime.runtime import Runtime


class Again:
    """Tasks that are about to run again. Those that are made first come first; `commit` submits them. Loop only."""

    def __init__(self, runtime: Runtime, recovery: Recovery) -> None:
        self._runtime = runtime
        self._recovery = recovery
        self._tasks: list[Task] = []
        #: What stands in, until those that take it hold it.
        self._kept: list[ObjectRef[Any]] = []

    def run(self, run: Run, recipe: Recipe, attempts: int) -> None:
        """Add a task; `attempts` of it are left after this one."""
        if isinstance(recipe.task, Call):
            self._tasks.append(self._call(run, recipe, attempts))
        elif recipe.task.stream is not None:
            self._tasks.append(self._generator(run, recipe, attempts))
        elif not run.stand_in:
            self._tasks.append(self._again(run.task, self._lost(run.task, recipe), recipe, attempts))
        else:
            known = [self._recovery.stand_in(run.task, index) for index in range(recipe.task.options.num_returns)]
            self._kept += [ref for ref in known if ref is not None]
            if not any(known):
                self._tasks.append(self._stand_in(run.task, recipe, attempts))

    def commit(self) -> list[ObjectRef[Any]]:
        """Submit all of them; returns the references of stand-ins."""
        for task in self._tasks:
            if isinstance(task, Call):
                self._runtime.actors.retry(task)
            else:
                self._runtime.submitter.intake.append(task)
        if self._tasks:
            self._runtime.wake()
        return self._kept

    def _lost(self, seq: int, recipe: Recipe) -> list[Entry | None]:
        entry = self._recovery.lost_entry
        return [entry(seq << 32 | index) for index in range(recipe.task.options.num_returns)]

    def _again(self, seq: int, entries: list[Entry | None], recipe: Recipe, attempts: int) -> Task:
        old = recipe.task
        settings = old.options
        # The list has gaps, where nobody asks for a result.
        task = Task(seq, old.function, old.durations, old.payload, None, entries, settings, attempts)  # type: ignore[arg-type]
        self._fill_in(task, recipe)
        return task

    def _stand_in(self, seq: int, recipe: Recipe, attempts: int) -> Task:
        runtime = self._runtime
        number = next(runtime.sequence)
        entries = [Entry(runtime.origin, number << 32 | index) for index in range(recipe.task.options.num_returns)]
        self._kept += [runtime.make_ref(entry) for entry in entries]
        self._recovery.stands_in(seq, entries)
        return self._again(number, list(entries), recipe, attempts)

    def _call(self, run: Run, recipe: Recipe, attempts: int) -> Call:
        old = recipe.task
        assert isinstance(old, Call)
        entries = self._lost(run.task, recipe)
        call = Call(run.task, old.function, old.durations, old.payload, None, entries, old.options, attempts)  # type: ignore[arg-type]
        call.callee = old.callee
        self._fill_in(call, recipe)
        return call

    def _generator(self, run: Run, recipe: Recipe, attempts: int) -> Task:
        old = recipe.task
        stream = Replay(self._runtime, self._recovery)
        spec = old.options.extra or m.TaskExtra()
        extra = msgspec.structs.replace(
            spec, stream=m.StreamSpec(0, -1, spec.stream is not None and spec.stream.dynamic)
        )
        settings = msgspec.structs.replace(old.options, extra=extra)
        task = Task(run.task, old.function, old.durations, old.payload, None, None, settings, attempts)
        task.stream = stream  # type: ignore[assignment]
        self._fill_in(task, recipe)
        for entry in self._recovery.lost_entries(run.task):
            entry.task = task
        return task

    def _fill_in(self, task: Task, recipe: Recipe) -> None:
        """Its arguments and its attempt."""
        reference = self._recovery.reference
        arguments = [
            (where, reference(each, self._kept) if isinstance(each, Entry) else each)
            for where, each in recipe.arguments
        ]
        held = [*recipe.contained, *(ref for _where, ref in arguments)]
        task.arguments, task.held = arguments or None, held or None
        task.attempt = recipe.task.attempt + 1
        task.extra = msgspec.structs.replace(task.options.extra or m.TaskExtra(), attempt=task.attempt)
        for entry in task.entries or ():
            if entry is not None:
                entry.task = task


class Replay:
    """In place of a generator's stream: takes the items that are lost. Loop only."""

    __slots__ = ("_recovery", "_runtime", "dynamic", "raised")

    def __init__(self, runtime: Runtime, recovery: Recovery) -> None:
        self._runtime = runtime
        self._recovery = recovery
        self.dynamic = self.raised = False

    def arrived(self, task: Task, connection: Connection, message: m.StreamItems) -> None:
        """Items came."""
        runtime = self._runtime
        node = tag_of(connection.peer.origin.process)
        for index, item in enumerate(message.items, message.first):
            key = task.seq << 32 | (index + 1)
            entry = self._recovery.lost_entry(key) if message.attempt == task.attempt else None
            if item.handover:
                runtime.references.drain()
                runtime.references.result_arrived(connection.peer, item.handover, [(entry, item.contained)])
            if entry is None:
                if item.size:
                    self._recovery.discard(key, node)
                continue
            entry.blob = None if item.size else item.blob
            if item.size:
                self._recovery.stored(task, entry)
                runtime.values.note_stored(entry, node)
                entry.size = item.size
            else:
                self._recovery.small(entry)
            runtime.submitter.publish(entry)

    def finish(self, task: Task, items: int) -> None:
        """The generator has ended: what is still lost was not made."""
        text = f"{task.options.name}() made {items} items when it was run again, fewer than before"
        self._fail_rest(task, dump_error(exceptions.StreamingGeneratorReplayInconsistentError(text)))

    def keep_what_came(self, task: Task, error: bytes) -> None:
        """The value of a dynamic generator is there already."""

    def fail(self, task: Task, error: bytes) -> None:
        """It has failed."""
        self._fail_rest(task, error)

    def _fail_rest(self, task: Task, error: bytes) -> None:
        for entry in self._recovery.lost_entries(task.seq):
            self._recovery.small(entry)
            entry.error = True
            entry.blob = error
            self._runtime.submitter.publish(entry)

    def replay(self, task: Task) -> None:
        """One more attempt: all items again."""


def runs_again(task: Task, retriable: bool) -> bool:
    """Whether a task that raised is tried again."""
    return bool(retriable and task.options.retries_errors and task.retries_left and not task.cancelled)


def shares(extra: m.ResultExtra, count: int) -> list[list[bytes]]:
    """The references in each of a task's `count` results. An error is one value, which all have that were not made."""
    made = len(extra.blobs)
    return extra.contained[:made] + extra.contained[made:] * (count - made) if extra.error else extra.contained


def take_values(
    runtime: Runtime, task: Task, entries: Sequence[Entry | None], blob: bytes, extra: m.ResultExtra, node: bytes
) -> None:
    """A task has ended, at this node: what it made, the first time or again, becomes its entries' values; if it failed
    then, the others' is that error, `blob`. Nobody wants what has no entry. Loop only."""
    recovery = runtime.recovery
    blobs = extra.blobs or [blob]
    failed = [] if not extra.error else [entry for entry in entries[len(blobs) :] if entry is not None]
    runtime.unfetched.share(failed)
    blobs = blobs + [blob] * (len(entries) - len(blobs))
    for index, entry in enumerate(entries):
        size = extra.stored[index] if index < len(extra.stored) else 0
        if entry is None:
            if size:
                recovery.discard(task.seq << 32 | index, node)
            continue
        if entry in failed:
            entry.error = True  # Before the blob: a thread may be reading what was lost (LINEAGE).
            entry.seen = entry.seen or task.cancelled
        entry.blob = None if size else blobs[index]
        if size:
            recovery.stored(task, entry)
            runtime.values.note_stored(entry, node)
        elif task.attempt:
            recovery.small(entry)
            runtime.values.forget_stored(entry)  # An attempt that died may have left a large value.
        entry.size = size
        runtime.submitter.publish(entry)
    recovery.ended(task)
