"""deephyper: a search for the settings of a gradient-boosted classifier of wines, by its ``RayEvaluator``."""

from __future__ import annotations

import tempfile
from typing import Any

from deephyper.evaluator import Evaluator
from deephyper.hpo import HpProblem, RandomSearch
from sklearn.datasets import load_wine
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import cross_val_score

from examples.programs.outcome import CPUS, measure


def score(job: Any) -> float:
    """How well one choice of settings does."""
    wines, growers = load_wine(return_X_y=True)
    model = GradientBoostingClassifier(
        n_estimators=job.parameters["trees"],
        learning_rate=job.parameters["rate"],
        max_depth=job.parameters["depth"],
        random_state=1,
    )
    return float(cross_val_score(model, wines, growers, cv=4).mean())


def search(with_ray: bool) -> dict[str, Any]:
    """The settings that were tried, with their scores."""
    problem = HpProblem()
    problem.add((10, 80), "trees")
    problem.add((0.01, 0.5, "log-uniform"), "rate")
    problem.add((1, 5), "depth")
    options: dict[str, Any] = {"method": "thread", "method_kwargs": {"num_workers": 1}}
    if with_ray:
        options = {"method": "ray", "method_kwargs": {"num_cpus": CPUS, "num_cpus_per_task": 1}}
    evaluator = Evaluator.create(score, **options)
    with tempfile.TemporaryDirectory() as folder:
        found = RandomSearch(problem, random_state=1, log_dir=folder).search(evaluator, 16)
    found = found.sort_values(["p:trees", "p:rate"]).head(16)
    columns = ["p:trees", "p:rate", "p:depth", "objective"]
    return {"tried": found[columns].astype(float).to_numpy().tolist()}


if __name__ == "__main__":
    measure(search)
