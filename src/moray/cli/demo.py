"""``moray demo``: the project's full tour if it is there, or a small one that needs nothing but moray."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib.util import find_spec

import click

import moray
from moray.cli.run import Program, plan

#: The tour of a checkout, and what it needs beside moray.
_TOUR = "examples.demo"
_NEEDED = ("numpy", "matplotlib", "skimage", "PIL")
#: Terms of the small tour's sum, and tasks that they are divided among.
_TERMS, _TASKS = 4_000_000, 8


def choose(small: bool) -> Program | None:
    """The tour of the checkout, to be run by the caller; or None when the small one has run."""
    root = os.path.abspath(f"{os.path.dirname(moray.__file__)}/../..")
    if small:
        click.echo("The small tour, which is part of the package.\n")
    elif not os.path.exists(f"{root}/examples/demo/__main__.py"):
        click.echo("The small tour: the full one is part of the project's checkout (make demo).\n")
    elif missing := [name for name in _NEEDED if find_spec(name) is None]:
        click.echo(f"The small tour: the full one needs {', '.join(missing)} (pip install -e '.[dev]').\n")
    else:
        click.echo(f"The full tour: python -m {_TOUR} in {root}\n")
        return plan(False, _TOUR, None, [])._replace(path=root)
    _small_tour()
    return None


def _small_tour() -> None:
    start = time.perf_counter()
    try:
        moray.init("local")
    except (moray.exceptions.MorayError, OSError, ValueError) as error:
        raise click.ClickException(f"{error}\n`moray doctor` looks for the cause") from None
    try:
        _say("session", f"{moray.cluster_resources()['CPU']:g} CPUs", start)
        for step in (_show_tasks, _show_objects, _show_actor, _show_generator, _show_error):
            begun = time.perf_counter()
            _say(*step(), begun)
    finally:
        moray.shutdown()


def _say(name: str, found: str, begun: float) -> None:
    click.echo(f"{name:10} {found}  ({(time.perf_counter() - begun) * 1e3:.0f} ms)")


def _show_tasks() -> tuple[str, str]:
    begun = time.perf_counter()
    serial = _pi(0, _TERMS)
    serial_s = time.perf_counter() - begun
    part, step = moray.remote(_pi), _TERMS // _TASKS
    begun = time.perf_counter()
    parallel = sum(moray.get([part.remote(index * step, (index + 1) * step) for index in range(_TASKS)]))
    seconds = time.perf_counter() - begun
    if abs(serial - parallel) > 1e-9:
        raise click.ClickException(f"the tasks found {parallel} for pi, this process {serial}")
    return "tasks", f"pi = {parallel:.6f} by {_TASKS} tasks in {seconds:.2f} s, in this process in {serial_s:.2f} s"


def _pi(first: int, last: int) -> float:
    """A part of Leibniz's series."""
    return sum((4.0 if term % 2 == 0 else -4.0) / (2 * term + 1) for term in range(first, last))


def _show_objects() -> tuple[str, str]:
    ref = moray.put(bytes(20 << 20))
    lengths = moray.get([moray.remote(len).remote(ref) for _ in range(4)])
    return "objects", f"20 MiB stored once, read by {len(lengths)} tasks"


class _Counter:
    """An actor: a process that keeps what it has."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        """One more."""
        self.count += 1
        return self.count


def _show_actor() -> tuple[str, str]:
    counter = moray.remote(_Counter).remote()
    counts = moray.get([counter.add.remote() for _ in range(1000)])
    return "actor", f"{len(counts)} calls in order, the last answered {counts[-1]}"


def _show_generator() -> tuple[str, str]:
    stream = moray.remote(_squares).remote(5)
    return "generator", f"items as they come: {', '.join(str(moray.get(ref)) for ref in stream)}"


def _squares(count: int) -> Iterator[int]:
    for number in range(count):
        yield number * number


def _show_error() -> tuple[str, str]:
    def divide(number: int) -> float:
        return 1 / number

    try:
        moray.get(moray.remote(divide).remote(0))
    except ZeroDivisionError as error:
        return "error", f"what a task raises is raised here: {str(error).splitlines()[-1]}"
    raise click.ClickException("the task that divides by zero raised nothing")
