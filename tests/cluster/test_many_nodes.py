"""What a node's first workers cost: they find in their template what they need."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import moray
from moray.cluster_utils import Cluster

TIMEOUT_S = 60
#: Pages that a worker copies or is given before its first task. It would be a thousand more if it loaded TLS and made
#: its settings by itself.
MOST_FAULTS = 2_300


class Start(NamedTuple):
    """How a worker found its process."""

    #: Page faults until its first task.
    faults: int
    #: A handshake was rehearsed before it was forked.
    rehearsed: bool
    #: What only some workers use was there.
    has_asyncio: bool
    #: What only workers of clusters use was.
    has_tls: bool


def make_start() -> Any:
    """The task is pickled with its function: its worker does not import this module, and pytest with it."""

    @moray.remote(num_cpus=0, max_calls=1)
    def start() -> tuple[int, bool, bool, bool]:
        import resource
        import sys

        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        contexts: Any = sys.modules.get("moray.security.contexts")
        rehearsed = contexts is not None and contexts._rehearsed is not None
        return faults, rehearsed, "asyncio" in sys.modules, "moray.runtime.remote" in sys.modules

    return start


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[Cluster]:
    """The head's node, and one that is idle when the first job comes there."""
    del module_leaks
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        cluster.add_node(num_cpus=1, resources={"there": 1})
        cluster.connect()
        cluster.wait_for_nodes()
        yield cluster


@pytest.fixture(name="there")
def _there(shared_session: Cluster) -> Any:
    """A task at that node."""
    del shared_session
    return make_start().options(resources={"there": 1})


def test_a_template_is_warm_when_it_had_time(there: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    # The node's template may have had none before the first; then the job's own takes it, once it is idle.
    while True:
        found = Start(*moray.get(there.remote(), timeout=TIMEOUT_S))
        if (found.rehearsed and found.has_asyncio) or time.monotonic() > deadline:
            break
        time.sleep(0.5)  # Longer than a template waits before it takes itself for idle.
    assert found.rehearsed
    assert found.has_asyncio
    assert found.has_tls
    assert found.faults < MOST_FAULTS


def test_workers_of_a_warm_template_are_all_cheap(there: Any) -> None:
    for each in moray.get([there.remote() for _ in range(5)], timeout=TIMEOUT_S):
        found = Start(*each)
        assert found.rehearsed
        assert found.faults < MOST_FAULTS
