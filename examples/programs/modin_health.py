"""modin: pandas' own calls on the visits to doctors of the RAND health insurance study, sixty times over."""

from __future__ import annotations

from typing import Any

import numpy as np
from statsmodels.datasets import randhie

from examples.programs.outcome import CPUS, measure


def summarise(with_ray: bool) -> dict[str, Any]:
    """Visits by state of health, by plan, in quantiles; costs per row by a function of ours."""
    pd: Any
    if with_ray:
        import modin.config
        import modin.pandas as pd

        modin.config.Engine.put("ray")
        modin.config.CpuCount.put(CPUS)
    else:
        import pandas as pd
    visits = pd.DataFrame(randhie.load_pandas().data)
    visits = pd.concat([visits] * 60, ignore_index=True)
    visits["copy"] = np.arange(len(visits)) // 20_190
    scaled = (visits - visits.mean()) / visits.std()
    by_health = visits.groupby("hlthp")["mdvis"].agg(["mean", "max", "count"])
    per_copy = visits.groupby("copy").sum()
    weights = visits.head(20_190).apply(lambda row: row["mdvis"] * (1 + row["lncoins"]), axis=1)
    merged = visits.head(2_000).merge(by_health.reset_index(), on="hlthp")
    busiest = visits.sort_values(["mdvis", "disea"], ascending=False).head(50)
    return {
        "norm": float((scaled**2).sum().sum()),
        "by_health": by_health.to_numpy().tolist(),
        "copies_equal": bool((per_copy.nunique() == 1).all()),
        "weights": float(weights.sum()),
        "merged": float(merged["mean"].sum()),
        "busiest": busiest["disea"].tolist(),
        "quantiles": visits["mdvis"].quantile([0.1, 0.5, 0.9, 0.99]).tolist(),
        "missing": int(visits.isna().sum().sum()),
    }


if __name__ == "__main__":
    measure(summarise, own_session=True)
