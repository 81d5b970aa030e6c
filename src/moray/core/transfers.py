"""Objects between machines: what one node pulls from others, and what it sends them.

Theory of operation. A client pins an object and names the node of its primary copy. If it is not here, it is pulled
into a secondary copy: one pull per object, however many ask. A pull goes through the :class:`Stage` s::

    WAITING ─ MAKING ─ ASKING ─ RECEIVING ─ (sealed: gone from here)
                          └─ FINDING ─┘        any ─ ENDING (given up, and its memory is still in use)

*Admission.* The sizes of pulls that have memory are together within a budget, so that arriving objects do not drive
out all others; one alone may be larger. Gets come before arguments before what nobody waits for, in each class the
first come first. Pulls that wait hold nothing, here or at other nodes.

*Sources.* The primary copy's node is asked first, and may send us on (:mod:`moray.core.transfers_serving`). A source
that has not got it, or dies, is avoided, and the primary's node is asked again, for the bytes from `have` on: what is
here stays. If that node is dead, all others are asked whether they have a whole copy
(:mod:`moray.core.transfers_finding`). Each question has a new number, so nothing that an earlier source still sends
is taken for an answer.

*Memory.* A chunk is read straight into its place. A pull that is given up in the middle of one keeps its memory until
the chunk has arrived or the line has ended, and until no node reads what it was passing on; so no late byte can land
in somebody else's object.

*Pins.* They are passed on to the store in the step that seals the copy, before the seal: nothing can drop it between.

LIVENESS: a line that ends is not a death. What was asked on it is asked again when there is a new one
(:meth:`Transfers.line_up`); a death is told by :meth:`Transfers.node_died`, after the end of its lines.

The secondary copies here are in :attr:`Transfers.copies` with the node of the primary one, which is told when they
are complete and when the store drops them, and which frees them (REF-FREE). If it dies before it has told of that, they
are dropped when the store wants room, or with their owner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from moray.core.transfers_finding import Finder
from moray.core.transfers_serving import Copies, Serving
from moray.core.transfers_types import (
    CHUNK_BYTES,
    CREDIT_CHUNKS,
    FANOUT,
    PRIORITIES,
    AbortCopy,
    Acknowledge,
    Action,
    AskFor,
    FailPin,
    Found,
    FreeAt,
    MakeCopy,
    PinHere,
    Promote,
    PromoteAt,
    Pull,
    Refuse,
    SealCopy,
    Stage,
    TellCopies,
)  # fmt: skip

_HAS_MEMORY: Final = (Stage.MAKING, Stage.ASKING, Stage.RECEIVING, Stage.FINDING, Stage.ENDING)


class Transfers:
    """Decides about the transfers of one node.

    Args:
        own: the node's tag.
        budget: bytes of objects that may be on their way to this node.
        holds: whether the store has an object, complete or not.
        whole: whether it has all of it.
    """

    def __init__(
        self, own: bytes, budget: int, holds: Callable[[bytes], bool], whole: Callable[[bytes], bool],
        chunk: int = CHUNK_BYTES, fanout: int = FANOUT,
    ) -> None:  # fmt: skip
        self.own = own
        self._budget = budget
        self._holds = holds
        self._whole = whole
        self._credit = chunk * CREDIT_CHUNKS
        self._pulls: dict[bytes, Pull] = {}
        #: Pulls WAITING, by priority, in their order.
        self._waiting: list[dict[bytes, Pull]] = [{} for _ in range(PRIORITIES)]
        #: Sizes of the pulls that have memory.
        self._in_flight = 0
        #: Open questions: number → the pull.
        self._by_number: dict[int, Pull] = {}
        self._last_number = 0
        #: Secondary copies here → the node with the primary one.
        self.copies: dict[bytes, bytes] = {}
        #: Nodes that died: tags are never used again.
        self._dead: set[bytes] = set()
        self._actions: list[Action] = []
        self._serving = Serving(chunk, fanout, self._do, self._not_read)
        self._finder = Finder(own, self._do, self._have, self._promoted)

    # --- events: clients of this node -----------------------------------------------------------------

    def pin(
        self, process: bytes, request: int, object: bytes, node: bytes, size: int, priority: int = 0
    ) -> list[Action]:
        """A process wants to read an object whose primary copy is at another node."""
        pull = self._pulls.get(object)
        if pull is None:
            if self._holds(object):
                self._do(PinHere(process, request, object))
                return self._take()
            if size <= 0:
                self._do(FailPin(process, request, "lost", f"object {object.hex()} of node {node.hex()} has no size"))
                return self._take()
            pull = self._pulls[object] = Pull(object, size, node)
            pull.wanters[process, request] = priority
            self._waiting[priority][object] = pull
        else:
            before = pull.priority()
            pull.wanters[process, request] = priority
            self._queue_again(pull, before)
        self._admit()
        return self._take()

    def process_died(self, process: bytes) -> list[Action]:
        """A process of this node waits for nothing any more."""
        for pull in list(self._pulls.values()):
            gone = [wanter for wanter in pull.wanters if wanter[0] == process]
            if gone:
                before = pull.priority()
                for wanter in gone:
                    del pull.wanters[wanter]
                self._queue_again(pull, before)
                self._give_up_if_unwanted(pull)
        self._admit()
        return self._take()

    def freed(self, objects: list[bytes], node: bytes = b"", by_primary: bool = False) -> list[Action]:
        """No reference is left to them (REF-FREE), and the store has been told. `node`: of their primary copies, if
        that is another; `by_primary`: that is who says so."""
        for name in objects:
            primary = self.copies.pop(name, b"")
            if primary and not node and not by_primary and primary not in self._dead:
                # A process of this node makes it anew.
                self._do(TellCopies(primary, [name], True))
            self._serving.freed(name)
            pull = self._pulls.get(name)
            if pull is not None:
                self._fail(pull, "lost", "it was freed")
        if node and node != self.own:
            # Of a dead node's objects, others may have copies, which only they know of.
            for tag in list(self._finder.nodes) if node in self._dead else [node]:
                self._do(FreeAt(tag, objects))
        self._admit()
        return self._take()

    def is_copy(self, object: bytes) -> bool:
        """Whether what is here of it is, or will be, a secondary copy."""
        return object in self.copies or object in self._pulls

    def free_strays(self, objects: list[bytes], node: bytes) -> list[Action]:
        """The primary copies of these are here; what is at `node` is an attempt's that does not count."""
        if node not in self._dead:
            self._do(FreeAt(node, objects))
        return self._take()

    def locate(self, process: bytes, request: int, objects: list[bytes]) -> list[Action]:
        """The node with the primary copies is dead: choose others; answered by Located."""
        self._finder.locate(process, request, objects)
        return self._take()

    # --- events: the store ------------------------------------------------------------------------------

    def copy_placed(self, object: bytes) -> list[Action]:
        """There is memory for a copy."""
        pull = self._pulls[object]
        self._ask(pull, pull.primary)
        return self._take()

    def copy_refused(self, object: bytes, code: str, detail: str) -> list[Action]:
        """There is none; "exists": it is made here by somebody else."""
        pull = self._pulls[object]
        if code == "exists":
            for process, request in pull.wanters:
                self._do(PinHere(process, request, object))
            pull.wanters.clear()
        else:
            self._fail_wanters(pull, code, detail)
            self._serving.copies.pop(object, None)
        self._in_flight -= pull.size
        pull.stage = Stage.GONE
        self._serving.give_up(object)
        self._remove(pull)
        return self._take()

    def held(self, object: bytes, size: int) -> list[Action]:
        """An object is pinned, to be sent."""
        self._serving.held(object, size)
        return self._take()

    def not_held(self, object: bytes) -> list[Action]:
        """It is not here."""
        self._serving.not_held(object)
        return self._take()

    def dropped(self, object: bytes) -> list[Action]:
        """The store has dropped a secondary copy, for want of room."""
        primary = self.copies.pop(object, b"")
        # Whom it was given on to is known there, too.
        self._serving.copies.pop(object, None)
        if primary and primary not in self._dead:
            self._do(TellCopies(primary, [object], True))
        return self._take()

    # --- events: from the node that we pull from --------------------------------------------------------

    def begins(self, number: int, size: int) -> list[Action]:
        """The source sends from now on."""
        pull = self._by_number.get(number)
        if pull is not None and pull.stage is Stage.ASKING:
            if size != pull.size:
                text = f"node {pull.source.hex()} has {size} bytes of it, and its owner says that there are {pull.size}"
                self._fail(pull, "lost", text)
            else:
                pull.stage = Stage.RECEIVING
        return self._take()

    def chunk_begins(self, number: int, offset: int, size: int) -> bytes:
        """A chunk comes: the object that it belongs to, or b"" if its bytes are to be thrown away.

        Raises:
            ValueError: the source sends what cannot be.
        """
        pull = self._by_number.get(number)
        if pull is None or pull.stage is Stage.ENDING:
            return b""
        if pull.stage is not Stage.RECEIVING or offset != pull.have or not 0 < size <= pull.size - offset:
            raise ValueError(
                f"a chunk of {size} bytes at {offset} of object {pull.object.hex()}, of which {pull.have} of"
                f" {pull.size} bytes are here ({pull.stage.name})"
            )
        pull.incoming = size
        return pull.object

    def chunk_ends(self, node: bytes, number: int, size: int) -> list[Action]:
        """All of it is here (or thrown away)."""
        pull = self._by_number.get(number)
        if pull is None or not pull.incoming:
            self._do(Acknowledge(node, number, size, False))
            return self._take()
        pull.incoming = 0
        if pull.stage is Stage.ENDING:
            self._do(Acknowledge(node, number, size, True))
            self._end_if_unused(pull)
        else:
            self._do(Acknowledge(node, number, size, False))
            pull.have += size
            self._serving.progress(pull.object, pull.have)
            if pull.have == pull.size:
                self._complete(pull)
        return self._take()

    def refused(self, number: int, code: str, sources: list[bytes]) -> list[Action]:
        """The source does not send (any more)."""
        pull = self._by_number.get(number)
        if pull is None or pull.stage not in (Stage.ASKING, Stage.RECEIVING):
            return self._take()
        if code == "elsewhere" and sources:
            self._ask(pull, sources[0])
        else:
            self._look_elsewhere(pull)
        return self._take()

    def line_down(self, node: bytes) -> list[Action]:
        """The connection on which this node pulls from another has ended: nothing more comes on it."""
        for pull in [pull for pull in self._by_number.values() if pull.source == node]:
            pull.incoming = 0
            if pull.stage is Stage.ENDING:
                self._end_if_unused(pull)
            else:
                pull.stage = Stage.ASKING
        return self._take()

    def line_up(self, node: bytes) -> list[Action]:
        """There is a new connection, on which nothing has been asked."""
        for pull in [pull for pull in self._by_number.values() if pull.source == node]:
            if pull.stage is not Stage.ENDING:
                self._ask(pull, node)
        return self._take()

    def asks(self, node: bytes) -> bool:
        """Whether a connection to it is needed."""
        return any(pull.source == node and pull.stage is not Stage.ENDING for pull in self._by_number.values())

    # --- events: from nodes that pull from this one --------------------------------------------------------

    def asked(
        self, line: int, node: bytes, pull: int, object: bytes, offset: int, credit: int, avoid: list[bytes]
    ) -> list[Action]:
        """PullObject."""
        mine = self._pulls.get(object)
        partial = None
        if mine is not None:
            if mine.stage in (Stage.ENDING, Stage.WAITING):
                # What waits for its share may wait for the very node that asks.
                self._do(Refuse(line, pull, "lost", []))
                return self._take()
            partial = (mine.size, mine.have)
        primary = mine is None and object not in self.copies
        self._serving.asked(line, node, pull, object, offset, credit, avoid, primary, partial)
        return self._take()

    def acknowledged(self, line: int, pull: int, size: int, stop: bool) -> list[Action]:
        """PullCredit."""
        self._serving.acknowledged(line, pull, size, stop)
        return self._take()

    def line_ended(self, line: int) -> list[Action]:
        """A connection on which another node pulled has ended: nothing is read for it any more."""
        self._serving.line_ended(line)
        return self._take()

    # --- events: nodes ------------------------------------------------------------------------------------

    def node_joined(self, node: bytes) -> list[Action]:
        """There is another node."""
        if node != self.own and node not in self._dead:
            self._finder.nodes[node] = None
        return self._take()

    def node_died(self, node: bytes) -> list[Action]:
        """A node is dead, and its lines have ended."""
        self._dead.add(node)
        self._serving.node_died(node)
        self._finder.node_died(node)
        for pull in list(self._pulls.values()):
            if pull.source == node and pull.stage in (Stage.ASKING, Stage.RECEIVING):
                self._look_elsewhere(pull)
        return self._take()

    def copies_told(self, node: bytes, objects: list[bytes], gone: bool) -> list[Action]:
        """CopyMade."""
        if node not in self._dead:
            for name in objects:
                self._serving.copy_told(node, name, gone, self._holds(name))
        return self._take()

    def find_asked(self, node: bytes, request: int, objects: list[bytes]) -> list[Action]:
        """FindCopies."""
        self._do(Found(node, request, self._have(objects)))
        return self._take()

    def found(self, node: bytes, request: int, objects: list[bytes]) -> list[Action]:
        """CopiesFound."""
        self._finder.answered(node, request, objects)
        return self._take()

    def promote_asked(self, node: bytes, request: int, objects: list[bytes], copies: list[list[bytes]]) -> list[Action]:
        """PromoteCopies."""
        done = [name for name, others in zip(objects, copies, strict=True) if self._promoted(name, others)]
        self._do(Found(node, request, done))
        return self._take()

    # --- events: nodes that leave -----------------------------------------------------------------------------

    def take_over(self, object: bytes, node: bytes) -> list[Action]:
        """The copy here, fetched from a node that leaves, becomes the primary one; that node's is one of its copies."""
        self._promoted(object, [node])
        return self._take()

    def given(self, object: bytes, node: bytes) -> list[Action]:
        """The primary copy is at `node` from now on; what is here is a copy of it. It is told of the others."""
        others = [tag for tag in self.holders(object) if tag != node]
        self.copies[object] = node
        if others:
            self._do(PromoteAt(node, 0, [object], [others]))
        return self._take()

    def holders(self, object: bytes) -> list[bytes]:
        """Other nodes that have got a whole copy from here."""
        copies = self._serving.copies.get(object)
        return [tag for tag, holder in copies.holders.items() if holder.complete] if copies is not None else []

    # --- a pull's life --------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give pulls their memory, in their order, as far as the budget goes."""
        for waiting in self._waiting:
            while waiting:
                pull = next(iter(waiting.values()))
                if self._in_flight and self._in_flight + pull.size > self._budget:
                    return
                del waiting[pull.object]
                self._in_flight += pull.size
                pull.stage = Stage.MAKING
                self._do(MakeCopy(pull.object, pull.size))

    def _ask(self, pull: Pull, node: bytes) -> None:
        """Ask a node for what is missing."""
        self._close_question(pull)
        if node in self._dead:
            pull.source = node
            pull.stage = Stage.ASKING
            self._look_elsewhere(pull)
            return
        self._last_number += 1
        pull.number, pull.source, pull.stage = self._last_number, node, Stage.ASKING
        self._by_number[pull.number] = pull
        self._do(AskFor(node, pull.number, pull.object, pull.have, self._credit, list(pull.avoid)))

    def _close_question(self, pull: Pull) -> None:
        self._by_number.pop(pull.number, None)
        pull.number = 0

    def _look_elsewhere(self, pull: Pull) -> None:
        """Its source has not got it, or is dead."""
        self._close_question(pull)
        if pull.source not in pull.avoid:
            pull.avoid.append(pull.source)
        if pull.primary not in pull.avoid:
            self._ask(pull, pull.primary)
        elif pull.primary in self._dead or pull.searched:
            self._find(pull)
        else:
            text = f"node {pull.primary.hex()}, which had the primary copy, has it no longer: it was freed"
            self._fail(pull, "lost", text)

    def _find(self, pull: Pull) -> None:
        def found(node: bytes, _objects: list[bytes]) -> None:
            self._finder.cancel(pull.request)
            pull.request = 0
            pull.primary, pull.searched = node, True
            self._ask(pull, node)

        def over() -> None:
            pull.request = 0
            dead = ", ".join(each.hex() for each in pull.avoid)
            text = f"the nodes that had it are gone ({dead}), and no other one has a copy"
            self._fail(pull, "lost", text)

        pull.stage, pull.source = Stage.FINDING, b""
        number = self._finder.search([pull.object], found, over, without=pull.avoid)
        if pull.stage is Stage.FINDING:
            pull.request = number

    def _complete(self, pull: Pull) -> None:
        """All bytes are here."""
        name = pull.object
        self._serving.about_to_seal(name)
        for process, request in pull.wanters:
            self._do(PinHere(process, request, name))
        pull.wanters.clear()
        self._do(SealCopy(name))
        self.copies[name] = pull.primary
        if pull.primary not in self._dead:
            self._do(TellCopies(pull.primary, [name], False))
        self._remove(pull)

    def _give_up_if_unwanted(self, pull: Pull) -> None:
        if not pull.wanters and pull.stage is not Stage.ENDING and not self._serving.reads(pull.object):
            self._fail(pull, "lost", "nobody waits for it any more")

    def _not_read(self, object: bytes) -> None:
        """No other node reads it from here any more."""
        pull = self._pulls.get(object)
        if pull is not None:
            if pull.stage is Stage.ENDING:
                self._end_if_unused(pull)
            elif pull.stage is not Stage.GONE:
                self._give_up_if_unwanted(pull)

    def _queue_again(self, pull: Pull, before: int) -> None:
        """Its wanters have changed."""
        priority = pull.priority()
        if pull.stage is Stage.WAITING and priority != before:
            del self._waiting[before][pull.object]
            self._waiting[priority][pull.object] = pull

    def _fail(self, pull: Pull, code: str, why: str) -> None:
        """It will not come."""
        self._fail_wanters(pull, code, why)
        if pull.stage in (Stage.ENDING, Stage.GONE):
            return
        if pull.source and pull.primary not in self._dead:
            self._do(TellCopies(pull.primary, [pull.object], True))
        if pull.request:
            self._finder.cancel(pull.request)
            pull.request = 0
        if pull.stage is Stage.WAITING:
            for waiting in self._waiting:
                waiting.pop(pull.object, None)
            pull.stage = Stage.GONE
            self._serving.give_up(pull.object)
            self._remove(pull)
            return
        if pull.number and not pull.incoming:
            self._do(Acknowledge(pull.source, pull.number, 0, True))
            self._close_question(pull)
        pull.stage = Stage.ENDING
        self._serving.give_up(pull.object)
        self._end_if_unused(pull)

    def _fail_wanters(self, pull: Pull, code: str, why: str) -> None:
        for process, request in pull.wanters:
            self._do(FailPin(process, request, code, f"object {pull.object.hex()}: {why}"))
        pull.wanters.clear()

    def _end_if_unused(self, pull: Pull) -> None:
        """Nothing may write to its memory or read it any more before that goes."""
        if pull.incoming or self._serving.reads(pull.object) or self._pulls.get(pull.object) is not pull:
            return
        self._do(AbortCopy(pull.object))
        # Who has read it from here, and has a copy, has told the primary one's node.
        self._serving.copies.pop(pull.object, None)
        self._remove(pull)

    def _remove(self, pull: Pull) -> None:
        self._close_question(pull)
        if pull.stage in _HAS_MEMORY:
            self._in_flight -= pull.size
        del self._pulls[pull.object]
        if pull.wanters:
            # They came while it was ending.
            again = self._pulls[pull.object] = Pull(pull.object, pull.size, pull.primary)
            again.wanters = pull.wanters
            self._waiting[again.priority()][again.object] = again
        self._admit()

    # --- helpers --------------------------------------------------------------------------------------------

    def _have(self, objects: list[bytes]) -> list[bytes]:
        return [name for name in objects if name not in self._pulls and self._whole(name)]

    def _promoted(self, object: bytes, others: list[bytes]) -> bool:
        """The copy here becomes the primary one."""
        if not self._have([object]):
            return False
        if self.copies.pop(object, None) is not None:
            self._do(Promote(object))
        for node in others:
            if node not in self._dead and node != self.own:
                self._serving.copies.setdefault(object, Copies()).complete(node)
        return True

    def _do(self, action: Any) -> None:
        self._actions.append(action)

    def _take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def size_of(self, object: bytes) -> int:
        """The size of an object that is on its way here."""
        return self._pulls[object].size

    def stats(self) -> dict[str, int]:
        """Counts, and bytes of objects on their way here."""
        return {
            "pulls": len(self._pulls),
            "pulls_waiting": sum(map(len, self._waiting)),
            "in_flight_bytes": self._in_flight,
            "serving": len(self._serving.sources()),
            "copies": len(self.copies),
        }

    def check(self) -> None:
        """Raise AssertionError unless the tables agree with each other."""
        self._serving.check()
        pulls = list(self._pulls.values())
        assert self._in_flight == sum(pull.size for pull in pulls if pull.stage in _HAS_MEMORY)
        having = [pull for pull in pulls if pull.stage in _HAS_MEMORY]
        assert self._in_flight <= self._budget or len(having) == 1
        waiting = {name: pull for each in self._waiting for name, pull in each.items()}
        assert waiting == {pull.object: pull for pull in pulls if pull.stage is Stage.WAITING}
        for priority, each in enumerate(self._waiting):
            assert all(pull.priority() == priority for pull in each.values())
        assert self._by_number == {pull.number: pull for pull in pulls if pull.number}
        for pull in pulls:
            assert 0 <= pull.have <= pull.size
            assert bool(pull.number) >= (pull.stage in (Stage.ASKING, Stage.RECEIVING))
            assert pull.stage is not Stage.FINDING or pull.request
            assert not pull.incoming or pull.number
            assert pull.wanters or pull.stage is Stage.ENDING or self._serving.reads(pull.object), "nobody wants it"
            assert pull.object not in self.copies
        if not having:
            assert not waiting, "somebody waits for nothing"
