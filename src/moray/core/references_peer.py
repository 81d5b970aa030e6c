"""What one process keeps about one other process for the reference protocol.

Four things: what the other has registered here (we own), what it has been promised (values in transit
to it), what we have asked it and it has not acknowledged, and which of its requests we have seen.

**Exactly once, in any order.** Requests are repeated after a reconnect, and an old connection may still
deliver its copy later. `low` is the lowest number of the peer's requests not yet carried out here and `done`
the ones above it that are; everything else about order is REF-EPOCH's: a release that overtakes its
registration leaves a *tombstone*, which goes when all requests before it have been carried out, because then nothing
can come that it must stop.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from moray.core.references_types import Changes, Entry, Foreign, Gate, Registration

#: A hand-over: the sending process and its number.
Handover: TypeAlias = tuple[bytes, int]


class Sent(msgspec.Struct, eq=False):
    """A request that waits for its acknowledgement."""

    changes: Changes
    #: The entries behind ``changes.register``.
    registering: list[Foreign]
    #: Entries held until receivers are registered for them (REF-SEND).
    lent: list[Foreign]
    #: What may not go on before this is acknowledged.
    gates: list[Gate]


class Outbox:
    """What the next request to a peer will say."""

    __slots__ = ("changes", "gates", "lent", "registering")

    def __init__(self) -> None:
        #: Its `register` is made at the flush, from `registering`.
        self.changes = new_changes()
        #: Entries to register; those dropped until the flush are left out.
        self.registering: list[Foreign] = []
        #: See :class:`Sent`.
        self.lent: list[Foreign] = []
        #: See :class:`Sent`.
        self.gates: list[Gate] = []

    def close(self, request: int) -> Sent | None:
        """Number the request; None when nothing is left to say."""
        queued, sent = Registration.QUEUED, Registration.SENT
        live = [entry for entry in self.registering if entry.registration is queued or entry.registration is sent]
        changes = self.changes
        changes.request = request
        changes.register = [(foreign.key, foreign.epoch) for foreign in live]
        if not (live or self.gates or any_change(changes)):
            return None
        for foreign in live:
            foreign.registration = Registration.SENT
            foreign.request = request
        return Sent(changes, live, self.lent, self.gates)


def new_changes() -> Changes:
    return Changes(0, [], [], [], [], [], [], [])


def any_change(changes: Changes) -> bool:
    return bool(
        changes.register or changes.release or changes.provisional or changes.consume
        or changes.accepted or changes.settle or changes.settled
    )  # fmt: skip


class Peer:
    """One other process."""

    __slots__ = (
        "done", "low", "next_request", "outbox", "process", "provisional", "registered", "tombstones", "transit",
        "unacked",
    )  # fmt: skip

    def __init__(self, process: bytes) -> None:
        self.process = process
        #: Our objects that it has registered: key → epoch. One hold each.
        self.registered: dict[int, int] = {}
        #: Our objects in values on their way to it: hand-over → keys. One hold each.
        self.provisional: dict[Handover, list[int]] = {}
        #: Its objects in values on their way to it, by our number. One hold each.
        self.transit: dict[int, list[Entry]] = {}
        #: Released before all earlier requests were carried out: key → (epoch, request).
        self.tombstones: dict[int, tuple[int, int]] = {}
        #: Its requests below this are carried out.
        self.low = 1
        #: Its requests above `low` that are carried out.
        self.done: set[int] = set()
        #: Number of our next request to it.
        self.next_request = 1
        #: Our requests that it has not acknowledged, by number, in order.
        self.unacked: dict[int, Sent] = {}
        #: What the next request will say, if anything.
        self.outbox: Outbox | None = None

    def post(self, sent: Sent) -> None:
        """Keep a request until it is acknowledged."""
        self.unacked[self.next_request] = sent
        self.next_request += 1

    def is_new(self, request: int) -> bool:
        return request >= self.low and request not in self.done

    def mark_done(self, request: int) -> None:
        """Request is carried out; tombstones that nothing can reach any more go."""
        self.done.add(request)
        if request != self.low:
            return
        while self.low in self.done:
            self.done.remove(self.low)
            self.low += 1
        if self.tombstones:
            self.tombstones = {key: tomb for key, tomb in self.tombstones.items() if tomb[1] >= self.low}

    def note_registered(self, key: int, epoch: int) -> bool:
        """True if it is a new reason to keep `key` (REF-EPOCH)."""
        tomb = self.tombstones.get(key)
        if tomb is not None and epoch <= tomb[0]:
            return False
        known = self.registered.get(key)
        if known is None or epoch > known:
            self.registered[key] = epoch
        return known is None

    def note_released(self, key: int, epoch: int, request: int) -> bool:
        """True if that ends the registration of `key` (REF-EPOCH)."""
        if request > self.low:
            old = self.tombstones.get(key, (0, 0))
            self.tombstones[key] = (max(epoch, old[0]), max(request, old[1]))
        known = self.registered.get(key)
        if known is None or known > epoch:
            return False
        del self.registered[key]
        return True

    def is_consuming(self, handover: Handover) -> bool:
        """Whether our word that the hand-over arrived is still on its way to this peer."""
        if self.outbox is not None and handover in self.outbox.changes.consume:
            return True
        return any(handover in sent.changes.consume for sent in self.unacked.values())
