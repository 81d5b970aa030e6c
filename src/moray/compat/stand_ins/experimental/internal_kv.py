"""``ray.experimental.internal_kv``: small values that all processes of the session, or of the cluster, see."""

from __future__ import annotations

from typing import Any, Final

from moray.api import connected, is_initialized
from moray.protocol import messages as m

__all__ = [
    "_internal_kv_del", "_internal_kv_exists", "_internal_kv_get", "_internal_kv_initialized", "_internal_kv_list",
    "_internal_kv_put",
]  # fmt: skip

#: Not among those that moray itself may use.
_SPACE: Final = b"ray:"


def _ask(op: str, key: str | bytes, namespace: str | bytes | None, value: str | bytes = b"") -> m.KvAnswer:
    space = _SPACE + _bytes(namespace or b"")
    answer: m.KvAnswer = connected().ask(lambda number: m.KvRequest(number, op, space, _bytes(key), _bytes(value)))
    return answer


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _internal_kv_initialized() -> bool:
    """Whether there is a session."""
    return is_initialized()


def _internal_kv_get(key: str | bytes, *, namespace: str | bytes | None = None) -> bytes | None:
    """A value; None if there is none."""
    return _ask("get", key, namespace).value


def _internal_kv_exists(key: str | bytes, *, namespace: str | bytes | None = None) -> bool:
    """Whether there is one."""
    return bool(_ask("exists", key, namespace).count)


def _internal_kv_put(
    key: str | bytes, value: str | bytes, overwrite: bool = True, *, namespace: str | bytes | None = None
) -> bool:
    """Set a value, unless there is one and `overwrite` is False; whether there was one."""
    return not _ask("put" if overwrite else "put_new", key, namespace, value).count


def _internal_kv_del(key: str | bytes, *, del_by_prefix: bool = False, namespace: str | bytes | None = None) -> int:
    """Remove a value, or all whose keys begin so; how many there were."""
    keys = _internal_kv_list(key, namespace=namespace) if del_by_prefix else [key]
    return sum(_ask("delete", each, namespace).count for each in keys)


def _internal_kv_list(prefix: str | bytes, *, namespace: str | bytes | None = None) -> list[bytes]:
    """The keys that begin so."""
    found: Any = _ask("list", prefix, namespace).keys
    return list(found or ())
