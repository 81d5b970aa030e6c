"""``ray.internal``, as it was called before it became private."""

from __future__ import annotations

from moray.compat.stand_ins._private.internal_api import free

__all__ = ["free"]
