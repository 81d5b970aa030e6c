"""ray-map: outlines of handwritten digits, one picture after the other through its ``RayMap``, in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import DictionaryLearning

from examples.programs.outcome import digest, measure


def describe(images: Any) -> Any:
    """A dictionary of strokes for some pictures, and what of it is in the first of them."""
    learned = DictionaryLearning(6, max_iter=15, random_state=1, transform_algorithm="omp").fit(images)
    return np.round(learned.components_ @ images[0], 6)


def outline(with_ray: bool) -> dict[str, Any]:
    """What was found, for all groups of pictures."""
    pictures = load_digits().data / 16
    groups = [(pictures[start : start + 60],) for start in range(0, 1_740, 60)]
    if with_ray:
        from ray_map import RayMap

        pairs = RayMap(describe, batch_size=2).imap(groups, keep_order=True, ret_args=True)
        found = [result for _group, result in pairs]
    else:
        found = [describe(*group) for group in groups]
    return {"strokes": np.stack(found).tolist(), "digest": digest(np.stack(found).tobytes())}


if __name__ == "__main__":
    measure(outline)
