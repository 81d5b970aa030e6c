"""The simulated node's object store: messages in, answers and disk work out (the counterpart of moray.store.server)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from moray.core.object_table import ObjectTable
from moray.core.object_table_types import (
    Action,
    AwaitRecalls,
    Created,
    DeleteFile,
    Done,
    Extend,
    Failed,
    Granted,
    MakeFile,
    Pinned,
    Recall,
    Restore,
    Spill,
)
from moray.protocol import messages as m
from tests.simulation.memory import Memory
from tests.simulation.world import World

#: How long the disk takes at most.
_DISK_S: Final = 0.02
#: How long the queue waits for answers to recalls.
_RECALL_S: Final = 0.05


class Store:
    """The object table's hands."""

    def __init__(
        self, world: World, memory: Memory, capacity: int, failing: float, send: Callable[[bytes, m.Message], None]
    ) -> None:
        self._world = world
        self._memory = memory
        #: How often the machine refuses pages.
        self._failing = failing
        self._send = send
        self.table = ObjectTable(capacity, capacity)
        # A few per cent of such small arenas would be nothing.
        self.table._ahead._limit_of_one = capacity // 8
        self.table._ahead._limit_of_all = capacity // 2
        self._handlers: dict[type, Callable[[bytes, Any], list[Action]]] = {
            m.CreateObject: lambda process, message: self.table.create(
                process, message.request, message.object, message.size
            ),
            m.SealObject: self._seal,
            m.PinObject: lambda process, message: self.table.pin(process, message.request, message.object),
            m.UnpinObjects: lambda process, message: self.table.unpin(process, message.objects),
            # Whoever makes the list may make it from a set, whose order is no seed's.
            m.FreeObjects: lambda _process, message: self.table.free(sorted(message.objects)),
            m.AbortObject: self._abort,
        }
        self._performers: dict[type, Callable[[Any], None]] = {
            Created: lambda action: send(
                action.process, m.ObjectCreated(action.request, action.offset, _path(action.file))
            ),
            Pinned: lambda action: send(
                action.process, m.ObjectPinned(action.request, action.offset, action.size, _path(action.file))
            ),
            Done: lambda action: send(action.process, m.StoreDone(action.request)),
            Failed: lambda action: send(action.process, m.StoreError(action.request, action.code, action.detail)),
            Extend: self._extend,
            Spill: self._spill,
            Restore: self._restore,
            MakeFile: self._make_file,
            DeleteFile: lambda action: self._later(lambda: self._delete(action.file)),
            Granted: lambda action: send(action.process, m.SpaceGranted(action.size, action.places)),
            Recall: lambda action: send(action.process, m.RecallSpace(action.number, action.keep)),
            AwaitRecalls: self._await_recalls,
        }

    def handle(self, process: bytes, message: m.Message) -> None:
        self._perform(self._handlers[type(message)](process, message))

    def holds(self, name: bytes) -> bool:
        return self.table.state_of(name) is not None

    def process_died(self, process: bytes) -> None:
        self._perform(self.table.process_died(process))

    def _seal(self, process: bytes, message: m.SealObject) -> list[Action]:
        table, request, name = self.table, message.request, message.object
        if message.place:
            actions = table.seal_place(process, request, name, message.place, message.size)
        else:
            actions = table.seal(process, request, name)
        return actions + (table.grant_ahead(process, message.ahead, message.ahead_size) if message.ahead else [])

    def _abort(self, process: bytes, message: m.AbortObject) -> list[Action]:
        if message.object:
            return self.table.abort(process, message.object)
        return self.table.give_back(process, message.places, message.recall)

    def _await_recalls(self, action: AwaitRecalls) -> None:
        self._world.at(_RECALL_S, "recalls are overdue", lambda: self._perform(self.table.recalls_overdue(action.last)))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if performer := self._performers.get(type(action)):
                performer(action)
        self.table.check()

    def _later(self, job: Callable[[], list[Action]]) -> None:
        """Disk work takes time, and is done in its order by one thread."""
        self._world.at(self._world.random.random() * _DISK_S, "disk", lambda: self._perform(job()))

    def _extend(self, action: Extend) -> None:
        def job() -> list[Action]:
            if self._world.chance(self._failing):
                return self.table.extended(0)
            self._memory.backed = action.offset + action.size
            return self.table.extended(action.size)

        self._later(job)

    def _spill(self, action: Spill) -> None:
        def job() -> list[Action]:
            if self._world.chance(self._failing):
                return self.table.spilled("no space left on device")
            for position, offset, size in action.parts:
                self._memory.copy((0, offset), (action.file, position), size)
            return self.table.spilled()

        self._later(job)

    def _restore(self, action: Restore) -> None:
        def job() -> list[Action]:
            self._memory.copy((action.file, action.position), (0, action.offset), action.size)
            return self.table.restored(action.ticket)

        self._later(job)

    def _make_file(self, action: MakeFile) -> None:
        def job() -> list[Action]:
            self._memory.make_file(action.file)
            return self.table.file_made(action.file)

        self._later(job)

    def _delete(self, file: int) -> list[Action]:
        self._memory.delete(file)
        return []


def _path(file: int) -> str:
    return str(file) if file else ""
