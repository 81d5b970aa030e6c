"""The simulator finds nothing in the cores as they are, finds seeded faults, and repeats itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.simulate import simulate

ROOT = Path(__file__).parents[2]
MUTANTS = ROOT / "tests" / "mutants"
#: Seeds in which a seeded fault must show.
FAULT_SEEDS = "1..120"
#: Faults of all cores that the simulator is sure to meet; the others need a test of their core.
CAUGHT = (
    "actors/orphan_lives_on",
    "arena/rounded_down",
    "leases/lost_keeps_the_first",
    "limits/given_and_free",
    "limits/last_first",
    "limits/one_too_many",
    "local_scheduler/double_grant",
    "local_scheduler/granted_from_a_negative_account",
    "object_table/read_before_the_restore",
    "references/borrow_not_reported",
    "references/promise_not_consumed",
)


@pytest.mark.parametrize("seed", range(1, 11))
def test_seed(seed: int) -> None:
    outcome = simulate(seed)
    assert not outcome.violation, str(outcome)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1500))
def test_many_seeds(seed: int) -> None:
    outcome = simulate(seed)
    assert not outcome.violation, str(outcome)


def test_a_seed_repeats_itself() -> None:
    first, second = simulate(7), simulate(7)
    assert (first.digest, first.steps, first.tasks) == (second.digest, second.steps, second.tasks)
    assert first.latest == second.latest
    assert simulate(8).digest != first.digest


def run(package: Path, *arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": hash_seed,
    }
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100, check=False)


def test_a_seed_repeats_itself_in_another_process() -> None:
    """Whatever Python's hashes are."""
    lines = [run(ROOT / "src", "3", hash_seed=hash_seed).stdout for hash_seed in ("1", "2")]
    assert lines[0] == lines[1]
    assert "history" in lines[0]


def test_trace_tells_every_event() -> None:
    result = run(ROOT / "src", "2", "--steps", "200", "--trace")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    assert "LeaseGranted" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant",
    # All are found in long runs; some of them each time.
    [pytest.param(mutant, marks=[] if number % 4 == 3 else [pytest.mark.long]) for number, mutant in enumerate(CAUGHT)],
)
def test_a_seeded_fault_is_found(mutant: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src" / "moray", tmp_path / "moray", ignore=shutil.ignore_patterns("__pycache__"))
    patch = ["patch", "-p1", "--fuzz=0", "-s", "-d", str(tmp_path / "moray"), "-i", str(MUTANTS / f"{mutant}.patch")]
    subprocess.run(patch, check=True)
    result = run(tmp_path, "--seeds", FAULT_SEEDS)
    assert result.returncode == 1, f"not found in the seeds {FAULT_SEEDS}:\n{result.stdout[-2000:]}{result.stderr}"
    assert "VIOLATED at step" in result.stdout
