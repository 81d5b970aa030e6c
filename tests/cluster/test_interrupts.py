"""Ctrl-C at any moment of calls to another machine: no connection is lost, no lock stays held (INTERRUPT)."""

from __future__ import annotations

import pytest

from tests.support.procs import run_driver

#: As in tests/survival/test_interrupts.py, but everything that is called is at the other node, so that the main thread
#: encrypts and sends by itself. A handler that does not raise submits from where it is.
STORM = """
import random, signal, sys, threading, time
import moray
from moray.cluster_utils import Cluster

WANTED = {interrupts}
raised = submitted = 0

@moray.remote(num_cpus=0, resources={{"there": 0.01}})
def echo(value):
    return value

@moray.remote(num_cpus=0, resources={{"there": 0.01}})
class Counter:
    def __init__(self):
        self.count = 0
    def add(self, value):
        self.count += 1
        return self.count

def work():
    assert moray.get(echo.remote(1)) == 1
    first, second = counter.add.remote(b"x"), counter.add.remote(b"y" * 50_000)
    assert moray.get(second) > moray.get(first)  # A handler may have called between the two.
    assert moray.get([echo.remote(i) for i in range(5)]) == list(range(5))
    echo.remote([moray.put(1)])

def handler(number, frame):
    global raised, submitted
    while frame is not None:
        if frame.f_code is work.__code__:
            if chance.random() < 0.2:
                submitted += 1
                kept.append(counter.add.remote(submitted))
                return
            raised += 1
            raise KeyboardInterrupt
        frame = frame.f_back

def storm():
    pauses = random.Random(5)
    while raised < WANTED:
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(pauses.random() * 0.0015)

with Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}}) as cluster:
    cluster.add_node(num_cpus=2, resources={{"there": 1}})
    cluster.connect()
    cluster.wait_for_nodes()
    counter = Counter.remote()
    for _ in range(5):
        work()
    chance, kept, main = random.Random(7), [], threading.main_thread().ident
    signal.signal(signal.SIGINT, handler)
    thread = threading.Thread(target=storm, daemon=True)
    thread.start()
    finished = 0
    while raised < WANTED:
        try:
            work()
            finished += 1
        except KeyboardInterrupt:
            pass
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    thread.join()
    counts = moray.get(kept, timeout=30)
    assert len(set(counts)) == len(counts), "a call ran twice"
    last = moray.get(counter.add.remote(0), timeout=30)
    assert last > max(counts)
    assert moray.get([echo.remote(i) for i in range(500)], timeout=30) == list(range(500))
    moray.shutdown()
    print("interrupts", raised, "rounds finished", finished, "submitted in handlers", submitted)
"""


@pytest.mark.long
@pytest.mark.timeout(300)
def test_ten_thousand_random_interrupts_then_a_round_trip() -> None:
    assert "interrupts 10000" in run_driver(STORM.format(interrupts=10_000), timeout_s=240).stdout


@pytest.mark.slow
def test_a_few_random_interrupts_then_a_round_trip() -> None:
    assert "interrupts 500" in run_driver(STORM.format(interrupts=500), timeout_s=100).stdout
