"""Puts of large values by processes that hold space of the store ahead: values, deaths, pressure, interrupts."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moray
from moray.protocol import messages as m
from moray.protocol.connection import decode_body
from moray.runtime import state
from tests.support.procs import run_driver, wait_until

#: A megabyte.
ITEMS = 125_000


def store() -> dict[str, Any]:
    assert state.runtime is not None
    answer: dict[str, Any] = state.runtime.ask(lambda number: m.ClusterInfo(number)).state["store"]
    return answer


def places_held() -> int:
    assert state.runtime is not None
    return sum(len(kind.places) for kind in state.runtime.values.space._kinds.values())


def block(number: int, items: int = ITEMS) -> Any:
    return np.full(items, number)


def put_until_places_are_held(items: int = ITEMS) -> None:
    for number in range(300):
        moray.put(block(number, items))
        if number % 10 == 9:
            time.sleep(0.002)  # The grant comes while nothing is put, too.
        if places_held() >= 2:
            return
    raise AssertionError("no space was granted ahead")


def assert_nothing_is_left() -> None:
    wait_until(lambda: store()["ahead_bytes"] == 0, what="the return of unused places")
    try:
        wait_until(lambda: store()["used_bytes"] == 0, what="the end of dropped objects")
    except AssertionError as error:
        raise AssertionError(f"{error}: {store()}") from None


@moray.remote
def put_and_check(seed: int, count: int) -> int:
    kept = {}
    for number in range(count):
        kept[number] = moray.put(block(seed * 1000 + number))
        if number >= 4:
            assert (moray.get(kept.pop(number - 4)) == seed * 1000 + number - 4).all()
    return sum(int((moray.get(ref) == seed * 1000 + number).all()) for number, ref in kept.items())


@moray.remote
def first_item(array: Any) -> int:
    return int(array[0])


@moray.remote
def first_item_of_inner(items: list[Any]) -> int:
    return int(moray.get(items[0])[0])


@moray.remote
def make(number: int) -> Any:
    return block(number)


def test_many_puts_from_several_processes_and_threads(moray_session: object) -> None:
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            kept: list[Any] = []
            for number in range(60):
                kept.append((moray.put(block(thread * 1000 + number)), thread * 1000 + number))
                if len(kept) > 3:
                    ref, value = kept.pop(0)
                    assert (moray.get(ref) == value).all()
            for ref, value in kept:
                assert (moray.get(ref) == value).all()
        except BaseException as error:
            failures.append(error)

    tasks = [put_and_check.remote(seed, 60) for seed in range(2)]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert moray.get(tasks, timeout=60) == [4, 4]
    del tasks
    assert_nothing_is_left()


def test_sizes_that_change_from_put_to_put(moray_session: object) -> None:
    sizes = np.random.default_rng(1).integers(13_000, 400_000, 300)
    kept: dict[int, Any] = {}
    for number, items in enumerate(sizes):
        kept[number] = moray.put(block(number, int(items)))
        if len(kept) > 8:
            oldest = next(iter(kept))
            array = moray.get(kept.pop(oldest))
            assert len(array) == sizes[oldest]
            assert (array == oldest).all()
    del array
    kept.clear()
    assert_nothing_is_left()


def test_others_find_what_was_put_a_moment_ago(moray_session: object) -> None:
    """STORE-SEAL: as arguments, and inside of values, from the moment that put returns."""
    put_until_places_are_held()
    refs = []
    for number in range(150):
        ref = moray.put(block(number))
        refs.append(first_item.remote(ref) if number % 2 else first_item_of_inner.remote([ref]))
    assert moray.get(refs, timeout=60) == list(range(150))
    del ref, refs
    assert_nothing_is_left()


def test_results_are_written_ahead(moray_session: object) -> None:
    """STORE-SEAL: the owner is told where a result lies when the node knows."""
    for first in range(0, 120, 20):
        refs = [make.remote(first + number) for number in range(20)]
        assert moray.get([first_item.remote(ref) for ref in refs], timeout=60) == list(range(first, first + 20))
    del refs
    assert_nothing_is_left()


def test_what_is_not_used_goes_back(moray_session: object) -> None:
    put_until_places_are_held()
    assert store()["ahead_bytes"] > 0
    assert_nothing_is_left()
    assert places_held() == 0
    assert state.runtime is not None
    assert not state.runtime.values.space._watches


@moray.remote(max_retries=0)
def hold_places(path: str, how: str) -> None:
    put_until_places_are_held()
    Path(path).write_text(str(os.getpid()))
    if how == "die":
        os._exit(3)
    while not os.path.exists(path + ".go"):
        # Kept in use, so that they do not go back for idleness.
        moray.put(block(0))
        time.sleep(0.01)


def test_places_go_with_their_process(moray_session: object, tmp_path: Path) -> None:
    """LIVENESS."""
    with pytest.raises(moray.exceptions.WorkerCrashedError):
        moray.get(hold_places.remote(str(tmp_path / "a"), "die"), timeout=30)
    wait_until(lambda: store()["ahead_bytes"] == 0, what="the end of the dead worker's places")
    path = tmp_path / "b"
    ref = hold_places.remote(str(path), "stay")
    wait_until(path.exists)
    wait_until(lambda: store()["ahead_bytes"] > 0)
    os.kill(int(path.read_text()), signal.SIGKILL)
    with pytest.raises(moray.exceptions.WorkerCrashedError):
        moray.get(ref, timeout=30)
    wait_until(lambda: store()["ahead_bytes"] == 0 and store()["used_bytes"] == 0, what="the end of its objects")


NEARLY_FULL = """
import os, signal, time
import numpy as np
import moray
from pathlib import Path
from tests.api.test_space_ahead import block, hold_places, put_until_places_are_held, store
context = moray.init(num_cpus=2, object_store_memory=160_000_000)
paths = [os.path.abspath(name) for name in ("a", "b")]
refs = [hold_places.remote(path, "stay") for path in paths]
while not all(map(os.path.exists, paths)):
    time.sleep(0.01)
