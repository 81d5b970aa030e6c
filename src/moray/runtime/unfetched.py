"""Errors that nobody fetched are shown once: when the last reference goes, and nobody was given the error.

What counts as given: ``get``, ``await`` and futures; another process asked for the object; a task takes it as an
argument; another error was raised by a ``get`` of it and others. ``wait`` alone does not count.

The loop never unpickles (CALLBACKS): the thread of callbacks reads the error and makes its text. The driver prints it;
a worker's goes to its stderr, and so to the driver too.

Not shown: cancelled tasks, calls of an actor that the user killed, what the end of the session breaks, and attempts
that were retried.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from moray import config, exceptions

if TYPE_CHECKING:
    from moray.object_ref import Entry
    from moray.runtime.runtime import Runtime

#: Given each such error in place of whoever would print it, in the thread of callbacks; None: it is printed.
handler: Callable[[BaseException], None] | None = None

#: Told of each such error, of each worker that died, and more, by the kind ("task", "worker_died", …) and the text. Any
#: thread.
watchers: list[Callable[[str, str], None]] = []


def tell_watchers(kind: str, text: str) -> None:
    """Something went wrong that a program may want to know of although it asked for nothing."""
    for watcher in watchers:
        watcher(kind, text)


#: So many in so long are shown, others counted.
_MOST_SHOWN: Final = 20
_WINDOW_S: Final = 60.0


class Unfetched:
    """Of one process. `Runtime.unfetched`. Loop only, unless said otherwise."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: Task number → the entries that share its error, of tasks with several results.
        self._shared: dict[int, list[Entry]] = {}
        #: Shown in the present window, and not shown; when it began.
        self._shown = 0
        self._left_out = 0
        self._window = 0.0

    def share(self, entries: list[Entry]) -> None:
        """One error becomes all these results: it is shown if none of them is fetched."""
        if len(entries) > 1 and not _silent():
            self._shared[entries[0].key >> 32] = list(entries)

    def released(self, entry: Entry) -> None:
        """The last reference to an error of ours is gone."""
        if entry.origin is not self._runtime.origin:
            return
        if getattr(entry.task, "cancelled", False):
            entry.seen = True
        entries = self._shared.get(entry.key >> 32)
        if entries is not None:
            if entry.seen:
                for each in entries:
                    each.seen = True
            if entry in entries:
                entries.remove(entry)
            if entries:
                return
            del self._shared[entry.key >> 32]
        if not entry.seen and entry.blob is not None:
            self.show(entry.blob, contains_references=entry.contained is not None)

    def show(self, blob: bytes, contains_references: bool = False) -> None:
        """Nobody will fetch this error."""
        runtime = self._runtime
        if _silent() or runtime.closing or runtime.ended is not None:
            return
        now = monotonic()
        if now - self._window > _WINDOW_S:
            self._window, self._shown = now, 0
        if self._shown >= _MOST_SHOWN:
            if not self._left_out:
                runtime.reactor.call_later(max(0.0, self._window + _WINDOW_S - now), self._tell_count)
            self._left_out += 1
            return
        self._shown += 1
        if contains_references:
            # What would keep them alive while it is read is gone.
            self._post("it holds ObjectRefs, and can only be read by fetching it")
        else:
            runtime.values.callbacks.post(lambda: self._read(blob))

    def _tell_count(self) -> None:
        count, self._left_out = self._left_out, 0
        self._post(f"there were {count} more: at most {_MOST_SHOWN} are shown in a minute")

    def _post(self, text: str) -> None:
        self._runtime.values.callbacks.post(lambda: self._print(text))

    # --- the thread of callbacks -------------------------------------------------------------------------

    def _read(self, blob: bytes) -> None:
        from moray.runtime.values import load_error

        try:
            error = load_error(blob, None)
        except Exception as problem:  # noqa: BLE001 - unpickling runs the user's code.
            text = f"it cannot be read here: {type(problem).__name__}"
        else:
            if isinstance(error, (exceptions.TaskCancelledError, exceptions.LocalNodeDiedError)):
                return
            if handler is not None:
                handler(error)
                return
            text = _text(error)
            tell_watchers("task", text)
        self._print(text)

    def _print(self, text: str) -> None:
        runtime = self._runtime
        shown = f"an error that nobody fetched: {text}"
        if runtime.kind == "worker":
            sys.stderr.write(f"(moray) {shown}\n")
        elif not runtime.closing:
            runtime.call_soon(lambda: runtime.output.warn(shown))


def _silent() -> bool:
    """Asked at each error: a program may want it for a part of its run."""
    return config.env_bool("IGNORE_UNHANDLED_ERRORS", False)


def _text(error: BaseException) -> str:
    if isinstance(error, exceptions.TaskError):
        return str(error)
    return f"{type(error).__name__}: {error}"
