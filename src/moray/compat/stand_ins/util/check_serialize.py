"""``ray.util.check_serialize``: why something does not pickle."""

from __future__ import annotations

from moray.check_serialize import inspect_serializability

__all__ = ["inspect_serializability"]
