"""The driver's side of output: what arrives from workers, until it is printed.

The loop receives, leaves out what is not wanted, gathers repetitions (:mod:`~moray.runtime.output_dedup`), and
appends what is to be printed to :attr:`Prints.ready`. It never prints, because ``sys.stdout`` may be anybody's object.
The thread that is in ``get`` prints what is ready before it returns; what nobody fetches, a thread of its own prints a
moment later. A block leaves `ready` after it was written: an interrupted print (INTERRUPT) is done again, not lost.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from moray import config
from moray.protocol import messages as m
from moray.runtime.output_dedup import Block, Dedup
from moray.runtime.screen import DRAW_EVERY_S, Bar, screen

if TYPE_CHECKING:
    from moray.runtime.runtime import Runtime

#: How long lines may wait for a thread in `get` to print them.
PRINT_AFTER_S: Final = 0.05
#: The name of lines of the runtime itself.
RUNTIME: Final = "moray"
#: Dead processes that are remembered: what is still on its way from them makes no bar.
_DEAD_REMEMBERED: Final = 10_000


class PrintSettings(NamedTuple):
    """What the environment says of printing."""

    #: Repetitions are gathered.
    dedup: bool
    #: Lines that never are, as a regular expression.
    never: str
    #: Lines that are not printed, as a regular expression.
    skip: str
    #: Prefixes are coloured on terminals.
    colour: bool


def print_settings() -> PrintSettings:
    """The settings; ValueError naming the variable that is wrong."""
    colour = config.env_bool("COLOR_PREFIX", not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")
    wanted = config.env_bool("DEDUP_LOGS", True)
    patterns = []
    for name in ("DEDUP_LOGS_ALLOW_REGEX", "DEDUP_LOGS_SKIP_REGEX"):
        pattern = config.env_str(name)
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"the environment variable {config.env_name(name)}={pattern!r} should be a regular expression: {error}"
            ) from None
        patterns.append(pattern)
    return PrintSettings(wanted, patterns[0], patterns[1], colour)


class Prints:
    """What workers and the runtime have to say to the driver's user."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: To be printed; the loop adds, whoever prints takes.
        self.ready: deque[Block | Bar] = deque()
        #: What is being written now, under the screen's lock.
        self._writing: Block | Bar | None = None
        self._dedup: Dedup | None = None
        self._skip: re.Pattern[str] | None = None
        #: The timer for gathered repetitions is set.
        self._timed = False
        self._dead: dict[bytes, None] = {}
        self._printer: threading.Thread | None = None
        self._arrived = threading.Event()
        self._closed = False

    def configure(self) -> None:
        """Take the settings from the environment; before the loop turns."""
        settings = print_settings()
        variable = "RAY_DEDUP_LOGS" if "moray.compat.facade" in sys.modules else "MORAY_DEDUP_LOGS"
        self._dedup = Dedup(settings.never, f" ({variable}=0 prints every line)") if settings.dedup else None
        self._skip = re.compile(settings.skip) if settings.skip else None
        screen.colour = settings.colour

    # --- the loop ----------------------------------------------------------------------------------------

    def add(self, message: m.LogLines) -> None:
        """Lines have arrived."""
        block = Block(message.stream, message.name, message.pid, message.lines)
        if block.name == RUNTIME:
            self.ready.append(block)
        else:
            if self._skip is not None:
                found = self._skip.search
                block = block._replace(lines=[line for line in block.lines if not found(line)])
            if self._dedup is None:
                self.ready.append(block)
            else:
                self.ready.extend(self._dedup.feed(monotonic(), block))
                self._set_timer()
        self._announce()

    def update_bar(self, state: m.BarState) -> None:
        """A worker's bar has changed."""
        if self.is_dead(state.process):
            return
        prefix = f"({state.name} pid={state.pid}) "
        bar = Bar(
            state.process, state.bar, prefix, state.pid, state.desc, state.total, state.done, state.unit,
            state.position, state.elapsed_s,
        )  # fmt: skip
        if state.closed:
            self.end_bar(bar)
        else:
            screen.update(bar)
            self._announce()

    def end_bar(self, bar: Bar) -> None:
        """A bar is closed: its last state is to be printed."""
        screen.remove(bar)
        self.ready.append(bar)
        self._announce()

    def drop_bar(self, bar: Bar) -> None:
        """As :meth:`end_bar`, in any thread and in finalizers: steps that take no lock (DEL)."""
        screen.remove(bar)
        self.ready.append(bar)
        self._runtime.call_soon(self._announce)

    def process_died(self, process: bytes) -> None:
        """A process of the session is gone: so are its bars."""
        self._dead[process] = None
        if len(self._dead) > _DEAD_REMEMBERED:
            del self._dead[next(iter(self._dead))]
        screen.remove_process(process)
        if screen.changed:
            self._announce()

    def is_dead(self, process: bytes) -> bool:
        """Whether a process has died, as far as remembered: what it sent through others may still come in."""
        return process in self._dead

    def _set_timer(self) -> None:
        if self._dedup is not None and self._dedup.due is not None and not self._timed:
            self._timed = True
            self._runtime.reactor.call_later(max(0.0, self._dedup.due - monotonic()), self._expire)

    def _expire(self) -> None:
        self._timed = False
        if self._dedup is not None:
            self.ready.extend(self._dedup.expire(monotonic()))
            self._set_timer()
            self._announce()

    def _announce(self) -> None:
        """Have somebody print what is ready."""
        if self._printer is None and not self._closed:
            self._printer = threading.Thread(target=self._print_late, name="moray-output", daemon=True)
            self._printer.start()
        self._arrived.set()

    # --- printing: any thread but the loop's ------------------------------------------------------------------

    def _print_late(self) -> None:
        pause = threading.Event()
        while not self._closed:
            self._arrived.wait()
            self._arrived.clear()
            if not self._closed:
                pause.wait(PRINT_AFTER_S)
            self.drain()
            if screen.changed:
                pause.wait(DRAW_EVERY_S - PRINT_AFTER_S)
                screen.refresh()

    def drain(self) -> None:
        """Print what is ready."""
        if self.ready:
            screen.above(self._write_ready)

    def _write_ready(self) -> None:
        ready = self.ready
        while ready:
            block = ready[0]
            if block is not self._writing:  # Otherwise a signal handler interrupted its writing, which will go on.
                self._writing = block
                try:
                    _put(block)
                finally:
                    self._writing = None
            if ready and ready[0] is block:
                ready.popleft()

    def close(self) -> None:
        """Print what is left, repetitions too, and end the printing thread. The loop turns no more."""
        self._closed = True
        self._arrived.set()
        if self._printer is not None and self._printer is not threading.current_thread():
            self._printer.join(timeout=2)
        if self._dedup is not None:
            self.ready.extend(self._dedup.flush())
        self.drain()
        screen.remove_foreign()

    def warn(self, text: str) -> None:
        """Tell the driver's user something about the runtime itself. Loop only."""
        self.add(m.LogLines(RUNTIME, os.getpid(), "err", text.splitlines()))


def _put(block: Any) -> None:
    if isinstance(block, Bar):
        screen.put_last(block)
        return
    prefix = f"({RUNTIME}) " if block.name == RUNTIME else f"({block.name} pid={block.pid}) "
    screen.put(block.stream, prefix, block.pid, block.lines)
