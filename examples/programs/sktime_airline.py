"""sktime: forecasts of airline passengers, evaluated at many cut-off points, one task for each."""

from __future__ import annotations

import warnings
from typing import Any

from sklearn.ensemble import RandomForestRegressor
from sktime.datasets import load_airline
from sktime.forecasting.compose import make_reduction
from sktime.forecasting.model_evaluation import evaluate
from sktime.split import ExpandingWindowSplitter

from examples.programs.outcome import measure


def forecast(with_ray: bool) -> dict[str, Any]:
    """The error at each cut-off."""
    warnings.filterwarnings("ignore")
    passengers = load_airline()
    forecaster = make_reduction(RandomForestRegressor(40, random_state=1), window_length=12)
    cuts = ExpandingWindowSplitter(initial_window=72, step_length=1, fh=[1, 2, 3])
    how: dict[str, Any] = {}
    if with_ray:
        how = {"backend": "ray", "backend_params": {"shutdown_ray": False}}
    table = evaluate(forecaster=forecaster, y=passengers, cv=cuts, **how)
    return {"errors": table["test_MeanAbsolutePercentageError"].tolist()}


if __name__ == "__main__":
    measure(forecast)
