"""The benchmark harness itself, on what needs no runtime: pools, the floor, made-up results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import catalogue, gate, procfs, report
from benchmarks.catalogue import ROWS, Limit, Ratio, Row
from benchmarks.runner import Measurement, MeasurementError, Results, Runner
from benchmarks.workloads.actors import drop
from benchmarks.workloads.base import WrongResultError
from benchmarks.workloads.latency import fifo_makespan, mixed_bound, mixed_durations

RATE = next(row for row in ROWS if row.name == "tasks_async")
TIME = next(row for row in ROWS if row.name == "init")

#: Allocates shared memory, maps and touches none of it, says so, and waits to be ended.
HOLDER = """
import os
fd = os.open("/dev/shm/moray-bench-test-%d" % os.getpid(), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
os.unlink("/dev/shm/moray-bench-test-%d" % os.getpid())
os.posix_fallocate(fd, 0, 8 << 20)
print("ready", flush=True)
input()
"""


def _results(**by_system: list[list[float]]) -> Results:
    """Results of the tasks_async workload: for each system, its rounds."""
    results = Results()
    for system, rounds in by_system.items():
        measured = {i: Measurement({"per_s": values}, "1") for i, values in enumerate(rounds) if values}
        results.rounds["tasks_async", system] = measured
    return results


@contextmanager
def _child(code: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environ}
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "ready"
        yield child
        child.communicate("\n")


@pytest.mark.parametrize("system", ["pool", "executor", "floor"])
def test_a_workload_measures_each_stdlib_system(system: catalogue.System) -> None:
    measured = Runner(quick=True, timeout_s=60).measure(system, "tasks_sync")
    assert len(measured.figures["per_s"]) >= 3
    assert min(measured.figures["per_s"]) > 10


@pytest.mark.parametrize("name", ["tasks_async", "actor_async", "actor_one_to_many"])
def test_floor_keeps_its_tasks_apart_in_bursts(name: str) -> None:
    measured = Runner(quick=True, timeout_s=60).measure("floor", name)
    assert min(measured.figures["per_s"]) > 100


def test_unknown_workload_is_a_failure_with_its_reason() -> None:
    with pytest.raises(MeasurementError, match="no workload no_such"):
        Runner(timeout_s=60).measure("pool", "no_such")


def test_a_measurement_that_does_not_end_is_ended_with_its_children() -> None:
    with pytest.raises(MeasurementError, match="did not end"):
        Runner(timeout_s=0.3).measure("pool", "tasks_async")


def test_every_row_names_workloads_that_exist() -> None:
    """In a process of its own: workloads register when they are imported."""
    code = (
        "import importlib; from benchmarks.workloads import __main__ as m, base; "
        "[importlib.import_module('benchmarks.workloads.' + name) for name in m._MODULES]; "
        "import json; print(json.dumps(base.registered()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    registered = {(system, name) for system, name in json.loads(done.stdout)}
    for name, systems in catalogue.workloads(ROWS).items():
        for system in systems:
            assert (system, name) in registered
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_ratio_is_the_median_of_the_rounds_both_systems_have() -> None:
    results = _results(moray=[[100.0, 300.0, 200.0], [400.0], []], ray=[[10.0], [10.0], [1.0]])
    assert results.ratio(RATE, "ray") == 30
    assert results.ratio(RATE, "pool") is None


def test_ratio_of_times_is_turned_over() -> None:
    assert TIME.advantage(0.1, 2.0) == pytest.approx(20)


def test_verdicts() -> None:
    results = _results(moray=[[100.0]], ray=[[10.0]])
    assert report.verdict(results, RATE, Ratio("ray", 10)) == "met"
    assert report.verdict(results, RATE, Ratio("ray", 11)) == "missed (10x)"
    assert report.verdict(results, RATE, Limit(101)) == "missed (100)"
    assert report.verdict(results, RATE, Ratio("pool", 1)) == "not measured"
    assert report.failed(results, [RATE])


def test_docs_keep_their_prose(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    report.write_docs(_results(moray=[[100.0]], ray=[[10.0]]), [RATE], "python -m benchmarks", page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| 10x |" in text
    report.write_docs(_results(moray=[[100.0]]), [RATE], "python -m benchmarks", page)
    assert page.read_text().count("measured: begin") == 1


def test_real_docs_page_can_be_rendered() -> None:
    assert "<!-- measured: begin -->" in report.DOCS.read_text()


def test_real_docs_page_would_show_every_row_and_target() -> None:
    page = report.markdown(Results(), ROWS, "python -m benchmarks")
    for row in ROWS:
        assert f"| {row.title} |" in page
    for name, target in (("actor_object_argument", "≥ 20x Ray"), ("cancel_sleep", "≤ 150 ms")):
        title = next(row.title for row in ROWS if row.name == name)
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {title} |"))
        assert target in line


def _gate_results(row: Row, ours: list[float], floors: list[float]) -> Runner:
    assert row.floor is not None
    results = Results()
    results.rounds[row.workload, "moray"] = {i: Measurement({row.figure: [v]}, "1") for i, v in enumerate(ours)}
    results.rounds[row.floor[0], "floor"] = {i: Measurement({row.floor[1]: [v]}, "1") for i, v in enumerate(floors)}
    return Runner(results)


@pytest.mark.parametrize(("row", "slower"), [(RATE, 0.5), (TIME, 2.0)], ids=["rate", "time"])
def test_gate_sees_a_slower_row_and_forgives_a_slower_machine(row: Row, slower: float) -> None:
    usual = gate.floor_ratio(_gate_results(row, [10.0, 11.0, 10.0], [20.0, 22.0, 20.0]), row)
    assert usual is not None
    machine = gate.floor_ratio(_gate_results(row, [10.0 * slower], [20.0 * slower]), row)
    assert machine == pytest.approx(usual)
    ours = gate.floor_ratio(_gate_results(row, [10.0 * slower], [20.0]), row)
    assert ours == pytest.approx(usual / 2)
    assert gate.Verdict(row, ours, usual).failed
    assert not gate.Verdict(row, machine, usual).failed


def test_gate_fails_rows_that_do_not_run_and_passes_new_ones() -> None:
    assert gate.Verdict(RATE, None, 1.0).failed
    assert not gate.Verdict(RATE, 1.0, None).failed


def test_memory_counts_shared_pages_that_nobody_mapped() -> None:
    with _child(HOLDER) as child:
        usage = procfs.memory({child.pid})
        assert usage.processes == 1
        assert usage.pss > 1 << 20
        assert usage.unmapped_shared == 8 << 20


def test_memory_counts_mapped_shared_pages_once() -> None:
    """A page that a process of the set shares with one outside it counts in full."""
    code = """
import mmap, os
fd = os.memfd_create("moray-bench-test")
os.ftruncate(fd, 8 << 20)
shared = mmap.mmap(fd, 8 << 20)
shared[:] = bytes(8 << 20)
if os.fork() == 0:
    sum(shared[::4096])
    print("ready", flush=True)
os.read(0, 1)
"""
    with _child(code) as child:
        (forked,) = procfs.descendants(child.pid)
        both = procfs.memory({child.pid, forked})
        alone = procfs.memory({child.pid})
        assert both.unmapped_shared == 0
        assert alone.unmapped_shared == 4 << 20


def test_session_processes_are_found_below_the_driver_and_by_tag() -> None:
    code = "print('ready', flush=True); input()"
    with _child(code, MORAY_SESSION="bench-test-a") as ours, _child(code, MORAY_SESSION="bench-test-b") as other:
        below = procfs.session_processes(os.getpid())
        assert {ours.pid, other.pid} <= below
        tagged = procfs.session_processes(ours.pid, hint="/tmp/bench-test-b/socket")
        assert tagged == {other.pid}


def test_bound_of_the_mixed_workload_is_a_bound() -> None:
    durations = mixed_durations()
    assert len(durations) == 1_020
    assert mixed_bound() == 1.5
    assert mixed_bound() <= fifo_makespan(durations, 8) <= 1.05 * mixed_bound()


def test_processes_of_a_measurement_are_found_by_its_tag() -> None:
    code = "print('ready', flush=True); input()"
    with _child(code, **{procfs.RUN_TAG: "bench-test-run"}) as child:
        assert procfs.run_processes("bench-test-run") == {child.pid}
    assert procfs.run_processes("bench-test-run") == set()


class _Handle:
    """Keeps a child alive, as a handle does an actor: its input is open until this goes."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE)

    def __del__(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()


def test_dropped_actors_are_gone_when_all_their_processes_have_ended() -> None:
    handles = [_Handle() for _ in range(3)]
    children = [handle.child for handle in handles]
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WrongResultError, match=r"3 actors still run 0\.1 s after"):
        drop([], [child.pid for child in children], timeout_s=0.1)
    drop(handles, [child.pid for child in children], timeout_s=20)
    assert [child.poll() for child in children] == [0, 0, 0]
    assert len(os.listdir("/proc/self/fd")) == before - 3
