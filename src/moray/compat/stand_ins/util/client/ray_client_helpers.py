"""``ray.util.client.ray_client_helpers``: tests ask it for a client, and get the driver that there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["connect_to_client_or_not"]


@contextmanager
def connect_to_client_or_not(connect_to_client: bool) -> Iterator[None]:  # noqa: ARG001 - there is one way to connect
    """What is inside runs in the driver that is connected."""
    yield
