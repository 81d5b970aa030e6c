"""Where one node's owners get their workers: here, or at other nodes.

An owner states its standing wish to its own node and to nobody else. This node divides it: so many workers are asked of
the scheduler here, so many of other nodes. Grants come back through this node, which counts them; so for each wish and
node the numbers are exact, and each node owes ``count - (granted - seen)`` as the local scheduler always does.

What was asked of a node and not granted yet may be moved to another one, whenever the cluster's view has changed. If
a grant crosses such a move, less is asked of the other; if that, too, has granted, the owner hands one worker back.

The choice itself is the cluster scheduler's, and comes in as a function. Everything here is bookkeeping, linear in the
number of nodes that a wish uses. Of a wish for nothing only these numbers are kept: as long as its owner lives, both
sides count on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

WishKey: TypeAlias = tuple[bytes, int]


class Choice(NamedTuple):
    """Where so many workers are to be had."""

    #: (node, how many) that have room now.
    now: list[tuple[bytes, int]]
    #: Where the rest waits; b"" if no node could ever serve.
    rest: bytes
    #: Why no node could ever serve.
    reason: str = ""
    #: (node, how many) of the rest that wait elsewhere.
    waiting: Sequence[tuple[bytes, int]] = ()


class Wish:
    """What one owner wants of one scheduling key."""

    __slots__ = ("asked", "count", "detail", "granted", "job", "key", "need", "owner", "refused", "seen")

    def __init__(self, owner: bytes, key: int) -> None:
        self.owner = owner
        self.key = key
        self.job = 0
        self.need: dict[str, int] = {}
        #: What the shell adds to a request (environment, label, strategy), opaque here but for the choice; None while
        #: nothing is wanted.
        self.detail: Any = None
        self.count = 0
        #: Grants that the owner had seen when it said `count`.
        self.seen = 0
        #: Node → grants that were passed on to the owner; and what is asked of it beyond them.
        self.granted: dict[bytes, int] = {}
        self.asked: dict[bytes, int] = {}
        #: Why it was refused; "" if it was not.
        self.refused = ""

    @property
    def owed(self) -> int:
        """How many grants it still waits for."""
        return max(0, self.count - (sum(self.granted.values()) - self.seen))


class Ask(NamedTuple):
    """Tell `node` that `more` workers beyond those `seen` are wanted for the wish; 0: none."""

    node: bytes
    wish: Wish
    more: int
    seen: int
    #: The wish's, as of now.
    detail: Any


class Refusal(NamedTuple):
    """Tell the owner that no node could ever serve it, and why."""

    wish: Wish
    reason: str


Step: TypeAlias = Ask | Refusal
#: Where so many are to be had; 0: no more are wanted, and what was booked for the wish is free.
Choose: TypeAlias = Callable[[Wish, int], Choice]


class Wishes:
    """All wishes of the owners at this node."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._wishes: dict[WishKey, Wish] = {}
        self._by_owner: dict[bytes, dict[int, Wish]] = {}
        #: Those that wait for something: they are looked at when the view has changed.
        self._waiting: dict[WishKey, Wish] = {}

    def __len__(self) -> int:
        return len(self._wishes)

    def waiting(self) -> Iterable[Wish]:
        """Those that are owed something."""
        return self._waiting.values()

    def asks(self, owner: bytes, key: int, node: bytes) -> bool:
        """Whether the owner still waits for workers of this node."""
        wish = self._wishes.get((owner, key))
        return wish is not None and bool(wish.asked.get(node))

    def request(
        self, owner: bytes, job: int, key: int, count: int, seen: int, need: dict[str, int], detail: Any
    ) -> list[Step]:
        """The owner's wish; it replaces the earlier one."""
        wish = self._wishes.get((owner, key))
        if wish is None:
            if count == 0:
                return []
            wish = self._wishes[owner, key] = Wish(owner, key)
            self._by_owner.setdefault(owner, {})[key] = wish
        wish.job, wish.need, wish.detail = job, need, detail
        wish.count, wish.seen = count, min(seen, sum(wish.granted.values()))
        steps = self._divide(wish)
        if not count:
            wish.detail = None
        return steps

    def granted(self, owner: bytes, key: int, node: bytes) -> list[Step]:
        """A grant of `node` is passed on to the owner."""
        wish = self._wishes.get((owner, key))
        if wish is None:
            return []
        wish.granted[node] = wish.granted.get(node, 0) + 1
        asked = wish.asked.get(node, 0)
        if asked > 1:
            wish.asked[node] = asked - 1
        elif asked:
            del wish.asked[node]
        if not asked:
            # It crossed a move to another node, of which so much less is wanted now.
            return self._divide(wish)
        if not wish.owed:
            self._waiting.pop((owner, key), None)
            self._choose(wish, 0)
        return []

    def view_changed(self) -> list[Step]:
        """Some node has more room, or less, or is new: what waits may be better off elsewhere."""
        steps: list[Step] = []
        for wish in list(self._waiting.values()):
            steps += self._divide(wish)
        return steps

    def node_died(self, node: bytes) -> list[Step]:
        """What it had granted is over, and the owner knows; what was asked of it is asked of others."""
        steps: list[Step] = []
        for wish in list(self._wishes.values()):
            # The sum of grants stays, so that what the owner has seen keeps its meaning.
            gone = wish.granted.pop(node, 0)
            if gone:
                wish.granted[b""] = wish.granted.get(b"", 0) + gone
            if wish.asked.pop(node, 0):
                steps += self._divide(wish)
        return steps

    def owner_left(self, owner: bytes) -> list[Step]:
        """It is dead, or its job has ended: nothing is wanted any more."""
        steps: list[Step] = []
        for key, wish in self._by_owner.pop(owner, {}).items():
            del self._wishes[owner, key]
            self._waiting.pop((owner, key), None)
            self._choose(wish, 0)
            steps += [Ask(node, wish, 0, wish.granted.get(node, 0), wish.detail) for node in wish.asked]
        return steps

    def _divide(self, wish: Wish) -> list[Step]:
        """Decide anew where the grants that are owed shall come from."""
        owed = wish.owed
        if not owed:
            self._waiting.pop((wish.owner, wish.key), None)
            wish.refused = ""
            self._choose(wish, 0)
            return self._ask(wish, {})
        self._waiting[wish.owner, wish.key] = wish
        choice = self._choose(wish, owed)
        wanted = {node: count for node, count in choice.now if count > 0}
        for node, count in choice.waiting:
            wanted[node] = wanted.get(node, 0) + count
        rest = owed - sum(wanted.values())
        if rest > 0 and choice.rest:
            wanted[choice.rest] = wanted.get(choice.rest, 0) + rest
        steps = self._ask(wish, wanted)
        if choice.reason and not wanted:
            if choice.reason != wish.refused:
                wish.refused = choice.reason
                steps.append(Refusal(wish, choice.reason))
        else:
            wish.refused = ""
        return steps

    def _ask(self, wish: Wish, wanted: dict[bytes, int]) -> list[Step]:
        """The steps from what is asked to what is wanted: first less, then more."""
        seen = wish.granted
        less = [node for node, count in wish.asked.items() if wanted.get(node, 0) < count]
        more = [node for node, count in wanted.items() if count > wish.asked.get(node, 0)]
        wish.asked = wanted
        return [Ask(node, wish, wanted.get(node, 0), seen.get(node, 0), wish.detail) for node in (*less, *more)]
