"""Names and amounts of what a placement group has reserved on a machine.

A bundle *i* of the group *G* (its id, hexadecimal) that is committed on a machine turns amounts of its resources into
resources of their own, which only what runs in the group asks for::

    CPU_group_G, CPU_group_i_G         as much as the bundle (of all its bundles here, and of this one)
    bundle_group_G, bundle_group_i_G   1000 each, so that what needs no resource can be bound to a bundle

Whoever wants bundle *i* asks for both names, whoever takes any bundle for the first only. So a request in a group
is an ordinary request, and no scheduler needs to know more of groups than these names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

#: One CPU (or GPU, or custom resource) in wire units.
UNIT: Final = 10_000

#: How much of "bundle" each bundle has, and how much of it each task or actor in the group takes.
BUNDLE_TOTAL: Final = 1000 * UNIT
BUNDLE_SHARE: Final = UNIT // 1000

BUNDLE: Final = "bundle"
_MARK: Final = "_group_"
#: Hexadecimal digits of a group's id.
_HEX: Final = 36


def group_names(name: str, group: str, index: int) -> tuple[str, str]:
    """The names of a resource in the group, and in its bundle `index`."""
    return f"{name}{_MARK}{group}", f"{name}{_MARK}{index}_{group}"


def bundle_need(resources: Mapping[str, int], group: str, index: int) -> dict[str, int]:
    """What something with this need asks for in bundle `index` of a group; -1: in any of its bundles."""
    need: dict[str, int] = {}
    for name, amount in [*resources.items(), (BUNDLE, BUNDLE_SHARE)]:
        whole, part = group_names(name, group, index)
        need[whole] = amount
        if index >= 0:
            need[part] = amount
    return need


def split_name(name: str) -> tuple[str, str, int]:
    """(plain name, group, bundle index or -1) of a resource's name; the group is "" if it is no group's."""
    plain, mark, rest = name.rpartition(_MARK)
    if not mark:
        return name, "", -1
    index, _, group = rest.rpartition("_")
    if len(group) != _HEX or (index and not index.isdecimal()):
        return name, "", -1
    return plain, group, int(index) if index else -1


def group_of(need: Iterable[str]) -> str:
    """The group in which this is asked for; "" if it is outside of groups."""
    for name in need:
        if _MARK in name and (group := split_name(name)[1]):
            return group
    return ""


def plain_need(need: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """The need as it was before :func:`bundle_need`, and the index."""
    plain: dict[str, int] = {}
    index = -1
    for name, amount in need.items():
        own, group, part = split_name(name)
        index = max(index, part)
        if not group or own != BUNDLE:
            plain[own] = amount
    return plain, index


def show_name(name: str) -> str:
    """A resource's name for people: "CPU", or "CPU of bundle 1 of placement group 0123abcd"."""
    plain, group, index = split_name(name)
    if not group:
        return name
    where = f"bundle {index}" if index >= 0 else "any bundle"
    return f"{plain} of {where} of placement group {group[:8]}"


def shown_names(names: Collection[str]) -> list[str]:
    """The names that say something to people: the bundle's own, once."""
    indexed = {split_name(name)[:2] for name in names if split_name(name)[2] >= 0}
    told = []
    for name in names:
        plain, group, index = split_name(name)
        if group and ((index < 0 and (plain, group) in indexed) or (plain == BUNDLE and len(names) > 2)):
            continue
        told.append(name)
    return told


def total_of(bundles: Iterable[Mapping[str, int]], devices: Collection[str]) -> dict[str, int]:
    """What a machine must give for all of these bundles together.

    Bundles with fractions of devices share whole ones among themselves, so those are taken whole.
    """
    total: dict[str, int] = {}
    parts: dict[str, list[int]] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            if amount:
                total[name] = total.get(name, 0) + amount
                if name in devices:
                    parts.setdefault(name, []).append(amount)
    for name, amounts in parts.items():
        if total[name] > UNIT and any(amount % UNIT for amount in amounts):
            total[name] = UNIT * len(_packed(amounts))
    return total


def _packed(amounts: Sequence[int]) -> list[list[int]]:
    """Positions in `amounts` by the device on which they lie: first fit, the largest first."""
    devices: list[list[int]] = []
    room: list[int] = []
    for at in sorted(range(len(amounts)), key=lambda at: -amounts[at]):
        rest = amounts[at]
        while rest >= UNIT:
            devices.append([at])
            room.append(0)
            rest -= UNIT
        if rest:
            device = next((d for d, free in enumerate(room) if free >= rest), len(room))
            if device == len(room):
                devices.append([])
                room.append(UNIT)
            devices[device].append(at)
            room[device] -= rest
    return devices


def deal_out(amounts: Sequence[int], indices: Sequence[int]) -> list[list[int]]:
    """Which of the device `indices` that :func:`total_of` asked for belong to each of `amounts`."""
    own: list[list[int]] = [[] for _ in amounts]
    if len(indices) == 1:
        return [list(indices) if amount else [] for amount in amounts]
    for index, positions in zip(indices, _packed(amounts), strict=False):
        for at in positions:
            own[at].append(index)
    return own


def fits_in(need: Mapping[str, int], bundle: Mapping[str, int]) -> bool:
    """Whether a bundle has what is needed, when nothing else runs in it."""
    return all(amount <= bundle.get(name, 0) for name, amount in need.items())
