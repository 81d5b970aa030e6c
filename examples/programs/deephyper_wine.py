"""deephyper: settings of a gradient-boosted classifier of wines are tried by its ``RayEvaluator``."""

from __future__ import annotations

import random
from typing import Any

from deephyper.evaluator import Evaluator
from sklearn.datasets import load_wine
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import cross_val_score

from examples.programs.outcome import CPUS, measure


def score(job: Any) -> dict[str, Any]:
    """How well one choice of settings does."""
    wines, growers = load_wine(return_X_y=True)
    trees, rate, depth = (job.parameters[name] for name in ("trees", "rate", "depth"))
    model = GradientBoostingClassifier(n_estimators=trees, learning_rate=rate, max_depth=depth, random_state=1)
    found = float(cross_val_score(model, wines, growers, cv=4).mean())
    return {"output": found, "metadata": {"settings": [trees, rate, depth]}}


def search(with_ray: bool) -> dict[str, Any]:
    """The settings that were tried, with their scores.

    Not by one of deephyper's searches: what these try next depends on which job ends first.
    """
    dice = random.Random(1)
    tried = [
        {"trees": dice.randint(10, 80), "rate": 10 ** dice.uniform(-2, -0.3), "depth": dice.randint(1, 5)}
        for _ in range(16)
    ]
    options: dict[str, Any] = {"method": "thread", "method_kwargs": {"num_workers": 1}}
    if with_ray:
        options = {"method": "ray", "method_kwargs": {"num_cpus": CPUS, "num_cpus_per_task": 1}}
    evaluator = Evaluator.create(score, **options)
    evaluator.submit(tried)
    jobs = evaluator.gather("ALL")
    return {"tried": sorted([*job.metadata["settings"], job.output] for job in jobs)}


if __name__ == "__main__":
    measure(search)
