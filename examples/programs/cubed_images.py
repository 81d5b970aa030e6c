"""cubed: statistics of scikit-learn's two photographs, as chunked arrays in zarr files."""

from __future__ import annotations

import tempfile
from typing import Any

import cubed
import cubed.array_api as xp
import numpy as np
from sklearn.datasets import load_sample_images

from examples.programs.outcome import measure


def compute(with_ray: bool) -> dict[str, Any]:
    """Means, variances and a matrix product, chunk by chunk."""
    executor: Any
    if with_ray:
        from cubed.runtime.executors.ray import RayExecutor

        executor = RayExecutor()
    else:
        from cubed.runtime.executors.local import SingleThreadedExecutor

        executor = SingleThreadedExecutor()
    photos = np.stack(load_sample_images().images).astype(np.float64) / 255
    with tempfile.TemporaryDirectory() as folder:
        spec = cubed.Spec(work_dir=folder, allowed_mem="500MB")
        pixels = cubed.from_array(photos, chunks=(1, 107, 160, 3), spec=spec)
        grey = xp.mean(pixels, axis=3)
        contrast = xp.mean((grey - xp.mean(grey)) ** 2, axis=(1, 2))
        product = xp.sum(xp.matmul(grey[0, :, :], xp.permute_dims(grey[1, :, :], (1, 0))))
        means, contrasts, total = cubed.compute(xp.mean(grey, axis=(1, 2)), contrast, product, executor=executor)
    return {"means": means.tolist(), "contrast": contrasts.tolist(), "product": float(total)}


if __name__ == "__main__":
    measure(compute)
