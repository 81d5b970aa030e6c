"""Placement groups in a cluster: the same service as in a local session's node, with nodes for hands.

Nodes reserve bundles when they are told so on their streams, which lose and repeat nothing; so the table's word and a
node's answer always meet. What an event changes in the table is stored with it (:mod:`moray.core.group_records`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.msgpack import decode, encode

from moray.core.bundles import group_of, plain_need, split_name
from moray.core.group_records import GroupRecord, GroupsRecord, RecordedGroupTable
from moray.core.placement_types import PlacementAction, PlacementNode
from moray.head.storage import Storage
from moray.ids import tag_of
from moray.node.groups import Groups
from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.head.head import Head

#: Group → GroupRecord; key b"": GroupsRecord.
_GROUPS: Final = "groups"
#: Removed group → (its number among them, why), of the last ones; older ones are unknown to the next head.
_REMOVED: Final = "removed_groups"
_REMEMBERED: Final = 200


class _Groups(Groups):
    """Says that something has changed."""

    changed = False

    def _perform(self, actions: Iterable[PlacementAction]) -> None:
        decided = list(actions)
        self.changed = self.changed or bool(decided)
        super()._perform(decided)


class _Nodes:
    """Nodes by way of their streams."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def reserve(self, node: bytes, message: m.ReserveBundles) -> None:
        """Nothing if it is dead, which the table is told too."""
        self._head.tell(tag_of(node), message)


class HeadGroups:
    """The service, with its storage."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._table = RecordedGroupTable()
        self._groups = _Groups(head, _Nodes(head), head.reactor, head, self._table)
        #: What the table knows of each node.
        self._known: dict[bytes, m.NodeInfo] = {}
        #: What is stored of what is not of one group; removed groups that are, and how many there were.
        self._rest = b""
        self._removed: deque[bytes] = deque()
        self._removals = 0
        #: What a restored table begins with.
        self._beginning: list[PlacementAction] = []
        head.add_handlers(self._groups.handlers)
        head.services[m.BundlesReserved] = self._on_reserved
        head.commits.gatherers.append(self._gather)

    def load(self, storage: Storage) -> None:
        """Be the table that was stored; what it begins with is carried out by `resume`."""
        for info in self._head.members.table.nodes():
            self._node_changed(info)
        rows = dict(storage.scan(_GROUPS))
        self._rest = rows.pop(b"", b"")
        removed = sorted((*decode(row, type=tuple[int, str]), group) for group, row in storage.scan(_REMOVED))
        self._removed.extend(group for _number, _why, group in removed)
        self._removals = removed[-1][0] if removed else 0
        self._beginning = self._table.restore(
            [decode(row, type=GroupRecord) for row in rows.values()],
            [(group, why) for _number, why, group in removed],
            decode(self._rest, type=GroupsRecord) if self._rest else GroupsRecord(),
            monotonic(),
        )

    def resume(self) -> None:
        """When all parts are restored. What waits is placed now: no event need come for long that would do it."""
        self._groups.resume([*self._beginning, *self._table.tick(monotonic())])

    def home(self, need: Mapping[str, int]) -> bytes | None:
        """A node that has the bundle of a group that this need names (or any bundle, if it names none).

        b"": none has it yet. None: the need names no group, or one that was removed.
        """
        try:
            group, index = bytes.fromhex(group_of(need)), plain_need(need)[1]
        except ValueError:
            return None  # Somebody's own resource, of a name that looks like it.
        if not group or self._table.state(group) == "removed":
            return None
        nodes = self._table.nodes(group)
        return nodes[index] if 0 <= index < len(nodes) else max(nodes, default=b"")

    # --- what happens elsewhere in the cluster ------------------------------------------------------------

    def view_changed(self) -> None:
        """Nodes have joined, or told how they stand."""
        for info in self._head.members.table.nodes():
            known = self._known.get(info.node_id)
            if known is None or _differs(known, info):
                self._node_changed(info)

    def node_died(self, node_id: bytes) -> None:
        """Bundles that were there are placed anew."""
        self._known.pop(node_id, None)
        self._groups.node_died(node_id)

    def process_died(self, process: bytes) -> None:
        """A client is dead."""
        self._groups.process_died(process)
        self._groups.changed = True

    def job_ended(self, job: int) -> None:
        """A job is over."""
        self._groups.job_ended(job)

    def _node_changed(self, info: m.NodeInfo) -> None:
        self._known[info.node_id] = msgspec.structs.replace(info)
        total = {name: amount for name, amount in info.resources.items() if not split_name(name)[1]}
        self._groups.node_changed(
            PlacementNode(
                info.node_id, total, info.available, info.labels, frozenset(info.devices), info.drain_deadline > 0
            )
        )

    def _on_reserved(self, _process: bytes, _pid: int, _job: int, answer: m.BundlesReserved) -> None:
        self._groups.changed = True
        self._groups.reserved(self._head.speaker(), answer)

    # --- storage --------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        """A batch closes: store what it has changed."""
        if not self._groups.changed:
            return
        self._groups.changed = False
        write = self._head.commits.write
        for group, record in self._table.changes().items():
            write(_GROUPS, group, None if record is None else encode(record))
        for group, why in self._table.removals():
            self._removals += 1
            self._removed.append(group)
            write(_REMOVED, group, encode((self._removals, why)))
        while len(self._removed) > _REMEMBERED:
            write(_REMOVED, self._removed.popleft(), None)
        rest = encode(self._table.rest())
        if rest != self._rest:
            self._rest = rest
            write(_GROUPS, b"", rest)


def _differs(known: m.NodeInfo, info: m.NodeInfo) -> bool:
    """In what the table of groups looks at."""
    return (known.resources, known.available, known.labels, known.drain_deadline) != (
        info.resources,
        info.available,
        info.labels,
        info.drain_deadline,
    )
