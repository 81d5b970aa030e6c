"""The head's tables of small things: values by key, and the log of events."""

from __future__ import annotations

import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.head.storage import Storage

_VALUES: Final = "values"
_EVENTS: Final = "events"
#: Events that are kept.
KEPT_EVENTS: Final = 10_000

_LENGTH: Final = struct.Struct(">I")


class Writes(Protocol):
    """Where changes are stored: :class:`~moray.head.commits.Commits`."""

    def write(self, table: str, key: bytes, value: bytes | None) -> None: ...


class Values:
    """Values by namespace and key. Kept in memory too, where they are read."""

    def __init__(self, commits: Writes) -> None:
        self._commits = commits
        self._spaces: dict[bytes, dict[bytes, bytes]] = {}

    def load(self, storage: Storage) -> None:
        """Go on where the last head was."""
        for row, value in storage.scan(_VALUES):
            end = _LENGTH.size + _LENGTH.unpack_from(row)[0]
            self._spaces.setdefault(row[_LENGTH.size : end], {})[row[end:]] = value

    def answer(self, asked: m.KvRequest) -> m.KvAnswer:
        """Carry a request out."""
        space = self._spaces.get(asked.namespace, {})
        known = asked.key in space
        match asked.op:
            case "get":
                return m.KvAnswer(asked.request, space.get(asked.key))
            case "exists":
                return m.KvAnswer(asked.request, count=int(known))
            case "list":
                return m.KvAnswer(asked.request, keys=sorted(key for key in space if key.startswith(asked.key)))
            case "put" | "put_new":
                if asked.op == "put" or not known:
                    self._set(asked.namespace, asked.key, asked.value)
                return m.KvAnswer(asked.request, count=int(not known))
            case "delete":
                if known:
                    self._set(asked.namespace, asked.key, None)
                return m.KvAnswer(asked.request, count=int(known))
            case _:
                # Of another version's client: there is nothing of the kind here.
                return m.KvAnswer(asked.request)

    def _set(self, namespace: bytes, key: bytes, value: bytes | None) -> None:
        space = self._spaces.setdefault(namespace, {})
        if value is None:
            del space[key]
            if not space:
                del self._spaces[namespace]
        else:
            space[key] = value
        self._commits.write(_VALUES, _LENGTH.pack(len(namespace)) + namespace + key, value)


class Events:
    """What has happened in the cluster, for people: the last :data:`KEPT_EVENTS`."""

    def __init__(self, commits: Writes) -> None:
        self._commits = commits
        self._events: deque[tuple[int, dict[str, Any]]] = deque()
        self._last = 0

    def load(self, storage: Storage) -> None:
        """Go on where the last head was."""
        self._events.extend(
            (int.from_bytes(key, "big"), msgspec.json.decode(text)) for key, text in storage.scan(_EVENTS)
        )
        if self._events:
            self._last = self._events[-1][0]

    def add(self, kind: str, text: str, **details: Any) -> None:
        """Note something; JSON-like details."""
        self._last += 1
        event = {"time": time.time(), "kind": kind, "text": text, **details}
        self._events.append((self._last, event))
        self._commits.write(_EVENTS, self._last.to_bytes(8, "big"), msgspec.json.encode(event))
        if len(self._events) > KEPT_EVENTS:
            number, _event = self._events.popleft()
            self._commits.write(_EVENTS, number.to_bytes(8, "big"), None)

    def latest(self, count: int) -> list[dict[str, Any]]:
        """The last ones, oldest first."""
        return [event for _number, event in list(self._events)[-count:]]
