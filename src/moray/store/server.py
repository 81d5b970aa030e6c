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
from collections.abc import Callable, Sequence
from typing import Any, Final

from moray.core.object_table import ObjectTable
from moray.core.object_table_state import SPILL_FILE_BYTES
from moray.core.object_table_types import (
    Action,
    AwaitRecalls,
    Created,
    DeleteFile,
    Done,
    Dropped,
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
from moray.core.performing import Performer
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
from moray.store.remote_files import RemoteFiles, open_target

#: One part in so many of the free memory is never taken.
_SPARED: Final = 16
#: The arena grows by as much at once in the loop itself (0.2 ms a MiB); more is left to the disk thread.
_GROW_IN_LOOP: Final = 4 << 20
#: How long a creation that finds no room waits for space that was granted ahead. An I/O thread that is not
#: kept from running answers within a millisecond, behind Python code within a few.
_RECALL_S: Final = 0.05
#: How long one waits that would be refused, which does not find room by other means.
_DROPS_S: Final = 1.0
#: How long the end may take to delete what was spilled to a URL.
_REMOTE_END_S: Final = 10.0


class StoreServer:
    """The object store of one node.

    Args:
        arena_bytes: size of the shared memory that clients map.
        directory: where spilled objects go, and files that readers map; made when first needed.
        send: sends a message to a process (a dead one is the node's business).
        warn: tells the user a line of text.
        post: runs a callable in the loop; may be called from any thread.
        spill_file_bytes: size at which a file of spilled objects is full.
        targets: other directories, or URLs, where spilled objects go instead, by turns.
    """

    def __init__(
        self,
        arena_bytes: int,
        directory: str,
        send: Callable[[bytes, Message], None],
        warn: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
        spill_file_bytes: int = SPILL_FILE_BYTES,
        targets: Sequence[str] = (),
    ) -> None:
        #: The arena's file; the node passes it to each client once.
        self.fd = os.memfd_create("moray-objects", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, arena_bytes)
        self._directory = directory
        #: Where spilled objects go; none: into the directory.
        self._targets = [open_target(target) for target in targets]
        #: Files there, which have no local path → the target.
        self._remote: dict[int, RemoteFiles] = {}
        #: Of these: copies of objects in local files for readers, by file.
        self._fetched: dict[int, set[str]] = {}
        self._warned_of: set[str] = set()
        #: Where something may be left.
        self._used: set[RemoteFiles] = set()
        #: Spill files that lie in another local directory → that directory.
        self._elsewhere: dict[int, str] = {}
        self._send = send
        self._warn = warn
        self._table = ObjectTable(arena_bytes, spill_file_bytes)
        self._disk = disk.DiskThread(post)
        #: Numbers of files that may be on disk.
        self._files: set[int] = set()
        #: Set when nobody waits for recalls, so that the disk thread goes on.
        self._recalls_over = threading.Event()
        #: Whether one waits that would be refused: any message may bring room.
        self._refusing = False
        self._closed = False
        #: Hears of each secondary copy that had to make room.
        self.on_dropped: Callable[[bytes], None] = _nobody
        self._handlers: dict[type[Message], Callable[[bytes, Any], list[Action]]] = {
            CreateObject: lambda process, m: self._table.create(process, m.request, m.object, m.size),
            SealObject: self._seal,
            PinObject: lambda process, m: self._table.pin(process, m.request, m.object),
            UnpinObjects: lambda process, m: self._table.unpin(process, m.objects),
            FreeObjects: lambda _, m: self._table.free(m.objects),
            AbortObject: self._abort,
        }
        self._perform = Performer(
            {
                Created: self._created,
                Pinned: self._pinned,
                Done: lambda action: self._send(action.process, StoreDone(action.request)),
                Failed: lambda action: self._send(
                    action.process, StoreError(action.request, action.code, action.detail)
                ),
                Extend: self._extend,
                Spill: self._spill,
                Restore: self._restore,
                MakeFile: self._make_file,
                DeleteFile: self._delete_file,
                Dropped: lambda action: self.on_dropped(action.object),
                Warn: lambda action: self._warn(action.text),
                Granted: lambda action: self._send(action.process, SpaceGranted(action.size, action.places)),
                Recall: lambda action: self._send(action.process, RecallSpace(action.number, action.keep)),
                AwaitRecalls: self._await_recalls,
            }
        )

    def handle(self, process: bytes, message: Message) -> None:
        """Act on one of the store's messages from a process of this machine."""
        self._perform(self._handlers[type(message)](process, message))
        if self._refusing:
            self._look_for_recalls()

    def attach_node(self, process: bytes, hear: Callable[[Message], None]) -> None:
        """The node itself reads and writes objects, in the name of `process`: it hears the answers by `hear`."""
        send = self._send
        self._table.node = process

        def to_node_or(receiver: bytes, message: Message) -> None:
            if receiver == process:
                hear(message)
            else:
                send(receiver, message)

        self._send = to_node_or

    def create_copy(self, process: bytes, request: int, name: bytes, size: int) -> None:
        """As CreateObject, but of a secondary copy: dropped when room is needed, not spilled."""
        self._perform(self._table.create(process, request, name, size, secondary=True))

    def promote(self, name: bytes) -> None:
        """A secondary copy is the primary one from now on."""
        self._perform(self._table.promote(name))

    def has_whole(self, name: bytes) -> bool:
        """Whether all of an object is here, in memory or on disk."""
        return self._table.is_whole(name)

    def size_of(self, name: bytes) -> int:
        """The bytes of an object that is here."""
        return self._table.size_of(name)

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
            if number not in self._remote:
                _unlink(self._path(number))
        for path in [path for paths in self._fetched.values() for path in paths]:
            _unlink(path)
        for target in self._used:
            self._forget_remote(target)
        for directory in [self._directory, *(each for each in self._targets if isinstance(each, str))]:
            try:
                os.rmdir(directory)
            except OSError:
                pass  # never made, or shared with others
        os.close(self.fd)

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
            self._recalls_over.wait(_DROPS_S if action.refusing else _RECALL_S)

        def finished(_: str) -> list[Action]:
            self._refusing = False
            return self._table.recalls_overdue(action.last)

        self._recalls_over.clear()
        self._refusing = self._refusing or action.refusing
        self._submit(job, finished)

    def _look_for_recalls(self) -> None:
        if not self._table.awaits_recalls():
            self._recalls_over.set()

    def _created(self, action: Created) -> None:
        self._send(action.process, ObjectCreated(action.request, action.offset, self._path(action.file)))

    def _forget_remote(self, target: RemoteFiles) -> None:
        failures = [f"{target.url} did not answer in {_REMOTE_END_S:g} s"]

        def work() -> None:
            try:
                target.delete_all()
                failures.clear()
            except OSError as error:
                failures[:] = [str(error.strerror)]

        # The session's end does not wait for a service that is away.
        thread = threading.Thread(target=work, name="moray-store-end", daemon=True)
        thread.start()
        thread.join(_REMOTE_END_S)
        for failure in failures:
            self._warn(f"Spilled objects could not be deleted: {failure}. Delete what is below {target.url}.")

    def _pinned(self, action: Pinned) -> None:
        if action.file in self._remote:
            self._fetch(action)
            return
        path = self._path(action.file)
        self._send(action.process, ObjectPinned(action.request, action.offset, action.size, path))

    def _fetch(self, action: Pinned) -> None:
        """There is no room for an object that is no local file: its bytes come into a file of its own, for readers."""
        remote, name = self._remote[action.file], f"objects-{action.file}"
        path = os.path.join(self._directory, f"fetched-{action.file}-{action.offset}")
        self._fetched.setdefault(action.file, set()).add(path)

        def job() -> None:
            if not os.path.exists(path):
                disk.fetch(remote, name, action.offset, path, action.size)

        def finished(failure: str) -> list[Action]:
            if not failure:
                self._send(action.process, ObjectPinned(action.request, 0, action.size, path))
                return []
            detail = f"object {action.object.hex()}: it is on disk, which cannot be read: {failure}"
            self._send(action.process, StoreError(action.request, "disk", detail))
            return self._table.unpin(action.process, [action.object])

        self._submit(job, finished)

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
        target = self._targets[action.file % len(self._targets)] if self._targets else self._directory

        def finished(failure: str) -> list[Action]:
            if failure:
                self._files.discard(action.file)
                self._remote.pop(action.file, None)
                self._elsewhere.pop(action.file, None)
                self._warn_of(target, failure)
            return self._table.spilled(failure)

        self._files.add(action.file)
        if isinstance(target, RemoteFiles):
            self._remote[action.file] = target
            self._used.add(target)
            name = f"objects-{action.file}"
            self._submit(lambda: target.spill(self.fd, name, action.parts), finished)
            return
        if self._targets:
            self._elsewhere[action.file] = target
        path = self._path(action.file)
        self._submit(lambda: disk.spill(self.fd, path, action.file_size, action.parts), finished)

    def _warn_of(self, target: str | RemoteFiles, failure: str) -> None:
        """Objects stay in memory, as far as it goes; said once for each target."""
        if isinstance(target, RemoteFiles) and target.url not in self._warned_of:
            self._warned_of.add(target.url)
            self._warn(f"Objects cannot be spilled to {target.url}, and stay in memory: {failure}")

    def _restore(self, action: Restore) -> None:
        remote = self._remote.get(action.file)
        path = self._path(action.file)

        def job() -> None:
            if remote is not None:
                remote.restore(f"objects-{action.file}", action.position, self.fd, action.offset, action.size)
            else:
                disk.restore(path, action.position, self.fd, action.offset, action.size)

        self._submit(job, lambda failure: self._table.restored(action.ticket, failure))

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
        remote = self._remote.pop(action.file, None)
        copies = self._fetched.pop(action.file, set())

        def job() -> None:
            for copy in copies:
                _unlink(copy)
            if remote is not None:
                remote.delete(f"objects-{action.file}")
            else:
                _unlink(path)

        def finished(_: str) -> list[Action]:
            # What could not be deleted goes with all the rest at the end.
            self._files.discard(action.file)
            self._elsewhere.pop(action.file, None)
            return []

        self._submit(job, finished)

    def _submit(self, job: disk.Job, then: Callable[[str], list[Action]]) -> None:
        def done(failure: str) -> None:
            if not self._closed:
                self._perform(then(failure))

        self._disk.submit(job, done)

    def _path(self, file: int) -> str:
        return os.path.join(self._elsewhere.get(file, self._directory), f"objects-{file}") if file else ""


def _nobody(_name: bytes) -> None:
    """Without other nodes there are no secondary copies."""


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
