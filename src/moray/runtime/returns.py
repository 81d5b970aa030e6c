"""What a task or call returned, as the values of its results: one, several, or those that a generator yields.

Each value is serialised, and stored if it is large, before a generator makes the next: it may change afterwards what it
has yielded (SNAPSHOT), and has never more than one of them in memory.

If a value cannot be made, or does not pickle, those before it count all the same (:class:`UnfinishedError`): only the
remaining results are the error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final

from moray import config, exceptions
from moray.protocol import messages as m
from moray.runtime.interrupts import base
from moray.runtime.values import unpicklable
from moray.serialization import Serialized, serialize

if TYPE_CHECKING:
    from moray.object_ref import ObjectRef
    from moray.runtime.values import Values
    from moray.runtime.work import Work

_NOTHING: Final[Any] = object()


class Returns:
    """The first values of a task's results, serialised, the large ones in the store."""

    __slots__ = ("blobs", "contained", "sizes")

    def __init__(self) -> None:
        #: Per value: its blob; None: in the store.
        self.blobs: list[bytes | None] = []
        #: Per value: its size in the store, or 0.
        self.sizes: list[int] = []
        #: Per value: the references in it.
        self.contained: list[list[ObjectRef[Any]]] = []

    def add(self, values: Values, work: Work, packed: Serialized) -> None:
        """The next value."""
        if packed.size <= config.INLINE_MAX_BYTES:
            self.blobs.append(packed.to_bytes())
            self.sizes.append(0)
        else:
            write_result(values, work, len(self.blobs), packed)
            self.blobs.append(None)
            self.sizes.append(packed.size)
        self.contained.append(packed.contained)

    def extra(self) -> m.ResultExtra:
        """How they travel."""
        ids = [[ref.binary() for ref in refs] for refs in self.contained] if any(self.contained) else []
        return m.ResultExtra(self.blobs, self.sizes if any(self.sizes) else [], ids)

    def references(self) -> list[ObjectRef[Any]]:
        """All references in them."""
        return [ref for refs in self.contained for ref in refs]


class UnfinishedError(Exception):
    """Some values of a task's results could be made; the others are an error. `final`: which is not retried."""

    def __init__(self, made: Returns, error: BaseException, final: bool) -> None:
        super().__init__(made, error, final)
        self.made = made
        self.error = error
        self.final = final


def write_result(values: Values, work: Work, index: int, packed: Serialized) -> None:
    """Store a result of a task at this node, and wait until the node knows it (STORE-SEAL)."""
    task = work.spec.seq.to_bytes(8, "big") + work.connection.peer.origin.tail
    values.write(task + index.to_bytes(4, "big"), packed, acknowledged=True)


def take_returns(values: Values, work: Work, value: Any, num_returns: int, name: str) -> Returns:
    """Make the results of what a task returned. The thread that runs it."""
    made = Returns()
    if num_returns == 1 and type(value) is not GeneratorType:
        _add(made, values, work, value, name, several=False)
        return made
    try:
        for each in iterate_returns(value, num_returns, name):
            _add(made, values, work, each, name, several=num_returns != 1)
            del each
    except (UnfinishedError, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if not made.blobs:
            raise
        raise UnfinishedError(made, error, final=False) from None
    return made


def _add(made: Returns, values: Values, work: Work, value: Any, name: str, several: bool) -> None:
    try:
        made.add(values, work, serialize(value))
    except Exception as error:  # noqa: BLE001 - pickling runs the user's code.
        shown: BaseException = error
        if not isinstance(error, exceptions.MorayError):
            what = f"item {len(made.blobs)} of the result" if several else "the result"
            shown = unpicklable(value, f"{what} of {name}()", error)
        raise UnfinishedError(made, shown, final=True) from None


@base
def iterate_returns(value: Any, num_returns: int, name: str) -> Iterator[Any]:
    """The values of a task with so many returns, as a generator makes them. ValueError if there are too few, or too
    many of what is no generator."""
    if type(value) is not GeneratorType:
        yield from [value] if num_returns == 1 else _listed(value, num_returns, name)
        return
    made = 0
    while made < num_returns:
        item = next(value, _NOTHING)
        if item is _NOTHING:
            raise ValueError(f"task {name}() has num_returns={num_returns}, but returned {made} values")
        made += 1
        yield item
        del item
    if not num_returns:
        return
    try:
        if next(value, _NOTHING) is _NOTHING:
            return
        value.close()
        said = "yielded more: what follows is left out"
    except Exception as error:  # noqa: BLE001 - all that was asked for is there.
        said = f"raised {type(error).__name__} after its last one: {error}"
    sys.stderr.write(f"task {name}() has num_returns={num_returns}, and {said}\n")


def _listed(value: Any, num_returns: int, name: str) -> list[Any]:
    if num_returns == 0:
        return []
    try:
        values = list(value)
    except TypeError:
        raise ValueError(
            f"task {name}() has num_returns={num_returns}, but returned a {type(value).__name__}, which is not iterable"
        ) from None
    if len(values) != num_returns:
        raise ValueError(f"task {name}() has num_returns={num_returns}, but returned {len(values)} values")
    return values
