"""Tasks whose owner has died: nobody wants their results, so they end, and what they hold is free."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.exceptions import TaskCancelledError, WorkerCrashedError
from tests.support.procs import run_driver, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote(num_cpus=0, max_retries=0)
def runs_on(begun: str, ended: str) -> None:
    try:
        Path(begun).touch()
        time.sleep(600)
    finally:
        Path(ended).touch()


@moray.remote(num_cpus=0, max_retries=0)
def parent(begun: str, ended: str, dies: bool) -> None:
    ref = runs_on.remote(begun, ended)
    if dies:
        wait_until(Path(begun).exists, 20, "the child's begin")
        os._exit(3)
    moray.get(ref)


def test_a_running_task_ends_with_its_owner(tmp_path: Path) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    with pytest.raises(WorkerCrashedError):
        moray.get(parent.remote(str(begun), str(ended), True), timeout=20)
    wait_until(ended.exists, 20, "the child's end")


def test_force_ends_what_was_begun_below(tmp_path: Path) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    ref = parent.remote(str(begun), str(ended), False)
    wait_until(begun.exists, 20, "the child's begin")
    moray.cancel(ref, force=True)
    with pytest.raises(TaskCancelledError):
        moray.get(ref, timeout=20)
    wait_until(ended.exists, 20, "the child's end")


def test_what_an_orphan_held_is_free_and_its_worker_runs_others() -> None:
    code = """
    import moray, os, time
    moray.init(num_cpus=2)

    @moray.remote(max_retries=0)
    def runs_on():
        time.sleep(600)

    @moray.remote(max_retries=0)
    def dies():
        ref = runs_on.remote()
        moray.wait([ref], timeout=0.5)
        os._exit(1)

    @moray.remote(num_cpus=2)
    def wants_all():
        return "all"

    moray.wait([dies.remote()])
    print(moray.get(wants_all.remote(), timeout=20))
    """
    assert run_driver(code).stdout.split() == ["all"]


def test_the_tasks_of_others_run_on(tmp_path: Path) -> None:
    """On the same workers, before and after."""

    @moray.remote(num_cpus=0)
    def echo(value: Any) -> Any:
        return value

    for number in range(5):
        begun, ended = tmp_path / f"begun{number}", tmp_path / f"ended{number}"
        ref = parent.remote(str(begun), str(ended), True)
        others = [echo.remote(i) for i in range(50)]
        moray.wait([ref], timeout=20)
        assert moray.get(others, timeout=20) == list(range(50))
        wait_until(ended.exists, 20, "the child's end")
