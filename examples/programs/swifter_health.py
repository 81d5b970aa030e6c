"""swifter: a function of ours over groups of a data frame; swifter cuts the groups into tasks."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import swifter  # noqa: F401 - gives data frames `.swifter`
from statsmodels.datasets import randhie

from examples.programs.outcome import CPUS, measure


def inequality(group: Any) -> float:
    """Gini's coefficient of visits to doctors, with an interval by the bootstrap."""
    visits = np.sort(group["mdvis"].to_numpy())
    dice = np.random.default_rng(len(visits))
    total = 0.0
    for _ in range(40):
        drawn = np.sort(dice.choice(visits, len(visits)))
        ranks = np.arange(1, len(drawn) + 1)
        total += float(2 * (ranks * drawn).sum() / (len(drawn) * drawn.sum() + 1e-9) - 1)
    return total / 40


def compare(with_ray: bool) -> dict[str, Any]:
    """The coefficient for each number of chronic diseases."""
    warnings.filterwarnings("ignore")
    people = randhie.load_pandas().data
    people = pd.concat([people] * 40, ignore_index=True)
    if with_ray:
        found = people.swifter.set_npartitions(CPUS * 2).groupby("disea").apply(inequality)
    else:
        found = people.groupby("disea").apply(inequality)
    return {"gini": found.tolist(), "groups": len(found)}


if __name__ == "__main__":
    measure(compare)
