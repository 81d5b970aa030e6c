"""Callbacks of graphs that dask computes over a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

dask = pytest.importorskip("dask")

from moray.util.dask import RayDaskCallback, ray_dask_get, ray_dask_get_sync  # noqa: E402


@pytest.fixture(autouse=True)
def _session(shared_session: ModuleType) -> Iterator[None]:
    yield
    assert not RayDaskCallback.ray_active


def computed() -> Any:
    return dask.delayed(sum)([dask.delayed(abs)(-2), 3]).compute(scheduler=ray_dask_get)


def test_the_driver_hears_of_each_task_and_of_the_end() -> None:
    heard: list[Any] = []

    class Listener(RayDaskCallback):
        def __init__(self) -> None:
            pass  # As many subclasses do, without calling the base's.

        def _ray_postsubmit(self, task: Any, key: Any, deps: Any, object_ref: Any) -> None:
            heard.append(str(key).split("-")[0])

        def _ray_postsubmit_all(self, object_refs: Any, dsk: Any) -> None:
            heard.append(len(object_refs))

        def _ray_finish(self, result: Any) -> None:
            heard.append(result)

    with Listener():
        assert computed() == 5
    assert heard == ["abs", "sum", 1, (5,)]
    assert computed() == 5
    assert len(heard) == 4


def test_a_task_can_be_answered_before_it_is_submitted() -> None:
    with RayDaskCallback(ray_presubmit=lambda _task, key, _deps: 40 if str(key).startswith("abs") else None):
        assert computed() == 43


def test_what_runs_around_a_task_shares_a_state(tmp_path: Path) -> None:
    def before(key: Any, _refs: Any) -> str:
        return f"{key} began"

    def after(key: Any, result: Any, state: str) -> None:
        assert state == f"{key} began"
        (tmp_path / str(key).split("-")[0]).write_text(str(result))

    def alone(_key: Any, _result: Any, state: Any) -> None:
        assert state is None

    with RayDaskCallback(ray_pretask=before, ray_posttask=after), RayDaskCallback(ray_posttask=alone):
        assert computed() == 5
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"abs": "2", "sum": "5"}


def test_everything_in_this_process() -> None:
    assert dask.delayed(abs)(-1).compute(scheduler=ray_dask_get_sync) == 1
