"""joblib and scikit-learn over a session: the same results as without it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

joblib = pytest.importorskip("joblib", reason="joblib is not installed; `make setup` installs it")

from moray.util.joblib import kept, register_ray  # noqa: E402


@pytest.fixture(autouse=True)
def backend(shared_session: ModuleType) -> Iterator[None]:
    register_ray()
    with joblib.parallel_backend("ray", n_jobs=-1):
        yield


def work(x: int) -> tuple[int, int]:
    return x * x, os.getpid()


def fail(x: int) -> int:
    if x == 5:
        raise KeyError("five")
    time.sleep(0.01)
    return x


def test_jobs_run_in_the_sessions_processes() -> None:
    results = joblib.Parallel()(joblib.delayed(work)(x) for x in range(200))
    assert [value for value, _pid in results] == [x * x for x in range(200)]
    pids = {pid for _value, pid in results}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


def test_both_names_and_plain_arguments() -> None:
    results = joblib.Parallel(n_jobs=2, backend="moray")(joblib.delayed(pow)(x, 2) for x in range(10))
    assert results == [x * x for x in range(10)]
    assert joblib.effective_n_jobs(-1) == 2


def test_one_job_stays_here() -> None:
    assert joblib.Parallel(n_jobs=1)([joblib.delayed(work)(3)]) == [(9, os.getpid())]


def test_options_of_the_actors() -> None:
    with joblib.parallel_backend("ray", n_jobs=2, ray_remote_args={"num_cpus": 0.5}):
        assert joblib.Parallel()(joblib.delayed(assigned)() for _ in range(2)) == [{"CPU": 0.5}] * 2


def assigned() -> dict[str, float]:
    import moray

    return moray.get_runtime_context().get_assigned_resources()


def test_errors_come_through_and_the_next_call_works() -> None:
    for _ in range(3):
        with pytest.raises(KeyError, match="five"):
            joblib.Parallel()(joblib.delayed(fail)(x) for x in range(50))
        assert joblib.Parallel()(joblib.delayed(fail)(x) for x in range(3)) == [0, 1, 2]


def test_generators_timeouts_and_reuse() -> None:
    with joblib.Parallel(return_as="generator") as parallel:
        assert list(parallel(joblib.delayed(pow)(x, 2) for x in range(20))) == [x * x for x in range(20)]
        assert list(parallel(joblib.delayed(pow)(x, 3) for x in range(5))) == [x**3 for x in range(5)]
    with pytest.raises(multiprocessing.TimeoutError):
        joblib.Parallel(timeout=0.2)(joblib.delayed(time.sleep)(30) for _ in range(2))


def pids(parallel: Any) -> set[int]:
    return {pid for _value, pid in parallel(joblib.delayed(work)(x) for x in range(50))}


def test_the_next_call_has_the_same_processes() -> None:
    assert pids(joblib.Parallel(n_jobs=2))
    assert len(kept._kept) == 1
    pool = kept._kept[0].pool
    assert pids(joblib.Parallel(n_jobs=2))
    assert kept._kept[0].pool is pool
    with joblib.Parallel(n_jobs=2) as outer:
        assert pids(outer)
        assert pids(joblib.Parallel(n_jobs=2))  # The kept one is in use.
    assert len(kept._kept) == 1


def test_other_calls_and_failed_ones_have_a_pool_of_their_own() -> None:
    pids(joblib.Parallel(n_jobs=2))
    pool = kept._kept[0].pool
    pids(joblib.Parallel(n_jobs=3))
    assert kept._kept[0].pool is not pool
    with pytest.raises(ValueError, match="not running"):
        pool.apply(abs, (1,))
    pids(joblib.Parallel(n_jobs=2))
    pool = kept._kept[0].pool
    with pytest.raises(KeyError):
        joblib.Parallel(n_jobs=2)(joblib.delayed(fail)(x) for x in range(50))
    assert not kept._kept
    with pytest.raises(ValueError, match="not running"):
        pool.apply(abs, (1,))


def test_a_pool_that_nobody_uses_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT_S", 0.2)
    pids(joblib.Parallel(n_jobs=2))
    deadline = time.monotonic() + 20
    while kept._keeper is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not kept._kept
    assert pids(joblib.Parallel(n_jobs=2))


def test_large_arrays_are_stored_once_and_read_in_place() -> None:
    import numpy as np

    data = np.arange(500_000, dtype=float)
    found = joblib.Parallel()(joblib.delayed(look)(data, scale=data, number=x) for x in range(8))
    assert [total for total, _writeable in found] == [float(data.sum()) + x for x in range(8)]
    assert not any(writeable for _total, writeable in found)


def look(data: Any, scale: Any, number: int) -> tuple[float, bool]:
    return float(scale.sum()) + number, data.flags.writeable


def test_nested_parallel() -> None:
    assert joblib.Parallel()(joblib.delayed(nested)(x) for x in range(4)) == [[x, x + 1] for x in range(4)]


def nested(x: int) -> list[int]:
    found: list[int] = joblib.Parallel(n_jobs=2)(joblib.delayed(sum)([x, y]) for y in range(2))
    return found


@pytest.mark.slow
def test_scikit_learn_finds_what_it_finds_alone() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed; `make setup` installs it")
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    from sklearn.ensemble import RandomForestClassifier  # type: ignore[import-untyped]
    from sklearn.model_selection import GridSearchCV, cross_val_score  # type: ignore[import-untyped]
    from sklearn.svm import SVC  # type: ignore[import-untyped]

    images, digits = load_digits(return_X_y=True)
    images, digits = images[:300], digits[:300]

    def evaluate() -> tuple[Any, ...]:
        search = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [0.001]}, cv=3)
        search.fit(images, digits)
        forest = RandomForestClassifier(20, random_state=0, n_jobs=-1)
        scores = cross_val_score(forest, images, digits, cv=3)
        return search.best_params_, search.best_score_, scores.tolist()

    over_session = evaluate()
    with joblib.parallel_backend("sequential"):
        assert evaluate() == over_session
