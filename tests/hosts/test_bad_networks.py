"""Slow, lossy and narrow networks between five hosts. The rates are printed; what is checked is that it works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import moray
from tests.support.hosts import Hosts
from tests.support.procs import wait_until

TIMEOUT_S = 100

# With the other modules here it would be over a minute.
pytestmark = pytest.mark.long


@moray.remote(num_cpus=0)
class Echo:
    def echo(self, value: Any) -> Any:
        return value


@moray.remote
def double(value: int) -> int:
    return 2 * value


@moray.remote
def make(megabytes: int) -> Any:
    return np.ones(megabytes << 20, np.uint8)


@moray.remote
def total(array: Any) -> int:
    return int(array[:: 1 << 20].sum())


def rate(what: str, count: int, work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    took = time.monotonic() - began
    print(f"{what}: {count} in {took:.2f} s, {count / took:.0f}/s")
    return took


def use_everything(what: str, calls: int, megabytes: int) -> None:
    """Tasks, calls, references, generators, and objects between hosts."""
    names = "bcde"
    actors = [Echo.options(resources={name: 0.1}).remote() for name in names]

    def call() -> None:
        refs = [actors[number % 4].echo.remote(number) for number in range(calls)]
        assert moray.get(refs, timeout=TIMEOUT_S) == list(range(calls))

    def one_by_one() -> None:
        for number in range(10):
            assert moray.get(actors[0].echo.remote(number), timeout=TIMEOUT_S) == number

    def tasks() -> None:
        refs = [double.options(resources={names[number % 4]: 0.1}).remote(number) for number in range(calls)]
        assert moray.get(refs, timeout=TIMEOUT_S) == [2 * number for number in range(calls)]

    def chain() -> None:
        ref: Any = 1
        for step in range(8):
            ref = double.options(resources={names[step % 4]: 0.1}).remote(ref)
        assert moray.get(ref, timeout=TIMEOUT_S) == 256

    def move() -> None:
        made = make.options(resources={"b": 1}).remote(megabytes)
        sums = [total.options(resources={name: 1}).remote(made) for name in names]
        assert moray.get(sums, timeout=TIMEOUT_S) == [megabytes] * 4

    rate(f"{what}, calls in flight together", calls, call)
    rate(f"{what}, calls one by one", 10, one_by_one)
    rate(f"{what}, tasks", calls, tasks)
    rate(f"{what}, steps of a chain over hosts", 8, chain)
    rate(f"{what}, megabytes to three hosts", 3 * megabytes, move)


@contextmanager
def faulty(cluster: Hosts, begin: str, argument: Any, end: str) -> Iterator[None]:
    for host in cluster.hosts:
        getattr(host, begin)(argument)
    try:
        yield
    finally:
        for host in cluster.hosts:
            getattr(host, end)()


def test_one_per_cent_is_lost(shared_session: Hosts) -> None:
    ids = shared_session.node_ids()
    with faulty(shared_session, "lose", 1, "heal"):
        use_everything("1 % loss", 1_000, 16)
        lost = [host.lost() for host in shared_session.hosts]
        print(f"lost packets: {lost}")
        assert sum(lost) > 10
        assert shared_session.node_ids() == ids
        assert {node["NodeID"] for node in moray.nodes() if node["Alive"]} == set(ids), "nobody was taken for dead"


def test_fifty_milliseconds(shared_session: Hosts) -> None:
    ids = shared_session.node_ids()
    with faulty(shared_session, "delay", 0.05, "undelay"):
        took = rate("50 ms, one call", 1, lambda: moray.get(Echo.remote().echo.remote(1), timeout=TIMEOUT_S))
        assert took > 0.1
        use_everything("50 ms", 1_000, 16)
        assert shared_session.node_ids() == ids
        assert {node["NodeID"] for node in moray.nodes() if node["Alive"]} == set(ids), "nobody was taken for dead"


def test_a_big_transfer_does_not_hold_up_small_calls(shared_session: Hosts) -> None:
    at_b = Echo.options(resources={"b": 0.1}).remote()
    assert moray.get(at_b.echo.remote(0), timeout=TIMEOUT_S) == 0
    made = make.options(resources={"b": 1}).remote(24)
    moray.wait([made], timeout=TIMEOUT_S, fetch_local=False)
    with faulty(shared_session, "limit", "80mbit", "unlimit"):
        moved = total.options(resources={"c": 1}).remote(made)
        took = []

        def call_until_moved() -> bool:
            began = time.monotonic()
            assert moray.get(at_b.echo.remote(1), timeout=TIMEOUT_S) == 1
            took.append(time.monotonic() - began)
            return bool(moray.wait([moved], timeout=0)[0])

        wait_until(call_until_moved, TIMEOUT_S, "24 MB over 80 Mbit/s")
        assert moray.get(moved, timeout=TIMEOUT_S) == 24
    took.sort()
    print(
        f"{len(took)} calls while 24 MB went: median {took[len(took) // 2] * 1e3:.1f} ms, worst {took[-1] * 1e3:.0f} ms"
    )
    assert len(took) > 10
    assert took[len(took) // 2] < 0.2, "a queue of 50 ms in the network, and little more"
