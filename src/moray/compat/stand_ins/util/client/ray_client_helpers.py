"""``ray.util.client.ray_client_helpers``: tests ask it for a client, and get the driver that there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moray.api import init, is_initialized, shutdown

__all__ = ["connect_to_client_or_not", "ray_start_client_server"]


@contextmanager
def connect_to_client_or_not(connect_to_client: bool) -> Iterator[None]:  # noqa: ARG001 - there is one way to connect
    """What is inside runs in the driver that is connected."""
    yield


@contextmanager
def ray_start_client_server(metadata: Any = None, ray_connect_handler: Any = None, **options: Any) -> Iterator[Any]:  # noqa: ARG001 - Ray's client's
    """What is inside gets the module `ray`, in the driver that is connected, or in one for this block."""
    from moray.compat import facade

    own = not is_initialized()
    if own:
        init(**options)
    try:
        yield facade
    finally:
        if own:
            shutdown()
