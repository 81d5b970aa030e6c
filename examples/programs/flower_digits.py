"""Flower: federated learning of handwritten digits by ten clients, each a task of an actor of its simulation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from examples.programs.outcome import CPUS, measure

CLIENTS = 10
ROUNDS = 4


def learn(part: int, weights: list[Any]) -> tuple[list[Any], int]:
    """One client's part of a round, on its own pictures."""
    warnings.filterwarnings("ignore")
    images, digits = load_digits(return_X_y=True)
    mine = slice(part, None, CLIENTS)
    model = LogisticRegression(max_iter=40, warm_start=True)
    model.classes_, model.coef_, model.intercept_ = np.arange(10), weights[0].copy(), weights[1].copy()
    model.fit(images[mine] / 16, digits[mine])
    return [model.coef_, model.intercept_], len(digits[mine])


def accuracy(weights: list[Any]) -> float:
    """Of all pictures, how many are read right."""
    images, digits = load_digits(return_X_y=True)
    return float(((images / 16 @ weights[0].T + weights[1]).argmax(axis=1) == digits).mean())


def without_ray(weights: list[Any]) -> list[Any]:
    """The rounds in one process."""
    for _ in range(ROUNDS):
        learned = [learn(part, weights) for part in range(CLIENTS)]
        total = sum(count for _, count in learned)
        weights = [sum(new[i] * (count / total) for new, count in learned) for i in range(2)]
    return weights


def by_flower(weights: list[Any]) -> list[Any]:
    """The same by Flower's simulation."""
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import Context, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation

    latest = weights

    class Client(NumPyClient):  # type: ignore[misc]
        def __init__(self, part: int) -> None:
            self.part = part

        def fit(self, parameters: list[Any], _config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
            learned, count = learn(self.part, parameters)
            return learned, count, {}

    class Averaging(FedAvg):  # type: ignore[misc]
        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            nonlocal latest
            found = super().aggregate_fit(server_round, results, failures)
            assert not failures, failures
            latest = parameters_to_ndarrays(found[0])
            return found

    def client(context: Context) -> Any:
        return Client(int(context.node_config["partition-id"])).to_client()

    def server(_context: Context) -> Any:
        strategy = Averaging(
            fraction_evaluate=0, min_fit_clients=CLIENTS, min_available_clients=CLIENTS,
            initial_parameters=ndarrays_to_parameters(weights),
        )  # fmt: skip
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=ROUNDS))

    run_simulation(
        server_app=ServerApp(server_fn=server),
        client_app=ClientApp(client_fn=client),
        num_supernodes=CLIENTS,
        backend_name="ray",
        backend_config={"init_args": {"num_cpus": CPUS}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return latest


def train(with_ray: bool) -> dict[str, Any]:
    """What the clients learned together."""
    start = [np.zeros((10, 64)), np.zeros(10)]
    weights = by_flower(start) if with_ray else without_ray(start)
    return {"accuracy": accuracy(weights), "weights": np.concatenate(weights, axis=None).round(5).tolist()[:100]}


if __name__ == "__main__":
    measure(train, own_session=True)
