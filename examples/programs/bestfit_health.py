"""spark-bestfit: which of scipy's distributions describe chronic diseases best; its ``RayBackend`` fits each."""

from __future__ import annotations

import warnings
from typing import Any

from spark_bestfit import DistributionFitter, LocalBackend
from statsmodels.datasets import randhie

from examples.programs.outcome import CPUS, measure


def fit(with_ray: bool) -> dict[str, Any]:
    """The five best, with their parameters."""
    warnings.filterwarnings("ignore")
    backend: Any = LocalBackend(max_workers=1)
    if with_ray:
        from spark_bestfit import RayBackend

        backend = RayBackend(num_cpus=CPUS)
    people = randhie.load_pandas().data
    found = DistributionFitter(backend=backend, random_seed=1).fit(
        people, column="disea", max_distributions=50, enable_sampling=False, lazy_metrics=True
    )
    best = found.best(n=5, metric="sse")
    return {"names": [each.distribution for each in best], "sse": [each.sse for each in best]}


if __name__ == "__main__":
    measure(fit)
