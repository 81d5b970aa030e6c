"""explain(): what a reference, generator or actor waits for, across processes; and the warnings of waits that last.

No test looks at times: each polls the explanation until it says what it should, with a deadline.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import moray
from tests.support.procs import run_driver, wait_until


@pytest.fixture
def session() -> Iterator[ModuleType]:
    """Two CPUs, and one of something that is always scarce."""
    moray.init(num_cpus=2, resources={"R": 1})
    try:
        yield moray
    finally:
        moray.shutdown()


def story(waitable: Any, *parts: str, timeout_s: float = 20.0) -> str:
    """The explanation, once it contains all of `parts` in this order, as regular expressions."""
    pattern = re.compile(".*".join(parts), re.DOTALL)
    deadline = time.monotonic() + timeout_s
    while not pattern.search(text := moray.explain(waitable)):
        assert time.monotonic() < deadline, f"{pattern.pattern!r} is not in:\n{text}"
        time.sleep(0.02)
    return text


def sleep(seconds: float) -> None:
    time.sleep(seconds)


# --- tasks ----------------------------------------------------------------------------------------


def test_what_is_ready(session: ModuleType) -> None:
    assert story(moray.put(1)) == "The object is ready (5 bytes)."

    @moray.remote
    def fail() -> None:
        raise ValueError

    ref = fail.remote()
    moray.wait([ref])
    assert "an error, which get() raises" in story(ref)


def test_a_running_task(session: ModuleType) -> None:
    ref = moray.remote(sleep).remote(60)
    assert "deadlock" not in story(ref, r"Task sleep\(\) has been running in pid \d+ for \d")


def test_a_chain_over_three_processes(session: ModuleType) -> None:
    @moray.remote
    def nest(depth: int) -> object:
        if depth:
            return moray.get(nest.remote(depth - 1))
        time.sleep(60)
        return None

    text = story(
        nest.remote(2),
        r"Task nest\(\), running in pid \d+, has been waiting for [\d.]+ s in get\(\) for an object",
        r"Task nest\(\), running in pid \d+, has been waiting",
        r"Task nest\(\) has been running in pid \d+ for",
    )
    assert len(set(re.findall(r"in pid (\d+)", text))) == 3


def test_arguments_that_are_not_ready(session: ModuleType) -> None:
    @moray.remote
    def add(a: Any, b: Any) -> None: ...

    slow = moray.remote(sleep).remote(60)
    story(add.remote(slow, moray.put(1)), r"Task add\(\) waits for 1 argument\.", r"Task sleep\(\) has been running")


def test_what_no_machine_can_run(session: ModuleType) -> None:
    ref = moray.remote(sleep).options(num_cpus=64).remote(0)
    story(ref, r"Task sleep\(\) is queued", "infeasible: CPU: 64 wanted, the machine has 2")


def test_who_has_what_is_missing(session: ModuleType) -> None:
    @moray.remote(resources={"R": 1}, num_cpus=0)
    def holder() -> None:
        time.sleep(60)

    held = holder.remote()
    pid = re.findall(r"in pid (\d+)", story(held, "has been running"))[0]
    ref = moray.remote(sleep).options(resources={"R": 1}).remote(0)
    story(
        ref,
        r"is queued for a worker with 1 CPU, 1 R\.",
        rf"taken: free now: R: 0 \(of R: 1\); held by holder of job 1 \(R: 1\) \(pid {pid}\)",
        rf"Task holder\(\) has been running in pid {pid}",
    )


def test_the_queue_behind_ones_own_tasks(session: ModuleType) -> None:
    refs = [moray.remote(sleep).remote(60) for _ in range(5)]
    story(refs[-1], r"Task sleep\(\) is queued behind 2 others", "its owner has 2 such workers, running sleep")


def test_a_generator(session: ModuleType) -> None:
    @moray.remote
    def count() -> Iterator[int]:
        yield 1
        time.sleep(60)

    items = count.remote()
    next(items)
    story(items, r"Task count\(\) has been running in pid")


def test_an_object_of_another_process(session: ModuleType) -> None:
    @moray.remote
    def lend() -> list[Any]:
        return [moray.remote(sleep).remote(60)]

    (ref,) = moray.get(lend.remote())
    story(ref, r"Task sleep\(\) has been running in pid")


def test_asked_by_a_task(session: ModuleType) -> None:
    @moray.remote
    def ask(box: list[Any]) -> str:
        return story(box[0], "has been running")

    slow = moray.remote(sleep).remote(60)
    assert "Task sleep() has been running in pid" in moray.get(ask.remote([slow]))


def test_asked_by_a_coroutine(session: ModuleType) -> None:
    class Async:
        async def ask(self, box: list[Any]) -> str:
            return story(box[0], "has been running")

    slow = moray.remote(sleep).remote(60)
    assert "Task sleep() has been running in pid" in moray.get(moray.remote(Async).remote().ask.remote([slow]))


def test_asked_for_the_next_item_by_another_thread(session: ModuleType) -> None:
    @moray.remote
    def produce() -> Iterator[int]:
        time.sleep(60)
        yield 1

    @moray.remote
    def consume() -> None:
        next(produce.remote())

    story(consume.remote(), r"waiting for [\d.]+ s in next\(\)", r"Task produce\(\) has been running in pid")


def test_a_generator_that_waits_for_its_consumer(session: ModuleType) -> None:
    @moray.remote(_generator_backpressure_num_objects=1)
    def produce() -> Iterator[int]:
        yield from range(100)

    story(produce.remote(), "and waits until its consumer has taken some of its items")


def test_a_stopped_process_is_where_the_trail_ends(session: ModuleType) -> None:
    ref = moray.remote(sleep).remote(60)
    pid = int(re.findall(r"in pid (\d+)", story(ref, "has been running"))[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        story(ref, rf"Process {pid}, which has task sleep\(\), does not answer: it is stopped")
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_process_that_holds_the_interpreter_lock(session: ModuleType) -> None:
    @moray.remote
    def count() -> int:
        return sum(range(10**11))

    ref = count.remote()
    story(ref, r"Process \d+, which has task count\(\), does not answer within 1 s: it runs code")


def test_only_what_waits_can_be_explained(session: ModuleType) -> None:
    wrong: Any = 1
    with pytest.raises(TypeError, match="takes an ObjectRef, ObjectRefGenerator or ActorHandle, not 1"):
        moray.explain(wrong)
    ref = moray.put(1)
    moray.shutdown()
    moray.init(num_cpus=1)
    with pytest.raises(moray.exceptions.ObjectLostError, match="session that has ended"):
        moray.explain(ref)


# --- actors ----------------------------------------------------------------------------------------


class Person:
    """An actor that waits for others."""

    def __init__(self, _argument: Any = None, flag: str = "") -> None:
        self.other: Any = None
        if flag and os.path.exists(flag):
            time.sleep(60)
        if flag:
            Path(flag).touch()

    def pid(self) -> int:
        return os.getpid()

    def meet(self, other: Any) -> None:
        self.other = other

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def ask(self, timeout_s: float | None = None) -> Any:
        return moray.get(self.other.pid.remote(), timeout=timeout_s)

    def ask_after(self, gate: str) -> Any:
        while not os.path.exists(gate):
            time.sleep(0.01)
        return self.ask()

    def get(self, box: list[Any]) -> Any:
        return moray.get(box[0])


def test_a_call_in_line_behind_another(session: ModuleType) -> None:
    actor = moray.remote(Person).remote()
    refs = [actor.sleep.remote(60), actor.pid.remote()]
    story(refs[0], r"Call Person.sleep\(\) has been running in pid")
    text = story(refs[1], r"Call Person.pid\(\) is in line in pid", r"Call Person.sleep\(\) has been running in pid")
    assert "deadlock" not in text
    story(actor, r"Actor Person \(\w+\) is alive in pid \d+\.\nIt runs Person.sleep\(\), 1 call in line\.")


def test_an_actor_without_work_and_a_dead_one(session: ModuleType) -> None:
    actor = moray.remote(Person).remote()
    moray.get(actor.pid.remote())
    story(actor, "is alive in pid", "Nothing runs in it now")
    moray.kill(actor)
    story(actor, r"is dead: killed by moray\.kill\(\)")


def test_an_actor_that_no_machine_can_place(session: ModuleType) -> None:
    actor = moray.remote(Person).options(num_cpus=64).remote()
    story(actor.pid.remote(), r"waits for actor Person \(\w+\), which is pending", "infeasible: CPU: 64 wanted")
    story(actor, "is pending", "infeasible: CPU: 64 wanted")


def test_an_actor_whose_place_is_taken(session: ModuleType) -> None:
    @moray.remote(resources={"R": 1})
    def holder() -> None:
        time.sleep(60)

    held = holder.remote()
    story(held, "has been running")
    actor = moray.remote(Person).options(resources={"R": 1}).remote()
    story(actor.pid.remote(), "which is pending", r"taken: .* held by holder of job 1", r"Task holder\(\)")


def test_an_actor_that_another_one_keeps_from_its_place(session: ModuleType) -> None:
    first = moray.remote(Person).options(resources={"R": 1}).remote()
    moray.get(first.pid.remote())
    second = moray.remote(Person).options(resources={"R": 1}).remote()
    story(second, "is pending", "taken", r"Process \d+ is the actor Person, and keeps them for as long as it lives")


def test_a_constructor_that_waits_for_its_arguments(session: ModuleType) -> None:
    actor = moray.remote(Person).remote(moray.remote(sleep).remote(60))
    story(actor.pid.remote(), "its constructor waits for 1 argument", r"Task sleep\(\) has been running")


def test_a_constructor_that_takes_long(session: ModuleType, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    actor = moray.remote(Person).remote(None, str(flag))
    story(actor.pid.remote(), "which is pending", r"Its process is pid", "The constructor of Person has been running")


def test_a_restart_says_which_and_why(session: ModuleType, tmp_path: Path) -> None:
    actor = moray.remote(Person).options(max_restarts=1).remote(None, str(tmp_path / "flag"))
    os.kill(moray.get(actor.pid.remote()), signal.SIGKILL)
    wait_until(lambda: "restarting" in moray.explain(actor), what="the restart")
    story(
        actor.pid.remote(),
        r"which is restarting\.",
        r"Actor Person \(\w+\) is restarting \(restart 1\): its process \(pid \d+\):",
        r"The constructor of Person has been running in pid",
    )


def test_a_detached_actor_of_another_job(session: ModuleType) -> None:
    moray.remote(Person).options(name="far", lifetime="detached").remote()
    story(moray.get_actor("far"), r"Actor Person \(\w+\) is alive")


def test_coroutines_that_wait(session: ModuleType) -> None:
    class Async:
        async def relay(self, box: list[Any]) -> Any:
            return await box[0]

    slow = moray.remote(sleep).remote(60)
    ref = moray.remote(Async).remote().relay.remote([slow])
    story(ref, r"Call Async.relay\(\), running in pid \d+, has been waiting for [\d.]+ s in await", "Task sleep")


def test_a_group_of_an_async_actor_that_is_full(session: ModuleType) -> None:
    class Async:
        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

    actor = moray.remote(Async).options(max_concurrency=2).remote()
    refs = [actor.sleep.remote(60) for _ in range(3)]
    story(refs[-1], r"Call Async.sleep\(\) is in line in pid \d+: 2 calls run there", "has been running")


# --- deadlocks --------------------------------------------------------------------------------------


def test_two_actors_that_get_from_each_other(session: ModuleType, tmp_path: Path) -> None:
    first, second = moray.remote(Person).remote(), moray.remote(Person).remote()
    moray.get([first.meet.remote(second), second.meet.remote(first)])
    pids = moray.get([first.pid.remote(), second.pid.remote()])
    gate = tmp_path / "gate"
    refs = [first.ask_after.remote(str(gate)), second.ask_after.remote(str(gate))]
    gate.touch()
    for ref in (*refs, first, second):
        text = story(ref, "This is a deadlock: .*Person.ask_after.*Person.pid.*None of them can go on")
        assert all(f"pid {pid}" in text.splitlines()[-1] for pid in pids)


def test_an_actor_that_waits_for_itself(session: ModuleType) -> None:
    actor = moray.remote(Person).remote()
    moray.get(actor.meet.remote(actor))
    story(actor.ask.remote(), r"This is a deadlock: call Person.ask\(\) .* waits for call Person.pid\(\)")


def test_a_task_that_waits_for_its_own_result(session: ModuleType) -> None:
    class Box:
        def __init__(self) -> None:
            self.value: Any = None
            self.filled = asyncio.Event()

        async def put(self, value: Any) -> None:
            self.value = value
            self.filled.set()

        async def take(self) -> Any:
            await self.filled.wait()
            return self.value

    @moray.remote
    def itself(box: Any) -> object:
        (ref,) = moray.get(box.take.remote())
        return moray.get(ref)

    box = moray.remote(Box).remote()
    ref = itself.remote(box)
    moray.get(box.put.remote([ref]))
    story(ref, r"This is a deadlock: task itself\(\) \(pid \d+\) waits for itself")


def test_a_task_that_waits_for_one_that_needs_what_it_holds(session: ModuleType) -> None:
    @moray.remote(resources={"R": 1})
    def inner() -> None: ...

    @moray.remote(resources={"R": 1})
    def outer() -> None:
        moray.get(inner.remote())

    story(
        outer.remote(),
        r"Task inner\(\) is queued for a worker with 1 CPU, 1 R",
        r"This is a deadlock: task outer\(\) \(pid \d+\) waits for task inner\(\), which waits for task outer\(\)",
    )


def test_a_timeout_makes_it_no_deadlock(session: ModuleType) -> None:
    actor = moray.remote(Person).remote()
    moray.get(actor.meet.remote(actor))
    text = story(actor.ask.remote(60.0), "up to its timeout of 60 s", "That leads back to call Person.ask")
    assert "deadlock" not in text


def test_one_of_several_that_runs_makes_it_no_deadlock(session: ModuleType) -> None:
    @moray.remote
    def inner(seconds: float) -> None:
        time.sleep(seconds)

    @moray.remote(resources={"R": 1})
    def outer(needed: int) -> None:
        stuck = inner.options(resources={"R": 1}).remote(0)
        moray.wait([stuck, inner.remote(60)], num_returns=needed)

    ref = outer.remote(1)
    assert "deadlock" not in story(ref, r"in wait\(\) for 1 of 2 objects")
    moray.cancel(ref)
    story(outer.remote(2), "This is a deadlock: task outer")


def test_an_event_loop_that_a_blocking_get_stops(session: ModuleType) -> None:
    class Async:
        async def block(self, me: Any) -> Any:
            return moray.get(me.pid.remote())

        async def pid(self) -> int:
            return os.getpid()

    actor = moray.remote(Async).remote()
    story(actor.block.remote(actor), "stops the event loop of its actor", r"This is a deadlock: call Async.block\(\)")


@pytest.mark.slow
def test_a_busy_program_never_looks_like_a_deadlock(session: ModuleType) -> None:
    """Everything changes while it is being asked for."""
    task: Any = moray.remote(sleep)
    actors = [moray.remote(Person).remote() for _ in range(3)]
    until = time.monotonic() + 3
    stories: list[str] = []

    def work(seed: int) -> None:
        chosen = random.Random(seed)
        while time.monotonic() < until:
            first = task.remote(chosen.random() / 50)
            # The last actor waits for nobody, so that the others may wait for it.
            last = actors[-1].sleep.remote(chosen.random() / 100)
            refs = [first, last, *(actor.get.remote([chosen.choice((first, last))]) for actor in actors[:-1])]
            stories.extend((moray.explain(chosen.choice(refs)), moray.explain(chosen.choice(actors))))
            moray.get(refs)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stories) > 50
    assert not [text for text in stories if "deadlock" in text]


# --- warnings ------------------------------------------------------------------------------------------

QUICK = {"MORAY_WARN_AFTER_S": "0.4"}
PRELUDE = """
import os, sys, time, threading
import moray
moray.init(num_cpus=2, resources={"R": 1})

