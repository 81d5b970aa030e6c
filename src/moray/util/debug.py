"""``log_once``: messages that are worth saying once, or once a minute, in each process."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Final

#: With periodic logging a message may be said again after so many seconds.
PERIOD_S: Final = 60.0

_lock = threading.Lock()
#: Key → when it was said. Guarded by the lock, as are the settings.
_said: dict[str, float] = {}
_disabled = False
_periodic = False


def log_once(key: str) -> bool:
    """Whether this process should say what `key` stands for: the first time, and never again.

    Example:
        >>> from moray.util import log_once
        >>> [log_once("the disk is slow") for _ in range(3)]
        [True, False, False]
    """
    with _lock:
        if _disabled:
            return False
        now = monotonic()
        before = _said.get(key)
        if before is not None and not (_periodic and now - before > PERIOD_S):
            return False
        _said[key] = now
        return True


def disable_log_once_globally() -> None:
    """:func:`log_once` is False from now on, in this process."""
    global _disabled
    _disabled = True


def enable_periodic_logging() -> None:
    """:func:`log_once` is True again a minute after it was, in this process."""
    global _periodic
    _periodic = True
