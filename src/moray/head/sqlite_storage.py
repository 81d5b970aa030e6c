"""The head's storage in a file: SQLite with a write-ahead log.

``synchronous=NORMAL``: a commit is one write to the log, which is in the kernel when it returns, so it survives the
death of the process. A thread of its own flushes the log to the disk at most 50 ms later, for all commits at once; only
a loss of power can take the commits of that time. With `full` each commit waits for the disk.

Every thousand rows or so, what the log holds is brought into the database itself (a *checkpoint*), which waits for the
disk; so does the commit after it, with which the log begins anew. :meth:`SqliteStorage.commit_now` leaves both to
`commit`; it also does nothing while the log is being flushed: the kernel may let those who write to a file wait for its
flush.

One head at a time: a lock on ``PATH.lock`` (``flock``), which the kernel frees however the head ends. Where the lock
does not hold (a network file system), the epoch does, which is looked at in each transaction.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable
from typing import Final

from moray.head.storage import StorageError, Write, new_cluster_id, stale

#: How long a commit may be in the kernel only.
_FLUSH_S: Final = 0.05
#: A checkpoint is due when the log has so many pages more, as if each row were on pages of its own.
_LOG_PAGES: Final = 1000
_PAGE_BYTES: Final = 4096

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS head (id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL, cluster TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (tab TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (tab, key))
    WITHOUT ROWID;
"""


class SqliteStorage:
    """See the module."""

    exclusive = True

    def __init__(self, path: str, *, full: bool = False) -> None:
        self._path = os.path.abspath(path)
        self._full = full
        self._lock = _lock(self._path)
        try:
            self._database = _open(self._path, full)
            self.epoch, self.cluster_id = self._take_epoch()
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, sqlite3.Error):
                raise StorageError(f"the head's storage {self._path} cannot be opened: {error}") from error
            raise
        #: What went wrong in the flushing thread.
        self._failure: OSError | None = None
        #: Held while the log is flushed, and while `commit_now` writes to it.
        self._log_lock = threading.Lock()
        #: Pages in the log that are not in the database, at most; others may have left some there.
        self._log_pages = os.stat(f"{self._path}-wal").st_size // _PAGE_BYTES
        #: There is something to flush; the storage is closed.
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._flusher: threading.Thread | None = None
        if not full:
            self._flusher = threading.Thread(target=self._flush_often, name="head-flusher", daemon=True)
            self._flusher.start()

    def get(self, table: str, key: bytes) -> bytes | None:
        row = self._database.execute("SELECT value FROM rows WHERE tab = ? AND key = ?", (table, key)).fetchone()
        return None if row is None else bytes(row[0])

    def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        rows = self._database.execute("SELECT key, value FROM rows WHERE tab = ? ORDER BY key", (table,))
        return [(bytes(key), bytes(value)) for key, value in rows]

    def commit(self, writes: Iterable[Write]) -> None:
        self._carry_out(writes)
        if self._log_pages >= _LOG_PAGES:
            self._checkpoint()

    def commit_now(self, writes: Iterable[Write]) -> bool:
        if self._full or not 0 < self._log_pages < _LOG_PAGES or not self._log_lock.acquire(blocking=False):
            return False
        try:
            self._carry_out(writes)
        finally:
            self._log_lock.release()
        return True

    def _carry_out(self, writes: Iterable[Write]) -> None:
        if self._failure is not None:
            raise StorageError(f"the head's storage {self._path} cannot be flushed to disk: {self._failure}")
        execute = self._database.execute
        try:
            execute("BEGIN IMMEDIATE")
            try:
                stored = execute("SELECT epoch FROM head").fetchone()[0]
                if stored != self.epoch:
                    raise stale(self.epoch, stored, self._path)
                for table, key, value in writes:
                    self._log_pages += 1 + len(value or b"") // _PAGE_BYTES
                    if value is None:
                        execute("DELETE FROM rows WHERE tab = ? AND key = ?", (table, key))
                    else:
                        execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", (table, key, value))
                execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StorageError(f"the head's storage {self._path} cannot be written: {error}") from error
        self._dirty.set()

    def _checkpoint(self) -> None:
        """Nobody else reads or writes the database now, so the log begins anew with the next commit."""
        try:
            self._database.execute("PRAGMA wal_checkpoint").fetchone()
        except sqlite3.Error as error:
            raise StorageError(f"the head's storage {self._path} cannot be written: {error}") from error
        self._log_pages = 0

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._dirty.set()
        if self._flusher is not None:
            self._flusher.join()
        self._database.close()
        os.close(self._lock)

    def _take_epoch(self) -> tuple[int, str]:
        execute = self._database.execute
        execute("BEGIN IMMEDIATE")
        execute("INSERT OR IGNORE INTO head VALUES (1, 0, ?)", (new_cluster_id(),))
        execute("UPDATE head SET epoch = epoch + 1")
        epoch, cluster = execute("SELECT epoch, cluster FROM head").fetchone()
        execute("COMMIT")
        return int(epoch), str(cluster)

    def _flush_often(self) -> None:
        while not self._closed.is_set():
            self._dirty.wait()
            self._closed.wait(_FLUSH_S)
            self._dirty.clear()  # Before the flush: a commit during it is flushed by the next.
            try:
                with self._log_lock:
                    _flush(f"{self._path}-wal")
            except OSError as error:
                # After a failed fsync nobody knows what is on the disk. The next commit ends the head.
                self._failure = error
                return


def _flush(path: str) -> None:
    """Make what was written to a file survive a loss of power. SQLite locks its other files, never this one, so
    closing the descriptor gives no lock of it away."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _open(path: str, full: bool) -> sqlite3.Connection:
    # isolation_level None: transactions begin and end where this module says. Threads take turns (see storage).
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        mode = database.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(f"the file system of {path} has no write-ahead log for SQLite (its mode is {mode!r})")
        database.execute(f"PRAGMA synchronous={'FULL' if full else 'NORMAL'}")
        database.execute("PRAGMA wal_autocheckpoint=0")
        database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    os.chmod(path, 0o600)
    return database


def _lock(path: str) -> int:
    """Be the one head of this file: the descriptor that holds the lock."""
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"the head's storage {path} cannot be opened: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StorageError(f"the head's storage {path} is in use by another head, process {holder}") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
