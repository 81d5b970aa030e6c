"""Tensors: read in place, without a warning, and what one reader changes nobody else sees (SNAPSHOT).

torch is larger than everything else together, so it is not among what `make test` installs; `make test-torch` is.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moray
from tests.support.procs import run_driver

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch")

#: Over what travels inside messages; and under it.
LARGE, SMALL = 200_000, 5
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE])


pytestmark = [pytest.mark.usefixtures("shared_session"), pytest.mark.filterwarnings("error")]


@pytest.mark.parametrize(
    "kind", ["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool", "complex64", "float8_e4m3fn"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 4), (100, 1_000), (10, 20, 500)])
def test_kinds_and_shapes(kind: str, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 5).to(getattr(torch, kind))
    back = moray.get(moray.put(tensor))
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert bytes(back.reshape(-1).view(torch.uint8).numpy()) == bytes(tensor.reshape(-1).view(torch.uint8).numpy())


@SIZES
def test_what_a_reader_changes_is_its_own(size: int) -> None:
    ref = moray.put({"weights": torch.zeros(size), "steps": np.arange(size)})

    @moray.remote
    def train(state: dict[str, Any]) -> float:
        state["weights"] += 1
        return float(state["weights"].sum())

    mine = moray.get(ref)
    mine["weights"].add_(5)
    assert moray.get([train.remote(ref), train.remote(ref)]) == [size, size]
    assert float(moray.get(ref)["weights"].sum()) == 0
    assert float(mine["weights"].sum()) == 5 * size
    assert not mine["steps"].flags.writeable


@SIZES
def test_an_argument_that_is_changed_and_retried(size: int, tmp_path: Path) -> None:
    @moray.remote(max_retries=3, retry_exceptions=True)
    def add(tensor: Any, first: str) -> float:
        tensor += 1
        if not Path(first).exists():
            Path(first).touch()
            raise RuntimeError
        return float(tensor.sum())

    assert moray.get(add.remote(torch.zeros(size), str(tmp_path / "ran"))) == size


def _copied(address: int) -> int:
    """The KB that the kernel has copied for this process, of the mapping that holds an address."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    for at, line in enumerate(lines):
        first = line.split(" ", 1)[0].split("-")
        if len(first) == 2 and int(first[0], 16) <= address < int(first[1], 16):
            held = dict(entry.split(":", 1) for entry in lines[at + 1 : at + 22] if ":" in entry)
            return int(held["Anonymous"].split()[0])
    raise AssertionError("no mapping holds that address")


def test_nothing_is_copied_but_what_is_written() -> None:
    tensor = moray.get(moray.put(torch.ones(1_000_000)))
    assert float(tensor.sum()) == 1_000_000
    assert _copied(tensor.data_ptr()) == 0
    tensor[0] = 2
    assert 0 < _copied(tensor.data_ptr()) <= 64


def test_a_tensor_outlives_its_object_and_its_session_is_not_disturbed() -> None:
    tensor = moray.get(moray.put(torch.arange(LARGE)))
    for _ in range(20):
        moray.put(torch.zeros(LARGE))
    gc.collect()
    assert int(tensor.sum()) == LARGE * (LARGE - 1) // 2


def test_tensors_with_gradients_and_layouts_of_their_own() -> None:
    values = {
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "transposed": torch.arange(6).reshape(2, 3).t(),
        "sparse": torch.eye(3).to_sparse(),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "part": torch.arange(100_000)[10:20],
    }
    back = moray.get(moray.put(values))
    assert back["parameter"].requires_grad
    assert isinstance(back["parameter"], torch.nn.Parameter)
    for name, value in values.items():
        assert torch.equal(back[name].to_dense().detach(), value.to_dense().detach()), name


def test_a_model_learns_in_an_actor() -> None:
    @moray.remote
    class Learner:
        def __init__(self, model: Any) -> None:
            self.model = model
            self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def learn(self, inputs: Any, targets: Any) -> float:
            self.optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(self.model(inputs), targets)
            loss.backward()
            self.optimizer.step()
            return float(loss.detach())

        def weights(self) -> Any:
            return self.model.state_dict()

    torch.manual_seed(1)
    inputs = torch.rand(20_000, 4)
    targets = inputs @ torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    learner = Learner.remote(torch.nn.Linear(4, 1))
    given = moray.put(inputs), moray.put(targets)
    losses = moray.get([learner.learn.remote(*given) for _ in range(50)])
    assert losses[-1] < losses[0] / 5
    fresh = torch.nn.Linear(4, 1)
    fresh.load_state_dict(moray.get(learner.weights.remote()))
    assert float(torch.nn.functional.mse_loss(fresh(inputs), targets).detach()) <= losses[-1]
    moray.kill(learner)


def test_tensors_through_a_compiled_graph() -> None:
    from moray.dag import InputNode

    @moray.remote
    class Doubler:
        def double(self, tensor: Any) -> Any:
            return tensor.mul_(2)

    doubler = Doubler.remote()
    with InputNode() as given:
        graph = doubler.double.bind(given).experimental_compile()
    try:
        tensor = torch.ones(LARGE)
        for _ in range(3):
            assert float(moray.get(graph.execute(tensor)).sum()) == 2 * LARGE
        assert float(tensor.sum()) == LARGE
    finally:
        graph.teardown()


def test_spilled_tensors() -> None:
    output = run_driver(
        """
        import moray, torch

        with moray.init(num_cpus=1, object_store_memory=80_000_000):
            refs = [moray.put(torch.full((5_000_000,), float(n))) for n in range(10)]
            for n, ref in enumerate(refs):
                tensor = moray.get(ref)
                tensor += 1
                assert float(tensor[4_999_999]) == n + 1
                del tensor
                assert float(moray.get(ref)[0]) == n
        print("read", len(refs))
        """
    ).stdout
    assert output == "read 10\n"


def test_tensors_from_another_node() -> None:
    output = run_driver(
        """
        import moray, torch
        from moray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1, resources={"far": 1})
        moray.init(cluster.address)

        @moray.remote(resources={"far": 0.1})
        def make():
            return torch.ones(200_000)

        ref = make.remote()
        tensor = moray.get(ref)
        tensor += 1
        print(float(moray.get(ref).sum()), float(tensor.sum()))
        moray.shutdown()
        cluster.shutdown()
        """
    ).stdout
    assert output == "200000.0 400000.0\n"
