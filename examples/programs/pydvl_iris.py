"""pyDVL: what each flower is worth to a classifier of irises, by Shapley values, on its ``RayParallelBackend``."""

from __future__ import annotations

import warnings
from typing import Any

from examples.programs.outcome import CPUS, measure
from pydvl.parallel import JoblibParallelBackend, ParallelBackend
from pydvl.utils import Dataset, Scorer, Utility
from pydvl.value import compute_loo
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier


def appraise(with_ray: bool) -> dict[str, Any]:
    """How much worse the classifier gets without each flower."""
    warnings.filterwarnings("ignore")
    backend: ParallelBackend = JoblibParallelBackend()
    if with_ray:
        from pydvl.parallel import RayParallelBackend

        backend = RayParallelBackend()
    flowers = Dataset.from_sklearn(load_iris(), train_size=0.6, random_state=1, stratify_by_target=True)
    utility = Utility(RandomForestClassifier(40, random_state=1), flowers, Scorer("accuracy", default=0.0))
    values = compute_loo(utility, n_jobs=CPUS if with_ray else 1, parallel_backend=backend, progress=False)
    values.sort(key="index")
    return {"values": values.values.tolist()}


if __name__ == "__main__":
    measure(appraise)
