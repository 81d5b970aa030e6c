"""Large values on their way into the node's store: find space, write, seal (STORE-SEAL)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moray import exceptions
from moray.protocol import messages as m
from moray.runtime.space import Place
from moray.serialization import Serialized

if TYPE_CHECKING:
    from moray.object_ref import Entry
    from moray.runtime.runtime import Runtime
    from moray.runtime.values import Values


class Writer:
    """Writes objects of one process. Any thread but the loop's."""

    def __init__(self, runtime: Runtime, values: Values) -> None:
        self._runtime = runtime
        self._values = values

    def write_own(self, entry: Entry, serialized: Serialized) -> None:
        """Write a new object of this process, of which nobody knows: the loop tells the node before anybody can."""
        space = self._values.space
        place = space.take(serialized.size)
        if place is None:
            self._values.write(entry.id, serialized)
            return
        # Interrupted anywhere here, the place goes back by itself.
        self._runtime.check_usable()
        self._values.store.write(place.offset, serialized)
        space.written(entry, serialized.size, place)

    def write(self, object_id: bytes, serialized: Serialized, acknowledged: bool = False) -> None:
        """Write and seal an object in the node's store; `acknowledged`: wait until the seal is known there
        (STORE-SEAL: needed before anybody else is told where it is, unless this process is its owner)."""
        place = self._values.space.take(serialized.size)
        if place is not None:
            # Interrupted anywhere here, the place goes back by itself.
            self._runtime.check_usable()
            self._values.store.write(place.offset, serialized)
            self._seal(object_id, serialized.size, place, acknowledged)
            return
        try:
            self._create(object_id, serialized)
            self._seal(object_id, serialized.size, None, acknowledged)
        except BaseException:
            self._runtime.node.send(m.AbortObject(object_id))  # If it was sealed, this changes nothing.
            raise

    def write_soon(
        self, object_id: bytes, serialized: Serialized, sealed: Callable[[BaseException | None], None]
    ) -> None:
        """Write an object, and have `sealed` called in the loop when the node knows it, or says why it does not."""
        place = self._values.space.take(serialized.size)
        if place is not None:
            self._runtime.check_usable()
            self._values.store.write(place.offset, serialized)
        else:
            try:
                self._create(object_id, serialized)
            except BaseException:
                self._runtime.node.send(m.AbortObject(object_id))
                raise
        ahead, ahead_size = self._values.space.wish(serialized.size)
        number = place.number if place is not None else 0
        runtime = self._runtime

        def seal(request: int) -> m.SealObject:
            return m.SealObject(request, object_id, number, serialized.size, ahead, ahead_size)

        def answered(answer: Any, again: bool = True) -> None:
            if isinstance(answer, m.StoreError) and answer.code == "exists" and again:
                runtime.node.send(m.FreeObjects([object_id]))  # As in `_create`.
                runtime.request(seal, lambda second: answered(second, False))
                return
            if place is not None:
                self._values.space.sealed(place)
            failed = store_error(answer, object_id) if isinstance(answer, m.StoreError) else None
            sealed(answer if isinstance(answer, BaseException) else failed)

        runtime.request(seal, answered)

    def _create(self, object_id: bytes, serialized: Serialized) -> None:
        """Ask for space for one object, and write it there."""
        runtime = self._runtime

        def undo(_answer: Any) -> None:
            # The loop may have sent the question after the caller, interrupted, gave the object up (INTERRUPT).
            runtime.node.send(m.AbortObject(object_id))

        # What is not needed any more makes room first.
        before = self._values.book_drops if runtime.events else None
        answer = runtime.ask(lambda number: m.CreateObject(number, object_id, serialized.size), undo, before)
        if isinstance(answer, m.StoreError) and answer.code == "exists":
            # An earlier attempt of this task died between its seal and its answer: this one takes its place.
            runtime.node.send(m.FreeObjects([object_id]))
            answer = runtime.ask(lambda number: m.CreateObject(number, object_id, serialized.size), undo)
        if isinstance(answer, m.StoreError):
            raise store_error(answer)
        self._values.store.write(answer.offset, serialized, answer.path)

    def _seal(self, object_id: bytes, size: int, place: Place | None, acknowledged: bool) -> None:
        """Tell the node that an object is complete, and, if it lies in a place, that it is there."""
        runtime = self._runtime
        ahead, ahead_size = self._values.space.wish(size)
        number = place.number if place is not None else 0
        if not acknowledged:
            runtime.node.send(m.SealObject(0, object_id, number, size, ahead, ahead_size))
        else:
            seal = lambda request: m.SealObject(request, object_id, number, size, ahead, ahead_size)  # noqa: E731
            answer = runtime.ask(seal)
            if isinstance(answer, m.StoreError) and answer.code == "exists":
                # As in `_create`; only here is it found out.
                runtime.node.send(m.FreeObjects([object_id]))
                answer = runtime.ask(seal)
            if isinstance(answer, m.StoreError):
                raise store_error(answer, object_id)
        if place is not None:
            self._values.space.sealed(place)


def store_error(answer: m.StoreError, object_id: bytes = b"") -> exceptions.MorayError:
    if answer.code == "full":
        return exceptions.ObjectStoreFullError(answer.detail)
    if answer.code == "disk":
        return exceptions.OutOfDiskError(answer.detail)
    return exceptions.ObjectLostError(f"object {object_id.hex()}: {answer.detail}")
