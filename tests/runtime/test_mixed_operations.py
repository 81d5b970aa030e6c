"""Many operations of all kinds, and then nothing is left in any table of any process (REF-FREE)."""

from __future__ import annotations

import pytest

from tests.support.procs import run_driver

PROGRAM = """
import asyncio, gc, os, sys, threading, time
sys.path.insert(0, {root!r})
import moray
from moray.protocol import messages as m
from moray.runtime import state
from tests.support.tables import empty_tables, runtime_tables

@moray.remote
def look(seconds):
    gc.collect()
    time.sleep(seconds)  # So that every worker gets one.
    return os.getpid(), runtime_tables(state.runtime), len(state.runtime.executor.passing)

@moray.remote
def identity(x):
    return x

@moray.remote
def add_up(refs):
    return sum(moray.get(refs))

@moray.remote
def relay(box):
    return [box[0], moray.put("mine")]

@moray.remote
def through(box):
    return moray.get(relay.remote(box))

@moray.remote
def fail(box):
    raise ValueError(box)

@moray.remote
def large(box):
    return [bytes(150_000), box]

@moray.remote(num_returns=2)
def pair(box):
    return [box, moray.put(1)], bytes(150_000)

@moray.remote
def nap():
    time.sleep(0.001)

def puts(i):
    moray.put(i)
    moray.put(bytes(150_000))
    assert moray.get(moray.get(moray.put([moray.put(i)]))[0]) == i

def calls(i):
    assert moray.get(identity.remote(i)) == i
    assert moray.get(identity.remote(moray.put(bytes(150_000)))) == bytes(150_000)
    assert moray.get(add_up.remote([moray.put(i), moray.put(1)])) == i + 1

def travels(i):
    task = through if i % 10 == 0 else relay
    ref = moray.put(i)
    same, other = moray.get(task.remote([ref]))
    assert same is ref and moray.get(other) == "mine"

def errors(i):
    for ref in fail.remote([moray.put(i)]), identity.remote(fail.remote([moray.put(i)])):
        try:
            moray.get(ref)
        except ValueError as error:
            assert moray.get(error.args[0][0]) == i

def unwanted(i):
    relay.remote([moray.put(i)])
    large.remote([moray.put(i)])
    pair.remote([moray.put(i)])
    nap.remote().future()

def several(i):
    value, box = moray.get(large.remote([moray.put(i)]))
    assert len(value) == 150_000 and moray.get(box[0]) == i
    (inner, _), _ = moray.get(pair.remote([moray.put(i)]))
    assert moray.get(inner[0]) == i

async def impatient(ref):
    try:
        await asyncio.wait_for(ref, 0.0001)
    except asyncio.TimeoutError:
        pass

def given_up(i):
    ref = nap.remote()
    try:
        moray.get(ref, timeout=0)
    except moray.exceptions.GetTimeoutError:
        pass
    moray.wait([ref], timeout=0)
    asyncio.run(impatient(ref))

KINDS = [(puts, 4), (calls, 4), (travels, 3), (errors, 5), (unwanted, 7), (several, 4), (given_up, 3)]

def settled():
    # Tables of the driver, of each worker, and of the store, once all of them are empty; or what is left.
    runtime = state.runtime
    deadline = time.monotonic() + 20
    while True:
        gc.collect()
        seen = moray.get([look.remote(0.05) for _ in range(6)])
        done = threading.Event()
        runtime.call_soon(lambda: (runtime.references.flush(), runtime.values.flush(), done.set()))
        assert done.wait(10)
        store = runtime.ask(m.ClusterInfo).state["store"]
        tables = [runtime_tables(runtime), *(tables for _pid, tables, _passing in seen)]
        empty = not store["objects"] and not store["pins"] and not any(passing for *_rest, passing in seen)
        if empty and all(table == empty_tables() for table in tables):
            return
        assert time.monotonic() < deadline, (store, tables)
        time.sleep(0.05)

moray.init(num_cpus=2)
number = 0
while number < {operations}:
    for kind, operations in KINDS:
        kind(number)
        number += operations
settled()
print("settled after", number)
"""


def run(operations: int, timeout_s: float) -> None:
    from pathlib import Path

    root = str(Path(__file__).parents[2])
    output = run_driver(PROGRAM.format(root=root, operations=operations), timeout_s=timeout_s).stdout
    assert "settled after" in output


@pytest.mark.slow
def test_a_thousand_mixed_operations() -> None:
    run(1_000, 60)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_twenty_thousand_mixed_operations() -> None:
    run(20_000, 280)
