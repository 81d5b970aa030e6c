"""What the head's table of nodes tells its shell to do. A call returns these in the order of their carrying out."""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Welcome(msgspec.Struct, frozen=True):
    """Answer a node's registration: it is a member, and its lease begins. Send it `Membership.nodes`, all."""

    node_id: bytes
    #: It was a member already: its connection, or the head, is new.
    again: bool


class Refuse(msgspec.Struct, frozen=True):
    """Answer a node's registration or renewal: it is no member, and why. It must come back with a new id, if at all."""

    node_id: bytes
    #: "tag": another living node has this tag; "fenced": this node was declared dead; "outdated": the head is.
    code: str
    reason: str


class Renewed(msgspec.Struct, frozen=True):
    """Acknowledge a renewal: the node may go on for a lease from when it *sent* it (FENCE)."""

    node_id: bytes
    number: int


class Drain(msgspec.Struct, frozen=True):
    """Tell a node to take no new work and to leave at the deadline."""

    node_id: bytes
    reason: str
    deadline: float


class Died(msgspec.Struct, frozen=True):
    """A node is dead, for good: tell all nodes (it stands in the next delta), and drop its connection.

    What ran there is lost, but may not be started elsewhere before `Released`: something of it may still run.
    """

    node_id: bytes
    reason: str


class Released(msgspec.Struct, frozen=True):
    """Nothing of a dead node can start any more: start elsewhere what must live (FENCE)."""

    node_id: bytes


class StepDown(msgspec.Struct, frozen=True):
    """There is a head with a higher epoch: this one must end, and write nothing more (HEAD-EPOCH)."""

    epoch: int


class Delta(msgspec.Struct, frozen=True):
    """What has changed since version `view` - 1: the ids of nodes to describe, and (node id, why) of the dead."""

    view: int
    changed: list[bytes]
    dead: list[tuple[bytes, str]]


MemberAction: TypeAlias = Welcome | Refuse | Renewed | Drain | Died | Released | StepDown
