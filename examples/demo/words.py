"""Word count over the sources of the standard library: map, then a tree of reductions.

`count` maps a batch of files to its words; `merge` adds up a few counts. The reductions are tasks over
the references of the layer below, so counts go from worker to worker, and only the root comes back.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

import moray
from examples.demo.job import Advance, Job, advance_as_ready

Counts: TypeAlias = "Counter[str]"

BATCHES = 48
#: How many counts one reduction adds up.
FAN_IN = 4
#: Folders that are no part of the standard library, or compiled.
OTHER = frozenset({"site-packages", "dist-packages", "__pycache__"})

_WORD = re.compile(r"[^\W\d_]+")


def corpus() -> list[Path]:
    """Every source file of the standard library, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in root.rglob("*.py") if OTHER.isdisjoint(path.relative_to(root).parts))


def batches(paths: list[Path], count: int) -> list[list[Path]]:
    """The files in `count` groups of about equal size: the largest first, each to the smallest group."""
    groups: list[list[Path]] = [[] for _ in range(min(count, len(paths)))]
    sizes = [0] * len(groups)
    for path in sorted(paths, key=lambda path: (-path.stat().st_size, path)):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(path)
        sizes[smallest] += path.stat().st_size
    return groups


def count(paths: list[Path]) -> Counts:
    words: Counts = Counter()
    for path in paths:
        words.update(_WORD.findall(path.read_text(encoding="utf-8", errors="replace").lower()))
    return words


def merge(*counts: Counts) -> Counts:
    total: Counts = Counter()
    for part in counts:
        total.update(part)
    return total


class Words(Job[Counts]):
    name = "words"

    def __init__(self) -> None:
        paths = corpus()
        self.groups = batches(paths, BATCHES)
        self.steps = len(self.groups)
        size = sum(path.stat().st_size for path in paths) / 1e6
        self.detail = f"{len(paths):,} source files of the standard library, {size:.0f} MB"

    def serial(self, advance: Advance) -> Counts:
        parts = []
        for group in self.groups:
            parts.append(count(group))
            advance()
        return merge(*parts)

    def parallel(self, advance: Advance) -> Counts:
        count_task, merge_task = moray.remote(count), moray.remote(merge)
        leaves = [count_task.remote(group) for group in self.groups]
        layer: list[Any] = leaves
        while len(layer) > 1:
            layer = [merge_task.remote(*layer[i : i + FAN_IN]) for i in range(0, len(layer), FAN_IN)]
        advance_as_ready(leaves, advance)
        total: Counts = moray.get(layer[0])
        return total

    def equal(self, one: Counts, other: Counts) -> bool:
        return one == other

    def summary(self, result: Counts) -> str:
        top = ", ".join(f"{word} {times:,}" for word, times in result.most_common(3))
        return f"{result.total():,} words, {len(result):,} different; most often: {top}"
