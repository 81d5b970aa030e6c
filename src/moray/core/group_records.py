"""The table of placement groups as records, so that a head that is started anew goes on where the last one was.

What is stored of a group is what its nodes and watchers were told. An attempt that was under way and could still be
given back is given back by `restore`, and begins anew; one that is being committed goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from moray.core.placement import HOLD_FIRST_S, GroupTable
from moray.core.placement_records import NEVER, Attempt, Group
from moray.core.placement_types import GroupSpec, PlacementAction, Return
from moray.core.resources import Amounts

#: Numbers of attempts are stored in steps of so many.
_NUMBERS: Final = 1000


class AttemptRecord(msgspec.Struct, array_like=True):
    """Bundles on their way to nodes."""

    number: int
    parts: dict[bytes, list[int]]
    committed: list[bytes]
    committing: bool


class GroupRecord(msgspec.Struct, array_like=True):
    """A group that is not removed."""

    spec: GroupSpec
    turn: int
    nodes: list[bytes]
    booked: list[tuple[bytes, Amounts, int]]
    attempt: AttemptRecord | None
    created_once: bool
    infeasible: bool
    reason: str
    watchers: list[bytes]
    told: tuple[str, list[bytes]]


class GroupsRecord(msgspec.Struct, array_like=True):
    """What is not of one group."""

    #: No attempt has a higher number.
    number: int = 0
    #: (group, watchers) whose creations are on their way.
    early: list[tuple[bytes, list[bytes]]] = []


class RecordedGroupTable(GroupTable):
    """A table that can be stored."""

    def __init__(self) -> None:
        super().__init__()
        #: Groups that have changed since `changes` was called.
        self._touched: set[bytes] = set()

    def changes(self) -> dict[bytes, GroupRecord | None]:
        """What is to be stored since the last call; None: it is removed."""
        touched, self._touched = self._touched, set()
        found = {name: self._groups.get(name) for name in touched}
        return {name: None if group is None else _record(group) for name, group in found.items()}

    def removals(self) -> list[tuple[bytes, str]]:
        """Groups that were removed since the last call, and why; the oldest first. Not all, if there are very many."""
        found = [(group, self._tombs.reason(group) or "") for group in self._tombs.added]
        self._tombs.added.clear()
        return found

    def records(self) -> dict[bytes, GroupRecord]:
        """All groups that are not removed."""
        return {name: _record(group) for name, group in self._groups.items()}

    def rest(self) -> GroupsRecord:
        """What is not of one group."""
        # In steps, so that it is not stored with each attempt.
        number = -(-self._number // _NUMBERS) * _NUMBERS
        return GroupsRecord(number, [(group, list(watchers)) for group, watchers in self._early.items()])

    def restore(
        self, groups: Iterable[GroupRecord], removed: Iterable[tuple[bytes, str]], rest: GroupsRecord, now: float
    ) -> list[PlacementAction]:
        """Be the table that was stored; the nodes that its groups are on are known (`node_changed`)."""
        self._advance(now)
        self._number = rest.number
        for group, reason in removed:
            self._tombs.add(group, reason)
        self._tombs.added.clear()
        for record in sorted(groups, key=lambda record: record.turn):
            self._restore(record)
        for name, watchers in rest.early:
            for process in watchers:
                self._watch(name, process)
        self._dirty = True
        return self._done()

    def _restore(self, record: GroupRecord) -> None:
        spec = record.spec
        group = self._groups[spec.group] = Group(spec, record.turn, self._now)
        self._turn = max(self._turn, record.turn)
        self._names.add(spec)
        group.hold = HOLD_FIRST_S
        group.nodes = list(record.nodes)
        group.created_once, group.infeasible = record.created_once, record.infeasible
        group.reason, group.told = record.reason, (record.told[0], tuple(record.told[1]))
        group.booked = [entry for entry in record.booked if entry[0] in self._nodes]
        for node, amounts, _number in group.booked:
            self._booked[node].update(amounts)
        for process in record.watchers:
            self._watch(spec.group, process)
        if record.attempt is not None:
            stored = record.attempt
            group.attempt = Attempt(stored.number, {n: list(part) for n, part in stored.parts.items()}, NEVER)
            group.attempt.committing, group.attempt.committed = stored.committing, set(stored.committed)
            if not stored.committing:
                # Who had prepared is not stored.
                for node in stored.parts:
                    self._actions.append(Return(node, spec.group, stored.number))
                group.attempt = None
                self._unbook(group, stored.number)
        if group.attempt is None and group.missing():
            self._await(group)

    def _touch(self, group: bytes) -> None:
        self._touched.add(group)


def _record(group: Group) -> GroupRecord:
    attempt = group.attempt
    return GroupRecord(
        group.spec,
        group.turn,
        list(group.nodes),
        list(group.booked),
        None
        if attempt is None
        else AttemptRecord(attempt.number, attempt.parts, sorted(attempt.committed), attempt.committing),
        group.created_once,
        group.infeasible,
        group.reason,
        list(group.watchers),
        (group.told[0], list(group.told[1])),
    )
