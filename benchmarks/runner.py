"""Runs workloads, each measurement in a fresh process, systems in turns.

For each workload the rounds follow each other, and within a round every system has its turn: what else the
machine does then falls on all of them, and the median of the rounds' ratios is steadier than the ratio of two
medians taken minutes apart.

A workload that fails or does not end costs its own row only; the reason is kept beside it. The next measurement
starts when the processes of the last one are gone, so that one system's clean-up is not another's time.
"""

from __future__ import annotations

import json
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks import environments, procfs
from benchmarks.catalogue import Row, System

#: Longest a single measurement may take. Ray's slowest takes about a minute on two cores.
_TIMEOUT_SECONDS = 300.0

#: Time for a session's last processes to end by themselves once its driver did.
_SETTLE_SECONDS = 10.0


class MeasurementError(Exception):
    """The workload's process ended without figures."""


@dataclass(frozen=True)
class Measurement:
    """What one process printed."""

    figures: dict[str, list[float]]
    version: str


@dataclass
class Results:
    """Everything that was measured, by (workload, system)."""

    #: By number of the round; what failed is not in it. Only figures of one round are divided by each other.
    rounds: dict[tuple[str, str], dict[int, Measurement]] = field(default_factory=dict)
    #: The last failure of each.
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def values(self, row: Row, system: System) -> list[float]:
        """Every repetition of every round."""
        taken = self.rounds.get((row.workload, system), {})
        return [value for one in taken.values() for value in one.figures.get(row.figure, [])]

    def per_round(self, workload: str, figure: str, system: System) -> dict[int, float]:
        """The median of each round that has this figure (short runs leave some out), by its number."""
        taken = self.rounds.get((workload, system), {}).items()
        return {number: statistics.median(one.figures[figure]) for number, one in taken if figure in one.figures}

    def median(self, row: Row, system: System) -> float | None:
        found = self.per_round(row.workload, row.figure, system)
        return statistics.median(found.values()) if found else None

    def ratio(self, row: Row, other: System) -> float | None:
        """How many times better moray is than `other`: the median over rounds."""
        ours = self.per_round(row.workload, row.figure, "moray")
        theirs = self.per_round(row.workload, row.figure, other)
        ratios = [row.advantage(ours[number], theirs[number]) for number in ours.keys() & theirs.keys()]
        return statistics.median(ratios) if ratios else None

    def versions(self) -> dict[str, str]:
        return {system: one.version for (_, system), taken in self.rounds.items() for one in taken.values()}

    def to_json(self) -> str:
        entries = [
            {"workload": workload, "system": system, "rounds": {number: one.figures for number, one in taken.items()}}
            for (workload, system), taken in self.rounds.items()
        ]  # fmt: skip
        failures = [{"workload": key[0], "system": key[1], "why": why} for key, why in self.failures.items()]
        return json.dumps({"versions": self.versions(), "measurements": entries, "failures": failures}, indent=1)


@dataclass
class Runner:
    results: Results = field(default_factory=Results)
    quick: bool = False
    #: Interpreter of an existing environment with Ray, instead of our own.
    ray_python: str | None = None
    timeout_s: float = _TIMEOUT_SECONDS

    def round(self, number: int, workload: str, systems: Iterable[System]) -> None:
        """Measure `workload` once on each system; round `number` of it."""
        for system in systems:
            key = (workload, system)
            start = time.perf_counter()
            try:
                self.results.rounds.setdefault(key, {})[number] = self.measure(system, workload)
                outcome = "ok"
            except MeasurementError as failure:
                outcome = self.results.failures[key] = str(failure)
            print(f"  {workload:20s} {system:8s} {time.perf_counter() - start:6.1f} s  {outcome}", file=sys.stderr)

    def measure(self, system: System, workload: str) -> Measurement:
        command = [environments.interpreter(system, self.ray_python), "-m", "benchmarks.workloads"]
        command += ["--system", system, workload, *(["--quick"] if self.quick else [])]
        run = secrets.token_hex(8)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            cwd=environments.ROOT, env={**environments.environment(), procfs.RUN_TAG: run},
        ) as child:  # fmt: skip
            try:
                out, err = child.communicate(timeout=self.timeout_s)
                _settle(run)
            except subprocess.TimeoutExpired:
                procfs.kill(procfs.run_processes(run))
                child.communicate()
                raise MeasurementError(f"did not end within {self.timeout_s:.0f} s") from None
            except BaseException:
                procfs.kill(procfs.run_processes(run))
                raise
        return _parse(child.returncode, out, err)


def _settle(run: str) -> None:
    """Wait until nothing of a measurement is left; end what does not end by itself."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while left := procfs.run_processes(run):
        if time.monotonic() > deadline:
            print(f"  ended {len(left)} processes that outlived their measurement", file=sys.stderr)
            procfs.kill(left)
            return
        time.sleep(0.02)


def _parse(status: int, out: str, err: str) -> Measurement:
    """The last line of `out` that is ours; forwarded output of workers may surround it."""
    if status == 0:
        for line in reversed(out.splitlines()):
            if line.startswith('{"figures"'):
                answer = json.loads(line)
                return Measurement(answer["figures"], answer["version"])
    ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
    said = [line for line in err.splitlines() if line.strip()]
    raise MeasurementError(f"{ended}: {said[-1].strip()[:160] if said else 'nothing on stderr'}")
