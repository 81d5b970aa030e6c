"""Signal handlers of the user that call moray while their thread is anywhere inside of it (INTERRUPT)."""

from __future__ import annotations

import pytest

from tests.support.procs import run_driver

STORM = """
import random, signal, sys, time
import numpy as np
import moray

moray.init(num_cpus=2)
COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else {count}

@moray.remote
def echo(value):
    return value

state = dict(handled=0, refused=0, inside=False, refs=[])

def handle(*_):
    if state["inside"]:
        return
    state["inside"] = True
    try:
        number = state["handled"] = state["handled"] + 1
        ref = echo.remote(number)
        small = moray.put(number)
        if number % 4 == 0:
            try:
                assert moray.get([ref, small], timeout=60) == [number, number]
                if number % 48 == 0:
                    assert moray.get(moray.put(np.full(40_000, number)))[0] == number
            except moray.exceptions.MoraySystemError as error:
                assert "signal handler" in str(error)
                state["refused"] += 1
        else:
            state["refs"].append((ref, number))
    finally:
        state["inside"] = False

moray.get([echo.remote(i) for i in range(1000)])
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0004)
begin = time.monotonic()
outer = 0
while state["handled"] < COUNT and time.monotonic() - begin < 90:
    outer += 1
    kind = outer % 5
    if kind == 0:
        assert moray.get(echo.remote(outer)) == outer
    elif kind == 1:
        assert moray.get([echo.remote(i) for i in range(20)]) == list(range(20))
    elif kind == 2:
        refs = [echo.remote(i) for i in range(10)]
        while refs:
            _ready, refs = moray.wait(refs)
    elif kind == 3:
        assert moray.get(moray.put([moray.put(outer)]))[0] is not None
    else:
        assert moray.get(moray.put(np.full(20_000, outer)))[0] == outer
    if len(state["refs"]) > 200:
        batch, state["refs"] = state["refs"], []
        assert moray.get([ref for ref, _ in batch], timeout=60) == [number for _, number in batch]
signal.setitimer(signal.ITIMER_REAL, 0)
batch = state["refs"]
assert moray.get([ref for ref, _ in batch], timeout=60) == [number for _, number in batch]
assert moray.get([echo.remote(i) for i in range(1000)], timeout=60) == list(range(1000))
print("handled", state["handled"], "refused", state["refused"], "outer", outer)
moray.shutdown()
"""


def storm(count: int) -> None:
    words = run_driver(STORM.format(count=count)).stdout.split()
    assert int(words[1]) >= count, words
    # Waiting in a handler works but where its thread was in the middle of a step.
    assert int(words[3]) < count // 20, words


def test_handlers_that_submit_put_and_get() -> None:
    storm(1_000)


@pytest.mark.long
def test_ten_thousand_of_them() -> None:
    storm(10_000)
