"""Apache Hamilton: a dataflow whose nodes are functions; its ``RayGraphAdapter`` makes a task of each."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
from hamilton import base, driver
from sklearn.datasets import load_diabetes
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LassoCV
from sklearn.model_selection import cross_val_predict

from examples.programs.outcome import measure


def patients() -> pd.DataFrame:
    """Measurements of 442 patients."""
    return load_diabetes(as_frame=True).frame


def features(patients: pd.DataFrame) -> pd.DataFrame:
    """What is known of them at first."""
    return patients.drop(columns="target")


def progress(patients: pd.DataFrame) -> pd.Series:
    """How the disease went on within a year."""
    return patients["target"]


def forest(features: pd.DataFrame, progress: pd.Series) -> np.ndarray:
    """Predictions of trees side by side."""
    return np.asarray(cross_val_predict(RandomForestRegressor(200, random_state=1), features, progress, cv=5))


def boosted(features: pd.DataFrame, progress: pd.Series) -> np.ndarray:
    """Predictions of trees one after the other."""
    model = GradientBoostingRegressor(n_estimators=300, random_state=1)
    return np.asarray(cross_val_predict(model, features, progress, cv=5))


def linear(features: pd.DataFrame, progress: pd.Series) -> np.ndarray:
    """Predictions of a line."""
    return np.asarray(cross_val_predict(LassoCV(random_state=1), features, progress, cv=5))


def together(forest: np.ndarray, boosted: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Their mean."""
    return (forest + boosted + linear) / 3


def errors(forest: np.ndarray, together: np.ndarray, linear: np.ndarray, progress: pd.Series) -> dict[str, float]:
    """Mean absolute errors."""
    found = {"forest": forest, "linear": linear, "together": together}
    return {name: float(np.abs(values - progress).mean()) for name, values in found.items()}


def flow(with_ray: bool) -> dict[str, Any]:
    """The errors of all models."""
    adapter: Any = base.SimplePythonGraphAdapter(base.DictResult())
    if with_ray:
        from hamilton.plugins.h_ray import RayGraphAdapter

        adapter = RayGraphAdapter(result_builder=base.DictResult())
    nodes = driver.Driver({}, sys.modules[__name__], adapter=adapter)
    found = nodes.execute(["errors", "together"])
    return {**found["errors"], "predictions": found["together"].tolist()}


if __name__ == "__main__":
    measure(flow)
