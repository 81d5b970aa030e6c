"""Packages on their way from other nodes.

A package is read in parts: whoever wants it asks for them one after the other, with a few questions under way, so
that neither side keeps more than that and control messages, which share the nodes' link, wait for little. The side that
has it remembers nothing. The bytes are written, hashed and named in the node's packing thread, in the order in which
they came; a package has its name only when it is whole, and its content is what the name says.

The first node asked is that of the process that made the package. If it is dead, or has it no more, others may have it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, Final

from moray.launch import packages
from moray.node.logs import log
from moray.protocol import messages as m

#: Of one answer, and how many are under way: a megabyte keeps a fast network busy, and holds a slow one up for as long
#: as ten large results would.
CHUNK_BYTES: Final = 1 << 18
_WINDOW: Final = 4

#: Does the first in the packing thread, then the second in the loop with its result, or with what went wrong.
Run = Callable[[Callable[[], Any], Callable[[Any, str], None]], None]
#: Gets "", or why there is none.
OnFetched = Callable[[str], None]


class _Sink:
    """The file that a package becomes. Touched by the packing thread alone."""

    def __init__(self, folder: str, name: str, number: int) -> None:
        import hashlib

        self._path = f"{folder}/.{number}.part"
        self._name = name
        self._fd = -1
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def finish(self) -> str:
        os.close(self._fd)
        self._fd = -1
        if self._hash.hexdigest() != self._name:
            os.unlink(self._path)
            raise packages.PackageError(f"the package {self._name[:12]} arrived with another content")
        return self._path

    def abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            os.unlink(self._path)


class _Fetch:
    """One package, from the node that is asked now."""

    def __init__(self, name: str, job: int, sources: Iterable[bytes]) -> None:
        self.name = name
        self.job = job
        #: Nodes that have not been asked yet.
        self.sources = deque(sources)
        self.waiting: list[OnFetched] = []
        self.reasons: list[str] = []
        self.begin(b"", 0, "")

    def begin(self, node: bytes, number: int, folder: str) -> None:
        self.node = node
        self.number = number
        self.sink = _Sink(folder, self.name, number)
        #: -1: not known yet.
        self.size = -1
        #: Bytes that were asked for, have arrived, and are written.
        self.asked = self.arrived = self.written = 0


class Fetches:
    """All packages that are on their way here. Owned by the node's loop.

    Args:
        folder: where they go.
        run: see :data:`Run`.
        send: a message to another node; False: it is not in the cluster (any more).
        others: tags of all other nodes.
        on_whole: gets the name and the path of a package that is here, to move it; before those who wait are told.
    """

    def __init__(
        self,
        folder: str,
        run: Run,
        send: Callable[[bytes, m.Message], bool],
        others: Callable[[], list[bytes]],
        on_whole: Callable[[str, str], None],
    ) -> None:
        self._folder = folder
        self._run = run
        self._send = send
        self._others = others
        self._on_whole = on_whole
        self._numbers = count(1)
        self._by_name: dict[str, _Fetch] = {}
        self._by_number: dict[int, _Fetch] = {}

    def want(self, name: str, job: int, source: bytes, on_fetched: OnFetched) -> None:
        """Get a package; those who want the same one wait for the same one."""
        fetch = self._by_name.get(name)
        if fetch is not None:
            fetch.waiting.append(on_fetched)
            return
        others = [tag for tag in self._others() if tag != source]
        fetch = self._by_name[name] = _Fetch(name, job, [source, *others])
        fetch.waiting.append(on_fetched)
        self._ask_next(fetch)

    def node_died(self, tag: bytes) -> None:
        """It sends nothing more."""
        for fetch in list(self._by_number.values()):
            if fetch.node == tag:
                self._failed(fetch, f"node {tag.hex()} died while it sent it")

    def on_chunk(self, tag: bytes, chunk: m.PackageChunk) -> None:
        """An answer."""
        fetch = self._by_number.get(chunk.request)
        if fetch is None or fetch.node != tag:
            return  # Of a question that was given up.
        if chunk.reason:
            self._failed(fetch, chunk.reason)
            return
        known = fetch.size < 0 or chunk.size == fetch.size
        wanted = min(CHUNK_BYTES, chunk.size - fetch.arrived)
        if not known or chunk.offset != fetch.arrived or len(chunk.data) != wanted or not wanted:
            self._failed(fetch, f"node {tag.hex()} sent something else than it was asked for")
            return
        fetch.size = chunk.size
        fetch.arrived += wanted
        number, sink, data = fetch.number, fetch.sink, chunk.data
        self._run(lambda: sink.write(data), lambda _none, reason: self._on_written(number, wanted, reason))

    def _on_written(self, number: int, size: int, reason: str) -> None:
        fetch = self._by_number.get(number)
        if fetch is None:
            return
        if reason:
            self._failed(fetch, reason)
            return
        fetch.written += size
        if fetch.written == fetch.size:
            del self._by_number[number]  # Its node's death means nothing to it any more.
            self._run(fetch.sink.finish, lambda path, reason: self._on_finished(fetch, path, reason))
        else:
            self._ask(fetch)

    def _on_finished(self, fetch: _Fetch, path: str | None, reason: str) -> None:
        if path is None:
            fetch.reasons.append(reason)
            self._ask_next(fetch)
        else:
            log(f"package {fetch.name[:12]} ({fetch.size} bytes) came from node {fetch.node.hex()}")
            self._on_whole(fetch.name, path)
            self._done(fetch, "")

    def _ask(self, fetch: _Fetch) -> None:
        """Keep some questions under way."""
        if fetch.size < 0:
            fetch.asked = CHUNK_BYTES
            self._send(fetch.node, m.GetPackage(fetch.number, fetch.job, fetch.name, 0))
            return
        while fetch.asked < fetch.size and fetch.asked - fetch.written < _WINDOW * CHUNK_BYTES:
            self._send(fetch.node, m.GetPackage(fetch.number, fetch.job, fetch.name, fetch.asked))
            fetch.asked += CHUNK_BYTES

    def _ask_next(self, fetch: _Fetch) -> None:
        while fetch.sources:
            node, number = fetch.sources.popleft(), next(self._numbers)
            fetch.begin(node, number, self._folder)
            if self._send(node, m.GetPackage(number, fetch.job, fetch.name, 0)):
                fetch.asked = CHUNK_BYTES
                self._by_number[number] = fetch
                return
            fetch.reasons.append(f"node {node.hex()} is not in the cluster any more")
        # What the maker's node said says most.
        self._done(fetch, fetch.reasons[0])

    def _failed(self, fetch: _Fetch, reason: str) -> None:
        del self._by_number[fetch.number]
        self._run(fetch.sink.abandon, lambda _none, _reason: None)
        fetch.reasons.append(reason)
        self._ask_next(fetch)

    def _done(self, fetch: _Fetch, reason: str) -> None:
        del self._by_name[fetch.name]
        for on_fetched in fetch.waiting:
            on_fetched(reason)
