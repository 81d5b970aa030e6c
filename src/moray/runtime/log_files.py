"""A worker's two log files: reading them as they grow, and rotating them.

Descriptors 1 and 2 *are* the files, so that C code and subprocesses write there too. ``worker-….out`` is always the
file that is written now; older ones are ``.out.1`` (the newest) to ``.out.N``. One look reads what has grown; a
file that has reached the cap is then rotated, by the loop, in these steps:

1. open the new file under a name of its own; 2. make room (``.1`` becomes ``.2`` …); 3. rename the present file
to ``.1``; 4. say so in the mark; 5. give the new file its name; 6. ``dup2`` it onto the descriptor; 7. read the old
file once more: what was being written during 6 is there.

No byte is lost: whoever was writing keeps the old file open. A child process that inherited it goes on writing there,
so an old file is read until nobody has it open for writing, which a read lease tells (``F_SETLEASE``). No line is sent
twice: the mark holds, in one 8-byte store, how far the output has been sent, and whether that place is in the file that
was renamed. From that the driver reads what a dead worker had not sent, at whatever step it died; because a worker
may die between a sending and its mark, lines carry their position too, and the later one counts.

The cap is looked at when output is sent (ten times a second at least while a task runs), so a file may be
larger by what is written between two looks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable, Mapping
from typing import Final

from moray import config

#: A log file is rotated when it has reached this size …
MAX_BYTES: Final = 64 << 20
#: … and so many older ones are kept.
BACKUPS: Final = 3
#: A position is (how many rotations before) << 41 | (in the file that was renamed to ``.1``) << 40 | offset, so that
#: later ones are greater.
ROTATED: Final = 1 << 40
_OFFSET: Final = ROTATED - 1
_ROTATION: Final = 1 << 41
#: At most so much of a dead worker's unsent output is printed; the files have it all.
_LAST_WORDS: Final = 1 << 20
_CHUNK: Final = 1 << 20
#: What is longer than this without a line's end is sent in pieces.
_LONGEST_LINE: Final = 16 << 20

#: Gets lines, and how far everything has been sent with them; 0 if they do not count for that.
Send = Callable[[list[str], int], None]


def rotation_settings(environ: Mapping[str, str] | None = None) -> tuple[int, int]:
    """(cap in bytes, 0 for none; how many old files are kept); ValueError naming the variable of a wrong value."""
    max_bytes = config.env_bytes("LOG_MAX_BYTES", config.env_bytes("ROTATION_MAX_BYTES", MAX_BYTES, environ), environ)
    backups = config.env_int("LOG_BACKUPS", config.env_int("ROTATION_BACKUP_COUNT", BACKUPS, environ), environ)
    if backups < 0:
        name = config.env_name("LOG_BACKUPS", environ) or config.env_name("ROTATION_BACKUP_COUNT", environ)
        raise ValueError(f"the environment variable {name}={backups} should be a number ≥ 0 of old log files to keep")
    return max_bytes, backups


class Follower:
    """One file, as far as it has been read."""

    __slots__ = ("base", "fd", "offset", "partial")

    def __init__(self, path: str, base: int) -> None:
        #: What is to be added to its offsets to make positions; -1: they do not count.
        self.base = base
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.offset = 0
        #: The line that has not ended yet.
        self.partial = b""

    def read(self, send: Send) -> bool:
        """Send the lines that were complete when this was called; whether there was anything new."""
        end = os.lseek(self.fd, 0, os.SEEK_END)  # A quarter of fstat's cost, which each result pays; reads say where.
        if end == self.offset:
            return False
        if end < self.offset:
            self.offset = 0  # Somebody has emptied the file.
        while self.offset < end:
            data = os.pread(self.fd, min(_CHUNK, end - self.offset), self.offset)
            if not data:
                break
            lines = (self.partial + data).split(b"\n")
            partial = lines.pop()
            if len(partial) > _LONGEST_LINE:
                lines.append(partial)
                partial = b""
            if lines:
                text = [line.decode(errors="replace") for line in lines]
                send(text, self._position(self.offset + len(data) - len(partial)))
            self.offset += len(data)
            self.partial = partial
        return True

    def send_partial(self, send: Send) -> bool:
        """Send the line that has not ended; False if there is none."""
        if not self.partial:
            return False
        send([self.partial.decode(errors="replace")], self._position(self.offset))
        self.partial = b""
        return True

    def _position(self, offset: int) -> int:
        return self.base + offset if self.base >= 0 else 0

    def is_written(self) -> bool | None:
        """Whether somebody has it open for writing; None if the file system cannot tell."""
        try:
            # Who opened it for writing while we have the lease would have us signalled: by one that is ignored.
            fcntl.fcntl(self.fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            return True if error.errno == errno.EAGAIN else None
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False


class LogStream:
    """One of a worker's two outputs: its file, and the older files that somebody still writes. Guarded by its owner."""

    def __init__(self, name: str, target: int, path: str, max_bytes: int, backups: int) -> None:
        #: "out" or "err".
        self.name = name
        self._target = target
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._current = Follower(path, 0)
        #: Rotated files that may still grow, oldest first.
        self._older: list[Follower] = []
        #: The file that was renamed last, while nothing of the present one has been read: positions are in it.
        self._previous: Follower | None = None
        #: Where the renamed file ended: an unfinished line of it goes on in the new one.
        self._renamed_end = 0

    def pump(self, send: Send, last: bool = False) -> bool:
        """Send new lines, with `last` also an unfinished one; whether there was anything new."""
        grown = False
        if self._older:
            grown = self._pump_older(send, last)
            if self._previous is not None:
                if os.fstat(self._current.fd).st_size == 0:
                    return grown
                self._previous.base = -1
                self._previous = None
        if self._current.read(send):
            grown = True
        if last and self._current.partial:
            self._current.send_partial(send)
            grown = True
        return grown

    def position(self) -> int:
        """How far everything has been sent, for the mark."""
        current = self._current
        offset = current.offset - len(current.partial)
        if offset < 0:
            return current.base - _ROTATION + ROTATED + max(0, self._renamed_end + offset)
        if self._previous is not None:
            return self._previous.base + max(0, self._previous.offset - len(self._previous.partial))
        return current.base + offset

    def is_full(self) -> bool:
        """Whether the file should be rotated. Not while a line goes on that began in an older one: positions reach back
        by one file."""
        current = self._current
        return 0 < self._max_bytes <= current.offset and len(current.partial) <= current.offset

    def rotate(self, send: Send, mark: Callable[[int], None]) -> None:
        """Go on in a new file. `mark` is told where the sent output ends. Loop only."""
        if not self.is_full() or not _same_file(self._target, self._current.fd):
            return  # User code has put something else in the descriptor's place: it is not ours to replace.
        path, fresh = self._path, f"{self._path}.new"
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            following = Follower(fresh, self._current.base + _ROTATION)
        except OSError as error:
            self._give_up(error)
            return
        old = self._current
        try:
            self._make_room()
            os.rename(path, f"{path}.1")
            old.base += ROTATED
            mark(old.base + max(0, old.offset - len(old.partial)))
            os.rename(fresh, path)
            os.dup2(fd, self._target)
        except OSError as error:
            os.close(following.fd)
            self._give_up(error)
            return
        finally:
            os.close(fd)
        self._older.append(old)
        self._current, self._previous = following, old
        self._pump_older(send, last=False)
        mark(self.position())
        if self._backups == 0 and not (following.partial or old.partial):
            _unlink(f"{path}.1")

    def _make_room(self) -> None:
        for number in range(max(1, self._backups), 0, -1):
            try:
                if number >= self._backups:
                    _unlink(f"{self._path}.{number}")
                else:
                    os.rename(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            except FileNotFoundError:
                pass  # There are not so many yet.

    def _give_up(self, error: OSError) -> None:
        """The file goes on as it is: losing output would be worse than a large file."""
        self._max_bytes = 0
        _unlink(f"{self._path}.new")
        os.write(2, f"moray cannot rotate {self._path}, which grows without a limit from here on: {error}\n".encode())

    def _pump_older(self, send: Send, last: bool) -> bool:
        grown = False
        for old in list(self._older):
            # First whether it may grow, then what it has.
            written = old.is_written()
            finished = written is False or (written is None and len(self._older) > self._backups)
            if not finished and _same_file(self._target, old.fd):
                # User code had saved the descriptor before the rotation and has put it back now.
                fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                os.dup2(fd, self._target)
                os.close(fd)
            grown |= old.read(send)
            if finished and old is self._previous:
                # Nobody is in the middle of writing a line there: it goes on in the new file.
                self._current.partial, old.partial = old.partial, b""
                self._renamed_end = old.offset
                self._previous = None
            if finished or last:
                grown |= old.send_partial(send)
            if finished:
                os.close(old.fd)
                self._older.remove(old)
        return grown


def unsent(path: str, position: int) -> list[str]:
    """What a dead worker had written to this log and not sent; `position` is from its mark."""
    renamed = f"{path}.1"
    if position & ROTATED or not os.path.exists(path):
        parts = [(renamed, position & _OFFSET), (path, 0)]
    else:
        parts = [(path, position & _OFFSET)]
    data, more = b"", 0
    for name, offset in parts:
        try:
            with open(name, "rb") as file:
                file.seek(offset)
                data += file.read(_LAST_WORDS - len(data))
                more += max(0, os.fstat(file.fileno()).st_size - file.tell())
        except OSError:
            continue  # It never had one, or the session's directory has gone.
    lines = data.decode(errors="replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    if more:
        lines.append(f"[{more} bytes more are in {path}]")
    return lines


def _same_file(one: int, other: int) -> bool:
    try:
        return os.path.samestat(os.fstat(one), os.fstat(other))
    except OSError:
        return False  # User code has closed it.


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
