"""The head's table of nodes: who is a member, until when, and what all others are told.

A node registers on each connection that it makes, and renews its *lease* every second or so. The life of a membership::

    (stored) ──restore──▶ AWAITED ─┐
                                   ├──register──▶ MEMBER ──lease ended, refused, left──▶ DEAD ──lease + 20 %──▶ released
    unknown ───────────────────────┘                └── drain: takes no new work, leaves by itself

FENCE: a node's own lease ends a lease after it *sent* a renewal that was acknowledged; the head counts from when it
*received* it, which is later. So when the head sees the lease end, the node has stopped starting anything. Clocks that
run unequally fast and steps that had begun get another 20 % of a lease: only then (`Released`) is anything of a dead
node started anew, however the head learned of the death. A lost connection alone says nothing. Who was declared dead
stays dead: the same id is refused, and the process behind it joins with a new one.

The shell tells what has arrived by `now` before it ticks, a few times per lease even if nobody is due: a head that was
stopped itself sees it by that, since its tick comes much too late, and gives everybody half a lease to be heard.

HEAD-EPOCH: each head has a number higher than its predecessors'. A node tells the highest that it has seen; a head
that hears of a higher one steps down. A head that was started anew *restores* the members that its storage knows: their
last leases, granted by its predecessor, may run for a lease from then on, and they have :data:`REJOIN_LEASES` to come
back before they are declared dead.

The table is published in versions: a node gets the whole of it when it registers, and then each :class:`Delta` once, in
order. Changes between two deltas are gathered into one.

MEMBER-1: a tag belongs to one node for ever, as far as the head remembers. MEMBER-2: each death is told once, and its
release once, after it. MEMBER-3: no release before 1.2 leases from the last renewal, unless the node said that it had
ended everything. A renewal costs the same however many nodes there are, a tick O(n).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from math import inf
from typing import Final, Generic, Protocol, TypeVar

from moray.core.membership_actions import (
    Delta,
    Died,
    Drain,
    MemberAction,
    Refuse,
    Released,
    Renewed,
    StepDown,
    Welcome,
)
from moray.ids import tag_of

#: How long a node may live without a word.
LEASE_S: Final = 5.0
#: What a lease is longer, for the head, before anything is started anew.
MARGIN: Final = 0.2
#: Leases that restored members have to come back: they look for a new head with pauses of their own.
REJOIN_LEASES: Final = 2.0
#: Between ticks at most, in leases: often enough to see that the head was stopped, seldom enough to cost nothing.
LOOK: Final = 0.2
#: The head's own tick came so many leases too late: it was stopped, and cannot say who was silent.
LATE: Final = 0.25
#: Dead nodes that are remembered by id, so that they are refused with the reason. Older ones join as if they were new,
#: which is as good: everything of theirs was released long ago.
DEAD_KEPT: Final = 10_000


class Described(Protocol):
    """A node by its own words, as far as they matter here (:class:`~moray.protocol.cluster_messages.NodeInfo`)."""

    node_id: bytes
    available: dict[str, int]
    demand: list[tuple[dict[str, int], int]]
    drain_deadline: float
    #: The least that its lease lasts: of one on which nothing is started, and that may be out of reach for longer.
    lease_s: float


I = TypeVar("I", bound=Described)  # noqa: E741 - I is for "info".


class State(Enum):
    """How a node stands."""

    AWAITED = "awaited"
    MEMBER = "member"
    DEAD = "dead"


class Member(Generic[I]):
    """One node that is not released."""

    __slots__ = ("due", "info", "lease_end", "reason", "state")

    def __init__(self, info: I, state: State, lease_end: float) -> None:
        self.info = info
        self.state = state
        #: When its lease ends, as the head counts. Of AWAITED ones: the latest that the old head can have given.
        self.lease_end = lease_end
        #: When something is to be done about it.
        self.due = lease_end
        #: Why it is dead.
        self.reason = ""


class Membership(Generic[I]):
    """The state machine; every event returns the actions to carry out, in order."""

    def __init__(self, epoch: int, lease_s: float = LEASE_S) -> None:
        self.epoch = epoch
        self.lease_s = lease_s
        #: The version of the table.
        self.view = 0
        #: All that are not released.
        self._members: dict[bytes, Member[I]] = {}
        #: Tag → the node that has it (MEMBER-1).
        self._by_tag: dict[bytes, Member[I]] = {}
        #: Released nodes → why they died, oldest first.
        self._released: dict[bytes, str] = {}
        self._released_tags: dict[bytes, bytes] = {}
        #: When the next tick is to come: not after anybody is due.
        self._next = inf
        #: Since the last delta.
        self._changed: dict[bytes, None] = {}
        self._dead: list[tuple[bytes, str]] = []
        #: It has said StepDown.
        self.outdated = False
        self._actions: list[MemberAction] = []

    # --- what shells ask ------------------------------------------------------------------------------

    def lease_of(self, info: I) -> float:
        """How long this node may live without a word."""
        return max(self.lease_s, info.lease_s)

    def nodes(self) -> list[I]:
        """The living ones, as of the last delta and later: what a joining node is sent."""
        return [member.info for member in self._members.values() if member.state is not State.DEAD]

    def get(self, node_id: bytes) -> I | None:
        """A living node."""
        member = self._members.get(node_id)
        return member.info if member is not None and member.state is not State.DEAD else None

    def by_tag(self, tag: bytes) -> I | None:
        """The living node with this tag."""
        member = self._by_tag.get(tag)
        return member.info if member is not None and member.state is not State.DEAD else None

    def death_of(self, node_id: bytes) -> str:
        """Why a node is dead, as long as that is remembered; "" if it is not."""
        member = self._members.get(node_id)
        return member.reason if member is not None else self._released.get(node_id, "")

    def is_member(self, node_id: bytes) -> bool:
        """Whether it has registered with this head and lives: it can be given work."""
        member = self._members.get(node_id)
        return member is not None and member.state is State.MEMBER

    # --- what nodes say -------------------------------------------------------------------------------

    def restore(self, infos: Iterable[I], now: float) -> None:
        """Members of this head's predecessor, before anything else is told."""
        for info in infos:
            member = Member(info, State.AWAITED, now + self.lease_of(info))
            self._members[info.node_id] = self._by_tag[tag_of(info.node_id)] = member
            self._schedule(member, max(now + REJOIN_LEASES * self.lease_s, member.lease_end))
            self._look_soon(now)
            self._changed[info.node_id] = None

    def register(self, info: I, epoch: int, now: float) -> list[MemberAction]:
        """A node says that it is here; `epoch` is the highest of a head that it has seen."""
        if self._step_down(epoch) or self.outdated:
            self._refuse(info.node_id, "outdated", f"this head (epoch {self.epoch}) has been replaced")
            return self._done()
        if self._refuse_dead(info.node_id):
            return self._done()
        known = self._members.get(info.node_id)
        tag = tag_of(info.node_id)
        if known is None and (tag in self._by_tag or tag in self._released_tags):
            other = self._by_tag[tag].info.node_id if tag in self._by_tag else self._released_tags[tag]
            self._refuse(info.node_id, "tag", f"another node has, or had, the tag {tag.hex()}: {other.hex()}")
            return self._done()
        if known is None:
            known = Member(info, State.MEMBER, now + self.lease_of(info))
            self._members[info.node_id] = self._by_tag[tag] = known
            self._schedule(known, known.lease_end)
            self._look_soon(now)
            self._actions.append(Welcome(info.node_id, again=False))
        else:
            # What the head has decided stays; what the node says of itself is newer.
            deadline = known.info.drain_deadline
            known.info, known.state = info, State.MEMBER
            self._extend(known, now)
            self._actions.append(Welcome(info.node_id, again=True))
            if deadline and not info.drain_deadline:
                info.drain_deadline = deadline
                self._actions.append(
                    Drain(info.node_id, "it was to leave before its connection was made anew", deadline)
                )
        self._changed[info.node_id] = None
        return self._done()

    def renew(
        self,
        node_id: bytes,
        number: int,
        available: Mapping[str, int],
        demand: list[tuple[dict[str, int], int]],
        now: float,
    ) -> list[MemberAction]:
        """A node lives, and tells how it stands."""
        if self.outdated:
            self._refuse(node_id, "outdated", f"this head (epoch {self.epoch}) has been replaced")
            return self._done()
        if self._refuse_dead(node_id):
            return self._done()
        member = self._members.get(node_id)
        if member is None or member.state is not State.MEMBER:
            self._refuse(node_id, "unknown", "it has not registered with this head")
            return self._done()
        self._extend(member, now)
        self._actions.append(Renewed(node_id, number))
        info = member.info
        if info.available != available or info.demand != demand:
            info.available, info.demand = dict(available), demand
            self._changed[node_id] = None
        return self._done()

    def leave(self, node_id: bytes, reason: str, *, all_ended: bool = False) -> list[MemberAction]:
        """A node ends by its own will. `all_ended`: nothing of it runs any more, so that nobody need wait."""
        member = self._members.get(node_id)
        if member is not None and member.state is not State.DEAD:
            self._kill(member, reason)
            if all_ended:
                self._release(member)
        return self._done()

    def described_anew(self, node_id: bytes) -> None:
        """The shell has changed what it keeps in a node's description: it is told with the next delta."""
        if self.get(node_id) is not None:
            self._changed[node_id] = None

    # --- what the shell sees --------------------------------------------------------------------------

    def refused(self, node_id: bytes, reason: str) -> list[MemberAction]:
        """A node's address refuses connections: its process is gone. Its workers may live for a moment."""
        member = self._members.get(node_id)
        if member is not None and member.state is not State.DEAD:
            self._kill(member, reason)
        return self._done()

    def drain(self, node_id: bytes, reason: str, deadline: float) -> list[MemberAction]:
        """Somebody wants a node to leave; `deadline` in seconds of the epoch, over 0. Nothing for one that is dead."""
        member = self._members.get(node_id)
        if member is not None and member.state is not State.DEAD and member.info.drain_deadline != deadline:
            member.info.drain_deadline = deadline
            self._changed[node_id] = None
            self._actions.append(Drain(node_id, reason, deadline))
        return self._done()

    def stepped_over(self, epoch: int) -> list[MemberAction]:
        """Somebody (the storage, a node) knows of a head with this epoch."""
        self._step_down(epoch)
        return self._done()

    def tick(self, now: float) -> list[MemberAction]:
        """Time has passed; to be called at `next_tick`, harmless at any time."""
        if now - self._next > LATE * self.lease_s:
            for member in self._members.values():
                if member.state is not State.DEAD:
                    member.due = max(member.due, now + self.lease_s / 2)
        # Of who was silent for long enough, the death and the release may be due at once.
        while due := [member for member in self._members.values() if member.due <= now]:
            for member in sorted(due, key=lambda member: member.due):
                if member.state is State.DEAD:
                    self._release(member)
                else:
                    awaited = " since the head was started anew" if member.state is State.AWAITED else ""
                    silence = now - member.lease_end + self.lease_of(member.info)
                    self._kill(member, f"nothing was heard of it for {silence:.1f} s{awaited}")
        self._next = min((member.due for member in self._members.values()), default=inf)
        if self._members:
            self._look_soon(now)
        return self._done()

    def next_tick(self) -> float | None:
        """When `tick` is to be called; None: there are no nodes."""
        return self._next if self._next < inf else None

    def unpublished(self) -> bool:
        """Whether there is something for `delta` to tell."""
        return bool(self._changed or self._dead)

    def delta(self) -> Delta | None:
        """The next version of the table, if anything has changed: to be sent to every member that was welcomed before
        this call, and to nobody else. Say it at once after a death, and else a few times a second."""
        if not self.unpublished():
            return None
        self.view += 1
        changed = [node_id for node_id in self._changed if self.get(node_id) is not None]
        delta = Delta(self.view, changed, self._dead)
        self._changed, self._dead = {}, []
        return delta

    def validate(self) -> None:
        """Raise AssertionError if the books do not agree with each other."""
        assert self._by_tag == {tag_of(node_id): member for node_id, member in self._members.items()}, "MEMBER-1"
        assert self._next <= min((member.due for member in self._members.values()), default=inf), "too late a look"
        for node_id, member in self._members.items():
            assert node_id == member.info.node_id
            assert node_id not in self._released
            assert (member.state is State.DEAD) == bool(member.reason)
            margin = MARGIN * self.lease_s if member.state is State.DEAD else 0.0
            assert member.due >= member.lease_end + margin, "MEMBER-3"

    # --- inside ---------------------------------------------------------------------------------------------

    def _extend(self, member: Member[I], now: float) -> None:
        # A clock that steps back must not shorten what the node was promised.
        member.lease_end = max(member.lease_end, now + self.lease_of(member.info))
        self._schedule(member, member.lease_end)

    def _kill(self, member: Member[I], reason: str) -> None:
        """It is dead; its release follows."""
        member.state, member.reason = State.DEAD, reason or "it ended"
        self._schedule(member, member.lease_end + MARGIN * self.lease_s)
        self._changed.pop(member.info.node_id, None)
        self._dead.append((member.info.node_id, member.reason))
        self._actions.append(Died(member.info.node_id, member.reason))

    def _release(self, member: Member[I]) -> None:
        node_id = member.info.node_id
        del self._members[node_id]
        del self._by_tag[tag_of(node_id)]
        self._released[node_id] = member.reason
        self._released_tags[tag_of(node_id)] = node_id
        if len(self._released) > DEAD_KEPT:
            oldest = next(iter(self._released))
            del self._released[oldest], self._released_tags[tag_of(oldest)]
        self._actions.append(Released(node_id))

    def _refuse_dead(self, node_id: bytes) -> bool:
        reason = self.death_of(node_id)
        if reason:
            self._refuse(node_id, "fenced", f"it was declared dead ({reason}): it must join with a new id")
        return bool(reason)

    def _refuse(self, node_id: bytes, code: str, reason: str) -> None:
        self._actions.append(Refuse(node_id, code, reason))

    def _step_down(self, epoch: int) -> bool:
        if epoch <= self.epoch or self.outdated:
            return False
        self.outdated = True
        self._actions.append(StepDown(epoch))
        return True

    def _schedule(self, member: Member[I], due: float) -> None:
        """Something is to be done about it then."""
        member.due = due
        self._next = min(self._next, due)

    def _look_soon(self, now: float) -> None:
        """There are members: a tick that comes too late is to be seen."""
        self._next = min(self._next, now + LOOK * self.lease_s)

    def _done(self) -> list[MemberAction]:
        actions, self._actions = self._actions, []
        return actions
