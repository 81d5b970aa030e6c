"""datatrove: a pipeline over scikit-learn's texts about its data sets, its parts on ``RayPipelineExecutor``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import sklearn.datasets
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from examples.programs.outcome import CPUS, measure


def clean(with_ray: bool) -> dict[str, Any]:
    """How many paragraphs are long enough, and how long they are together."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.mkdir()
        for text in Path(sklearn.datasets.__file__).parent.glob("descr/*.rst"):
            rows = [json.dumps({"text": part}) for part in text.read_text().split("\n\n")]
            (source / f"{text.stem}.jsonl").write_text("\n".join(rows))
        steps = [
            JsonlReader(str(source)),
            LambdaFilter(long_enough),
            JsonlWriter(f"{folder}/out", compression=None),
        ]
        how: dict[str, Any] = {"logging_dir": f"{folder}/logs", "tasks": 4, "workers": CPUS}
        if with_ray:
            RayPipelineExecutor(steps, mem_per_cpu_gb=0.5, **how).run()
        else:
            LocalPipelineExecutor(steps, **how).run()
        kept = [json.loads(line)["text"] for file in Path(folder).glob("out/*") for line in file.open()]
    return {"kept": len(kept), "characters": sum(map(len, kept))}


def long_enough(document: Any) -> bool:
    """Whether a paragraph is kept."""
    return len(document.text) > 80


if __name__ == "__main__":
    measure(clean)
