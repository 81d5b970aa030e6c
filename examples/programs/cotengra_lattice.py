"""cotengra: how to contract a lattice of tensors, by many random tries; then the slices of the sum, all as tasks."""

from __future__ import annotations

from typing import Any

import cotengra
import numpy as np
from examples.programs.outcome import measure


def contract(with_ray: bool) -> dict[str, Any]:
    """The value of the network: how many ways there are to cover nothing, weighted."""
    inputs, output, _shapes, sizes = cotengra.utils.lattice_equation([7, 7], d_min=3, d_max=3, seed=1)
    dice = np.random.default_rng(1)
    arrays = [dice.uniform(0.1, 1, [sizes[index] for index in term]) for term in inputs]
    optimizer = cotengra.HyperOptimizer(
        methods=["greedy"],
        max_repeats=40,
        optlib="random",
        progbar=False,
        parallel="ray" if with_ray else False,
        slicing_opts={"target_slices": 16},
    )
    tree = optimizer.search(inputs, output, sizes)
    if with_ray:
        import ray

        slice_of = ray.remote(lambda arrays, part: tree.contract_slice(arrays, part))
        shared = ray.put(arrays)
        parts = ray.get([slice_of.remote(shared, part) for part in range(tree.nslices)])
    else:
        parts = [tree.contract_slice(arrays, part) for part in range(tree.nslices)]
    return {"log10": round(float(np.log10(sum(parts))), 9), "slices": tree.nslices >= 16}


if __name__ == "__main__":
    measure(contract)
