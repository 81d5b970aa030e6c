"""A map from keys to ranks that knows its lowest-ranked key.

The heap is lazy: a key whose rank changes gets a second entry, and entries that no longer tell the truth
are dropped when they surface or when they outnumber the living. Setting, discarding and looking cost
amortised O(log n), which is what keeps a grant cheap with a thousand owners.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K")

#: Stale entries tolerated before the heap is rebuilt, beside one for each living key.
_SLACK = 32


class Ranking(Generic[K]):
    """Keys ordered by rank, lowest first; equal ranks in the order in which they were set."""

    __slots__ = ("_heap", "_ranks", "_stamp")

    def __init__(self) -> None:
        #: The truth: each living key's rank.
        self._ranks: dict[K, tuple[int, int]] = {}
        #: (rank, stamp, key); an entry whose rank is not the key's current one is stale.
        self._heap: list[tuple[tuple[int, int], int, K]] = []
        #: Makes heap entries comparable without comparing keys.
        self._stamp = 0

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, key: K) -> bool:
        return key in self._ranks

    def set(self, key: K, rank: tuple[int, int]) -> None:
        """Insert `key` or change its rank."""
        if self._ranks.get(key) == rank:
            return
        self._ranks[key] = rank
        self._stamp += 1
        heappush(self._heap, (rank, self._stamp, key))
        if len(self._heap) > 2 * len(self._ranks) + _SLACK:
            self._rebuild()

    def discard(self, key: K) -> None:
        """Remove `key` if it is there."""
        self._ranks.pop(key, None)

    def first(self) -> K | None:
        """The key with the lowest rank, or None."""
        heap, ranks = self._heap, self._ranks
        while heap:
            rank, _, key = heap[0]
            if ranks.get(key) == rank:
                return key
            heappop(heap)
        return None

    def _rebuild(self) -> None:
        self._heap = [(rank, index, key) for index, (key, rank) in enumerate(self._ranks.items())]
        self._stamp = len(self._heap)
        heapify(self._heap)
