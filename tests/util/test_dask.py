"""dask's collections over a session: the same results as by dask's own schedulers."""

from __future__ import annotations

import os
from operator import add
from types import ModuleType
from typing import Any

import pytest

dask = pytest.importorskip("dask", reason="dask is not installed; `make setup` installs it")

from moray.util.dask import disable_dask_on_ray, enable_dask_on_ray, ray_dask_get  # noqa: E402


@pytest.fixture(autouse=True)
def session(shared_session: ModuleType) -> ModuleType:
    return shared_session


def pid(_x: Any = None) -> int:
    return os.getpid()


def test_delayed() -> None:
    total = dask.delayed(sum)([dask.delayed(add)(x, 1) for x in range(20)])
    assert total.compute(scheduler=ray_dask_get) == 210
    assert dask.delayed(pid)().compute(scheduler=ray_dask_get) != os.getpid()


def test_graphs_by_hand() -> None:
    graph = {"x": 1, "y": (add, "x", 10), "z": (sum, ["x", "y", 5]), ("t", 0): (add, "z", "z"), "alias": "y"}
    for keys in ("z", ["x", "y"], [["z"], [("t", 0), "alias"]], ["x", "x"], []):
        assert ray_dask_get(graph, keys) == dask.get(graph, keys)
    with pytest.raises(KeyError):
        ray_dask_get(graph, "missing")


def test_a_deep_graph_and_a_wide_one() -> None:
    chain: dict[Any, Any] = {("c", 0): 0} | {("c", i): (add, ("c", i - 1), 1) for i in range(1, 1500)}
    assert ray_dask_get(chain, ("c", 1499)) == 1499
    wide: dict[Any, Any] = {("w", i): (add, i, 1) for i in range(300)}
    assert ray_dask_get(wide | {"all": (sum, list(wide))}, "all") == sum(range(301))


def test_arrays_and_bags() -> None:
    da = pytest.importorskip("dask.array")
    array = da.arange(100_000, chunks=20_000)
    assert float((array**2).sum().compute(scheduler=ray_dask_get)) == float(sum(x * x for x in range(100_000)))
    assert (array[::1000] + 1).compute(scheduler=ray_dask_get).tolist() == list(range(1, 100_000, 1000))


def test_errors_are_those_of_the_function() -> None:
    with pytest.raises(ZeroDivisionError):
        dask.delayed(lambda x: 1 / x)(0).compute(scheduler=ray_dask_get)


def test_options_and_references(session: ModuleType) -> None:
    graph = {"a": (add, 1, 2), "b": (add, "a", 3), "c": 7}
    refs = ray_dask_get(graph, ["b", "c"], ray_persist=True)
    assert session.get(list(refs)) == [6, 7]
    assert ray_dask_get({"r": (resources,)}, "r", ray_remote_args={"num_cpus": 2}) == {"CPU": 2.0}


def resources() -> dict[str, float]:
    import moray

    return moray.get_runtime_context().get_assigned_resources()


def test_as_the_scheduler_of_all() -> None:
    where = dask.delayed(pid)
    with enable_dask_on_ray():
        assert where().compute() != os.getpid()
    assert dask.config.get("scheduler", None) is None
    enable_dask_on_ray(shuffle=None)
    try:
        assert where().compute() != os.getpid()
    finally:
        disable_dask_on_ray()
    assert dask.config.get("scheduler", None) is None
