"""Driver programs on a real pseudo-terminal, and what a person would see there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.procs import DRIVER_TIMEOUT_S, DRIVER_VARIABLE, driver_environment, end_processes, processes_with

_TOKEN = re.compile(r"\x1b\[(\d*)(?:;\d+)*([A-Za-z])|\r|\n|[^\x1b\r\n]+")


@dataclass
class Terminal:
    """Rows of text; the sequences that moray writes, and no others, are understood."""

    columns: int
    rows: int
    #: Every row since the beginning; the last `rows` are on the screen.
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0

    def write(self, text: str) -> None:
        position = 0
        while position < len(text):
            token = _TOKEN.match(text, position)
            assert token is not None, f"not understood: {text[position : position + 20]!r}"
            position = token.end()
            if token[2]:
                self._control(token[2], int(token[1] or 0))
            elif token[0] == "\r":
                self.column = 0
            elif token[0] == "\n":
                self._next_row()
            else:
                for character in token[0]:
                    self._put(character)

    def _control(self, kind: str, number: int) -> None:
        if kind == "J":
            assert number == 0
            self.lines[self.row] = self.lines[self.row][: self.column]
            self.lines[self.row + 1 :] = [""] * (len(self.lines) - self.row - 1)
        elif kind == "A":
            # The cursor does not go above the screen.
            self.row = max(self.row - max(1, number), len(self.lines) - self.rows, 0)
        else:
            assert kind == "m", f"not understood: {kind}"

    def _next_row(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _put(self, character: str) -> None:
        if self.column == self.columns:
            self._next_row()
            self.column = 0
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1


def run_on_terminal(
    code: str, columns: int = 80, rows: int = 24, env: Mapping[str, str] | None = None
) -> tuple[str, list[str]]:
    """Runs `code` as a program on a terminal: the raw text that it wrote, and all rows as they are at the end."""
    tag = uuid.uuid4().hex
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = driver_environment(tag, {"TERM": "xterm-256color", **(env or {})})
    with tempfile.TemporaryDirectory(prefix="moray-test-") as directory:
        script = Path(directory) / "program.py"
        script.write_text(code)
        process = subprocess.Popen(
            [sys.executable, str(script)], stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=directory
        )
        os.close(slave)
        chunks = []
        try:
            while chunk := _read(master):
                chunks.append(chunk)
            status = process.wait(DRIVER_TIMEOUT_S)
        finally:
            os.close(master)
            if process.poll() is None:
                process.kill()
                process.wait()
            left = end_processes(processes_with(DRIVER_VARIABLE, tag))
    text = b"".join(chunks).decode()
    assert status == 0, f"the program ended with {status}:\n{text}"
    assert not left, f"{left} processes outlived the program"
    terminal = Terminal(columns, rows)
    terminal.write(text)
    return text, [line.rstrip() for line in terminal.lines]


def _read(master: int) -> bytes:
    try:
        return os.read(master, 1 << 16)
    except OSError:
        return b""  # The last process on it has ended.
