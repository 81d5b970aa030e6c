"""Hydra: one program with many settings, each a run of its own on ``hydra-ray-launcher``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples.programs.outcome import CPUS, measure

ConfigStore.instance().store(name="cancer", node={"width": 8, "penalty": 0.001})


def learn(settings: Any) -> None:
    """One run: writes its score into the folder that Hydra made for it."""
    features, malignant = load_breast_cancer(return_X_y=True)
    network = MLPClassifier((settings.width,), alpha=settings.penalty, max_iter=300, random_state=1)
    score = cross_val_score(make_pipeline(StandardScaler(), network), features, malignant, cv=4).mean()
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.json").write_text(json.dumps([settings.width, settings.penalty, float(score)]))


def sweep(with_ray: bool) -> dict[str, Any]:
    """The scores of all settings."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["hydra/launcher=ray", f"+hydra.launcher.ray.init.num_cpus={CPUS}"] if with_ray else []
        sys.argv[1:] = ["--multirun", "width=4,8,16,32", "penalty=0.0001,0.01", f"hydra.sweep.dir={folder}", *launcher]
        hydra.main(version_base=None, config_name="cancer")(learn)()
        scores = sorted(json.loads(file.read_text()) for file in Path(folder).glob("**/score.json"))
    return {"scores": scores}


if __name__ == "__main__":
    measure(sweep, own_session=True)
