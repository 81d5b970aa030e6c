"""What is there for checkers changes nothing when the program runs."""

from __future__ import annotations

import pickle
from types import ModuleType
from typing import Any

import pytest

import moray
from moray.actor import ActorClass, ActorHandle, ActorProxy
from moray.remote_function import RemoteFunction


@moray.remote
class Counter(moray.actor.TypedActor):
    def __init__(self, start: int) -> None:
        self.value = start

    @moray.method
    def add(self, x: int) -> int:
        self.value += x
        return self.value

    @moray.method
    def twice(self, x: int) -> int:
        self.add(x)
        return self.add(x)

    @moray.method(num_returns=2)
    def both(self) -> tuple[int, int]:
        return self.value, -self.value


def test_typed_actors_are_ordinary_actors(shared_session: ModuleType) -> None:
    counter: Any = Counter.remote(moray.put(1))
    assert issubclass(type(counter), ActorHandle)
    assert moray.get(counter.twice.remote(2)) == 5
    assert moray.get(counter.both.remote()) == [5, -5]
    with pytest.raises(TypeError, match=r"\.remote\("):
        counter.add(1)


def test_remote_is_one_plain_method() -> None:
    """Hot paths: a decorator for checkers adds no call."""
    for kind in (RemoteFunction, ActorClass, moray.actor.ActorMethod):
        remote = vars(kind)["remote"]
        assert type(remote).__name__ == "function"
        assert (remote.__name__, remote.__module__) == ("remote", kind.__module__)
        assert remote.__doc__


def test_types_take_parameters_at_run_time() -> None:
    generic: list[Any] = [ActorClass, ActorHandle, ActorProxy]
    for kind in [each[int] for each in generic] + [RemoteFunction[[int], str]]:
        assert pickle.loads(pickle.dumps(kind)) == kind
