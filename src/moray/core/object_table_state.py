"""The tables behind :class:`moray.core.object_table.ObjectTable`, and what can be read from them.

Here is what is remembered, which sums are kept, what always holds between them
(:meth:`ObjectTableState.check`), and how it is told to people. What happens to it is decided in the subclass.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Final

from moray.core.arena import Arena, rounded
from moray.core.object_table_ahead import SpaceAhead
from moray.core.object_table_types import BUSY, ON_DISK, TRANSITIONS, Action, Entry, File, Hold, State

#: A spill file is closed when it holds so many bytes, or one object that is larger. Files this large are
#: written at the disk's speed; larger ones would keep dead bytes on disk longer.
SPILL_FILE_BYTES: Final = 64 << 20


class ObjectTableState:
    """The state of one node's object store."""

    def __init__(self, capacity: int, spill_file_bytes: int = SPILL_FILE_BYTES) -> None:
        self._spill_file_bytes = spill_file_bytes
        #: Where regions are.
        self._arena = Arena(capacity)
        #: Regions that are granted and have no object yet.
        self._ahead = SpaceAhead(self._arena.capacity)
        #: What an id means now: the attempt that is not freed.
        self._objects: dict[bytes, Entry] = {}
        #: Process → object → attempt that it has not sealed, doomed ones included.
        self._unsealed: dict[bytes, dict[bytes, Entry]] = {}
        #: Process → object → its pins.
        self._holds: dict[bytes, dict[bytes, Hold]] = {}
        #: SEALED, unpinned entries, the least recently used first, and the sum of their regions.
        self._idle: OrderedDict[Entry, None] = OrderedDict()
        #: The same, of secondary copies; the sum is of both.
        self._idle_copies: OrderedDict[Entry, None] = OrderedDict()
        self._idle_bytes = 0
        #: QUEUED and WANTED entries, first come first served. Entries that stopped waiting are skipped.
        self._queue: deque[Entry] = deque()
        #: Entries with waiters (those of a dead process are looked for here).
        self._awaited: set[Entry] = set()
        #: The Extend under way: its size; 0 if there is none. Whether it asks for more than needed.
        self._growing = 0
        self._growing_eagerly = True
        #: Shortages to let pass before the machine is asked for more memory again, after it refused.
        self._growth_refused = 0
        #: The Spill under way: its file and entries.
        self._batch: tuple[File, list[Entry]] | None = None
        #: Why the last spill for the queue's head failed; "" if it did not.
        self._spill_failure = ""
        #: Restores under way by ticket.
        self._restores: dict[int, Entry] = {}
        self._last_ticket = 0
        #: Own files under way by number.
        self._makes: dict[int, Entry] = {}
        self._last_file = 0
        #: The node itself, if it reads and writes objects: it is not asked for anything.
        self.node = b""
        #: The one warning of STORE-SPACE was given.
        self._warned = False
        #: Sums over entries, for stats().
        self._pinned = 0
        self._pinned_bytes = 0
        self._spilled = 0
        self._spilled_bytes = 0
        self._fallback = 0
        self._fallback_bytes = 0
        #: What the shell has to do, not yet returned.
        self._actions: list[Action] = []

    # --- what others may know ----------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Sums in bytes and counts. Ahead: granted for objects to come, and not counted as used; spilled: on disk
        only; fallback: in files of their own."""
        return {
            "capacity_bytes": self._arena.capacity,
            "backed_bytes": self._arena.backed,
            "used_bytes": self._arena.used_bytes - self._ahead.bytes,
            "ahead_bytes": self._ahead.bytes,
            "objects": len(self._objects),
            "pinned_bytes": self._pinned_bytes,
            "pinned_objects": self._pinned,
            "spilled_bytes": self._spilled_bytes,
            "spilled_objects": self._spilled,
            "fallback_bytes": self._fallback_bytes,
            "fallback_objects": self._fallback,
            "queued": sum(entry.state in (State.QUEUED, State.WANTED) for entry in self._queue),
        }

    def pins(self) -> dict[bytes, tuple[int, int]]:
        """Process → (objects, bytes) that it holds in place by pins; walks over all pins."""
        return {
            process: (len(holds), sum(entry.size for hold in holds.values() for entry in hold.entries))
            for process, holds in self._holds.items()
            if holds
        }

    def unsealed(self) -> dict[bytes, tuple[int, int]]:
        """Process → (objects, bytes) that it is writing."""
        result = {}
        for process, entries in self._unsealed.items():
            sizes = [entry.size for entry in entries.values() if entry.state is State.CREATING]
            if sizes:
                result[process] = (len(sizes), sum(sizes))
        return result

    def state_of(self, object: bytes) -> State | None:
        """Where the present attempt at an object stands; None if there is none."""
        entry = self._objects.get(object)
        return entry.state if entry else None

    def size_of(self, object: bytes) -> int:
        """The bytes of an object that is here, complete or not."""
        return self._objects[object].size

    def is_whole(self, object: bytes) -> bool:
        """Whether all of an object is here, in memory or on disk."""
        entry = self._objects.get(object)
        return entry is not None and entry.state not in (State.QUEUED, State.MAKING, State.CREATING)

    # --- texts --------------------------------------------------------------------------------------------

    def _holders(self) -> str:
        """Who holds what, the largest first."""
        pinned, written = self.pins(), self.unsealed()
        total = Counter({who: size for who, (_, size) in pinned.items()})
        total.update({who: size for who, (_, size) in written.items()})
        lines = []
        for process, _ in total.most_common(5):
            reads, writes = pinned.get(process, (0, 0)), written.get(process, (0, 0))
            lines.append(
                f"process {process.hex()} reads {reads[0]} objects of {reads[1]} bytes"
                f" and writes {writes[0]} of {writes[1]} bytes"
            )
        if len(total) > 5:
            lines.append(f"{len(total) - 5} more processes hold the rest")
        return "; ".join(lines) or "no process holds any"

    def _usage(self, size: int) -> str:
        arena = self._arena
        limit = f", of which the machine backs only {arena.backed}" if self._growth_refused else ""
        ahead = f" and {self._ahead.bytes} by processes for objects to come" if self._ahead.bytes else ""
        return (
            f"no room for an object of {size} bytes in the object store: {arena.used_bytes} of its {arena.capacity}"
            f" bytes{limit} are in use, {self._idle_bytes} of them by objects that nobody reads{ahead},"
            f" and the largest free piece is {arena.largest_free()} bytes. Who holds what: {self._holders()}."
        )

    def _warning(self, size: int) -> str:
        return (
            f"{self._usage(size)} This object, and others after it, go to files on disk, which is slower. Drop arrays"
            " that views of objects keep alive, or give init() a larger object_store_memory."
        )

    def _full(self, size: int, refusal: str) -> str:
        return (
            f"{self._usage(size)} {self._spilled + self._fallback} objects of"
            f" {self._spilled_bytes + self._fallback_bytes} bytes are on disk, which takes no more: {refusal}."
            " Drop references or arrays that are no longer needed, make room on the disk, or give init() a larger"
            " object_store_memory."
        )

    # --- changes that keep the sums -----------------------------------------------------------------

    def _do(self, action: Action) -> None:
        self._actions.append(action)

    def _take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def _move(self, entry: Entry, state: State) -> None:
        if state not in TRANSITIONS[entry.state]:
            raise AssertionError(f"object {entry.object.hex()} went from {entry.state.name} to {state.name}")
        self._count_on_disk(entry, -1)
        entry.state = state
        self._count_on_disk(entry, 1)

    def _count_on_disk(self, entry: Entry, change: int) -> None:
        """Keep the sums over what is on disk only."""
        file = entry.file
        if file is None or entry.state not in ON_DISK:
            return
        if file.own:
            self._fallback += change
            self._fallback_bytes += change * entry.size
        elif entry.state is not State.CREATING:
            self._spilled += change
            self._spilled_bytes += change * entry.size

    # --- invariants ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError unless the tables agree with each other; walks over everything."""
        self._arena.check()
        entries = self._all_entries()
        regions = [entry for entry in entries if entry.offset >= 0]
        places = self._ahead.places()
        offsets = {entry.offset for entry in regions} | {place.offset for place in places}
        assert len(offsets) == len(regions) + len(places) == len(self._arena)
        assert self._arena.used_bytes == sum(rounded(entry.size) for entry in regions) + self._ahead.bytes
        self._ahead.check()
        idle = {entry for entry in entries if entry.state is State.SEALED and not entry.pins and not entry.freed}
        assert set(self._idle) == {entry for entry in idle if not entry.secondary}
        assert set(self._idle_copies) == {entry for entry in idle if entry.secondary}
        assert self._idle_bytes == sum(rounded(entry.size) for entry in idle)
        assert self._awaited == {entry for entry in entries if entry.waiters}
        pins = Counter(entry for holds in self._holds.values() for hold in holds.values() for entry in hold.entries)
        for entry in entries:
            self._check_entry(entry, pins[entry])
        pinned = [entry.size for entry in entries if entry.pins]
        assert (self._pinned, self._pinned_bytes) == (len(pinned), sum(pinned))
        for own, sums in (
            (True, (self._fallback, self._fallback_bytes)),
            (False, (self._spilled, self._spilled_bytes)),
        ):
            sizes = [e.size for e in entries if e.state in ON_DISK and e.file is not None and e.file.own is own]
            assert sums == (len(sizes), sum(sizes))
        for file in {entry.file for entry in entries if entry.file is not None}:
            assert file.live == sum(entry.file is file for entry in entries)

    def _all_entries(self) -> set[Entry]:
        """Every entry that is not gone, doomed ones included."""
        entries = set(self._objects.values()) | set(self._restores.values()) | set(self._makes.values())
        entries.update(entry for mine in self._unsealed.values() for entry in mine.values())
        entries.update(entry for holds in self._holds.values() for hold in holds.values() for entry in hold.entries)
        if self._batch is not None:
            entries.update(self._batch[1])
        return entries

    def _check_entry(self, entry: Entry, pins: int) -> None:
        assert entry.state is not State.GONE
        assert entry.pins == pins
        assert (self._objects.get(entry.object) is entry) is not entry.freed
        assert not entry.freed or pins or entry.state in BUSY, "freed, unused, and still there"
        assert not entry.waiters or entry.state not in (State.SEALED, State.SPILLING, State.SPILLED)
        assert not entry.secondary or entry.file is None or entry.file.own, "a secondary copy was spilled"
        on_disk = entry.state in ON_DISK and entry.file is not None
        in_arena = entry.state in (State.CREATING, State.SEALED, State.SPILLING, State.RESTORING)
        assert (entry.offset >= 0) is (in_arena and not (entry.state is State.CREATING and on_disk))
        assert entry.offset >= 0 or on_disk or entry.state in (State.QUEUED, State.MAKING)
