"""What is remembered of dead actors, for whoever asks late.

A tombstone stays while the creator lives, because its handles may still be on their way to somebody; those of
detached actors stay. There is a bound on their number and on their bytes (errors of constructors can be large);
beyond it the oldest go first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

import msgspec

from moray.core.actor_actions import Registration

#: Far more dead actors than a program still asks for; about 50 MB.
MOST: Final = 100_000

#: Reasons and errors in all.
MOST_BYTES: Final = 64 << 20


class Tombstone(msgspec.Struct, frozen=True, gc=False):
    """A dead actor."""

    actor: bytes
    class_name: str
    name: str
    namespace: str
    creator: bytes
    detached: bool
    job: int
    #: The last one.
    incarnation: int
    restarts: int
    reason: str
    error: bytes

    @property
    def size(self) -> int:
        """Of what varies, in bytes."""
        return len(self.reason) + len(self.error)


class Tombstones:
    """All of them, oldest first."""

    __slots__ = ("_by_creator", "_bytes", "_stones")

    def __init__(self) -> None:
        self._stones: dict[bytes, Tombstone] = {}
        #: Those that go with their creator.
        self._by_creator: dict[bytes, dict[bytes, None]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._stones)

    def get(self, actor: bytes) -> Tombstone | None:
        """What is known of a dead actor."""
        return self._stones.get(actor)

    def add(self, stone: Tombstone) -> None:
        """Remember one."""
        self._stones[stone.actor] = stone
        self._bytes += stone.size
        if not stone.detached:
            self._by_creator.setdefault(stone.creator, {})[stone.actor] = None
        while len(self._stones) > MOST or (self._bytes > MOST_BYTES and len(self._stones) > 1):
            self._drop(next(iter(self._stones)))

    def creators(self) -> Iterable[bytes]:
        """Those whose ends end tombstones."""
        return self._by_creator

    def of_creator(self, creator: bytes) -> Iterable[bytes]:
        """The dead actors that go with a creator."""
        return self._by_creator.get(creator, ())

    def creator_died(self, creator: bytes) -> None:
        """Nobody can learn of its actors any more."""
        for actor in list(self._by_creator.get(creator, ())):
            self._drop(actor)

    def latest(self, count: int) -> Iterator[Tombstone]:
        """The last ones, latest first."""
        return islice(reversed(self._stones.values()), count)

    def validate(self) -> None:
        """Raise AssertionError if the books do not agree."""
        assert self._bytes == sum(stone.size for stone in self._stones.values())
        of_creators = {actor for actors in self._by_creator.values() for actor in actors}
        assert of_creators == {stone.actor for stone in self._stones.values() if not stone.detached}

    def _drop(self, actor: bytes) -> None:
        stone = self._stones.pop(actor)
        self._bytes -= stone.size
        if not stone.detached:
            mine = self._by_creator[stone.creator]
            del mine[actor]
            if not mine:
                del self._by_creator[stone.creator]


def bury(made: Registration, incarnation: int, restarts: int, reason: str, error: bytes) -> Tombstone:
    """The tombstone of an actor; `made` is not kept."""
    return Tombstone(
        made.actor, made.class_name, made.name, made.namespace, made.creator, made.detached, made.job,
        incarnation, restarts, reason, error,
    )  # fmt: skip
