"""What makes a detached actor, without its creator: everything in one message, kept by the head (FUNCTIONS)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import msgspec

from moray.object_ref import ObjectRef
from moray.protocol import messages as m
from moray.runtime.unfetched import tell_watchers
from moray.serialization import serialize

if TYPE_CHECKING:
    from moray.runtime.runtime import Runtime


def make_self_contained(
    runtime: Runtime,
    spec: m.ActorSpec,
    creation: m.Creation,
    contained: list[ObjectRef[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """A detached actor may be made again when its creator is gone: all arguments go inline, whatever their size,
    and references inside them are kept for ever (FUNCTIONS)."""
    if runtime.nameless and spec.name and spec.namespace == runtime.welcome.namespace:
        _warn_of_namespace(runtime, spec.name)
    plain_args = [_fetched(runtime, value) for value in args]
    plain_kwargs = {name: _fetched(runtime, value) for name, value in kwargs.items()}
    if plain_args or plain_kwargs:
        try:
            serialized = serialize((tuple(plain_args), plain_kwargs))
        except Exception as error:  # Whatever the pickling of the user's values raises.
            from moray.runtime.values import unpicklable

            raise unpicklable((args, kwargs), f"the arguments of {spec.class_name}()", error) from error
        creation.payload = serialized.to_bytes()
        contained = contained + serialized.contained
    if contained:
        warnings.warn(
            f"detached actor {spec.class_name}: its class or arguments contain {len(contained)} references. As it may "
            "be made again at any time, these objects are kept until this process ends, and are lost then; "
            "pass values, or references as arguments of their own.",
            UserWarning,
            stacklevel=3,
        )
        for reference in contained:
            reference.__reduce__()  # Outside of any pickling of ours: pinned.
    spec.creation = msgspec.msgpack.encode(creation)


def _warn_of_namespace(runtime: Runtime, name: str) -> None:
    """Tell a driver's user, once, that nobody will find this detached actor."""
    runtime.nameless = False
    text = (
        f"the detached actor {name!r} is in this job's own namespace, {runtime.welcome.namespace!r}, which no other "
        "job looks into: give init(namespace=…), or the actor's option namespace"
    )
    tell_watchers("detached_actor_anonymous_namespace", text)
    runtime.call_soon(lambda: runtime.output.warn(text))


def _fetched(runtime: Runtime, value: Any) -> Any:
    return runtime.values.get_one(value, None) if type(value) is ObjectRef else value
