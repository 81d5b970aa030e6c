"""Tools beside the core API. Each is imported when it is first used."""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from moray.check_serialize import inspect_serializability
    from moray.util import (
        accelerators,
        annotations,
        cloudpickle,
        dask,
        joblib,
        metrics,
        multiprocessing,
        queue,
    )
    from moray.util.actor_pool import ActorPool
    from moray.util.completion import as_completed, map_unordered
    from moray.util.connecting import connect, disconnect
    from moray.util.debug import disable_log_once_globally, enable_periodic_logging, log_once
    from moray.util.placement_group import (
        get_current_placement_group,
        get_placement_group,
        placement_group,
        placement_group_table,
        remove_placement_group,
    )
    from moray.util.serialization import deregister_serializer, register_serializer

__all__ = [
    "ActorPool", "accelerators", "annotations", "as_completed", "cloudpickle", "connect", "dask",
    "deregister_serializer", "disable_log_once_globally", "disconnect", "enable_periodic_logging",
    "get_current_placement_group", "get_node_instance_id", "get_node_ip_address", "get_placement_group",
    "inspect_serializability", "joblib", "list_named_actors", "log_once", "map_unordered", "metrics",
    "multiprocessing", "placement_group", "placement_group_table", "queue", "register_serializer",
    "remove_placement_group",
]  # fmt: skip

_MODULES: Final = frozenset({
    "accelerators", "actor_pool", "annotations", "cloudpickle", "dask", "debug", "joblib", "metrics", "multiprocessing",
    "queue",
})  # fmt: skip
#: Name → its module.
_LAZY: Final = {
    "inspect_serializability": "moray.check_serialize",
    "ActorPool": "moray.util.actor_pool",
    **dict.fromkeys(("connect", "disconnect"), "moray.util.connecting"),
    **dict.fromkeys(("as_completed", "map_unordered"), "moray.util.completion"),
    **dict.fromkeys(("disable_log_once_globally", "enable_periodic_logging", "log_once"), "moray.util.debug"),
    **dict.fromkeys(("deregister_serializer", "register_serializer"), "moray.util.serialization"),
    **dict.fromkeys(
        (
            "get_current_placement_group",
            "get_placement_group",
            "placement_group",
            "placement_group_table",
            "remove_placement_group",
        ),
        "moray.util.placement_group",
    ),
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"moray.util.{name}")
    raise AttributeError(f"module 'moray.util' has no attribute {name!r}")


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Names of the living actors of the job's namespace, or ``{"name": …, "namespace": …}`` of those of all.

    Example:
        >>> import moray
        >>> from moray.util import list_named_actors
        >>> isinstance(list_named_actors(), list)
        True
    """
    from moray.api import connected

    runtime = connected()
    found = sorted(runtime.actors.names("" if all_namespaces else runtime.welcome.namespace))
    if all_namespaces:
        return [{"name": name, "namespace": namespace} for namespace, name in found]
    return [name for _namespace, name in found]


def get_node_ip_address(address: str | None = None) -> str:
    """The address of this machine: in a session that of its node, as :func:`moray.nodes` and ``node:`` resources have
    it; otherwise that by which other machines reach this one, or "127.0.0.1" without a network.

    Args:
        address: ``host:port`` of a machine; the address is that of the interface that leads to it. Nothing is sent.
            Default: an address of the public internet.

    Example:
        >>> from moray.util import get_node_ip_address
        >>> get_node_ip_address("127.0.0.1:80")
        '127.0.0.1'
    """
    import moray

    if address is None and moray.is_initialized():
        return str(moray.nodes()[0]["NodeManagerAddress"])
    import socket

    host, _, port = (address or "8.8.8.8:53").rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((host, int(port)))  # Of a datagram socket it only chooses the interface.
            found: str = sock.getsockname()[0]
        except OSError:
            return "127.0.0.1"
    return found


def get_node_instance_id() -> str:
    """What the cloud calls this machine: MORAY_CLOUD_INSTANCE_ID or RAY_CLOUD_INSTANCE_ID of the environment, or ""."""
    from moray.config import env_str

    return env_str("CLOUD_INSTANCE_ID")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