pids = []
for path in paths:
    while not (text := Path(path).read_text()):
        time.sleep(0.01)
    pids.append(int(text))
put_until_places_are_held()
assert store()["ahead_bytes"] > 0
{stall}
begin = time.monotonic()
kept = [moray.put(block(i)) for i in range({count})]
taken = time.monotonic() - begin
print("took", taken, store())
for pid in pids:
    os.kill(pid, signal.SIGCONT)
for path in paths:
    Path(path + ".go").touch()
moray.get(refs, timeout=60)
assert all((moray.get(ref) == i).all() for i, ref in enumerate(kept))
print("done")
"""
#: Where nothing can be written: the disk refuses.
NO_DISK = {"MORAY_SPILL_DIR": "/proc/1/nowhere", "PYTHONPATH": os.pathsep.join(
    [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
)}  # fmt: skip


def test_a_store_without_a_disk_can_be_filled_to_the_brim() -> None:
    """STORE-SPACE: what others hold ahead comes back, so that nothing fails that would have had room."""
    # 159 fit; each of the others has two or three objects of its own at any time.
    out = run_driver(NEARLY_FULL.format(stall="", count=150), env=NO_DISK).stdout
    assert out.endswith("done\n")


def test_holders_that_cannot_answer_stop_nobody() -> None:
    """STORE-SPACE: stopped processes keep their places, and others go to disk."""
    stall = "[os.kill(pid, signal.SIGSTOP) for pid in pids]"
    environment = {"PYTHONPATH": NO_DISK["PYTHONPATH"]}
    out = run_driver(NEARLY_FULL.format(stall=stall, count=200), env=environment).stdout
    assert out.endswith("done\n")
    assert float(out.split()[1]) < 20


def test_interrupted_puts_leave_no_places(moray_session: object) -> None:
    """INTERRUPT: wherever the thread was, what it had taken goes back."""
    array = block(1)
    put_until_places_are_held()
    interrupted = 0
    previous = signal.signal(signal.SIGALRM, _raise)
    try:
        for number in range(400):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00005 + (number % 40) * 0.00002)
                for _ in range(20):
                    moray.put(array)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert interrupted > 100
    assert (moray.get(moray.put(array)) == 1).all()
    assert_nothing_is_left()


def _raise(*_: object) -> None:
    raise KeyboardInterrupt


FLAT = """
import time
import numpy as np
import moray
from tests.api.test_space_ahead import block, store
from tests.support.procs import anonymous_bytes, session_processes
import os
moray.init(num_cpus=1)
array = block(1)

