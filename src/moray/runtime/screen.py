"""The terminal of a process: ordinary output above, progress bars below it.

Bars are drawn on stderr with the cursor left at the first of them, so erasing is "from the cursor down" and needs to
remember nothing: an ordinary print of the program's own, which knows nothing of bars, costs at most a remnant of a bar
on its own line. Whatever goes through :meth:`Screen.above` does not even cost that: bars are erased, the text is
written, bars are drawn again, in one hold of the lock.

Where stderr is no terminal, a bar is a line every :data:`LINE_EVERY_S` at most, and one when it is closed.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
from collections.abc import Callable
from math import isfinite
from time import monotonic
from typing import Any, Final, NamedTuple, TextIO
from unicodedata import category, east_asian_width

#: Bars are drawn again at most so often for their own sake.
DRAW_EVERY_S: Final = 0.1
#: A bar's lines on what is no terminal are at least so far apart.
LINE_EVERY_S: Final = 5.0
#: Columns of the bar itself, at most and at least.
_BAR_COLUMNS: Final = (40, 6)
#: Columns and rows of a terminal that does not say.
_SIZE: Final = (80, 24)
#: SGR codes that can be told apart on light and dark backgrounds: a worker's is chosen by its pid.
_PALETTE: Final = (36, 35, 32, 33, 34, 96, 95, 92, 93, 94)
_ERASE: Final = "\r\x1b[J"
_BLOCKS: Final = " ▏▎▍▌▋▊▉█"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class Bar(NamedTuple):
    """One progress bar, as it was at some moment."""

    #: The process that has it; b"" for this one.
    process: bytes
    #: Its number there.
    number: int
    #: "(name pid=…) ", or "" for a bar of this process.
    prefix: str
    pid: int
    desc: str
    #: None: unknown.
    total: float | None
    done: float
    unit: str
    position: int
    elapsed_s: float


class Screen:
    """Where this process prints. Any thread; bars may be changed by any one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew: also in a child made by fork, where another thread may have held the lock (FORK)."""
        self.lock = threading.RLock()
        #: (process, number) → bar, in the order in which they appeared.
        self.bars: dict[tuple[bytes, int], Bar] = {}
        #: Bars have changed since they were last drawn.
        self.changed = False
        #: Prefixes are coloured on terminals.
        self.colour = True
        self._hidden = 0
        #: How many :meth:`above` are entered.
        self._depth = 0
        #: Where bars are drawn now; None: nowhere.
        self._drawn_on: TextIO | None = None
        self._drawn_at = 0.0
        #: Bar → when it last had a line on what is no terminal.
        self._lines_at: dict[tuple[bytes, int], float] = {}

    # --- text ------------------------------------------------------------------------------------

    def above(self, write: Callable[[], None]) -> None:
        """Call `write`, which may write what it likes: it stands above the bars."""
        with self.lock:
            self._depth += 1
            try:
                if self._depth == 1:
                    self._erase()
                write()
            finally:
                self._depth -= 1
                if self._depth == 0 and self.bars:
                    self._draw()

    def put(self, stream: str, prefix: str, pid: int, lines: list[str]) -> None:
        """Write lines of a worker, each with its prefix."""
        target = sys.stdout if stream == "out" else sys.stderr
        if target is None:
            return
        if prefix and self.colour and _is_terminal(target):
            prefix = f"\x1b[{_PALETTE[pid % len(_PALETTE)]}m{prefix.rstrip()}\x1b[0m "
        text = "".join(f"{prefix}{line}\n" for line in lines)
        self.above(lambda: _write(target, text))

    # --- bars --------------------------------------------------------------------------------------

    def update(self, bar: Bar) -> None:
        """A bar is new or has changed."""
        self.bars[bar.process, bar.number] = bar
        self.changed = True

    def remove(self, bar: Bar) -> None:
        """A bar has ended."""
        self.bars.pop((bar.process, bar.number), None)
        self.changed = True

    def put_last(self, bar: Bar) -> None:
        """What a bar came to, as a line that stays."""
        target = sys.stderr
        if target is not None:
            width = _size(target)[0] if _is_terminal(target) else _SIZE[0]
            self.put("err", bar.prefix, bar.pid, [render(bar, width - len(bar.prefix), _encodes(target))])

    def remove_process(self, process: bytes) -> None:
        """A process has died, and its bars with it."""
        for key in list(self.bars):
            if key[0] == process:
                self.bars.pop(key, None)
                self.changed = True

    def remove_foreign(self) -> None:
        """The session has ended, and the bars of other processes with it."""
        for process in {key[0] for key in list(self.bars)} - {b""}:
            self.remove_process(process)
        self.refresh()

    def refresh(self, limit_s: float = 0.0) -> None:
        """Draw the bars if they changed and were last drawn `limit_s` ago or longer."""
        if not self.changed or monotonic() - self._drawn_at < limit_s:
            return
        with self.lock:
            if self._depth == 0:
                self._erase()
                self._draw()

    def clear(self) -> None:
        """The process ends: no bar stays behind."""
        self.bars.clear()
        with self.lock:
            self._erase()

    def hide(self) -> None:
        """No bars until :meth:`unhide`; calls nest."""
        with self.lock:
            self._hidden += 1
            self._erase()

    def unhide(self) -> None:
        """Undo one :meth:`hide`."""
        with self.lock:
            self._hidden = max(0, self._hidden - 1)
            self.changed = True
            self.refresh()

    def _erase(self) -> None:
        target, self._drawn_on = self._drawn_on, None
        if target is not None:
            _write(target, _ERASE)

    def _draw(self) -> None:
        self.changed = False
        self._drawn_at = monotonic()
        target = sys.stderr
        if self._hidden or target is None:
            return
        bars = sorted(self.bars.values(), key=lambda bar: bar.position)
        if not _is_terminal(target):
            self._write_lines(target, bars)
            return
        if not bars:
            return
        columns, rows = _size(target)
        shown = bars[: max(1, rows - 2)]
        lines = []
        for bar in shown:
            text = render(bar, columns - 1 - len(bar.prefix), _encodes(target))
            code = _PALETTE[bar.pid % len(_PALETTE)]
            prefix = f"\x1b[{code}m{bar.prefix}\x1b[0m" if bar.prefix and self.colour else bar.prefix
            lines.append(prefix + text)
        if len(shown) < len(bars):
            lines.append(f"… and {len(bars) - len(shown)} bars more"[: columns - 1])
        self._drawn_on = target
        _write(target, _ERASE + "\n".join(lines) + "\r" + (f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""))

    def _write_lines(self, target: TextIO, bars: list[Bar]) -> None:
        now = monotonic()
        self._lines_at = {key: self._lines_at.get(key, now) for key in ((bar.process, bar.number) for bar in bars)}
        for bar in bars:
            if now - self._lines_at[bar.process, bar.number] >= LINE_EVERY_S:
                self._lines_at[bar.process, bar.number] = now
                _write(target, f"{bar.prefix}{render(bar, _SIZE[0] - len(bar.prefix), _encodes(target))}\n")


#: The screen of this process.
screen: Final = Screen()
os.register_at_fork(after_in_child=screen.reset)
atexit.register(screen.clear)


# --- how a bar looks ----------------------------------------------------------------------------------


def render(bar: Bar, columns: int, blocks: bool = True) -> str:
    """A bar as one line of at most so many columns."""
    desc = _CONTROL.sub(" ", bar.desc)
    unit = _CONTROL.sub(" ", bar.unit)
    head = f"{desc}: " if desc else ""
    rate = bar.done / bar.elapsed_s if bar.elapsed_s > 0 and bar.done > 0 else 0.0
    speed = f"{_number(rate)}{'' if unit.startswith(' ') else ' '}{unit}/s" if rate else f"? {unit}/s"
    if not bar.total or not 0 < bar.total < float("inf") or not isfinite(bar.done):
        return _cut(f"{head}{_number(bar.done)} {unit} [{_clock(bar.elapsed_s)}, {speed}]", columns)
    share = min(1.0, max(0.0, bar.done / bar.total))
    left = _clock((bar.total - bar.done) / rate) if rate and bar.total >= bar.done else "?"
    head = f"{head}{share:4.0%} "
    tail = f" {_number(bar.done)}/{_number(bar.total)} [{_clock(bar.elapsed_s)}<{left}, {speed}]"
    room = min(_BAR_COLUMNS[0], columns - _columns(head) - _columns(tail) - 2)
    graph = f"|{_graph(share, room, blocks)}|" if room >= _BAR_COLUMNS[1] else ""
    return _cut(f"{head}{graph}{tail}", columns)


def _graph(share: float, room: int, blocks: bool) -> str:
    if not blocks:
        return ("#" * int(share * room)).ljust(room)
    eighths = int(share * room * 8)
    full = "█" * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")
    return full.ljust(room)


def _number(value: float) -> str:
    if not isfinite(value):
        return "?"
    if abs(value) >= 1e6 or value == int(value):
        return f"{value:.0f}" if abs(value) < 1e6 else f"{value:.3g}"
    return f"{value:.2f}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute:02}:{second:02}"


def _columns(text: str) -> int:
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if character.isascii():
        return 1
    if category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def _cut(text: str, columns: int) -> str:
    used = 0
    for index, character in enumerate(text):
        used += _width(character)
        if used > columns:
            return text[:index]
    return text


# --- streams --------------------------------------------------------------------------------------------


def _write(target: Any, text: str) -> None:
    try:
        try:
            target.write(text)
        except UnicodeEncodeError:
            encoding = target.encoding or "ascii"
            target.write(text.encode(encoding, "backslashreplace").decode(encoding))
        target.flush()
    except (ValueError, OSError):
        pass  # The user closed it, or nobody reads any more; the log files have it all.


def _is_terminal(target: Any) -> bool:
    try:
        return bool(target.isatty())
    except (AttributeError, ValueError):
        return False  # It is the user's own object, or closed.


def _size(target: Any) -> tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(target.fileno())
    except (AttributeError, ValueError, OSError):
        return _SIZE
    return columns or _SIZE[0], rows or _SIZE[1]


def _encodes(target: Any) -> bool:
    """Whether the stream can write the characters of a smooth bar."""
    try:
        _BLOCKS.encode(getattr(target, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
