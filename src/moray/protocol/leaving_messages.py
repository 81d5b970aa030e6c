"""Messages about nodes that leave, and what moves away from them first; and about certificates that are renewed.

See :mod:`moray.protocol.messages` for the conventions.
"""

from __future__ import annotations

from moray.protocol.base import Message

# --- actors ------------------------------------------------------------------------------------------------------


class MoveActor(Message, tag=180):
    """Head → worker: begin no more calls, and end when those that were begun are answered: the actor is to live
    elsewhere. Answered by ActorMoved, and the end of the process. Said again: there is another deadline."""

    actor: bytes
    incarnation: int
    reason: str
    #: When its node ends what still runs, in seconds of the epoch.
    deadline: float


class ActorMoved(Message, tag=181):
    """Worker → head: no more calls are begun here."""

    actor: bytes
    incarnation: int
    #: Caller's process → numbers of its calls that may have begun, if they are not known to be answered (CALL-ORDER).
    begun: dict[bytes, list[int]]


# --- objects -----------------------------------------------------------------------------------------------------


class TakeObjects(Message, tag=182):
    """Node that leaves → node: fetch these, and have the primary copies from then on. Answered by ObjectsTaken."""

    objects: list[bytes]
    sizes: list[int]


class ObjectsTaken(Message, tag=183):
    """Node → node that leaves."""

    objects: list[bytes]
    #: Why it has not got it, for each; "": it has.
    problems: list[str]


class ObjectsMoved(Message, tag=184):
    """Node that leaves → owner: the primary copies of these are at `node` now, no more at `source`. Answered by
    MoveNoted, so that the node stays until what crosses this has arrived there."""

    objects: list[bytes]
    source: bytes
    node: bytes


class MoveNoted(Message, tag=185):
    """Owner → `source` of ObjectsMoved."""

    objects: list[bytes]
    source: bytes


# --- certificates ------------------------------------------------------------------------------------------------


class RenewCertificate(Message, tag=186):
    """Node → head, on its authenticated connection: a new certificate, for the key and the name of the one that it has
    shown there. Answered by CertificateRenewed; a question that is lost with the connection is asked again."""


class CertificateRenewed(Message, tag=187):
    #: DER; b"": there is none, and `reason` says why.
    certificate: bytes
    reason: str = ""
