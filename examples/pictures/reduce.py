"""Combining results one after another and in a tree, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import moray
from examples.pictures.canvas import BLUE, GREY, save

SIZES = (2, 4, 8, 16, 32, 64)
WORKERS = 32
#: What combining two results takes. It sleeps, so that the picture does not depend on the number of cores.
COMBINE_S = 0.05


def combine(one: int, other: int) -> int:
    time.sleep(COMBINE_S)
    return one + other


def chain(task: Any, refs: list[Any]) -> Any:
    total = refs[0]
    for ref in refs[1:]:
        total = task.remote(total, ref)
    return total


def tree(task: Any, refs: list[Any]) -> Any:
    while len(refs) > 1:
        refs = [task.remote(*refs[i : i + 2]) for i in range(0, len(refs), 2)]
    return refs[0]


def seconds(reduce: Callable[[Any, list[Any]], Any], size: int) -> float:
    task = moray.remote(combine)
    refs = [moray.put(number) for number in range(size)]
    start = time.perf_counter()
    total = moray.get(reduce(task, refs))
    took = time.perf_counter() - start
    assert total == sum(range(size))
    return took


def measure(sizes: tuple[int, ...] = SIZES) -> dict[str, list[float]]:
    """Seconds of both ways for each of the sizes, in a session of its own."""
    with moray.init(num_cpus=WORKERS):
        moray.get([moray.remote(combine).remote(0, 0) for _ in range(WORKERS)])  # The workers have started.
        return {way.__name__: [seconds(way, size) for size in sizes] for way in (chain, tree)}


def reduce(path: Path, sizes: tuple[int, ...] = SIZES) -> None:
    measured = measure(sizes)
    drawn = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = drawn.subplots()
    for (name, values), colour in zip(measured.items(), (GREY, BLUE), strict=True):
        axes.plot(sizes, values, "o-", color=colour, label=name)
        axes.annotate(
            f"{values[-1]:.2f} s", (sizes[-1], values[-1]), xytext=(-8, 8), textcoords="offset points", ha="right"
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel(f"results to combine, {COMBINE_S * 1e3:.0f} ms for each two")
    axes.set_ylabel("seconds")
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save(drawn, path)
