"""Which of the workers' lines are printed now, and which are counted and printed as one a little later.

A line that equals, up to numbers, one that *another* worker printed less than :data:`WINDOW_S` ago is a repetition. The
first is printed at once; repetitions are counted, and when the window of the first ends, the last of them is
printed with their number. So everything is printed or counted: the lines printed as they are, plus the numbers of
the others, are as many as came in. Lines of one worker alone are never repetitions of each other, and neither are lines
without a letter (all numbers are alike up to numbers) nor very long ones (data, not messages).

Pure: time is an input, and so are the settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

#: How long repetitions of a line are gathered: a person who watches does not mind, and a thousand lines become one.
WINDOW_S: Final = 5.0
#: Lines of more characters are never gathered: their keys would take memory.
LONGEST: Final = 1_000
#: Lines that are remembered at a time; the oldest windows end early when there are more.
MOST_GROUPS: Final = 20_000

_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]+|\d+")
_LETTER: Final = re.compile(r"[^\W\d_]")


class Block(NamedTuple):
    """Lines of one worker, to be printed together."""

    #: "out" or "err".
    stream: str
    #: What the worker runs.
    name: str
    pid: int
    lines: list[str]


class _Group:
    """One line that was printed, and its repetitions by other workers."""

    __slots__ = ("count", "ends", "last", "pid")

    def __init__(self, pid: int, ends: float) -> None:
        self.pid = pid
        self.ends = ends
        #: Repetitions that were not printed.
        self.count = 0
        #: The latest of them: (name, pid, line).
        self.last = ("", 0, "")


class Dedup:
    """The lines of the last few seconds. All calls from one thread."""

    def __init__(self, never: str = "", hint: str = "") -> None:
        #: Lines in which this regular expression is found are never gathered.
        self._never = re.compile(never) if never else None
        #: Added to the first line with a number.
        self._hint = hint
        #: (stream, line up to numbers) → its group, by the ends of their windows.
        self._groups: dict[tuple[str, str], _Group] = {}
        #: When the next window with repetitions ends, or earlier; None if there is none.
        self.due: float | None = None

    def feed(self, now: float, block: Block) -> list[Block]:
        """Lines came in: what is to be printed now."""
        printed = self.expire(now)
        stream, name, pid, lines = block
        at_once: list[str] = []
        for line in lines:
            key = self._key(stream, line)
            if key is None:
                at_once.append(line)
                continue
            group = self._groups.get(key)
            if group is None:
                self._groups[key] = _Group(pid, now + WINDOW_S)
                at_once.append(line)
            elif group.pid == pid:
                at_once.append(line)
            else:
                group.count += 1
                self.due = group.ends if self.due is None else min(self.due, group.ends)
                group.last = (name, pid, line)
        if at_once:
            printed.append(Block(stream, name, pid, at_once))
        while len(self._groups) > MOST_GROUPS:
            printed += self._end(next(iter(self._groups)))
        return printed

    def expire(self, now: float) -> list[Block]:
        """Windows that have ended: what was gathered in them."""
        ended: list[Block] = []
        while self._groups:
            key = next(iter(self._groups))
            if self._groups[key].ends > now:
                break
            ended += self._end(key)
        if self.due is not None and self.due <= now:
            self.due = next((group.ends for group in self._groups.values() if group.count), None)
        return ended

    def flush(self) -> list[Block]:
        """All that was gathered: the session ends."""
        self.due = None
        return [block for key in list(self._groups) for block in self._end(key)]

    def _end(self, key: tuple[str, str]) -> Iterator[Block]:
        group = self._groups.pop(key)
        if not group.count:
            return
        name, pid, line = group.last
        if group.count > 1:
            line = f"{line} [repeated {group.count}x across cluster]{self._hint}"
            self._hint = ""
        yield Block(key[0], name, pid, [line])

    def _key(self, stream: str, line: str) -> tuple[str, str] | None:
        if len(line) > LONGEST or not _LETTER.search(line) or (self._never is not None and self._never.search(line)):
            return None
        return stream, _NUMBER.sub("0", line)