def rounds(count):
    for _ in range(count):
        ref = moray.put(array)

rounds(1000)
pids = [os.getpid(), *session_processes(moray.get_runtime_context().get_session_name())]
before = {{pid: anonymous_bytes(pid) for pid in pids}}
rounds({count})
growth = {{pid: anonymous_bytes(pid) - before[pid] for pid in pids}}
print("growth", max(growth.values()))
print("backed", store()["backed_bytes"])
"""


@pytest.mark.slow
def test_puts_without_end_use_the_same_memory() -> None:
    """Freed space is granted again first: the arena stays as small as what is alive and held ahead."""
    lines = run_driver(FLAT.format(count=40_000), env={"PYTHONPATH": NO_DISK["PYTHONPATH"]}).stdout.splitlines()
    numbers = {name: int(number) for name, number in (line.split() for line in lines)}
    # Drops that wait to be booked take a few megabytes; 200 bytes that each put left behind would show.
    assert numbers["growth"] < 8_000_000
    assert numbers["backed"] <= 64 << 20


def seals_sent() -> tuple[Any, list[Any]]:
    """The node's connection, and the frames with seals that this process sends from now on."""
    assert state.runtime is not None
    node, sent = state.runtime.node, []
    send = type(node).send_frame

    class Counting(type(node)):  # type: ignore[misc]
        __slots__ = ()

        def send_frame(self, frame: bytes, record: Any = None) -> bool:
            sent.append(decode_body(frame[8:]) if len(frame) < 200 else frame)
            return bool(send(self, frame, record))

    node.__class__ = Counting
    return node, sent


def test_what_is_dropped_at_once_costs_no_message(moray_session: object) -> None:
    put_until_places_are_held()
    node, sent = seals_sent()
    try:
        for number in range(200):
            ref = moray.put(block(number))
    finally:
        node.__class__ = type(node).__mro__[1]
    assert len(sent) < 50, "most puts take the place of a dropped object"
    assert (moray.get(ref) == 199).all()
    del ref
    assert_nothing_is_left()


def test_places_are_not_used_again_while_anybody_can_read_there(moray_session: object) -> None:
    """STORE-PIN: readers, tasks, values that contain the reference; all while others are put and dropped."""
    put_until_places_are_held()
    kept = []
    for number in range(120):
        ref = moray.put(block(number))
        if number % 3 == 0:
            kept.append((moray.get(ref), number))
        elif number % 3 == 1:
            kept.append((first_item_of_inner.remote([ref]), number))
        else:
            kept.append((first_item.remote(ref), number))
        del ref
        for _ in range(3):
            moray.put(block(-1))
    for what, number in kept:
        if isinstance(what, moray.ObjectRef):
            assert moray.get(what, timeout=60) == number
        else:
            assert (what == number).all()
    del kept, what
    assert_nothing_is_left()


def test_threads_drop_and_put_at_once(moray_session: object) -> None:
    """The place of a dropped object goes to one thread only, and never while somebody tells the node of it."""
    put_until_places_are_held()
    failures: list[str] = []

    def work(thread: int) -> None:
        for number in range(300):
            mark = thread * 1000 + number
            ref = moray.put(block(mark))
            if number % 4 == 0:
                array = moray.get(ref)
                moray.put(block(-1))
                if not (array == mark).all():
                    failures.append(f"{mark}: {array[0]}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert_nothing_is_left()


def test_what_was_put_counts_as_used(moray_session: object) -> None:
    put_until_places_are_held()
    before = moray.available_resources()["object_store_memory"]
    kept = [moray.put(block(number)) for number in range(3)]
    assert moray.available_resources()["object_store_memory"] <= before - 3 * ITEMS * 8
    del kept
