"""What the environment says of all tasks, and what `ps` shows of processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

import moray
from moray.exceptions import WorkerCrashedError


def die(directory: str) -> None:
    """Leave a file, and die."""
    (Path(directory) / str(os.getpid())).touch()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("name", "retries"), [("MORAY_TASK_MAX_RETRIES", 0), ("RAY_TASK_MAX_RETRIES", 1)])
def test_the_environment_says_how_often_tasks_are_tried(
    shared_session: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, retries: int
) -> None:
    monkeypatch.setenv(name, str(retries))
    cases: list[tuple[str, dict[str, Any], int]] = [("default", {}, retries + 1), ("own", {"max_retries": 2}, 3)]
    for folder, options, tries in cases:
        (tmp_path / folder).mkdir()
        doomed: Any = cast("Any", moray.remote(die)).options(**options)
        with pytest.raises(WorkerCrashedError):
            moray.get(doomed.remote(str(tmp_path / folder)))
        assert len(os.listdir(tmp_path / folder)) == tries


@pytest.mark.parametrize("value", ["-2", "many"])
def test_a_wrong_number_of_retries_names_the_variable(
    shared_session: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("RAY_TASK_MAX_RETRIES", value)
    with pytest.raises(ValueError, match=f"RAY_TASK_MAX_RETRIES='?{value}"):
        moray.remote(os.getpid).remote()


def test_names_of_processes(shared_session: ModuleType) -> None:
    def shown() -> str:
        return Path("/proc/self/comm").read_text("utf-8").strip()

    @moray.remote
    class Counter:
        def name(self) -> str:
            return shown()

    @moray.remote
    class WithAnExceedinglyLongName:
        async def name(self) -> str:
            return shown()

    actors = Counter.remote(), WithAnExceedinglyLongName.remote()
    assert moray.get([actor.name.remote() for actor in actors]) == ["moray:Counter", "moray:WithAnExc"]
    assert moray.get(moray.remote(shown).remote()) == "moray:worker"
