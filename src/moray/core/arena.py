"""The allocator of the shared-memory arena: where an object's bytes go, nothing else.

Theory of operation. The arena is one file of fixed `capacity`. Three marks divide it::

    0 ............ top ............ backed ............ capacity
      granted once     pages exist,     no pages yet
      or free          never granted

Below `top` everything is either *used* or a *free region*; neighbouring free regions are always
merged, so between two of them lies something used. A free region was granted before: its pages are
warm (10-50 times faster to write than pages never touched), so free regions are preferred to the
part above `top`. Space above `backed` is granted only after the shell has extended the file there
(:meth:`Arena.growth`, :meth:`Arena.extend`), because a page that cannot be backed kills whoever
touches it (STORE-SPACE).

Free regions sit in bins by size, 16 bins for each power of two, with one bit per bin that tells
whether it holds any. A request takes, in this order: a region of exactly its size, the one freed
last; a region of its own bin that happens to be large enough (a few are looked at); any region of
the next bin that is not empty, all of which are large enough, the one freed last; the space at
`top`, joined to the free region below it; any region of its own bin that is large enough. What is left over goes
back to the bins. So a program
that puts and drops arrays of one size writes to the same warm pages again and again, the waste of
a good fit is below 1/16 of the request, and no step depends on how many objects live.
"""

from __future__ import annotations

import sys
from typing import Final

#: Offsets and sizes are multiples of this: a cache line, and the alignment that numpy and arrow like.
ALIGNMENT: Final = 64
_SHIFT: Final = 6

#: The file grows by as much as it has (so that the idle store costs next to nothing, and growing n
#: bytes takes log n steps), but by no less and no more than these. Backing takes 0.2 ms a MiB.
SMALLEST_EXTENT: Final = 1 << 20
LARGEST_EXTENT: Final = 64 << 20
#: Extents are whole pages of any Linux machine (64 KiB on some arm64 ones).
_PAGE: Final = 1 << 16

#: How many other sizes of its own bin a request looks at before it takes a larger region.
_LOOKS: Final = 4


def rounded(size: int) -> int:
    """What an object of `size` bytes takes in the arena; an empty one takes a place, too."""
    return (size + ALIGNMENT - 1) & -ALIGNMENT or ALIGNMENT


def _bin_of(size: int) -> int:
    """The bin of regions of this size; rises with it, 16 bins from each power of two to the next."""
    units = size >> _SHIFT
    shift = max(units.bit_length() - 5, 0)
    return (shift << 4) + (units >> shift)


class _Bins:
    """Free regions by size; within one size, the one freed last comes first."""

    __slots__ = ("_bins", "_present")

    def __init__(self) -> None:
        #: Bin → size → starts of the regions of that size, in the order in which they were freed.
        self._bins: dict[int, dict[int, dict[int, None]]] = {}
        #: Bit b is set when bin b is not empty.
        self._present = 0

    def add(self, start: int, size: int) -> None:
        number = _bin_of(size)
        sizes = self._bins.get(number)
        if sizes is None:
            sizes = self._bins[number] = {}
        if not sizes:
            self._present |= 1 << number
        starts = sizes.get(size)
        if starts is None:
            sizes[size] = {start: None}
        else:
            starts[start] = None

    def remove(self, start: int, size: int) -> None:
        number = _bin_of(size)
        sizes = self._bins[number]
        starts = sizes[size]
        del starts[start]
        if not starts:
            del sizes[size]
            if not sizes:
                self._present ^= 1 << number

    def take(self, size: int, looks: int = _LOOKS) -> tuple[int, int] | None:
        """Remove a region of at least `size` bytes, a good fit, and return its (start, size).

        None if no bin above its own has any, nor the newest `looks` sizes of its own bin.
        """
        number = _bin_of(size)
        sizes = self._bins.get(number)
        found = _large_enough(sizes, size, looks) if sizes else None
        if found is None:
            above = self._present >> (number + 1)
            if not above:
                return None
            number += (above & -above).bit_length()
            sizes = self._bins[number]
            found = _newest(sizes)
        assert sizes is not None
        starts = sizes[found]
        start, _ = starts.popitem()
        if not starts:
            del sizes[found]
            if not sizes:
                self._present ^= 1 << number
        return start, found

    def largest(self) -> int:
        """Size of the largest region (the bins are searched from above, the last one in full)."""
        number = self._present.bit_length() - 1
        return max(self._bins[number]) if number >= 0 else 0

    def regions(self) -> dict[int, int]:
        """Start → size of all of them, for checks."""
        return {start: size for sizes in self._bins.values() for size, starts in sizes.items() for start in starts}


def _newest(sizes: dict[int, dict[int, None]]) -> int:
    # popitem, because reversed() walks again and again over what was deleted from a dict's end.
    size, starts = sizes.popitem()
    sizes[size] = starts
    return size


def _large_enough(sizes: dict[int, dict[int, None]], size: int, looks: int) -> int | None:
    """The exact size, or one of those looked at, newest first, that is larger."""
    if size in sizes:
        return size
    looked_at = [sizes.popitem() for _ in range(min(looks, len(sizes)))]
    sizes.update(reversed(looked_at))
    return next((candidate for candidate, _ in looked_at if candidate > size), None)


