"""Calling actors: which methods there are, what they take and give, in which order they run."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from typing import Any

import numpy as np
import pytest

import moray
from moray.actor import ActorClass, ActorClassInheritanceException, ActorHandle, ActorMethod
from moray.exceptions import TaskError
from tests.support.procs import wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


class Base:
    """What is inherited."""

    limit = 7

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, x: int) -> int:
        self.value += x
        return self.value

    def hidden(self) -> str:
        return "base"


@moray.remote
class Counter(Base):
    """Counts."""

    def __init__(self, start: int = 0, *, step: int = 1) -> None:
        super().__init__(start)
        self.step = step
        self.seen: list[Any] = []

    def next(self) -> int:
        return self.add(self.step)

    def hidden(self) -> str:
        return f"child of {super().hidden()}"

    def _private(self, x: int) -> int:
        return -x

    def keep(self, *values: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return values, named

    def note(self, x: Any) -> None:
        self.seen.append(x)

    def all_seen(self) -> list[Any]:
        return self.seen

    def fail(self, text: str) -> None:
        raise KeyError(text)

    @staticmethod
    def twice(x: int) -> int:
        return 2 * x

    @classmethod
    def class_name(cls) -> str:
        return cls.__name__

    @property
    def doubled(self) -> int:
        return 2 * self.value

    minus = functools.partialmethod(_private, 4)

    def __call__(self, x: int) -> str:
        return f"called with {x}"

    def __len__(self) -> int:
        return self.value


# --- methods --------------------------------------------------------------------------------------


def test_an_actor_keeps_its_state() -> None:
    counter = Counter.remote(10)
    assert moray.get([counter.add.remote(5), counter.next.remote(), counter.add.remote(-16)]) == [15, 16, 0]


def test_constructor_takes_keywords_and_defaults() -> None:
    assert moray.get(Counter.remote(step=5).next.remote()) == 5
    assert moray.get(Counter.remote(start=1).next.remote()) == 2


def test_kinds_of_methods() -> None:
    counter = Counter.remote(3)
    calls = [
        (counter.hidden.remote(), "child of base"),
        (counter._private.remote(4), -4),
        (counter.twice.remote(4), 8),
        (counter.class_name.remote(), "Counter"),
        (counter.minus.remote(), -4),
        (counter.__call__.remote(9), "called with 9"),
        (counter.__len__.remote(), 3),
        (counter.keep.remote(1, 2, a=3, b=4), ((1, 2), {"a": 3, "b": 4})),
    ]
    for ref, value in calls:
        assert moray.get(ref) == value


def test_special_methods_do_not_change_the_handle() -> None:
    counter = Counter.remote(0)
    assert bool(counter), "its class has a __len__ that would say 0"
    with pytest.raises(TypeError):
        len(counter)  # type: ignore[arg-type]


def test_unknown_method_names_the_nearest() -> None:
    counter = Counter.remote()
    with pytest.raises(AttributeError, match=r"no method 'nxt'.*did you mean 'next'"):
        counter.nxt.remote()
    with pytest.raises(AttributeError, match=r"it has: .*add"):
        counter.completely_different.remote()
    assert not hasattr(counter, "__array__")


def test_properties_and_attributes_are_not_callable() -> None:
    counter = Counter.remote(4)
    with pytest.raises(AttributeError, match=r"'doubled' is a property.*__ray_call__"):
        _ = counter.doubled
    with pytest.raises(AttributeError, match="'limit' is a class attribute"):
        _ = counter.limit
    assert moray.get(counter.__ray_call__.remote(lambda self: self.doubled)) == 8
    assert Counter.limit == 7


def test_calling_without_remote_says_how() -> None:
    counter = Counter.remote()
    with pytest.raises(TypeError, match=r"\.remote\("):
        counter.add(1)  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"\.remote\("):
        counter(1)  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"Counter\.remote\("):
        Counter(1)
    with pytest.raises(AttributeError, match=r"handle\.add\.remote"):
        _ = Counter.add
    with pytest.raises(AttributeError):
        counter.add = 1  # type: ignore[attr-defined]
    assert Counter.__ray_actor_class__(3).add(1) == 4
    assert Counter.__ray_metadata__.modified_class is Counter.__ray_actor_class__


@pytest.mark.parametrize(
    ("args", "kwargs", "complaint"),
    [
        ((), {}, "missing a required argument: 'x'"),
        ((1, 2), {}, "too many positional"),
        ((1,), {"y": 2}, "unexpected keyword argument 'y'"),
        ((1,), {"x": 2}, "multiple values"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_at_once(args: tuple[Any, ...], kwargs: dict[str, Any], complaint: str) -> None:
    counter = Counter.remote()
    with pytest.raises(TypeError, match=rf"Counter\.add\(\): .*{complaint}"):
        counter.add.remote(*args, **kwargs)
    assert moray.get(counter.next.remote()) == 1


def test_wrong_constructor_arguments_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"Counter\(\): "):
        Counter.remote(1, 2)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"Counter\(\): .*steps"):
        Counter.remote(steps=2)  # type: ignore[call-overload]


def test_what_does_not_pickle_is_named() -> None:
    counter = Counter.remote()
    with pytest.raises(TypeError, match=r"argument 0 of Counter\.note\(\)"):
        counter.note.remote(threading.Lock())
    with pytest.raises(TypeError, match=r"argument 'step' of Counter\(\)"):
        Counter.remote(step=threading.Lock())  # type: ignore[call-overload]
    lock = threading.Lock()

    class Bad:
        def use(self) -> bool:
            return lock.locked()

    with pytest.raises(TypeError, match="the class Bad"):
        moray.remote(Bad).remote()


# --- arguments and results ------------------------------------------------------------------------


def test_arguments_of_every_size_and_kind() -> None:
    counter = Counter.remote()
    large = np.arange(1_000_000)
    values, named = moray.get(counter.keep.remote(moray.put(1), large, [moray.put(2)], a=moray.put(large), b="x"))
    assert values[0] == 1
    assert np.array_equal(values[1], large)
    assert isinstance(values[2][0], moray.ObjectRef)
    assert moray.get(values[2][0]) == 2
    assert np.array_equal(named["a"], large)
    assert named["b"] == "x"


def test_constructor_takes_references_and_large_values() -> None:
    @moray.remote
    def make() -> int:
        time.sleep(0.2)
        return 41

    @moray.remote
    class Holder:
        def __init__(self, number: int, array: Any, inside: list[Any]) -> None:
            self.number, self.array, self.inside = number, array, inside

        def sums(self) -> tuple[int, int, int]:
            return self.number + 1, int(self.array.sum()), moray.get(self.inside[0])

    holder = Holder.remote(make.remote(), np.ones(500_000, dtype=np.int64), [moray.put(5)])
    assert moray.get(holder.sums.remote()) == (42, 500_000, 5)


def test_an_actor_keeps_references_alive() -> None:
    counter = Counter.remote()
    moray.get(counter.note.remote([moray.put("kept")]))
    assert moray.get(counter.__ray_call__.remote(lambda self: moray.get(self.seen[0][0]))) == "kept"


def test_number_of_returns() -> None:
    @moray.remote
    class Many:
        @moray.method(num_returns=2)
        def pair(self) -> tuple[int, int]:
            return 1, 2

        @moray.method(num_returns=0)
        def nothing(self) -> None:
            self.called = True

        @moray.method
        def bare(self) -> bool:
            return self.called

        @moray.method(num_returns=3)  # type: ignore[arg-type]
        @staticmethod
        def three() -> tuple[int, ...]:
            return 1, 2, 3

    many = Many.remote()
    first, second = many.pair.remote()
    assert moray.get([first, second]) == [1, 2]
    assert moray.get(many.pair.options(num_returns=1).remote()) == (1, 2)
    assert many.nothing.remote() is None
    assert moray.get(many.bare.remote()) is True
    assert moray.get(list(many.three.remote())) == [1, 2, 3]
    assert len(many.bare.options(num_returns=2).remote()) == 2


def test_results_may_be_large_or_contain_references() -> None:
    counter = Counter.remote()
    array = moray.get(counter.__ray_call__.remote(lambda _self, n: np.zeros(n), 1_000_000))
    assert array.shape == (1_000_000,)
    inner = moray.get(counter.__ray_call__.remote(lambda _self: [moray.put("mine")]))[0]
    assert moray.get(inner) == "mine"


# --- generators -----------------------------------------------------------------------------------


@moray.remote
class Source:
    def items(self, n: int) -> Any:
        for i in range(n):
            yield i, os.getpid()

    def fail_after(self, n: int) -> Any:
        yield from range(n)
        raise LookupError("no more")

    @moray.method(num_returns=2)
    def two(self) -> Any:
        yield "a"
        yield "b"

    def listed(self) -> list[int]:
        return [1, 2, 3]


@moray.remote
class AsyncSource:
    async def items(self, n: int) -> Any:
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    async def one(self) -> int:
        return 1


def test_generator_methods_stream() -> None:
    source = Source.remote()
    values = [moray.get(ref) for ref in source.items.remote(100)]
    assert [i for i, _pid in values] == list(range(100))
    assert len({pid for _i, pid in values}) == 1
    found: list[int] = []
    with pytest.raises(LookupError, match="no more"):
        found.extend(moray.get(ref) for ref in source.fail_after.remote(3))
    assert found == [0, 1, 2]
    assert moray.get(list(source.two.remote())) == ["a", "b"]


def test_generator_methods_with_options() -> None:
    source = Source.remote()
    dynamic = moray.get(source.items.options(num_returns="dynamic").remote(5))
    assert [moray.get(ref)[0] for ref in dynamic] == list(range(5))
    narrow = source.items.options(_generator_backpressure_num_objects=2)
    assert [moray.get(ref)[0] for ref in narrow.remote(50)] == list(range(50))
    assert [moray.get(ref) for ref in source.listed.options(num_returns="streaming").remote()] == [1, 2, 3]


def test_async_generator_methods_stream_at_once() -> None:
    source = AsyncSource.remote()
    generators = [source.items.remote(30) for _ in range(5)]
    assert moray.get(source.one.remote()) == 1
    assert [[moray.get(ref) for ref in generator] for generator in generators] == [list(range(30))] * 5


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_calls_of_one_caller_run_in_order() -> None:
    counter = Counter.remote()
    refs = [counter.note.remote(i) for i in range(10_000)]
    moray.get(refs)
    assert moray.get(counter.all_seen.remote()) == list(range(10_000))


def test_a_call_that_waits_for_its_arguments_holds_back_later_ones() -> None:
    @moray.remote
    def late(i: int) -> int:
        time.sleep(0.3)
        return i

    counter = Counter.remote()
    for i in range(20):
        counter.note.remote(late.remote(i) if i % 10 == 3 else i)
    assert moray.get(counter.all_seen.remote(), timeout=30) == list(range(20))


def test_a_call_whose_argument_is_an_error_fails_alone() -> None:
    @moray.remote
    def broken() -> None:
        raise ValueError("no argument")

    counter = Counter.remote()
    first = counter.note.remote(1)
    failed = counter.note.remote(broken.remote())
    last = counter.note.remote(2)
    with pytest.raises(ValueError, match="no argument"):
        moray.get(failed)
    moray.get([first, last])
    assert moray.get(counter.all_seen.remote()) == [1, 2]


def test_callers_interleave_but_each_is_in_order() -> None:
    @moray.remote(num_cpus=0.5)
    def call(counter: Any, who: int) -> None:
        moray.get([counter.note.remote((who, i)) for i in range(300)])

    counter = Counter.remote()
    moray.get([call.remote(counter, who) for who in range(4)])
    seen = moray.get(counter.all_seen.remote())
    for who in range(4):
        assert [i for name, i in seen if name == who] == list(range(300))


def test_threads_of_one_process_call_the_same_actor() -> None:
    counter = Counter.remote()

    def call() -> None:
        moray.get([counter.add.remote(1) for _ in range(200)])

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert moray.get(counter.add.remote(0)) == 800


# --- errors ---------------------------------------------------------------------------------------


def test_an_error_of_a_method_is_of_both_types_and_leaves_the_actor_alive() -> None:
    counter = Counter.remote()
    with pytest.raises(KeyError) as caught:
        moray.get(counter.fail.remote("missing"))
    error: Any = caught.value
    assert isinstance(error, TaskError)
    assert error.function_name == "Counter.fail"
    assert error.actor_id == counter._actor_id.hex()
    assert error.pid == moray.get(counter.__ray_call__.remote(lambda _self: __import__("os").getpid()))
    assert "raise KeyError(text)" in str(error)
    assert "moray/runtime" not in str(error)
    assert moray.get(counter.next.remote()) == 1


def test_wrong_number_of_values_is_an_error() -> None:
    refs = Counter.remote().next.options(num_returns=2).remote()
    for ref in refs:
        with pytest.raises((ValueError, TypeError), match="num_returns=2"):
            moray.get(ref)


# --- classes --------------------------------------------------------------------------------------


def test_an_actor_class_cannot_be_subclassed() -> None:
    with pytest.raises(ActorClassInheritanceException, match=r"Counter is an actor class.*decorate the child"):

        class Child(Counter):
            pass


def test_a_plain_class_may_be_both_parent_and_actor() -> None:
    class Child(Base):
        def add(self, x: int) -> int:
            return super().add(2 * x)

    assert moray.get(moray.remote(Base).remote(1).add.remote(1)) == 2
    assert moray.get(moray.remote(Child).remote(1).add.remote(1)) == 3
    assert moray.get(moray.remote(num_cpus=0)(Child).remote(1).add.remote(1)) == 3


def test_actor_classes_are_values() -> None:
    @moray.remote
    def make(kind: Any, start: int) -> int:
        value: int = moray.get(kind.remote(start).next.remote())
        return value

    assert isinstance(Counter, ActorClass)
    assert moray.get(make.remote(Counter, 5)) == 6
    assert moray.get(make.remote(moray.get(moray.put([Counter]))[0].options(num_cpus=0), 6)) == 7


def test_a_class_may_name_itself_and_close_over_references() -> None:
    ref = moray.put(100)

    @moray.remote
    class Tree:
        def __init__(self, depth: int) -> None:
            self.child = Tree.remote(depth - 1) if depth else None

        def total(self) -> int:
            below: int = moray.get(self.child.total.remote()) if self.child is not None else 0
            return below + moray.get(ref)

    assert moray.get(Tree.remote(2).total.remote(), timeout=60) == 300


def test_a_class_of_the_main_module_and_local_ones_travel() -> None:
    def make(word: str) -> Any:
        @moray.remote
        class Local:
            def say(self) -> str:
                return word

        return Local

    assert moray.get([make("a").remote().say.remote(), make("b").remote().say.remote()]) == ["a", "b"]


def test_reserved_names_are_refused() -> None:
    class Bad:
        def _actor_ref(self) -> None: ...

    with pytest.raises(TypeError, match=r"Bad\._actor_ref"):
        moray.remote(Bad).remote()


def test_description_of_classes_handles_and_methods() -> None:
    counter = Counter.remote()
    assert "Counter" in repr(Counter)
    assert Counter.__doc__ == "Counts."
    assert repr(counter) == f"Actor(Counter, {counter._actor_id.hex()})"
    assert "Counter.add" in repr(counter.add)
    assert isinstance(counter, ActorHandle)
    assert isinstance(counter.add, ActorMethod)


# --- what every actor has ---------------------------------------------------------------------------


def test_ready_and_call() -> None:
    counter = Counter.remote(5)
    moray.get(counter.__ray_ready__.remote())
    assert moray.get(counter.__ray_call__.remote(lambda self, a, b=0: self.value + a + b, 1, b=2)) == 8
    with pytest.raises(TypeError, match="__ray_call__"):
        counter.__ray_call__.remote()


def test_context_inside_an_actor() -> None:
    @moray.remote
    class Me:
        def look(self) -> dict[str, Any]:
            context = moray.get_runtime_context()
            return {
                "actor": context.get_actor_id(),
                "id": context.actor_id,
                "name": context.get_actor_name(),
                "task": context.get_task_id(),
                "resources": context.get_assigned_resources(),
                "again": context.was_current_actor_reconstructed,
                "me": context.current_actor,
                "ids": context.get(),
            }

    me = Me.options(name="looker", num_cpus=0.5).remote()
    seen, later = moray.get([me.look.remote(), me.look.remote()])
    assert seen["actor"] == me._actor_id.hex()
    assert seen["id"] == me._actor_id
    assert seen["name"] == "looker"
    assert seen["task"] != later["task"]
    assert seen["resources"] == {"CPU": 0.5}
    assert seen["again"] is False
    assert seen["me"] == me
    assert seen["ids"]["actor_id"] == me._actor_id
    anonymous = moray.get(Counter.remote().__ray_call__.remote(lambda _: moray.get_runtime_context().get_actor_name()))
    assert not anonymous


def test_context_outside_of_actors() -> None:
    context = moray.get_runtime_context()
    assert context.get_actor_id() is None
    assert context.actor_id is None
    assert context.get_actor_name() is None
    with pytest.raises(RuntimeError, match="actor"):
        _ = context.current_actor
    with pytest.raises(RuntimeError, match="actor"):
        _ = context.was_current_actor_reconstructed
    assert context.get_runtime_env_string() == "{}"
    assert context.runtime_env == {}
    assert context.current_placement_group_id is None
    assert context.should_capture_child_tasks_in_placement_group is False
    assert isinstance(context.get_node_labels(), dict)


def test_an_actor_calls_itself_and_others() -> None:
    @moray.remote
    class Player:
        def __init__(self) -> None:
            self.hits = 0

        def hit(self, other: Any, left: int) -> None:
            self.hits += 1
            if left:
                other.hit.remote(moray.get_runtime_context().current_actor, left - 1)

        def count(self) -> int:
            return self.hits

    ping, pong = Player.remote(), Player.remote()
    ping.hit.remote(pong, 9)
    wait_until(lambda: moray.get([ping.count.remote(), pong.count.remote()]) == [5, 5], what="ten hits")


def test_the_context_knows_the_runtime_environment() -> None:
    @moray.remote
    def env() -> dict[str, Any]:
        return moray.get_runtime_context().runtime_env

    asked = {"env_vars": {"MORAY_TEST_CONTEXT": "1"}}
    assert moray.get(env.options(runtime_env=asked).remote()) == asked
    assert moray.get(env.remote()) == {}
