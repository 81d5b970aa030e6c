"""What one machine has and what of it is free.

All amounts are integers in units of 1/10000 (:data:`UNIT`), so sums are exact. A *device* resource (GPU)
also has indices: below one unit a need shares one index with others, from one unit on it takes whole,
untouched indices. CPUs can be lent by blocked workers and are taken back at once, which may make the
account negative (LEASE); nothing that needs CPU fits until it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

#: One CPU (or GPU, or custom resource).
UNIT: Final = 10_000

#: The only resource that a blocked worker lends.
CPU: Final = "CPU"

#: Weight of a need that takes the whole machine; the finer, the smaller the rounding.
_WHOLE: Final = 1_000_000

Amounts: TypeAlias = dict[str, int]
Devices: TypeAlias = dict[str, list[int]]


def show_amount(amount: int) -> str:
    """Units as people write them: 10000 → "1", 5000 → "0.5"."""
    return f"{amount / UNIT:.4f}".rstrip("0").rstrip(".")


def show_amounts(amounts: Mapping[str, int]) -> str:
    """A need as people write it: "CPU: 1, GPU: 0.5", or "nothing"."""
    return ", ".join(f"{name}: {show_amount(amount)}" for name, amount in sorted(amounts.items())) or "nothing"


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
        #: Free units of each device index.
        self._slots: dict[str, list[int]] = {name: [UNIT] * count for name, count in devices.items()}

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
            if name in self._slots and not self._slots_fit(name, amount):
                return False
        return True

    def take(self, need: Mapping[str, int]) -> Devices:
        """Take what fits; the device indices that come with it."""
        devices: Devices = {}
        for name, amount in need.items():
            self.available[name] -= amount
            if name in self._slots:
                devices[name] = self._take_slots(name, amount)
        return devices

    def give(self, need: Mapping[str, int], devices: Mapping[str, list[int]]) -> None:
        """Give back what :meth:`take` took."""
        for name, amount in need.items():
            self.available[name] += amount
            share = min(amount, UNIT)
            for index in devices.get(name, ()):
                self._slots[name][index] += share

    def keep(self, need: Mapping[str, int], sign: int) -> None:
        """What was taken lasts (`sign` 1), or is about to be given back (-1)."""
        for name, amount in need.items():
            self.lasting[name] += sign * amount

    def comes_free(self, need: Mapping[str, int]) -> bool:
        """Whether `need` fits once all has been given back that does not last."""
        return all(amount <= self.total.get(name, 0) - self.lasting.get(name, 0) for name, amount in need.items())

    def lend(self, cpus: int) -> None:
        """A blocked worker lends its CPUs."""
        self.available[CPU] += cpus

    def reclaim(self, cpus: int) -> None:
        """It runs again and takes them back, whatever is left (LEASE)."""
        self.available[CPU] -= cpus

    def shortage(self, name: str, amount: int) -> int:
        """How much of `name` is missing for a need of `amount`; negative is a surplus."""
        short = amount - self.available.get(name, 0)
        slots = self._slots.get(name)
        if slots is None or self._slots_fit(name, amount):
            return short
        if amount < UNIT:
            return max(short, amount - max(slots))
        return max(short, amount - UNIT * slots.count(UNIT))

    def weight(self, need: Mapping[str, int]) -> int:
        """The share of the machine that `need` takes, by its scarcest resource; at least 1."""
        total = self.total
        shares = (amount * _WHOLE // (total.get(name) or amount or 1) for name, amount in need.items())
        return 1 + max(shares, default=0)

    def validate(self) -> None:
        """Raise AssertionError if an account left its bounds."""
        for name, amount in self.available.items():
            assert amount <= self.total[name], f"{name}: {amount} available of {self.total[name]}"
            assert amount >= 0 or name == CPU, f"{name}: {amount} is negative"
            assert 0 <= self.lasting[name] <= self.total[name], f"{name}: {self.lasting[name]} lasting"
        for name, slots in self._slots.items():
            assert all(0 <= free <= UNIT for free in slots), f"{name}: indices {slots}"

    def _slots_fit(self, name: str, amount: int) -> bool:
        slots = self._slots[name]
        if amount < UNIT:
            return any(free >= amount for free in slots)
        return slots.count(UNIT) * UNIT >= amount

    def _take_slots(self, name: str, amount: int) -> list[int]:
        slots = self._slots[name]
        if amount == 0:
            return []
        if amount < UNIT:
            # Best fit: fill a touched index before breaking a whole one.
            index = min((i for i, free in enumerate(slots) if free >= amount), key=lambda i: (slots[i], i))
            slots[index] -= amount
            return [index]
        chosen = [i for i, free in enumerate(slots) if free == UNIT][: amount // UNIT]
        for index in chosen:
            slots[index] = 0
        return chosen
