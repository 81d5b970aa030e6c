"""What becomes of the entries of :class:`moray.core.object_table.ObjectTable`, one by one: who gets the bytes, who is
told that they never come, when region and file go (STORE-SEAL, STORE-PIN). Where room comes from is decided there.
"""

from __future__ import annotations

from moray.core.arena import rounded
from moray.core.object_table_state import ObjectTableState
from moray.core.object_table_types import (
    BUSY,
    Created,
    DeleteFile,
    Dropped,
    Entry,
    Failed,
    File,
    Hold,
    MakeFile,
    Pinned,
    Restore,
    State,
)


class ObjectTableLife(ObjectTableState):
    """Each step takes an entry as far as it goes without making room."""

    def _granted(self, entry: Entry, offset: int) -> None:
        """There is room for what waited."""
        entry.offset = offset
        if entry.state is State.QUEUED:
            self._move(entry, State.CREATING)
            self._do(Created(entry.creator, entry.request, offset, 0))
            return
        assert entry.file is not None
        self._move(entry, State.RESTORING)
        self._last_ticket += 1
        self._restores[self._last_ticket] = entry
        self._do(Restore(self._last_ticket, entry.file.number, entry.position, offset, entry.size))

    def _without_room(self, entry: Entry) -> None:
        """Nothing more can be moved out of the arena: the disk takes the object, or serves it."""
        if entry.state is State.WANTED:
            self._move(entry, State.SPILLED)
            self._pin_waiters(entry)
            return
        self._last_file += 1
        entry.file = File(self._last_file, own=True)
        entry.file.live = 1
        self._makes[self._last_file] = entry
        self._move(entry, State.MAKING)
        self._do(MakeFile(self._last_file, entry.size))

    def _settle(self, entry: Entry, oldest: bool = False) -> None:
        """The bytes of an entry are complete and in place: who waits gets them; if nobody does, they are idle."""
        if entry.freed:
            self._release_if_unused(entry)
            return
        self._pin_waiters(entry)
        if not entry.pins and entry.state is State.SEALED:
            (self._idle_copies if entry.secondary else self._idle)[entry] = None
            self._idle_bytes += rounded(entry.size)
            if oldest:
                self._idle.move_to_end(entry, last=False)

    def _busy_again(self, entry: Entry) -> None:
        if (self._idle_copies if entry.secondary else self._idle).pop(entry, entry) is None:
            self._idle_bytes -= rounded(entry.size)

    def _spilled_one(self, entry: Entry, file: File) -> None:
        entry.file = file
        if entry.pins or entry.freed:
            self._move(entry, State.SEALED)
            self._release_if_unused(entry)
        else:
            self._leave_memory(entry)

    def _leave_memory(self, entry: Entry) -> None:
        """The copy on disk is enough."""
        self._drop_region(entry)
        self._move(entry, State.SPILLED)

    def _drop_region(self, entry: Entry) -> None:
        self._arena.free(entry.offset)
        entry.offset = -1

    def _discard(self, entry: Entry, why: str) -> None:
        """An unsealed attempt, already out of its creator's table, will never be complete."""
        if self._objects.get(entry.object) is entry:
            del self._objects[entry.object]
        entry.freed = True
        self._fail_waiters(entry, "lost", why)
        if entry.state is not State.MAKING:
            self._release(entry)

    def _fail_creation(self, entry: Entry, code: str, why: str) -> None:
        """Tell the creator that there will be no room (it may have died; the shell knows)."""
        mine = self._unsealed.get(entry.creator, {})
        if mine.get(entry.object) is entry:
            del mine[entry.object]
        if self._objects.get(entry.object) is entry:
            del self._objects[entry.object]
        self._do(Failed(entry.creator, entry.request, code, why))
        self._fail_waiters(entry, "lost", "there was no room for it")
        self._release(entry)

    def _release_if_unused(self, entry: Entry) -> None:
        if entry.freed and not entry.pins and entry.state not in BUSY and entry.state is not State.GONE:
            self._release(entry)

    def _release(self, entry: Entry) -> None:
        """The region and the copy on disk go."""
        self._busy_again(entry)
        self._move(entry, State.GONE)
        if entry.offset >= 0:
            self._drop_region(entry)
        if (file := entry.file) is not None:
            file.live -= 1
            entry.file = None
            self._delete_if_empty(file)

    def _drop(self, entry: Entry) -> None:
        """The primary copy, at another node, is enough."""
        del self._objects[entry.object]
        entry.freed = True
        self._release(entry)
        self._do(Dropped(entry.object))

    def _delete_if_empty(self, file: File) -> None:
        if not file.live:
            self._do(DeleteFile(file.number))

    # --- pins -------------------------------------------------------------------------------------------

    def _pinned_at(self, entry: Entry, process: bytes, request: int) -> None:
        self._hold(entry, process)
        if entry.offset >= 0:
            self._do(Pinned(process, request, entry.offset, entry.size, 0))
        else:
            assert entry.file is not None
            self._do(Pinned(process, request, entry.position, entry.size, entry.file.number, entry.object))

    def _hold(self, entry: Entry, process: bytes) -> None:
        holds = self._holds.get(process)
        if holds is None:
            holds = self._holds[process] = {}
        hold = holds.get(entry.object)
        if hold is None:
            holds[entry.object] = Hold(entry)
        else:
            hold.count += 1
            if entry in hold.entries:
                return
            hold.entries.append(entry)
        entry.pins += 1
        if entry.pins == 1:
            self._busy_again(entry)
            self._pinned += 1
            self._pinned_bytes += entry.size

    def _let_go(self, hold: Hold) -> None:
        for entry in hold.entries:
            entry.pins -= 1
            if entry.pins:
                continue
            self._pinned -= 1
            self._pinned_bytes -= entry.size
            if entry.state is State.SEALED:
                self._settle(entry)
            elif entry.secondary and entry.state is State.SPILLED and not entry.freed:
                self._drop(entry)
            else:
                self._release_if_unused(entry)

    def _pin_waiters(self, entry: Entry) -> None:
        if entry.waiters:
            waiters, entry.waiters = entry.waiters, []
            self._awaited.discard(entry)
            for process, request in waiters:
                self._pinned_at(entry, process, request)

    def _fail_waiters(self, entry: Entry, code: str, why: str) -> None:
        waiters, entry.waiters = entry.waiters, []
        self._awaited.discard(entry)
        for process, request in waiters:
            self._do(Failed(process, request, code, f"object {entry.object.hex()}: {why}"))
