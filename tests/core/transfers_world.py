"""Several nodes' transfer cores, with stores, lines and links of a world of its own.

Memory is modelled: a chunk's bytes are read when the network takes them from the sender's memory and written where the
receiver's core said, in two steps between which anything may happen. Memory that was given up must be touched by
neither.

An object's owner lives at one node, which is where it is freed. If that node dies, its word may be lost with it, and
each other node frees what it has of the owner's (:mod:`moray.node.owned`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from moray.core import transfers_types as t
from moray.core.transfers import Transfers

CHUNK = 4


class Region:
    """The memory of one copy."""

    def __init__(self, name: bytes, size: int, content: int | None = None) -> None:
        self.name = name
        self.bytes: list[int | None] = [content] * size
        self.freed = False
        self.sealed = content is not None
        self.secondary = content is None
        #: Readers: (process, request) of clients; pins of the node itself.
        self.readers: set[tuple[bytes, int]] = set()
        self.node_pins = 0
        #: Freed, but still pinned.
        self.doomed = False


class Line:
    """A connection on which `puller` pulls from `source`."""

    def __init__(self, number: int, puller: Node, source: Node) -> None:
        self.number, self.puller, self.source = number, puller, source
        self.to_source: deque[Any] = deque()
        self.to_puller: deque[Any] = deque()
        #: A chunk of which the beginning has arrived: (number, source region, offset, size, target region or None).
        self.arriving: tuple[int, Region, int, int, Region | None] | None = None
        self.ended = False


class Node:
    """One node: its core, its store."""

    def __init__(self, world: World, tag: bytes, budget: int) -> None:
        self.world, self.tag = world, tag
        self.core = Transfers(tag, budget, lambda name: name in self.store, self.has_whole, CHUNK)
        self.store: dict[bytes, Region] = {}
        self.doomed: list[Region] = []
        #: Memory asked for and not yet there.
        self.asked: deque[tuple[bytes, int]] = deque()
        self.making: dict[bytes, Region] = {}
        self.lines: dict[bytes, Line] = {}
        self.dead = False
        #: Answers to pins, by request.
        self.answers: dict[tuple[bytes, int], str] = {}
        self.waiting: dict[tuple[bytes, int], bytes] = {}
        self.located: dict[int, list[bytes]] = {}
        self.peak = 0

    def has_whole(self, name: bytes) -> bool:
        return name in self.store and self.store[name].sealed

    # --- what happens here ---

    def pin(self, process: bytes, request: int, name: bytes, primary: bytes, size: int, priority: int = 0) -> None:
        self.waiting[process, request] = name
        self.run(self.core.pin(process, request, name, primary, size, priority))

    def unpin(self, process: bytes, request: int) -> None:
        for region in [*self.store.values(), *self.doomed]:
            region.readers.discard((process, request))
        self.sweep()

    def die_process(self, process: bytes) -> None:
        for key in [key for key in self.waiting if key[0] == process]:
            del self.waiting[key]
        for region in [*self.store.values(), *self.doomed]:
            region.readers = {reader for reader in region.readers if reader[0] != process}
        self.run(self.core.process_died(process))
        self.sweep()

    def free(self, name: bytes, primary: bytes = b"") -> None:
        self.free_here(name)
        self.run(self.core.freed([name], b"" if primary == self.tag else primary))

    def free_here(self, name: bytes) -> None:
        region = self.store.pop(name, None)
        if region is not None:
            region.doomed = True
            self.doomed.append(region)
        self.sweep()

    def owners_died(self, tag: bytes) -> None:
        """What is here of the owners at that node is freed."""
        names = [name for name in self.store if self.world.owners.get(name) == tag]
        for name in names:
            self.free_here(name)
        self.run(self.core.freed(names))

    def drop(self, name: bytes) -> bool:
        """The store wants room."""
        region = self.store.get(name)
        if region is None or not (region.secondary and region.sealed) or region.readers or region.node_pins:
            return False
        del self.store[name]
        region.freed = True
        self.run(self.core.dropped(name))
        return True

    def sweep(self) -> None:
        for region in list(self.doomed):
            if not region.readers and not region.node_pins and self.making.get(region.name) is not region:
                region.freed = True
                self.doomed.remove(region)

    def place(self) -> None:
        """The store grants memory."""
        name, size = self.asked.popleft()
        if name in self.store:
            self.run(self.core.copy_refused(name, "exists", "it is here"))
            return
        region = Region(name, size)
        self.store[name] = self.making[name] = region
        self.run(self.core.copy_placed(name))

    # --- the shell ---

    def run(self, actions: list[t.Action]) -> None:
        todo = deque(actions)
        while todo:
            action = todo.popleft()
            todo.extend(self.carry_out(action) or ())
        self.peak = max(self.peak, self.core.stats()["in_flight_bytes"])
        self.core.check()

    def carry_out(self, action: Any) -> list[t.Action] | None:  # noqa: C901 - one branch per action.
        world = self.world
        if isinstance(action, t.PinHere):
            region = self.store[action.object]
            if self.waiting.pop((action.process, action.request), None) is not None:
                region.readers.add((action.process, action.request))
                self.answers[action.process, action.request] = "pinned"
        elif isinstance(action, t.FailPin):
            self.waiting.pop((action.process, action.request), None)
            self.answers[action.process, action.request] = action.detail
        elif isinstance(action, t.MakeCopy):
            self.asked.append((action.object, action.size))
        elif isinstance(action, t.SealCopy):
            region = self.making.pop(action.object)
            assert None not in region.bytes, "sealed with holes"
            assert len({*region.bytes}) == 1, "two objects in one"
            region.sealed = True
        elif isinstance(action, t.AbortCopy):
            self.asked = deque(each for each in self.asked if each[0] != action.object)
            aborted = self.making.pop(action.object) if action.object in self.making else None
            if aborted is not None:
                region = aborted
                region.freed = True
                if self.store.get(action.object) is region:
                    del self.store[action.object]
                self.doomed = [each for each in self.doomed if each is not region]
        elif isinstance(action, t.HoldObject):
            region = self.store.get(action.object)  # type: ignore[assignment]
            if region is None:
                return self.core.not_held(action.object)
            region.node_pins += 1
            if region.sealed:
                return self.core.held(action.object, len(region.bytes))
            world.when_sealed.append((self, region))
        elif isinstance(action, t.LetGo):
            held = [r for r in [*self.doomed, self.store.get(action.object)] if r and r.name == action.object]
            next(region for region in held if region.node_pins).node_pins -= 1
            self.sweep()
        elif isinstance(action, t.Promote):
            self.store[action.object].secondary = False
        else:
            self.send(action)
        return world.sealed_meanwhile(self)

    def send(self, action: Any) -> None:
        world = self.world
        if isinstance(action, t.AskFor):
            line = self.lines.get(action.node)
            if line is not None:  # Otherwise there will be one.
                line.to_source.append(action)
        elif isinstance(action, t.Acknowledge):
            if action.node in self.lines:
                self.lines[action.node].to_source.append(action)
        elif isinstance(action, (t.Begin, t.SendChunk, t.Refuse)):
            line = world.lines.get(action.line)
            if line is not None:
                item: Any = action
                if isinstance(action, t.SendChunk):
                    region = self.making.get(action.object) or self.store.get(action.object)
                    region = region or next(r for r in self.doomed if r.name == action.object)
                    item = (action, region)
                line.to_puller.append(item)
        elif isinstance(action, t.Located):
            self.located[action.request] = action.nodes
        else:
            world.links.setdefault((self.tag, action.node), deque()).append(action)


class World:
    """All nodes, and what is on its way between them."""

    def __init__(self, count: int, budget: int = 64) -> None:
        self.nodes: dict[bytes, Node] = {}
        self.lines: dict[int, Line] = {}
        self.numbers = 0
        #: (from, to) → messages of the link.
        self.links: dict[tuple[bytes, bytes], deque[Any]] = {}
        self.when_sealed: list[tuple[Node, Region]] = []
        #: Object → the node of its owner.
        self.owners: dict[bytes, bytes] = {}
        for number in range(1, count + 1):
            self.nodes[number.to_bytes(4, "big")] = Node(self, number.to_bytes(4, "big"), budget)
        for node in self.nodes.values():
            for tag in self.nodes:
                node.run(node.core.node_joined(tag))

    def sealed_meanwhile(self, node: Node) -> list[t.Action]:
        done = [(n, r) for n, r in self.when_sealed if n is node and (r.sealed or r.freed)]
        self.when_sealed = [each for each in self.when_sealed if each not in done]
        actions: list[t.Action] = []
        for _, region in done:
            actions += (
                node.core.held(region.name, len(region.bytes)) if region.sealed else node.core.not_held(region.name)
            )
        return actions

    def living(self) -> list[Node]:
        return [node for node in self.nodes.values() if not node.dead]

    # --- the network ---

    def connect(self, puller: Node, source: Node) -> Line:
        self.numbers += 1
        line = self.lines[self.numbers] = Line(self.numbers, puller, source)
        return line

    def steps(self) -> list[Callable[[], None]]:
        """What may happen next, in any order."""
        steps: list[Callable[[], None]] = []
        for node in self.living():
            if node.asked:
                steps.append(node.place)
            missing = sorted({pull.source for pull in node.core._by_number.values()} - node.lines.keys())
            missing = [tag for tag in missing if node.core.asks(tag) and not self.nodes[tag].dead]
            steps += [lambda node=node, tag=tag: self.line_again(node, tag) for tag in missing]  # type: ignore[misc]
        for line in self.lines.values():
            if line.to_source:
                steps.append(lambda line=line: self.to_source(line))  # type: ignore[misc]
            if line.to_puller or line.arriving:
                steps.append(lambda line=line: self.to_puller(line))  # type: ignore[misc]
        for (sender, receiver), queue in self.links.items():
            if queue and not self.nodes[sender].dead and not self.nodes[receiver].dead:
                steps.append(lambda s=sender, r=receiver: self.by_link(s, r))  # type: ignore[misc]
        return steps

    def line_again(self, node: Node, tag: bytes) -> None:
        node.lines[tag] = self.connect(node, self.nodes[tag])
        node.run(node.core.line_up(tag))

    def to_source(self, line: Line) -> None:
        message = line.to_source.popleft()
        core = line.source.core
        if isinstance(message, t.AskFor):
            line.source.run(
                core.asked(
                    line.number, line.puller.tag, message.pull, message.object, message.offset, message.credit,
                    message.avoid,
                )
            )  # fmt: skip
        else:
            line.source.run(core.acknowledged(line.number, message.pull, message.size, message.stop))

    def to_puller(self, line: Line) -> None:
        puller, core = line.puller, line.puller.core
        if line.arriving:
            number, source, offset, size, target = line.arriving
            line.arriving = None
            assert not source.freed, "sent from memory that is somebody else's"
            if target is not None:
                assert not target.freed, "written over memory that is somebody else's"
                target.bytes[offset : offset + size] = source.bytes[offset : offset + size]
            puller.run(core.chunk_ends(line.source.tag, number, size))
            return
        message = line.to_puller.popleft()
        if isinstance(message, tuple):
            chunk, source = message
            assert not source.freed, "sent from memory that is somebody else's"
            name = core.chunk_begins(chunk.pull, chunk.offset, chunk.size)
            line.arriving = (chunk.pull, source, chunk.offset, chunk.size, puller.making[name] if name else None)
        elif isinstance(message, t.Begin):
            puller.run(core.begins(message.pull, message.size))
        else:
            puller.run(core.refused(message.pull, message.code, message.sources))

    def by_link(self, sender: bytes, receiver: bytes) -> None:
        message, node = self.links[sender, receiver].popleft(), self.nodes[receiver]
        core = node.core
        if isinstance(message, t.TellCopies):
            node.run(core.copies_told(sender, message.objects, message.gone))
        elif isinstance(message, t.FreeAt):
            for name in message.objects:
                node.free_here(name)
            node.run(core.freed(message.objects, by_primary=True))
        elif isinstance(message, t.Find):
            node.run(core.find_asked(sender, message.request, message.objects))
        elif isinstance(message, t.Found):
            node.run(core.found(sender, message.request, message.objects))
        else:
            assert isinstance(message, t.PromoteAt)
            node.run(core.promote_asked(sender, message.request, message.objects, message.copies))

    def cut(self, line: Line) -> None:
        """A connection is lost, and what was on it."""
        del self.lines[line.number]
        if line.puller.lines.get(line.source.tag) is line:
            del line.puller.lines[line.source.tag]
            if not line.puller.dead:
                line.puller.run(line.puller.core.line_down(line.source.tag))
        if not line.source.dead:
            line.source.run(line.source.core.line_ended(line.number))

    def kill(self, node: Node) -> None:
        """A node dies; everybody hears of it at once."""
        node.dead = True
        for line in [line for line in self.lines.values() if node in (line.puller, line.source)]:
            self.cut(line)
        for other in self.living():
            other.run(other.core.node_died(node.tag))
            other.owners_died(node.tag)

    # --- runs ---

    def settle(self, limit: int = 100_000) -> None:
        """Let everything happen that can."""
        for _ in range(limit):
            steps = self.steps()
            if not steps:
                return
            steps[0]()
        raise AssertionError("it never ends")

    def put(self, tag: bytes, name: bytes, size: int, content: int = 1) -> None:
        self.nodes[tag].store[name] = Region(name, size, content)

    def check_idle(self) -> None:
        """Nothing is on its way: nobody waits, nothing is held in vain."""
        for node in self.living():
            assert not node.waiting, f"pins never answered: {node.waiting}"
            stats = node.core.stats()
            assert stats["pulls"] == stats["serving"] == stats["in_flight_bytes"] == 0
            assert not node.making
            assert not node.doomed or all(region.readers for region in node.doomed)
            for region in node.store.values():
                assert not region.node_pins
                assert region.sealed
                assert region.secondary is (region.name in node.core.copies)