@moray.remote
def sleep(seconds):
    time.sleep(seconds)

def give_up(ref, timeout):
    try:
        moray.get(ref, timeout=timeout)
    except moray.exceptions.GetTimeoutError:
        pass
"""


def warnings_of(body: str) -> list[str]:
    """What a program of this body got to read about itself, line by line."""
    finished = run_driver(PRELUDE + body, env=QUICK)
    return [line.removeprefix("(moray) ") for line in finished.stderr.splitlines() if line.startswith("(moray) ")]


@pytest.mark.slow
def test_healthy_waits_say_nothing() -> None:
    body = """
moray.get(sleep.remote(1.2))
moray.get([sleep.remote(0.5) for _ in range(6)])

@moray.remote
def nest():
    return moray.get(sleep.remote(1.2))

moray.get(nest.remote())
"""
    assert warnings_of(body) == []


@pytest.mark.slow
def test_one_warning_says_which_dependency() -> None:
    lines = warnings_of("""
@moray.remote
def use(x): pass

ref = use.remote(sleep.remote(4))
threads = [threading.Thread(target=moray.get, args=(ref,)) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""")
    assert lines[0].startswith("get() has been waiting for")
    assert lines[1] == "Task use() waits for 1 argument."
    assert lines[2].startswith("Task sleep() has been running in pid")
    assert len(lines) == 3


@pytest.mark.slow
def test_resources_that_are_taken_are_told_once() -> None:
    lines = warnings_of("""
held = sleep.options(num_cpus=0, resources={"R": 1}).remote(4)
time.sleep(0.3)
moray.get(sleep.options(resources={"R": 1}, name="late").remote(0))
""")
    assert len(lines) == 1
    assert "held by sleep of job 1 (R: 1)" in lines[0]


@pytest.mark.slow
def test_the_drivers_warning_names_the_deadlock_of_its_tasks() -> None:
    lines = warnings_of("""
@moray.remote(resources={"R": 1})
def inner(): pass

@moray.remote(resources={"R": 1})
def outer():
    return moray.get(inner.remote())

give_up(outer.remote(), 4)
""")
    deadlocks = [line for line in lines if line.startswith("This is a deadlock: task outer()")]
    assert len(deadlocks) == 1, lines


@pytest.mark.slow
def test_a_deadlock_that_nobody_waits_for_is_told_by_one_of_its_workers() -> None:
    lines = warnings_of("""
@moray.remote
class Person:
    def meet(self, other): self.other = other
    def ask(self): time.sleep(0.3); return moray.get(self.other.ask.remote())

a, b = Person.remote(), Person.remote()
moray.get([a.meet.remote(b), b.meet.remote(a)])
refs = [a.ask.remote(), b.ask.remote()]
time.sleep(4)
""")
    assert len([line for line in lines if line.startswith("This is a deadlock:")]) == 1, lines
    assert lines[0].startswith("get() in Person.ask() (pid ")


@pytest.mark.slow
def test_a_restarting_actor_is_told() -> None:
    lines = warnings_of("""
@moray.remote(max_restarts=-1, max_task_retries=-1)
class Fragile:
    def __init__(self):
        if os.path.exists("again"):
            time.sleep(0.2)
            os._exit(7)
        open("again", "w").close()
    def pid(self): return os.getpid()
    def die(self): os._exit(7)

actor = Fragile.remote()
moray.get(actor.pid.remote())
actor.die.remote()
give_up(actor.pid.remote(), 4)
""")
    told = [line for line in lines if re.search(r"is restarting \(restart \d+\): .*exited with code 7", line)]
    assert len(told) == 1, lines


@pytest.mark.slow
def test_an_actor_that_never_comes_back_is_told_though_nobody_waits() -> None:
    lines = warnings_of("""
@moray.remote(max_restarts=-1)
class Fragile:
    def __init__(self):
        if os.path.exists("again"):
            time.sleep(0.05)
            os._exit(7)
        open("again", "w").close()
    def die(self): os._exit(7)

actor = Fragile.remote()
moray.wait([actor.die.remote()])
time.sleep(3)
""")
    told = [line for line in lines if line.startswith("An actor has been restarting again and again")]
    assert len(told) == 1, lines


@pytest.mark.slow
def test_a_wrong_setting_is_refused() -> None:
    finished = run_driver("import moray; moray.init()", env={"MORAY_WARN_AFTER_S": "soon"}, check=False)
    assert "MORAY_WARN_AFTER_S='soon' should be a number" in finished.stderr
