"""A full store, and no disk: what was dropped a moment ago makes room, whoever dropped it (STORE-SPACE)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.procs import run_driver
from tests.support.small_disks import needs_mount, small_disk

pytestmark = [pytest.mark.slow, needs_mount]


@pytest.fixture
def no_disk(tmp_path: Path) -> Iterator[Path]:
    """It takes next to nothing."""
    with small_disk(tmp_path / "disk", "64k") as directory:
        yield directory


PRELUDE = """
import threading
import numpy as np
import moray

moray.init(num_cpus=2, object_store_memory=40_000_000)
quarter, most = np.zeros(9_900_000 // 8), np.zeros(36_000_000 // 8)

@moray.remote
def make(size):
    return np.zeros(size)

@moray.remote
def take(array):
    return len(array)
"""


def run(body: str, disk: Path) -> str:
    return run_driver(PRELUDE + body, env={"MORAY_SPILL_DIR": str(disk)}, timeout_s=100).stdout


def test_puts_of_a_quarter_each_dropped_before_the_next(no_disk: Path) -> None:
    out = run(
        """
for number in range(1000):
    ref = moray.put(quarter)
    if number % 3 == 0:
        moray.get(ref)
    del ref
print("done")
""",
        no_disk,
    )
    assert out.split() == ["done"]


def test_one_at_a_time_fills_the_store(no_disk: Path) -> None:
    """Results that this process has read, and arguments that a worker has."""
    out = run(
        """
for _ in range(40):
    moray.get(make.remote(len(most)))
for _ in range(40):
    ref = moray.put(most)
    assert moray.get(take.remote(ref)) == len(most)
    del ref
for _ in range(40):
    assert moray.get(take.remote(most)) == len(most)
print("done")
""",
        no_disk,
    )
    assert out.split() == ["done"]


def test_beside_a_thread_that_computes(no_disk: Path) -> None:
    """The loop, which is to tell of drops, gets the interpreter lock when it can."""
    out = run(
        """
ended = threading.Event()
def compute():
    while not ended.is_set():
        sum(range(1000))
thread = threading.Thread(target=compute)
thread.start()
for _ in range(30):
    ref = make.remote(len(most))
    moray.get(ref)
    del ref
ended.set()
thread.join()
print("done")
""",
        no_disk,
    )
    assert out.split() == ["done"]