class Arena:
    """Offsets for objects in a file of `capacity` bytes, of which `backed` have pages."""

    __slots__ = ("_bins", "_ends", "_free", "_top", "_used", "backed", "capacity", "used_bytes")

    def __init__(self, capacity: int) -> None:
        #: Size of the file: no offset lies beyond it. Never changes.
        self.capacity = capacity & -ALIGNMENT
        #: Bytes at the start of the file that have pages.
        self.backed = 0
        #: Sum of the used regions.
        self.used_bytes = 0
        #: Everything from here on was never granted.
        self._top = 0
        #: Offset → size of each used region.
        self._used: dict[int, int] = {}
        #: Start → size of each free region below `_top`.
        self._free: dict[int, int] = {}
        #: End → start of each free region, to find the left neighbour of what is freed.
        self._ends: dict[int, int] = {}
        #: The same free regions, by size.
        self._bins = _Bins()

    def __len__(self) -> int:
        """Number of used regions."""
        return len(self._used)

    def allocate(self, size: int) -> int | None:
        """Grant a region of `size` bytes; None if no free or backed space holds it in one piece."""
        size = rounded(size)
        region = self._bins.take(size)
        if region is None:
            if (start := self._allocate_at_top(size)) is not None:
                return start
            # Whoever asked now waits for pages or for a disk; next to that, a full search costs nothing.
            region = self._bins.take(size, looks=sys.maxsize)
            if region is None:
                return None
        return self._carve(*region, size)

    def free(self, offset: int) -> int:
        """Take back a granted region; returns its size. KeyError if there is none at `offset`."""
        size = self._used.pop(offset)
        self.used_bytes -= size
        start, end = offset, offset + size
        if (right := self._free.pop(end, 0)) > 0:
            self._bins.remove(end, right)
            del self._ends[end + right]
            end += right
        if (left := self._ends.pop(start, -1)) >= 0:
            self._bins.remove(left, self._free[left])
            start = left
        self._free[start] = self._ends_at(start, end - start)
        self._bins.add(start, end - start)
        return size

    def shrink(self, offset: int, size: int) -> None:
        """Take back what a granted region has beyond its first `size` bytes."""
        size, granted = rounded(size), self._used[offset]
        if size > granted:
            raise ValueError(f"a region of {granted} bytes cannot be shrunk to {size}")
        if size < granted:
            self._used[offset] = size
            self._used[offset + size] = granted - size
            self.free(offset + size)

    def growth(self, size: int, eager: bool = True) -> int:
        """How many more bytes the shell must back before `size` bytes fit at the top of the arena.

        0 when they never will, or already do. `eager` asks for more than is needed now.
        """
        needed = self._tail_start() + rounded(size) - self.backed
        if needed <= 0 or self.backed + needed > self.capacity:
            return 0
        if eager:
            needed = max(needed, min(max(self.backed, SMALLEST_EXTENT), LARGEST_EXTENT))
        return min((needed + _PAGE - 1) & -_PAGE, self.capacity - self.backed)

    def extend(self, size: int) -> None:
        """The shell has backed `size` more bytes."""
        if self.backed + size > self.capacity:
            raise ValueError(f"the arena of {self.capacity} bytes cannot be extended to {self.backed + size}")
        self.backed += size

    def largest_free(self) -> int:
        """The largest request that :meth:`allocate` would grant now."""
        return max(self._bins.largest(), self.backed - self._tail_start())

    def check(self) -> None:
        """Raise AssertionError unless all that is said above holds."""
        assert self._top <= self.backed <= self.capacity
        assert self.used_bytes == sum(self._used.values())
        assert self._bins.regions() == self._free
        assert self._ends == {start + size: start for start, size in self._free.items()}
        position, after_free = 0, False
        for start, size, free in sorted(
            [(start, size, False) for start, size in self._used.items()]
            + [(start, size, True) for start, size in self._free.items()]
        ):
            assert start == position, f"a gap or an overlap at {position}"
            assert size > 0
            assert size % ALIGNMENT == 0
            assert not (free and after_free), f"two free regions meet at {start}"
            position, after_free = start + size, free
        assert position == self._top

    def _tail_start(self) -> int:
        """Where the space that ends at `backed` begins, the free region below `_top` included."""
        return self._ends.get(self._top, self._top)

    def _allocate_at_top(self, size: int) -> int | None:
        start = self._tail_start()
        if start + size > self.backed:
            return None
        if start < self._top:
            self._bins.remove(start, self._free.pop(start))
            del self._ends[self._top]
        # Not smaller than before: the free region at the top was too small, or it would have been taken.
        self._top = start + size
        self._used[start] = size
        self.used_bytes += size
        return start

    def _carve(self, start: int, found: int, size: int) -> int:
        """Grant the first part of a free region that is out of its bin already."""
        del self._free[start]
        if found > size:
            rest = start + size
            self._free[rest] = self._ends_at(rest, found - size)
            self._bins.add(rest, found - size)
        else:
            del self._ends[start + found]
        self._used[start] = size
        self.used_bytes += size
        return start

    def _ends_at(self, start: int, size: int) -> int:
        """Note where a new free region ends; returns its size."""
        self._ends[start + size] = start
        return size
