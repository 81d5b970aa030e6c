"""The pool of the last ``Parallel`` call, kept for the next one like it.

Its processes have imported joblib and what the jobs use, which takes longer than many calls. It is kept for
:data:`KEPT_S` seconds, as long as its session lives, and only if nothing runs in it and its actors hold no resources.

Whoever takes the entry out of the deque, by one C call, has the pool: the next call, or the thread that ends it.
"""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic
from typing import Any, Final, NamedTuple

import moray
from moray.api import connected
from moray.util.multiprocessing import Pool

#: A loop of calls comes again within seconds; the memory of processes that nobody uses is not held for minutes.
KEPT_S: Final = 60.0
#: How often the thread looks whether the session has ended.
LOOK_S: Final = 1.0


class _Kept(NamedTuple):
    #: What the pool must be like: session, size, environment of its processes.
    key: Any
    pool: Pool
    since: float


#: At most one, but for a moment.
_kept: deque[_Kept] = deque()
_lock: Final = threading.Lock()
#: The thread that ends what is kept too long; under the lock.
_keeper: threading.Thread | None = None


def key_of(n_jobs: int, environment: dict[str, str]) -> Any:
    """What two calls must have in common to use the same pool."""
    return connected().job.hex(), n_jobs, tuple(sorted(environment.items()))


def take(key: Any) -> Pool | None:
    """The kept pool if it is what is asked for; another one is ended."""
    try:
        kept = _kept.pop()
    except IndexError:
        return None
    if kept.key == key:
        return kept.pool
    kept.pool.terminate()
    return None


def keep(key: Any, pool: Pool) -> None:
    """Keep a pool in which nothing runs."""
    global _keeper
    _kept.append(_Kept(key, pool, monotonic()))
    while len(_kept) > 1:
        _end_oldest()
    with _lock:
        if _keeper is None or not _keeper.is_alive():
            _keeper = threading.Thread(target=_look_after, name="moray-joblib-pool", daemon=True)
            _keeper.start()


def _end_oldest() -> None:
    try:
        kept = _kept.popleft()
    except IndexError:
        return
    kept.pool.terminate()


def _look_after() -> None:
    """End what is kept too long; end when nothing is kept."""
    global _keeper
    pause = threading.Event()
    while True:
        with _lock:
            if not _kept:
                _keeper = None  # Whoever keeps a pool after this starts another thread.
                return
        pause.wait(LOOK_S)
        for kept in list(_kept):
            if monotonic() - kept.since > KEPT_S or not _session_lives(kept.key[0]):
                try:
                    _kept.remove(kept)
                except ValueError:
                    continue  # It was taken.
                kept.pool.terminate()


def _session_lives(job: str) -> bool:
    return moray.is_initialized() and moray.get_runtime_context().get_job_id() == job
