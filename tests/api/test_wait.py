"""``wait``: how many, how long, in which order, and what it refuses."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import moray
from tests.support.procs import wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote
def now(value: Any = None) -> Any:
    return value


@moray.remote(num_cpus=0)
def when_exists(path: str) -> str:
    """Ends when the test says so."""
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


@moray.remote
def fail() -> None:
    raise ValueError


def test_splits_ready_from_the_rest(tmp_path: Path) -> None:
    done, gate = now.remote(1), when_exists.remote(str(tmp_path / "go"))
    assert moray.wait([gate, done]) == ([done], [gate])
    (tmp_path / "go").touch()
    assert moray.wait([gate, done], num_returns=2) == ([gate, done], [])


def test_keeps_the_order_given() -> None:
    refs = [now.remote(i) for i in range(20)]
    moray.get(refs)
    ready, rest = moray.wait(refs[::-1], num_returns=20)
    assert (ready, rest) == (refs[::-1], [])


def test_returns_no_more_than_asked_for() -> None:
    refs = [now.remote(i) for i in range(10)]
    moray.get(refs)
    ready, rest = moray.wait(refs, num_returns=3)
    assert len(ready) == 3
    assert sorted(map(hash, ready + rest)) == sorted(map(hash, refs))


def test_default_is_one() -> None:
    refs = [moray.put(i) for i in range(5)]
    ready, rest = moray.wait(refs)
    assert (len(ready), len(rest)) == (1, 4)


def test_timeout_returns_what_is_ready(tmp_path: Path) -> None:
    done, gate = moray.put(1), when_exists.remote(str(tmp_path / "go"))
    started = time.monotonic()
    assert moray.wait([gate, done], num_returns=2, timeout=0.1) == ([done], [gate])
    assert 0.09 <= time.monotonic() - started < 1
    (tmp_path / "go").touch()
    moray.get(gate)


def test_timeout_zero_looks_and_returns(tmp_path: Path) -> None:
    gate = when_exists.remote(str(tmp_path / "go"))
    assert moray.wait([gate], timeout=0) == ([], [gate])
    (tmp_path / "go").touch()
    moray.get(gate)
    assert moray.wait([gate], timeout=0) == ([gate], [])


def test_waits_as_long_as_it_takes(tmp_path: Path) -> None:
    gates = [when_exists.remote(str(tmp_path / str(i))) for i in range(2)]

    @moray.remote(num_cpus=0)
    def open_later() -> None:
        time.sleep(0.2)
        (tmp_path / "1").touch()

    opened = open_later.remote()
    assert moray.wait(gates) == ([gates[1]], [gates[0]])
    (tmp_path / "0").touch()
    moray.get([*gates, opened])


def test_error_counts_as_ready() -> None:
    ref = fail.remote()
    assert moray.wait([ref], timeout=20) == ([ref], [])
    with pytest.raises(ValueError):
        moray.get(ref)


def test_crash_counts_as_ready() -> None:
    @moray.remote(max_retries=0)
    def crash() -> None:
        os._exit(1)

    ref = crash.remote()
    assert moray.wait([ref], timeout=20) == ([ref], [])


def test_one_by_one_until_nothing_is_left() -> None:
    left, seen = [now.remote(i) for i in range(200)], []
    while left:
        ready, left = moray.wait(left)
        seen += moray.get(ready)
    assert sorted(seen) == list(range(200))


def test_many_waits_of_the_same_references(tmp_path: Path) -> None:
    """A wait that timed out leaves nothing behind: later ones are as fast."""
    gate = when_exists.remote(str(tmp_path / "go"))
    for _ in range(1000):
        assert moray.wait([gate], timeout=0) == ([], [gate])
    (tmp_path / "go").touch()
    assert moray.wait([gate], timeout=20) == ([gate], [])


@pytest.mark.parametrize("fetch_local", [True, False])
def test_fetch_local(fetch_local: bool) -> None:
    @moray.remote
    def large() -> bytes:
        return b"x" * 1_000_000

    refs = [large.remote(), moray.put(b"y" * 1_000_000), now.remote()]
    ready, rest = moray.wait(refs, num_returns=3, timeout=20, fetch_local=fetch_local)
    assert (ready, rest) == (refs, [])


def test_borrowed_references(tmp_path: Path) -> None:
    """A task waits for what its caller owns."""

    @moray.remote(num_cpus=0)
    def look(refs: list[Any]) -> tuple[int, int]:
        ready, rest = moray.wait(refs, num_returns=2, timeout=0.5)
        return len(ready), len(rest)

    gate = when_exists.remote(str(tmp_path / "go"))
    assert moray.get(look.remote([now.remote(), gate])) == (1, 1)
    (tmp_path / "go").touch()
    moray.get(gate)
    assert moray.get(look.remote([now.remote(), gate])) == (2, 0)


def test_worker_that_waits_lends_its_cpu() -> None:
    @moray.remote(num_cpus=2)
    def outer() -> int:
        ready, _ = moray.wait([now.options(num_cpus=2).remote(i) for i in range(3)], num_returns=3)
        return len(ready)

    assert moray.get(outer.remote(), timeout=30) == 3


def test_ready_is_seen_without_get() -> None:
    ref = now.remote()
    wait_until(lambda: bool(moray.wait([ref], timeout=0)[0]), what="readiness")


# --- what is refused ------------------------------------------------------------------------------


def test_duplicates_are_refused() -> None:
    ref = moray.put(1)
    with pytest.raises(ValueError, match=r"(?i)duplicate|unique|twice"):
        moray.wait([ref, ref])


@pytest.mark.parametrize("num_returns", [0, -1, 3])
def test_impossible_number_is_refused(num_returns: int) -> None:
    with pytest.raises(ValueError, match="num_returns"):
        moray.wait([moray.put(1), moray.put(2)], num_returns=num_returns)


def test_single_reference_is_refused() -> None:
    wait: Any = moray.wait
    with pytest.raises(TypeError, match="list"):
        wait(moray.put(1))


def test_other_values_are_refused() -> None:
    wait: Any = moray.wait
    with pytest.raises(TypeError):
        wait([moray.put(1), 2])


def test_negative_timeout_is_refused() -> None:
    with pytest.raises(ValueError):
        moray.wait([moray.put(1)], timeout=-1)


def test_nothing_to_wait_for() -> None:
    assert moray.wait([], num_returns=1, timeout=0) == ([], [])
