"""scikit-learn over joblib: a random forest on breast-cancer measurements, its importances by permutation.

Both parts are parallel inside scikit-learn itself; nothing here says how.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import joblib
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.inspection import permutation_importance
from sklearn.model_selection import cross_val_score

from examples.programs.outcome import CPUS, measure


def grow(with_ray: bool) -> dict[str, Any]:
    """How well the forest does, and what it looks at."""
    if with_ray:
        from ray.util.joblib import register_ray

        register_ray()
    features, malignant = load_breast_cancer(return_X_y=True)
    with joblib.parallel_backend("ray", n_jobs=CPUS) if with_ray else nullcontext():
        scores = cross_val_score(RandomForestClassifier(200, random_state=1), features, malignant, cv=6)
        forest = RandomForestClassifier(100, random_state=1, n_jobs=1).fit(features, malignant)
        importances = permutation_importance(forest, features, malignant, n_repeats=5, random_state=1)
    return {"scores": scores.tolist(), "importances": importances.importances_mean.tolist()}


if __name__ == "__main__":
    measure(grow)
