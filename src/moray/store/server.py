"""The node's side of the object store: messages in, answers and disk work out.

It runs inside the node's single-threaded loop and decides nothing: each message is an event of
:class:`~moray.core.object_table.ObjectTable`, and what that returns is carried out here, in order.
What blocks goes to :class:`~moray.store.disk.DiskThread` and comes back through `post`.

The arena is one ``memfd``: it has no name, so nothing can be left behind, and no mount limits it (a
container's /dev/shm often has 64 MB). Its size is fixed, its pages are not: they are reserved piece by piece, each
before space in it is granted (STORE-SPACE). What it holds belongs to processes (LIVENESS): the node
calls :meth:`StoreServer.process_died`, and only then.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from moray.core.object_table import ObjectTable
from moray.core.object_table_state import SPILL_FILE_BYTES
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
    Warn,
)
from moray.platform import machine
from moray.protocol.messages import (
    AbortObject,
    CreateObject,
    FreeObjects,
    Message,
    ObjectCreated,
    ObjectPinned,
    PinObject,
    RecallSpace,
    SealObject,
    SpaceGranted,
    StoreDone,
    StoreError,
    UnpinObjects,
)
from moray.store import disk

#: One part in so many of the free memory is never taken.
_SPARED: Final = 16
#: The arena grows by as much at once in the loop itself (0.2 ms a MiB); more is left to the disk thread.
_GROW_IN_LOOP: Final = 4 << 20
#: How long a creation that finds no room waits for space that was granted ahead. An I/O thread that is not
#: kept from running answers within a millisecond, behind Python code within a few.
_RECALL_S: Final = 0.05


class StoreServer:
    """The object store of one node.

    Args:
        arena_bytes: size of the shared memory that clients map.
        directory: where spilled objects go; made when first needed.
        send: sends a message to a process (a dead one is the node's business).
        warn: tells the user a line of text.
        post: runs a callable in the loop; may be called from any thread.
        spill_file_bytes: size at which a file of spilled objects is full.
    """

    def __init__(
        self,
        arena_bytes: int,
        directory: str,
        send: Callable[[bytes, Message], None],
        warn: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
        spill_file_bytes: int = SPILL_FILE_BYTES,
    ) -> None:
        #: The arena's file; the node passes it to each client once.
        self.fd = os.memfd_create("moray-objects", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, arena_bytes)
        self._directory = directory
        self._send = send
        self._warn = warn
        self._table = ObjectTable(arena_bytes, spill_file_bytes)
        self._disk = disk.DiskThread(post)
        #: Numbers of files that may be on disk.
        self._files: set[int] = set()
        #: Actions not yet carried out, and whether somebody up the stack is at it.
        self._todo: deque[Action] = deque()
        self._performing = False
        #: Set when nobody waits for recalls, so that the disk thread goes on.
        self._recalls_over = threading.Event()
        self._closed = False
        self._handlers: dict[type[Message], Callable[[bytes, Any], list[Action]]] = {
            CreateObject: lambda process, m: self._table.create(process, m.request, m.object, m.size),
            SealObject: self._seal,
            PinObject: lambda process, m: self._table.pin(process, m.request, m.object),
            UnpinObjects: lambda process, m: self._table.unpin(process, m.objects),
            FreeObjects: lambda _, m: self._table.free(m.objects),
            AbortObject: self._abort,
        }
        self._performers: dict[type[Any], Callable[[Any], None]] = {
            Created: self._created,
            Pinned: self._pinned,
            Done: lambda action: self._send(action.process, StoreDone(action.request)),
            Failed: lambda action: self._send(action.process, StoreError(action.request, action.code, action.detail)),
            Extend: self._extend,
            Spill: self._spill,
            Restore: self._restore,
            MakeFile: self._make_file,
            DeleteFile: self._delete_file,
            Warn: lambda action: self._warn(action.text),
            Granted: lambda action: self._send(action.process, SpaceGranted(action.size, action.places)),
            Recall: lambda action: self._send(action.process, RecallSpace(action.number, action.keep)),
            AwaitRecalls: self._await_recalls,
        }

    def handle(self, process: bytes, message: Message) -> None:
        """Act on one of the store's messages from a process of this machine."""
        self._perform(self._handlers[type(message)](process, message))

    def holds(self, name: bytes) -> bool:
        """Whether there is such an object, complete or not."""
        return self._table.state_of(name) is not None

    def process_died(self, process: bytes) -> None:
        """A process of this machine is gone; so are its pins and what it was writing."""
        self._perform(self._table.process_died(process))
        self._look_for_recalls()

    def stats(self) -> dict[str, Any]:
        """Sums in bytes and counts, and per process (in hex) what it pins and writes."""
        return {
            **self._table.stats(),
            "pins": {process.hex(): held for process, held in self._table.pins().items()},
            "writes": {process.hex(): held for process, held in self._table.unsealed().items()},
        }

    def close(self) -> None:
        """Give the memory back (as far as no client maps it) and delete all files."""
        if self._closed:
            return
        self._closed = True
        self._recalls_over.set()
        self._disk.close()
        for number in self._files:
            _unlink(self._path(number))
        try:
            os.rmdir(self._directory)
        except OSError:
            pass  # never made, or shared with others
        os.close(self.fd)

    def _perform(self, actions: list[Action]) -> None:
        self._todo.extend(actions)
        if self._performing:
            return  # called by something that was called below: it will be its turn
        self._performing = True
        try:
            while self._todo:
                action = self._todo.popleft()
                self._performers[type(action)](action)
        finally:
            self._performing = False

    def _seal(self, process: bytes, message: SealObject) -> list[Action]:
        table, request, name = self._table, message.request, message.object
        if message.place:
            actions = table.seal_place(process, request, name, message.place, message.size)
        else:
            actions = table.seal(process, request, name)
        if message.ahead:
            actions += table.grant_ahead(process, message.ahead, message.ahead_size)
        return actions

    def _abort(self, process: bytes, message: AbortObject) -> list[Action]:
        actions = self._table.abort(process, message.object) if message.object else []
        if message.places or message.recall:
            actions += self._table.give_back(process, message.places, message.recall)
            self._look_for_recalls()
        return actions

    def _await_recalls(self, action: AwaitRecalls) -> None:
        def job() -> None:
            # The disk thread has nothing better to do: what it does next depends on the room that comes back.
            self._recalls_over.wait(_RECALL_S)

        self._recalls_over.clear()
        self._submit(job, lambda _: self._table.recalls_overdue(action.last))

    def _look_for_recalls(self) -> None:
        if not self._table.awaits_recalls():
            self._recalls_over.set()

    def _created(self, action: Created) -> None:
        self._send(action.process, ObjectCreated(action.request, action.offset, self._path(action.file)))

    def _pinned(self, action: Pinned) -> None:
        path = self._path(action.file)
        self._send(action.process, ObjectPinned(action.request, action.offset, action.size, path))

    def _extend(self, action: Extend) -> None:
        def job() -> None:
            # The arena has no size limit of its own: asked for more than there is, the kernel ends processes, of
            # anybody, to find it. What is not there is not asked for; to the table, the machine is full (STORE-SPACE).
            free = machine.memory_total() - machine.memory_used()
            if action.size > free - free // _SPARED:
                raise OSError(errno.ENOSPC, "the machine has no memory to spare")
            os.posix_fallocate(self.fd, action.offset, action.size)

        if action.size > _GROW_IN_LOOP:
            self._submit(job, lambda failure: self._table.extended(0 if failure else action.size))
            return
        try:
            job()
        except OSError:
            self._perform(self._table.extended(0))
        else:
            self._perform(self._table.extended(action.size))

    def _spill(self, action: Spill) -> None:
        path = self._path(action.file)

        def finished(failure: str) -> list[Action]:
            if failure:
                self._files.discard(action.file)
            return self._table.spilled(failure)

        self._files.add(action.file)
        self._submit(lambda: disk.spill(self.fd, path, action.file_size, action.parts), finished)

    def _restore(self, action: Restore) -> None:
        path = self._path(action.file)
        self._submit(
            lambda: disk.restore(path, action.position, self.fd, action.offset, action.size),
            lambda failure: self._table.restored(action.ticket, failure),
        )

    def _make_file(self, action: MakeFile) -> None:
        path = self._path(action.file)

        def finished(failure: str) -> list[Action]:
            if failure:
                self._files.discard(action.file)
            return self._table.file_made(action.file, failure)

        self._files.add(action.file)
        self._submit(lambda: disk.make_file(path, action.size), finished)

    def _delete_file(self, action: DeleteFile) -> None:
        path = self._path(action.file)

        def finished(_: str) -> list[Action]:
            self._files.discard(action.file)
            return []

        self._submit(lambda: _unlink(path), finished)

    def _submit(self, job: disk.Job, then: Callable[[str], list[Action]]) -> None:
        def done(failure: str) -> None:
            if not self._closed:
                self._perform(then(failure))

        self._disk.submit(job, done)

    def _path(self, file: int) -> str:
        return os.path.join(self._directory, f"objects-{file}") if file else ""


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
