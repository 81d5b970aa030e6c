"""Compiled graphs: results, errors, several at once, ends and deaths."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest

import moray
from moray.dag import CompiledDAG, CompiledDAGRef, DAGContext, DAGNode, InputNode, MultiOutputNode
from moray.exceptions import (
    ActorDiedError,
    ChannelError,
    ChannelTimeoutError,
    GraphCapacityExceededError,
    MorayError,
    TaskError,
)
from tests.support.procs import END_GRACE_S, processes_with, spawn_driver, wait_until

pytestmark = pytest.mark.timeout(60)


@moray.remote(num_cpus=0)
class Step:
    def __init__(self, more: int = 1) -> None:
        self.more = more
        self.calls = 0

    def add(self, x: Any) -> Any:
        self.calls += 1
        return x + self.more

    def both(self, x: Any, y: Any = 0, *, z: Any = 0) -> Any:
        return x, y, z

    def pair(self, x: Any) -> Any:
        return x, -x

    def odd_only(self, x: int) -> int:
        if x % 2 == 0:
            raise ZeroDivisionError(f"{x} is even")
        return x

    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def count(self) -> int:
        return self.calls

    def pid(self) -> int:
        return os.getpid()

    def die(self, x: Any) -> Any:
        if x == "now":
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    def leave(self, x: Any) -> Any:
        moray.actor.exit_actor()

    def unpicklable(self, x: Any) -> Any:
        return threading.Lock()


@moray.remote(num_cpus=0)
class Async:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def add(self, x: int) -> int:
        await asyncio.sleep(0.001)
        assert asyncio.get_running_loop() is self.loop
        return x + 1

    async def hello(self) -> str:
        return "hello"


def chain(*steps: Any, method: str = "add") -> DAGNode:
    with InputNode() as x:
        node: Any = x
        for step in steps:
            node = getattr(step, method).bind(node)
    assert isinstance(node, DAGNode)
    return node


@pytest.fixture
def steps(shared_session: ModuleType) -> Iterator[list[Any]]:
    made = [Step.remote(10**power) for power in range(3)]
    yield made
    for handle in made:
        moray.kill(handle)


@pytest.fixture(autouse=True)
def _nothing_is_left(shared_session: ModuleType) -> Iterator[None]:
    """Channels, descriptors and threads of a graph go with it, though the session goes on."""
    yield
    gc.collect()  # Errors that a test caught hold its frames.

    def left() -> list[str]:
        return [name for name in map(_open_file, os.listdir("/proc/self/fd")) if "moray-channel" in name] + [
            thread.name for thread in threading.enumerate() if thread.name.startswith("moray-dag")
        ]

    wait_until(lambda: not left(), 5, "the end of channels and threads")


def _open_file(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""  # Closed meanwhile.


# --- results ----------------------------------------------------------------------------------------


def test_a_chain_and_ordinary_calls_after_it(steps: list[Any]) -> None:
    with chain(*steps).experimental_compile() as compiled:
        for x in range(50):
            ref = compiled.execute(x)
            assert isinstance(ref, CompiledDAGRef)
            assert ref.get() == x + 111
    assert compiled.is_teardown
    assert moray.get([step.count.remote() for step in steps]) == [50, 50, 50]
    with chain(*steps).experimental_compile() as again:
        assert again.execute(0).get() == 111  # type: ignore[union-attr]


def test_results_in_any_order_and_of_dropped_executions(steps: list[Any]) -> None:
    with chain(*steps).experimental_compile(_max_inflight_executions=200) as compiled:
        refs: list[Any] = [compiled.execute(x) for x in range(200)]
        refs[100:150] = [None] * 50
        for x in reversed(range(200)):
            if refs[x] is not None:
                assert refs[x].get() == x + 111
        with pytest.raises(ValueError, match="fetched already"):
            refs[0].get()


def test_many_inputs_many_outputs(steps: list[Any]) -> None:
    a, b, c = steps
    with InputNode() as inp:
        first = a.add.bind(inp[0])
        graph = MultiOutputNode([b.both.bind(first, inp.y, z=5), c.add.bind(first), first, first])
    with graph.experimental_compile() as compiled:
        for x in range(20):
            refs: Any = compiled.execute(x, y="y")
            assert [ref.get() for ref in refs] == [(x + 1, "y", 5), x + 101, x + 1, x + 1]


def test_two_steps_of_one_actor_and_back_again(steps: list[Any]) -> None:
    a, b, _ = steps
    with chain(a, a, b, a).experimental_compile() as compiled:
        assert [compiled.execute(x).get() for x in range(20)] == [x + 13 for x in range(20)]  # type: ignore[union-attr]


def test_several_values_of_a_step(steps: list[Any]) -> None:
    a, b, c = steps
    with InputNode() as x:
        left, right = a.pair.options(num_returns=2).bind(x)
        graph = MultiOutputNode([b.add.bind(left), c.add.bind(right)])
    with graph.experimental_compile() as compiled:
        refs: Any = compiled.execute(5)
        assert [ref.get() for ref in refs] == [15, 95]


def test_large_arrays_are_snapshots(steps: list[Any]) -> None:
    with chain(*steps).experimental_compile() as compiled:
        held: list[Any] = []
        for x in range(100):
            sent = np.full(30_000, x)
            ref: Any = compiled.execute(sent)
            sent[:] = -1
            held.append(ref.get())
        assert all((array == x + 111).all() for x, array in enumerate(held))
    assert all((array == x + 111).all() for x, array in enumerate(held))  # Also after the end.


def test_bound_values_and_references(steps: list[Any]) -> None:
    with InputNode() as x:
        graph = steps[0].both.bind(x, moray.put([1, 2]), z="z")
    with graph.experimental_compile() as compiled:
        ref: Any = compiled.execute(0)
        assert ref.get() == (0, [1, 2], "z")


def test_references_inside_values_stay_good(steps: list[Any]) -> None:
    with chain(*steps[:2], method="die").experimental_compile() as compiled:
        ref: Any = compiled.execute([moray.put("kept")])
        gc.collect()
        assert moray.get(ref.get()[0]) == "kept"


def test_async_actors_take_calls_meanwhile(shared_session: ModuleType) -> None:
    first, second = Async.remote(), Async.remote()
    with chain(first, second).experimental_compile() as compiled:
        assert [compiled.execute(x).get() for x in range(20)] == [x + 2 for x in range(20)]  # type: ignore[union-attr]
        assert moray.get(first.hello.remote()) == "hello"
    assert moray.get(second.hello.remote()) == "hello"


def test_asyncio(steps: list[Any]) -> None:
    async def main(compiled: CompiledDAG) -> None:
        async def one(x: int) -> None:
            future: Any = await compiled.execute_async(x)
            assert await future == x + 111

        await asyncio.gather(*(one(x) for x in range(100)))
        failing: Any = await compiled.execute_async("text")
        with pytest.raises(TypeError):
            await failing

    with chain(*steps).experimental_compile() as compiled:
        asyncio.run(main(compiled))


def test_futures_of_a_graph_that_ends_are_told(steps: list[Any]) -> None:
    async def main(compiled: CompiledDAG) -> list[Any]:
        futures: list[Any] = [await compiled.execute_async(0.3) for _ in range(3)]

        async def wait(future: Any) -> Any:
            return await future

        waiting = [asyncio.ensure_future(wait(future)) for future in futures[:2]]
        await asyncio.sleep(0)
        await asyncio.to_thread(compiled.teardown)
        return await asyncio.gather(*waiting, wait(futures[2]), return_exceptions=True)

    outcomes = asyncio.run(main(chain(steps[0], method="nap").experimental_compile()))
    assert all(isinstance(outcome, ChannelError) for outcome in outcomes[1:])


def test_several_threads(steps: list[Any]) -> None:
    errors: list[BaseException] = []

    def work(compiled: CompiledDAG, first: int) -> None:
        try:
            for x in range(first, first + 100):
                ref: Any = compiled.execute(x)
                assert ref.get() == x + 111
        except BaseException as error:
            errors.append(error)

    with chain(*steps).experimental_compile(_max_inflight_executions=2) as compiled:
        threads = [threading.Thread(target=work, args=(compiled, 1000 * n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
    assert errors == []


# --- errors -----------------------------------------------------------------------------------------


def test_an_error_is_the_result_and_the_pipeline_goes_on(steps: list[Any]) -> None:
    a, b, c = steps
    with InputNode() as x:
        graph = MultiOutputNode([c.add.bind(b.odd_only.bind(a.add.bind(x))), a.add.bind(x)])
    with graph.experimental_compile() as compiled:
        for x_value in range(6):
            refs: Any = compiled.execute(x_value)
            assert refs[1].get() == x_value + 1
            if x_value % 2:
                with pytest.raises(ZeroDivisionError, match="is even") as caught:
                    refs[0].get()
                assert isinstance(caught.value, TaskError)
                assert "Step.odd_only" in str(caught.value)
                assert "odd_only" in caught.value.traceback_str
            else:
                assert refs[0].get() == x_value + 101
    assert moray.get(c.count.remote()) == 3  # It was not called with errors.


def test_results_and_inputs_that_cannot_be_pickled(steps: list[Any]) -> None:
    with chain(steps[0], method="unpicklable").experimental_compile() as compiled:
        with pytest.raises(TypeError, match="input of a compiled graph"):
            compiled.execute(threading.Lock())
        with pytest.raises(TypeError, match=r"result of Step.unpicklable"):
            compiled.execute(1).get()  # type: ignore[union-attr]


def test_what_cannot_be_compiled(steps: list[Any]) -> None:
    a, b, _ = steps
    x = InputNode()
    function = moray.remote(abs)
    for graph, why in (
        (function.bind(x), "is a task"),
        (Step.bind().add.bind(x), "would make its actor anew"),
        (a.add.bind(1), "bound to no other step"),
        (a.add.bind([b.add.bind(x)]), "inside one of its arguments"),
        (MultiOutputNode([x]), "nothing to compile"),
        (MultiOutputNode([a.add.bind(x), x]), "cannot be a result"),
        (a.both.bind(x, InputNode()), "one InputNode"),
    ):
        with pytest.raises(ValueError, match=why):
            graph.experimental_compile()
    with pytest.raises(ValueError, match="at least 1"):
        a.add.bind(x).experimental_compile(_max_inflight_executions=0)
    with chain(a).experimental_compile(), pytest.raises(ValueError, match="loop of another compiled graph"):
        chain(b, a).experimental_compile()
    with chain(b).experimental_compile() as compiled:  # What failed has taken nothing.
        assert compiled.execute(1).get() == 11  # type: ignore[union-attr]


def test_timeouts_leave_the_result_to_be_fetched(steps: list[Any]) -> None:
    with chain(steps[0], method="nap").experimental_compile(
        _max_inflight_executions=2, _submit_timeout=0.1
    ) as compiled:
        refs: list[Any] = [compiled.execute(0.6), compiled.execute(0.0)]
        with pytest.raises(ChannelTimeoutError, match=r"no result within 0\.05 s"):
            refs[0].get(timeout=0.05)
        with pytest.raises(ChannelTimeoutError, match="2 executions are under way"):
            compiled.execute(0.0)  # It has asked for a result, so it waits.
        assert [ref.get() for ref in refs] == [0.6, 0.0]
        assert compiled.execute(0.0).get() == 0.0  # type: ignore[union-attr]


def test_too_many_executions_whose_results_nobody_asks_for(steps: list[Any]) -> None:
    with chain(*steps).experimental_compile(_max_inflight_executions=3) as compiled:
        refs: list[Any] = [compiled.execute(x) for x in range(3)]
        for _ in range(2):
            with pytest.raises(GraphCapacityExceededError, match=r"^3 executions .* _max_inflight_executions"):
                compiled.execute(3)
        assert refs[0].get() == 111
        refs.append(compiled.execute(3))
        with pytest.raises(GraphCapacityExceededError):
            compiled.execute(4)
        assert refs[3].get() == 114  # Those before it have come out with it.
        refs += [compiled.execute(x) for x in range(4, 7)]
        with pytest.raises(GraphCapacityExceededError):
            compiled.execute(7)
        assert [ref.get() for ref in refs[1:3] + refs[4:]] == [112, 113, 115, 116, 117]
        for _ in range(50):  # Those that were dropped are not in the way.
            compiled.execute(1)
        assert compiled.execute(2).get() == 113  # type: ignore[union-attr]


def test_threads_that_have_ended_are_not_taken_for_the_one_that_got_their_number(steps: list[Any]) -> None:
    def begin(compiled: CompiledDAG, count: int) -> None:
        refs.extend(cast("Any", compiled.execute(x)) for x in range(count))

    refs: list[Any] = []
    with chain(*steps).experimental_compile(_max_inflight_executions=2) as compiled:
        for count in (2, 1, 1):
            thread = threading.Thread(target=begin, args=(compiled, count))
            thread.start()
            thread.join()
        assert [ref.get() for ref in refs] == [111, 112, 111, 111]


def test_too_many_results_that_are_passed_over(steps: list[Any]) -> None:
    with chain(*steps).experimental_compile(_max_buffered_results=2) as compiled:
        refs: list[Any] = [compiled.execute(x) for x in range(4)]
        assert refs[1].get() == 112
        with pytest.raises(GraphCapacityExceededError, match=r"^2 executions before number 4 .* _max_buffered_results"):
            refs[3].get()
        assert [refs[x].get() for x in (0, 3, 2)] == [111, 114, 113]


def test_many_coroutines_wait_for_room_and_one_alone_does_not(steps: list[Any]) -> None:
    async def once(compiled: CompiledDAG, x: int) -> Any:
        return await cast("Any", await compiled.execute_async(x))

    async def main(compiled: CompiledDAG) -> None:
        assert await asyncio.gather(*(once(compiled, x) for x in range(30))) == [x + 111 for x in range(30)]
        futures: list[Any] = [await compiled.execute_async(x) for x in range(2)]
        with pytest.raises(GraphCapacityExceededError):
            await compiled.execute_async(2)
        assert [await future for future in futures] == [111, 112]

    with chain(*steps).experimental_compile(_max_inflight_executions=2) as compiled:
        asyncio.run(main(compiled))


def test_the_default_timeout_is_the_contexts(steps: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DAGContext.get_current(), "get_timeout", 0.05)
    with chain(steps[0], method="nap").experimental_compile() as compiled:
        ref: Any = compiled.execute(0.4)
        with pytest.raises(ChannelTimeoutError):
            ref.get()
        assert ref.get(timeout=-1) == 0.4


# --- ends -------------------------------------------------------------------------------------------


def test_teardown_ends_what_is_under_way(steps: list[Any]) -> None:
    compiled = chain(steps[0], method="nap").experimental_compile()
    refs: list[Any] = [compiled.execute(0.0), compiled.execute(0.3), compiled.execute(30.0)]
    assert refs[0].get() == 0.0
    got: list[BaseException] = []

    def wait() -> None:
        try:
            refs[2].get(timeout=-1)
        except MorayError as error:
            got.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    begin = time.monotonic()
    compiled.teardown()
    compiled.teardown()
    waiter.join(10)
    assert time.monotonic() - begin < 5  # The second step ended; the third never began.
    told = "the compiled graph was torn down; what was under way has no result. Channel closed."
    assert [str(error) for error in got] == [told]
    with pytest.raises(ChannelError, match="torn down"):
        compiled.execute(0.0)
    assert moray.get(steps[0].count.remote()) == 0


def test_a_step_that_does_not_end_is_warned_about(steps: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DAGContext.get_current(), "teardown_timeout", 0.1)
    compiled = chain(steps[0], method="nap").experimental_compile()
    ref: Any = compiled.execute(1.0)
    assert not ref._dag._pipeline._readers[0].wait(1, time.monotonic() + 0.2)  # It has begun.
    with pytest.warns(RuntimeWarning, match=r"still runs 0.1 s after teardown"):
        compiled.teardown()
    assert moray.get(steps[0].count.remote()) == 0


def test_a_graph_that_nobody_refers_to_ends(steps: list[Any]) -> None:
    compiled = chain(*steps).experimental_compile()
    ref: Any = compiled.execute(1)
    del compiled
    assert ref.get() == 112
    del ref
    gc.collect()
    assert moray.get(steps[2].count.remote(), timeout=10) == 1


def test_memory_goes_without_a_collection_of_garbage(steps: list[Any]) -> None:
    gc.collect()
    gc.disable()
    try:
        compiled = chain(*steps).experimental_compile()
        assert compiled.execute(1).get() == 112  # type: ignore[union-attr]
        compiled.teardown()
        del compiled
        assert not [fd for fd in os.listdir("/proc/self/fd") if "moray-channel" in _open_file(fd)]
        in_actor = moray.get(steps[0].__ray_call__.remote(lambda _self: list(map(os.readlink, _descriptors()))))
        assert not [name for name in in_actor if "moray-channel" in name]
    finally:
        gc.enable()


def _descriptors() -> list[str]:
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [name for name in names if os.path.lexists(name)]


def test_teardown_can_kill_the_actors(steps: list[Any]) -> None:
    compiled = chain(steps[0], method="nap").experimental_compile()
    compiled.execute(60.0)
    begin = time.monotonic()
    compiled.teardown(kill_actors=True)
    assert time.monotonic() - begin < 10
    with pytest.raises(ActorDiedError):
        moray.get(steps[0].count.remote())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_dead_actor_ends_waits_within_a_second(shared_session: ModuleType, which: int) -> None:
    steps = [Step.remote() for _ in range(3)]
    compiled = chain(*steps, method="die").experimental_compile()
    assert compiled.execute("x").get() == "x"  # type: ignore[union-attr]
    finished: Any = compiled.execute("y")
    wait_until(lambda: compiled._pipeline._readers[0].wait(2, time.monotonic() + 0.1), 5, "the second result")
    victim = _pid_of(steps[which])
    os.kill(victim, signal.SIGSTOP)  # What it should do is under way for certain.
    pending: Any = compiled.execute("z")
    begin = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        pending.get()
    assert time.monotonic() - begin < 1.5
    assert finished.get() == "y"  # What had come out is there.
    with pytest.raises(ActorDiedError):
        compiled.execute("again")
    compiled.teardown()
    others = [step for index, step in enumerate(steps) if index != which]
    assert len(set(moray.get([step.pid.remote() for step in others], timeout=10))) == 2


def _pid_of(handle: Any) -> int:
    """The process of an actor whose loop runs, so that it cannot be asked."""
    callee = handle._moray_callee
    assert callee.peer is not None
    return int(callee.peer.pid)


def test_an_actor_that_dies_in_a_step(shared_session: ModuleType) -> None:
    first, second = Step.remote(), Step.remote()
    compiled = chain(first, second, method="die").experimental_compile()
    ref: Any = compiled.execute("now")
    with pytest.raises(ActorDiedError):
        ref.get()
    compiled.teardown()
    assert moray.get(second.count.remote()) == 0


def test_exit_actor_in_a_step(shared_session: ModuleType) -> None:
    step = Step.remote()
    compiled = chain(step, method="leave").experimental_compile()
    with pytest.raises(ActorDiedError, match="exit_actor"):
        compiled.execute(1).get()  # type: ignore[union-attr]
    compiled.teardown()


def test_a_restarted_actor_does_not_go_on_with_the_loop(shared_session: ModuleType) -> None:
    step = Step.options(max_restarts=1, max_task_retries=-1).remote()
    compiled = chain(step, method="die").experimental_compile()
    with pytest.raises(MorayError):
        compiled.execute("now").get()  # type: ignore[union-attr]
    compiled.teardown()
    with chain(step, method="die").experimental_compile() as again:
        assert again.execute("x").get() == "x"  # type: ignore[union-attr]


def test_a_driver_that_is_killed_leaves_nothing() -> None:
    program = """
        import time, moray
        from moray.dag import InputNode
        @moray.remote
        class Step:
            def add(self, x):
                return x + 1
        moray.init(num_cpus=2)
        with InputNode() as x:
            graph = Step.remote().add.bind(Step.remote().add.bind(x))
        compiled = graph.experimental_compile()
        print("first", compiled.execute(1).get(), flush=True)
        while True:
            compiled.execute(1).get()
    """
    with spawn_driver(program) as driver:
        assert driver.wait_line("first") == "3"
        driver.send(signal.SIGKILL)
        driver.wait()
        wait_until(lambda: not processes_with("MORAY_TEST_DRIVER", driver.tag), END_GRACE_S + 3, "the end of all")


def test_a_detached_actor_is_free_again_when_the_driver_that_compiled_dies(shared_session: ModuleType) -> None:
    step = Step.options(name="kept", lifetime="detached", namespace="dag").remote(5)
    moray.get(step.pid.remote())
    program = """
        import moray, time
        from moray.dag import InputNode
        moray.init("auto", namespace="dag")
        with InputNode() as x:
            compiled = moray.get_actor("kept").add.bind(x).experimental_compile()
        print("got", compiled.execute(1).get(), flush=True)
        time.sleep(60)
    """
    session = {"MORAY_ADDRESS": moray.init(ignore_reinit_error=True).address_info["address"]}
    with spawn_driver(program.replace('"auto"', repr(session["MORAY_ADDRESS"]))) as driver:
        assert driver.wait_line("got") == "6"
        driver.send(signal.SIGKILL)
        driver.wait()
        assert moray.get(step.count.remote(), timeout=10) == 1
    moray.kill(step)


def test_what_is_begun_after_a_kill_is_not_answered(shared_session: ModuleType) -> None:
    """The word goes by way of the node, and the loop reads its channel until its process ends."""
    for _ in range(5):
        first, last = Step.remote(1), Step.remote(10)
        with chain(first, last).experimental_compile() as compiled:
            ref: Any = compiled.execute(1)
            assert ref.get() == 12
            moray.kill(last)
            with pytest.raises(moray.exceptions.ActorDiedError, match="is dead: killed by"):
                compiled.execute(2)
        moray.kill(first)
    with chain(Step.remote(1)).experimental_compile(_submit_timeout=0.0) as compiled:
        ref = compiled.execute(1)
        assert ref.get() == 2
        moray.kill(compiled._handles[0])
        # The second may be true by then.
        with pytest.raises((ChannelTimeoutError, ActorDiedError), match=r"was killed, and|is dead: killed by"):
            compiled.execute(2)
    with chain(Step.remote(1)).experimental_compile() as compiled:
        compiled.teardown(kill_actors=True)
        with pytest.raises(moray.exceptions.ChannelError, match="torn down"):
            compiled.execute(1)


@pytest.mark.slow
# Interrupted between the opening of a file and its `with`, Python closes it, and says so.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_interrupted_executions_lose_nothing(steps: list[Any]) -> None:
    """Ctrl-C anywhere in execute() and get(): the next executions are right."""
    interrupted = 0

    def on_signal(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    # Those of other libraries (hypothesis has one): an exception that comes there is nobody's.
    callbacks = gc.callbacks.copy()
    gc.callbacks.clear()
    previous = signal.signal(signal.SIGALRM, on_signal)
    try:
        with chain(*steps).experimental_compile() as compiled:
            end = time.monotonic() + 3
            x = 0
            while time.monotonic() < end or interrupted <= 50:  # A busy machine does little in three seconds.
                x += 1
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.000013 * (x % 97))
                    big = np.full(20_000 if x % 3 == 0 else 10, x)
                    ref: Any = compiled.execute(big)
                    assert (ref.get() == x + 111).all()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            for x in range(20):
                last: Any = compiled.execute(x)
                assert last.get() == x + 111
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        gc.callbacks.extend(callbacks)
