"""Signal handlers of the user that call actors, make new options, and run inside of tasks (INTERRUPT).

The storm comes at any moment of what the main thread does; a lock that its own thread cannot take again would be a
deadlock, which is a timeout here.
"""

from __future__ import annotations

import pytest

from tests.support.procs import run_driver

PRELUDE = """
import itertools, signal, time
import moray

moray.init(num_cpus=2)

class Storm:
    '''Calls `action(number)` at any moment, never inside of itself.'''

    def __init__(self, action, every_s=0.0005):
        self.action, self.every_s = action, every_s
        self.handled = 0
        self.inside = False

    def __enter__(self):
        signal.signal(signal.SIGALRM, self.handle)
        signal.setitimer(signal.ITIMER_REAL, self.every_s, self.every_s)
        return self

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)

    def handle(self, *_):
        if not self.inside:
            self.inside = True
            try:
                self.handled += 1
                self.action(self.handled)
            finally:
                self.inside = False

@moray.remote
def echo(value):
    return value

moray.get(echo.remote(0))  # What is imported at the first use is; a handler would find modules half made.
"""


@pytest.mark.slow
def test_calls_of_the_actor_that_is_being_called() -> None:
    """``Callee.lock``; calls keep their order, and none is lost."""
    out = run_driver(
        PRELUDE
        + """
@moray.remote
class Log:
    def __init__(self):
        self.seen = []
    def add(self, who, number):
        self.seen.append((who, number))
        return number
    def all(self):
        return self.seen

log = Log.remote()
moray.get(log.add.remote("begin", 0))
numbers, refs = itertools.count(1), []
with Storm(lambda number: refs.append((log.add.remote("handler", number), number))) as storm:
    end = time.monotonic() + 60
    mine = 0
    while storm.handled < 1500 and time.monotonic() < end:
        mine += 1
        assert moray.get(log.add.remote("main", mine), timeout=30) == mine
assert storm.handled >= 1500
assert moray.get([ref for ref, _ in refs], timeout=30) == [number for _, number in refs]
seen = moray.get(log.all.remote())
assert [number for who, number in seen if who == "main"] == list(range(1, mine + 1))
assert [number for who, number in seen if who == "handler"] == [number for _, number in refs]
print("done")
"""
    ).stdout
    assert out.split() == ["done"]


@pytest.mark.slow
def test_new_options_at_any_moment() -> None:
    """The pools of scheduling keys: each is served, whoever made it."""
    out = run_driver(
        PRELUDE
        + """
amounts, refs, done = itertools.count(1), [], 0
def submit(number):
    if len(refs) <= 2 * done:  # No more than are done meanwhile: each needs a lease of its own.
        amount = next(amounts) / 10_000
        refs.append((echo.options(num_cpus=amount).remote(number), number))
with Storm(submit, 0.001):
    for _ in range(50):
        amount = next(amounts) / 10_000
        assert moray.get(echo.options(num_cpus=amount).remote(amount), timeout=30) == amount
        done += 1
assert refs
assert moray.get([ref for ref, _ in refs], timeout=60) == [number for _, number in refs]
print("done")
""",
        timeout_s=100,
    ).stdout
    assert out.split() == ["done"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["task", "actor", "stream"])
def test_handlers_inside_of_workers(kind: str) -> None:
    """What sends results, items and output, and what tells the node of waits, in a worker's main thread."""
    out = run_driver(
        PRELUDE
        + f"kind = {kind!r}"
        + """

def work(count):
    refused, refs = 0, []
    def act(number):
        nonlocal refused
        refs.append((echo.remote(number), number))
        print("handler", number)
        if number % 8 == 0:
            try:
                assert moray.get(refs[-1][0], timeout=30) == number
            except moray.exceptions.MoraySystemError as error:
                assert "signal handler" in str(error)
                refused += 1
    with Storm(act, 0.001) as storm:
        end = time.monotonic() + 50
        while storm.handled < count and time.monotonic() < end:
            assert moray.get(echo.remote(1), timeout=30) == 1
            print("main")
            yield storm.handled
    assert storm.handled >= count
    assert moray.get([ref for ref, _ in refs], timeout=30) == [number for _, number in refs]
    yield refused

@moray.remote
def run_all(count):
    return list(work(count))[-1]

@moray.remote
def stream(count):
    yield from work(count)

@moray.remote
class Worker:
    def run(self, count):
        return list(work(count))[-1]
    def stream(self, count):
        yield from work(count)

worker = Worker.remote()
if kind == "task":
    refused = moray.get(run_all.remote(300), timeout=80)
elif kind == "actor":
    refused = moray.get(worker.run.remote(300), timeout=80)
else:
    refused = [[moray.get(ref) for ref in each][-1] for each in (stream.remote(150), worker.stream.remote(150))][-1]
assert refused < 20, refused
print("done")
""",
        timeout_s=110,
    ).stdout
    assert "done" in out.split()


@pytest.mark.slow
def test_a_compiled_graph_that_is_being_called() -> None:
    """A call in a handler works, or is one clear error; what was begun outside of it goes on."""
    out = run_driver(
        PRELUDE
        + """
from moray.dag import InputNode

@moray.remote
class Step:
    def add(self, number):
        return number + 1

step = Step.remote()
with InputNode() as given:
    graph = step.add.bind(given)
graph = graph.experimental_compile()
assert graph.execute(1).get() == 2
refused = worked = 0

def act(number):
    global refused, worked
    try:
        assert graph.execute(number).get(timeout=30) == number + 1
        worked += 1
    except moray.exceptions.MoraySystemError as error:
        assert "signal handler" in str(error)
        refused += 1

with Storm(act) as storm:
    end = time.monotonic() + 40
    number = 0
    while storm.handled < 2000 and time.monotonic() < end:
        number += 1
        assert graph.execute(number).get(timeout=30) == number + 1
assert storm.handled >= 2000
assert graph.execute(5).get(timeout=30) == 6
assert worked > refused, (worked, refused)
graph.teardown()
print("done")
"""
    ).stdout
    assert out.split() == ["done"]
