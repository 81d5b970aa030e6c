"""Forks of the driver: the child is inert and cannot harm its parent's session (FORK)."""

from __future__ import annotations

import pytest

from tests.support.procs import run_driver

PRELUDE = """
import multiprocessing, os, signal, subprocess, sys, time
import numpy as np
import moray
context = moray.init(num_cpus=2)

@moray.remote
def double(x):
    return 2 * x

held = moray.get(moray.put(np.arange(100_000)))
refs = [moray.put(i) for i in range(10)] + [moray.put(bytes(300_000))]

def check():
    assert moray.get([double.remote(i) for i in range(100)], timeout=30) == [2 * i for i in range(100)]
    assert len(moray.get(refs, timeout=30)) == 11
    assert (held == np.arange(100_000)).all()

def in_child(body):
    pid = os.fork()
    if pid == 0:
        try:
            body()
        except BaseException as error:
            print("child failed:", type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

check()
"""


def run(body: str) -> str:
    return run_driver(PRELUDE + body + "\ncheck()\nprint('parent is well')\n").stdout


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_pool(method: str) -> None:
    program = (
        "import math, multiprocessing, moray\n"
        "if __name__ == '__main__':\n"
        "    moray.init(num_cpus=2)\n"
        "    triple = moray.remote(lambda x: 3 * x)\n"
        "    assert moray.get(triple.remote(1)) == 3\n"
        f"    with multiprocessing.get_context({method!r}).Pool(2) as pool:\n"
        "        assert pool.map(math.factorial, range(20)) == [math.factorial(i) for i in range(20)]\n"
        "        assert moray.get([triple.remote(i) for i in range(50)]) == [3 * i for i in range(50)]\n"
        "    assert moray.get([triple.remote(i) for i in range(50)]) == [3 * i for i in range(50)]\n"
        "    print('parent is well')\n"
    )
    assert "parent is well" in run_driver(program).stdout


def test_process_pool_executor() -> None:
    out = run(
        """
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    assert sum(pool.map(abs, range(-50, 0))) == 1275
    check()
"""
    )
    assert "parent is well" in out


def test_subprocesses() -> None:
    out = run(
        """
for _ in range(20):
    assert subprocess.run(["echo", "hi"], capture_output=True, text=True).stdout == "hi\\n"
running = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
check()
for process in running:
    process.kill()
    process.wait()
assert os.system("true") == 0
"""
    )
    assert "parent is well" in out


def test_subprocess_inherits_no_descriptors() -> None:
    out = run(
        """
listing = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False).stdout
assert "socket:" not in listing and "memfd" not in listing, listing
"""
    )
    assert "parent is well" in out


def test_child_that_exits_normally_does_not_end_the_session() -> None:
    """Its exit handlers, finalizers and garbage are not the parent's."""
    out = run(
        """
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
process = multiprocessing.get_context("fork").Process(target=list)
process.start(); process.join()
"""
    )
    assert out.count("parent is well") == 1


def test_child_that_collects_references() -> None:
    """Finalizers in the child release nothing of the parent's."""
    out = run(
        """
def body():
    import gc
    refs.clear()
    gc.collect()

assert in_child(body) == 0
"""
    )
    assert "parent is well" in out


def test_views_are_readable_in_the_child() -> None:
    out = run(
        """
def body():
    assert (held == np.arange(100_000)).all()

assert in_child(body) == 0
"""
    )
    assert "child failed" not in out


@pytest.mark.parametrize(
    "call",
    [
        "moray.get(refs[0])",
        "moray.put(1)",
        "double.remote(1)",
        "moray.wait(refs)",
        "moray.cluster_resources()",
    ],
)
def test_api_call_in_the_child_is_one_clear_error(call: str) -> None:
    out = run(
        f"""
def body():
    try:
        {call}
    except moray.exceptions.RayError as error:
        assert "fork" in str(error), error
        print("refused", flush=True)
    else:
        raise AssertionError("the call went through")

assert in_child(body) == 0
"""
    )
    assert "refused" in out


def test_shutdown_in_the_child_leaves_the_parents_session() -> None:
    out = run(
        """
def body():
    moray.shutdown()

in_child(body)
"""
    )
    assert "parent is well" in out


def test_fork_while_other_threads_use_the_api() -> None:
    """Locks that other threads held at the fork do not stop the child."""
    out = run(
        """
import threading
over = threading.Event()

def churn():
    while not over.is_set():
        moray.get([double.remote(i) for i in range(20)])
        moray.put(bytes(200_000))

threads = [threading.Thread(target=churn) for _ in range(3)]
for thread in threads:
    thread.start()
def body():
    import gc
    try:
        moray.put(1)
    except moray.exceptions.RayError:
        pass
    refs.clear()
    gc.collect()

try:
    for _ in range(30):
        assert in_child(body) == 0
finally:
    over.set()
    for thread in threads:
        thread.join()
"""
    )
    assert "child failed" not in out


def test_fork_in_a_task() -> None:
    out = run(
        """
@moray.remote
def forks():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        numbers = pool.map(abs, range(-10, 0))
    text = subprocess.run(["echo", "hi"], capture_output=True, text=True).stdout
    return sum(numbers) + moray.get(double.remote(1)), text

assert moray.get(forks.remote(), timeout=30) == (57, "hi\\n")
"""
    )
    assert "parent is well" in out
