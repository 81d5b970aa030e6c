"""Large objects between nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import moray

TIMEOUT_S = 60
BIG = 300_000


@moray.remote
def total(values: Any) -> float:
    return float(values.sum())


@moray.remote
def ones(size: int = BIG) -> Any:
    return np.ones(size)


@pytest.mark.usefixtures("shared_session")
@pytest.mark.parametrize("place", ["b", "c"])
def test_arguments_and_results(place: str) -> None:
    there: Any = {"resources": {place: 1}}
    assert moray.get(total.options(**there).remote(moray.put(np.ones(BIG))), timeout=TIMEOUT_S) == BIG
    assert moray.get(total.options(**there).remote(np.ones(BIG)), timeout=TIMEOUT_S) == BIG
    assert moray.get(ones.options(**there).remote(), timeout=TIMEOUT_S).sum() == BIG


@pytest.mark.usefixtures("shared_session")
def test_from_one_node_to_another() -> None:
    made = ones.options(resources={"b": 1}).remote()
    assert moray.get(total.options(resources={"c": 1}).remote(made), timeout=TIMEOUT_S) == BIG
    assert moray.get(made, timeout=TIMEOUT_S).sum() == BIG


@pytest.mark.usefixtures("shared_session")
def test_views_are_read_only_everywhere() -> None:
    with pytest.raises(ValueError, match="read-only"):
        moray.get(ones.options(resources={"b": 1}).remote(), timeout=TIMEOUT_S)[0] = 2


@pytest.mark.usefixtures("shared_session")
def test_references_made_at_another_node() -> None:
    @moray.remote(resources={"b": 1})
    def put_there() -> list[Any]:
        return [moray.put(np.full(BIG, 2.0))]

    (ref,) = moray.get(put_there.remote(), timeout=TIMEOUT_S)
    assert moray.get(ref, timeout=TIMEOUT_S)[0] == 2
    assert moray.get(total.options(resources={"c": 1}).remote(ref), timeout=TIMEOUT_S) == 2 * BIG


@pytest.mark.usefixtures("shared_session")
def test_generators_of_large_items() -> None:
    @moray.remote(resources={"b": 1})
    def items(number: int) -> Any:
        for item in range(number):
            yield np.full(BIG, float(item))

    assert [float(moray.get(ref)[0]) for ref in items.remote(8)] == list(range(8))


@pytest.mark.usefixtures("shared_session")
def test_one_object_for_many_readers() -> None:
    ref = moray.put(np.ones(4_000_000))
    readers = [total.options(num_cpus=0.1, resources={place: 0.1}).remote(ref) for place in "bc" for _ in range(10)]
    assert moray.get(readers, timeout=TIMEOUT_S) == [4_000_000] * 20
