"""``ray.types``: names for annotations."""

from __future__ import annotations

from moray.object_ref import ObjectRef

__all__ = ["ObjectRef"]
