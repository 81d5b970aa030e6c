"""A world of processes that pass references around, for tests of the reference protocol.

The cores are real; shell and network are simulated: a FIFO per ordered pair of processes, connections
that break (some messages lost, some delivered late), processes that die at any moment. Beside the cores
stands a dumb model: which references each process really has (lists of ids). After each step:

- SAFETY: what a living process has, its living owner has not freed (REF-FREE, REF-COVER, REF-SEND);
- the cores' tables agree (``validate``).

After :meth:`World.wind_down`, LIVENESS: everything is freed and no table of a living process has an entry.

*Void* references are those that only a dead process covered when it died: the protocol promises
nothing for them (the tasks that hold them are being cancelled). The model follows covers by itself to know.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from moray.core.references import Changes, Foreign, Owned, References, Registration, Reply, TaskCover
from moray.core.references_report import describe_all, validate
from moray.core.references_types import owner_of


def make_id(process: bytes, key: int) -> bytes:
    return (key >> 32).to_bytes(8, "big") + process + bytes(4) + (key & 0xFFFFFFFF).to_bytes(4, "big")


@dataclass(eq=False)
class Frame:
    """One message; `uid` lets the receiving shell ignore a repeated one."""

    uid: int
    kind: str
    body: Any


@dataclass(eq=False)
class Pending:
    """A submitted task: what it takes, what it will make."""

    worker: int
    arguments: list[bytes]
    results: list[Owned]


@dataclass(eq=False)
class Running:
    submitter: int
    seq: int
    cover: TaskCover
    #: Its method may start (an actor waits for ``secure``).
    open: bool = True


@dataclass(eq=False)
class Process:
    index: int
    name: bytes
    refs: References
    #: The Python references that it has.
    locals: list[bytes] = field(default_factory=list)
    #: Containers whose values it waits for; each is a Python reference, too.
    getting: list[bytes] = field(default_factory=list)
    #: Our objects that were not freed.
    entries: dict[bytes, Owned] = field(default_factory=dict)
    #: Contents of our objects that have a value.
    values: dict[bytes, list[bytes]] = field(default_factory=dict)
    #: Who waits for a value of ours.
    fetches: list[tuple[bytes, int]] = field(default_factory=list)
    pending: dict[int, Pending] = field(default_factory=dict)
    queued: list[tuple[int, int, list[bytes]]] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    #: Replies that are not ready: seq and contents.
    replies: dict[Reply, tuple[int, list[bytes]]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    #: What covered each borrowed reference that is not registered: ("task", submitter) or ("object", id) or ("sent",).
    covers: dict[bytes, list[tuple[Any, ...]]] = field(default_factory=dict)
    void: set[bytes] = field(default_factory=set)
    next_seq: int = 1

    def held(self) -> set[bytes]:
        """The model's truth: everything that must be alive because of this process."""
        ids = {*self.locals, *self.getting}
        for pending in self.pending.values():
            ids.update(pending.arguments)
        for contents in self.values.values():
            ids.update(contents)
        return ids

    def entry(self, object_id: bytes) -> Owned | Foreign:
        own = self.entries.get(object_id)
        return own if own is not None else self.refs.foreign[object_id]


