"""What workers print, on its way to the driver's terminal.

A worker's file descriptors 1 and 2 are its log files, so nothing that is printed gets lost, by C code or
subprocesses either. :meth:`Output.pump` looks whether a file has grown and sends the new lines to the
driver; it runs before each sending of results, so that a line is at the driver before the result of the
task that printed it, and ``get`` prints what has arrived before it returns.

In the driver, lines are printed by the thread that is in ``get``, or else by a thread of its own a moment later;
never by the loop, because ``sys.stdout`` may be anybody's object.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from _thread import allocate_lock
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TextIO

from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Runtime

#: How long lines may wait for a thread in `get` to print them.
PRINT_AFTER_S: Final = 0.05
#: At most so much of a dead worker's unsent output is printed; the file has it all.
_LAST_WORDS: Final = 1 << 20
_CHUNK: Final = 1 << 20


class Stream:
    """One of a worker's two log files, as far as it has been sent."""

    __slots__ = ("_partial", "_read_fd", "_write_fd", "name", "offset")

    def __init__(self, name: str, write_fd: int, path: str) -> None:
        self.name = name
        self._write_fd = write_fd
        self._read_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.offset = 0
        self._partial = b""

    def new_lines(self) -> list[str]:
        """Complete lines that came since the last call."""
        if os.fstat(self._write_fd).st_size <= self.offset:
            return []
        data = os.pread(self._read_fd, _CHUNK, self.offset)
        self.offset += len(data)
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        return [line.decode(errors="replace") for line in lines]

    def has_more(self) -> bool:
        """Whether the last call left complete chunks unread."""
        return os.fstat(self._write_fd).st_size > self.offset

    def rest(self) -> list[str]:
        """The last, unfinished line."""
        partial, self._partial = self._partial, b""
        return [partial.decode(errors="replace")] if partial else []


class Output:
    """Both sides: a worker captures and sends, a driver receives and prints."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: Lines to print here; the loop adds.
        self.pending: deque[m.LogLines] = deque()
        self.to_driver = True
        self._streams: list[Stream] = []
        self._pump_lock = allocate_lock()
        self._print_lock = threading.RLock()
        self._printer: threading.Thread | None = None
        self._arrived = threading.Event()
        self._closed = False
        runtime.handlers[m.LogLines] = self._on_lines

    # --- a worker ------------------------------------------------------------------------------------

    def capture(self, log_paths: tuple[str, str]) -> None:
        """Start following this process's log files; descriptors 1 and 2 are those files already."""
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), errors="replace", write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), errors="replace", write_through=True)
        self._streams = [Stream("out", 1, log_paths[0]), Stream("err", 2, log_paths[1])]

    def pump(self, last: bool = False) -> None:
        """Send new lines toward the driver; with `last` also an unfinished one. Any thread."""
        with self._pump_lock:
            grown = False
            for stream in self._streams:
                while lines := stream.new_lines():
                    grown = True
                    self._send(m.LogLines(self._runtime.task_name(), os.getpid(), stream.name, lines))
                    if not stream.has_more():
                        break
                if last and (rest := stream.rest()):
                    grown = True
                    self._send(m.LogLines(self._runtime.task_name(), os.getpid(), stream.name, rest))
            if grown:
                self._runtime.output_sent(self._streams[0].offset, self._streams[1].offset)

    def _send(self, message: m.LogLines) -> None:
        """Pass lines on toward the driver: the way that the result will take, so that they come before it."""
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
        for name, offset in (("out", mark.out_bytes), ("err", mark.err_bytes)):
            try:
                with open(f"{self._runtime.session_dir}/logs/worker-{process.hex()[:8]}-{pid}.{name}", "rb") as file:
                    file.seek(offset)
                    lines = file.read(_LAST_WORDS).decode(errors="replace").splitlines()
            except OSError:
                continue
            if lines:
                self._on_lines(self._runtime.node, m.LogLines("worker", pid, name, lines))

    # --- the driver -------------------------------------------------------------------------------------

    def _on_lines(self, _connection: Connection, message: m.LogLines) -> None:
        if self._streams:
            self._send(message)  # This is a worker: its task submitted the one that printed.
            return
        if not self.to_driver and message.name != "moray":
            return
        self.pending.append(message)
        if self._printer is None and not self._closed:
            self._printer = threading.Thread(target=self._print_late, name="moray-output", daemon=True)
            self._printer.start()
        self._arrived.set()

    def warn(self, text: str) -> None:
        """Tell the driver's user something about the runtime itself. Loop only."""
        self._on_lines(self._runtime.node, m.LogLines("moray", os.getpid(), "err", text.splitlines()))

    def _print_late(self) -> None:
        while not self._closed:
            self._arrived.wait()
            self._arrived.clear()
            if not self._closed:
                threading.Event().wait(PRINT_AFTER_S)
            self.drain()

    def drain(self) -> None:
        """Print what has arrived. Not in the loop."""
        with self._print_lock:
            while self.pending:
                try:
                    message = self.pending.popleft()
                except IndexError:
                    return
                target = sys.stdout if message.stream == "out" else sys.stderr
                prefix = "(moray) " if message.name == "moray" else f"({message.name} pid={message.pid}) "
                _write(target, "".join(f"{prefix}{line}\n" for line in message.lines))

    def close(self) -> None:
        """Print what is left and end the printing thread."""
        self._closed = True
        self._arrived.set()
        if self._printer is not None and self._printer is not threading.current_thread():
            self._printer.join(timeout=2)
        self.drain()


def _write(target: TextIO | None, text: str) -> None:
    if target is None:
        return
    try:
        target.write(text)
        target.flush()
    except ValueError:
        pass  # The user closed sys.stdout; the log files have it all.


def void(_value: Any) -> None:
    """Turn an expression's value into None."""
