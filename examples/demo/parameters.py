"""A parameter server: one actor has the weights, several others compute gradients on their share of the data.

The data are put once and read in place. Each trainer computes with the newest weights and sends its gradient, at its
own pace: nobody waits for the slowest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

import moray
from examples.demo.show import Show, check

if TYPE_CHECKING:
    from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.float64]"

ROWS, FEATURES = 40_000, 50
TRAINERS = 4
STEPS = 60
RATE = 1.0


class Parameters:
    """The weights, and what was learned last."""

    def __init__(self, size: int) -> None:
        self.weights: Floats = np.zeros(size)
        self.updates = 0

    def get(self) -> Floats:
        return self.weights

    def update(self, gradient: Floats) -> Floats:
        """Take a step, and give the weights after it."""
        self.weights = self.weights - RATE / TRAINERS * gradient
        self.updates += 1
        return self.weights

    def count(self) -> int:
        """How many steps were taken."""
        return self.updates


class Trainer:
    """Computes gradients of the logistic loss on some rows."""

    def __init__(self, data: Floats, labels: Floats, first: int, step: int) -> None:
        self.data, self.labels = data[first::step], labels[first::step]

    def train(self, server: Any, steps: int) -> None:
        weights = moray.get(server.get.remote())
        for _ in range(steps):
            gradient = self.data.T @ (sigmoid(self.data @ weights) - self.labels) / len(self.labels)
            weights = moray.get(server.update.remote(gradient))


def sigmoid(x: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-x))


def make_data(seed: int) -> tuple[Floats, Floats]:
    """Rows of normal numbers, and labels that a hidden weight vector gives them, one in twenty of them wrong."""
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((ROWS, FEATURES))
    labels = (data @ rng.standard_normal(FEATURES) > 0).astype(np.float64)
    wrong = rng.random(ROWS) < 0.05
    labels[wrong] = 1 - labels[wrong]
    return data, labels


def accuracy(data: Floats, labels: Floats, weights: Floats) -> float:
    """The share of the labels that the weights find."""
    return float(np.mean((data @ weights > 0) == (labels > 0.5)))


class ParametersShow(Show):
    name = "parameter server"
    detail = f"{TRAINERS} actors train a classifier of {ROWS:,} rows, a fifth has the weights"

    def run(self) -> str:
        data, labels = make_data(0)
        data_ref, labels_ref = moray.put(data), moray.put(labels)
        server = moray.remote(Parameters).remote(FEATURES)
        trainer_class = moray.remote(Trainer)
        trainers = [trainer_class.remote(data_ref, labels_ref, n, TRAINERS) for n in range(TRAINERS)]
        moray.get([trainer.train.remote(server, STEPS) for trainer in trainers])
        found = accuracy(data, labels, moray.get(server.get.remote()))
        updates = moray.get(server.count.remote())
        check(updates == TRAINERS * STEPS, f"{updates} updates of {TRAINERS * STEPS}")
        check(found > 0.9, f"only {found:.1%} of the labels were learned")
        return f"{found:.1%} of the labels after {updates} updates; one in twenty was wrong on purpose"
