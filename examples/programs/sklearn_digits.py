"""scikit-learn over joblib: a grid search over support vector machines that read handwritten digits."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from examples.programs.outcome import CPUS, measure


def search(with_ray: bool) -> dict[str, Any]:
    """The best settings, and the scores of all."""
    if with_ray:
        from ray.util.joblib import register_ray

        register_ray()
    images, digits = load_digits(return_X_y=True)
    grid = {"C": [0.1, 1, 10, 100], "gamma": [1e-4, 5e-4, 1e-3, 1e-2]}
    found = GridSearchCV(SVC(), grid, cv=5)
    with joblib.parallel_backend("ray", n_jobs=CPUS) if with_ray else nullcontext():
        found.fit(images, digits)
    return {"best": found.best_params_, "scores": found.cv_results_["mean_test_score"].tolist()}


if __name__ == "__main__":
    measure(search)
