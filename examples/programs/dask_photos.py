"""Dask on Ray: arrays of two photographs and a data frame, on the scheduler of ``ray.util.dask``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import dask
import dask.array as da
import numpy as np
from sklearn.datasets import load_sample_images

from examples.programs.outcome import measure


def compute(with_ray: bool) -> dict[str, Any]:
    """Singular values, a blur, and the histogram of it."""
    how: Any = dask.config.set(scheduler="synchronous")
    if with_ray:
        from ray.util.dask import ray_dask_get

        how = dask.config.set(scheduler=ray_dask_get)
    photos = np.tile(np.stack(load_sample_images().images).mean(axis=3) / 255, (1, 3, 3))
    pixels = da.from_array(photos, chunks=(1, 427, 640))
    blurred = da.overlap.overlap(pixels, depth={1: 3, 2: 3}, boundary="reflect").map_blocks(smooth)
    counts, _edges = da.histogram(blurred, bins=20, range=(0, 1))
    tall = da.from_array(photos[0], chunks=(320, 1920))
    singular = da.linalg.svd(tall.rechunk((320, 1920)))[1]
    with how or nullcontext():
        found = dask.compute(blurred.mean(axis=(1, 2)), counts, singular[:5])
    return {"mean": found[0].tolist(), "counts": found[1].tolist(), "singular": np.round(found[2], 6).tolist()}


def smooth(block: Any) -> Any:
    """The mean of each pixel's neighbours, seven by seven, a few times."""
    for _ in range(12):
        for axis in (1, 2):
            block = sum(np.roll(block, shift, axis) for shift in range(-3, 4)) / 7
    return block


if __name__ == "__main__":
    measure(compute)
