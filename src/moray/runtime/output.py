"""What workers print, on its way to the driver's terminal.

A worker's file descriptors 1 and 2 are its log files (:mod:`~moray.runtime.log_files`), so nothing that is printed
gets lost, by C code or subprocesses either. :meth:`Output.pump` looks whether a file has grown and sends the new lines
to the driver; it runs before each sending of results, so that a line is at the driver before the result of the
task that printed it, and ``get`` prints what has arrived before it returns. An idle worker looks twice a second,
for what its children and threads print.

A progress bar's state goes the same way, after the lines that were printed before it. The driver's side is
:mod:`~moray.runtime.output_prints`.
"""

from __future__ import annotations

import io
import os
import sys
from _thread import RLock
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TextIO

from moray.protocol import messages as m
from moray.runtime import job_logging
from moray.runtime.log_files import LogStream, Send, rotation_settings, unsent
from moray.runtime.output_prints import RUNTIME, Prints

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Runtime
    from moray.runtime.screen import Bar

#: How often the loop of a worker looks, beside the looks before results.
IDLE_LOOK_S: Final = 0.5


class Output:
    """Both sides: a worker captures and sends, a driver receives and prints."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._prints = Prints(runtime)
        #: What is to be printed here; the loop adds.
        self.pending = self._prints.ready
        #: Workers' output is wanted at the driver's.
        self.to_driver = True
        self._streams: list[LogStream] = []
        #: This worker's sys.stdout and sys.stderr, as they were at its start.
        self._texts: tuple[TextIO, ...] = ()
        #: Stream → what sends lines of it.
        self._senders: dict[str, Send] = {"out": self._sender("out"), "err": self._sender("err")}
        #: Bars that nobody can close any more, each closed by its last state.
        self._dropped: deque[m.BarState] = deque()
        #: In a driver: how far (process, stream) has arrived.
        self._received: dict[tuple[bytes, str], int] = {}
        self.pump_lock = RLock()
        self._looked_at = 0.0
        #: The loop has been asked to rotate the files.
        self._rotating = False
        runtime.handlers[m.LogLines] = self._on_lines
        runtime.handlers[m.BarState] = self._on_bar

    # --- a worker ------------------------------------------------------------------------------------

    def capture(self, log_paths: tuple[str, str]) -> None:
        """Start following this process's log files; descriptors 1 and 2 are those files already."""
        sys.stdout, sys.stderr = self._texts = _text(1), _text(2)
        self.to_driver = job_logging.configure_worker()
        settings = rotation_settings()
        self._streams = [
            LogStream("out", 1, log_paths[0], *settings),
            LogStream("err", 2, log_paths[1], *settings),
        ]
        self._runtime.reactor.hooks.append(self._look)

    def pump(self, last: bool = False) -> None:
        """Send new lines toward the driver; with `last` also an unfinished one. Any thread."""
        if self.pump_lock._is_owned():  # type: ignore[attr-defined]
            return  # A signal's handler came in the middle of this.
        with self.pump_lock:
            grown = False
            for text in self._texts:
                _flush(text)
            for stream in self._streams:
                if stream.pump(self._senders[stream.name], last):
                    grown = True
            if grown:
                self._runtime.output_sent(*(stream.position() for stream in self._streams))
                if not self._rotating and any(stream.is_full() for stream in self._streams):
                    self._rotating = True
                    self._runtime.call_soon(self._rotate)
            while self._dropped:
                state = self._dropped.popleft()
                if self.to_driver:
                    self._send(state)

    def _look(self) -> None:
        """Once a turn. Loop only."""
        now = monotonic()
        if now - self._looked_at > IDLE_LOOK_S:
            self._looked_at = now
            self.pump()

    def _rotate(self) -> None:
        """Loop only: nothing interrupts it halfway."""
        with self.pump_lock:
            self._rotating = False
            for index, stream in enumerate(self._streams):

                def mark(position: int, index: int = index) -> None:
                    positions = [each.position() for each in self._streams]
                    positions[index] = position
                    self._runtime.output_sent(*positions)

                stream.rotate(self._senders[stream.name], mark)

    def send_bar(self, state: m.BarState) -> None:
        """Tell the driver of a progress bar of this worker, after what was printed before. Any thread."""
        if self.to_driver:
            self.pump()
            self._send(state)

    def drop_state(self, state: m.BarState) -> None:
        """A bar of this worker was dropped: it is closed, before the results that follow. Any thread, and finalizers
        (DEL): it only appends, and the next look sends it."""
        self._dropped.append(state)

    def label(self) -> str:
        """What stands before this worker's output: the name of its actor or task."""
        actor = job_logging.running_actor(self._runtime)
        if actor is None:
            return self._runtime.task_name()
        # A host that has asked the instance for its repr, in the instance's own thread, says so by its `label`.
        return getattr(actor, "label", "") or str(actor.creation.class_name)

    def _sender(self, stream: str) -> Send:
        process, pid = self._runtime.process, os.getpid()

        def send(lines: list[str], position: int) -> None:
            if self.to_driver:
                self._send(m.LogLines(self.label(), pid, stream, lines, process, position))

        return send

    def _send(self, message: m.LogLines | m.BarState) -> None:
        """Pass it on toward the driver: the way that the result will take, so that it comes before it."""
        runtime = self._runtime
        target = runtime.log_target()
        if target is not None:
            target.send(message)
            return
        process, pid, address = runtime.welcome.driver
        if process:
            runtime.call_soon(lambda: void(runtime.send(runtime.peer(process, address, pid), message)))

    def worker_died(self, process: bytes, pid: int, mark: Any) -> None:
        """In the driver: print what a dead worker had not sent. Loop only."""
        if self._streams:
            return
        if self.to_driver:
            for name, position in (("out", mark.out_bytes), ("err", mark.err_bytes)):
                path = f"{self._runtime.session_dir}/logs/worker-{process.hex()[:8]}-{pid}.{name}"
                if lines := unsent(path, max(position, self._received.pop((process, name), 0))):
                    self._prints.add(m.LogLines("worker", pid, name, lines))
        self._prints.process_died(process)

    # --- the driver -------------------------------------------------------------------------------------

    def configure(self, to_driver: bool) -> None:
        """Whether and how to print what workers print; before the loop turns."""
        self.to_driver = to_driver
        self._prints.configure()

    def _on_lines(self, _connection: Connection, message: m.LogLines) -> None:
        if self._streams:
            self._send(message)  # This is a worker: its task submitted the one that printed.
        elif self.to_driver or message.name == RUNTIME:
            if message.position and not self._prints.is_dead(message.process):
                key = (message.process, message.stream)
                self._received[key] = max(message.position, self._received.get(key, 0))
            self._prints.add(message)

    def _on_bar(self, _connection: Connection, message: m.BarState) -> None:
        if self._streams:
            self._send(message)
        elif self.to_driver:
            self._prints.update_bar(message)

    def drop_bar(self, bar: Bar) -> None:
        """A bar of this driver's own was dropped. Any thread, finalizers included (DEL)."""
        self._prints.drop_bar(bar)

    def warn(self, text: str) -> None:
        """Tell the driver's user something about the runtime itself. Loop only."""
        if self._streams:
            self._send(m.LogLines(RUNTIME, os.getpid(), "err", text.splitlines()))
        else:
            self._prints.warn(text)

    def drain(self) -> None:
        """Print what has arrived. Not in the loop."""
        self._prints.drain()

    def close(self) -> None:
        """Print what is left and end the printing thread."""
        self._prints.close()


def _text(fd: int) -> TextIO:
    """A line is one write, which lines of subprocesses cannot tear. There is no lock that a fork could find held."""
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(
        raw,  # A file takes it all at once: a buffer would add only its lock.
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def _flush(text: TextIO) -> None:
    try:
        text.flush()
    except (OSError, ValueError):
        pass  # The disk is full, or user code has closed it: its own prints say so.


def void(_value: Any) -> None:
    """Turn an expression's value into None."""
