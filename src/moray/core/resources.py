"""What one machine has and what of it is free.

All amounts are integers in units of 1/10000 (:data:`UNIT`), so sums are exact. A *device* resource (GPU)
also has indices: below one unit a need shares one index with others, from one unit on it takes whole,
untouched indices. CPUs can be lent by blocked workers and are taken back at once, which may make the
account negative (LEASE); nothing that needs CPU fits until it is not.

What a placement group has reserved here is a set of resources of its own (:mod:`moray.core.bundles`), which come and go
with the group. The indices of its devices are those of the reservation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from moray.core.bundles import (
    BUNDLE,
    BUNDLE_TOTAL,
    UNIT as _UNIT,
    deal_out,
    group_names,
    show_name,
    shown_names,
    split_name,
)

#: One CPU (or GPU, or custom resource).
UNIT: Final = _UNIT

#: The only resource that a blocked worker lends, with what groups have of it.
CPU: Final = "CPU"
_CPU_OF_GROUPS: Final = "CPU_group_"

#: Weight of a need that takes the whole machine; the finer, the smaller the rounding.
_WHOLE: Final = 1_000_000

Amounts: TypeAlias = dict[str, int]
Devices: TypeAlias = dict[str, list[int]]


def show_amount(amount: int) -> str:
    """Units as people write them: 10000 → "1", 5000 → "0.5"."""
    return f"{amount / UNIT:.4f}".rstrip("0").rstrip(".")


def show_amounts(amounts: Mapping[str, int]) -> str:
    """A need as people write it: "CPU: 1, GPU: 0.5", or "nothing"."""
    shown = sorted((show_name(name), amounts[name]) for name in shown_names(amounts))
    return ", ".join(f"{name}: {show_amount(amount)}" for name, amount in shown) or "nothing"


def is_cpu(name: str) -> bool:
    """Whether blocked workers lend it."""
    return name == CPU or name.startswith(_CPU_OF_GROUPS)


class Slots:
    """The indices of a device resource, or those of them that belong to a group or to one of its bundles."""

    __slots__ = ("device", "free", "indices", "size")

    def __init__(self, device: str, size: dict[int, int], free: dict[int, int], indices: Sequence[int]) -> None:
        #: The plain name, by which workers know it.
        self.device = device
        #: Index → units in all, and free units; a group and its bundles share them.
        self.size = size
        self.free = free
        self.indices = list(indices)

    def fit(self, amount: int) -> bool:
        """Whether indices for `amount` are free."""
        if amount < UNIT:
            return not amount or any(self.free[index] >= amount for index in self.indices)
        return self.whole() >= amount

    def whole(self) -> int:
        """Units of untouched indices."""
        return UNIT * sum(self.free[index] == UNIT for index in self.indices)

    def take(self, amount: int) -> list[int]:
        """Take indices that :meth:`fit`."""
        if amount == 0:
            return []
        if amount < UNIT:
            # Best fit: fill a touched index before breaking a whole one.
            fitting = (index for index in self.indices if self.free[index] >= amount)
            chosen = [min(fitting, key=lambda index: (self.free[index], index))]
        else:
            chosen = [index for index in self.indices if self.free[index] == UNIT][: amount // UNIT]
        for index in chosen:
            self.free[index] -= min(amount, UNIT)
        return chosen


class Ledger:
    """Total, available and device indices of one machine."""

    __slots__ = ("_slots", "available", "lasting", "total")

    def __init__(self, total: Mapping[str, int], devices: Mapping[str, int]) -> None:
        #: What the machine has.
        self.total: Amounts = dict(total)
        for name, count in devices.items():
            self.total.setdefault(name, count * UNIT)
        #: What is taken by those who give it back only when their process ends: actors.
        self.lasting: Amounts = dict.fromkeys(self.total, 0)
        #: What is not taken; CPU may be negative.
        self.available: Amounts = dict(self.total)
        #: The indices of each device resource.
        self._slots: dict[str, Slots] = {
            name: Slots(name, dict.fromkeys(range(count), UNIT), dict.fromkeys(range(count), UNIT), range(count))
            for name, count in devices.items()
        }

    @property
    def devices(self) -> frozenset[str]:
        """Plain names of resources with indices."""
        return frozenset(slots.device for slots in self._slots.values())

    def impossible(self, need: Mapping[str, int]) -> str:
        """Why this machine could never satisfy `need`; "" if it could."""
        reasons = []
        for name, amount in sorted(need.items()):
            total = self.total.get(name)
            if amount < 0:
                reasons.append(f"{name}: {show_amount(amount)} is negative")
            elif total is None:
                reasons.append(f"this machine has no resource named {name!r}")
            elif amount > total:
                reasons.append(f"{name}: {show_amount(amount)} wanted, the machine has {show_amount(total)}")
            elif name in self._slots and amount > UNIT and amount % UNIT:
                reasons.append(f"{name}: {show_amount(amount)} is neither at most 1 nor a whole number")
        return "; ".join(reasons)

    def fits(self, need: Mapping[str, int]) -> bool:
        """Whether `need` can be taken now."""
        available = self.available
        for name, amount in need.items():
            if available.get(name, 0) < amount:
                return False
            if name in self._slots and not self._slots[name].fit(amount):
                return False
        return True

    def take(self, need: Mapping[str, int]) -> Devices:
        """Take what fits; the device indices that come with it."""
        for name, amount in need.items():
            self.available[name] -= amount
        return {slots.device: slots.take(need[name]) for name, slots in self._choosing(need)}

    def give(self, need: Mapping[str, int], devices: Mapping[str, list[int]]) -> None:
        """Give back what :meth:`take` took."""
        for name, amount in need.items():
            self.available[name] += amount
        for name, slots in self._choosing(need):
            for index in devices.get(slots.device, ()):
                slots.free[index] += min(need[name], UNIT)

    # --- placement groups -------------------------------------------------------------------------

    def add_bundles(
        self, group: str, bundles: Mapping[int, Mapping[str, int]], devices: Mapping[str, list[int]]
    ) -> None:
        """Make resources of a group's bundles, whose amounts and `devices` have been taken."""
        shared: dict[str, tuple[dict[int, int], dict[int, int]]] = {}
        for device, indices in devices.items():
            amounts = [bundle.get(device, 0) for bundle in bundles.values()]
            size: dict[int, int] = {}
            own = dict(zip(bundles, deal_out(amounts, indices), strict=True))
            for index, bundle in bundles.items():
                rest = bundle.get(device, 0)
                for slot in own[index]:
                    size[slot] = size.get(slot, 0) + min(rest, UNIT)
                    rest -= min(rest, UNIT)
            shared[device] = size, dict(size)
            for index in bundles:
                if own[index]:
                    self._slots[group_names(device, group, index)[1]] = Slots(device, *shared[device], own[index])
        for index, bundle in bundles.items():
            for name, amount in [*bundle.items(), (BUNDLE, BUNDLE_TOTAL)]:
                whole, part = group_names(name, group, index)
                for each in (whole, part):
                    self.total[each] = self.total.get(each, 0) + amount
                    self.available[each] = self.available.get(each, 0) + amount
                    self.lasting.setdefault(each, 0)
                if name in shared and whole not in self._slots:
                    self._slots[whole] = Slots(name, *shared[name], list(shared[name][0]))

    def remove_bundles(self, group: str, bundles: Mapping[int, Mapping[str, int]]) -> None:
        """The group is gone, and nobody has anything of it."""
        for index, bundle in bundles.items():
            for name in (*bundle, BUNDLE):
                for each in group_names(name, group, index):
                    for account in (self.total, self.available, self.lasting, self._slots):
                        account.pop(each, None)

    def keep(self, need: Mapping[str, int], sign: int) -> None:
        """What was taken lasts (`sign` 1), or is about to be given back (-1)."""
        for name, amount in need.items():
            self.lasting[name] += sign * amount

    def comes_free(self, need: Mapping[str, int]) -> bool:
        """Whether `need` fits once all has been given back that does not last."""
        return all(amount <= self.total.get(name, 0) - self.lasting.get(name, 0) for name, amount in need.items())

    def lend(self, amounts: Mapping[str, int]) -> None:
        """A blocked worker lends its CPUs."""
        for name, amount in amounts.items():
            self.available[name] += amount

    def reclaim(self, amounts: Mapping[str, int]) -> None:
        """It runs again and takes them back, whatever is left (LEASE)."""
        for name, amount in amounts.items():
            self.available[name] -= amount

    def shortage(self, name: str, amount: int) -> int:
        """How much of `name` is missing for a need of `amount`; negative is a surplus."""
        short = amount - self.available.get(name, 0)
        slots = self._slots.get(name)
        if slots is None or slots.fit(amount):
            return short
        if amount < UNIT:
            return max(short, amount - max(slots.free[index] for index in slots.indices))
        return max(short, amount - slots.whole())

    def weight(self, need: Mapping[str, int]) -> int:
        """The share of the machine that `need` takes, by its scarcest resource; at least 1.

        What groups have is no other's any more: who uses it takes nothing from those outside.
        """
        total = self.total
        shares = (
            amount * _WHOLE // (total.get(name) or amount or 1)
            for name, amount in need.items()
            if not split_name(name)[1]
        )
        return 1 + max(shares, default=0)

    def validate(self) -> None:
        """Raise AssertionError if an account left its bounds."""
        for name, amount in self.available.items():
            assert amount <= self.total[name], f"{name}: {amount} available of {self.total[name]}"
            assert amount >= 0 or is_cpu(name), f"{name}: {amount} is negative"
            assert 0 <= self.lasting[name] <= self.total[name], f"{name}: {self.lasting[name]} lasting"
        for name, slots in self._slots.items():
            assert all(0 <= slots.free[index] <= slots.size[index] for index in slots.indices), f"{name}: {slots.free}"

    def _choosing(self, need: Mapping[str, int]) -> list[tuple[str, Slots]]:
        """The device resources of a need, by which indices are chosen: a bundle's own go before its group's."""
        if not self._slots:
            return []
        chosen: dict[str, tuple[str, Slots]] = {}
        for name in need:
            slots = self._slots.get(name)
            if slots is not None:
                other = chosen.get(slots.device)
                if other is None or split_name(name)[2] > split_name(other[0])[2]:
                    chosen[slots.device] = name, slots
        return list(chosen.values())
