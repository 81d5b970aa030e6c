"""``ray._private.services``: addresses."""

from __future__ import annotations

from moray.launch.resources import NODE_ADDRESS

__all__ = ["get_node_ip_address"]


def get_node_ip_address(address: str = "8.8.8.8:53") -> str:  # noqa: ARG001 - Ray's: where a route is looked up to
    """The address of this machine's node, as ``nodes()`` gives it."""
    return NODE_ADDRESS
