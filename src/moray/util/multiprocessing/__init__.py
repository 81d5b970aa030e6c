"""The interface of the standard library's ``multiprocessing``, over a session: ``Pool`` and ``JoinableQueue``.

>>> from moray.util.multiprocessing import Pool
>>> with Pool(2) as pool:
...     sorted(pool.imap_unordered(abs, [-1, -2, -3]))
[1, 2, 3]
"""

from __future__ import annotations

from multiprocessing import TimeoutError  # noqa: A004 - that is its name there.

from moray.util.multiprocessing.pool import Pool
from moray.util.multiprocessing.results import AsyncResult, IMapIterator, IMapUnorderedIterator
from moray.util.queue import JoinableQueue

__all__ = ["AsyncResult", "IMapIterator", "IMapUnorderedIterator", "JoinableQueue", "Pool", "TimeoutError"]
