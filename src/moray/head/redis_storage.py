"""The head's storage in Redis, for a head that may move to another machine.

Each table is a hash. A commit is one script on the server: it compares the epoch and the number of the last commit, and
writes. The number makes a repeat harmless, so a commit whose answer was lost with the connection is sent again until
Redis answers, and nothing that waits for it leaves the head meanwhile. It also tells that Redis came back with older
data than it had acknowledged (no append-only file, say): that ends the head, because others have heard of more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from moray.head.storage import StorageError, StorageLostError, Write, new_cluster_id, stale

#: Between attempts to reach a Redis that does not answer.
_RETRY_S: Final = 0.2
#: How long Redis may be away before the head gives up; whoever started it may start it again.
GIVE_UP_S: Final = 60.0
#: Rows per command of a scan.
_SCAN_ROWS: Final = 1000
#: Writes per call of the script at most: it takes three arguments each, of which Redis accepts a million.
_TRANSACTION_WRITES: Final = 300_000

#: KEYS: head, prefix of tables. ARGV: epoch, number of this commit, then (table, key, "=" + value or "") each.
_COMMIT: Final = """
local epoch, number = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'commits'))
if not epoch then return {'lost', '0'} end
if epoch ~= ARGV[1] then return {'stale', epoch} end
if number == ARGV[2] then return {'done', number} end
if tonumber(number) + 1 ~= tonumber(ARGV[2]) then return {'lost', number} end
for i = 3, #ARGV, 3 do
    local value = ARGV[i + 2]
    if value == '' then redis.call('HDEL', KEYS[2] .. ARGV[i], ARGV[i + 1])
    else redis.call('HSET', KEYS[2] .. ARGV[i], ARGV[i + 1], string.sub(value, 2)) end
end
redis.call('HSET', KEYS[1], 'commits', ARGV[2])
return {'done', ARGV[2]}
"""

_TAKE: Final = """
redis.call('HSETNX', KEYS[1], 'cluster', ARGV[1])
redis.call('HSETNX', KEYS[1], 'commits', '0')
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
local found = redis.call('HMGET', KEYS[1], 'commits', 'cluster')
return {tostring(epoch), found[1], found[2]}
"""

_T = TypeVar("_T")


class RedisStorage:
    """See the module. `url` as redis-py takes it, with password, database and TLS options; `prefix` of all keys."""

    exclusive = False

    def __init__(self, url: str, prefix: str = "moray:") -> None:
        try:
            import redis
        except ImportError:
            raise StorageError("a head with its storage in Redis needs the package redis: moray[redis]") from None
        self._errors = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError)
        self._other_errors = redis.RedisError
        try:
            self._client: Any = redis.Redis.from_url(url, socket_timeout=10.0, socket_connect_timeout=5.0)
        except ValueError as error:
            raise StorageError(f"{hide_password(url)} is no address of a Redis: {error}") from error
        self._where = hide_password(url)
        #: The key of the epoch; what tables' keys begin with. One hash slot, for a Redis cluster.
        self._head = f"{{{prefix}}}head"
        self._tables = f"{{{prefix}}}table:"
        self._commit = self._client.register_script(_COMMIT)
        taken = self._ask(lambda: self._client.register_script(_TAKE)([self._head], [new_cluster_id()]), once=True)
        self.epoch, self._commits, self.cluster_id = int(taken[0]), int(taken[1]), taken[2].decode()
        self._stopped = False

    def get(self, table: str, key: bytes) -> bytes | None:
        found: bytes | None = self._ask(lambda: self._client.hget(self._tables + table, key))
        return found

    def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        def read() -> dict[bytes, bytes]:
            return dict(self._client.hscan_iter(self._tables + table, count=_SCAN_ROWS))

        return sorted(self._ask(read).items())

    def commit(self, writes: Iterable[Write]) -> None:
        arguments: list[str | bytes] = []
        for table, key, value in writes:
            arguments += (table, key, b"" if value is None else b"=" + value)
        if len(arguments) > 3 * _TRANSACTION_WRITES:
            raise StorageError(f"a transaction of {len(arguments) // 3} writes; at most {_TRANSACTION_WRITES} are one")
        number = self._commits + 1
        word, stored = self._ask(
            lambda: self._commit([self._head, self._tables], [str(self.epoch), str(number), *arguments])
        )
        if word == b"stale":
            raise stale(self.epoch, int(stored), self._where)
        if word != b"done":
            raise StorageLostError(
                f"Redis at {self._where} has lost what it had acknowledged: {self._commits} transactions of this head, "
                f"of which it knows {int(stored)}; run it with an append-only file (appendonly yes)"
            )
        self._commits = number

    def commit_now(self, writes: Iterable[Write]) -> bool:  # noqa: ARG002 - there is no Redis without a network.
        return False

    def close(self) -> None:
        self._stopped = True
        self._client.close()

    def _ask(self, call: Callable[[], _T], *, once: bool = False) -> _T:
        """Call until Redis answers; what is called may be carried out twice without harm (`once`: it may not)."""
        began = time.monotonic()
        while True:
            try:
                return call()
            except self._errors as error:
                waited_s = time.monotonic() - began
                if once or waited_s > GIVE_UP_S or self._stopped:
                    raise StorageError(
                        f"Redis at {self._where} did not answer (for {waited_s:.0f} s): {error}"
                    ) from error
                time.sleep(_RETRY_S)
            except self._other_errors as error:
                raise StorageError(f"Redis at {self._where} refused: {error}") from error


def hide_password(url: str) -> str:
    """The address without what is secret in it."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
