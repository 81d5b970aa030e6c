"""What earlier attempts of a task leave behind (REF-FREE)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import moray


def store_bytes() -> int:
    from moray.api import _state

    used: int = _state()["store"]["used_bytes"]
    return used


@moray.remote(max_retries=1)
def large_then_small(marker: str) -> object:
    """The first attempt is killed when its large result is complete in the store; the second returns a small one."""
    from moray.runtime import state

    if Path(marker).exists():
        return "small"
    Path(marker).touch()
    values: Any = state.runtime.values  # type: ignore[union-attr]
    write = values.write

    def write_and_die(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    values.write = write_and_die
    return np.zeros(1_000_000)


def test_a_large_result_of_a_dead_attempt_goes_when_the_next_one_is_small(
    moray_session: ModuleType, tmp_path: Path
) -> None:
    ref = large_then_small.remote(str(tmp_path / "first"))
    assert moray.get(ref) == "small"
    deadline = time.monotonic() + 10
    while store_bytes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert store_bytes() == 0, "the reference lives, but its value is elsewhere"
    assert moray.get(ref) == "small"