class World:
    def __init__(self, count: int = 4) -> None:
        self.processes = [Process(i, bytes([65 + i]) * 12, References(bytes([65 + i]) * 12)) for i in range(count)]
        self.alive = set(range(count))
        #: (from, to) → messages on the connection.
        self.wires: dict[tuple[int, int], deque[Frame]] = {}
        #: (from, to) → messages on a second connection, or that an older one may still deliver.
        self.old: dict[tuple[int, int], deque[Frame]] = {}
        #: Messages so far. Some go over the second connection, so that no order across connections is relied on.
        self.uids = 0
        #: What each value contains, of all objects there ever were: kept free of cycles, which counting never frees.
        self.graph: dict[bytes, list[bytes]] = {}
        #: (who, dead one) → not yet noticed.
        self.notices: set[tuple[int, int]] = set()
        for a in range(count):
            for b in range(count):
                self.wires[a, b], self.old[a, b] = deque(), deque()

    # --- what programs do ---------------------------------------------------------------------

    def create(self, p: int, picks: list[int], move: bool) -> None:
        """Put a value that contains some of the process's references; `move`: and drop those."""
        process = self.processes[p]
        contents = self.pick(process, picks)
        entry = self.new_entry(process)
        object_id = make_id(process.name, entry.key)
        process.refs.contain(entry, [process.entry(i) for i in dict.fromkeys(contents)])
        process.values[object_id] = self.graph[object_id] = contents
        process.locals.append(object_id)
        if move:
            self.drop_all(process, contents)

    def drop_all(self, process: Process, ids: list[bytes]) -> None:
        for object_id in dict.fromkeys(ids):
            if object_id in process.locals:
                self.drop_id(process, object_id)

    def new_entry(self, process: Process) -> Owned:
        entry = Owned(process.next_seq << 32)
        process.next_seq += 1
        process.entries[make_id(process.name, entry.key)] = entry
        return entry

    def pick(self, process: Process, picks: list[int]) -> list[bytes]:
        return [process.locals[n % len(process.locals)] for n in picks] if process.locals else []

    def borrowed(self, p: int) -> list[int]:
        """Which of the process's references are to objects of others."""
        return [i for i, object_id in enumerate(self.processes[p].locals) if self.index_of(object_id) != p]

    def submit(self, p: int, w: int, picks: list[int], returns: int, move: bool) -> None:
        process = self.processes[p]
        arguments = list(dict.fromkeys(self.pick(process, picks)))
        entry = self.new_entry(process)
        seq = entry.key >> 32
        results = [entry]
        for index in range(1, returns):
            more = Owned(entry.key + index)
            process.entries[make_id(process.name, more.key)] = more
            results.append(more)
        process.locals += [make_id(process.name, result.key) for result in results]
        process.refs.lend([process.entry(i) for i in arguments])
        process.pending[seq] = Pending(w, arguments, results)
        if move:
            self.drop_all(process, arguments)
        if w in self.alive:
            self.send(p, w, "task", (seq, arguments))
        elif (p, w) not in self.notices:
            self.end_pending(process, seq)

    def start(self, w: int, choice: int, actor: bool) -> None:
        """Unpickle a queued task's arguments."""
        process = self.processes[w]
        if not process.queued:
            return
        submitter, seq, arguments = process.queued.pop(choice % len(process.queued))
        cover = process.refs.begin_task(self.processes[submitter].name, seq)
        running = Running(submitter, seq, cover)
        process.running.append(running)
        for object_id in arguments:
            self.arrive(process, object_id, cover, ("task", submitter))
        if actor:
            running.open = False
            process.refs.secure(cover)

    def arrive(self, process: Process, object_id: bytes, cover: Any, why: tuple[Any, ...]) -> None:
        entry = process.refs.arrive(object_id, cover)
        self.note_cover(process, object_id, why)
        if entry is not None:
            process.locals.append(object_id)
        else:
            assert object_id in process.void or self.is_void_cover(process, object_id, why), "an own object was gone"

    def note_cover(self, process: Process, object_id: bytes, why: tuple[Any, ...]) -> None:
        foreign = process.refs.foreign.get(object_id)
        if foreign is None or foreign.registration >= Registration.REGISTERED:
            return
        if why[0] == "object" and self.index_of(why[1]) == process.index:
            return  # our own container keeps alive only what something else covers
        covers = process.covers.setdefault(object_id, [])
        covers.append(why)
        if all(self.is_void_cover(process, object_id, cover) for cover in covers):
            process.void.add(object_id)
        else:
            process.void.discard(object_id)

    def finish(self, w: int, choice: int, picks: list[int], keep: bool) -> None:
        process = self.processes[w]
        ready = [running for running in process.running if running.open]
        if not ready:
            return
        running = ready[choice % len(ready)]
        process.running.remove(running)
        submitter = self.processes[running.submitter]
        results = {make_id(submitter.name, running.seq << 32 | index) for index in range(2)}
        contents = [i for i in self.pick(process, picks) if not self.reaches(i, results)]
        self.graph.update(dict.fromkeys(results, contents))
        reply = process.refs.finish_task(submitter.name, [process.entry(i) for i in contents], running.cover)
        process.replies[reply] = (running.seq, contents)
        if not keep:
            self.drop_all(process, [*contents, *(foreign.id for foreign in running.cover.refs)])

    def drop(self, p: int, choice: int) -> None:
        process = self.processes[p]
        if process.locals:
            self.drop_id(process, process.locals[choice % len(process.locals)])

    def drop_id(self, process: Process, object_id: bytes) -> None:
        process.locals.remove(object_id)
        process.refs.drop_local([process.entry(object_id)])

    def get(self, p: int, choice: int, direct: bool, move: bool) -> None:
        """Read a value: our own, from shared memory (`direct`), or from its owner; `move`: and drop the container."""
        process = self.processes[p]
        if not process.locals:
            return
        object_id = process.locals[choice % len(process.locals)]
        owner = self.index_of(object_id)
        if owner == p or (direct and owner in self.alive):
            cover = process.entry(object_id)
            for inner in self.processes[owner].values.get(object_id, ()):
                self.arrive(process, inner, cover, ("object", object_id))
            if move:
                self.drop_id(process, object_id)
        elif owner in self.alive:
            process.entry(object_id).local += 1
            process.getting.append(object_id)
            self.send(p, owner, "fetch", object_id)
            if move:
                self.drop_id(process, object_id)

    # --- the network ---------------------------------------------------------------------------

    def send(self, a: int, b: int, kind: str, body: Any) -> None:
        self.uids += 1
        if b in self.alive:
            lane = self.old if self.uids * 7 % 10 < 3 else self.wires
            lane[a, b].append(Frame(self.uids, kind, body))

    def frames(self, late: bool) -> list[tuple[tuple[int, int], deque[Frame]]]:
        return sorted((self.old if late else self.wires).items())

    def deliver(self, a: int, b: int, late: bool = False) -> bool:
        wire = (self.old if late else self.wires)[a, b]
        if b not in self.alive or not wire:
            return False
        frame = wire.popleft()
        process = self.processes[b]
        if frame.kind not in {"changes", "done"}:
            if frame.uid in process.seen:
                return True
            process.seen.add(frame.uid)
        getattr(self, "on_" + frame.kind)(process, a, frame.body)
        return True

    def deliver_all(self) -> None:
        """Carry out and deliver until nothing moves."""
        moved = True
        while moved:
            for p in sorted(self.alive):
                self.pump(p, flush=True)
            pairs = [(wire, late) for late in (False, True) for wire, _ in self.frames(late)]
            moved = sum(self.deliver(a, b, late) for (a, b), late in pairs) > 0

    def break_connection(self, a: int, b: int, kept_a: int, kept_b: int) -> None:
        """Lose what is on the way but the first few, which an old socket still delivers; repeat the rest."""
        for x, y, kept in ((a, b, kept_a), (b, a, kept_b)):
            wire = self.wires[x, y]
            frames = list(wire)
            wire.clear()
            if x not in self.alive or y not in self.alive:
                continue
            self.old[x, y].extend(frames[:kept])
            wire.extend(frame for frame in frames if frame.kind not in {"changes", "done"})
            self.processes[x].refs.reconnected(self.processes[y].name)

    def kill(self, x: int, kept: int) -> None:
        """The process dies; of what it was sending, `kept` messages per peer are with their receivers' kernels."""
        if len(self.alive) <= 1 or x not in self.alive:
            return
        self.void_covers_of(x)
        self.alive.remove(x)
        for y in range(len(self.processes)):
            self.wires[y, x].clear()
            self.old[y, x].clear()
            wire = self.wires[x, y]
            while len(wire) > kept:
                wire.pop()
            if y in self.alive:
                self.notices.add((y, x))
        self.notices = {(y, z) for y, z in self.notices if y in self.alive}

    def notice(self, p: int, x: int) -> bool:
        """`p` has read all that `x` sent and hears of its death."""
        if (p, x) not in self.notices or self.wires[x, p] or self.old[x, p]:
            return False
        self.notices.remove((p, x))
        process = self.processes[p]
        process.queued = [task for task in process.queued if task[0] != x]
        process.running = [running for running in process.running if running.submitter != x]
        process.replies = {r: v for r, v in process.replies.items() if r.submitter != self.processes[x].name}
        for seq in [seq for seq, pending in process.pending.items() if pending.worker == x]:
            self.end_pending(process, seq)
        for object_id in [i for i in process.getting if self.index_of(i) == x]:
            process.getting.remove(object_id)
            process.refs.drop_local([process.entry(object_id)])
        process.fetches = [fetch for fetch in process.fetches if fetch[1] != x]
        process.refs.process_died(self.processes[x].name)
        return True

    def end_pending(self, process: Process, seq: int) -> None:
        pending = process.pending.pop(seq)
        for result in pending.results:
            if not result.freed:
                process.values[make_id(process.name, result.key)] = []
        process.refs.unhold([process.entry(i) for i in pending.arguments])
        self.answer_fetches(process)

    def on_changes(self, process: Process, sender: int, body: bytes) -> None:
        process.refs.receive(self.processes[sender].name, msgspec.msgpack.decode(body, type=Changes))

    def on_done(self, process: Process, sender: int, body: tuple[int, list[int]]) -> None:
        process.refs.acknowledged(self.processes[sender].name, *body)

    def on_task(self, process: Process, sender: int, body: tuple[int, list[bytes]]) -> None:
        process.queued.append((sender, *body))

    def on_result(self, process: Process, sender: int, body: tuple[Any, ...]) -> None:
        seq, contents, handover, borrows, void = body
        pending = process.pending.pop(seq)
        if borrows is not None:
            self.on_changes(process, sender, borrows)
        values: list[tuple[Owned, list[bytes]]] = [(result, []) for result in pending.results]
        for n, object_id in enumerate(contents):
            values[n % len(values)][1].append(object_id)
        for result, inner in values:
            if not result.freed:
                there = [i for i in inner if self.is_there(process, i, void)]
                process.values[make_id(process.name, result.key)] = there
        if handover:
            process.refs.accept(self.processes[sender].name, handover, values)
        for object_id in contents:
            self.note_cover(process, object_id, ("void",) if object_id in void else ("sent",))
        process.refs.unhold([process.entry(i) for i in pending.arguments])
        self.answer_fetches(process)

    def is_there(self, process: Process, object_id: bytes, void: set[bytes]) -> bool:
        """An own object inside a result; it may be gone only if nothing was promised for it."""
        if owner_of(object_id) != process.name or object_id in process.entries:
            return True
        assert object_id in void, "an own object inside a result was gone"
        return False

    def on_fetch(self, process: Process, sender: int, object_id: bytes) -> None:
        process.fetches.append((object_id, sender))
        self.answer_fetches(process)

    def answer_fetches(self, process: Process) -> None:
        waiting, process.fetches = process.fetches, []
        for object_id, who in waiting:
            if object_id in process.values or object_id not in process.entries:
                contents = process.values.get(object_id, [])
                self.send(process.index, who, "value", (object_id, contents))
            else:
                process.fetches.append((object_id, who))

    def on_value(self, process: Process, sender: int, body: tuple[bytes, list[bytes]]) -> None:
        object_id, contents = body
        process.getting.remove(object_id)
        container = process.refs.foreign[object_id]
        for inner in contents:
            self.arrive(process, inner, container, ("object", object_id))
        process.refs.drop_local([container])

    # --- the shell ------------------------------------------------------------------------------

    def pump(self, p: int, flush: bool) -> None:
        """Carry out what a core asks for."""
        process = self.processes[p]
        refs = process.refs
        if flush:
            refs.flush()
        out = refs.take()
        for name, changes in out.sends:
            self.send(p, name[0] - 65, "changes", msgspec.msgpack.encode(changes))
        for name, request, lost in out.acks:
            self.send(p, name[0] - 65, "done", (request, lost))
        for gate in out.ready:
            if isinstance(gate, Reply):
                self.depart(process, gate)
            else:
                for running in process.running:
                    running.open = running.open or running.cover is gate
        for foreign in out.lost:
            assert foreign.owner in refs.dead or foreign.id in process.void, "a reference was lost"
        for entry in out.freed:
            object_id = make_id(process.name, entry.key)
            del process.entries[object_id]
            process.values.pop(object_id, None)
        for object_id in list(process.covers):
            known = refs.foreign.get(object_id)
            if known is None or known.registration is Registration.REGISTERED:
                del process.covers[object_id]
                process.void.discard(object_id)

    def depart(self, process: Process, reply: Reply) -> None:
        if reply not in process.replies:
            return
        seq, contents = process.replies.pop(reply)
        borrows = process.refs.depart(reply.submitter, [reply])
        encoded = None if borrows is None else msgspec.msgpack.encode(borrows)
        void = {i for i in contents if i in process.void or self.is_lost(process, i)}
        self.send(process.index, reply.submitter[0] - 65, "result", (seq, contents, reply.handover, encoded, void))

    def is_handing_over(self, p: int, sent: bool) -> bool:
        """It has promised references whose receiver is not registered yet: a good moment to die."""
        process = self.processes[p]
        owners = [self.processes[i] for i in self.alive if i != p]
        peers = [peer for owner in owners for peer in owner.refs.peers.values()]
        promised = {number for peer in peers for sender, number in peer.provisional if sender == process.name}
        if not sent:
            return bool(promised)
        frames = [frame for late in (False, True) for (a, _), wire in self.frames(late) for frame in wire if a == p]
        return any(frame.kind == "result" and frame.body[2] in promised for frame in frames)

    # --- the model's checks --------------------------------------------------------------------------

    def index_of(self, object_id: bytes) -> int:
        return owner_of(object_id)[0] - 65

    def reaches(self, object_id: bytes, goals: set[bytes]) -> bool:
        """Whether the value contains one of the goals, at any depth."""
        seen: set[bytes] = set()
        todo = [object_id]
        while todo:
            current = todo.pop()
            if current in goals:
                return True
            if current not in seen:
                seen.add(current)
                todo += self.graph.get(current, ())
        return False

    def is_lost(self, process: Process, object_id: bytes) -> bool:
        foreign = process.refs.foreign.get(object_id)
        return foreign is not None and foreign.registration is Registration.LOST

    def is_void_cover(self, process: Process, object_id: bytes, cover: tuple[Any, ...]) -> bool:
        """Whether what covered the reference at `process` keeps nothing alive."""
        if cover[0] in {"void", "sent"}:
            return bool(cover[0] == "void")
        if cover[0] == "task":
            return cover[1] not in self.alive or object_id in self.processes[cover[1]].void
        holder = self.index_of(cover[1])
        if holder not in self.alive or cover[1] in process.void:
            return True
        return object_id in self.processes[holder].void

    def void_covers_of(self, x: int) -> None:
        """Find what only `x` covers, directly or through others, at the moment of its death."""
        self.alive.remove(x)
        changed = True
        while changed:
            changed = False
            for p in self.alive:
                process = self.processes[p]
                for object_id, covers in process.covers.items():
                    if object_id not in process.void and all(self.is_void_cover(process, object_id, c) for c in covers):
                        process.void.add(object_id)
                        changed = True
        self.alive.add(x)

    def check(self) -> None:
        for p in self.alive:
            process = self.processes[p]
            validate(process.refs)
            for object_id in process.held():
                owner = self.index_of(object_id)
                if owner not in self.alive or object_id in process.void or self.is_lost(process, object_id):
                    continue
                assert object_id in self.processes[owner].entries, "freed although a living process has it"
                process.entry(object_id)

    def wind_down(self) -> None:
        """Let everything end by itself, then look for what is left."""
        for _ in range(10_000):
            if not self.one_round():
                break
        else:
            raise AssertionError("the processes never come to rest")
        for p in self.alive:
            self.check_empty(self.processes[p])

    def one_round(self) -> bool:
        """Finish, drop, deliver, flush once everywhere; False at rest."""
        moved = False
        count = range(len(self.processes))
        for p in sorted(self.alive):
            process = self.processes[p]
            moved |= bool(process.queued or process.locals or any(r.open for r in process.running))
            while process.queued:
                self.start(p, 0, actor=False)
            while any(running.open for running in process.running):
                self.finish(p, 0, [], keep=True)
            while process.locals:
                self.drop(p, 0)
            self.pump(p, flush=True)
            for a in count:
                for late in (True, False):
                    while self.deliver(a, p, late):
                        self.pump(p, flush=True)
                        moved = True
                moved |= self.notice(p, a)
                self.pump(p, flush=True)
            self.check()
        return moved

    def check_empty(self, process: Process) -> None:
        refs = process.refs
        left: list[Any] = [process.entries, refs.owned, refs.foreign, refs.containers, refs.tasks, refs.questions]
        assert not any(left), ("leaked", left, describe_all(refs, [*process.entries.values(), *refs.foreign.values()]))
        assert not process.pending, "a reply never came"
        assert not refs.has_borrowers()
        for peer in refs.peers.values():
            tables: list[Any] = [peer.transit, peer.tombstones, peer.unacked, peer.done, peer.outbox]
            assert not any(tables), ("leaked", tables)
