"""How a node of this machine ended, for whoever used it: its exit status, and the end of its log.

A node that ends in order says why itself. One that fails writes a traceback to its log, and the interpreter's last
words too; one that is killed cannot say anything.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from moray.launch.session_directory import LOG_FOLDER, NODE_LOG

_LOG_LINES: Final = 20
#: Enough for so many lines.
_LOG_BYTES: Final = 16_384


def describe_end(session_dir: str, status: int | None) -> str:
    """`status`: exit code or minus the signal; None: it is not known."""
    return _of_status(status) + log_tail(session_dir)


def log_tail(session_dir: str, before: bytes = b"") -> str:
    """The last lines of a node's log, and of what was written `before` there was one; "" if the session's directory has
    gone."""
    try:
        with open(f"{session_dir}/{LOG_FOLDER}/{NODE_LOG}", "rb") as file:
            # Only its end: the log may be large, and who asks may be a loop that others wait for.
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            text = before + file.read(_LOG_BYTES)
    except OSError:
        text = before
    lines = text[-_LOG_BYTES:].decode(errors="replace").splitlines()[-_LOG_LINES:]
    return "; the last lines of its log:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""


def _of_status(status: int | None) -> str:
    if status is None:
        return ""
    if status >= 0:
        return f"; it exited with code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    by_whom = ", by somebody else or by the kernel's OOM killer" if status == -signal.SIGKILL else ""
    return f"; it was killed by {name}{by_whom}"
