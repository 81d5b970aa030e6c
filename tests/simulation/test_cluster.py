"""The simulated cluster: whatever nodes, head, lines, workers and owners do, all is served and free in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.cluster import ClusterWorld

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", range(1, 9))
def test_seed(seed: int) -> None:
    world = ClusterWorld(seed, most_nodes=6)
    world.run()
    assert world.finished > 0


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1_000, 1_200))
def test_many_seeds(seed: int) -> None:
    ClusterWorld(seed).run()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_many_nodes(seed: int) -> None:
    ClusterWorld(seed, fewest_nodes=50, most_nodes=50).run()


def test_a_seed_repeats_itself() -> None:
    """Whatever Python's hashes are."""
    program = (
        "from tests.simulation.cluster import ClusterWorld\n"
        "world = ClusterWorld(3, most_nodes=4)\nworld.run()\nprint(world.steps, world.finished, world.now)"
    )
    lines = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert lines[0] == lines[1]
