"""``ray.services``, as it was called before it became private."""

from __future__ import annotations

from moray.compat.stand_ins._private.services import get_node_ip_address

__all__ = ["get_node_ip_address"]
