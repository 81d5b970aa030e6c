"""What the store does on disk, and the one thread that does it.

The node's loop must not wait for a disk (a 64 MiB file takes 0.1 s to write on a good one), so such
work is done by one thread, in the order given: a file that is deleted before another is written has
made room for it. The thread starts with the first job; most sessions never need it.

Bytes go between the arena and a file by ``sendfile``: inside the kernel, without the node mapping
either. A file's size is reserved before anything is written (STORE-SPACE): a disk that is too full says
so at once, and a reader that maps the file cannot be killed by a page that has no block.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from moray.store.remote_files import RemoteFiles

#: Bytes for one ``sendfile``: the kernel itself stops a little above 2 GiB.
_SEND_AT_ONCE: Final = 1 << 30

#: What blocks; it says what went wrong by OSError.
Job: TypeAlias = Callable[[], None]
#: Runs in the node's loop when the job is done; gets "" or what went wrong.
Done: TypeAlias = Callable[[str], None]


class DiskThread:
    """Runs jobs one after another, away from the node's loop."""

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        #: Runs a callable in the node's loop.
        self._post = post
        #: Jobs not yet begun; None ends the thread.
        self._jobs: queue.SimpleQueue[tuple[Job, Done] | None] = queue.SimpleQueue()
        #: None until there is a first job.
        self._thread: threading.Thread | None = None

    def submit(self, job: Job, done: Done) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="moray-store-disk", daemon=True)
            self._thread.start()
        self._jobs.put((job, done))

    def close(self) -> None:
        """Wait for the jobs given so far."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            failure = ""
            try:
                job()
            except OSError as error:
                failure = f"{error.strerror or error} [{errno.errorcode.get(error.errno or 0, 'no errno')}]"
            self._post(lambda done=done, failure=failure: done(failure))  # type: ignore[misc]


def make_file(path: str, size: int) -> None:
    """A new file of `size` bytes that have blocks. On failure it is gone again."""
    fd = _create(path)
    try:
        _reserve(fd, size)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def spill(memory: int, path: str, size: int, parts: Iterable[tuple[int, int, int]]) -> None:
    """Write each (position, offset in the arena, size) to a new file. On failure it is gone again."""
    fd = _create(path)
    try:
        _reserve(fd, size)
        for position, offset, length in parts:
            _send(memory, offset, fd, position, length)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def restore(path: str, position: int, memory: int, offset: int, size: int) -> None:
    """Read bytes of a file into the arena."""
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # An open file description of its own: the arena's is shared with every client, and so would its position be.
        target = os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_CLOEXEC)
        try:
            _send(source, position, target, offset, size)
        finally:
            os.close(target)
    finally:
        os.close(source)


def fetch(remote: RemoteFiles, name: str, position: int, path: str, size: int) -> None:
    """Bytes of a remote file as a new local one. On failure it is gone again."""
    fd = _create(path)
    try:
        _reserve(fd, size)
        remote.restore(name, position, fd, 0, size)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def _create(path: str) -> int:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _reserve(fd: int, size: int) -> None:
    # An object of no bytes has a file, too, and a file that can be mapped has at least one.
    os.posix_fallocate(fd, 0, max(size, 1))


def _send(source: int, start: int, target: int, position: int, size: int) -> None:
    os.lseek(target, position, os.SEEK_SET)
    while size:
        sent = os.sendfile(target, source, start, min(size, _SEND_AT_ONCE))
        if not sent:
            raise OSError(errno.EIO, f"a file ends {size} bytes too early")
        start += sent
        size -= sent
