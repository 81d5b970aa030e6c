"""One node's sending side: whom it sends an object to, whom it sends on, and who has copies from it.

Theory of operation. At most `fanout` pulls of one object are *active*; later ones wait in a queue, unless the asker
can be sent on. Who is sent on is decided at the node of the primary copy, which all pullers ask first: it knows who
has asked (:class:`Copies`) and gives each the least deep node that serves fewer than `fanout`. A node that is still
pulling counts: it passes on what it has (its source is *partial*), so the whole tree receives at once, a chunk behind
each other. Nobody is ever sent to a node below itself, so no two wait for each other's bytes.

The bytes of a chunk must stay where they are until it is acknowledged, whatever becomes of the object or the pull
(the connection still reads them), or until the line has ended. A whole object is held (pinned) for that; a partial
one may not be given up while :meth:`Serving.reads` it.

REF-FREE. Whoever was given a copy, or sent on for one, is remembered until it says that it has none, and is told when
the object is freed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from moray.core.transfers_types import Begin, Do, FreeAt, HoldObject, LetGo, Refuse, SendChunk


class Holder:
    """Another node that has a copy of an object, or is pulling one."""

    __slots__ = ("complete", "depth", "load", "parent")

    def __init__(self) -> None:
        self.complete = False
        #: Who sends to it; b"": this node; None: nobody.
        self.parent: bytes | None = None
        #: How many nodes are between it and a whole copy.
        self.depth = 0
        #: How many it is sending to.
        self.load = 0


class Copies:
    """The copies of one object that this node knows of, not counting its own."""

    def __init__(self) -> None:
        #: In the order in which they asked.
        self.holders: dict[bytes, Holder] = {}

    def assign(self, node: bytes, avoid: list[bytes], own_load: int, fanout: int) -> bytes:
        """Who is to send to `node`; b"": this node."""
        holder = self.holders.get(node)
        if holder is None:
            holder = self.holders[node] = Holder()
            below = False
        else:
            below = holder.load > 0
            self._leave(holder)
            holder.complete = False
        best, depth = b"", 0
        if own_load >= fanout:
            found: tuple[int, int, bytes] | None = None
            for tag, other in self.holders.items():
                if other.load >= fanout or tag == node or tag in avoid:
                    continue
                if other.parent is None and not other.complete:
                    continue  # Nobody sends to it at the moment.
                rank = (other.depth, other.load, tag)
                if (found is None or rank[:2] < found[:2]) and not (below and self._is_below(tag, node)):
                    found = rank
            if found is not None:
                depth, best = found[0], found[2]
                self.holders[best].load += 1
        holder.parent, holder.depth = best, depth + 1
        return best

    def complete(self, node: bytes) -> None:
        """It has a whole copy now."""
        holder = self.holders.get(node)
        if holder is None:
            holder = self.holders[node] = Holder()
        self._leave(holder)
        holder.complete = True
        holder.depth = 0

    def gone(self, node: bytes) -> None:
        """It has none any more."""
        holder = self.holders.pop(node, None)
        if holder is not None:
            self._leave(holder)
            for other in self.holders.values():
                if other.parent == node:
                    other.parent = None

    def _leave(self, holder: Holder) -> None:
        parent, holder.parent = holder.parent, None
        if parent and parent in self.holders:
            self.holders[parent].load -= 1

    def _is_below(self, tag: bytes, node: bytes) -> bool:
        parent: bytes | None = tag
        while parent:
            if parent == node:
                return True
            parent = self.holders[parent].parent if parent in self.holders else None
        return False

    def check(self) -> None:
        """Raise AssertionError unless the loads are right and nobody is below itself."""
        for tag, holder in self.holders.items():
            assert holder.load == sum(other.parent == tag for other in self.holders.values())
            assert not holder.complete or holder.parent is None
            assert not holder.parent or not self._is_below(holder.parent, tag), "a circle of sources"


class Serve:
    """One pull of another node."""

    __slots__ = ("active", "credit", "line", "next", "node", "pull", "stopped", "unread")

    def __init__(self, line: int, node: bytes, pull: int, offset: int, credit: int) -> None:
        self.line = line
        self.node = node
        self.pull = pull
        #: Offset of the next chunk.
        self.next = offset
        #: Bytes that may be sent.
        self.credit = credit
        #: Bytes sent and not acknowledged.
        self.unread = 0
        self.active = False
        #: Nothing more is sent.
        self.stopped = False


class Source:
    """An object here that others pull."""

    __slots__ = ("have", "held", "holding", "lost", "object", "partial", "queue", "serves", "size")

    def __init__(self, object: bytes) -> None:
        self.object = object
        self.size = -1
        #: So many bytes from the beginning are here.
        self.have = 0
        #: This node is itself still pulling it.
        self.partial = False
        #: The store was asked to pin it, and has not answered.
        self.holding = False
        self.held = False
        #: It will not come any more: nothing new is begun.
        self.lost = False
        #: Being sent, or stopped and not all acknowledged.
        self.serves: list[Serve] = []
        #: Waiting for one of these to end, or for the store.
        self.queue: deque[Serve] = deque()


class Serving:
    """What a node sends to others. `left`: called with an object that nobody here reads any more."""

    def __init__(self, chunk: int, fanout: int, do: Do, left: Callable[[bytes], None]) -> None:
        self._chunk = chunk
        self._fanout = fanout
        self._do = do
        self._left = left
        self._sources: dict[bytes, Source] = {}
        #: (line, pull) → its object.
        self._by_pull: dict[tuple[int, int], bytes] = {}
        #: Object → who has copies from here.
        self.copies: dict[bytes, Copies] = {}

    # --- other nodes -------------------------------------------------------------------------------------

    def asked(
        self, line: int, node: bytes, pull: int, object: bytes, offset: int, credit: int, avoid: list[bytes],
        primary: bool, partial: tuple[int, int] | None,
    ) -> None:  # fmt: skip
        """A node wants an object. `primary`: nobody else has the primary copy, as far as is known; `partial`: size and
        bytes that are here, if this node is pulling it itself."""
        source = self._sources.get(object)
        if source is not None and source.lost:
            self._do(Refuse(line, pull, "lost", []))
            return
        if source is not None:
            self._supersede(source, node)
        load = sum(not serve.stopped for serve in source.serves) + len(source.queue) if source is not None else 0
        copies = self.copies.get(object)
        if copies is None:
            copies = self.copies[object] = Copies()
        elsewhere = copies.assign(node, avoid, load if primary else 0, self._fanout)
        if elsewhere:
            self._do(Refuse(line, pull, "elsewhere", [elsewhere]))
            if source is not None:
                self._feed(source)
            return
        if source is None:
            source = self._sources[object] = Source(object)
            if partial is not None:
                source.partial = True
                source.size, source.have = partial
            else:
                source.holding = True
                self._do(HoldObject(object))
        self._by_pull[line, pull] = object
        source.queue.append(Serve(line, node, pull, offset, credit))
        self._feed(source)

    def _supersede(self, source: Source, node: bytes) -> None:
        """A node asks for one object once at a time: its earlier line is lost, even if that is not known here yet."""
        for serve in [serve for serve in source.queue if serve.node == node]:
            source.queue.remove(serve)
            del self._by_pull[serve.line, serve.pull]
        for serve in [serve for serve in source.serves if serve.node == node]:
            serve.stopped = True
            if not serve.unread:
                source.serves.remove(serve)
                del self._by_pull[serve.line, serve.pull]

    def acknowledged(self, line: int, pull: int, size: int, stop: bool) -> None:
        """Bytes have arrived; unknown pulls have ended meanwhile."""
        name = self._by_pull.get((line, pull))
        if name is None:
            return
        source = self._sources[name]
        serve = next((each for each in (*source.serves, *source.queue) if (each.line, each.pull) == (line, pull)), None)
        assert serve is not None
        serve.unread -= size
        serve.credit += size
        serve.stopped = serve.stopped or stop
        if not serve.active and serve.stopped:
            source.queue.remove(serve)
            del self._by_pull[line, pull]
            self._leave_if_unused(source)
            return
        self._send(source, serve)

    def line_ended(self, line: int) -> None:
        """Nothing is read for it any more."""
        for source in list(self._sources.values()):
            mine = [serve for serve in (*source.serves, *source.queue) if serve.line == line]
            for serve in mine:
                (source.serves if serve.active else source.queue).remove(serve)
                del self._by_pull[line, serve.pull]
            if mine:
                self._feed(source)

    def node_died(self, node: bytes) -> None:
        """It has no copies any more. (Its lines have ended.)"""
        for name, copies in list(self.copies.items()):
            copies.gone(node)
            self._forget_if_alone(name, copies)

    def copy_told(self, node: bytes, object: bytes, gone: bool, here: bool) -> None:
        """A node has a copy, or not any more. `here`: the object is in this node's store."""
        copies = self.copies.get(object)
        if gone:
            if copies is not None:
                copies.gone(node)
                self._forget_if_alone(object, copies)
        elif copies is not None or here:
            if copies is None:
                copies = self.copies[object] = Copies()
            copies.complete(node)
        else:
            self._do(FreeAt(node, [object]))  # It was freed while the copy was on its way.

    # --- this node ------------------------------------------------------------------------------------------

    def held(self, object: bytes, size: int) -> None:
        """The store has pinned it."""
        source = self._sources.get(object)
        if source is None or not source.holding:
            self._do(LetGo(object))  # Whom it was for has left.
            return
        source.holding, source.held, source.partial = False, True, False
        source.size = source.have = size
        for serve in list(source.serves):
            self._send(source, serve)
        self._feed(source)

    def not_held(self, object: bytes) -> None:
        """The store has not got it."""
        source = self._sources.get(object)
        if source is not None and source.holding:
            source.holding = False
            self.give_up(object)
        copies = self.copies.get(object)
        if copies is not None:
            for node in [node for node, holder in copies.holders.items() if not holder.complete]:
                copies.gone(node)
            self._forget_if_alone(object, copies)

    def progress(self, object: bytes, have: int) -> None:
        """This node has pulled more of it."""
        source = self._sources.get(object)
        if source is not None and source.partial:
            source.have = have
            for serve in list(source.serves):
                self._send(source, serve)

    def about_to_seal(self, object: bytes) -> None:
        """This node has pulled all of it: from the seal on, the memory stays only if it is held."""
        source = self._sources.get(object)
        if source is not None and source.partial:
            source.partial, source.holding = False, True
            self._do(HoldObject(object))

    def give_up(self, object: bytes) -> None:
        """It will not come, or is not here: whoever wants it must look elsewhere."""
        source = self._sources.get(object)
        if source is None or source.lost:
            return
        source.lost = True
        for serve in (*source.serves, *source.queue):
            if not serve.stopped:
                serve.stopped = True
                self._do(Refuse(serve.line, serve.pull, "lost", []))
                copies = self.copies.get(object)
                if copies is not None:
                    copies.gone(serve.node)
                    self._forget_if_alone(object, copies)
        for serve in source.queue:
            del self._by_pull[serve.line, serve.pull]
        source.queue.clear()
        for serve in list(source.serves):
            self._end_if_read(source, serve)
        self._leave_if_unused(source)

    def freed(self, object: bytes) -> None:
        """No reference is left (REF-FREE). The next object of this id is another one."""
        copies = self.copies.pop(object, None)
        if copies is not None:
            for node in copies.holders:
                self._do(FreeAt(node, [object]))
        self.give_up(object)

    def reads(self, object: bytes) -> bool:
        """Whether somebody wants it from here, or its bytes may still be on their way out."""
        return object in self._sources

    # --- sending --------------------------------------------------------------------------------------------

    def _feed(self, source: Source) -> None:
        """Begin with the next in the queue, as far as there is room."""
        if not source.holding:
            active = sum(not serve.stopped for serve in source.serves)
            while source.queue and active < self._fanout:
                serve = source.queue.popleft()
                serve.active = True
                active += 1
                source.serves.append(serve)
                self._do(Begin(serve.line, serve.pull, source.size))
                self._send(source, serve)
        self._leave_if_unused(source)

    def _send(self, source: Source, serve: Serve) -> None:
        """Send what there is and what may be sent."""
        while serve.active and not serve.stopped and serve.credit > 0 and serve.next < source.have:
            size = min(self._chunk, source.have - serve.next, serve.credit)
            self._do(SendChunk(serve.line, serve.pull, source.object, serve.next, size))
            serve.next += size
            serve.unread += size
            serve.credit -= size
        self._end_if_read(source, serve)

    def _end_if_read(self, source: Source, serve: Serve) -> None:
        done = serve.stopped or (source.size >= 0 and serve.next >= source.size)
        if serve.active and done and not serve.unread and serve in source.serves:
            source.serves.remove(serve)
            del self._by_pull[serve.line, serve.pull]
            self._feed(source)

    def _leave_if_unused(self, source: Source) -> None:
        if source.serves or source.queue or self._sources.get(source.object) is not source:
            return
        del self._sources[source.object]
        if source.held:
            self._do(LetGo(source.object))
        self._left(source.object)

    def _forget_if_alone(self, object: bytes, copies: Copies) -> None:
        if not copies.holders:
            self.copies.pop(object, None)

    # --- checks -----------------------------------------------------------------------------------------------

    def sources(self) -> list[bytes]:
        """Objects that others pull from here."""
        return list(self._sources)

    def check(self) -> None:
        """Raise AssertionError unless the tables agree with each other."""
        known = {}
        for name, source in self._sources.items():
            assert source.object == name
            assert source.serves or source.queue
            assert sum(not serve.stopped for serve in source.serves) <= self._fanout
            assert source.partial or source.held or source.holding or all(s.stopped for s in source.serves)
            for serve in source.serves:
                assert serve.active
                assert serve.unread >= 0
                assert serve.credit >= 0
                assert source.size < 0 or serve.next <= source.size
                known[serve.line, serve.pull] = name
            for serve in source.queue:
                assert not serve.active
                assert not serve.unread
                known[serve.line, serve.pull] = name
        assert known == self._by_pull
        for copies in self.copies.values():
            assert copies.holders
            copies.check()
