"""econml: what co-insurance does to visits to doctors, by double machine learning; each fold's fit is a task."""

from __future__ import annotations

import warnings
from typing import Any

from econml.dml import LinearDML
from sklearn.ensemble import RandomForestRegressor
from statsmodels.datasets import randhie

from examples.programs.outcome import measure


def estimate(with_ray: bool) -> dict[str, Any]:
    """The effect, by health."""
    warnings.filterwarnings("ignore")
    people = randhie.load_pandas().data.head(12_000)
    model = LinearDML(
        model_y=RandomForestRegressor(40, min_samples_leaf=20, random_state=1),
        model_t=RandomForestRegressor(40, min_samples_leaf=20, random_state=1),
        cv=4,
        random_state=1,
        use_ray=with_ray,
        ray_remote_func_options={"num_cpus": 1} if with_ray else None,
    )
    confounders = people[["idp", "lpi", "fmde", "hlthg", "hlthf", "hlthp"]].to_numpy()
    health = people[["physlm", "disea"]].to_numpy()
    model.fit(people["mdvis"].to_numpy(), people["lncoins"].to_numpy(), X=health, W=confounders)
    return {"effect": float(model.ate(health)), "coefficients": model.coef_.tolist()}


if __name__ == "__main__":
    measure(estimate)
