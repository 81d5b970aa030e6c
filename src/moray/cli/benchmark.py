"""``moray benchmark``: a handful of figures, each from some half a second of the same few calls.

They answer "is it as fast here as it should be", not "which library is faster": there is no comparison, one
repetition, and whatever else the machine does counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import click

import moray
from moray.cli.output import print_table

#: Tasks or calls that are submitted before their results are fetched.
BATCH = 1000
#: Size of the object that is stored and read.
LARGE_BYTES = 32 << 20


class Figure(NamedTuple):
    """One line of the table."""

    name: str
    value: float
    unit: str


def measure_and_print(seconds: float, num_cpus: int | None, as_json: bool) -> None:
    """The command. ClickException if no session can be started."""
    try:
        figures = measure(seconds, num_cpus)
    except (moray.exceptions.MorayError, OSError, ValueError) as error:
        raise click.ClickException(f"{error}\n`moray doctor` looks for the cause") from None
    if as_json:
        click.echo(json.dumps([figure._asdict() for figure in figures], indent=1))
        return
    rows = [(figure.name, _number(figure.value), figure.unit) for figure in figures]
    print_table("moray on this machine", ("what", "figure", "unit"), rows, right=(1,))


def measure(seconds: float, num_cpus: int | None) -> list[Figure]:
    """All figures, in a session of its own."""
    start = time.perf_counter()
    # "local": never somebody's running session, which MORAY_ADDRESS may name.
    moray.init("local", num_cpus=num_cpus)
    try:
        started_ms = (time.perf_counter() - start) * 1e3
        figures = [Figure("start of a session", started_ms, "ms")]
        figures += _tasks(seconds) + _calls(seconds) + _objects(seconds)
    finally:
        start = time.perf_counter()
        moray.shutdown()
    figures.append(Figure("end of a session", (time.perf_counter() - start) * 1e3, "ms"))
    return figures


def _tasks(seconds: float) -> list[Figure]:
    task = moray.remote(_nothing)
    start = time.perf_counter()
    moray.get(task.remote())
    first = (time.perf_counter() - start) * 1e3
    one = _rate(lambda: moray.get(task.remote()), seconds)
    many = _rate(lambda: moray.get([task.remote() for _ in range(BATCH)]), seconds) * BATCH
    return [
        Figure("first task", first, "ms"),
        Figure("tasks, one after another", one, "/s"),
        Figure(f"tasks, {BATCH} at once", many, "/s"),
    ]


def _calls(seconds: float) -> list[Figure]:
    actor = moray.remote(_Nobody).remote()
    moray.get(actor.nothing.remote())
    one = _rate(lambda: moray.get(actor.nothing.remote()), seconds)
    many = _rate(lambda: moray.get([actor.nothing.remote() for _ in range(BATCH)]), seconds) * BATCH
    return [
        Figure("calls of an actor, one after another", one, "/s"),
        Figure(f"calls of an actor, {BATCH} at once", many, "/s"),
    ]


def _objects(seconds: float) -> list[Figure]:
    small = _rate(lambda: moray.get(moray.put(b"small")), seconds)
    large = bytes(LARGE_BYTES)
    stored = _rate(lambda: moray.put(large), seconds) * LARGE_BYTES / 1e9
    ref = moray.put(large)
    read = _rate(lambda: moray.get(ref), seconds) * LARGE_BYTES / 1e9
    return [
        Figure("put and get, small", small, "/s"),
        Figure(f"put, {LARGE_BYTES >> 20} MiB of bytes", stored, "GB/s"),
        Figure(f"get, {LARGE_BYTES >> 20} MiB of bytes (copied)", read, "GB/s"),
    ]


def _rate(step: Callable[[], Any], seconds: float) -> float:
    """How often a second `step` is done: after one that does not count, as many as begin within `seconds`."""
    step()
    count, passed = 0, 0.0
    start = time.perf_counter()
    while passed < seconds:
        step()
        count += 1
        passed = time.perf_counter() - start
    return count / passed


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _nothing() -> None:
    pass


class _Nobody:
    def nothing(self) -> None:
        """Answer."""
