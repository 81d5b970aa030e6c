"""Large objects that one driver has put, read by another driver of the session."""

from __future__ import annotations

from typing import Any

import numpy as np

import moray
from tests.support.procs import run_driver

OTHER = """
import moray

moray.init(address={address!r}, namespace="jobs")
box = moray.get_actor("box")


@moray.remote
def total(values):
    return float(values.sum())


(theirs,) = moray.get(box.get.remote())
print(moray.get(total.remote(theirs)), moray.get(theirs).sum(), moray.get(box.total.remote([theirs])))
mine = moray.put(moray.get(theirs) + 1)
print(moray.get(box.total.remote([mine])), moray.get(moray.get(box.keep.remote([mine]))[0]).sum())
"""


class Box:
    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, refs: list[Any]) -> list[Any]:
        self.kept = refs
        return refs

    def get(self) -> list[Any]:
        return self.kept

    def total(self, refs: list[Any]) -> float:
        return float(sum(moray.get(ref).sum() for ref in refs))


def test_another_driver_reads_what_this_one_has_put() -> None:
    with moray.init(num_cpus=2, namespace="jobs") as context:
        box = moray.remote(Box).options(name="box", num_cpus=0).remote()
        ref = moray.put(np.ones(200_000))
        moray.get(box.keep.remote([ref]))
        printed = run_driver(OTHER.format(address=context["address"])).stdout.split()
        assert printed == ["200000.0", "200000.0", "200000.0", "400000.0", "400000.0"]
