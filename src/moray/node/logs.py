"""The node's log, and the files that workers' output goes to.

Workers rotate their files themselves (:mod:`moray.runtime.log_files`): what was ``worker-….err`` before is ``.err.1``.
The node's log is descriptor 2, opened by whoever started it, so that even the interpreter's own last words are in it.
"""

from __future__ import annotations

import os
import time
from typing import Final

from moray.launch.session_directory import LOG_FOLDER

#: How much of a file's end is looked at for its last lines.
_TAIL_BYTES: Final = 16_384
#: Lines of a dead process's stderr that its owners are told.
TAIL_LINES: Final = 20


def log(text: str) -> None:
    """Write a line to the node's log."""
    now = time.time()
    stamp = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))}.{int(now % 1 * 1000):03}"
    try:
        os.write(2, f"{stamp} {text}\n".encode(errors="replace"))
    except OSError:
        pass  # A full disk must not end the session.


def worker_paths(session_dir: str, process: bytes, pid: int) -> tuple[str, str]:
    """Where a worker's stdout and stderr go."""
    stem = f"{session_dir}/{LOG_FOLDER}/worker-{process.hex()[:8]}-{pid}"
    return f"{stem}.out", f"{stem}.err"


def tail(path: str, lines: int = TAIL_LINES) -> str:
    """The last lines of a log file, some of which may be in the file before it; "" if it cannot be read."""
    end = _end(path, _TAIL_BYTES)
    if len(end) < _TAIL_BYTES and end.count(b"\n") < lines:
        end = _end(f"{path}.1", _TAIL_BYTES - len(end)) + end
    return "\n".join(end.decode(errors="replace").splitlines()[-lines:])


def _end(path: str, size_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - size_bytes))
            return file.read(size_bytes)
    except OSError:
        return b""  # There is none.
