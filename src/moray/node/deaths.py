"""Why a process ended, in one line for the user."""

from __future__ import annotations

import signal

from moray.platform import machine, process_table

_GIGABYTE = 1e9


class DeathReasons:
    """Turns exit statuses into lines; knows whether the kernel's OOM killer was at work since it last looked."""

    def __init__(self) -> None:
        #: The kernel's count when it was last looked at.
        self._oom_kills = process_table.oom_kills()

    def describe(self, status: int, cause: str) -> str:
        """`status`: exit code or minus the signal. `cause`: why the node itself ended it, or ""."""
        if cause:
            return f"ended by the node: {cause}"
        if status >= 0:
            return f"exited with code {status}"
        line = f"killed by {signal_name(-status)}"
        return line + self._about_memory() if status == -signal.SIGKILL else line

    def _about_memory(self) -> str:
        kills = process_table.oom_kills()
        count, self._oom_kills = kills - self._oom_kills, kills
        used, total = machine.memory_used() / _GIGABYTE, machine.memory_total() / _GIGABYTE
        in_use = f"{used:.1f} of {total:.1f} GB in use"
        if count > 0:
            return f", by the kernel's OOM killer, it seems, which has just ended {count} process(es); {in_use} now"
        if used > 0.9 * total:
            return f", maybe by the kernel's OOM killer: {in_use}"
        return f" from outside; not by the kernel's OOM killer, it seems ({in_use})"


def signal_name(number: int) -> str:
    """SIGSEGV for 11; "signal 50" for what has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
