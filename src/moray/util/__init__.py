"""Tools beside the core API."""

from __future__ import annotations

from typing import Any

from moray.check_serialize import inspect_serializability

__all__ = ["inspect_serializability", "list_named_actors"]


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
