"""Five hosts with a cluster on them, shared by a module's tests, which are a driver outside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.hosts import Hosts, hosts

#: Small stores: five hosts share this machine's memory.
STORE = "--object-store-memory=300000000"
OPTIONS = [
    ("--num-cpus=1", STORE, "--labels=zone=a"),
    ("--num-cpus=2", STORE, "--labels=zone=b", '--resources={"b": 4}'),
    ("--num-cpus=2", STORE, "--labels=zone=c", '--resources={"c": 4}'),
    ("--num-cpus=1", STORE, "--labels=zone=d", '--resources={"d": 4}'),
    ("--num-cpus=1", STORE, "--labels=zone=e", '--resources={"e": 4}'),
]


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[Hosts]:
    """The five hosts; connected."""
    del module_leaks
    with hosts(*OPTIONS) as cluster, cluster.connected():
        yield cluster
