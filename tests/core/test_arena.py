"""The allocator: against a model that colours bytes, and the promises of its header one by one."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moray.core.arena import ALIGNMENT, LARGEST_EXTENT, SMALLEST_EXTENT, Arena, rounded
from tests.support.machines import searched, walk_fixed

CAPACITY = 1 << 20


class ArenaMachine(RuleBasedStateMachine):
    """The model is a list of granted regions; everything else follows from it."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(CAPACITY)
        self.granted: dict[int, int] = {}
        self.backed = 0

    @rule(size=st.one_of(st.integers(0, 3000), st.integers(0, CAPACITY // 2)))
    def allocate(self, size: int) -> None:
        offset = self.arena.allocate(size)
        if offset is None:
            assert all(room < rounded(size) for room in self.gaps()), "refused although it fits"
            return
        assert offset % ALIGNMENT == 0
        assert offset + size <= self.backed, "granted without pages"
        for start, length in self.granted.items():
            assert offset + max(size, 1) <= start or start + max(length, 1) <= offset, "granted twice"
        self.granted[offset] = size

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def free(self, data: Any) -> None:
        offset = data.draw(st.sampled_from(sorted(self.granted)))
        assert self.arena.free(offset) == rounded(self.granted.pop(offset))

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def shrink(self, data: Any) -> None:
        offset = data.draw(st.sampled_from(sorted(self.granted)))
        size = data.draw(st.integers(0, self.granted[offset]))
        self.arena.shrink(offset, size)
        self.granted[offset] = size

    @rule(size=st.integers(1, CAPACITY // 2), eager=st.booleans())
    def grow(self, size: int, eager: bool) -> None:
        growth = self.arena.growth(size, eager)
        tail = self.backed - max((start + rounded(length) for start, length in self.granted.items()), default=0)
        if not growth:
            assert rounded(size) <= tail or rounded(size) > tail + CAPACITY - self.backed
            return
        self.arena.extend(growth)
        self.backed += growth
        assert self.backed <= CAPACITY
        assert tail + growth >= rounded(size), "it does not fit after growing"

    def gaps(self) -> list[int]:
        gaps, position = [], 0
        for start in sorted(self.granted):
            gaps.append(start - position)
            position = start + rounded(self.granted[start])
        return [*gaps, self.backed - position]

    @invariant()
    def books_agree(self) -> None:
        self.arena.check()
        assert len(self.arena) == len(self.granted)
        assert self.arena.used_bytes == sum(map(rounded, self.granted.values()))
        assert self.arena.backed == self.backed
        assert self.arena.largest_free() == max(self.gaps())


TestArenaMachine = searched(ArenaMachine)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(ArenaMachine, 200)


def backed(capacity: int = 1 << 30) -> Arena:
    arena = Arena(capacity)
    arena.extend(capacity)
    return arena


def grant(arena: Arena, size: int) -> int:
    offset = arena.allocate(size)
    assert offset is not None
    return offset


def test_the_region_freed_last_is_granted_first() -> None:
    arena = backed()
    regions = [grant(arena, 100_000) for _ in range(8)]
    for region in (regions[1], regions[5], regions[3]):
        arena.free(region)
    assert [grant(arena, 100_000) for _ in range(3)] == [regions[3], regions[5], regions[1]]


def test_warm_space_is_preferred_to_space_never_used() -> None:
    arena = backed()
    warm = grant(arena, 1 << 20)
    grant(arena, 64)
    arena.free(warm)
    assert grant(arena, 1000) == warm


def test_a_small_request_leaves_large_free_regions_whole() -> None:
    arena = backed()
    large, _, small, _ = (grant(arena, size) for size in (1 << 20, 64, 4096, 64))
    arena.free(small)
    arena.free(large)
    assert grant(arena, 4000) == small
    assert grant(arena, 1 << 20) == large


def test_neighbours_are_merged_in_any_order() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)):
        arena = backed(3 << 10)
        regions = [grant(arena, 1 << 10) for _ in range(3)]
        assert arena.allocate(1) is None
        for index in order:
            arena.free(regions[index])
        assert grant(arena, 3 << 10) == 0


def test_nothing_is_granted_before_it_is_backed() -> None:
    arena = Arena(1 << 30)
    assert arena.allocate(1) is None
    assert arena.growth(1) == SMALLEST_EXTENT
    arena.extend(SMALLEST_EXTENT)
    assert arena.allocate(1) == 0
    assert arena.allocate(SMALLEST_EXTENT) is None
    assert arena.growth(10 << 20) == 9 << 20 | 1 << 16


def test_extents_double_up_to_their_limit() -> None:
    arena, extents = Arena(1 << 30), []
    while growth := arena.growth(arena.backed + 1):
        extents.append(growth)
        arena.extend(growth)
        grant(arena, growth)
    assert extents[0] == SMALLEST_EXTENT
    eager = []
    arena = Arena(1 << 30)
    for _ in range(12):
        eager.append(arena.growth(64))
        arena.extend(eager[-1])
        grant(arena, eager[-1])
    assert eager == [min(SMALLEST_EXTENT << max(i - 1, 0), LARGEST_EXTENT) for i in range(12)]


def test_the_hole_at_the_top_is_used_for_what_is_larger() -> None:
    arena = backed(1 << 20)
    grant(arena, 1 << 19)
    hole = grant(arena, 1 << 18)
    arena.free(hole)
    assert grant(arena, 1 << 19) == hole


def test_freeing_twice_is_an_error() -> None:
    arena = backed()
    offset = grant(arena, 10)
    arena.free(offset)
    with pytest.raises(KeyError):
        arena.free(offset)


def test_a_region_cannot_grow() -> None:
    arena = backed()
    offset = grant(arena, 64)
    with pytest.raises(ValueError, match="cannot be shrunk to 128"):
        arena.shrink(offset, 65)


def test_an_extension_beyond_the_file_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot be extended"):
        Arena(1 << 20).extend((1 << 20) + 64)


def test_long_churn_does_not_fragment() -> None:
    """Sizes over four orders of magnitude: what is ever used stays below twice what is alive."""
    dice = random.Random(1)
    arena = backed(1 << 40)
    alive: list[int] = []
    for _ in range(20_000):
        while arena.used_bytes > 1 << 28:
            index = dice.randrange(len(alive))
            alive[index], alive[-1] = alive[-1], alive[index]
            arena.free(alive.pop())
        alive.append(grant(arena, int(2 ** dice.uniform(8, 22))))
    arena.check()
    assert max(alive) < 2 << 28


def microseconds_per_step(live: int) -> float:
    dice = random.Random(live)
    arena = backed(1 << 50)
    regions = [grant(arena, int(2 ** dice.uniform(6, 14))) for _ in range(live)]
    plan = [(dice.randrange(live), int(2 ** dice.uniform(6, 14))) for _ in range(20_000)]
    best = float("inf")
    for part in range(4):
        begin = time.perf_counter()
        for index, size in plan[part * 5000 : part * 5000 + 5000]:
            arena.free(regions[index])
            regions[index] = grant(arena, size)
        best = min(best, time.perf_counter() - begin)
    return best / 5000 * 1e6


@pytest.mark.slow
def test_cost_does_not_grow_with_live_objects() -> None:
    """One free and one grant; memory caches make the large one about 1.5 times dearer, nothing makes it 4 times."""
    few, many = microseconds_per_step(1_000), microseconds_per_step(300_000)
    assert many < 4 * few, f"{few:.2f} us with 1 000 objects, {many:.2f} us with 300 000"
