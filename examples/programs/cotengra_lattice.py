"""cotengra: how to contract a lattice of tensors, by many random tries, each a task.

Which of them is found best depends on who is first; the value of the network does not.
"""

from __future__ import annotations

from typing import Any

import cotengra
import numpy as np

from examples.programs.outcome import measure


def contract(with_ray: bool) -> dict[str, Any]:
    """The value of the network: a partition function with random weights."""
    inputs, output, _shapes, sizes = cotengra.utils.lattice_equation([10, 10], d_min=2, d_max=2, seed=1)
    dice = np.random.default_rng(1)
    arrays = [dice.uniform(0.1, 1, [sizes[index] for index in term]) for term in inputs]
    optimizer = cotengra.HyperOptimizer(
        methods=["greedy"],
        max_repeats=256,
        optlib="random",
        progbar=False,
        parallel="ray" if with_ray else False,
        slicing_opts={"target_slices": 16},
    )
    tree = optimizer.search(inputs, output, sizes)
    return {"log10": round(float(np.log10(tree.contract(arrays))), 9), "slices": tree.nslices >= 16}


if __name__ == "__main__":
    measure(contract)
