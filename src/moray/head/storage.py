"""What the head remembers across its own death: tables of bytes by key, written in transactions (HEAD-EPOCH, DURABLE).

A head takes an *epoch* when it opens the storage: one more than the last. Each commit is carried out only if the epoch
is still the stored one, checked in the same transaction, so that a head that was replaced can change nothing any more,
whatever it still believes. A commit is all or nothing; when :meth:`Storage.commit` returns, it survives kill -9 of the
head and (Redis) of the server, and with `full` durability a loss of power.

After the start only one thread at a time, the head's loop or its writer (:mod:`moray.head.commits`), uses a storage.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, Protocol, TypeAlias

#: (table, key, value); value None: delete.
Write: TypeAlias = tuple[str, bytes, bytes | None]

#: Bytes of a cluster's id.
_CLUSTER_ID_BYTES: Final = 16


class StorageError(RuntimeError):
    """The head cannot read or write what it must remember; `str` says where and why."""


class StaleEpochError(StorageError):
    """Another head has taken over: this one must end."""


class StorageLostError(StorageError):
    """The storage went back behind what it had acknowledged, or is empty: this head must end."""


class Storage(Protocol):
    """One of the three below; the contract that tests/head/test_storage.py holds them to."""

    #: This head's, taken when the storage was opened.
    epoch: int
    #: Made with the storage, and never changed.
    cluster_id: str
    #: Whoever had it open before is dead. Otherwise another head may live, and believe for a while that it is the one.
    exclusive: bool

    def get(self, table: str, key: bytes) -> bytes | None: ...

    def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        """All of a table, by key."""

    def commit(self, writes: Iterable[Write]) -> None:
        """Carry out all of `writes`, or nothing.

        Raises StaleEpochError if another head has opened the storage since, StorageError if it cannot be written.
        """

    def commit_now(self, writes: Iterable[Write]) -> bool:
        """The same, if neither a disk nor a network is waited for; False: nothing was done, it is for `commit`."""

    def close(self) -> None: ...


def put(table: str, key: bytes, value: bytes) -> Write:
    """Set a value."""
    return table, key, value


def delete(table: str, key: bytes) -> Write:
    """Remove a value; nothing if there is none."""
    return table, key, None


def new_cluster_id() -> str:
    return os.urandom(_CLUSTER_ID_BYTES).hex()


class MemoryStorage:
    """Remembers nothing once the process has ended; several heads of one process may share a `MemoryDatabase`."""

    exclusive = True

    def __init__(self, database: MemoryDatabase | None = None) -> None:
        self._database = database or MemoryDatabase()
        self._database.epoch += 1
        self.epoch = self._database.epoch
        self.cluster_id = self._database.cluster_id

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._database.tables.get(table, {}).get(key)

    def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        return sorted(self._database.tables.get(table, {}).items())

    def commit(self, writes: Iterable[Write]) -> None:
        if self._database.epoch != self.epoch:
            raise stale(self.epoch, self._database.epoch, "memory")
        for table, key, value in writes:
            rows = self._database.tables.setdefault(table, {})
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value

    def commit_now(self, writes: Iterable[Write]) -> bool:
        self.commit(writes)
        return True

    def close(self) -> None:
        pass


class MemoryDatabase:
    """What is behind a MemoryStorage."""

    def __init__(self) -> None:
        self.epoch = 0
        self.cluster_id = new_cluster_id()
        self.tables: dict[str, dict[bytes, bytes]] = {}


def stale(mine: int, stored: int, where: str) -> StaleEpochError:
    return StaleEpochError(
        f"another head (epoch {stored}) has taken over the storage {where}; this one (epoch {mine}) ends"
    )


def open_storage(url: str, *, full: bool = False) -> Storage:
    """Open the storage that `url` names, and take an epoch.

    Args:
        url: ``memory:``, ``sqlite:PATH`` (or a path), ``redis://…``, ``rediss://…`` (TLS).
        full: a commit also survives a loss of power, at the price of waiting for the disk (SQLite).

    Raises:
        StorageError: it is in use by another head, cannot be reached or opened, or is not named as above.
    """
    kind = url.partition(":")[0]
    if kind == "memory":
        return MemoryStorage()
    if kind in {"redis", "rediss"}:
        from moray.head.redis_storage import RedisStorage

        return RedisStorage(url)
    path = url.removeprefix("sqlite:").removeprefix("//") if kind == "sqlite" else url
    if not path or "://" in path:
        raise StorageError(f"{url!r} names no storage: write memory:, sqlite:PATH, redis://HOST:PORT or rediss://…")
    from moray.head.sqlite_storage import SqliteStorage

    return SqliteStorage(path, full=full)
