"""Prefect: a flow whose tasks are runs on ``prefect-ray``'s ``RayTaskRunner``: models of wines, compared."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from examples.programs.outcome import CPUS, measure

# Prefect's own database; kept beside prefect itself, as making it takes half a minute.
os.environ.setdefault("PREFECT_HOME", str(Path(sys.prefix) / "prefect-home"))
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score


@task
def score(depth: int) -> float:
    """How well trees of this depth do."""
    wines, growers = load_wine(return_X_y=True)
    model = RandomForestClassifier(100, max_depth=depth, random_state=1)
    return float(cross_val_score(model, wines, growers, cv=5).mean())


@task
def best(scores: list[float]) -> int:
    """Which depth did best."""
    return scores.index(max(scores)) + 1


def compare(with_ray: bool) -> dict[str, Any]:
    """All scores."""
    runner: Any = ThreadPoolTaskRunner(max_workers=1)
    if with_ray:
        from prefect_ray import RayTaskRunner

        runner = RayTaskRunner(init_kwargs={"num_cpus": CPUS, "include_dashboard": False})

    @flow(task_runner=runner)
    def depths() -> tuple[list[float], int]:
        futures = [score.submit(depth) for depth in range(1, 9)]
        return [future.result() for future in futures], best.submit(futures).result()

    scores, chosen = depths()
    return {"scores": scores, "best": chosen}


if __name__ == "__main__":
    measure(compare, own_session=True)
