"""pymoo: NSGA-II chooses measurements that tell malignant cells, few of them and with few mistakes.

Each evaluation of a candidate is a task, by pymoo's ``RayParallelization``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import ElementwiseProblem
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.operators.mutation.bitflip import BitflipMutation
from pymoo.operators.sampling.rnd import BinaryRandomSampling
from pymoo.optimize import minimize
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from examples.programs.outcome import measure

MEASUREMENTS = 30


class Choice(ElementwiseProblem):  # type: ignore[misc]
    """Which measurements to use: mistakes against their number."""

    def __init__(self, **options: Any) -> None:
        super().__init__(n_var=MEASUREMENTS, n_obj=2, xl=0, xu=1, vtype=bool, **options)
        self.features, self.malignant = load_breast_cancer(return_X_y=True)

    def _evaluate(self, x: Any, out: dict[str, Any], *_args: Any, **_kwargs: Any) -> None:
        mistakes = 1.0
        if x.any():
            scores = cross_val_score(KNeighborsClassifier(5), self.features[:, x], self.malignant, cv=5)
            mistakes = 1 - scores.mean()
        out["F"] = [mistakes, int(x.sum())]


def optimise(with_ray: bool) -> dict[str, Any]:
    """The front of the best compromises."""
    options: dict[str, Any] = {}
    if with_ray:
        from pymoo.parallelization.ray import RayParallelization

        options["elementwise_runner"] = RayParallelization()
    algorithm = NSGA2(
        pop_size=30, sampling=BinaryRandomSampling(), crossover=TwoPointCrossover(), mutation=BitflipMutation()
    )
    found = minimize(Choice(**options), algorithm, ("n_gen", 8), seed=1)
    front = np.unique(found.F, axis=0)
    return {"front": front.tolist()}


if __name__ == "__main__":
    measure(optimise)
