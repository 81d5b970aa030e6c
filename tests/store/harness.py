"""A node's loop around a store server, and what its processes do, in one test process."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from moray.protocol.messages import (
    AbortObject,
    CreateObject,
    FreeObjects,
    Message,
    ObjectCreated,
    ObjectPinned,
    PinObject,
    RecallSpace,
    SealObject,
    StoreDone,
    UnpinObjects,
)
from moray.store.client import StoreClient
from moray.store.server import StoreServer

DEADLINE_S = 20.0


class Loop:
    """The node: runs what is posted, keeps what is sent; `client` maps the arena as any process does."""

    def __init__(
        self, arena_bytes: int, directory: Path, spill_file_bytes: int = 1 << 20, targets: Sequence[str] = ()
    ) -> None:
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.replies: dict[tuple[bytes, int], Any] = {}
        self.warnings: list[str] = []
        self.directory = directory / "spilled"
        self.server = StoreServer(
            arena_bytes,
            str(self.directory),
            self._send,
            self.warnings.append,
            self.posted.put,
            spill_file_bytes,
            targets,
        )
        self.client = StoreClient(os.dup(self.server.fd), arena_bytes)
        self.requests = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()

    def _send(self, process: bytes, message: Message) -> None:
        if isinstance(message, RecallSpace):  # Its processes have told all that they have dropped.
            self.posted.put(lambda: self.server.handle(process, AbortObject(b"", [], message.recall)))
            return
        self.replies[process, message.request] = message  # type: ignore[attr-defined]

    def until(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            self.posted.get(timeout=end - time.monotonic())()

    def ask(self, process: bytes, message_type: Any, *fields: Any) -> Any:
        """Send a request and run the loop until it is answered."""
        self.requests += 1
        key = (process, self.requests)
        self.server.handle(process, message_type(self.requests, *fields))
        self.until(lambda: key in self.replies)
        return self.replies.pop(key)

    def put(self, process: bytes, name: bytes, data: bytes) -> None:
        created = self.ask(process, CreateObject, name, len(data))
        assert isinstance(created, ObjectCreated), created
        self.client.copy_into(self.client.view(created.offset, len(data), created.path), data)
        assert isinstance(self.ask(process, SealObject, name), StoreDone)

    def pin(self, process: bytes, name: bytes, on_unpin: Callable[[bytes], None] | None = None) -> memoryview:
        """What a get does: the view's end unpins."""
        pinned = self.ask(process, PinObject, name)
        assert isinstance(pinned, ObjectPinned), pinned
        ended = on_unpin or (lambda name: self.posted.put(lambda: self.unpin(process, name)))
        return self.client.reader(name, pinned.offset, pinned.size, pinned.path, ended)

    def unpin(self, process: bytes, name: bytes) -> None:
        self.server.handle(process, UnpinObjects([name]))

    def free(self, *names: bytes) -> None:
        self.server.handle(b"owner", FreeObjects(list(names)))

    def files(self) -> list[str]:
        return sorted(os.listdir(self.directory)) if self.directory.exists() else []

    def __getitem__(self, name: str) -> Any:
        return self.server.stats()[name]
