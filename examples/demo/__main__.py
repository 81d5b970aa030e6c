"""``python -m examples.demo [folder]``: runs every job both ways and leaves two pictures in the folder.

Exits with 1 if any parallel result differs from the serial one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import moray
from examples.demo.job import Advance, Job
from examples.demo.photos import VARIANTS, Photos
from examples.demo.pi import Pi
from examples.demo.report import Outcome, chart, contact_sheet, table
from examples.demo.words import Words

T = TypeVar("T")

OUTPUT = Path("build/demo")
#: Photographs in one row of the contact sheet.
PHOTOS_PER_ROW = 4


def timed(progress: Progress, label: str, steps: int, run: Callable[[Advance], T]) -> tuple[T, float]:
    """The result of `run` and its seconds, with a progress bar meanwhile."""
    bar = progress.add_task(label, total=steps)
    start = time.perf_counter()
    result = run(lambda: progress.advance(bar))
    return result, time.perf_counter() - start


def run_both_ways(job: Job[Any], progress: Progress) -> tuple[Outcome, Any]:
    one, serial_s = timed(progress, f"{job.name:7} serial", job.steps, job.serial)
    other, parallel_s = timed(progress, f"{job.name:7} moray", job.steps, job.parallel)
    equal = job.equal(one, other)
    return Outcome(job.name, job.detail, serial_s, parallel_s, equal, job.summary(other)), other


def progress_bars(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)


def main() -> int:
    console = Console()
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[Job[Any]] = [Photos(), Pi(), Words()]
    for job in jobs:
        console.print(f"[bold]{job.name:7}[/] {job.detail}", highlight=False)

    start = time.perf_counter()
    moray.init()
    cpus = int(moray.cluster_resources()["CPU"])
    console.print(f"moray started on {cpus} CPUs in {time.perf_counter() - start:.2f} s", highlight=False)
    try:
        with progress_bars(console) as progress:
            results = [run_both_ways(job, progress) for job in jobs]
    finally:
        moray.shutdown()

    outcomes = [outcome for outcome, _ in results]
    console.print(table(outcomes, cpus))
    chart(outcomes, cpus, folder / "seconds.png")
    contact_sheet(results[0][1], PHOTOS_PER_ROW * VARIANTS, folder / "thumbnails.png")
    for name in ("seconds.png", "thumbnails.png"):
        console.print(str((folder / name).resolve()), highlight=False, soft_wrap=True)
    if not all(outcome.equal for outcome in outcomes):
        console.print("[red]a parallel result differs from the serial one[/]")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
