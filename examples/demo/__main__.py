"""``python -m examples.demo [folder]``: the tour. It leaves two pictures in the folder.

First the jobs, each both ways; then the shows, each once. Exits with 1 if a parallel result differs from the serial
one, or if what a show found is not what must come out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

import moray
from examples.demo.as_ray import AsRayShow
from examples.demo.job import Advance, Job
from examples.demo.parameters import ParametersShow
from examples.demo.photos import VARIANTS, Photos
from examples.demo.pi import Pi
from examples.demo.race import RaceShow
from examples.demo.ranking import RankingShow
from examples.demo.report import Outcome, Shown, chart, contact_sheet, shown_table, table
from examples.demo.show import Show, Wrong
from examples.demo.streams import StreamsShow
from examples.demo.why import WhyShow
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


def run_show(show: Show, console: Console) -> Shown:
    """Run it, and say what came out."""
    console.print(f"[bold]{show.name:16}[/] {show.detail}", highlight=False)
    start = time.perf_counter()
    try:
        text, right = show.run(), True
    except Wrong as error:
        text, right = str(error), False
    seconds = time.perf_counter() - start
    console.print(Padding(Text(text, "cyan" if right else "red"), (0, 0, 0, 17)))
    return Shown(show.name, seconds, right)


def run_shows(shows: Sequence[Show], console: Console) -> list[Shown]:
    console.rule("actors, generators, cancel, explain, Ray")
    return [run_show(show, console) for show in shows]


def main() -> int:
    begun = time.perf_counter()
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
        outcomes = [outcome for outcome, _ in results]
        console.print(table(outcomes, cpus))
        shown = run_shows([RankingShow(), ParametersShow(), StreamsShow(), RaceShow(), WhyShow(), AsRayShow()], console)
    finally:
        moray.shutdown()

    console.print(shown_table(shown))
    chart(outcomes, cpus, folder / "seconds.png")
    contact_sheet(results[0][1], PHOTOS_PER_ROW * VARIANTS, folder / "thumbnails.png")
    for name in ("seconds.png", "thumbnails.png"):
        console.print(str((folder / name).resolve()), highlight=False, soft_wrap=True)
    console.print(f"the whole tour took {time.perf_counter() - begun:.0f} s", highlight=False)
    if not all(outcome.equal for outcome in outcomes):
        console.print("[red]a parallel result differs from the serial one[/]")
        return 1
    return 0 if all(one.right for one in shown) else 1


if __name__ == "__main__":
    sys.exit(main())
