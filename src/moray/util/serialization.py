"""``register_serializer``: how objects of one's own classes are pickled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moray.serialization import reducers


def register_serializer(cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """Have instances of `cls` (not of its subclasses) pickled as ``serializer(instance)``.

    It holds for this process: call it also in tasks and actors that *send* such objects. Who reads them needs
    nothing, for the deserializer travels with each object. It goes before the class's own ``__reduce__``.

    Args:
        cls: the class.
        serializer: makes something that can be pickled from an instance.
        deserializer: makes an instance from that.

    Example:
        >>> import moray, threading
        >>> from moray.util import deregister_serializer, register_serializer
        >>> class Guarded:
        ...     def __init__(self, value):
        ...         self.value, self.lock = value, threading.Lock()
        >>> register_serializer(Guarded, serializer=lambda g: g.value, deserializer=lambda value: Guarded(value))
        >>> moray.get(moray.put(Guarded(5))).value
        5
        >>> deregister_serializer(Guarded)
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer() takes a class, not {cls!r:.80}")
    for name, function in (("serializer", serializer), ("deserializer", deserializer)):
        if not callable(function):
            raise TypeError(f"{name} must be callable, not {function!r:.80}")

    def reduce(value: Any) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return deserializer, (serializer(value),)

    reducers[cls] = reduce


def deregister_serializer(cls: type) -> None:
    """Undo :func:`register_serializer` in this process; nothing if there is none."""
    reducers.pop(cls, None)
