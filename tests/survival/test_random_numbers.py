"""Workers are forked from one process, and still draw numbers of their own."""

from __future__ import annotations

import os
import random
import secrets
import tempfile
import uuid
from pathlib import Path

import pytest

import moray
from tests.support.procs import run_driver, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote
def draw(directory: str, me: int) -> tuple[int, dict[str, object]]:
    """Waits for the other, so that both are in different workers."""
    import numpy as np

    Path(directory, str(me)).touch()
    wait_until(lambda: len(os.listdir(directory)) >= 2)
    return os.getpid(), {
        "random": random.random(),
        "numpy": float(np.random.rand()),
        "numpy integers": tuple(np.random.randint(0, 1 << 30, 4).tolist()),
        "numpy generator": float(np.random.default_rng().random()),
        "secrets": secrets.token_hex(),
        "uuid": str(uuid.uuid4()),
        "hash of temporary name": tempfile.mktemp(),
        "moray's ids": moray.put(1).hex(),
    }


def test_two_workers_draw_different_numbers(tmp_path: Path) -> None:
    (first_pid, first), (second_pid, second) = moray.get([draw.remote(str(tmp_path), me) for me in (0, 1)], timeout=30)
    assert first_pid != second_pid
    assert [name for name in first if first[name] == second[name]] == []


def test_one_worker_draws_different_numbers_in_each_task() -> None:
    @moray.remote
    def number() -> float:
        return random.random()

    numbers = moray.get([number.remote() for _ in range(50)])
    assert len(set(numbers)) == 50


def test_replaced_workers_draw_different_numbers() -> None:
    @moray.remote(max_calls=1)
    def number() -> float:
        return random.random()

    assert len(set(moray.get([number.remote() for _ in range(8)], timeout=60))) == 8


def test_seed_in_a_task_gives_the_same_numbers() -> None:
    @moray.remote
    def number() -> float:
        random.seed(7)
        return random.random()

    assert len(set(moray.get([number.remote() for _ in range(10)]))) == 1


def test_drivers_own_generator_is_left_alone() -> None:
    """A seeded program draws the same numbers with moray as without."""
    finished = run_driver(
        """
        import random
        import numpy as np
        import moray
        random.seed(1); np.random.seed(1)
        expected = random.random(), float(np.random.rand())
        random.seed(1); np.random.seed(1)
        moray.init(num_cpus=1)
        f = moray.remote(lambda x: x)
        moray.get([f.remote(i) for i in range(100)])
        moray.get(moray.put(bytes(200_000)))
        assert (random.random(), float(np.random.rand())) == expected
        moray.shutdown()
        print("same")
        """
    )
    assert "same" in finished.stdout
