"""``ray.util.actor_group``: several equal actors that are called together. Ray advises against it, and so do we."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import moray

__all__ = ["ActorGroup", "ActorGroupMethod", "ActorWrapper"]


class ActorWrapper(NamedTuple):
    """One of the group."""

    actor: Any
    #: What its `get_actor_metadata` has returned; None if it has no such method.
    metadata: Any


class ActorGroupMethod:
    """A method of all of them."""

    def __init__(self, group: ActorGroup, name: str) -> None:
        self._group = group
        self._name = name

    def __call__(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuse."""
        raise TypeError(f"methods of an ActorGroup are called with .remote(): write group.{self._name}.remote(...)")

    def remote(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Call it on each; the references, in the order of the actors."""
        return [getattr(each.actor, self._name).remote(*args, **kwargs) for each in self._group.actors]


class ActorGroup:
    """Equal actors.

    Args:
        actor_cls: their plain class.
        num_actors: how many.
        num_cpus_per_actor: each one's CPUs.
        num_gpus_per_actor: each one's GPUs.
        resources_per_actor: each one's other resources.
        init_args: arguments of the constructor.
        init_kwargs: the same by name.
    """

    def __init__(
        self,
        actor_cls: type,
        num_actors: int = 1,
        num_cpus_per_actor: float = 1,
        num_gpus_per_actor: float = 0,
        resources_per_actor: Mapping[str, float] | None = None,
        init_args: Sequence[Any] = (),
        init_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        warnings.warn(
            "ActorGroup is deprecated; use ray.util.multiprocessing or ActorPool", DeprecationWarning, stacklevel=2
        )
        if num_actors <= 0:
            raise ValueError(f"num_actors={num_actors} must be positive")
        if num_cpus_per_actor < 0 or num_gpus_per_actor < 0:
            raise ValueError(f"{num_cpus_per_actor=} and {num_gpus_per_actor=}: give numbers of at least 0")
        self._count = num_actors
        self._class: Any = moray.remote(
            num_cpus=num_cpus_per_actor, num_gpus=num_gpus_per_actor, resources=dict(resources_per_actor or {})
        )(actor_cls)
        self._arguments = tuple(init_args), dict(init_kwargs or {})
        self._actors: list[ActorWrapper] = []
        self.start()

    def start(self) -> None:
        """Make the actors; RuntimeError if they are there."""
        if self._actors:
            raise RuntimeError("the actors of this group have been started already: call shutdown() first")
        self.add_actors(self._count)

    def add_actors(self, num_actors: int) -> None:
        """More of them."""
        args, kwargs = self._arguments
        made = [self._class.remote(*args, **kwargs) for _ in range(num_actors)]
        has_metadata = hasattr(self._class.__ray_actor_class__, "get_actor_metadata")
        metadata = (
            moray.get([each.get_actor_metadata.remote() for each in made]) if has_metadata else [None] * len(made)
        )
        self._actors += map(ActorWrapper, made, metadata)

    def remove_actors(self, actor_indexes: Sequence[int]) -> None:
        """End those with these indices."""
        gone = set(actor_indexes)
        self._actors = [each for index, each in enumerate(self._actors) if index not in gone]

    def shutdown(self, patience_s: float = 5) -> None:
        """End them: in peace if that takes no longer than `patience_s` seconds."""
        ends = [each.actor.__ray_terminate__.remote() for each in self._actors] if patience_s > 0 else []
        until = time.monotonic() + patience_s
        if ends:
            moray.wait(ends, num_returns=len(ends), timeout=max(0.0, until - time.monotonic()))
        for each in self._actors:
            moray.kill(each.actor)
        self._actors = []

    @property
    def actors(self) -> list[ActorWrapper]:
        """All of them; RuntimeError after :meth:`shutdown`."""
        if not self._actors:
            raise RuntimeError("the actors of this group are not there: call start()")
        return self._actors

    @property
    def actor_metadata(self) -> list[Any]:
        """What each one has said of itself."""
        return [each.metadata for each in self.actors]

    def __getattr__(self, name: str) -> ActorGroupMethod:
        if name.startswith("_") or not hasattr(self._class.__ray_actor_class__, name):
            raise AttributeError(f"the actors of this group have no method {name!r}")
        return ActorGroupMethod(self, name)

    def __len__(self) -> int:
        return len(self._actors)

    def __getitem__(self, index: int) -> ActorWrapper:
        return self.actors[index]
