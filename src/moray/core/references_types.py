"""What the reference protocol keeps and says: entries, covers, replies, changes.

An *entry* is what one process knows of one object: :class:`Owned` in the owner, :class:`Foreign` in
every other process. Both count the same way: `local` is the number of live Python references of this
process, `holds` is the number of all other reasons together. An entry lives while either is not 0.
Who the holds belong to is written where the reason lives (a container's list, a peer's table, a
cover), not in the entry, so that counting is one addition; :mod:`moray.core.references_report` puts
the two together again.

The structs compare by identity and are not tracked by the garbage collector: they never form cycles.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeAlias

import msgspec

#: Where the owner's process id stands in an object id.
_OWNER: Final = slice(8, 20)


def owner_of(object_id: bytes) -> bytes:
    """The 12-byte id of the process that owns the object."""
    return object_id[_OWNER]


def key_of(object_id: bytes) -> int:
    """The owner's number of the object: its task's `seq` in the high part, the index in the low 32 bits."""
    return int.from_bytes(object_id[:8], "big") << 32 | int.from_bytes(object_id[24:28], "big")


class Registration(IntEnum):
    """How far a borrower's registration with the owner is; compared by order."""

    #: Only covers (or a hold of this process's own replies) keep the object alive.
    NONE = 0
    #: Goes out with the next flush; dropping the entry before that sends nothing.
    QUEUED = 1
    #: Sent; the owner has not acknowledged it.
    SENT = 2
    #: Acknowledged: the object lives until this process releases it.
    REGISTERED = 3
    #: The owner is dead, or does not have the object any more.
    LOST = 4


class Owned(msgspec.Struct, gc=False, eq=False):
    """An object of this process. Made with ``local=1`` by whoever puts it or submits its task.

    The runtime adds its own fields by subclassing. :class:`~moray.core.references.References` first hears of
    it when it escapes, holds something, is held or is dropped.
    """

    key: int
    #: Live Python references in this process.
    local: int = 1
    #: Every other reason: pending tasks, containers, borrowers, values in transit, covers, pins.
    holds: int = 0
    #: Its id has left this process, so messages may name it: it is in ``References.owned``.
    escaped: bool = False
    #: Nothing kept it any more (REF-FREE); final. A result that arrives now is not stored.
    freed: bool = False
    #: What its value contains; each has one hold from here.
    contained: list[Entry] | None = None


class Foreign(msgspec.Struct, gc=False, eq=False):
    """An object of another process. A new one is made at each 0 → 1, with a higher epoch (REF-EPOCH)."""

    id: bytes
    owner: bytes
    key: int
    #: This process's registration number for it; never used again after this entry ended.
    epoch: int
    #: Live Python references in this process.
    local: int = 0
    #: Every other reason, as in :class:`Owned`.
    holds: int = 0
    registration: Registration = Registration.NONE
    #: The request that carries the registration, from SENT on.
    request: int = 0
    #: Containers that this entry holds until it is REGISTERED (REF-COVER).
    covers: list[Entry] = []


Entry: TypeAlias = Owned | Foreign


class Gate(msgspec.Struct, eq=False):
    """Something that must wait until owners have acknowledged registrations."""

    #: The other side: the process that submitted the task.
    submitter: bytes
    #: Acknowledgements still to come; at 0 it is reported in ``Output.ready``.
    waits: int = 0


class TaskCover(Gate):
    """The submitter's hold on a running task's arguments: the cover of references unpickled from them."""

    #: The submitter's number of the task, for reports.
    seq: int = 0
    #: What arrived under it and was not registered then, in order.
    refs: dict[Foreign, None] = msgspec.field(default_factory=dict)
    #: The task's reply is being made: later arrivals register at once.
    finished: bool = False


class Reply(Gate):
    """A value (or several) on its way to the submitter of a task."""

    #: Sender's number of this hand-over, sent along with the value; 0 when nothing is contained.
    handover: int = 0
    #: The task's cover; None for a stream's item, or if no reference arrived.
    cover: TaskCover | None = None


class Changes(msgspec.Struct, array_like=True, eq=False):
    """What one process tells another about references: one numbered request, carried out as one step.

    Requests of a process to another are numbered 1, 2, 3 …; each is repeated after a reconnect until it is
    acknowledged, and carried out once, in whatever order they come. The parts are carried out in
    the order of the fields, except that releases come last.
    """

    request: int = 0
    #: To the owner: the sender holds (key, epoch).
    register: list[tuple[int, int]] = []
    #: To the owner: the sender's registrations up to this epoch are over, (key, epoch).
    release: list[tuple[int, int]] = []
    #: To the owner: a value that contains `key` goes to `receiver`: (receiver, handover, keys) (REF-SEND).
    provisional: list[tuple[bytes, int, list[int]]] = []
    #: To the owner: the value of hand-over (sender, number) arrived here; what was registered for it ends.
    consume: list[tuple[bytes, int]] = []
    #: To the sender of values: these hand-overs arrived; its holds on the receiver's own objects end.
    accepted: list[int] = []
    #: Owner to a receiver: (dead sender, numbers): did these hand-overs arrive?
    settle: list[tuple[bytes, list[int]]] = []
    #: Receiver to the owner: these never arrived, and cannot any more.
    settled: list[tuple[bytes, list[int]]] = []


class Output(msgspec.Struct):
    """What the shell must do, field after field.

    The order is free but for one thing: `freed` is last, so that what a step both sends away and frees is sent
    from memory that is still its own.
    """

    #: (peer, changes): as a References message; kept by the core until acknowledged.
    sends: list[tuple[bytes, Changes]]
    #: (peer, request, lost keys): as a ReferencesDone message; never repeated by itself.
    acks: list[tuple[bytes, int, list[int]]]
    #: Replies that may depart now, and covers whose references are registered (``secure``).
    ready: list[Gate]
    #: Objects that their owners do not have any more; their readers get an error.
    lost: list[Foreign]
    #: Give up value, copies, spilled bytes, lineage (REF-FREE).
    freed: list[Owned]
