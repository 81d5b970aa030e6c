"""A fake machine around the object table, for its tests.

Memory and files hold, per 64-byte line, the tag of the attempt that
was written there. A pinned object must show its own tag at its place after every step, whatever is spilled, freed,
made again or killed meanwhile (STORE-PIN); a sealed one is never "lost" (STORE-SEAL); nothing is written where no pages
are (STORE-SPACE); what a dead process held is free (LIVENESS).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from moray.core.arena import rounded
from moray.core.object_table import ObjectTable
from moray.core.object_table_types import (
    AwaitRecalls,
    Created,
    DeleteFile,
    Done,
    Extend,
    Failed,
    MakeFile,
    Pinned,
    Recall,
    Restore,
    Spill,
    Warn,
)

LINE = 64
CAPACITY = 64 * LINE


def lines(offset: int, size: int) -> range:
    return range(offset // LINE, (offset + rounded(size)) // LINE)


class Attempt:
    """What the model knows of one creation."""

    def __init__(self, tag: int, name: bytes, creator: bytes, size: int) -> None:
        self.tag, self.name, self.creator, self.size = tag, name, creator, size
        self.place: tuple[int, int] | None = None  # (file, offset) where the creator writes
        self.sealed = False
        self.freed = False
        #: Others may have heard of it from its owner: it must be found, even if the node hears of it later.
        self.told = False


class Machine:
    """A table, and a machine that carries out what it says: one disk job at a time, when told."""

    def __init__(self, capacity: int = CAPACITY, spill_file_bytes: int = 24 * LINE) -> None:
        self.table = ObjectTable(capacity, spill_file_bytes)
        self.memory: dict[int, int] = {}
        self.files: dict[int, dict[int, int]] = {}
        self.backed = 0
        #: Disk work not done yet.
        self.work: deque[Any] = deque()
        #: Open requests: number → (process, attempt, kind)
        self.open: dict[int, tuple[bytes, Attempt, str]] = {}
        self.answers: dict[int, Any] = {}
        self.attempts: list[Attempt] = []
        #: (process, attempt) → places where it was told to read; one for each pin.
        self.reads: dict[tuple[bytes, int], list[tuple[int, int]]] = {}
        #: Every attempt there ever was, by tag.
        self.known: dict[int, Attempt] = {}
        self.warnings: list[str] = []
        #: Questions that processes have not answered.
        self.recalls: list[Recall] = []
        self.requests = 0
        #: Spills asked for so far.
        self.spills = 0

    # --- requests ---

    def request(self, process: bytes, attempt: Attempt, kind: str) -> int:
        self.requests += 1
        self.open[self.requests] = (process, attempt, kind)
        return self.requests

    def current(self, name: bytes) -> Attempt | None:
        return next((a for a in self.attempts if a.name == name and not a.freed), None)

    def unsealed(self) -> list[Attempt]:
        """What was asked for and is not sealed; its creator may give it up."""
        return [attempt for attempt in self.attempts if not attempt.sealed]

    def create(self, process: bytes, name: bytes, size: int) -> int:
        attempt = self.known[len(self.known) + 1] = Attempt(len(self.known) + 1, name, process, size)
        mine = any(a.name == name and a.creator == process and not a.sealed for a in self.attempts)
        taken = mine or self.current(name) is not None
        if not taken:
            self.attempts.append(attempt)
        number = self.request(process, attempt, "create")
        self.run(self.table.create(process, number, name, size))
        assert taken == (isinstance(self.answers.get(number), Failed) and self.answers[number].code == "exists")
        return number

    def put(self, process: bytes, name: bytes, size: int, disk: Sequence[bool] = ()) -> None:
        """Create, write and seal; room is waited for, and may be refused. `disk`: which of the first steps fail."""
        number, steps = self.create(process, name, size), 0
        while number not in self.answers:
            self.step(steps < len(disk) and disk[steps])
            steps += 1
        mine = [a for a in self.attempts if (a.creator, a.name) == (process, name)]
        for attempt in [a for a in mine if a.place and not a.sealed]:
            self.seal(attempt)

    def seal(self, attempt: Attempt) -> None:
        number = self.request(attempt.creator, attempt, "seal")
        attempt.sealed = True
        if attempt.freed:
            self.attempts.remove(attempt)
        self.run(self.table.seal(attempt.creator, number, attempt.name))
        assert isinstance(self.answers[number], Done)

    def pin(self, process: bytes, name: bytes) -> int:
        attempt = self.current(name)
        number = self.request(process, attempt or Attempt(0, name, b"", 0), "pin")
        self.run(self.table.pin(process, number, name))
        if attempt is None and number in self.answers:
            assert self.answers[number].code == "lost"
        return number

    def unpin(self, process: bytes, name: bytes) -> None:
        keys = [key for key in self.reads if key[0] == process and self.known[key[1]].name == name]
        # The table keeps all attempts under one id until the last pin; so does the model.
        total = sum(len(self.reads[key]) for key in keys)
        if total == 1:
            del self.reads[keys[0]]
        elif total:
            fullest = max(keys, key=lambda key: len(self.reads[key]))
            if len(self.reads[fullest]) > 1:
                self.reads[fullest].pop()
            else:
                return  # which of two attempts it means cannot be said
        self.run(self.table.unpin(process, [name]))

    def free(self, name: bytes) -> None:
        attempt = self.current(name)
        if attempt:
            attempt.freed = True
            if attempt.sealed:
                self.attempts.remove(attempt)
        self.run(self.table.free([name]))

    def abort(self, attempt: Attempt) -> None:
        self.attempts.remove(attempt)
        attempt.freed = True
        self.run(self.table.abort(attempt.creator, attempt.name))

    def die(self, process: bytes) -> None:
        for attempt in [a for a in self.attempts if a.creator == process and not a.sealed]:
            self.attempts.remove(attempt)
            attempt.freed = True
        self.reads = {key: places for key, places in self.reads.items() if key[0] != process}
        self.open = {number: entry for number, entry in self.open.items() if entry[0] != process}
        self.run(self.table.process_died(process))

    # --- the shell ---

    def run(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Created | Pinned | Done | Failed):
                self.answer(action)
            elif isinstance(action, Extend):
                assert action.offset == self.backed
                self.work.append(action)
            elif isinstance(action, Spill):
                self.spills += 1
                self.work.append((action, [self.read(0, offset, size) for _, offset, size in action.parts]))
            elif isinstance(action, DeleteFile):
                del self.files[action.file]
            elif isinstance(action, Warn):
                self.warnings.append(action.text)
            elif isinstance(action, Recall):
                self.recalls.append(action)
            else:
                assert isinstance(action, Restore | MakeFile | AwaitRecalls)
                self.work.append(action)

    def answer(self, action: Any) -> None:
        self.answers[action.request] = action
        entry = self.open.pop(action.request, None)
        if entry is None:
            return  # to a process that died, or gave it up
        process, attempt, kind = entry
        assert process == action.process
        if isinstance(action, Created):
            assert kind == "create"
            attempt.place = (action.file, action.offset)
            assert action.file or action.offset + rounded(attempt.size) <= self.backed
            self.write(action.file, action.offset, attempt.size, attempt.tag)
        elif isinstance(action, Pinned):
            assert kind == "pin"
            assert attempt.sealed
            assert action.size == attempt.size
            self.reads.setdefault((process, attempt.tag), []).append((action.file, action.offset))
        elif isinstance(action, Failed):
            if kind == "create" and attempt in self.attempts:
                self.attempts.remove(attempt)
                attempt.freed = True
            elif kind == "pin" and action.code == "lost":
                assert not (attempt.sealed or attempt.told) or attempt.freed, "a sealed object was lost"

    def write(self, file: int, offset: int, size: int, tag: int) -> None:
        store = self.files[file] if file else self.memory
        store.update(dict.fromkeys(lines(offset, size), tag))

    def read(self, file: int, offset: int, size: int) -> int:
        store = self.files[file] if file else self.memory
        tags = {store.get(line, 0) for line in lines(offset, size)}
        assert len(tags) == 1, f"torn: {tags}"
        return tags.pop()

    def step(self, fails: bool = False) -> None:
        """Finish the oldest piece of disk work."""
        action = self.work.popleft()
        failure = "the disk is full" if fails else ""
        if isinstance(action, Extend):
            self.backed += 0 if fails else action.size
            self.run(self.table.extended(0 if fails else action.size))
        elif isinstance(action, AwaitRecalls):
            self.run(self.table.recalls_overdue(action.last))
        elif isinstance(action, MakeFile):
            if not fails:
                self.files[action.file] = {}
            self.run(self.table.file_made(action.file, failure))
        elif isinstance(action, Restore):
            if not fails:
                tag = self.read(action.file, action.position, action.size)
                self.write(0, action.offset, action.size, tag)
            self.run(self.table.restored(action.ticket, failure))
        else:
            spill, tags = action
            assert tags == [self.read(0, offset, size) for _, offset, size in spill.parts], "changed while spilled"
            if not fails:
                self.files[spill.file] = {}
                for (position, _, size), tag in zip(spill.parts, tags, strict=True):
                    assert position + size <= spill.file_size
                    self.write(spill.file, position, size, tag)
            self.run(self.table.spilled(failure))

    def finish(self) -> None:
        while self.work:
            self.step()

    def check(self) -> None:
        self.table.check()
        for (_, tag), places in self.reads.items():
            for file, offset in places:
                assert self.read(file, offset, self.known[tag].size) == tag, "a pinned object changed"
        for attempt in self.attempts:
            if attempt.place and not attempt.sealed:
                assert self.read(*attempt.place, attempt.size) == attempt.tag, "written over while being created"
        stats = self.table.stats()
        assert stats["pinned_objects"] == len({tag for _, tag in self.reads}) == len({t for _, t in self.reads})
        assert stats["backed_bytes"] == self.backed
        if not self.work:
            self.check_rest()

    def check_rest(self) -> None:
        """Nothing is under way: whoever waits has a reason."""
        for _, attempt, kind in self.open.values():
            assert kind == "pin"
            assert not attempt.sealed
            assert attempt in self.attempts
