"""Small things that programs written for Ray rely on."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

import moray
from moray import config, exceptions
from tests.support.procs import run_driver, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@moray.remote
def add(a: int, b: int = 0) -> int:
    return a + b


@moray.remote
def consume(_value: Any) -> str:
    return "consumed"


# --- calls in one step -------------------------------------------------------------------------------


def test_remote_with_options_in_one_step() -> None:
    assert moray.get(add._remote([1], {"b": 2}, num_cpus=0)) == 3
    assert add._remote(args=[1], num_returns=0) is None
    assert add.options(num_cpus=0)._default_options == {"num_cpus": 0}

    @moray.remote
    class Pair:
        def __init__(self, first: int, second: int = 0) -> None:
            self.pair = first, second

        def both(self, *more: int) -> tuple[int, ...]:
            return *self.pair, *more

    pair: Any = Pair._remote(args=[1], kwargs={"second": 2}, num_cpus=0)  # type: ignore[attr-defined]
    assert moray.get(pair.both._remote([3], num_returns=3)) == [1, 2, 3]


def test_what_belongs_to_the_function_or_class_is_no_option_of_a_call() -> None:
    with pytest.raises(ValueError, match=r"max_calls belongs to the function.* not to \.options\(\)"):
        add.options(max_calls=1)

    @moray.remote
    class Actor:
        pass

    with pytest.raises(ValueError, match=r"concurrency_groups belong to the class.* not to \.options\(\)"):
        Actor.options(concurrency_groups={"io": 1})


# --- arguments that are errors -----------------------------------------------------------------------


def test_a_task_whose_argument_is_an_error_fails_with_a_task_error_that_is_this_error_too() -> None:
    @moray.remote
    class Actor:
        def end(self) -> None:
            os._exit(1)

        def take(self, _value: Any) -> None: ...

    dead = Actor.remote().end.remote()
    with pytest.raises(exceptions.ActorDiedError) as plain:
        moray.get(dead)
    assert not isinstance(plain.value, exceptions.TaskError)
    for call in (consume.remote(dead), Actor.remote().take.remote(dead), consume.remote(consume.remote(dead))):
        with pytest.raises(exceptions.TaskError) as caught:
            moray.get(call)
        assert isinstance(caught.value, exceptions.ActorDiedError)
        assert "an argument could not be computed" in str(caught.value)
        assert isinstance(caught.value.cause, exceptions.ActorDiedError)


def test_errors_of_tasks_and_cancels_pass_on_as_they_are() -> None:
    @moray.remote
    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        moray.get(consume.remote(fail.remote()))
    assert "task fail failed" in str(caught.value)
    assert "ValueError)" in repr(caught.value) or "ValueError('mine')" in repr(caught.value)

    @moray.remote(num_cpus=1000, infeasible="wait")
    def never() -> None: ...

    waiting = never.remote()
    taken = consume.remote(waiting)
    moray.cancel(waiting)
    with pytest.raises(exceptions.TaskCancelledError):
        moray.get(taken)


def test_the_name_of_an_errors_type_says_what_was_raised_where_the_class_is_local() -> None:
    class LocalError(Exception):
        pass

    @moray.remote
    def fail() -> None:
        raise LocalError("x")

    with pytest.raises(LocalError) as caught:
        moray.get(fail.remote())
    assert repr(caught.value) == "TaskError(LocalError)('x')"


# --- generators --------------------------------------------------------------------------------------


@moray.remote
def yields(count: int, size: int, fails: bool = False) -> Iterator[bytes]:
    for number in range(count):
        yield bytes([number]) * size
    if fails:
        raise ValueError("at the end")


@pytest.mark.parametrize("size", [1, 300_000])
def test_generators_with_a_fixed_number_of_results(size: int) -> None:
    more = yields.options(num_returns=2).remote(5, size)
    assert [value[:1] for value in moray.get(more)] == [b"\0", b"\1"]
    assert moray.get(yields.options(num_returns=1).remote(1, size))[:1] == b"\0"  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="num_returns=3, but returned 2 values"):
        moray.get(yields.options(num_returns=3).remote(2, size))


def test_an_actors_generator_with_one_result() -> None:
    @moray.remote
    class Actor:
        def items(self) -> Iterator[int]:
            yield from (7, 8)

    assert moray.get(Actor.remote().items.options(num_returns=1).remote()) == 7


@pytest.mark.parametrize("size", [1, 300_000])
def test_a_dynamic_generator_that_raises_gives_what_it_made_and_then_the_error(size: int) -> None:
    *made, last = moray.get(yields.options(num_returns="dynamic").remote(2, size, fails=True))
    assert [moray.get(ref)[:1] for ref in made] == [b"\0", b"\1"]
    with pytest.raises(ValueError, match="at the end"):
        moray.get(last)
    (only,) = moray.get(yields.options(num_returns="dynamic").remote(0, size, fails=True))
    with pytest.raises(ValueError, match="at the end"):
        moray.get(only)


def test_a_dynamic_generator_that_is_cancelled_or_dies_is_an_error_as_a_whole() -> None:
    @moray.remote(max_retries=0)
    def dies() -> Iterator[int]:
        yield 1
        os._exit(3)

    with pytest.raises(exceptions.WorkerCrashedError):
        moray.get(dies.options(num_returns="dynamic").remote())

    @moray.remote
    def hangs() -> Iterator[int]:
        yield 1
        threading.Event().wait()

    ref = hangs.options(num_returns="dynamic").remote()
    moray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        moray.get(ref)


def test_get_of_a_generator_is_the_generator() -> None:
    generator = yields.remote(2, 1)
    assert moray.get(generator) is generator  # type: ignore[call-overload]
    assert [moray.get(ref) for ref in generator] == [b"\0", b"\1"]
    assert moray.get(generator._generator_ref) is None


# --- references --------------------------------------------------------------------------------------


def test_callbacks_of_references_get_the_value_or_the_error() -> None:
    @moray.remote
    def fail() -> None:
        raise KeyError("no")

    got: list[Any] = []
    add.remote(2, 3)._on_completed(got.append)
    wait_until(lambda: got == [5])
    fail.remote()._on_completed(got.append)
    wait_until(lambda: len(got) == 2)
    assert isinstance(got[1], KeyError)
    assert isinstance(got[1], exceptions.TaskError)


def test_a_reference_from_its_bytes() -> None:
    ref = moray.put("value")
    moray.get(consume.remote([ref]))  # From now on its id means something to others.
    assert moray.ObjectRef(ref.binary()) is ref
    with pytest.raises(TypeError, match="not made by hand"):
        moray.ObjectRef()


def test_a_get_of_what_is_there_starts_no_processes() -> None:
    refs = [moray.put(bytes(200_000)) for _ in range(5)]

    @moray.remote
    def read(refs: list[Any]) -> int:
        usual, config.ANSWER_S = config.ANSWER_S, 30.0  # type: ignore[misc] # However slow this machine is.
        moray.get(refs)
        config.ANSWER_S = usual  # type: ignore[misc]
        return os.getpid()

    assert len(set(moray.get([read.remote(refs) for _ in range(40)]))) <= 2


def test_a_get_of_what_is_not_there_lends_the_cpus() -> None:
    @moray.remote
    class Gate:
        def __init__(self) -> None:
            self.open = asyncio.Event()

        async def wait(self) -> int:
            await self.open.wait()
            return 1

        async def lift(self) -> None:
            self.open.set()

    gate = Gate.options(num_cpus=0).remote()
    opened = gate.wait.remote()

    @moray.remote
    def waits(refs: list[Any]) -> int:
        return int(moray.get(refs[0]) + moray.get(refs)[0])

    waiting = [waits.remote([opened]) for _ in range(4)]  # More than there are CPUs.
    assert moray.get(add.remote(1), timeout=30) == 1
    moray.get(gate.lift.remote())
    assert moray.get(waiting) == [2] * 4


# --- sessions ----------------------------------------------------------------------------------------


def test_unknown_arguments_of_init_are_errors_of_both_kinds() -> None:
    for kind in (TypeError, RuntimeError):
        with pytest.raises(kind, match="logginglevel"):
            moray.init("localhost", logginglevel="x")


def test_what_init_gives_and_takes() -> None:
    code = """
    import os, moray
    os.environ["RAY_TMPDIR"] = os.path.abspath("mine")
    context = moray.init(num_cpus=1, object_store_memory=50e6)
    print("session_dir" in context, "nothing" in context, context.get("nothing", 5))
    store = moray.cluster_resources()["object_store_memory"]
    print(context["session_dir"].startswith(os.path.abspath("mine")), store // 1e6)
    ref = moray.put([1])
    moray.shutdown()
    moray.init(num_cpus=1)
    f = moray.remote(print)
    for use in (
        lambda: moray.get(ref),
        lambda: moray.put([ref]),
        lambda: f.remote([ref]),
        lambda: f.remote(ref),
        lambda: f.remote(end=ref),
    ):
        try:
            use()
        except ValueError as error:
            assert isinstance(error, moray.exceptions.ObjectLostError)
            print("has ended" in str(error))
    """
    assert run_driver(code).stdout.splitlines() == ["True False 5", "True 50.0", *["True"] * 5]


@pytest.mark.parametrize("name", ["CPU", "GPU", "memory", "object_store_memory"])
def test_resources_that_every_node_has_are_not_custom_ones(name: str) -> None:
    code = f"""
    import moray
    for kind in (ValueError, AssertionError):
        try:
            moray.init(resources={{{name!r}: 1}})
        except kind as error:
            print("not a custom resource" in str(error))
    """
    assert run_driver(code).stdout.splitlines() == ["True", "True"]


def test_a_detached_actor_that_nobody_will_find_is_told_of_once() -> None:
    code = """
    import moray, os
    moray.init(num_cpus=1, namespace=os.environ.get("GIVEN"))
    @moray.remote(num_cpus=0)
    class Actor:
        def ping(self): return 1
    for options in ({"name": "a"}, {"name": "b"}, {"name": "c", "namespace": "ours"}, {}):
        moray.get(Actor.options(lifetime="detached", **options).remote().ping.remote())
    """
    warning = "(moray) the detached actor 'a' is in this job's own namespace"
    told = run_driver(code).stderr
    assert (told.count("detached actor"), warning in told) == (1, True)
    assert "detached actor" not in run_driver(code, env={"GIVEN": "ours too"}).stderr


@pytest.mark.parametrize(("setting", "kind"), [(0, ValueError), ("10", TypeError), (1.5, TypeError)])
def test_what_is_wrong_in_the_config_of_an_environment(setting: object, kind: type[Exception]) -> None:
    environment = {"config": {"setup_timeout_seconds": setting}}
    with pytest.raises(kind, match="setup_timeout_seconds"):
        add.options(runtime_env=environment).remote(1)
    code = f"import moray; moray.init(runtime_env={environment!r})"
    assert f"{kind.__name__}: setup_timeout_seconds" in run_driver(code, check=False).stderr
    good = {"config": {"setup_timeout_seconds": -1}}
    assert moray.get(add.options(runtime_env=good).remote(1)) == 1


def test_code_carries_modules_that_are_called_like_functions() -> None:
    module: Any = import_module("moray.util.placement_group")

    def made() -> bool:
        return bool(module([{"CPU": 1}]).wait(30))

    assert moray.get(moray.remote(num_cpus=0)(made).remote())


@pytest.mark.parametrize(("visible", "ids"), [("5,3", [5, 3]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])])
@pytest.mark.parametrize("local", [False, True])
def test_gpus_are_those_that_were_visible_where_the_session_began(visible: str, ids: list[Any], local: bool) -> None:
    code = f"""
    import os, moray
    moray.init(num_cpus=2, local_mode={local})
    @moray.remote(num_gpus=1)
    class Actor:
        def look(self):
            named = moray.get_runtime_context().get_accelerator_ids()["GPU"]
            assert named == [str(gpu) for gpu in moray.get_gpu_ids()]
            return moray.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]
    actors = [Actor.remote() for _ in range(2)]
    for gpus, seen in sorted(moray.get([actor.look.remote() for actor in actors]), reverse=True):
        print(gpus, seen)
    """
    lines = run_driver(code, env={"CUDA_VISIBLE_DEVICES": visible}).stdout.splitlines()
    if local:  # One after the other, in this process: all get the same.
        assert lines == [f"[{ids[0]!r}] {visible}"] * 2
    else:
        assert sorted(lines) == sorted(f"[{gpu!r}] {gpu}" for gpu in ids)
