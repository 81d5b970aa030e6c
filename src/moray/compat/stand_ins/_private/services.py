"""``ray._private.services``: addresses."""

from __future__ import annotations

import os

from moray.launch.resources import NODE_ADDRESS

__all__ = ["get_node_ip_address", "get_ray_address_from_environment"]


def get_node_ip_address(address: str = "8.8.8.8:53") -> str:  # noqa: ARG001 - Ray's: where a route is looked up to
    """The address of this machine's node, as ``nodes()`` gives it."""
    return NODE_ADDRESS


def get_ray_address_from_environment(addr: str | None, temp_dir: str | None = None) -> str | None:  # noqa: ARG001 - Ray's
    """What RAY_ADDRESS says; else what is given."""
    return os.environ.get("RAY_ADDRESS") or addr
