"""What the table of placement groups is told, and what it tells its shell to do.

A call returns actions in the order in which they must be carried out.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from moray.core.resources import Amounts


class PlacementNode(msgspec.Struct, frozen=True):
    """A node as the table sees it."""

    node: bytes
    total: Amounts
    #: Free as of its last report.
    available: Amounts
    labels: dict[str, str] = {}
    #: Resources with indices.
    devices: frozenset[str] = frozenset()
    #: It takes nothing new.
    draining: bool = False


class GroupSpec(msgspec.Struct, frozen=True):
    """What a creator asked for."""

    group: bytes
    creator: bytes
    job: int
    bundles: tuple[Amounts, ...]
    #: "PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD".
    strategy: str
    name: str = ""
    namespace: str = ""
    #: It outlives its job.
    detached: bool = False
    #: Per bundle: label → condition; () if there are none.
    selectors: tuple[dict[str, str], ...] = ()
    #: All bundles here; b"": anywhere.
    target_node: bytes = b""

    @property
    def label(self) -> str:
        """For people."""
        return f"placement group {self.name!r}" if self.name else f"placement group {self.group.hex()[:8]}"


class Prepare(msgspec.Struct, frozen=True):
    """Have `node` reserve these bundles, all or none; answer with `prepared`."""

    node: bytes
    group: bytes
    number: int
    bundles: dict[int, Amounts]
    job: int
    label: str
    #: The attempt has no other part: use them as soon as they are reserved, and answer with `committed`.
    alone: bool = False


class Commit(msgspec.Struct, frozen=True):
    """They may be used; answer with `committed`."""

    node: bytes
    group: bytes
    number: int


class Return(msgspec.Struct, frozen=True):
    """What was prepared, or waits to be, is not wanted."""

    node: bytes
    group: bytes
    number: int


class RemoveFrom(msgspec.Struct, frozen=True):
    """The group is gone: `node` ends what runs in it and frees its bundles."""

    node: bytes
    group: bytes
    reason: str


class Gone(msgspec.Struct, frozen=True):
    """The group is removed: what belongs to it elsewhere (actors) ends. Comes before every RemoveFrom."""

    group: bytes
    reason: str


class TellGroup(msgspec.Struct, frozen=True):
    """How a group stands.

    ``state``: "pending", "created", "rescheduling", "infeasible", "removed", "unknown", "refused" (its name is taken).
    """

    processes: tuple[bytes, ...]
    #: Of the question that this answers; 0: of none.
    request: int
    group: bytes
    state: str
    reason: str = ""
    bundles: tuple[Amounts, ...] = ()
    #: Per bundle; b"": it has none.
    nodes: tuple[bytes, ...] = ()
    name: str = ""
    strategy: str = ""
    namespace: str = ""


class WarnOwner(msgspec.Struct, frozen=True):
    """Show `text` to the user of `job`."""

    job: int
    text: str


PlacementAction: TypeAlias = Prepare | Commit | Return | RemoveFrom | Gone | TellGroup | WarnOwner
